//! What components take, as it was measured before: the graphs of a component need not be built again for another picture of the same
//! size.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ptr;

use crate::Result;
use crate::ggml::{AttentionMode, Backend};
use crate::plan::measure::Subject;
use crate::plan::{Component, Phase, Runs, TokenShare, Turn, Work};
use crate::stage::Dims;

/// How many are kept: those of a few sizes. Each has some hundred bytes for every stage.
const MOST: usize = 32;

/// The components that were measured last on one backend, the latest last. Their models live as long as this: an address of one is never that
/// of another.
#[derive(Default)]
pub(super) struct Measurements {
    components: Known<Component>,
    works: Known<Vec<Work>>,
}

/// What was asked last, and what was found.
type Known<T> = RefCell<VecDeque<(Asked, T)>>;

/// All that a measurement depends on, beside the backend.
#[derive(PartialEq)]
struct Asked {
    name: &'static str,
    phase: Phase,
    /// Where its model lies, and what the model's weights are bound to.
    addresses: [usize; 2],
    dims: Dims,
    runs: Runs,
    turn: Turn,
    share: TokenShare,
    attention: AttentionMode,
}

impl Measurements {
    /// What `subject` takes on `backend`, which computes its passes in its `turn` and its `share` of the tokens: as it was found before, or
    /// else as it is found now.
    ///
    /// # Errors
    /// As [`Subject::measure_share`].
    pub(super) fn measure(
        &self,
        subject: &Subject<'_>,
        (turn, share): (Turn, TokenShare),
        backend: &Backend,
    ) -> Result<Component> {
        let asked = Asked::new(subject, (turn, share), backend);
        recall(&self.components, asked, || subject.measure_share(backend, turn, share))
    }

    /// What each of so many `devices` like that of `backend` has to do in a step of `subject`: see [`Subject::works`].
    ///
    /// # Errors
    /// As [`Subject::works`].
    pub(super) fn works(
        &self,
        subject: &Subject<'_>,
        (turn, devices): (Turn, usize),
        backend: &Backend,
    ) -> Result<Vec<Work>> {
        let asked = Asked::new(subject, (turn, TokenShare { number: 0, of: devices }), backend);
        recall(&self.works, asked, || subject.works(backend, turn, devices))
    }
}

impl Asked {
    fn new(subject: &Subject<'_>, (turn, share): (Turn, TokenShare), backend: &Backend) -> Asked {
        let &Subject { name, phase, model, bound, ref dims, runs } = subject;
        let addresses = [ptr::from_ref(model).addr(), ptr::from_ref(bound).addr()];
        Asked { name, phase, addresses, dims: dims.clone(), runs, turn, share, attention: backend.attention() }
    }
}

/// What was `asked` before, or else what `find` finds now.
fn recall<T: Clone>(known: &Known<T>, asked: Asked, find: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut known = known.borrow_mut();
    if let Some(at) = known.iter().position(|(before, _)| *before == asked)
        && let Some(found) = known.remove(at)
    {
        let answer = found.1.clone();
        known.push_back(found);
        return Ok(answer);
    }
    let found = find()?;
    if known.len() >= MOST {
        known.pop_front();
    }
    known.push_back((asked, found.clone()));
    Ok(found)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::MOST;
    use crate::ggml::Device;
    use crate::pipeline::{Opened, Pipeline, Request, open};

    fn pipeline(model: &Arc<Opened>) -> Pipeline {
        Pipeline::new(Arc::clone(model), Device::best().unwrap()).unwrap()
    }

    #[test]
    fn what_is_measured_is_the_same_whatever_was_measured_before() {
        let model = Arc::new(open(&crate::builtin::mini().unwrap()).unwrap());
        let plain = Request { width: Some(64), height: Some(64), steps: Some(2), ..Request::new("a star") };
        let changed = [
            plain.clone(),
            Request { seed: 7, prompt: "another".into(), ..plain.clone() },
            Request { width: Some(128), ..plain.clone() },
            Request { height: Some(128), ..plain.clone() },
            Request { steps: Some(9), ..plain.clone() },
            Request { batch: 3, ..plain.clone() },
            Request { cfg_scale: Some(3.0), negative_prompt: Some("blue".into()), ..plain.clone() },
            Request { preview: Some(1), ..plain.clone() },
        ];
        let used = pipeline(&model);
        for _ in 0..2 {
            for request in &changed {
                let fresh = pipeline(&model);
                let settings = fresh.settings(request).unwrap();
                assert!(used.measure(&settings).unwrap() == fresh.measure(&settings).unwrap(), "{request:?}");
            }
        }
    }

    #[test]
    fn no_more_is_kept_than_a_few_sizes_have() {
        let pipeline = pipeline(&Arc::new(open(&crate::builtin::mini().unwrap()).unwrap()));
        for steps in 1..=MOST {
            let request = Request { steps: Some(steps), width: Some(64), height: Some(64), ..Request::new("") };
            pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
        }
        assert_eq!(pipeline.machine.first().measured.components.borrow().len(), MOST);
    }
}
