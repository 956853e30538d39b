//! Which component is on which of several devices: pure arithmetic over components that were measured on each.
//!
//! What denoises comes first. Its guidance passes are computed side by side, on as many devices as there are passes, if each of these
//! has room for it; if there are more devices than passes, the devices of a pass have its tokens among them. A single pass is on the first
//! device that has room; or several have its tokens among them, if that is forecast to be quicker; or its stages, if that moves fewer bytes
//! in a request. Then come the others, the largest first: each goes where the fewest
//! bytes move in a request, and of equals to the device that was named first. So what fits together on the first device is there.

use std::cmp::Reverse;
use std::str::FromStr;

use super::{Component, ComponentPlan, Limits, Offload, Phase, Plan, Refusal, Speed, budget};

/// A component as each device would compute it.
#[derive(Clone, Debug)]
pub struct Choice {
    /// All of it, by device; `None` where it must not be.
    pub whole: Vec<Option<Component>>,
    /// The guidance passes that a device has in its turn, by device; all `None` if they are not computed side by side.
    pub share: Vec<Option<Component>>,
    /// Ways to have the tokens of its passes among several devices, quickest first: what each device has.
    pub tokens: Vec<Vec<Option<Component>>>,
    /// Ways to have its stages on several devices: what each device has of them.
    pub divided: Vec<Vec<Option<Component>>>,
}

impl Choice {
    /// The phase in which it runs.
    pub fn phase(&self) -> Option<Phase> {
        self.whole.iter().flatten().map(|component| component.phase).next()
    }

    fn denoises(&self) -> bool {
        self.phase() == Some(Phase::Denoise)
    }

    /// How large it is in its files.
    fn size(&self) -> usize {
        self.whole.iter().flatten().map(Component::pages).max().unwrap_or(0)
    }
}

/// What devices may have among them of what denoises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Among {
    /// Its guidance passes.
    pub passes: bool,
    /// The tokens of a pass.
    pub tokens: bool,
    /// Its stages.
    pub stages: bool,
    /// Whether tokens are divided only if that is forecast to be quicker.
    pub if_quicker: bool,
}

impl Among {
    /// Whatever is forecast to be quickest.
    pub const AUTO: Among = Among { passes: true, tokens: true, stages: true, if_quicker: true };

    /// Nothing: each component is on one device.
    pub const NOTHING: Among = Among { passes: false, tokens: false, stages: false, if_quicker: false };
}

impl FromStr for Among {
    type Err = String;

    /// `auto`, `none`, or a list of `passes`, `tokens` and `stages`.
    fn from_str(text: &str) -> Result<Among, String> {
        match text {
            "auto" => return Ok(Among::AUTO),
            "none" => return Ok(Among::NOTHING),
            _ => {}
        }
        let mut among = Among::NOTHING;
        for name in text.split(',') {
            match name {
                "passes" => among.passes = true,
                "tokens" => among.tokens = true,
                "stages" => among.stages = true,
                _ => return Err(format!("`{name}` is not passes, tokens or stages")),
            }
        }
        Ok(among)
    }
}

impl Default for Among {
    fn default() -> Among {
        Among::AUTO
    }
}

/// What has to be quicker in a forecast by this much to be chosen: it knows nothing of what else a device does.
const QUICKER: f64 = 1.1;

/// What a device has so far.
#[derive(Clone, Default)]
struct Given<'a> {
    /// Components and their places among all, in the order in which they run.
    components: Vec<(usize, &'a Component)>,
    /// Whether it has what takes its room beside that which denoises.
    has_company: bool,
}

impl<'a> Given<'a> {
    fn and(&self, at: usize, component: &'a Component, brings_company: bool) -> Given<'a> {
        let mut more = self.clone();
        let place = more.components.partition_point(|(other, _)| *other < at);
        more.components.insert(place, (at, component));
        more.has_company |= brings_company;
        more
    }
}

/// Devices that a request is planned for.
pub struct Devices<'a> {
    /// What each has to keep to.
    pub limits: &'a [Limits],
    /// How the devices are shared.
    pub offload: Offload,
    /// What takes its room beside that which denoises, as each device would compute it: what makes previews.
    pub company: Option<&'a [Component]>,
    /// What devices may have among them.
    pub among: Among,
    /// How fast each is.
    pub speeds: &'a [Speed],
}

