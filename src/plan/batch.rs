//! How much of a batch is computed at once: everything; or the guidance passes one after the other, so many pictures at a time.

use std::fmt;
use std::ops::Range;

use super::Runs;
use crate::stage::{Cadence, Dims, Model, Symbol};

/// The items of a batch, and which of them are computed at once. Item `pass * pictures + i` is picture `i` of that pass.
///
/// Parts of a batch are equally large, since a session has one size. If the pictures of a pass do not fill its last part, the last
/// of them stands there again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Guidance passes.
    pub passes: usize,
    /// Pictures in each pass.
    pub pictures: usize,
    /// How many pictures of one pass are computed at once; `None` for all pictures of all passes.
    pub at_once: Option<usize>,
    /// Which of the passes.
    pub turn: Turn,
}

/// Which guidance passes one of several devices computes: of every `of` in a row, number `number`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The number of the first.
    pub number: usize,
    /// How many devices take turns.
    pub of: usize,
}

impl Turn {
    /// All passes.
    pub const ALL: Turn = Turn { number: 0, of: 1 };
}

impl Default for Turn {
    fn default() -> Turn {
        Turn::ALL
    }
}

/// What is computed at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchPart {
    /// The passes.
    pub passes: Range<usize>,
    /// The items.
    pub items: Range<usize>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { passes: 1, pictures: 1, at_once: None, turn: Turn::ALL }
    }
}

impl Batch {
    /// All of a request of size `dims` at once.
    pub(crate) fn of(dims: &Dims) -> Batch {
        let passes = dims.get(Symbol::PASSES).unwrap_or(1).max(1);
        let items = dims.get(Symbol::BATCH).unwrap_or(1);
        match dims.get(Symbol::PASSES) {
            Ok(_) => Batch { passes, pictures: (items / passes).max(1), at_once: None, turn: Turn::ALL },
            // Nothing says what the items are.
            Err(_) => Batch::default(),
        }
    }

    /// The passes that are computed here.
    pub(super) fn own_passes(self) -> impl Iterator<Item = usize> + Clone {
        (self.turn.number..self.passes).step_by(self.turn.of.max(1))
    }

    /// The ways to compute it: all at once, a pass at once, and then half of the pictures again and again. Passes that several devices
    /// share are not computed at once.
    pub(crate) fn all(self) -> Vec<Batch> {
        let mut batches = if self.turn == Turn::ALL { vec![self] } else { Vec::new() };
        if self.passes > 1 {
            batches.push(Batch { at_once: Some(self.pictures), ..self });
        }
        let mut pictures = self.pictures;
        while pictures > 1 {
            pictures = pictures.div_ceil(2);
            batches.push(Batch { at_once: Some(pictures), ..self });
        }
        batches
    }

    /// What is computed at once, one after the other.
    pub fn parts(self) -> Vec<BatchPart> {
        let Batch { passes, pictures, at_once, .. } = self;
        let Some(most) = at_once else { return vec![BatchPart { passes: 0..passes, items: 0..passes * pictures }] };
        let mut parts = Vec::new();
        for pass in self.own_passes() {
            for first in (0..pictures).step_by(most.max(1)) {
                let items = pass * pictures + first..pass * pictures + pictures.min(first + most.max(1));
                parts.push(BatchPart { passes: pass..pass + 1, items });
            }
        }
        parts
    }

    /// The passes that share what holds for all steps: all, or each by itself.
    pub fn sharing(self) -> Vec<Range<usize>> {
        match self.at_once {
            None => std::iter::once(0..self.passes).collect(),
            Some(_) => self.own_passes().map(|pass| pass..pass + 1).collect(),
        }
    }

    /// How many pictures of a pass are computed at once.
    pub fn pictures_at_once(self) -> usize {
        self.at_once.unwrap_or(self.pictures)
    }

    /// How many items a session has.
    pub fn items_at_once(self) -> usize {
        self.at_once.unwrap_or(self.passes * self.pictures)
    }

    /// How often the stages run of a component that would run so often if all were computed at once.
    pub fn runs(self, runs: Runs) -> Runs {
        let parts = self.parts_each_step();
        Runs {
            request: runs.request.saturating_mul(self.sharing().len()),
            steps: runs.steps.saturating_mul(parts),
            steps_behind_each: runs.steps_behind_each.map(|steps| steps.saturating_mul(parts)),
        }
    }

    /// How often the stages of a step run in one step.
    pub fn parts_each_step(self) -> usize {
        self.at_once.map_or(1, |most| self.own_passes().count().saturating_mul(self.pictures.div_ceil(most.max(1))))
    }

