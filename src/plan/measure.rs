//! What a model takes on a device, by asking: its graphs are built at the request's size with no memory behind them.
//! Nothing is allocated on the device, and no weight is read.

use super::budget::{Component, Runs, StageBytes, Variant};
use super::{DryRun, layout};
use crate::Result;
use crate::bind::Bound;
use crate::ggml::{Backend, Buffer};
use crate::stage::{Dims, Model};
use crate::weights::WeightId;

/// One component of a request, to be measured.
pub struct Subject<'a> {
    /// What it is called in plans.
    pub name: &'static str,
    /// The phase in which it runs.
    pub phase: &'static str,
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
        let Subject { name, phase, model, bound, ref dims, runs } = *self;
        let device = backend.device();
        let layouts = layout::stages(model, bound, device)?;
        let manifest = model.manifest();
        let dtypes: Vec<_> = manifest.iter().map(|(id, weight)| layout::wanted(weight, bound.dtype(id))).collect();
        let dry_run = DryRun::new(model, |id| dtypes.get(id.index()).copied(), dims, backend)?;
        let whole = Variant {
            name: "whole".into(),
            ports: Buffer::allocated(device, dry_run.pack_ports(model, dims, device)?.total),
            activations: dry_run.activations(),
            scratch: dry_run.scratch(),
        };
        let in_file = |id: &WeightId| bound.pieces(*id).iter().map(|piece| piece.bytes().len()).sum::<usize>();
        let stages = model.stages().iter().zip(layouts).map(|(stage, layout)| StageBytes {
            name: stage.name.clone(),
            cadence: stage.cadence,
            weights: layout.bytes,
            mapped: layout.mapped_bytes,
            file: stage.weights.iter().map(in_file).sum(),
            shared: layout.shared,
        });
        Ok(Component { name, phase, stages: stages.collect(), variants: vec![whole], runs })
    }
}
