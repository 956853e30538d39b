//! How many pictures ControlNets follow, and in which steps they run: sizes that the stages of each
//! [run if](crate::stage::Stage::runs_if) they are not 0.

use crate::stage::Symbol;

/// Whether a ControlNet runs in a step, for each of them.
const RUNS: [Symbol; 8] = [
    Symbol::new("runs of ControlNet 0"),
    Symbol::new("runs of ControlNet 1"),
    Symbol::new("runs of ControlNet 2"),
    Symbol::new("runs of ControlNet 3"),
    Symbol::new("runs of ControlNet 4"),
    Symbol::new("runs of ControlNet 5"),
    Symbol::new("runs of ControlNet 6"),
    Symbol::new("runs of ControlNet 7"),
];

/// Whether any of them does.
pub(super) const ANY_RUNS: Symbol = Symbol::new("runs of any ControlNet");

/// The sizes of steps in which those ControlNets run for which `runs` has a 1, and not those for which it has a 0.
pub fn control_runs(runs: impl IntoIterator<Item = usize>) -> Vec<(Symbol, usize)> {
    let mut sizes: Vec<(Symbol, usize)> = RUNS.into_iter().zip(runs).collect();
    let any = sizes.iter().map(|(_, runs)| *runs).max().unwrap_or(0);
    sizes.push((ANY_RUNS, any));
    sizes
}

/// How many pictures a ControlNet follows, for each of them.
const PICTURES: [Symbol; 8] = [
    Symbol::new("pictures of ControlNet 0"),
    Symbol::new("pictures of ControlNet 1"),
    Symbol::new("pictures of ControlNet 2"),
    Symbol::new("pictures of ControlNet 3"),
    Symbol::new("pictures of ControlNet 4"),
    Symbol::new("pictures of ControlNet 5"),
    Symbol::new("pictures of ControlNet 6"),
    Symbol::new("pictures of ControlNet 7"),
];

/// How many pictures ControlNet number `i` follows.
pub fn pictures_of(i: usize) -> Option<Symbol> {
    PICTURES.get(i).copied()
}

/// Where ControlNet number `i` does not run, this is 0.
pub fn runs_of(i: usize) -> Option<Symbol> {
    RUNS.get(i).copied()
}
