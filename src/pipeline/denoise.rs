//! The denoising loop, once for all families.

use std::ops::Range;

use super::opened::{Given, Opened};
use super::preview::Painter;
use super::progress::Event;
use super::prompts::Prompt;
use super::request::Settings;
use super::run::{Run, Running, finite, stage_runs};
use super::start::{Company, Start};
use crate::plan::{BatchPart, Phase};
use crate::sample::{Levels, classifier_free_guidance, guidance_with_picture, rescaled};
use crate::stage::{Cadence, Port};
use crate::{Result, reserve};

/// What is ready for one pass, while another is computed.
type Aside = Vec<(Port, Vec<f32>)>;

/// Latents on their way, and what they are denoised with.
pub(super) struct Loop<'a> {
    pub(super) model: &'a Opened,
    pub(super) settings: &'a Settings,
    pub(super) levels: &'a Levels,
    /// That of each pass.
    pub(super) prompts: &'a [&'a Prompt],
    pub(super) preview: Option<Painter>,
    /// What an IP-Adapter is given for each pass.
    pub(super) ip: &'a [Vec<f32>],
}

impl Loop<'_> {
    /// The latents after the last step, `[w, h, C, N]`.
    pub(super) fn run(&self, start: Start, run: &mut Run<'_>) -> Result<Vec<f32>> {
        let Start { mut latents, mut noise, kept, company } = start;
        let Loop { model, settings, levels, .. } = *self;
        let denoiser = &*model.denoiser;
        let steps = levels.len();
        let subjects = denoiser.subjects(settings, model.autoencoder.latents(settings), steps);
        let stages = subjects.iter().map(|subject| stage_runs(run.plan, subject)).sum();
        let start = run.begin(Phase::Denoise, stages, steps)?;
        let mut solver = levels.solver();
        let mut first = 0;
        for (at, subject) in subjects.iter().enumerate() {
            let evaluations = first..first + subject.runs.steps;
            first = evaluations.end;
            let mut running = run.start(subject)?;
            let ready = self.prepare(run, &mut running, (at, &evaluations), &company.followed)?;
            for evaluation in evaluations.clone() {
                let condition = evaluation - evaluations.start;
                let input = solver.input(evaluation, levels, &latents)?;
                let prediction = self.evaluate(run, &mut running, (at, condition), (&input, &company), &ready)?;
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

    /// Fills what holds for the `evaluations` of subject number `at`, and computes what depends on that. If passes are computed one
    /// after the other, this is done for each, and what came of it is returned, in their order.
    fn prepare(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        (at, evaluations): (usize, &Range<usize>),
        controls: &[Vec<f32>],
    ) -> Result<Vec<Aside>> {
        let Loop { model, settings, levels, prompts, .. } = *self;
        let batch = running.batch();
        let (sharing, pictures) = (batch.sharing(), batch.pictures_at_once());
        let mut ready = Vec::with_capacity(sharing.len());
        for passes in &sharing {
            let prompts = prompts.get(passes.clone()).unwrap_or(prompts);
            let ip = self.ip.get(passes.clone()).unwrap_or(self.ip);
            let given = Given { settings, levels, evaluations: evaluations.clone(), prompts, ip, controls, pictures };
            model.denoiser.fill(at, running.session(), &given)?;
            run.compute(running, Cadence::Request)?;
            if sharing.len() > 1 {
                ready.push(running.session().put_aside()?);
            }
        }
        Ok(ready)
    }

    /// What the model, subject number `at` of the denoiser, says of `latents` in its evaluation number `condition`. `ready` is what
    /// [`prepare`](Loop::prepare) returned.
    fn evaluate(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        (at, condition): (usize, usize),
        (latents, company): (&[f32], &Company),
        ready: &[Aside],
    ) -> Result<Vec<f32>> {
        let Loop { model, settings, prompts, .. } = *self;
        let (denoiser, passes) = (&*model.denoiser, prompts.len());
        let packed = self.by_picture(latents, |latents, dims| denoiser.pack(latents, dims))?;
        let input = match company.is_empty() {
            true => reserve::repeat("the latents", &packed, passes)?,
            false => self.with_company(&packed, company)?,
        };
        let (items, each) = (passes * settings.batch, packed.len() / settings.batch);
        let mut prediction = reserve::room("the prediction", items * each)?;
        let mut pass = None;
        for part in running.batch().parts() {
            if pass != Some(part.passes.start) {
                pass = Some(part.passes.start);
                running.session().put_back(ready.get(part.passes.start).map_or(&[], Vec::as_slice))?;
            }
            let found = self.evaluate_part(run, running, (at, condition), (&input, items), &part)?;
            let length = found.len() / running.batch().items_at_once();
            // Behind a picture's own numbers are those of pictures that the model looks at.
            found
                .chunks_exact(length)
                .take(part.items.len())
                .for_each(|item| prediction.extend_from_slice(&item[..each]));
        }
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

    /// What the model says of `part` of the `items` that `input` has. The last item is there again where the part is shorter than
    /// others.
    fn evaluate_part(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        (at, condition): (usize, usize),
        (input, items): (&[f32], usize),
        part: &BatchPart,
    ) -> Result<Vec<f32>> {
        let ports = self.model.denoiser.ports(at);
        let (width, pictures) = (input.len() / items, self.settings.batch);
        let BatchPart { passes, items } = part;
        let missing = running.batch().items_at_once() - items.len();
        let condition_of = |item: usize| (condition * passes.len() + item / pictures - passes.start) as i32;
        let mut conditions: Vec<i32> = items.clone().map(condition_of).collect();
        conditions.extend(std::iter::repeat_n(condition_of(items.end - 1), missing));
        running.session().set_indices(ports.condition, &conditions)?;
        let input = &input[width * items.start..width * items.end];
        if missing == 0 {
            running.set(ports.latents, input)?;
        } else {
            let mut filled = reserve::room("the latents", width * conditions.len())?;
            filled.extend_from_slice(input);
            (0..missing).for_each(|_| filled.extend_from_slice(&input[input.len() - width..]));
            running.set(ports.latents, &filled)?;
        }
        run.compute(running, Cadence::Step)?;
        running.get(ports.prediction)
    }

    /// Guides `prediction` away from the `unconditional` one.
    fn guide(&self, prediction: &mut [f32], unconditional: &[f32]) -> Result<()> {
        let (share, batch) = (self.settings.rescale_cfg, self.settings.batch);
        let conditional = if share == 0.0 { Vec::new() } else { reserve::repeat("the prediction", prediction, 1)? };
        // Where the reference counts from 0, no guidance is 1 all the same.
        let scale = self.settings.cfg_scale + 1.0 - self.settings.guided_above;
        classifier_free_guidance(prediction, unconditional, scale)?;
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
