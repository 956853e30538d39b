//! Prompts that went through the text encoders, kept for other requests.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::prompt_cache::{Key, PromptCache};
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

/// Bytes of prompts that a pipeline remembers by itself: several of the longest.
const REMEMBERED_BYTES: usize = 64 << 20;

/// The prompts that a pipeline met last, so that another picture of one of them needs no text encoder.
pub(super) struct Remembered {
    /// The last one first.
    prompts: VecDeque<(String, Arc<Embeddings>, Vec<String>)>,
    most_bytes: usize,
}

impl Default for Remembered {
    fn default() -> Remembered {
        Remembered { prompts: VecDeque::new(), most_bytes: REMEMBERED_BYTES }
    }
}

impl Remembered {
    /// What the encoders made of `prompt` under `settings`, and what they had to say.
    fn find(&mut self, prompt: &str, settings: &Settings) -> Option<(Arc<Embeddings>, Vec<String>)> {
        let fits = |embeddings: &Embeddings| {
            embeddings.negative == settings.negative_prompt && embeddings.tokens == settings.max_sequence_length
        };
        let known = self.prompts.iter().position(|(text, embeddings, _)| text == prompt && fits(embeddings))?;
        let entry = self.prompts.remove(known)?;
        let found = (Arc::clone(&entry.1), entry.2.clone());
        self.prompts.push_front(entry);
        Some(found)
    }

    fn add(&mut self, prompt: &str, embeddings: &Arc<Embeddings>, warnings: Vec<String>) {
        self.prompts.push_front((prompt.to_owned(), Arc::clone(embeddings), warnings));
        self.forget();
    }

    /// Forgets the oldest beyond what may be kept.
    fn forget(&mut self) {
        let mut bytes = 0;
        let most = self.most_bytes;
        self.prompts.retain(|(_, embeddings, _)| {
            bytes += embeddings.bytes();
            bytes <= most
        });
    }
}

impl Embeddings {
    /// Bytes of its numbers in host memory.
    fn bytes(&self) -> usize {
        self.prompts.iter().map(|prompt| size_of_val(&*prompt.hidden) + size_of_val(&*prompt.pooled)).sum()
    }

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

    /// From now on at most `bytes` of prompts that went through the text encoders stay in host memory, 64 MiB by default, the last
    /// ones; a request with one of them, the same negative prompt and the same number of tokens runs no text encoder. None do
    /// with 0.
    pub fn set_remembered_bytes(&mut self, bytes: usize) {
        self.remembered.most_bytes = bytes;
        self.remembered.forget();
    }

    /// From now on prompts that went through the text encoders stay in `folder` too, for other processes with the same text
    /// encoders and device: at most 1 GiB of them, the last ones.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be made.
    pub fn set_prompt_cache(&mut self, folder: Option<&Path>) -> Result<()> {
        let cache = folder.map(|folder| PromptCache::open(folder, &self.model, self.backend.device()));
        self.prompt_cache = cache.transpose()?.map(Arc::new);
        Ok(())
    }

    /// What the prompts of `request` are to the denoiser: remembered, or made.
    pub(super) fn embedded(
        &mut self,
        request: &Request,
        settings: &Settings,
        run: &mut Run<'_>,
    ) -> Result<Arc<Embeddings>> {
        if let Some((embeddings, warnings)) = self.remembered.find(&request.prompt, settings) {
            warnings.into_iter().try_for_each(|text| run.warn(text))?;
            return Ok(embeddings);
        }
        let before = run.warnings.len();
        let embeddings = Arc::new(self.embeddings(request, settings, run)?);
        self.remembered.add(&request.prompt, &embeddings, run.warnings.split_off(before));
        Ok(embeddings)
    }

    pub(super) fn embeddings(
        &mut self,
        request: &Request,
        settings: &Settings,
        run: &mut Run<'_>,
    ) -> Result<Embeddings> {
        let negative = settings.negative_prompt.clone();
        let prompts: Vec<&str> = std::iter::once(request.prompt.as_str()).chain(negative.as_deref()).collect();
        let prompts = match self.prompt_cache.clone() {
            Some(cache) => self.cached(&cache, &prompts, settings, run)?,
            None => self.encode(&prompts, settings, run)?,
        };
        Ok(Embeddings { prompts, negative, tokens: settings.max_sequence_length })
    }

    /// What the folder has of `texts`. What it has not is made, and kept there; a folder that fails costs only time.
    fn cached(
        &mut self,
        cache: &PromptCache,
        texts: &[&str],
        settings: &Settings,
        run: &mut Run<'_>,
    ) -> Result<Vec<Prompt>> {
        let mut prompts = Vec::with_capacity(texts.len());
        for text in texts {
            prompts.push(self.look_up(cache, text, settings.max_sequence_length, run)?);
        }
        let missing = texts.iter().zip(&prompts).filter(|(_, (_, prompt))| prompt.is_none());
        let missing: Vec<&str> = missing.map(|(text, _)| *text).collect();
        if !missing.is_empty() {
            let made = self.encode(&missing, settings, run)?;
            let places = prompts.iter_mut().filter(|(_, prompt)| prompt.is_none());
            for ((key, place), prompt) in places.zip(made) {
                if let Err(error) = cache.keep(key, &prompt) {
                    run.warn(format!("the prompt is not kept: {error}"))?;
                }
                *place = Some(prompt);
            }
        }
        Ok(prompts.into_iter().filter_map(|(_, prompt)| prompt).collect())
    }

    fn look_up(
        &self,
        cache: &PromptCache,
        text: &str,
        tokens: usize,
        run: &mut Run<'_>,
    ) -> Result<(Key, Option<Prompt>)> {
        let FluxModel { clip_tokenizer, t5_tokenizer, .. } = &*self.model;
        let (clip, t5) = (clip_tokenizer.encode(text)?, t5_tokenizer.encode(text, Some(tokens))?);
        let key = cache.key(&clip.ids, &t5.ids);
        let found = match cache.find(&key, tokens) {
            Ok(found) => found,
            Err(error) => {
                run.warn(format!("the prompt goes through the text encoders again: {error}"))?;
                None
            }
        };
        if found.is_some() {
            // As the encoders would have.
            run.warn_of_cut("CLIP", clip_tokenizer.length(), &clip)?;
            run.warn_of_cut("T5", tokens, &t5)?;
        }
        Ok((key, found))
    }
}
