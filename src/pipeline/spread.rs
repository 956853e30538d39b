//! Which of several devices has what of a request: what is measured, and what may be where.

use super::generate::Pipeline;
use super::machine::{Machine, Unit};
use super::memory::arrays;
use super::preview;
use super::request::Settings;
use crate::Result;
use crate::plan::devices::{self, Choice, Devices};
use crate::plan::measure::{Subject, Survey};
use crate::plan::{Component, Limits, Phase, Plan, Refusal, Speed, TokenShare, Turn};
use crate::stage::Cadence;

/// What a request takes on several devices.
struct Measured {
    choices: Vec<Choice>,
    /// What makes previews, if that is a network.
    company: Option<Vec<Component>>,
    /// How fast each device is.
    speeds: Vec<Speed>,
}

impl Pipeline {
    /// The plan of a request on several devices, or the refusal if nothing fits.
    pub(super) fn planned_on_devices(
        &self,
        settings: &Settings,
        limits: &[Limits],
    ) -> Result<std::result::Result<Plan, Refusal>> {
        let mut all = self.measure_on_devices(settings)?;
        let planned = self.devices_of(limits, &all).plan(&all.choices);
        // What streams may have room on several devices.
        if !self.machine.among.stages || planned.as_ref().is_ok_and(is_settled) {
            return Ok(planned);
        }
        let subjects = self.subjects(&self.model, settings)?;
        let surveyed = self.machine.survey(&subjects)?;
        self.divide((&subjects, &surveyed), settings, limits, &mut all)?;
        let divided = self.devices_of(limits, &all).plan(&all.choices);
        // What is divided may leave no room for the rest.
        Ok(if divided.is_err() && planned.is_ok() { planned } else { divided })
    }

    /// The same of the text encoders alone.
    pub(super) fn encoders_on_devices(
        &self,
        settings: &Settings,
        limits: &[Limits],
    ) -> Result<std::result::Result<Plan, Refusal>> {
        let mut all = self.measure_on_devices(settings)?;
        all.choices.retain(|choice| choice.phase() == Some(Phase::Encode));
        Ok(self.devices_of(limits, &all).plan(&all.choices))
    }

    /// The least budget for each device, in bytes, for which there is a plan, up to one part of `TRIED`. Found by trying, where stages may be
    /// divided: what each device has of them depends on its room.
    pub(super) fn least_on_devices(&self, settings: &Settings) -> Result<usize> {
        let mut all = self.measure_on_devices(settings)?;
        let undivided = self.devices_of(&self.machine.limits()?, &all).least(&all.choices);
        if !self.machine.among.stages {
            return Ok(undivided);
        }
        let subjects = self.subjects(&self.model, settings)?;
        let surveyed = self.machine.survey(&subjects)?;
        let most = self.machine.limits_of_all(Some(usize::MAX))?;
        let (mut too_few, mut enough) = (0, undivided);
        while enough - too_few > enough / TRIED {
            let middle = too_few + (enough - too_few) / 2;
            let mut limits = most.clone();
            for limits in &mut limits {
                limits.bytes = limits.bytes.map(|most| most.min(middle));
            }
            self.divide((&subjects, &surveyed), settings, &limits, &mut all)?;
            match self.devices_of(&limits, &all).plan(&all.choices) {
                Ok(_) => enough = middle,
                Err(_) => too_few = middle.max(too_few + 1),
            }
        }
        Ok(enough)
    }

