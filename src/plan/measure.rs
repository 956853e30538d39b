//! What a model takes on a device, by asking: its graphs are built at the request's size with no memory behind them.
//! Nothing is allocated on the device, and no weight is read.

use std::sync::Arc;

use pinhole_quant::DType;

use super::{Batch, Component, Phase, Runs, StageBytes, Turn, Variant, Work};
use super::{DryRun, StripRun, Way, exchange, layout};
use crate::Result;
use crate::bind::Bound;
use crate::ggml::{Backend, Buffer, Device, DeviceKind};
use crate::stage::{Cadence, Dims, Model, Pieces, TokenShare};
use crate::weights::WeightId;

/// Whether host memory is not the memory of `device`.
pub(crate) fn maps_on_host(device: Device) -> bool {
    device.kind() == DeviceKind::Discrete
}

/// One component of a request: what is measured, and what a session is opened from.
#[derive(Clone)]
pub struct Subject<'a> {
    /// What it is called in plans.
    pub name: &'static str,
    /// The phase in which it runs.
    pub phase: Phase,
    /// Its stages.
    pub model: &'a Model,
    /// Where its weights come from.
    pub bound: &'a Bound,
    /// The sizes of the request.
    pub dims: Dims,
    /// How often its stages run.
    pub runs: Runs,
}

