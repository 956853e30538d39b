//! Text encoders that families share.

use std::sync::Arc;

use super::fit;
use super::opened::{Additions, Reader, once};
use super::request::Settings;
use super::run::{Run, Running, finite};
use super::textual_inversion::{FIRST_ID, Words};
use crate::models::clip::{self, Output, causal_mask};
use crate::models::t5;
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::{Part, Slot, Source, Text, TokenizerFiles, networks};
use crate::stage::{Cadence, Dims, Symbol};
use crate::text::{self, ClipTokenizer, Encoded, Piece, PromptSyntax, Span, T5Tokenizer, TokenizerConfig, Weighted};
use crate::{Error, Result, reserve};

/// The tokenizer of the text encoder at `slot`, with its configuration.
fn tokenizer<'a>(source: &'a Source, slot: &Slot) -> Result<(&'a TokenizerFiles, TokenizerConfig)> {
    let files = source.needed_tokenizer(slot)?;
    let config = match &files.config {
        Some(Text { text, origin }) => TokenizerConfig::from_json(text, origin)?,
        None => TokenizerConfig::default(),
    };
    Ok((files, config))
}

/// What the only CLIP of a model is called in messages.
pub(super) const CLIP_NAME: &str = "CLIP";

/// What gives prompts, in messages.
pub(super) const PROMPTS: [&str; 2] = ["--prompt", "--negative-prompt"];

/// How many chunks a prompt may have: more words than anyone writes.
const MOST_CHUNKS: usize = 64;

/// CLIP's text encoder with its tokenizer.
pub(super) struct ClipEncoder {
    pub(super) part: Part<clip::Clip>,
    pub(super) config: clip::Config,
    tokenizer: ClipTokenizer,
    /// How many tokens the tokenizer knows. Counting them takes memory, so it is done once.
    vocabulary: usize,
    /// The words that it was taught, and its number among the text encoders that were taught them.
    taught: Option<(Arc<Words>, usize)>,
}

