//! Language models as text encoders, which families share.

use super::fit;
use super::opened::{Reader, subject};
use super::prompts::Prompt;
use super::run::{Run, finite};
use crate::models::language_model::{Config, LanguageModel, TOLD_TOKENS, Taps, mask_of};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::{Part, Slot, Source, Text, networks};
use crate::stage::{Cadence, Dims, Symbol};
use crate::text::{ByteLevelTokenizer, Encoded, TokenizerConfig};
use crate::{Error, Result, reserve};

/// Pictures that a text has tokens of.
pub(super) struct SeenInText {
    /// The token that stands where a vector of a picture belongs.
    pub(super) mark: u32,
    /// The vectors of all pictures, `[D, n]`, one behind the other.
    pub(super) vectors: Vec<f32>,
    /// The same of what is added to these vectors behind each of the first layers.
    pub(super) deepstack: Vec<Vec<f32>>,
    /// Rows and columns of the vectors of each.
    pub(super) grids: Vec<[usize; 2]>,
}

impl SeenInText {
    /// Where the tokens `ids` stand on the axes of time, rows and columns: those of a picture as they lie in it, and what comes behind
    /// it behind its longer side.
    fn positions(&self, ids: &[u32]) -> Vec<[usize; 3]> {
        let (mut positions, mut next, mut grids) = (Vec::with_capacity(ids.len()), 0, self.grids.iter());
        let mut id = 0;
        while id < ids.len() {
            match (ids[id] == self.mark).then(|| grids.next()).flatten() {
                Some(&[rows, columns]) => {
                    positions.extend((0..rows * columns).map(|i| [next, next + i / columns, next + i % columns]));
                    next += rows.max(columns);
                    id += rows * columns;
                }
                None => {
                    positions.push([next; 3]);
                    next += 1;
                    id += 1;
                }
            }
        }
        positions.truncate(ids.len());
        positions
    }

    /// Puts `vectors` of pictures into the place of marks in `hidden [width, n]`, the vectors of `ids`.
    fn place(&self, ids: &[u32], vectors: &[f32], (hidden, width): (&mut [f32], usize)) {
        let places = hidden.chunks_exact_mut(width).zip(ids).filter(|(_, id)| **id == self.mark);
        for ((place, _), vector) in places.zip(vectors.chunks_exact(width)) {
            place.copy_from_slice(vector);
        }
    }

    /// How many vectors there are.
    fn tokens(&self) -> usize {
        self.grids.iter().map(|[rows, columns]| rows * columns).sum()
    }

    /// Takes out of `hidden [width, n]`, what became of `ids`, what stands in the places of pictures.
    fn remove(&self, ids: &[u32], hidden: Vec<f32>, width: usize) -> Result<Vec<f32>> {
        let (mut left, mut kept) = (self.tokens(), reserve::room("the prompt", hidden.len())?);
        for (vector, &id) in hidden.chunks_exact(width).zip(ids) {
            match id == self.mark && left > 0 {
                true => left -= 1,
                false => kept.extend_from_slice(vector),
            }
        }
        Ok(kept)
    }
}

/// How texts are read.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    /// The most tokens of one.
    pub(super) tokens: usize,
    /// How many of the first ones the denoiser is not given.
    pub(super) dropped: usize,
    /// The pictures between its words.
    pub(super) seen: Option<&'a SeenInText>,
    /// Whether the denoiser is not given what becomes of these pictures.
    pub(super) without_pictures: bool,
}

impl Reading<'_> {
    /// All of up to `tokens` tokens.
    pub(super) fn whole(tokens: usize) -> Self {
        Reading { tokens, dropped: 0, seen: None, without_pictures: false }
    }
}

/// `encoded`, of whose template only what stands behind a text may be cut off with it: that is not worth a word.
fn without_template(encoded: Encoded, after: &str) -> Encoded {
    let cut = encoded.cut.and_then(|cut| Some(cut.strip_suffix(after)?.to_owned())).filter(|cut| !cut.is_empty());
    Encoded { cut, ..encoded }
}

/// A language model with its tokenizer. Texts are as long as they are.
pub(super) struct LanguageEncoder {
    pub(super) part: Part<LanguageModel>,
    pub(super) config: Config,
    tokenizer: ByteLevelTokenizer,
    /// Where what fills up a text stands, if that is one place and not behind the text.
    pub(super) filled_at: Option<usize>,
    /// How many tokens the tokenizer knows. Counting them takes memory, so it is done once.
    vocabulary: usize,
}