    /// How often a stage does not run that does not in so many steps: if all is computed at once, and in all of its passes together if
    /// they are computed one after the other.
    pub fn idle(self, [at_once, apart]: [usize; 2]) -> usize {
        match self.at_once {
            None => at_once,
            Some(_) => apart.saturating_mul(self.parts_each_step() / self.own_passes().count().max(1)),
        }
    }

    /// How many conditions a session has for a request of so many `evaluations` in each pass. A product with one column is rounded
    /// in another way than one with several: where there are several for all passes, there are for one.
    pub fn conditions(self, evaluations: usize) -> usize {
        match self.at_once {
            None => evaluations.saturating_mul(self.passes),
            Some(_) => evaluations.max(self.passes.min(2)),
        }
    }

    /// The sizes of a session for a request of size `dims`.
    pub(crate) fn dims(self, dims: &Dims) -> Dims {
        let Some(pictures) = self.at_once else { return dims.clone() };
        let mut one = dims.clone().with(Symbol::PASSES, 1).with(Symbol::BATCH, pictures);
        for (symbol, size) in [(Symbol::PICTURES, pictures), (Symbol::CONTROLLED, pictures), (Symbol::TABLES, 1)] {
            // Items of one pass share a table.
            one = if one.find(symbol).is_some() { one.with(symbol, size) } else { one };
        }
        match dims.find(Symbol::CONDITIONS) {
            Some(conditions) => one.with(Symbol::CONDITIONS, self.conditions(conditions / self.passes)),
            None => one,
        }
    }

    /// The sizes that a session has graphs for in a request of size `dims`: of each pass, if passes differ and are computed one after
    /// the other, those of each span of steps. Its ports are equally large in all of them.
    pub(crate) fn forms(self, dims: &Dims) -> Vec<Dims> {
        let mut forms = Vec::new();
        for pass in self.own_passes().take(self.forms_of_passes(dims)) {
            let pass = self.at_once.map(|_| pass);
            forms.extend(self.dims(&dims.in_pass(pass)).in_spans());
        }
        forms
    }

    /// Which of the forms is that of `pass` in step number `step`.
    pub(crate) fn form(self, dims: &Dims, pass: usize, step: usize) -> usize {
        let among_own = pass.saturating_sub(self.turn.number) / self.turn.of.max(1);
        let pass = among_own.min(self.forms_of_passes(dims).saturating_sub(1));
        pass * dims.span_count() + dims.span_of(step)
    }

    fn forms_of_passes(self, dims: &Dims) -> usize {
        if self.at_once.is_some() && dims.passes_differ() { self.own_passes().count() } else { 1 }
    }

    /// In which order the stages of `model` run in a request of size `dims`, as often as `runs` says if all is computed at once: lists
    /// of stages, and how often each runs before the next begins.
    pub fn order(self, model: &Model, dims: &Dims, runs: Runs) -> Vec<(Vec<usize>, usize)> {
        let mut order = Vec::new();
        for round in runs.rounds() {
            order.push((model.at(Cadence::Request).collect(), self.runs(round).request));
            order.extend(self.order_of_steps(model, dims, round.steps));
        }
        order
    }

