//! How often stages run.

use crate::stage::Cadence;

/// How often the stages of a component run in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Those of [`Cadence::Request`].
    pub request: usize,
    /// Those of steps: at most, if steps may skip some.
    pub steps: usize,
    /// How many steps follow each run of those of a request, as long as there are any, before these run again; `None` if all steps
    /// follow all of them.
    pub steps_behind_each: Option<usize>,
}

impl Runs {
    /// Those of a request once, and so many `steps`.
    pub const fn of_steps(steps: usize) -> Runs {
        Runs { request: 1, steps, steps_behind_each: None }
    }

    /// Those of a request so often, and no steps.
    pub const fn of_request(request: usize) -> Runs {
        Runs { request, steps: 0, steps_behind_each: None }
    }

    /// For each of so many `films`, those of a request for its beginning, and so many `steps` for what follows.
    pub const fn of_films(films: usize, steps: usize) -> Runs {
        Runs { request: films, steps: films.saturating_mul(steps), steps_behind_each: Some(steps) }
    }

    /// The same, and those of a request so often once more, behind everything else.
    #[must_use]
    pub const fn and_request(self, times: usize) -> Runs {
        Runs { request: self.request.saturating_add(times), ..self }
    }

    /// Of `cadence`.
    pub fn of(self, cadence: Cadence) -> usize {
        match cadence {
            Cadence::Request => self.request,
            Cadence::Step | Cadence::Skippable | Cadence::Instead => self.steps,
        }
    }

    /// What runs one after the other: in each round those of a request, and then steps.
    pub(super) fn rounds(self) -> Vec<Runs> {
        let steps_each = self.steps_behind_each.unwrap_or(0);
        let full = self.steps.checked_div(steps_each).unwrap_or(0).min(self.request);
        let mut rounds = vec![Runs::of_steps(steps_each); full];
        let (request, steps) = (self.request - full, self.steps - full * steps_each);
        if rounds.is_empty() || request > 0 || steps > 0 {
            rounds.push(Runs { request, steps, steps_behind_each: None });
        }
        rounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_each_film_or_all() {
        let rounds = |runs: Runs| runs.rounds().iter().map(|round| [round.request, round.steps]).collect::<Vec<_>>();
        assert_eq!(rounds(Runs { request: 3, ..Runs::of_steps(8) }), [[3, 8]]);
        assert_eq!(rounds(Runs::of_request(2)), [[2, 0]]);
        assert_eq!(rounds(Runs::of_films(2, 5)), [[1, 5], [1, 5]]);
        assert_eq!(rounds(Runs::of_films(2, 5).and_request(3)), [[1, 5], [1, 5], [3, 0]]);
        assert_eq!(rounds(Runs::of_films(4, 0)), [[4, 0]]);
        assert_eq!(rounds(Runs::of_request(0)), [[0, 0]]);
        for runs in [Runs::of_films(3, 7).and_request(2), Runs { steps: 9, ..Runs::of_films(3, 2) }] {
            let totals = runs.rounds().iter().fold([0; 2], |[r, s], round| [r + round.request, s + round.steps]);
            assert_eq!(totals, [runs.request, runs.steps]);
        }
    }
}