impl Subject<'_> {
    /// What it takes on the device of `backend`.
    ///
    /// # Errors
    /// [`Error::Graph`](crate::Error::Graph) where a stage cannot be built at this size.
    pub fn measure(&self, backend: &Backend) -> Result<Component> {
        self.measure_share(backend, Turn::ALL, TokenShare::ALL)
    }

    /// The same of those guidance passes alone that the device has in its `turn`, and of its `share` of the tokens.
    ///
    /// # Errors
    /// As [`measure`](Subject::measure).
    pub fn measure_share(&self, backend: &Backend, turn: Turn, share: TokenShare) -> Result<Component> {
        let Subject { name, phase, model, bound, ref dims, runs } = *self;
        let device = backend.device();
        let layouts = layout::stages(model, bound, device)?;
        let manifest = model.manifest();
        let dtypes: Vec<_> =
            manifest.iter().map(|(id, weight)| layout::wanted(weight, bound.dtype(id), device)).collect();
        let (mut variants, mut work): (Vec<Variant>, Option<Work>) = (Vec::new(), None);
        let all = Batch { turn, ..Batch::of(dims) };
        let batches = all.all();
        for &batch in &batches {
            let (found, arithmetic) =
                self.variants((batch, batches.last() == Some(&batch)), share, &dtypes, backend)?;
            work = work.or(Some(Work { arithmetic, ..Work::default() }));
            for variant in found {
                if variants.iter().all(|known| variant.bytes() < known.bytes() || variant.host < known.host) {
                    variants.push(variant);
                }
            }
        }
        let idle = self.idle_steps(all);
        let stages =
            model.stages().iter().zip(layouts).zip(idle).map(|((stage, layout), [idle, idle_apart])| StageBytes {
                name: stage.name.clone(),
                cadence: stage.cadence,
                weights: layout.bytes,
                mapped: layout.mapped_bytes,
                file: in_file(bound, &stage.weights),
                // A ring goes round in one order, which a stage between skipped ones would break.
                stays: layout.shared || (model.can_skip() && stage.cadence == Cadence::Step),
                idle,
                idle_apart,
            });
        let (stages, own) = (stages.collect(), Vec::new());
        let work = work.unwrap_or_default();
        Ok(Component { name, phase, stages, variants, runs, beside: 0, company: 0, own, share, work })
    }

    /// What each of so many devices that are like that of `backend` has to do in a step, which have the tokens among them, of the guidance
    /// passes in one `turn`.
    ///
    /// # Errors
    /// As [`measure`](Subject::measure).
    pub fn works(&self, backend: &Backend, turn: Turn, devices: usize) -> Result<Vec<Work>> {
        let all = Batch { turn, ..Batch::of(&self.dims) };
        let batch = all.all().first().copied().unwrap_or(all);
        let (mut runs, forms) = (Vec::with_capacity(devices), batch.forms(&self.dims));
        let dtype = |id: WeightId| {
            let weight = self.model.manifest().get(id);
            Some(layout::wanted(weight, self.bound.dtype(id), backend.device()))
        };
        for number in 0..devices {
            let share = TokenShare { number, of: devices };
            // Guidance passes differ little.
            let form = forms.get(..1).unwrap_or_default();
            runs.push(DryRun::of_forms(self.model, dtype, form, Pieces { share, ..Pieces::WHOLE }, backend)?);
        }
        exchange::works(self.model, &batch.dims(&self.dims), batch.parts_each_step(), &runs)
    }

    /// What is known of its stages on the device of `backend`, each by itself.
    ///
    /// # Errors
    /// As [`measure`](Subject::measure).
    pub fn survey(&self, backend: &Backend) -> Result<Survey<'_>> {
        let whole = self.measure(backend)?;
        let (model, device, mut runs) = (self.model, backend.device(), Vec::new());
        for variant in &whole.variants {
            let dtype = |id| Some(layout::wanted(model.manifest().get(id), self.bound.dtype(id), device));
            let forms = variant.batch.forms(&self.dims);
            runs.push(match variant.way {
                Way::Strips(_) | Way::Bands { .. } => None,
                way => Some(DryRun::of_forms(model, dtype, &forms, way.pieces(), backend)?),
            });
        }
        let is_shared = layout::stages(model, self.bound, device)?.iter().any(|layout| layout.shared);
        Ok(Survey { subject: self, whole, runs, device, is_shared })
    }

    /// The turns in which at most so many `devices` compute its guidance passes: one, if there is a single pass.
    pub fn turns(&self, devices: usize) -> Vec<Turn> {
        let of = Batch::of(&self.dims).passes.min(devices).max(1);
        (0..of).map(|number| Turn { number, of }).collect()
    }

    /// In how many steps each stage does not run: if all of `batch` is computed at once; and in all of its passes together, if these
    /// come one after the other.
    fn idle_steps(&self, batch: Batch) -> Vec<[usize; 2]> {
        let mut all = vec![[0; 2]; self.model.stages().len()];
        let by_itself = batch.own_passes().map(|pass| (1, self.dims.in_pass(Some(pass))));
        for (at, dims) in std::iter::once((0, self.dims.in_pass(None))).chain(by_itself) {
            for (form, steps) in dims.in_spans().iter().zip(dims.steps_of_spans(self.runs.steps)) {
                for (idle, is_idle) in all.iter_mut().zip(self.model.idle(form)) {
                    idle[at] += if is_idle { steps } else { 0 };
                }
            }
        }
        all
    }

    /// The ways to compute its `share` of the tokens, which is what is computed at once of `batch`, with weights of the formats `dtypes`; and
    /// how many multiplications and additions that is in a step. Parts of heads only of the `leanest` batch: a smaller batch takes less time.
    fn variants(
        &self,
        (batch, leanest): (Batch, bool),
        share: TokenShare,
        dtypes: &[DType],
        backend: &Backend,
    ) -> Result<(Vec<Variant>, u64)> {
        let whole = DryRun::of_forms(
            self.model,
            |id: WeightId| dtypes.get(id.index()).copied(),
            &batch.forms(&self.dims),
            Pieces { share, ..Pieces::WHOLE },
            backend,
        )?;
        let mut variants = vec![self.in_tokens((Way::Whole, batch), &whole, backend.device())?];
        let (tokens, heads) = whole.pieces();
        // What is gathered on the way has room for all heads.
        let heads = heads && leanest && share == TokenShare::ALL;
        for way in Way::all(self.model, (tokens, heads)).into_iter().skip(1) {
            variants.push(self.variant((way, batch), share, dtypes, backend)?);
        }
        let arithmetic = whole.arithmetic(self.model).saturating_mul(batch.parts_each_step() as u64);
        Ok((variants, arithmetic))
    }

    /// What it takes to compute it that `way`, with weights of the formats `dtypes`.
    fn variant(
        &self,
        (way, batch): (Way, Batch),
        share: TokenShare,
        dtypes: &[DType],
        backend: &Backend,
    ) -> Result<Variant> {
        let Subject { model, ref dims, .. } = *self;
        let device = backend.device();
        let dtype = |id: WeightId| dtypes.get(id.index()).copied();
        if let Some(strips) = way.strips() {
            let run = StripRun::new(model, dtype, &batch.dims(dims), strips, backend)?;
            let (exchanged, maps) = (Buffer::allocated(device, run.exchanged), run.maps.total);
            // Where the device computes in host memory, maps there are on the device.
            let (ports, host) = if maps_on_host(device) { (exchanged, maps) } else { (exchanged + maps, 0) };
            // What is exchanged lies on the host once more.
            let host = host.saturating_add(run.exchanged);
            let graphs = run.stages.iter().flatten().map(|pass| pass.shapes.len()).sum();
            return Ok(Variant { way, batch, ports, host, activations: run.activations, scratch: run.scratch, graphs });
        }
        let pieces = Pieces { share, ..way.pieces() };
        let run = DryRun::of_forms(model, dtype, &batch.forms(dims), pieces, backend)?;
        self.in_tokens((way, batch), &run, device)
    }

    /// What it takes to compute it `way`, which is not in strips, as `run` found.
    fn in_tokens(&self, (way, batch): (Way, Batch), run: &DryRun, device: Device) -> Result<Variant> {
        let dims = batch.dims(&self.dims);
        let gathered = run.gathered();
        let ports = Buffer::allocated(device, run.pack_ports(self.model, &dims, device)?.total + gathered);
        let (activations, scratch) = (run.activations(), run.scratch());
        let each = if gathered > 0 { 2 } else { 1 };
        let graphs = (each * self.model.stages().len()).saturating_mul(batch.forms(&self.dims).len());
        // What is ready for the passes that have to wait, and what is kept of parts.
        let mut host = 0usize;
        for (count, ports) in
            [(batch.sharing().len(), run.of_a_pass(self.model)), (batch.parts_each_step(), run.of_a_part(self.model))]
        {
            for port in if count > 1 { &ports[..] } else { &[] } {
                let spec = &self.model.ports()[port.index()];
                let bytes = spec.shape(&dims)?.bytes(spec.dtype).unwrap_or(usize::MAX);
                host = host.saturating_add(bytes.saturating_mul(count));
            }
        }
        Ok(Variant { way, batch, ports, host, activations, scratch, graphs })
    }
}

