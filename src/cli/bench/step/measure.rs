//! Stages, and their products and attentions alone, timed in turn.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pinhole::Result;
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Alone, Arena, Backend, Device, Heavy, Ledger, Operands};
use pinhole::stage::Cadence;

use crate::cli::bench::denoiser::Denoiser;
use crate::cli::bench::matmul::Multiplier;

/// Steps in one way.
pub(super) struct Measured {
    pub(super) by: Multiplier,
    pub(super) stages: Vec<StageTimes>,
    /// Seconds of each kind of operation in one step, where they were asked for.
    pub(super) operations: BTreeMap<String, OperationTimes>,
}

/// One stage, round by round.
pub(super) struct StageTimes {
    pub(super) name: String,
    pub(super) seconds: Vec<f64>,
    pub(super) products: Work,
    pub(super) attentions: Work,
}

/// Some operations of a stage alone, round by round; nothing where it has none.
#[derive(Default)]
pub(super) struct Work {
    pub(super) seconds: Vec<f64>,
    pub(super) operations: u64,
    pub(super) weight_bytes: u64,
}

/// All operations of one kind.
#[derive(Clone, Copy, Default)]
pub(super) struct OperationTimes {
    pub(super) count: usize,
    pub(super) time: Duration,
}

/// Everything that one way is measured with.
struct Way<'m> {
    session: Session<'m>,
    /// By stage, and kind.
    alone: Vec<[Option<Alone>; 2]>,
    arena: Arena,
    measured: Measured,
}

/// Runs one step that is not counted, and `steps` that are, in each of the ways of `by` in turn. `round` is called after each.
pub(super) fn measure(
    denoiser: &Denoiser,
    by: &[Multiplier],
    steps: usize,
    operations: bool,
    round: impl Fn(),
) -> Result<Vec<Measured>> {
    let device = Device::cpu()?;
    let (model, ledger) = (denoiser.model()?, Ledger::new());
    let mut backend = denoiser.backend(device)?;
    let weights = DeviceWeights::load(model, denoiser.bound()?, device, &ledger)?;
    // Shared by all graphs: they run one after another.
    let mut operands = Operands::new(&ledger, number);
    let way = |by: &Multiplier| Way::new(denoiser, *by, &weights, &mut operands, &mut backend, &ledger);
    let mut ways = by.iter().map(way).collect::<Result<Vec<_>>>()?;
    for counted in std::iter::once(false).chain(std::iter::repeat_n(true, steps)) {
        for way in &mut ways {
            denoiser.fill_step(&mut way.session)?;
            way.step(denoiser, &mut backend, counted)?;
        }
        round();
    }
    for way in ways.iter_mut().filter(|_| operations) {
        denoiser.fill_step(&mut way.session)?;
        way.operations(denoiser, &mut backend)?;
    }
    Ok(ways.into_iter().map(|way| way.measured).collect())
}

impl<'m> Way<'m> {
    fn new(
        denoiser: &'m Denoiser,
        by: Multiplier,
        weights: &DeviceWeights,
        operands: &mut Operands,
        backend: &mut Backend,
        ledger: &Ledger,
    ) -> Result<Way<'m>> {
        let model = denoiser.model()?;
        backend.set_kernel(by.kernel());
        let mut session = Session::new(model, weights, &denoiser.dims()?, backend, ledger)?;
        denoiser.fill(&mut session)?;
        session.run(backend, Cadence::Request, |_, _| denoiser.cancel().check())?;
        let mut alone = Vec::new();
        let mut stages = Vec::new();
        for stage in model.at(Cadence::Step) {
            let graph = &session.graphs()[stage];
            let [products, attentions] = [Heavy::Products, Heavy::Attentions].map(|what| graph.alone(what, operands));
            let both = [products?, attentions?];
            let [products, attentions] = [0, 1].map(|i: usize| both[i].as_ref().map(Work::of).unwrap_or_default());
            let name = model.stages()[stage].name.clone();
            stages.push(StageTimes { name, seconds: Vec::new(), products, attentions });
            alone.push(both);
        }
        let mut arena = Arena::new(backend.device(), ledger)?;
        let graphs: Vec<_> = alone.iter().flatten().flatten().map(|alone| &alone.graph).collect();
        arena.assign(&graphs)?;
        backend.reserve(&graphs, &mut arena)?;
        Ok(Way { session, alone, arena, measured: Measured { by, stages, operations: BTreeMap::new() } })
    }

    /// Computes every stage, and after each its operations alone.
    fn step(&mut self, denoiser: &Denoiser, backend: &mut Backend, counted: bool) -> Result<()> {
        let Way { session, alone, arena, measured } = self;
        let stages = denoiser.model()?.at(Cadence::Step).zip(&mut measured.stages).zip(alone);
        for ((stage, times), alone) in stages {
            let start = Instant::now();
            session.run_stage(backend, stage)?;
            let seconds = start.elapsed().as_secs_f64();
            if counted {
                times.seconds.push(seconds);
            }
            for (alone, work) in alone.iter().zip([&mut times.products, &mut times.attentions]) {
                let Some(alone) = alone else { continue };
                let start = Instant::now();
                backend.compute(&alone.graph, arena)?;
                if counted {
                    work.seconds.push(start.elapsed().as_secs_f64());
                }
            }
        }
        Ok(())
    }

    /// Times the operations of one more step.
    fn operations(&mut self, denoiser: &Denoiser, backend: &mut Backend) -> Result<()> {
        for stage in denoiser.model()?.at(Cadence::Step) {
            for operation in self.session.time_operations(backend, stage)? {
                let all = self.measured.operations.entry(operation.name).or_default();
                *all = OperationTimes { count: all.count + 1, time: all.time + operation.time };
            }
        }
        Ok(())
    }
}

impl Work {
    fn of(alone: &Alone) -> Work {
        Work { seconds: Vec::new(), operations: alone.operations, weight_bytes: alone.weight_bytes }
    }
}

/// Number `i` of a sequence without pattern, in -1 to 1 (Weyl's, with the golden ratio).
fn number(i: usize) -> f32 {
    ((i as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0) as f32
}
