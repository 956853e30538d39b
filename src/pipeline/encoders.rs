//! Text encoders that families share.

use super::fit;
use super::opened::Reader;
use super::run::{Run, Running, finite};
use crate::models::clip::{self, Output, causal_mask};
use crate::models::t5;
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::{Part, Slot, Source, Text, TokenizerFiles, networks};
use crate::stage::{Cadence, Dims, Symbol};
use crate::text::{ClipTokenizer, Encoded, T5Tokenizer, TokenizerConfig};
use crate::{Error, Result};

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

/// CLIP's text encoder with its tokenizer.
pub(super) struct ClipEncoder {
    pub(super) part: Part<clip::Clip>,
    pub(super) config: clip::Config,
    tokenizer: ClipTokenizer,
    /// How many tokens the tokenizer knows. Counting them takes memory, so it is done once.
    vocabulary: usize,
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
        Ok(ClipEncoder { part, config, tokenizer, vocabulary })
    }

    /// Refuses a network that its tokenizer does not fit.
    pub(super) fn check(&self, source: &Source) -> Result<()> {
        let ClipEncoder { part, config, tokenizer, vocabulary } = self;
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
        self.run(run, subject, texts, |running, ids| {
            let (hidden, row) = (running.get(self.part.net.states)?, self.config.pooled_position(ids) * width);
            finite(hidden[row..row + width].to_vec(), "CLIP's pooled vector")
        })
    }

    /// The hidden states of every text, `[D, tokens]`, which `subject` computes.
    pub(super) fn hidden<'t>(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        texts: impl Iterator<Item = &'t Encoded>,
    ) -> Result<Vec<Vec<f32>>> {
        self.run(run, subject, texts, |running, _| finite(running.get(self.part.net.states)?, "CLIP's output"))
    }

    /// The hidden states of every text, `[D, tokens]`, and its projected pooled vector, `[P]`, which `subject` computes.
    pub(super) fn hidden_and_pooled<'t>(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        texts: impl Iterator<Item = &'t Encoded>,
    ) -> Result<Vec<(Vec<f32>, Vec<f32>)>> {
        let ports = self.part.net.pooled.ok_or_else(|| Error::graph("encode", "a text encoder without projection"))?;
        self.run(run, subject, texts, |running, _| {
            let hidden = finite(running.get(self.part.net.states)?, "CLIP's output")?;
            Ok((hidden, finite(running.get(ports.pooled)?, "CLIP's pooled vector")?))
        })
    }

    /// What `take` takes of what was computed for every text, and of its tokens.
    fn run<'t, R>(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        texts: impl Iterator<Item = &'t Encoded>,
        take: impl Fn(&Running<'_>, &[u32]) -> Result<R>,
    ) -> Result<Vec<R>> {
        let ClipEncoder { part, config, tokenizer, .. } = self;
        let (tokens, width) = (tokenizer.length(), config.hidden_size);
        let mut running = run.start(subject)?;
        running.set(part.net.mask, &causal_mask(tokens)?)?;
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let positions = part.bound.gather(part.net.position_embedding, width, &ids)?;
        let mut taken = Vec::new();
        for text in texts {
            let mut hidden = part.bound.gather(part.net.token_embedding, width, &text.ids)?;
            hidden.iter_mut().zip(&positions).for_each(|(token, position)| *token += position);
            running.set(part.net.hidden, &hidden)?;
            if let Some(pooled) = part.net.pooled {
                // A row of a tokenizer's length, which is far below.
                running.session().set_indices(pooled.end, &[config.pooled_position(&text.ids) as i32])?;
            }
            run.compute(&mut running, Cadence::Request)?;
            taken.push(take(&running, &text.ids)?);
        }
        run.finish(running);
        Ok(taken)
    }
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
        let (part, config) = networks::t5(source.component(slot)?)?;
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

    /// The hidden states of every text, `[d_model, tokens]`, which `subject` computes.
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
            let embedded = part.bound.gather(part.net.token_embedding, config.d_model, &text.ids)?;
            running.set(part.net.hidden, &embedded)?;
            run.compute(&mut running, Cadence::Request)?;
            states.push(finite(running.get(part.net.hidden)?, "T5's output")?);
        }
        run.finish(running);
        Ok(states)
    }
}