impl Devices<'_> {
    /// The plan for all `choices`, which run in their order.
    ///
    /// # Errors
    /// [`Refusal`] if one of them fits nowhere.
    pub fn plan(&self, choices: &[Choice]) -> Result<Plan, Refusal> {
        let mut given = vec![Given::default(); self.limits.len()];
        let (denoisers, others): (Vec<usize>, Vec<usize>) = (0..choices.len()).partition(|&at| choices[at].denoises());
        let passes = self.side_by_side(&shares(choices, &denoisers, |choice| Some(&choice.share)), &given);
        let tokens = self.tokens(choices, &denoisers, &given);
        match (passes, tokens) {
            (Some(passes), Some(tokens)) => given = self.quicker(passes, tokens),
            (Some(passes), None) => given = passes,
            (None, Some(tokens)) if !self.among.if_quicker => given = tokens,
            (None, tokens) => {
                let mut apart = given.clone();
                let put = self.apart(choices, denoisers, &mut apart);
                given = match (put, tokens) {
                    (Ok(()), Some(tokens)) => self.quicker(apart, tokens),
                    (Err(_), Some(tokens)) => tokens,
                    (put, None) => put.map(|()| apart)?,
                };
            }
        }
        let mut others = others;
        others.sort_by_key(|&at| (Reverse(choices[at].size()), at));
        for at in others {
            self.put(at, &choices[at], &mut given, false)?;
        }
        self.all(&given)
    }

    /// The least budget for each device, in bytes, for which [`plan`](Devices::plan) finds a plan without dividing stages: what the
    /// component needs that needs most on the device on which it needs least.
    pub fn least(&self, choices: &[Choice]) -> usize {
        let mut least = 0;
        for choice in choices {
            let mut of_choice: Option<usize> = None;
            for (device, component) in choice.whole.iter().enumerate() {
                let Some(component) = component else { continue };
                let alone = match self.company.and_then(|company| company.get(device)).filter(|_| choice.denoises()) {
                    Some(company) => component.beside(company, company.variants.len().saturating_sub(1)),
                    None => component.clone(),
                };
                let here = budget::least(&[alone], self.offload, &self.limits[device]);
                of_choice = Some(of_choice.map_or(here, |other| other.min(here)));
            }
            least = least.max(of_choice.unwrap_or(0));
        }
        if self.offload == Offload::None { self.least_for_all(choices, least) } else { least }
    }

    /// The same where all weights stay on the devices, so that several components may have to share one: at least `least`.
    fn least_for_all(&self, choices: &[Choice], least: usize) -> usize {
        let fits = |bytes| {
            let limits: Vec<Limits> =
                self.limits.iter().map(|limits| Limits { bytes: Some(bytes), ..*limits }).collect();
            Devices { limits: &limits, ..*self }.plan(choices).is_ok()
        };
        let (mut too_few, mut enough) = (least.saturating_sub(1), least.max(1));
        while !fits(enough) {
            if enough > usize::MAX / 2 {
                return enough;
            }
            (too_few, enough) = (enough, 2 * enough);
        }
        while enough - too_few > 1 {
            let middle = too_few + (enough - too_few) / 2;
            if fits(middle) {
                enough = middle;
            } else {
                too_few = middle;
            }
        }
        enough
    }

    /// Everything that denoises, with its tokens divided among the devices, in the first way for which there is room.
    fn tokens<'c>(&self, choices: &'c [Choice], denoisers: &[usize], given: &[Given<'c>]) -> Option<Vec<Given<'c>>> {
        let ways = denoisers.iter().map(|&at| choices[at].tokens.len()).min().unwrap_or(0);
        (0..ways).find_map(|way| self.side_by_side(&shares(choices, denoisers, |choice| choice.tokens.get(way)), given))
    }

    /// `tokens`, if that is forecast to be quicker than `other` by enough or is asked for, and `other` if not.
    fn quicker<'c>(&self, other: Vec<Given<'c>>, tokens: Vec<Given<'c>>) -> Vec<Given<'c>> {
        let is_quicker = match [&other, &tokens].map(|given| self.seconds(given)) {
            [Some(other), Some(tokens)] => tokens * QUICKER < other,
            _ => false,
        };
        if is_quicker || !self.among.if_quicker { tokens } else { other }
    }

    /// About how many seconds what denoises takes in a request.
    fn seconds(&self, given: &[Given<'_>]) -> Option<f64> {
        let mut plans = Vec::with_capacity(given.len());
        for (device, given) in given.iter().enumerate() {
            plans.push(self.on(device, given).ok()?);
        }
        let mut plans = plans.into_iter();
        let first = plans.next()?;
        Some(Plan { others: plans.collect(), ..first }.seconds(self.speeds))
    }

    /// Everything that denoises, each device with its share of it, if there are `shares` and room for them.
    fn side_by_side<'c>(
        &self,
        shares: &[(usize, &'c [Option<Component>])],
        given: &[Given<'c>],
    ) -> Option<Vec<Given<'c>>> {
        let mut shared = given.to_vec();
        for (number, &(at, shares)) in shares.iter().enumerate() {
            let mut count = 0;
            for (device, share) in shares.iter().enumerate() {
                let Some(share) = share else { continue };
                shared[device] = shared[device].and(at, share, number == 0 && count == 0);
                count += 1;
            }
            if count < 2 {
                return None;
            }
        }
        for (device, given) in shared.iter().enumerate() {
            self.on(device, given).ok()?;
        }
        (!shares.is_empty()).then_some(shared)
    }

    /// Everything that denoises, each whole: the first on the first device that has room for it.
    fn apart<'c>(&self, choices: &'c [Choice], denoisers: Vec<usize>, given: &mut [Given<'c>]) -> Result<(), Refusal> {
        for (number, at) in denoisers.into_iter().enumerate() {
            let mut whole = given.to_vec();
            let put = self.put(at, &choices[at], &mut whole, number == 0);
            let moves = match &put {
                Ok(()) => Some(self.moves(&whole)?),
                Err(_) => None,
            };
            match (self.divided(at, &choices[at], given, number == 0, moves), put) {
                (Some(divided), _) => given.clone_from_slice(&divided),
                (None, Ok(())) => given.clone_from_slice(&whole),
                (None, Err(refusal)) => return Err(refusal),
            }
        }
        Ok(())
    }

    /// The way to divide the stages of component number `at` that moves the fewest bytes, if that is fewer than `most`.
    fn divided<'c>(
        &self,
        at: usize,
        choice: &'c Choice,
        given: &[Given<'c>],
        first: bool,
        most: Option<usize>,
    ) -> Option<Vec<Given<'c>>> {
        let mut best = (most, None);
        for way in &choice.divided {
            let (mut more, mut brings_company) = (given.to_vec(), first);
            for (given, component) in more.iter_mut().zip(way) {
                let Some(component) = component else { continue };
                *given = given.and(at, component, std::mem::take(&mut brings_company));
            }
            let Ok(moves) = self.moves(&more) else { continue };
            if best.0.is_none_or(|fewest| moves < fewest) {
                best = (Some(moves), Some(more));
            }
        }
        best.1
    }

    /// How many bytes move in a request to all devices with what they have.
    fn moves(&self, given: &[Given<'_>]) -> Result<usize, Refusal> {
        let mut all = 0usize;
        for (device, given) in given.iter().enumerate() {
            all = all.saturating_add(moved(&self.on(device, given)?));
        }
        Ok(all)
    }

    /// Gives component number `at` to the device on which the fewest bytes move for it, or to the `first` that has room.
    fn put<'c>(&self, at: usize, choice: &'c Choice, given: &mut [Given<'c>], first: bool) -> Result<(), Refusal> {
        let mut best: Option<(usize, usize, Given<'_>)> = None;
        let mut refused: Option<Refusal> = None;
        for (device, component) in choice.whole.iter().enumerate() {
            let Some(component) = component else { continue };
            let more = given[device].and(at, component, first);
            let (before, after) = (self.on(device, &given[device]), self.on(device, &more));
            match (before, after) {
                (Ok(before), Ok(after)) => {
                    let moves = moved(&after).saturating_sub(moved(&before));
                    if best.as_ref().is_none_or(|(fewest, ..)| !first && moves < *fewest) {
                        best = Some((moves, device, more));
                    }
                }
                (Err(refusal), _) | (_, Err(refusal)) => {
                    if refused.as_ref().is_none_or(|other| refusal.least < other.least) {
                        refused = Some(refusal);
                    }
                }
            }
        }
        match (best, refused) {
            (Some((_, device, more)), _) => given[device] = more,
            (None, Some(refusal)) => return Err(refusal),
            // It is allowed nowhere: no caller asks for that.
            (None, None) => {}
        }
        Ok(())
    }

    /// The plan of device number `device` with what it has.
    fn on(&self, device: usize, given: &Given<'_>) -> Result<Plan, Refusal> {
        self.within(&self.limits[device], device, given)
    }

    fn within(&self, limits: &Limits, device: usize, given: &Given<'_>) -> Result<Plan, Refusal> {
        let components: Vec<Component> = given.components.iter().map(|(_, component)| (*component).clone()).collect();
        let company = self.company.filter(|_| given.has_company).and_then(|company| company.get(device));
        budget::plan_in_company(&components, company, self.offload, limits)
    }

    /// The plans of all devices. Of host memory that is theirs too, each has what those before it leave.
    fn all(&self, given: &[Given<'_>]) -> Result<Plan, Refusal> {
        let (mut plans, mut taken) = (Vec::new(), 0usize);
        for (device, given) in given.iter().enumerate() {
            let mut limits = self.limits[device];
            for limit in limits.of_host.iter_mut().flatten() {
                limit.process = limit.process.saturating_add(taken);
            }
            let plan = self.within(&limits, device, given)?;
            let shared = limits.of_host.iter().flatten().any(|limit| limit.shared);
            taken = taken.saturating_add(if shared { plan.peak() } else { 0 });
            plans.push(plan);
        }
        let mut plans = plans.into_iter();
        let first = plans.next().unwrap_or_default();
        Ok(Plan { others: plans.collect(), ..first })
    }
}

/// What each device has of each of `denoisers` and its place among all, as `share` says; nothing if it does not say it of one.
fn shares<'c>(
    choices: &'c [Choice],
    denoisers: &[usize],
    share: impl Fn(&'c Choice) -> Option<&'c Vec<Option<Component>>>,
) -> Vec<(usize, &'c [Option<Component>])> {
    let all = denoisers.iter().map(|&at| share(&choices[at]).map(|share| (at, &share[..])));
    all.collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// Bytes that move in a request that is not the first.
fn moved(plan: &Plan) -> usize {
    match plan.all_resident {
        true => 0,
        false => plan.components.iter().map(ComponentPlan::moved).fold(0, usize::saturating_add),
    }
}

/// Into how many parts of their room the first devices' shares are tried.
const SHARES: usize = 16;

/// Ways to divide stages of these `weights`, in bytes, among devices with so much `room` each: for each way, the device of each stage.
/// The first has all before stage number `fixed`, and each what follows upon what the one before it has: as much as fills a part of its
/// room `beside` what else it holds, from a sixteenth on; the last has the rest.
pub fn divisions(weights: &[usize], fixed: usize, room: &[usize], beside: usize) -> Vec<Vec<usize>> {
    let mut ways: Vec<Vec<usize>> = Vec::new();
    let all = weights.iter().copied().fold(0, usize::saturating_add);
    for share in 1..=SHARES {
        let (mut owner, mut taken) = (0, 0usize);
        let mut owners = Vec::with_capacity(weights.len());
        for (stage, &bytes) in weights.iter().enumerate() {
            let most = room.get(owner).map_or(0, |room| room.saturating_sub(beside).min(all));
            let most = most / SHARES * share + most % SHARES * share / SHARES;
            if stage >= fixed && taken.saturating_add(bytes) > most && owner + 1 < room.len() {
                (owner, taken) = (owner + 1, 0);
            }
            taken = taken.saturating_add(bytes);
            owners.push(owner);
        }
        if !ways.contains(&owners) {
            ways.push(owners);
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_division_is_in_order(
            weights in prop::collection::vec(0usize..1000, 1..40), fixed in 0usize..10, devices in 2usize..5,
            room in 0usize..20_000, beside in 0usize..2000
        ) {
            for owners in divisions(&weights, fixed, &vec![room; devices], beside) {
                prop_assert_eq!(owners.len(), weights.len());
                prop_assert!(owners.windows(2).all(|two| two[0] == two[1] || two[0] + 1 == two[1]));
                prop_assert!(owners.iter().take(fixed).all(|&owner| owner == 0) && owners.iter().all(|&owner| owner < devices));
            }
        }
    }

    #[test]
    fn what_is_divided_has_names() {
        assert_eq!("auto".parse(), Ok(Among::AUTO));
        assert_eq!("none".parse(), Ok(Among::NOTHING));
        assert_eq!("tokens,passes".parse(), Ok(Among { passes: true, tokens: true, ..Among::NOTHING }));
        for text in ["", "tokens,", "auto,tokens", "heads"] {
            assert!(text.parse::<Among>().is_err(), "{text}");
        }
    }

    #[test]
    fn equal_stages_are_divided_in_halves() {
        // The last is what fills the room of the first.
        let ways = divisions(&[10; 8], 0, &[45, 45], 5);
        assert_eq!(ways.last(), Some(&vec![0, 0, 0, 0, 1, 1, 1, 1]));
        assert!(ways.contains(&vec![0, 1, 1, 1, 1, 1, 1, 1]));
    }
}