/// Teaches `encoders` the words of `additions`. Each has the name of its vectors in files for two, if it is one of two.
///
/// # Errors
/// As [`Words::open`].
pub(super) fn teach(encoders: &mut [(&mut ClipEncoder, Option<&'static str>)], additions: &Additions) -> Result<()> {
    let readers = encoders.iter().map(|(encoder, name)| (encoder.config.hidden_size, *name)).collect();
    let words = Words::open(&additions.embeddings, additions.embeddings_folder.as_deref(), readers)?;
    if words.is_empty() {
        return Ok(());
    }
    let words = Arc::new(words);
    for (at, (encoder, _)) in encoders.iter_mut().enumerate() {
        encoder.taught = Some((Arc::clone(&words), at));
    }
    Ok(())
}

/// How many tokens each of `texts` becomes: with chunks, as many as the longest of them.
///
/// # Errors
/// As [`ClipEncoder::read`].
pub(super) fn tokens(encoders: &[&ClipEncoder], texts: &[&str], settings: &Settings) -> Result<Vec<usize>> {
    let mut most = settings.max_sequence_length;
    for encoder in encoders {
        for (text, option) in texts.iter().zip(PROMPTS) {
            most = most.max(encoder.read(option, text, settings)?.ids.len());
        }
    }
    Ok(vec![most; texts.len()])
}

/// The vectors of taught words among `tokens`, those of each of `encoders`.
///
/// # Errors
/// What reading their files returns.
pub(super) fn taught(encoders: &[&ClipEncoder], tokens: &[Encoded]) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for (encoder, tokens) in encoders.iter().zip(tokens) {
        let Some((words, at)) = &encoder.taught else { continue };
        for &id in tokens.ids.iter().filter(|id| **id >= FIRST_ID) {
            all.extend_from_slice(words.vector(id, *at)?);
        }
    }
    Ok(all)
}

impl ClipEncoder {
    /// The one at `slot`.
    ///
    /// # Errors
    /// As [`open`](super::open).
    pub(super) fn open(source: &Source, slot: &Slot) -> Result<ClipEncoder> {
        ClipEncoder::open_with(source, slot, Output::LAST)
    }

    /// The one at `slot`, as it gives `output`.
    ///
    /// # Errors
    /// As [`open`](super::open).
    pub(super) fn open_with(source: &Source, slot: &Slot, output: Output) -> Result<ClipEncoder> {
        let (part, config) = networks::clip_with(source.component(slot)?, output)?;
        let (files, settings) = tokenizer(source, slot)?;
        let tokenizer = ClipTokenizer::from_json(&files.tokenizer.text, &settings, &files.tokenizer.origin)?;
        let vocabulary = tokenizer.vocab_size();
        Ok(ClipEncoder { part, config, tokenizer, vocabulary, taught: None })
    }

    /// Refuses a network that its tokenizer does not fit.
    pub(super) fn check(&self, source: &Source) -> Result<()> {
        let ClipEncoder { part, config, tokenizer, vocabulary, .. } = self;
        fit::at_least(source, part, "rows of CLIP's token embedding", config.vocab_size, *vocabulary)?;
        fit::at_least(source, part, "positions of CLIP", config.max_position_embeddings, tokenizer.length())
    }

    /// The reader, called `name` in messages.
    pub(super) fn reader(&self, name: &'static str) -> Reader {
        let tokenizer = self.part.slot.tokenizer.unwrap_or_default();
        let (vocabulary, length) = (self.vocabulary, self.tokenizer.length());
        Reader { name, tokenizer, vocabulary, length }
    }

    pub(super) fn tokenize(&self, text: &str) -> Result<Encoded> {
        self.tokenizer.encode(text)
    }

    /// The words that it was taught.
    pub(super) fn words(&self) -> Option<&Words> {
        self.taught.as_ref().map(|(words, _)| &**words)
    }

    /// The tokens of `text`, which `option` gave, with the words that it was taught, in chunks if `settings` have weights.
    ///
    /// # Errors
    /// What the tokenizer and the files of words return; [`Error::Option`] for a prompt that cannot be read, or of too many chunks.
    pub(super) fn read(&self, option: &'static str, text: &str, settings: &Settings) -> Result<Encoded> {
        if settings.prompt_syntax == PromptSyntax::Plain {
            return self.tokenizer.encode_spans(&self.spans(text)?);
        }
        let pieces = text::pieces(option, text)?;
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            parts.push(match piece {
                Piece::Break => Weighted::Break,
                Piece::Text { text, weight } => Weighted::Spans(self.spans(text)?, *weight as f32),
            });
        }
        let mut encoded = self.tokenizer.encode_chunks(&parts)?;
        let chunks = encoded.ids.len() / self.tokenizer.length();
        if chunks > MOST_CHUNKS {
            let expected = format!("at most {MOST_CHUNKS} chunks of {} tokens", self.tokenizer.length());
            return Err(Error::option(option, expected, format!("{chunks} chunks")));
        }
        if encoded.weights.iter().all(|weight| *weight == 1.0) {
            encoded.weights.clear();
        }
        if !settings.text_tokens.is_empty() {
            self.tokenizer.pad(&mut encoded, settings.most_text_tokens() / self.tokenizer.length());
        }
        Ok(encoded)
    }

    /// `text` in parts: words that it was taught, and what is between.
    fn spans<'t>(&self, text: &'t str) -> Result<Vec<Span<'t>>> {
        self.words().map_or_else(|| Ok(vec![Span::Text(text)]), |words| words.spans(text))
    }

    /// Runs for the texts of a request, each once for every chunk.
    pub(super) fn runs(&self, settings: &Settings) -> Runs {
        let chunks = settings.most_text_tokens().div_ceil(self.tokenizer.length().max(1));
        once(settings.texts().saturating_mul(chunks))
    }

    pub(super) fn subject(&self, name: &'static str, runs: Runs) -> Subject<'_> {
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, self.tokenizer.length());
        super::opened::subject(&self.part, name, Phase::Encode, dims, runs)
    }

    /// The pooled vector of every text, `[D]`, which `subject` computes.
    pub(super) fn pooled<'t>(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        texts: impl Iterator<Item = &'t Encoded>,
    ) -> Result<Vec<Vec<f32>>> {
        let width = self.config.hidden_size;
        let taken = self.run(run, subject, texts, |running, ids| {
            let (hidden, row) = (running.get(self.part.net.states)?, self.config.pooled_position(ids) * width);
            finite(hidden[row..row + width].to_vec(), "CLIP's pooled vector")
        })?;
        Ok(taken.into_iter().filter_map(|chunks| chunks.into_iter().next()).collect())
    }

    /// The hidden states of every text, `[D, tokens]`, which `subject` computes.
    pub(super) fn hidden<'t>(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        texts: impl Iterator<Item = &'t Encoded> + Clone,
    ) -> Result<Vec<Vec<f32>>> {
        let taken = self.run(run, subject, texts.clone(), |running: &Running<'_>, _: &[u32]| {
            finite(running.get(self.part.net.states)?, "CLIP's output")
        })?;
        taken.into_iter().zip(texts).map(|(chunks, text)| self.weighted(chunks, text)).collect()
    }

    /// The hidden states of every text, `[D, tokens]`, and its projected pooled vector, `[P]`, which `subject` computes. The pooled
    /// vector of several chunks is the first one's.
    pub(super) fn hidden_and_pooled<'t>(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        texts: impl Iterator<Item = &'t Encoded> + Clone,
    ) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let ports = self.part.net.pooled.ok_or_else(|| Error::graph("encode", "a text encoder without projection"))?;
        let taken = self.run(run, subject, texts.clone(), |running, _| {
            let hidden = finite(running.get(self.part.net.states)?, "CLIP's output")?;
            Ok((hidden, finite(running.get(ports.pooled)?, "CLIP's pooled vector")?))
        })?;
        let mut all = Vec::with_capacity(taken.len());
        for (chunks, text) in taken.into_iter().zip(texts) {
            let (hidden, pooled): (Vec<_>, Vec<_>) = chunks.into_iter().unzip();
            all.push((self.weighted(hidden, text)?, pooled.into_iter().next().unwrap_or_default()));
        }
        Ok(all)
    }

    /// The hidden states of all `chunks` of `text`, each multiplied by the weight of its token. As AUTOMATIC1111's web UI: the mean of
    /// each chunk stays as it was.
    fn weighted(&self, mut chunks: Vec<Vec<f32>>, text: &Encoded) -> Result<Vec<f32>> {
        let weights = text.weights.chunks(self.tokenizer.length());
        for (hidden, weights) in chunks.iter_mut().zip(weights).filter(|(_, weights)| weights.iter().any(|w| *w != 1.0))
        {
            let before = mean(hidden);
            for (token, weight) in hidden.chunks_exact_mut(self.config.hidden_size).zip(weights) {
                token.iter_mut().for_each(|x| *x *= weight);
            }
            let factor = (before / mean(hidden)) as f32;
            hidden.iter_mut().for_each(|x| *x *= factor);
        }
        let mut all = reserve::room("a prompt", chunks.iter().map(Vec::len).sum())?;
        chunks.iter().for_each(|chunk| all.extend_from_slice(chunk));
        finite(all, "CLIP's output, weighted")
    }

    /// The vectors of the tokens `ids`, `[D, tokens]`, without those of their places.
    fn embedded(&self, ids: &[u32], known: &[u32]) -> Result<Vec<f32>> {
        let width = self.config.hidden_size;
        let mut hidden = self.part.bound.gather(self.part.net.token_embedding, width, known)?;
        let Some((words, at)) = &self.taught else { return Ok(hidden) };
        for (&id, hidden) in ids.iter().zip(hidden.chunks_exact_mut(width)) {
            if id >= FIRST_ID {
                hidden.copy_from_slice(words.vector(id, *at)?);
            }
        }
        Ok(hidden)
    }

    /// What `take` takes of what was computed for every chunk of every text, and of its tokens.
    fn run<'t, R>(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        texts: impl Iterator<Item = &'t Encoded>,
        take: impl Fn(&Running<'_>, &[u32]) -> Result<R>,
    ) -> Result<Vec<Vec<R>>> {
        let ClipEncoder { part, config, tokenizer, .. } = self;
        let (tokens, width) = (tokenizer.length(), config.hidden_size);
        let mut running = run.start(subject)?;
        running.set(part.net.mask, &causal_mask(tokens)?)?;
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let positions = part.bound.gather(part.net.position_embedding, width, &ids)?;
        let mut taken = Vec::new();
        for text in texts {
            let mut of_text = Vec::new();
            for ids in text.ids.chunks(tokens) {
                // No taught word ends a text, whatever its id.
                let known: Vec<u32> = ids.iter().map(|&id| if id < FIRST_ID { id } else { 0 }).collect();
                let mut hidden = self.embedded(ids, &known)?;
                hidden.iter_mut().zip(&positions).for_each(|(token, position)| *token += position);
                running.set(part.net.hidden, &hidden)?;
                if let Some(pooled) = part.net.pooled {
                    // A row of a tokenizer's length, which is far below.
                    running.session().set_indices(pooled.end, &[config.pooled_position(&known) as i32])?;
                }
                run.compute(&mut running, Cadence::Request)?;
                of_text.push(take(&running, &known)?);
            }
            taken.push(of_text);
        }
        run.finish(running);
        Ok(taken)
    }
}