    /// What every component takes on each device, and which devices may have it.
    fn measure_on_devices(&self, settings: &Settings) -> Result<Measured> {
        let units = &self.machine.units;
        let first = self.machine.first().backend.device();
        let mut choices = Vec::new();
        for subject in self.subjects(&self.model, settings)? {
            let beside = arrays(&self.model, settings, subject.phase);
            let whole = self.machine.measure(&subject, beside)?;
            let mut whole: Vec<Option<Component>> = whole.into_iter().map(Some).collect();
            for (whole, _) in whole.iter_mut().zip(units).filter(|(_, unit)| unit.is_lost) {
                *whole = None;
            }
            let (mut share, mut tokens) = (vec![None; units.len()], Vec::new());
            if subject.phase == Phase::Denoise {
                let alike = self.machine.alike();
                let passes = if self.machine.among.passes { alike.len() } else { 1 };
                let turns = subject.turns(passes);
                for (&device, &turn) in alike.iter().zip(&turns).filter(|_| turns.len() > 1) {
                    let measured = units[device].measure(&subject, turn)?;
                    share[device] = Some(Component { beside, ..measured });
                }
                if self.machine.among.tokens {
                    tokens = self.machine.by_tokens(&subject, &alike, &turns, beside)?;
                }
                for (whole, unit) in whole.iter_mut().zip(units) {
                    // It would take many times as long on the CPU beside a card.
                    if unit.backend.device().is_cpu() && !first.is_cpu() {
                        *whole = None;
                    }
                }
            }
            choices.push(Choice { whole, share, tokens, divided: Vec::new() });
        }
        let previews = preview::subject(&self.model, settings);
        let company = previews.map(|subject| self.machine.measure(&subject, preview::arrays(settings))).transpose()?;
        Ok(Measured { choices, company, speeds: units.iter().map(Unit::speed).collect() })
    }

    /// Sets the ways to divide the stages of what denoises among several devices: of those of `subjects` that were `surveyed`.
    fn divide(
        &self,
        (subjects, surveyed): (&[Subject<'_>], &[Vec<Survey<'_>>]),
        settings: &Settings,
        limits: &[Limits],
        all: &mut Measured,
    ) -> Result<()> {
        let alike = self.machine.alike();
        let room: Vec<usize> = alike.iter().map(|&at| limits[at].bytes.unwrap_or(usize::MAX)).collect();
        for ((subject, surveys), choice) in subjects.iter().zip(surveyed).zip(&mut all.choices) {
            let beside = arrays(&self.model, settings, subject.phase);
            choice.divided = self.machine.divided((subject, surveys), &alike, &room, beside)?;
        }
        Ok(())
    }

    fn devices_of<'a>(&self, limits: &'a [Limits], all: &'a Measured) -> Devices<'a> {
        Devices {
            limits,
            offload: self.machine.options.offload,
            company: all.company.as_deref(),
            among: self.machine.among,
            speeds: &all.speeds,
        }
    }
}

/// A least budget is found up to one part of so many.
const TRIED: usize = 1024;

/// Whether nothing is gained by other places for what denoises: all of it stays on its device, or several compute its passes or have its
/// tokens among them, and these stay.
fn is_settled(plan: &Plan) -> bool {
    let mut denoisers = plan.devices().flat_map(|plan| &plan.components).filter(|own| own.phase == Phase::Denoise);
    denoisers.all(|component| component.streamed() == 0 || component.batch.turn != Turn::ALL)
}

impl Machine {
    /// The numbers of the devices that round as the first does.
    fn alike(&self) -> Vec<usize> {
        let first = self.first().backend.device();
        let units = self.units.iter().enumerate();
        let alike = units.filter(|(_, unit)| !unit.is_lost && unit.backend.device().rounds_as(first));
        alike.map(|(at, _)| at).collect()
    }

    /// What `subject` takes on each device, with so many bytes of host memory `beside` it.
    fn measure(&self, subject: &Subject<'_>, beside: usize) -> Result<Vec<Component>> {
        let mut all: Vec<Component> = Vec::with_capacity(self.units.len());
        for (at, unit) in self.units.iter().enumerate() {
            let known = (0..at).find(|&other| unit.measures_as(&self.units[other]));
            all.push(match known {
                Some(other) => all[other].clone(),
                // Of a device that is gone no one will ask.
                None if unit.is_lost => Component { beside, ..self.first().measure(subject, Turn::ALL)? },
                None => Component { beside, ..unit.measure(subject, Turn::ALL)? },
            });
        }
        Ok(all)
    }

