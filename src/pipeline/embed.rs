//! Prompts without pictures: encoded ahead, and kept for other requests and processes.

use std::path::Path;
use std::sync::Arc;

use super::digest;
use super::generate::Pipeline;
use super::progress::{Event, Observer};
use super::prompt_cache::PromptCache;
use super::prompts::Embeddings;
use super::request::Request;
use super::run::Run;
use crate::Result;

impl Pipeline {
    /// Sends the prompts of `request` through the text encoders, and nothing further. A negative prompt goes with them if
    /// `cfg_scale` is above 1. What is made carries a digest of the text encoders, for which all their weights are read once, so
    /// that a model with others refuses it.
    ///
    /// # Errors
    /// As [`generate`](Pipeline::generate).
    pub fn embed(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Embeddings> {
        let request = Request { embeddings: None, ..request.clone() };
        let settings = self.settings(&request)?;
        let plan = self.plan_encoders(&settings)?;
        let model = Arc::clone(&self.model);
        let _inside = self.machine.workers.enter();
        let Pipeline { machine, prompt_cache, .. } = self;
        let mut run = Run::new(machine, observer, &plan);
        run.event(Event::Planned(plan.clone()))?;
        run.machine.set_limits(&plan)?;
        let kept = run.machine.keep(&plan, &model.encoders.subjects(&settings));
        let made = kept.and_then(|()| {
            let sees = model.encoders.see() && !request.references.is_empty();
            let cache = prompt_cache.as_deref().filter(|_| !sees);
            let made = super::embeddings::embeddings(&model, cache, (&request, &settings), &mut run)?;
            let encoders = digest::of(&model, prompt_cache.as_deref().map(|cache| cache as _), run.machine.cancel())?;
            Ok(Embeddings { encoders: Some(encoders), ..made })
        });
        if made.is_err() {
            // They may be half there.
            self.machine.forget();
        }
        made
    }

    /// Caches encoded prompts in host memory, up to `bytes` (64 MiB by default), the oldest dropped first. A request with one of
    /// them, the same negative prompt and the same number of tokens runs no text encoder. 0 turns the cache off.
    pub fn set_remembered_bytes(&mut self, bytes: usize) {
        self.remembered.most_bytes = bytes;
        self.remembered.forget();
    }

    /// Keeps encoded prompts in `folder` too, for other processes with the same text encoders and device: at most 1 GiB of them,
    /// the oldest dropped first. `None` turns that off.
    ///
    /// Only this user may write to the folder, which is made that way if it is missing: what lies there decides what is drawn.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the folder cannot be made, [`Error::Mismatch`](crate::Error::Mismatch) if other users may
    /// write to it.
    pub fn set_prompt_cache(&mut self, folder: Option<&Path>) -> Result<()> {
        // What encoders make is the same on devices that round as the first does.
        let device = self.machine.first().backend.device();
        let cache = folder.map(|folder| PromptCache::open(folder, device));
        self.prompt_cache = cache.transpose()?.map(Arc::new);
        Ok(())
    }
}
