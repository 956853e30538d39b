//! Prompts through the text encoders.

use std::time::Instant;

use super::{FluxPipeline, Prompt, Run, finite, planning};
use crate::Result;
use crate::exec::Session;
use crate::models::clip::causal_mask;
use crate::pipeline::{Event, Phase, Settings};
use crate::source::flux::FluxModel;
use crate::stage::Cadence;
use crate::text::Encoded;

impl FluxPipeline {
    pub(super) fn encode(&mut self, prompts: &[&str], settings: &Settings, run: &mut Run<'_>) -> Result<Vec<Prompt>> {
        let start = Instant::now();
        let (clip, t5) = (&self.model.clip, &self.model.t5);
        let stages = (clip.net.model.stages().len() + t5.net.model.stages().len()) * prompts.len();
        run.observer.event(Event::Begin { phase: Phase::Encode, stages, steps: 0 })?;
        self.restart_peak();
        let pooled = self.encode_clip(prompts, run)?;
        let hidden = self.encode_t5(prompts, settings, run)?;
        run.end(Phase::Encode, start, &self.ledger)?;
        Ok(hidden.into_iter().zip(pooled).map(|(hidden, pooled)| Prompt { hidden, pooled }).collect())
    }

    /// The pooled vector of every prompt.
    fn encode_clip(&mut self, prompts: &[&str], run: &mut Run<'_>) -> Result<Vec<Vec<f32>>> {
        let FluxModel { clip, clip_config, clip_tokenizer, .. } = &*self.model;
        let (tokens, width) = (clip_tokenizer.length(), clip_config.hidden_size);
        let weights = self.weights(run.plan, planning::CLIP)?;
        let dims = planning::clip_dims(tokens);
        let way = planning::component(run.plan, planning::CLIP)?.way;
        let mut session = Session::in_way(way, &clip.net.model, &weights, &dims, &self.backend, &self.ledger)?;
        session.set(clip.net.mask, &causal_mask(tokens)?)?;
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let positions = clip.bound.gather(clip.net.position_embedding, width, &ids)?;
        let mut pooled = Vec::new();
        for prompt in prompts {
            let encoded = clip_tokenizer.encode(prompt)?;
            run.warn_of_cut("CLIP", tokens, &encoded)?;
            let mut hidden = clip.bound.gather(clip.net.token_embedding, width, &encoded.ids)?;
            hidden.iter_mut().zip(&positions).for_each(|(token, position)| *token += position);
            session.set(clip.net.hidden, &hidden)?;
            session.run(&mut self.backend, Cadence::Request, |_, _| run.stage(Phase::Encode, &weights))?;
            let hidden = session.get(clip.net.hidden)?;
            let row = clip_config.pooled_position(&encoded.ids) * width;
            pooled.push(finite(hidden[row..row + width].to_vec(), "CLIP's pooled vector")?);
        }
        run.used(Phase::Encode, &weights);
        Ok(pooled)
    }

    /// The hidden states of every prompt, `[J, Tt]`.
    fn encode_t5(&mut self, prompts: &[&str], settings: &Settings, run: &mut Run<'_>) -> Result<Vec<Vec<f32>>> {
        let FluxModel { t5, t5_config, t5_tokenizer, .. } = &*self.model;
        let tokens = settings.max_sequence_length;
        let weights = self.weights(run.plan, planning::T5)?;
        let dims = planning::t5_dims(tokens);
        let way = planning::component(run.plan, planning::T5)?.way;
        let mut session = Session::in_way(way, &t5.net.model, &weights, &dims, &self.backend, &self.ledger)?;
        session.set_indices(t5.net.buckets, &t5_config.buckets(tokens)?)?;
        let mut states = Vec::new();
        for prompt in prompts {
            let encoded = t5_tokenizer.encode(prompt, Some(tokens))?;
            run.warn_of_cut("T5", tokens, &encoded)?;
            session.set(t5.net.hidden, &t5.bound.gather(t5.net.token_embedding, t5_config.d_model, &encoded.ids)?)?;
            session.run(&mut self.backend, Cadence::Request, |_, _| run.stage(Phase::Encode, &weights))?;
            states.push(finite(session.get(t5.net.hidden)?, "T5's output")?);
        }
        run.used(Phase::Encode, &weights);
        Ok(states)
    }
}

impl Run<'_> {
    /// Says what `reader`, which reads `tokens` tokens, does not see of a prompt.
    pub(super) fn warn_of_cut(&mut self, reader: &str, tokens: usize, encoded: &Encoded) -> Result<()> {
        match &encoded.cut {
            Some(cut) => self.warn(format!("{reader} reads {tokens} tokens; it does not see \"{}\"", shorten(cut))),
            None => Ok(()),
        }
    }
}

/// The beginning of a long text.
fn shorten(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
