//! Prompts that went through the text encoders, kept for other requests.

use super::{FluxPipeline, Prompt, Run};
use crate::pipeline::{Event, Observer, Request, Settings};
use crate::source::flux::FluxModel;
use crate::{Error, Result};

/// A prompt, with a negative one where there is one, as the denoiser takes it. Requests that are given it need no text
/// encoder, and draw what they would have drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// The prompt, and behind it the negative one.
    prompts: Vec<Prompt>,
    /// The text of the negative prompt.
    negative: Option<String>,
    /// T5's tokens.
    tokens: usize,
}

impl Embeddings {
    /// Those that the passes of a request with `settings` need.
    pub(super) fn for_passes(&self, settings: &Settings) -> &[Prompt] {
        match settings.negative_prompt {
            Some(_) => &self.prompts,
            None => &self.prompts[..1],
        }
    }

    /// The `settings` of `request` with what these embeddings say of them.
    ///
    /// # Errors
    /// [`Error::Option`] where they do not fit the request or the model.
    pub(super) fn fill_in(&self, settings: Settings, request: &Request, model: &FluxModel) -> Result<Settings> {
        let tokens = self.tokens;
        if let Some(length) = request.max_sequence_length.filter(|&length| length != tokens) {
            let expected = format!("{tokens}, as the embeddings were made with");
            return Err(Error::option("--max-sequence-length", expected, length.to_string()));
        }
        if settings.cfg_scale > 1.0 && self.negative.is_none() {
            let error = Error::option("--cfg-scale", "at most 1", settings.cfg_scale.to_string());
            return Err(error.with_hint("the embeddings have no negative prompt: make them with a --cfg-scale above 1"));
        }
        let sizes = |hidden: usize, pooled: usize| format!("{hidden} and {pooled} numbers");
        let (hidden, pooled) = (model.t5_config.d_model * tokens, model.clip_config.hidden_size);
        if let Some(other) = self.prompts.iter().find(|p| p.hidden.len() != hidden || p.pooled.len() != pooled) {
            let found = sizes(other.hidden.len(), other.pooled.len());
            let error = Error::option("embeddings", sizes(hidden, pooled), found);
            return Err(error.with_hint("they were made by another model"));
        }
        let negative_prompt = self.negative.clone().filter(|_| settings.cfg_scale > 1.0);
        Ok(Settings { negative_prompt, max_sequence_length: tokens, embedded: true, ..settings })
    }
}

impl FluxPipeline {
    /// Sends the prompts of `request` through the text encoders, and nothing further. A negative prompt goes with them where
    /// `cfg_scale` is above 1.
    ///
    /// # Errors
    /// As [`generate`](FluxPipeline::generate).
    pub fn embed(&mut self, request: &Request, observer: &mut dyn Observer) -> Result<Embeddings> {
        let request = Request { embeddings: None, ..request.clone() };
        let settings = self.settings(&request)?;
        let plan = self.plan_encoders(&settings)?;
        let mut run = Run::new(observer, &plan, self.backend.device());
        run.observer.event(Event::Planned(plan.clone()))?;
        self.ledger.set_limit(plan.limit);
        let embeddings = self.keep(&plan).and_then(|()| self.embeddings(&request, &settings, &mut run));
        if embeddings.is_err() {
            // They may be half there.
            self.kept.clear();
        }
        embeddings
    }

    pub(super) fn embeddings(
        &mut self,
        request: &Request,
        settings: &Settings,
        run: &mut Run<'_>,
    ) -> Result<Embeddings> {
        let negative = settings.negative_prompt.clone();
        let prompts: Vec<&str> = std::iter::once(request.prompt.as_str()).chain(negative.as_deref()).collect();
        let prompts = self.encode(&prompts, settings, run)?;
        Ok(Embeddings { prompts, negative, tokens: settings.max_sequence_length })
    }
}
