//! Prompts that went through the text encoders, kept for other requests.

use std::collections::VecDeque;
use std::sync::Arc;

use super::digest::{self, Digest, hex};
use super::opened::Opened;
use super::prompt_cache::{Key, PromptCache};
use super::prompts::{Embeddings, Prompt};
use super::request::{Request, Settings};
use super::run::Run;
use crate::ggml::CancelFlag;
use crate::plan::Phase;
use crate::text::Encoded;
use crate::{Error, Result};

/// Bytes of prompts that a pipeline remembers by itself: several of the longest.
const REMEMBERED_BYTES: usize = 64 << 20;

/// The prompts that a pipeline met last, so that another picture of one of them needs no text encoder.
pub(super) struct Remembered {
    /// The last one first.
    prompts: VecDeque<(String, Arc<Embeddings>, Vec<String>)>,
    pub(super) most_bytes: usize,
}

impl Default for Remembered {
    fn default() -> Remembered {
        Remembered { prompts: VecDeque::new(), most_bytes: REMEMBERED_BYTES }
    }
}

impl Remembered {
    /// What the encoders made of `prompt` under `settings`, and what they had to say.
    fn find(&mut self, prompt: &str, settings: &Settings) -> Option<(Arc<Embeddings>, Vec<String>)> {
        let known = self.prompts.iter().position(|(text, embeddings, _)| {
            text == prompt
                && embeddings.negative == settings.negative_prompt
                && embeddings.negative_is_zero == settings.negative_is_zero
                && embeddings.is_zero == settings.prompt_is_zero
                && embeddings.tokens == settings.max_sequence_length
                && embeddings.syntax == settings.prompt_syntax
        })?;
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
    pub(super) fn forget(&mut self) {
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
        self.prompts.iter().flat_map(|Prompt(arrays)| arrays).map(|array| size_of_val(&**array)).sum()
    }

    /// Those that the passes of a request with `settings` need.
    pub(super) fn for_passes(&self, settings: &Settings) -> Vec<&Prompt> {
        // The negative prompt is that of the third pass, too.
        (0..settings.passes()).filter_map(|pass| self.prompts.get(pass.min(1))).collect()
    }

    /// Refuses a model whose text encoders are not those that made them: their numbers would mean something else.
    fn check_encoders(&self, model: &Opened) -> Result<()> {
        let Some(made_by) = self.encoders else { return Ok(()) };
        let found = digest::of(model, None, &CancelFlag::new())?;
        if found != made_by {
            let short = |digest: &Digest| format!("text encoders with the digest {}", hex(&digest[..8]));
            let error = Error::option("embeddings", short(&found), short(&made_by));
            return Err(error.with_hint("they were made by another model, or with other LoRAs"));
        }
        Ok(())
    }

    /// The `settings` of `request` with what these embeddings say of them.
    ///
    /// # Errors
    /// [`Error::Option`] where they do not fit the request or the model.
    pub(super) fn fill_in(&self, settings: Settings, request: &Request, model: &Opened) -> Result<Settings> {
        let tokens = self.tokens;
        if let Some(length) = request.max_sequence_length.filter(|&length| length != tokens) {
            let expected = format!("{tokens}, as the embeddings were made with");
            return Err(Error::option("--max-sequence-length", expected, length.to_string()));
        }
        if settings.is_guided() && self.negative.is_none() {
            let above = settings.guided_above;
            let error = Error::option("--cfg-scale", format!("at most {above}"), settings.cfg_scale.to_string());
            let hint = format!("the embeddings have no negative prompt: make them with a --cfg-scale above {above}");
            return Err(error.with_hint(hint));
        }
        let settings = Settings { max_sequence_length: tokens, ..settings };
        for (Prompt(arrays), &length) in self.prompts.iter().zip(&self.lengths) {
            let expected: Vec<usize> = model.encoders.arrays(length).iter().map(|array| array.elements()).collect();
            let found: Vec<usize> = arrays.iter().map(Vec::len).collect();
            if found != expected {
                let error = Error::option("embeddings", numbers(&expected), numbers(&found));
                return Err(error.with_hint("they were made by another model"));
            }
        }
        self.check_encoders(model)?;
        let negative_prompt = self.negative.clone().filter(|_| settings.is_guided());
        let negative_is_zero = self.negative_is_zero && negative_prompt.is_some();
        let prompt_is_zero = false;
        let prompt_syntax = self.syntax;
        let settings =
            Settings { negative_prompt, negative_is_zero, prompt_is_zero, prompt_syntax, embedded: true, ..settings };
        let text_tokens = self.lengths.iter().copied().take(settings.prompts()).collect();
        Ok(Settings { text_tokens, ..settings })
    }
}

/// `1024 and 64 numbers`
fn numbers(counts: &[usize]) -> String {
    let counts: Vec<String> = counts.iter().map(usize::to_string).collect();
    format!("{} numbers", counts.join(" and "))
}

/// What the prompts of a request are to the denoiser: remembered, or made.
pub(super) fn embedded(
    model: &Opened,
    remembered: &mut Remembered,
    cache: Option<&PromptCache>,
    (request, settings): (&Request, &Settings),
    run: &mut Run<'_>,
) -> Result<Arc<Embeddings>> {
    let sees = model.encoders.see() && !request.references.is_empty();
    if sees {
        return embeddings(model, None, (request, settings), run).map(Arc::new);
    }
    if let Some((embeddings, warnings)) = remembered.find(&request.prompt, settings) {
        for text in warnings {
            run.warn(text)?;
        }
        return Ok(embeddings);
    }
    let before = run.warnings.len();
    let embeddings = Arc::new(embeddings(model, cache, (request, settings), run)?);
    remembered.add(&request.prompt, &embeddings, run.warnings.split_off(before));
    Ok(embeddings)
}

/// The prompts of a request, from the folder or made.
pub(super) fn embeddings(
    model: &Opened,
    cache: Option<&PromptCache>,
    (request, settings): (&Request, &Settings),
    run: &mut Run<'_>,
) -> Result<Embeddings> {
    let negative = settings.negative_prompt.clone();
    let mut texts = Vec::new();
    let prompt = Some(request.prompt.as_str()).filter(|_| !settings.prompt_is_zero);
    let other = negative.as_deref().filter(|_| !settings.negative_is_zero);
    for text in prompt.into_iter().chain(other) {
        run.machine.cancel().check()?;
        texts.push(model.encoders.tokenize(text, settings)?);
    }
    let readers = model.encoders.readers();
    for (at, reader) in readers.iter().enumerate() {
        for tokens in &texts {
            run.warn_of_cut(reader.name, tokens[at].ids.len(), &tokens[at])?;
        }
    }
    let mut prompts: Vec<Option<Prompt>> = vec![None; texts.len()];
    let keys = match cache {
        Some(cache) => look_up(model, cache, settings, &texts, &mut prompts, run)?,
        None => Vec::new(),
    };
    let missing: Vec<usize> = (0..texts.len()).filter(|&i| prompts[i].is_none()).collect();
    if !missing.is_empty() {
        let wanted: Vec<Vec<Encoded>> = missing.iter().map(|&i| texts[i].clone()).collect();
        let made = encode(model, (request, settings), &wanted, run)?;
        for (&i, prompt) in missing.iter().zip(made) {
            // A folder that fails costs only time.
            if let Some(cache) = cache
                && let Err(error) = cache.keep(&keys[i], &prompt, &model.encoders.arrays(settings.text_tokens[i]))
            {
                run.warn(format!("the prompt is not kept: {error}"))?;
            }
            prompts[i] = Some(prompt);
        }
    }
    let mut prompts: Vec<Prompt> = prompts.into_iter().flatten().collect();
    if settings.prompt_is_zero {
        prompts.insert(0, Prompt::zeros(&model.encoders.arrays(settings.most_text_tokens()))?);
    }
    if settings.negative_is_zero {
        prompts.push(Prompt::zeros(&model.encoders.arrays(settings.most_text_tokens()))?);
    }
    let Settings { negative_is_zero, prompt_is_zero: is_zero, max_sequence_length: tokens, .. } = *settings;
    let (lengths, syntax) = (settings.text_tokens.clone(), settings.prompt_syntax);
    Ok(Embeddings { prompts, negative, negative_is_zero, is_zero, tokens, lengths, syntax, encoders: None })
}

/// Fills in the prompts that the folder has. Returns the key of each.
fn look_up(
    model: &Opened,
    cache: &PromptCache,
    settings: &Settings,
    texts: &[Vec<Encoded>],
    prompts: &mut [Option<Prompt>],
    run: &mut Run<'_>,
) -> Result<Vec<Key>> {
    let mut keys = Vec::with_capacity(texts.len());
    for ((tokens, prompt), &length) in texts.iter().zip(prompts).zip(&settings.text_tokens) {
        let key = cache.key(model, tokens, run.machine.cancel())?;
        match cache.find(&key, &model.encoders.arrays(length)) {
            Ok(found) => *prompt = found,
            Err(error) => run.warn(format!("the prompt goes through the text encoders again: {error}"))?,
        }
        keys.push(key);
    }
    Ok(keys)
}

/// Sends texts through the encoders: a phase of its own.
fn encode(
    model: &Opened,
    (request, settings): (&Request, &Settings),
    texts: &[Vec<Encoded>],
    run: &mut Run<'_>,
) -> Result<Vec<Prompt>> {
    let mut stages = 0;
    for subject in model.encoders.subjects(settings) {
        // Some read each text, some pictures that all texts are read with.
        let times = (subject.runs.request * texts.len()).div_ceil(settings.texts().max(1));
        stages += subject.model.stages().len() * times;
    }
    let start = run.begin(Phase::Encode, stages, 0)?;
    let prompts = model.encoders.encode_seeing(run, settings, texts, &request.references)?;
    run.end(Phase::Encode, start)?;
    Ok(prompts)
}