    /// The same of so many `steps`.
    fn order_of_steps(self, model: &Model, dims: &Dims, steps: usize) -> Vec<(Vec<usize>, usize)> {
        let (forms, spans, mut order) = (self.forms(dims), dims.span_count(), Vec::new());
        for (span, steps) in dims.steps_of_spans(steps).into_iter().enumerate() {
            let mut passes: Vec<Vec<usize>> = Vec::new();
            for form in forms.iter().skip(span).step_by(spans) {
                let idle = model.idle(form);
                passes.push(model.at(Cadence::Step).filter(|&stage| !idle[stage]).collect());
            }
            let parts = self.parts_each_step();
            match passes.windows(2).all(|two| two[0] == two[1]) {
                true => order.extend(passes.into_iter().take(1).map(|stages| (stages, steps.saturating_mul(parts)))),
                false => {
                    let parts = parts / passes.len();
                    for _ in 0..steps {
                        order.extend(passes.iter().map(|stages| (stages.clone(), parts)));
                    }
                }
            }
        }
        order
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Batch { passes, pictures, at_once, turn } = *self;
        let Some(most) = at_once else { return f.write_str("all at once") };
        let own: Vec<String> = self.own_passes().map(|pass| (pass + 1).to_string()).collect();
        match own.len() {
            _ if turn == Turn::ALL && passes == 1 => {}
            _ if turn == Turn::ALL => write!(f, "{passes} passes, one after the other")?,
            1 => write!(f, "pass {} of {passes}", own[0])?,
            _ => write!(f, "passes {} of {passes}, one after the other", own.join(" and "))?,
        }
        if most < pictures {
            let separator = if passes > 1 { ", " } else { "" };
            write!(f, "{separator}{most} of {pictures} pictures at a time")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::Result;
    use crate::stage::{Block, Build, Span};

    fn batch(passes: usize, pictures: usize) -> Batch {
        let items = passes * pictures;
        let dims =
            Dims::new().with(Symbol::PASSES, passes).with(Symbol::BATCH, items).with(Symbol::CONDITIONS, 6 * passes);
        Batch::of(&dims)
    }

    #[test]
    fn passes_come_apart_before_pictures() {
        let at_once = |passes, pictures| {
            let batches = batch(passes, pictures).all().into_iter();
            batches.map(|batch| batch.at_once).collect::<Vec<_>>()
        };
        assert_eq!(at_once(1, 1), [None]);
        assert_eq!(at_once(2, 1), [None, Some(1)]);
        assert_eq!(at_once(3, 5), [None, Some(5), Some(3), Some(2), Some(1)]);
        assert_eq!(at_once(1, 4), [None, Some(2), Some(1)]);
        let unknown = Dims::new().with(Symbol::BATCH, 3);
        assert_eq!(Batch::of(&unknown).all(), [Batch::default()]);
    }

    #[test]
    fn every_item_is_in_one_part() {
        for (passes, pictures) in [(1, 1), (2, 1), (1, 7), (2, 5), (3, 3)] {
            for batch in batch(passes, pictures).all() {
                let parts = batch.parts();
                assert_eq!(parts.len(), batch.parts_each_step(), "{batch:?}");
                let items: Vec<usize> = parts.iter().flat_map(|part| part.items.clone()).collect();
                assert!(items.into_iter().eq(0..passes * pictures), "{batch:?}");
                for part in parts {
                    assert!(part.items.len() <= batch.items_at_once() && batch.sharing().contains(&part.passes));
                    assert!(part.items.clone().all(|item| part.passes.contains(&(item / pictures))), "{batch:?}");
                }
            }
        }
    }

    #[test]
    fn devices_take_turns() {
        for (passes, of) in [(2, 2), (3, 2), (3, 3)] {
            let mut items = Vec::new();
            for number in 0..of {
                let own = Batch { turn: Turn { number, of }, ..batch(passes, 2) };
                assert!(own.all().iter().all(|batch| batch.at_once.is_some()), "{own:?}");
                let own = Batch { at_once: Some(1), ..own };
                let parts = own.parts();
                assert_eq!((parts.len(), own.sharing().len()), (own.parts_each_step(), own.parts_each_step() / 2));
                items.extend(parts.into_iter().flat_map(|part| part.items));
            }
            items.sort_unstable();
            assert!(items.into_iter().eq(0..2 * passes), "{passes} passes on {of}");
        }
        let last = Batch { at_once: Some(1), turn: Turn { number: 1, of: 2 }, ..batch(2, 1) };
        assert_eq!(last.runs(Runs::of_steps(6)), Runs::of_steps(6));
        assert_eq!((last.conditions(6), last.to_string()), (6, "pass 2 of 2".to_owned()));
        let both = Batch { at_once: Some(1), turn: Turn { number: 0, of: 2 }, ..batch(3, 2) };
        assert_eq!(both.to_string(), "passes 1 and 3 of 3, one after the other, 1 of 2 pictures at a time");
        const LENGTH: Symbol = Symbol::new("length");
        let dims = Dims::new().with(LENGTH, 9).with_in_pass(0, LENGTH, 7).with_in_pass(1, LENGTH, 8);
        let lengths: Vec<_> = last.forms(&dims).iter().map(|form| form.find(LENGTH)).collect();
        assert_eq!((lengths, last.form(&dims, 1, 0)), (vec![Some(8)], 0));
    }

    #[test]
    fn passes_and_spans_have_forms() {
        const LENGTH: Symbol = Symbol::new("length");
        const ACTIVE: Symbol = Symbol::new("active");
        let span = |steps, active| Span { steps, sizes: vec![(ACTIVE, active)] };
        let dims = Dims::new().with(Symbol::PASSES, 2).with(Symbol::BATCH, 6).with(LENGTH, 9);
        let dims = dims.with_in_pass(0, LENGTH, 7).with_in_pass(1, LENGTH, 8);
        let found = |batch: Batch, dims: &Dims| {
            batch.forms(dims).iter().map(|form| [LENGTH, ACTIVE].map(|symbol| form.find(symbol))).collect::<Vec<_>>()
        };
        let (whole, apart) = (Batch::of(&dims), Batch { at_once: Some(3), ..Batch::of(&dims) });
        assert_eq!(found(whole, &dims), [[Some(9), None]]);
        assert_eq!(found(apart, &dims), [[Some(7), None], [Some(8), None]]);
        let spans = dims.clone().with_spans(vec![span(2, 1), span(3, 0)]);
        assert_eq!(found(whole, &spans), [[Some(9), Some(1)], [Some(9), Some(0)]]);
        let both = [[Some(7), Some(1)], [Some(7), Some(0)], [Some(8), Some(1)], [Some(8), Some(0)]];
        assert_eq!(found(apart, &spans), both);
        assert_eq!([0, 1, 2, 4].map(|step| apart.form(&spans, 1, step)), [2, 2, 3, 3]);
        assert_eq!([0, 4].map(|step| whole.form(&spans, 1, step)), [0, 1]);
        assert_eq!(apart.form(&dims, 1, 4), 1);
    }

    struct Nothing;

    impl Block for Nothing {
        fn build(&self, _: &Build<'_>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stage_may_run_in_one_pass_alone() {
        const RUNS: Symbol = Symbol::new("runs");
        let mut model = Model::new();
        model.stage("always", Cadence::Step, |_| Ok(Nothing)).unwrap();
        model.stage("at times", Cadence::Step, |_| Ok(Nothing)).unwrap();
        model.last_runs_if(RUNS);
        let span = |steps, runs| Span { steps, sizes: vec![(RUNS, runs)] };
        let dims = Dims::new().with(Symbol::PASSES, 2).with(Symbol::BATCH, 4).with(Symbol::CONTROLLED, 2);
        let dims = dims.with_spans(vec![span(2, 1), span(1, 0)]).with_in_pass(1, RUNS, 0);
        let (whole, apart) = (Batch::of(&dims), Batch { at_once: Some(1), ..Batch::of(&dims) });
        let runs = Runs::of_steps(3);
        let (both, one) = (|times| (vec![0, 1], times), |times| (vec![0], times));
        assert_eq!(whole.order(&model, &dims, runs), [(vec![], 1), both(2), one(1)]);
        let expected = [(vec![], 2), both(2), one(2), both(2), one(2), one(4)];
        assert_eq!(apart.order(&model, &dims, runs), expected);
        assert_eq!([whole, apart].map(|batch| batch.idle([1, 4])), [1, 8]);
        assert_eq!(apart.dims(&dims).find(Symbol::CONTROLLED), Some(1));
    }

    #[test]
    fn films_come_one_after_the_other() {
        let mut model = Model::new();
        model.stage("first", Cadence::Request, |_| Ok(Nothing)).unwrap();
        model.stage("others", Cadence::Step, |_| Ok(Nothing)).unwrap();
        let runs = Runs::of_films(2, 5).and_request(3);
        let (first, others) = (|times| (vec![0], times), |times| (vec![1], times));
        let expected = [first(1), others(5), first(1), others(5), first(3), others(0)];
        assert_eq!(Batch::default().order(&model, &Dims::new(), runs), expected);
    }

    #[test]
    fn a_part_has_the_conditions_of_its_pass() {
        let all = batch(3, 5);
        let dims = Dims::new().with(Symbol::PASSES, 3).with(Symbol::BATCH, 15).with(Symbol::CONDITIONS, 18);
        let two = Batch { at_once: Some(2), ..all };
        let found = [Symbol::PASSES, Symbol::BATCH, Symbol::CONDITIONS].map(|symbol| two.dims(&dims).get(symbol).ok());
        assert_eq!(found, [Some(1), Some(2), Some(6)]);
        assert_eq!(all.dims(&dims), dims);
        assert_eq!([1, 2, 9].map(|evaluations| two.conditions(evaluations)), [2, 2, 9]);
        assert_eq!(Batch { at_once: Some(1), ..batch(1, 4) }.conditions(1), 1);
        assert_eq!(two.runs(Runs::of_steps(6)), Runs { request: 3, ..Runs::of_steps(54) });
        assert_eq!(two.to_string(), "3 passes, one after the other, 2 of 5 pictures at a time");
        assert_eq!(Batch { at_once: Some(5), ..all }.to_string(), "3 passes, one after the other");
        assert_eq!(Batch { at_once: Some(1), ..batch(1, 4) }.to_string(), "1 of 4 pictures at a time");
    }
}