/// The mean of `numbers`.
fn mean(numbers: &[f32]) -> f64 {
    numbers.iter().map(|&number| f64::from(number)).sum::<f64>() / numbers.len().max(1) as f64
}

/// T5's encoder with its tokenizer.
pub(super) struct T5Encoder {
    pub(super) part: Part<t5::T5>,
    pub(super) config: t5::Config,
    tokenizer: T5Tokenizer,
    /// As [`ClipEncoder::vocabulary`].
    vocabulary: usize,
}

impl T5Encoder {
    /// The one at `slot`.
    ///
    /// # Errors
    /// As [`open`](super::open).
    pub(super) fn open(source: &Source, slot: &Slot) -> Result<T5Encoder> {
        T5Encoder::with(networks::t5(source.component(slot)?)?, source, slot)
    }

    /// That of umt5 at `slot`.
    ///
    /// # Errors
    /// As [`open`](super::open).
    pub(super) fn open_umt5(source: &Source, slot: &Slot) -> Result<T5Encoder> {
        T5Encoder::with(networks::umt5(source.component(slot)?)?, source, slot)
    }

    fn with((part, config): (Part<t5::T5>, t5::Config), source: &Source, slot: &Slot) -> Result<T5Encoder> {
        let (files, settings) = tokenizer(source, slot)?;
        let tokenizer = T5Tokenizer::from_json(&files.tokenizer.text, &settings, &files.tokenizer.origin)?;
        let vocabulary = tokenizer.vocab_size();
        Ok(T5Encoder { part, config, tokenizer, vocabulary })
    }

