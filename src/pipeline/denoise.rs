//! The denoising loop, once for all families.

use super::opened::{Given, Opened};
use super::preview::Painter;
use super::progress::Event;
use super::prompts::Prompt;
use super::request::Settings;
use super::run::{Run, Running, finite, stage_runs};
use super::start::{Company, Start};
use crate::plan::Phase;
use crate::sample::{Levels, classifier_free_guidance, guidance_with_picture, rescaled};
use crate::stage::Cadence;
use crate::{Result, reserve};

/// Latents on their way, and what they are denoised with.
pub(super) struct Loop<'a> {
    pub(super) model: &'a Opened,
    pub(super) settings: &'a Settings,
    pub(super) levels: &'a Levels,
    /// That of each pass.
    pub(super) prompts: &'a [&'a Prompt],
    pub(super) preview: Option<Painter>,
}

impl Loop<'_> {
    /// The latents after the last step, `[w, h, C, N]`.
    pub(super) fn run(&self, start: Start, run: &mut Run<'_>) -> Result<Vec<f32>> {
        let Start { mut latents, mut noise, kept, company } = start;
        let Loop { model, settings, levels, prompts, .. } = *self;
        let denoiser = &*model.denoiser;
        let steps = levels.len();
        let subjects = denoiser.subjects(settings, model.autoencoder.latents(settings), steps);
        let stages = subjects.iter().map(stage_runs).sum();
        let start = run.begin(Phase::Denoise, stages, steps)?;
        let mut solver = levels.solver();
        let mut first = 0;
        for (at, subject) in subjects.iter().enumerate() {
            let evaluations = first..first + subject.runs.steps;
            first = evaluations.end;
            let mut running = run.start(subject)?;
            let given = Given { settings, levels, evaluations: evaluations.clone(), prompts };
            denoiser.fill(at, running.session(), &given)?;
            run.compute(&mut running, Cadence::Request)?;
            for evaluation in evaluations.clone() {
                let condition = evaluation - evaluations.start;
                let input = solver.input(evaluation, levels, &latents)?;
                let prediction = self.evaluate(run, &mut running, (at, condition), &input, &company)?;
                let clean = self.clean(evaluation, &latents, &prediction)?;
                solver.step(evaluation, levels, &prediction, &mut latents, &mut noise)?;
                if let Some(kept) = &kept {
                    kept.restore(levels, evaluation + 1, &mut latents)?;
                }
                latents = finite(latents, &format!("latents after step {}", evaluation + 1))?;
                run.event(Event::Step { done: evaluation + 1, steps })?;
                self.show(run, evaluation + 1, clean)?;
            }
            run.finish(running);
        }
        run.end(Phase::Denoise, start)?;
        Ok(latents)
    }

    /// What the model, subject number `at` of the denoiser, says of `latents` in its evaluation number `condition`.
    fn evaluate(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        (at, condition): (usize, usize),
        latents: &[f32],
        company: &Company,
    ) -> Result<Vec<f32>> {
        let Loop { model, settings, prompts, .. } = *self;
        let (denoiser, passes) = (&*model.denoiser, prompts.len());
        let ports = denoiser.ports(at);
        let mut conditions = Vec::with_capacity(passes * settings.batch);
        for pass in 0..passes {
            conditions.extend(std::iter::repeat_n((condition * passes + pass) as i32, settings.batch));
        }
        running.session().set_indices(ports.condition, &conditions)?;
        let packed = self.by_picture(latents, |latents, dims| denoiser.pack(latents, dims))?;
        let input = match company.is_empty() {
            true => reserve::repeat("the latents", &packed, passes)?,
            false => self.with_company(&packed, company)?,
        };
        running.set(ports.latents, &input)?;
        run.compute(running, Cadence::Step)?;
        let mut prediction = running.get(ports.prediction)?;
        keep_own(&mut prediction, packed.len() / settings.batch, passes * settings.batch);
        let (prediction, others) = prediction.split_at_mut(packed.len());
        match settings.image_cfg_scale {
            Some(scale) if passes == 3 => {
                let (with_picture, without) = others.split_at(packed.len());
                guidance_with_picture(prediction, with_picture, without, [settings.cfg_scale, scale])?;
            }
            _ if passes == 2 => self.guide(prediction, others)?,
            _ => {}
        }
        self.by_picture(prediction, |packed, dims| denoiser.unpack(packed, dims))
    }

    /// Guides `prediction` away from the `unconditional` one.
    fn guide(&self, prediction: &mut [f32], unconditional: &[f32]) -> Result<()> {
        let (share, batch) = (self.settings.rescale_cfg, self.settings.batch);
        let conditional = if share == 0.0 { Vec::new() } else { reserve::repeat("the prediction", prediction, 1)? };
        classifier_free_guidance(prediction, unconditional, self.settings.cfg_scale)?;
        match share == 0.0 {
            true => Ok(()),
            false => rescaled(prediction, &conditional, prediction.len() / batch, share),
        }
    }

    /// The latents `packed` of every picture in every pass, each with what it has beside and behind it. The third pass has zeros
    /// beside it.
    fn with_company(&self, packed: &[f32], company: &Company) -> Result<Vec<f32>> {
        let (denoiser, passes, batch) = (&*self.model.denoiser, self.prompts.len(), self.settings.batch);
        let numbers = company.beside.iter().map(Vec::len).sum::<usize>() + batch * company.references.len();
        let mut all = reserve::room("the latents", passes * (packed.len() + numbers))?;
        for pass in 0..passes {
            for (i, latents) in packed.chunks_exact(packed.len() / batch).enumerate() {
                match company.beside.get(i) {
                    None => all.extend_from_slice(latents),
                    Some(beside) if pass == 2 => {
                        all.extend(denoiser.joined(latents, &reserve::zeros("the latents", beside.len())?)?);
                    }
                    Some(beside) => all.extend(denoiser.joined(latents, beside)?),
                }
                all.extend_from_slice(&company.references);
            }
        }
        Ok(all)
    }

    /// What `each` makes of the numbers of every picture, one behind the other.
    fn by_picture(&self, all: &[f32], each: impl Fn(&[f32], [usize; 4]) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
        let dims @ [w, h, channels, _] = self.model.autoencoder.latents(self.settings);
        let mut made: Vec<f32> = reserve::room("the latents", all.len())?;
        for latents in all.chunks_exact(w * h * channels) {
            made.extend(each(latents, dims)?);
        }
        Ok(made)
    }

    /// What the model takes for the finished latents in `evaluation`, if a preview is due after it.
    fn clean(&self, evaluation: usize, latents: &[f32], prediction: &[f32]) -> Result<Option<Vec<f32>>> {
        let due = self.preview.as_ref().is_some_and(|painter| painter.is_due(evaluation + 1));
        due.then(|| self.levels.clean(evaluation, latents, prediction)).transpose()
    }

    /// Shows what the pictures look like after `done` evaluations.
    fn show(&self, run: &mut Run<'_>, done: usize, clean: Option<Vec<f32>>) -> Result<()> {
        let (Some(painter), Some(clean)) = (&self.preview, clean) else { return Ok(()) };
        let [w, h, channels, _] = self.model.autoencoder.latents(self.settings);
        for (index, latents) in clean.chunks_exact(w * h * channels).enumerate() {
            let image = painter.paint(w, h, latents)?;
            run.event(Event::Preview { image, index, done, steps: self.levels.len() })?;
        }
        Ok(())
    }
}

/// Leaves of `items` predictions the first `each` numbers: those behind them are of pictures that the model looks at.
fn keep_own(predictions: &mut Vec<f32>, each: usize, items: usize) {
    let length = predictions.len() / items.max(1);
    for item in 1..items {
        predictions.copy_within(item * length..item * length + each, item * each);
    }
    predictions.truncate(items * each);
}