    /// The ways to have the tokens of `subject` among the devices `alike`, as many for each of `turns`: what each device has. None if there
    /// are too few devices, or if what is computed cannot be divided so.
    fn by_tokens(
        &self,
        subject: &Subject<'_>,
        alike: &[usize],
        turns: &[Turn],
        beside: usize,
    ) -> Result<Vec<Vec<Option<Component>>>> {
        let of = alike.len() / turns.len().max(1);
        if of < 2 || subject.model.has_strips() {
            return Ok(Vec::new());
        }
        let mut measured: Vec<(usize, Component)> = Vec::new();
        for (group, &turn) in alike.chunks(of).zip(turns) {
            let works = self.units[group[0]].works(subject, turn, of)?;
            for (number, (&device, work)) in group.iter().zip(works).enumerate() {
                let component = self.units[device].measure_share(subject, turn, TokenShare { number, of })?;
                measured.push((device, Component { beside, work, ..component }));
            }
        }
        // All devices compute so much of the batch at once.
        let mut batches: Vec<Option<usize>> = Vec::new();
        for variant in measured.iter().flat_map(|(_, component)| &component.variants) {
            if !batches.contains(&variant.batch.at_once) {
                batches.push(variant.batch.at_once);
            }
        }
        let mut ways = Vec::with_capacity(batches.len());
        for at_once in batches {
            let mut way = vec![None; self.units.len()];
            for (device, component) in &measured {
                let mut component = component.clone();
                component.variants.retain(|variant| variant.batch.at_once == at_once);
                way[*device] = Some(component).filter(|component| !component.variants.is_empty());
            }
            if way.iter().flatten().count() == measured.len() {
                ways.push(way);
            }
        }
        Ok(ways)
    }

    /// What is known of the stages of each of `subjects` on each device that rounds as the first does. Of those that do not denoise, and of
    /// all if there is one such device, nothing.
    fn survey<'s>(&self, subjects: &'s [Subject<'_>]) -> Result<Vec<Vec<Survey<'s>>>> {
        let alike = self.alike();
        let mut surveyed = Vec::with_capacity(subjects.len());
        for subject in subjects {
            let is_divided = subject.phase == Phase::Denoise && alike.len() > 1;
            let devices = alike.iter().filter(|_| is_divided);
            surveyed.push(devices.map(|&at| subject.survey(&self.units[at].backend)).collect::<Result<Vec<_>>>()?);
        }
        Ok(surveyed)
    }

    /// The ways to divide the stages of `subject` among the devices `alike`, on which it was surveyed and which have so much `room`: what each
    /// device has of them.
    fn divided(
        &self,
        (subject, surveys): (&Subject<'_>, &[Survey<'_>]),
        alike: &[usize],
        room: &[usize],
        beside: usize,
    ) -> Result<Vec<Vec<Option<Component>>>> {
        let Some(first) = surveys.first() else { return Ok(Vec::new()) };
        let requests = subject.model.at(Cadence::Request).end;
        let mut ways = Vec::new();
        for owners in devices::divisions(&first.weights(), requests, room, first.beside_weights()) {
            // Pieces of one picture have one size.
            for batch in first.batches() {
                let (mut way, mut is_complete) = (vec![None; self.units.len()], true);
                for (number, (&device, survey)) in alike.iter().zip(surveys).enumerate() {
                    let own: Vec<bool> = owners.iter().map(|&owner| owner == number).collect();
                    if own.contains(&true) {
                        let component = survey.of_stages(&own, batch)?;
                        is_complete &= component.is_some();
                        way[device] = component.map(|component| Component { beside, ..component });
                    }
                }
                if is_complete && way.iter().flatten().count() > 1 {
                    ways.push(way);
                }
            }
        }
        Ok(ways)
    }
}