impl LanguageEncoder {
    /// The one at `slot`, of whose layers `taps` are read.
    ///
    /// # Errors
    /// As [`open`](super::open).
    pub(super) fn open(source: &Source, slot: &Slot, taps: fn(usize) -> Taps) -> Result<LanguageEncoder> {
        LanguageEncoder::open_beside(source, slot, taps, None)
    }

    /// The same beside a model that reads with a language model of `family`.
    ///
    /// # Errors
    /// As [`open`](super::open).
    pub(super) fn open_beside(
        source: &Source,
        slot: &Slot,
        taps: fn(usize) -> Taps,
        family: Option<&str>,
    ) -> Result<LanguageEncoder> {
        let (part, config) = networks::language_model_beside(source.component(slot)?, taps, family)?;
        let files = source.needed_tokenizer(slot)?;
        let settings = match &files.config {
            Some(Text { text, origin }) => TokenizerConfig::from_json(text, origin)?,
            None => TokenizerConfig::default(),
        };
        let Text { text, origin } = &files.tokenizer;
        let tokenizer = ByteLevelTokenizer::from_json(text, &settings, origin)?;
        let vocabulary = tokenizer.vocab_size();
        Ok(LanguageEncoder { part, config, tokenizer, filled_at: None, vocabulary })
    }

    /// Refuses a network that its tokenizer does not fit, and a tokenizer without the `marks` of a template.
    pub(super) fn check(&self, source: &Source, marks: &[&str]) -> Result<()> {
        let rows = "rows of the language model's token embedding";
        fit::at_least(source, &self.part, rows, self.config.vocab_size, self.vocabulary)?;
        marks.iter().try_for_each(|mark| self.tokenizer.id(mark).map(drop))
    }

    /// The reader, called `name` in messages, which reads `length` tokens unless a request says otherwise.
    pub(super) fn reader(&self, name: &'static str, length: usize) -> Reader {
        let tokenizer = self.part.slot.tokenizer.unwrap_or_default();
        Reader { name, tokenizer, vocabulary: self.vocabulary, length }
    }

    /// The first `most` tokens of `text`.
    pub(super) fn tokenize(&self, text: &str, most: usize) -> Result<Encoded> {
        self.tokenizer.encode(text, most)
    }

    /// The first `most` tokens of `text` between what stands before and behind it in a template.
    pub(super) fn tokenize_within(&self, template: [&str; 2], text: &str, most: usize) -> Result<Encoded> {
        let [before, after] = template;
        Ok(without_template(self.tokenizer.encode(&format!("{before}{text}{after}"), most)?, after))
    }

    /// The same, filled up to `length` with the token `pad` unless the tokenizer names another.
    pub(super) fn tokenize_filled_within(
        &self,
        [before, after]: [&str; 2],
        text: &str,
        (length, pad): (usize, &str),
    ) -> Result<Encoded> {
        let whole = format!("{before}{text}{after}");
        let encoded = self.tokenizer.encode_filled(&whole, length, pad, self.config.fills_left())?;
        Ok(without_template(encoded, after))
    }

    /// The id of the token `mark`.
    pub(super) fn id(&self, mark: &str) -> Result<u32> {
        self.tokenizer.id(mark)
    }

    /// How many numbers a token becomes.
    pub(super) fn width(&self) -> usize {
        self.config.hidden_size * self.part.net.states.len()
    }

    /// The same, which is told more of pictures behind so many of its first layers.
    ///
    /// # Errors
    /// [`Error::Graph`] for more layers than are read.
    pub(super) fn told(mut self, taps: fn(usize) -> Taps, layers: usize) -> Result<LanguageEncoder> {
        // The weights are the same, and where they are found.
        self.part.net = LanguageModel::seeing(&self.config, &taps(self.config.num_hidden_layers), layers)?;
        Ok(self)
    }

