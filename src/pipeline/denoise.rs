//! The denoising loop, once for all families.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::opened::{Given, Opened};
use super::preview::Painter;
use super::progress::Event;
use super::prompts::Prompt;
use super::request::Settings;
use super::run::{Run, Running, Seat, finite, stage_runs};
use super::skipping::Skipping;
use super::start::{Company, Start};
use crate::plan::{BatchPart, Phase};
use crate::sample::{Levels, classifier_free_guidance, guidance_with_picture, rescaled, with_lengths_of};
use crate::stage::{Cadence, Part, Port};
use crate::{Error, Result, reserve};

/// What is ready for one pass, while another is computed.
type Aside = Vec<(Port, Vec<f32>)>;

/// Latents on their way, and what they are denoised with.
pub(super) struct Loop<'a> {
    pub(super) model: &'a Opened,
    /// What denoises: the model, or its refiner.
    pub(super) denoising: &'a Opened,
    pub(super) settings: &'a Settings,
    pub(super) levels: &'a Levels,
    /// That of each pass.
    pub(super) prompts: &'a [&'a Prompt],
    pub(super) preview: Option<Painter>,
    /// What an IP-Adapter is given for each pass.
    pub(super) ip: &'a [Vec<f32>],
}

impl Loop<'_> {
    /// The latents after the last step, `[w, h, F, C, N]`, and, with a step cache, which evaluations of each pass were computed.
    pub(super) fn run(&self, start: Start, run: &mut Run<'_>) -> Result<(Vec<f32>, Vec<Vec<bool>>)> {
        let Start { mut latents, mut noise, kept, company } = start;
        let Loop { model, denoising, settings, levels, .. } = *self;
        let denoiser = &*denoising.denoiser;
        let steps = levels.taken();
        let subjects = denoiser.subjects(settings, model.autoencoder.latents(settings), steps);
        let stages = subjects.iter().map(|subject| stage_runs(run.plan, subject)).sum();
        let start = run.begin(Phase::Denoise, stages, steps)?;
        let mut painting = match &self.preview {
            Some(painter) => painter.start(model, settings, run)?,
            None => None,
        };
        let mut solver = levels.solver();
        let mut skipping = settings.cache.map(|cache| Skipping::new(cache, steps, self.prompts.len()));
        let mut first = 0;
        for (at, subject) in subjects.iter().enumerate() {
            let evaluations = first..first + subject.runs.steps;
            first = evaluations.end;
            let mut running = run.start(subject)?;
            if let Some(skipping) = &mut skipping {
                skipping.begin(&denoising.rules.caches)?;
            }
            let ready = self.prepare(run, &mut running, (at, &evaluations), &company)?;
            let prepared = Prepared { company: &company, ready: &ready };
            for evaluation in evaluations.clone() {
                let input = solver.input(evaluation, levels, &latents)?;
                let asked = Asked { subject: at, evaluation, condition: evaluation - evaluations.start };
                let prediction = self.evaluate(run, &mut running, asked, &input, &prepared, &mut skipping);
                let prediction = prediction.map_err(|error| error.in_step(evaluation + 1, steps))?;
                let clean = self.clean(evaluation, &latents, &prediction)?;
                solver.step(evaluation, levels, &prediction, &mut latents, &mut noise)?;
                if let Some(kept) = &kept {
                    kept.restore(levels, evaluation + 1, &mut latents)?;
                }
                latents = finite(latents, &format!("latents after step {}", evaluation + 1))?;
                run.event(Event::Step { done: evaluation + 1, steps })?;
                self.show(run, painting.as_mut(), evaluation + 1, clean)?;
            }
            run.finish(running);
        }
        if let Some(painting) = painting {
            run.finish(painting);
        }
        run.end(Phase::Denoise, start)?;
        Ok((latents, skipping.map(|skipping| skipping.computed).unwrap_or_default()))
    }

    /// Fills what holds for the `evaluations` of subject number `at`, and computes what depends on that. What came of it is returned for
    /// each pass that is computed by itself and is not alone on its device.
    fn prepare(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        (at, evaluations): (usize, &Range<usize>),
        company: &Company,
    ) -> Result<Vec<(usize, Aside)>> {
        let ready = run.side_by_side(running, &|seat| self.prepare_on(seat, (at, evaluations), company))?;
        Ok(ready.into_iter().flatten().collect())
    }

    /// The same for the passes of one device.
    fn prepare_on(
        &self,
        seat: &mut Seat<'_, '_>,
        (at, evaluations): (usize, &Range<usize>),
        company: &Company,
    ) -> Result<Vec<(usize, Aside)>> {
        let Loop { denoising, settings, levels, prompts, .. } = *self;
        if let Some(ports) = denoising.denoiser.cache(at, settings) {
            // What was not kept yet is multiplied by 0.
            seat.sessions().try_for_each(|session| session.clear(ports.residual))?;
        }
        let batch = seat.batch();
        let (sharing, pictures) = (batch.sharing(), batch.pictures_at_once());
        let mut ready = Vec::with_capacity(sharing.len());
        // The first comes last: what is its alone stays.
        for passes in sharing.iter().rev() {
            let mut prompts = prompts.get(passes.clone()).unwrap_or(prompts).to_vec();
            // A single condition may have to be there twice.
            let conditions = batch.conditions(evaluations.len()) / evaluations.len().max(1);
            if let Some(&first) = prompts.first() {
                prompts.resize(conditions.max(prompts.len()), first);
            }
            let given = Given {
                settings,
                levels,
                evaluations: evaluations.clone(),
                prompts: &prompts,
                pass: passes.start,
                passes: passes.len(),
                controls: &company.followed,
                face: &company.face,
                ip: self.ip.get(passes.clone()).unwrap_or(self.ip),
                pictures,
            };
            seat.choose(passes.start, 0)?;
            // A session takes what its stages need of it.
            seat.sessions().try_for_each(|session| denoising.denoiser.fill(at, session, &given))?;
            seat.compute(Cadence::Request)?;
            if sharing.len() > 1 {
                ready.push((passes.start, seat.put_aside()?));
            }
        }
        Ok(ready)
    }

    /// What the model says of `latents`.
    fn evaluate(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        asked: Asked,
        latents: &[f32],
        prepared: &Prepared<'_>,
        skipping: &mut Option<Skipping>,
    ) -> Result<Vec<f32>> {
        let packed = self.by_picture(latents, |latents, dims| self.denoising.denoiser.pack(latents, dims))?;
        let mut prediction = match skipping {
            Some(skipping) if skipping.extrapolates() => {
                self.extrapolate(run, running, asked, &packed, prepared, skipping)?
            }
            skipping => self.predict(run, running, asked, &packed, prepared, skipping.as_mut())?,
        };
        let (prediction, others) = prediction.split_at_mut(packed.len());
        let (passes, settings) = (self.prompts.len(), self.settings);
        match settings.image_cfg_scale {
            Some(scale) if passes == 3 => {
                let (with_picture, without) = others.split_at(packed.len());
                guidance_with_picture(prediction, with_picture, without, [settings.cfg_scale, scale])?;
            }
            _ if passes == 2 => self.guide(prediction, others, asked.evaluation)?,
            _ => {}
        }
        self.by_picture(prediction, |packed, dims| self.denoising.denoiser.unpack(packed, dims))
    }

    /// What the model says of the latents `packed` in each pass, or what it would say in a step that is skipped.
    fn extrapolate(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        asked: Asked,
        packed: &[f32],
        prepared: &Prepared<'_>,
        skipping: &mut Skipping,
    ) -> Result<Vec<f32>> {
        if !skipping.decide(asked.evaluation, 0..self.prompts.len(), &[])?.contains(&true) {
            run.side_by_side(running, &|seat| seat.skip())?;
            return skipping.extrapolated(asked.evaluation);
        }
        let prediction = self.predict(run, running, asked, packed, prepared, None)?;
        skipping.learn(asked.evaluation, &prediction)?;
        Ok(prediction)
    }

    /// What the model says of the latents `packed` in each pass.
    fn predict(
        &self,
        run: &mut Run<'_>,
        running: &mut Running<'_>,
        asked: Asked,
        packed: &[f32],
        prepared: &Prepared<'_>,
        skipping: Option<&mut Skipping>,
    ) -> Result<Vec<f32>> {
        let (passes, batch, company) = (self.prompts.len(), self.settings.batch, prepared.company);
        let input = match company.is_empty() {
            true => reserve::repeat("the latents", packed, passes)?,
            false => self.with_company(packed, company)?,
        };
        let (items, each) = (passes * batch, packed.len() / batch);
        let (input, skipping) = (Input { all: &input, items, each, company }, skipping.map(Mutex::new));
        let found =
            run.side_by_side(running, &|seat| self.predict_on(seat, asked, &input, prepared.ready, skipping.as_ref()))?;
        let mut found: Vec<(BatchPart, Vec<f32>)> = found.into_iter().flatten().collect();
        if let [(_, all)] = &mut found[..] {
            return Ok(std::mem::take(all));
        }
        found.sort_by_key(|(part, _)| part.items.start);
        let mut prediction = reserve::room("the prediction", items * each)?;
        for (_, own) in found {
            prediction.extend_from_slice(&own);
        }
        Ok(prediction)
    }

    /// The same for the passes of one device: for each part that it computes at once.
    fn predict_on(
        &self,
        seat: &mut Seat<'_, '_>,
        asked: Asked,
        input: &Input<'_>,
        ready: &[(usize, Aside)],
        skipping: Option<&Mutex<&mut Skipping>>,
    ) -> Result<Vec<(BatchPart, Vec<f32>)>> {
        let parts = seat.batch().parts();
        let mut predicted = Vec::with_capacity(parts.len());
        for parts in parts.chunk_by(|one, next| one.passes == next.passes) {
            let pass = parts[0].passes.start;
            seat.choose(pass, asked.condition)?;
            if let Some((_, aside)) = ready.iter().find(|(of, _)| *of == pass) {
                seat.sessions().try_for_each(|session| session.put_back(aside))?;
            }
            let computed = match skipping {
                Some(skipping) => self.decide(seat, asked, input, parts, skipping)?,
                None => Vec::new(),
            };
            for part in parts {
                match skipping {
                    Some(skipping) => {
                        if parts.len() > 1 {
                            self.set_part(seat, asked, input, part)?;
                            seat.compute_part(Part::Lead)?;
                        }
                        self.step(seat, asked, (&computed, part.items.start), skipping)?;
                    }
                    None => {
                        self.set_part(seat, asked, input, part)?;
                        seat.compute(Cadence::Step)?;
                    }
                }
                let found = seat.get(self.denoising.denoiser.ports(asked.subject).prediction)?;
                let length = found.len() / seat.batch().items_at_once();
                let mut own = reserve::room("the prediction", part.items.len() * input.each)?;
                // Behind a picture's own numbers are those of pictures that the model looks at.
                for item in found.chunks_exact(length).take(part.items.len()) {
                    own.extend_from_slice(&item[..input.each]);
                }
                predicted.push((part.clone(), own));
            }
        }
        Ok(predicted)
    }

    /// Sets `part` of `input`. The last item is there again where the part is shorter than others.
    fn set_part(&self, seat: &mut Seat<'_, '_>, asked: Asked, input: &Input<'_>, part: &BatchPart) -> Result<()> {
        let Asked { subject, condition, .. } = asked;
        let ports = self.denoising.denoiser.ports(subject);
        let (width, pictures) = (input.all.len() / input.items, self.settings.batch);
        let BatchPart { passes, items } = part;
        let mut numbers: Vec<usize> = items.clone().collect();
        numbers.resize(seat.batch().items_at_once(), items.end - 1);
        let are_times = self.denoising.denoiser.conditions_are_times();
        let conditions: Vec<i32> = numbers
            .iter()
            .map(|&item| match are_times {
                true => condition as i32,
                false => (condition * passes.len() + item / pictures - passes.start) as i32,
            })
            .collect();
        seat.sessions().try_for_each(|session| session.set_indices(ports.condition, &conditions))?;
        if seat.batch().pictures_at_once() < pictures {
            let numbers: Vec<usize> = numbers.iter().map(|item| item % pictures).collect();
            let followed = (&*input.company.followed, pictures);
            seat.sessions().try_for_each(|session| self.denoising.denoiser.follow(session, followed, &numbers))?;
        }
        let own = &input.all[width * items.start..width * items.end];
        if numbers.len() == items.len() {
            return seat.set(ports.latents, own);
        }
        let mut filled = reserve::room("the latents", width * numbers.len())?;
        filled.extend_from_slice(own);
        for _ in items.len()..numbers.len() {
            filled.extend_from_slice(&own[own.len() - width..]);
        }
        seat.set(ports.latents, &filled)
    }

    /// Decides which of the passes that `parts` are of are computed, once the lead of each part has run. What ran last is left as it is.
    fn decide(
        &self,
        seat: &mut Seat<'_, '_>,
        asked: Asked,
        input: &Input<'_>,
        parts: &[BatchPart],
        skipping: &Mutex<&mut Skipping>,
    ) -> Result<Vec<bool>> {
        let ports = self.denoising.denoiser.cache(asked.subject, self.settings);
        let mut probe = Vec::new();
        for part in parts {
            self.set_part(seat, asked, input, part)?;
            if parts.len() == 1 {
                seat.compute_part(Part::Lead)?;
            }
            let Some(port) = ports.and_then(|ports| ports.probe) else { continue };
            if parts.len() > 1 {
                seat.look_ahead()?;
            }
            let found = seat.get(port)?;
            let own = found.len() / seat.batch().items_at_once() * part.items.len();
            match parts.len() {
                1 => probe = found,
                _ => {
                    reserve::grow("a step cache", &mut probe, own)?;
                    probe.extend_from_slice(&found[..own]);
                }
            }
        }
        lock(skipping).decide(asked.evaluation, parts[0].passes.clone(), &probe)
    }

    /// Computes what follows the lead of a step, or, if none of its passes has to be `computed`, what is not skipped of it. If only some
    /// have to, all are computed, and the others take what is kept. It is the part of the batch that begins with item `first`.
    fn step(
        &self,
        seat: &mut Seat<'_, '_>,
        asked: Asked,
        (computed, first): (&[bool], usize),
        skipping: &Mutex<&mut Skipping>,
    ) -> Result<()> {
        let Some(ports) = self.denoising.denoiser.cache(asked.subject, self.settings) else {
            return Err(Error::graph("step cache", "a model without one"));
        };
        let is_divided = seat.batch().parts_each_step() > 1;
        if let Some(kept) = lock(skipping).kept.get(&first).filter(|_| is_divided) {
            seat.set(ports.residual, kept)?;
        }
        if !computed.contains(&true) {
            return seat.compute_part(Part::Shortcut);
        }
        let each = seat.batch().items_at_once() / computed.len() * ports.width;
        let mut factors = reserve::room("a step cache", computed.len() * each)?;
        for computes in computed {
            factors.extend(std::iter::repeat_n(f32::from(*computes), each));
        }
        seat.set(ports.computed, &factors)?;
        seat.compute_part(Part::Rest)?;
        if is_divided {
            let residual = seat.get(ports.residual)?;
            lock(skipping).kept.insert(first, residual);
        }
        Ok(())
    }

    /// Guides `prediction` away from the `unconditional` one, as `evaluation` has it.
    fn guide(&self, prediction: &mut [f32], unconditional: &[f32], evaluation: usize) -> Result<()> {
        let (share, batch) = (self.settings.rescale_cfg, self.settings.batch);
        let width = self.denoising.denoiser.guided_width();
        let keeps = share == 0.0 && width.is_none();
        let conditional = if keeps { Vec::new() } else { reserve::repeat("the prediction", prediction, 1)? };
        // Where the reference counts from 0, no guidance is 1 all the same.
        let second = self.settings.experts.filter(|experts| evaluation >= experts.evaluations);
        let own = second.map_or(self.settings.cfg_scale, |second| second.cfg_scale);
        let scale = own + 1.0 - self.settings.guided_above;
        classifier_free_guidance(prediction, unconditional, scale)?;
        if let Some(width) = width {
            with_lengths_of(prediction, &conditional, width)?;
        }
        match share == 0.0 {
            true => Ok(()),
            false => rescaled(prediction, &conditional, prediction.len() / batch, share),
        }
    }

    /// The latents `packed` of every picture in every pass, each with what it has beside and behind it. The third pass has zeros
    /// beside it.
    fn with_company(&self, packed: &[f32], company: &Company) -> Result<Vec<f32>> {
        let (denoiser, passes, batch) = (&*self.denoising.denoiser, self.prompts.len(), self.settings.batch);
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
    fn by_picture(&self, all: &[f32], each: impl Fn(&[f32], [usize; 5]) -> Result<Vec<f32>>) -> Result<Vec<f32>> {
        let dims @ [.., batch] = self.model.autoencoder.latents(self.settings);
        let mut made: Vec<f32> = reserve::room("the latents", all.len())?;
        for latents in all.chunks_exact(all.len() / batch) {
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
    fn show(
        &self,
        run: &mut Run<'_>,
        mut painting: Option<&mut Running<'_>>,
        done: usize,
        clean: Option<Vec<f32>>,
    ) -> Result<()> {
        let (Some(painter), Some(clean)) = (&self.preview, clean) else { return Ok(()) };
        let [w, h, frames, channels, _] = self.model.autoencoder.latents(self.settings);
        for (index, latents) in clean.chunks_exact(w * h * frames * channels).enumerate() {
            let middle = (frames + self.settings.front_frames) / 2;
            let latents = &*frame(latents, w * h, [frames, middle])?;
            let image = painter.paint((self.model, &mut *run), painting.as_deref_mut(), [w, h], latents)?;
            run.event(Event::Preview { image, index, done, steps: self.levels.taken() })?;
        }
        Ok(())
    }
}

/// The latents `[w, h, C]` of one frame, number `at` of `frames`, of latents with planes of so many numbers.
fn frame(latents: &[f32], plane: usize, [frames, at]: [usize; 2]) -> Result<Cow<'_, [f32]>> {
    if frames == 1 {
        return Ok(Cow::Borrowed(latents));
    }
    let mut one = reserve::room("a preview", latents.len() / frames)?;
    for plane in latents.chunks_exact(plane).skip(at).step_by(frames) {
        one.extend_from_slice(plane);
    }
    Ok(Cow::Owned(one))
}

/// What a model is asked.
#[derive(Clone, Copy)]
struct Asked {
    /// Which of the denoiser's subjects it is.
    subject: usize,
    /// The number of the evaluation among all.
    evaluation: usize,
    /// The same among those of the subject.
    condition: usize,
}

/// What goes into a model in an evaluation.
struct Input<'a> {
    /// The latents of all items, with what they have beside and behind them.
    all: &'a [f32],
    /// How many items there are.
    items: usize,
    /// How many numbers are predicted for each.
    each: usize,
    company: &'a Company,
}

/// What is ready for all steps of a subject.
struct Prepared<'a> {
    /// What the denoiser takes with the latents.
    company: &'a Company,
    /// What [`Loop::prepare`] returned.
    ready: &'a [(usize, Aside)],
}

/// A step cache, for one device at a time.
fn lock<'a, 'c>(skipping: &'a Mutex<&'c mut Skipping>) -> MutexGuard<'a, &'c mut Skipping> {
    // A panic on another device ends the request anyway.
    skipping.lock().unwrap_or_else(PoisonError::into_inner)
}