    /// Refuses a network that its tokenizer does not fit.
    pub(super) fn check(&self, source: &Source) -> Result<()> {
        let rows = "rows of T5's token embedding";
        fit::at_least(source, &self.part, rows, self.config.vocab_size, self.vocabulary)
    }

    pub(super) fn reader(&self) -> Reader {
        let tokenizer = self.part.slot.tokenizer.unwrap_or_default();
        let (vocabulary, length) = (self.vocabulary, self.tokenizer.default_length());
        Reader { name: "T5", tokenizer, vocabulary, length }
    }

    pub(super) fn tokenize(&self, text: &str, tokens: usize) -> Result<Encoded> {
        self.tokenizer.encode(text, Some(tokens))
    }

    pub(super) fn subject(&self, name: &'static str, tokens: usize, runs: Runs) -> Subject<'_> {
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, tokens);
        let dims = dims.with(Symbol::TEXT_PAIRS, tokens * tokens);
        super::opened::subject(&self.part, name, Phase::Encode, dims, runs)
    }

    /// The hidden states of every text, `[d_model, tokens]`, which `subject` computes: of umt5 those of its own tokens alone.
    pub(super) fn hidden<'t>(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        tokens: usize,
        texts: impl Iterator<Item = &'t Encoded>,
    ) -> Result<Vec<Vec<f32>>> {
        let T5Encoder { part, config, .. } = self;
        let mut running = run.start(subject)?;
        running.session().set_indices(part.net.buckets, &config.buckets(tokens)?)?;
        let mut states = Vec::new();
        for text in texts {
            let ids = text.ids.get(..tokens).unwrap_or(&text.ids);
            let embedded = part.bound.gather(part.net.token_embedding, config.d_model, ids)?;
            running.set(part.net.hidden, &embedded)?;
            let mut seen = tokens;
            if let Some(mask) = part.net.mask {
                seen = text.used.min(tokens);
                let mut hidden = reserve::zeros("a mask", seen)?;
                hidden.resize(tokens, f32::NEG_INFINITY);
                running.set(mask, &hidden)?;
            }
            run.compute(&mut running, Cadence::Request)?;
            let mut hidden = finite(running.get(part.net.hidden)?, "T5's output")?;
            hidden.truncate(seen * config.d_model);
            states.push(hidden);
        }
        run.finish(running);
        Ok(states)
    }
}
