//! One request's memory and graphs: ports, activations, and a graph for every stage, all made once.

use std::sync::Arc;

use pinhole_quant::DType;

use super::DeviceWeights;
use super::pages::Pager;
use super::uploads::Uploads;
use crate::ggml::{Arena, Backend, Buffer, Graph, Ledger, Placed};
use crate::plan::{DryRun, STAGE_TENSORS};
use crate::stage::{Build, Cadence, Dims, Model, Port, Stage};
use crate::{Error, Result};

/// A model ready to run at one size.
pub struct Session<'m> {
    model: &'m Model,
    ports: Vec<Placed>,
    graphs: Vec<Graph>,
    arena: Arena,
    /// Where weights are still coming, or come in every step.
    uploads: Option<Arc<Uploads>>,
    /// Where weights are used in the file's map.
    pager: Option<Pager>,
}

impl<'m> Session<'m> {
    /// Makes ports, graphs and activations for requests of size `dims`. Nothing is allocated after this.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Graph`] where a stage cannot be built at this size.
    pub fn new(
        model: &'m Model,
        weights: &DeviceWeights,
        dims: &Dims,
        backend: &Backend,
        ledger: &Ledger,
    ) -> Result<Session<'m>> {
        let block =
            DryRun::new(model, |id| weights.dtype(id), dims, backend)?.pack_ports(model, dims, backend.device())?;
        let buffer = Buffer::allocate(backend.device(), block.total, ledger, "ports")?;
        let ports = model.ports().iter().zip(block.offsets);
        let ports = ports.map(|(spec, offset)| Placed::new(&buffer, offset, spec.dtype, spec.shape(dims)?));
        let ports = ports.collect::<Result<Vec<_>>>()?;
        let build = |stage: &Stage| {
            let graph = Graph::new(backend.device(), STAGE_TENSORS)?;
            let b = Build::new(&graph, dims, weights.places(), &ports);
            stage.block.build(&b)?;
            b.finish()?;
            Ok(graph)
        };
        let graphs = model.stages().iter().map(build).collect::<Result<Vec<_>>>()?;
        let mut arena = Arena::new(backend.device(), ledger)?;
        arena.assign(&graphs.iter().collect::<Vec<_>>())?;
        backend.reserve(&graphs, &mut arena)?;
        Ok(Session { model, ports, graphs, arena, uploads: weights.uploads().cloned(), pager: weights.pager() })
    }

    /// Fills an F32 port.
    ///
    /// # Errors
    /// [`Error::Graph`] where the length differs.
    pub fn set(&mut self, port: Port, values: &[f32]) -> Result<()> {
        let place = self.place(port, DType::F32)?;
        place.write(&values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// Fills an I32 port.
    ///
    /// # Errors
    /// [`Error::Graph`] where the length differs.
    pub fn set_indices(&mut self, port: Port, values: &[i32]) -> Result<()> {
        let place = self.place(port, DType::I32)?;
        place.write(&values.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// What an F32 port holds.
    ///
    /// # Errors
    /// [`Error::Graph`] for a port of another model or of indices.
    pub fn get(&self, port: Port) -> Result<Vec<f32>> {
        let place = self.place(port, DType::F32)?;
        let mut bytes = vec![0; place.bytes()];
        place.read(&mut bytes)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_ne_bytes(value)).collect())
    }

    fn place(&self, port: Port, dtype: DType) -> Result<&Placed> {
        let place = self.ports.get(port.index()).filter(|place| place.dtype() == dtype);
        place.ok_or_else(|| Error::graph("port", format!("{port:?} is no port of {dtype} of this model")))
    }

    /// Runs the stages of `cadence` in order. `after` hears of each that is done: how many, and of how many.
    ///
    /// # Errors
    /// [`Error::Cancelled`], or what the device says.
    pub fn run(
        &mut self,
        backend: &mut Backend,
        cadence: Cadence,
        mut after: impl FnMut(usize, usize) -> Result<()>,
    ) -> Result<()> {
        let range = self.model.at(cadence);
        let total = range.len();
        for (done, i) in range.clone().enumerate() {
            if let Some(pager) = &self.pager {
                pager.before(if i + 1 < range.end { i + 1 } else { range.start });
            }
            if let Some(uploads) = &self.uploads {
                uploads.acquire(i, backend.cancel())?;
                backend.compute(&self.graphs[i], &mut self.arena)?;
                uploads.release(i)?;
            } else {
                backend.compute(&self.graphs[i], &mut self.arena)?;
            }
            if let Some(pager) = &self.pager {
                pager.after(i);
            }
            after(done + 1, total)?;
        }
        Ok(())
    }
}