/// What is known of the stages of a subject on a device, each by itself.
pub struct Survey<'a> {
    subject: &'a Subject<'a>,
    whole: Component,
    /// By variant; `None` for one whose stages cannot be divided.
    runs: Vec<Option<DryRun>>,
    device: Device,
    /// Whether several stages use one weight.
    is_shared: bool,
}

impl Survey<'_> {
    /// How much of a batch can be computed at once, most first.
    pub fn batches(&self) -> Vec<Batch> {
        let mut all: Vec<Batch> = self.whole.variants.iter().map(|variant| variant.batch).collect();
        all.dedup();
        all
    }

    /// What the device takes that computes some `own` stages, so much of a `batch` at once; `None` if stages cannot be divided.
    ///
    /// # Errors
    /// As [`measure`](Subject::measure).
    pub fn of_stages(&self, own: &[bool], batch: Batch) -> Result<Option<Component>> {
        if self.is_shared {
            return Ok(None);
        }
        let mut component = Component { variants: Vec::new(), own: own.to_vec(), ..self.whole.clone() };
        for (stage, own) in component.stages.iter_mut().zip(own) {
            if !own {
                (stage.weights, stage.mapped, stage.file) = (0, 0, 0);
            }
        }
        for (variant, run) in self.whole.variants.iter().zip(&self.runs) {
            let Some(run) = run.as_ref().filter(|_| variant.batch == batch) else { continue };
            let run = run.clone().of_stages(own);
            component.variants.push(self.subject.in_tokens((variant.way, variant.batch), &run, self.device)?);
            let arithmetic = run.arithmetic(self.subject.model).saturating_mul(variant.batch.parts_each_step() as u64);
            component.work = Work { arithmetic, ..Work::default() };
        }
        Ok(Some(component).filter(|component| !component.variants.is_empty()))
    }

    /// All of its weights, in bytes, by stage.
    pub fn weights(&self) -> Vec<usize> {
        self.whole.stages.iter().map(|stage| stage.weights.max(stage.mapped)).collect()
    }

    /// What it takes beside weights, at least.
    pub fn beside_weights(&self) -> usize {
        self.whole.variants.iter().map(Variant::bytes).min().unwrap_or(0)
    }
}

/// Bytes of files that hold `weights`, each counted once: the planes of a kernel lie between each other.
fn in_file(bound: &Bound, weights: &[WeightId]) -> usize {
    let mut spans = Vec::new();
    for piece in weights.iter().flat_map(|&id| bound.pieces(id)) {
        let (map, span) = piece.span();
        spans.push((Arc::as_ptr(map).addr(), span.start, span.end));
    }
    spans.sort_unstable();
    let (mut bytes, mut file, mut counted) = (0, 0, 0);
    for (of, start, end) in spans {
        if of != file {
            (file, counted) = (of, 0);
        }
        bytes += end.saturating_sub(start.max(counted));
        counted = counted.max(end);
    }
    bytes
}