    /// What reads texts of up to `tokens` tokens.
    pub(super) fn subject(&self, name: &'static str, tokens: usize, runs: Runs) -> Subject<'_> {
        self.subject_told(name, (tokens, 1), runs)
    }

    /// The same of texts with pictures in them, which is told more of so many of these tokens: of all, or of one that stands for all.
    pub(super) fn subject_told(&self, name: &'static str, (tokens, told): (usize, usize), runs: Runs) -> Subject<'_> {
        let dims = Dims::new().with(Symbol::BATCH, 1).with(Symbol::TEXT_TOKENS, tokens).with(TOLD_TOKENS, told);
        subject(&self.part, name, Phase::Encode, dims, runs)
    }

    /// The prompts that `subject` makes of texts, each given as its tokens: the hidden states, `[width, its tokens]`. What fills up a text
    /// is not seen, and has states as well.
    pub(super) fn prompts(
        &self,
        run: &mut Run<'_>,
        subject: &Subject<'_>,
        texts: &[Vec<Encoded>],
        reading: Reading<'_>,
    ) -> Result<Vec<Prompt>> {
        let Reading { tokens, dropped, seen, without_pictures } = reading;
        let LanguageEncoder { part, config, .. } = self;
        let (net, width) = (&part.net, config.hidden_size);
        let mut running = run.start(subject)?;
        let (cos, sin) = config.rotary(tokens)?;
        running.set(net.positions.cos, &cos)?;
        running.set(net.positions.sin, &sin)?;
        if seen.is_none() {
            let nothing = reserve::zeros("what is added to the text", width)?;
            net.deepstack.iter().try_for_each(|&port| running.set(port, &nothing))?;
        }
        let mut prompts = Vec::new();
        for text in texts.iter().flat_map(|readers| readers.first()) {
            let mut ids = text.ids.clone();
            let last = ids.last().copied().ok_or_else(|| Error::graph("encode", "a text without tokens"))?;
            let filled = ids.len() - text.used;
            let words = if config.fills_left() { filled..ids.len() } else { 0..text.used };
            // No token sees those behind it.
            ids.resize(tokens, last);
            running.set(net.positions.mask, &mask_of(tokens, &words)?)?;
            if let Some(port) = net.positions.kept {
                let kept = (0..tokens).map(|token| f32::from(token >= words.start));
                running.set(port, &reserve::collect("a mask", tokens, kept)?)?;
            }
            if let Some(at) = self.filled_at {
                let (cos, sin) = config.rotary_at(&filled_positions(tokens, text.used, at))?;
                running.set(net.positions.cos, &cos)?;
                running.set(net.positions.sin, &sin)?;
            }
            let mut hidden = part.bound.gather(net.token_embedding, width, &ids)?;
            if let Some(seen) = seen {
                let (cos, sin) = config.rotary_at(&seen.positions(&ids))?;
                running.set(net.positions.cos, &cos)?;
                running.set(net.positions.sin, &sin)?;
                seen.place(&ids, &seen.vectors, (&mut hidden, width));
                for (&port, vectors) in net.deepstack.iter().zip(&seen.deepstack) {
                    let mut added = reserve::zeros("what is added to the text", tokens * width)?;
                    seen.place(&ids, vectors, (&mut added, width));
                    running.set(port, &added)?;
                }
            }
            running.set(net.hidden, &hidden)?;
            run.compute(&mut running, Cadence::Request)?;
            let mut tapped = Vec::with_capacity(net.states.len());
            for &port in &net.states {
                let mut found = finite(running.get(port)?, "the language model's output")?;
                found.truncate(text.ids.len() * width);
                tapped.push(found);
            }
            let mut hidden = side_by_side(tapped, width)?;
            if let Some(seen) = seen.filter(|_| without_pictures) {
                hidden = seen.remove(&text.ids, hidden, self.width())?;
            }
            hidden.drain(..hidden.len().min(dropped * self.width()));
            prompts.push(Prompt(vec![hidden]));
        }
        run.finish(running);
        Ok(prompts)
    }
}

/// The positions of `tokens` tokens; those behind the first `used` are all at `at`.
fn filled_positions(tokens: usize, used: usize, at: usize) -> Vec<[usize; 3]> {
    (0..tokens).map(|token| [if token < used { token } else { at }; 3]).collect()
}

/// The states of each tap, `[D, T]`, side by side for each token: `[D taps, T]`.
fn side_by_side(mut tapped: Vec<Vec<f32>>, width: usize) -> Result<Vec<f32>> {
    if let [_] = tapped[..] {
        return Ok(tapped.pop().unwrap_or_default());
    }
    let mut all = reserve::room("the prompt", tapped.iter().map(Vec::len).sum())?;
    for token in 0..tapped.first().map_or(0, |states| states.len() / width) {
        tapped.iter().for_each(|states| all.extend_from_slice(&states[token * width..(token + 1) * width]));
    }
    Ok(all)
}
