//! One request's memory and graphs: ports, activations, and a graph for every stage, all made once.

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use pinhole_quant::DType;

use super::DeviceWeights;
use super::graphs::GraphWork;
use super::pages::{Pager, Pages};
use super::strips::StripWork;
use super::uploads::Uploads;
use crate::ggml::{Backend, Event, Graph, Ledger, OperationTime, Placed};
use crate::plan::{Rows, Way};
use crate::stage::{Cadence, Dims, Lifetime, Model, Part, Pieces, Port, TokenShare, Touched};
use crate::trace::Trace;
use crate::{Error, Result, reserve};

/// How many stages the host is ahead of the device at most: enough that the device never waits for it, and few enough that
/// a stop is heard soon.
pub(super) const AHEAD: usize = 2;

/// Bytes of a number in a port.
const NUMBER: usize = 4;

/// How many bytes of a port are on their way at once.
const PART: usize = 1 << 20;

/// A model ready to run at one size.
pub struct Session<'m> {
    pub(super) model: &'m Model,
    pub(super) work: Work,
    /// Where weights are still coming, or come in every step.
    pub(super) uploads: Option<Arc<Uploads>>,
    /// Where weights are used in the file's map.
    pub(super) pager: Option<Pager>,
    /// The pages of these weights, by stage.
    pub(super) in_place: Option<Arc<[Pages]>>,
    /// What keeps the host from running away, on a device that computes by itself.
    pub(super) ahead: Option<[Event; AHEAD]>,
    /// For each form, which stages do not run in its steps: here, or at all.
    idle: Vec<Vec<bool>>,
    /// The form that is computed.
    pub(super) form: usize,
    /// Where stages are recorded, if they are.
    pub(super) trace: Option<Trace>,
    /// Bytes that went through ports to the host and from there.
    exchanged: Cell<u64>,
    /// Ports that the host has filled since somebody asked for them.
    filled: Vec<Port>,
}

/// What stages are computed with.
pub(super) enum Work {
    Graphs(GraphWork),
    Strips(StripWork),
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
        Session::in_way(Way::Whole, model, weights, dims, backend, ledger)
    }

    /// As [`new`](Session::new), computed that `way`.
    ///
    /// # Errors
    /// As [`new`](Session::new); [`Error::Graph`] where a stage cannot be computed that way.
    pub fn in_way(
        way: Way,
        model: &'m Model,
        weights: &DeviceWeights,
        dims: &Dims,
        backend: &Backend,
        ledger: &Ledger,
    ) -> Result<Session<'m>> {
        let forms = std::slice::from_ref(dims);
        Session::in_forms((way, TokenShare::ALL), model, weights, forms, backend, ledger)
    }

    /// As [`in_way`](Session::in_way), for a share of the tokens, and for requests whose passes or steps are of several `forms`: sizes for
    /// which ports are equally large. It begins with the first; see [`choose`](Session::choose). Sessions that have some of the tokens
    /// run [together](super::Together).
    ///
    /// # Errors
    /// As [`in_way`](Session::in_way); [`Error::Graph`] if there is no form, or for a share of what is computed in strips.
    pub fn in_forms(
        (way, share): (Way, TokenShare),
        model: &'m Model,
        weights: &DeviceWeights,
        forms: &[Dims],
        backend: &Backend,
        ledger: &Ledger,
    ) -> Result<Session<'m>> {
        let work = match (way.strips(), forms) {
            (Some(strips), [dims]) if share == TokenShare::ALL => {
                Work::Strips(StripWork::new(model, weights, dims, strips, backend, ledger)?)
            }
            (Some(_), _) => return Err(Error::graph("session", "strips of several forms, or of some tokens")),
            (None, _) => {
                let pieces = Pieces { share, ..way.pieces() };
                Work::Graphs(GraphWork::new(model, weights, forms, pieces, backend, ledger)?)
            }
        };
        let mut idle: Vec<Vec<bool>> = forms.iter().map(|dims| model.idle(dims)).collect();
        for (stage, is_own) in weights.own().iter().enumerate().filter(|(_, is_own)| !**is_own) {
            idle.iter_mut().for_each(|of_form| of_form[stage] = !is_own);
        }
        let device = backend.device();
        let overlaps = !device.is_cpu() && device.features()?.overlaps();
        let ahead = overlaps.then(|| Ok::<_, Error>([Event::new(device)?, Event::new(device)?])).transpose()?;
        let (uploads, pager, in_place) = (weights.uploads().cloned(), weights.pager(), weights.in_place());
        let (trace, exchanged, filled) = (Trace::current(), Cell::new(0), Vec::new());
        Ok(Session { model, work, uploads, pager, in_place, ahead, idle, form: 0, trace, exchanged, filled })
    }

    /// What is computed from now on is of form number `form`.
    ///
    /// # Errors
    /// [`Error::Graph`] if there is none.
    pub fn choose(&mut self, form: usize) -> Result<()> {
        if form >= self.idle.len() {
            return Err(Error::graph("session", format!("form {form} of {}", self.idle.len())));
        }
        self.form = form;
        Ok(())
    }

    /// How many bands of rows there are, each a film of its own: one after the other is [chosen](Session::choose_band),
    /// cleared, and given all that is given to a film.
    pub fn bands(&self) -> usize {
        match &self.work {
            Work::Graphs(_) => 1,
            Work::Strips(work) => work.bands(),
        }
    }

    /// What is computed from now on is of band number `band`. It begins with the first. What is in its ports is undefined.
    ///
    /// # Errors
    /// [`Error::Graph`] if there is none.
    pub fn choose_band(&mut self, band: usize) -> Result<()> {
        match &mut self.work {
            Work::Strips(work) => work.choose_band(band),
            Work::Graphs(_) if band == 0 => Ok(()),
            Work::Graphs(_) => Err(Error::graph("session", format!("band {band} of what has none"))),
        }
    }

    /// Which rows `port`, a map, has in this band.
    ///
    /// # Errors
    /// [`Error::Graph`] for a port of another model.
    pub fn rows(&self, port: Port) -> Result<Range<usize>> {
        self.check(port, DType::F32)?;
        Ok(match &self.work {
            // A port that no stage of this device touches has no rows here.
            Work::Graphs(work) => 0..work.ports[port.index()].as_ref().map_or(0, |place| place.shape().dims()[1]),
            Work::Strips(work) => work.rows(port.index()),
        })
    }

    /// The stages of a request that run, or those of a step that skips nothing, in order.
    pub fn stages_at(&self, cadence: Cadence) -> Vec<usize> {
        let (stages, idle) = (self.model.stages(), &self.idle[self.form]);
        self.model.at(cadence).filter(|i| stages[*i].cadence != Cadence::Instead && !idle[*i]).collect()
    }

    /// The stages of `part` of a step that run, in order.
    pub fn stages_of(&self, part: Part) -> Vec<usize> {
        let stages = self.model.part(part).into_iter();
        stages.filter(|&stage| !self.idle[self.form][stage]).collect()
    }

    /// The model.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Whether a stage that is computed here touches `port`. What the host gives to other ports goes nowhere.
    pub fn has(&self, port: Port) -> bool {
        match &self.work {
            Work::Graphs(work) => work.ports.get(port.index()).is_some_and(Option::is_some),
            Work::Strips(_) => true,
        }
    }

    /// Whether a stage that is computed here writes `port`.
    pub fn writes(&self, port: Port) -> bool {
        match &self.work {
            Work::Graphs(work) => work.written.iter().flatten().any(|written| *written == port),
            Work::Strips(_) => true,
        }
    }

    /// Gives `other`, which computes other stages of the model at the same size, what its stages read of what `stages` have just written
    /// here. If it comes `before` these in a pass, that is only what it reads in the next.
    ///
    /// # Errors
    /// What the devices say.
    pub fn hand_over(&self, other: &Session<'_>, stages: &[usize], before: bool) -> Result<()> {
        let (Work::Graphs(own), Work::Graphs(others)) = (&self.work, &other.work) else { return Ok(()) };
        let (mut part, mut handed) = (Vec::new(), HashSet::new());
        for &port in stages.iter().filter_map(|&stage| own.written.get(stage)).flatten() {
            let [from, to] = [own, others].map(|work| work.ports[port.index()].as_ref());
            let (Some(from), Some(to), true) = (from, to, others.read[port.index()]) else { continue };
            let is_kept = self.model.ports()[port.index()].lifetime == Lifetime::Request;
            if !handed.insert(port) || (before && !is_kept && !others.inputs.contains(&port)) {
                continue;
            }
            self.count(from.bytes());
            other.count(to.bytes());
            if part.is_empty() {
                part = reserve::zeros("a port's numbers", PART)?;
            }
            for start in (0..from.bytes()).step_by(PART) {
                let part = &mut part[..PART.min(from.bytes() - start)];
                from.read_part(start, part)?;
                to.write_part(start, part)?;
            }
        }
        Ok(())
    }

    /// Fills an F32 port with zeros.
    ///
    /// # Errors
    /// [`Error::Graph`] for a port of another model or of indices.
    pub fn clear(&mut self, port: Port) -> Result<()> {
        self.check(port, DType::F32)?;
        self.filled.push(port);
        match &mut self.work {
            Work::Graphs(work) => {
                let Some(place) = &work.ports[port.index()] else { return Ok(()) };
                let zeros = reserve::zeros("a port's numbers", place.bytes().min(PART))?;
                for start in (0..place.bytes()).step_by(PART) {
                    place.write_part(start, &zeros[..PART.min(place.bytes() - start)])?;
                }
            }
            Work::Strips(work) => work.map_mut(port.index()).fill(0),
        }
        Ok(())
    }

    /// Fills an F32 port.
    ///
    /// # Errors
    /// [`Error::Graph`] where the length differs.
    pub fn set(&mut self, port: Port, values: &[f32]) -> Result<()> {
        self.fill(port, DType::F32, values, f32::to_ne_bytes)
    }

    /// Fills an I32 port.
    ///
    /// # Errors
    /// [`Error::Graph`] where the length differs.
    pub fn set_indices(&mut self, port: Port, values: &[i32]) -> Result<()> {
        self.fill(port, DType::I32, values, i32::to_ne_bytes)
    }

    /// What an F32 port holds.
    ///
    /// # Errors
    /// [`Error::Graph`] for a port of another model or of indices.
    pub fn get(&self, port: Port) -> Result<Vec<f32>> {
        self.check(port, DType::F32)?;
        let append = |values: &mut Vec<f32>, bytes: &[u8]| {
            values.extend(bytes.as_chunks().0.iter().map(|&value| f32::from_ne_bytes(value)));
        };
        let mut values;
        match &self.work {
            Work::Graphs(work) => {
                let place = work.ports[port.index()].as_ref();
                let place = place.ok_or_else(|| Error::graph("port", format!("{port:?} is on another device")))?;
                let bytes = place.bytes();
                values = reserve::room("a port's numbers", bytes / NUMBER)?;
                let mut part = reserve::zeros("a port's numbers", bytes.min(PART))?;
                for start in (0..bytes).step_by(PART) {
                    let part = &mut part[..PART.min(bytes - start)];
                    place.read_part(start, part)?;
                    append(&mut values, part);
                }
            }
            Work::Strips(work) => {
                let map = work.map(port.index());
                values = reserve::room("a port's numbers", map.len() / NUMBER)?;
                append(&mut values, map);
            }
        }
        self.count(NUMBER * values.len());
        Ok(values)
    }

    fn fill<T: Copy>(
        &mut self,
        port: Port,
        dtype: DType,
        values: &[T],
        bytes_of: impl Fn(T) -> [u8; NUMBER],
    ) -> Result<()> {
        self.check(port, dtype)?;
        let bytes = match &self.work {
            Work::Graphs(work) => match &work.ports[port.index()] {
                Some(place) => place.bytes(),
                None => return Ok(()),
            },
            Work::Strips(work) => work.map(port.index()).len(),
        };
        if NUMBER * values.len() != bytes {
            let message = format!("{} bytes given for a port of {bytes}", NUMBER * values.len());
            return Err(Error::graph("port", message));
        }
        self.count(bytes);
        self.filled.push(port);
        let put = |to: &mut [u8], values: &[T]| {
            to.as_chunks_mut().0.iter_mut().zip(values).for_each(|(to, &value)| *to = bytes_of(value));
        };
        match &mut self.work {
            Work::Graphs(work) => {
                let Some(place) = &work.ports[port.index()] else { return Ok(()) };
                let mut part = reserve::zeros("a port's numbers", bytes.min(PART))?;
                for (i, values) in values.chunks(PART / NUMBER).enumerate() {
                    let part = &mut part[..NUMBER * values.len()];
                    put(part, values);
                    place.write_part(i * PART, part)?;
                }
            }
            Work::Strips(work) => put(work.map_mut(port.index()), values),
        }
        Ok(())
    }

    /// Bytes of numbers that the host gave to ports and took from them so far.
    pub fn exchanged(&self) -> u64 {
        self.exchanged.get()
    }

    pub(super) fn count(&self, bytes: usize) {
        self.exchanged.set(self.exchanged.get() + bytes as u64);
    }

    fn check(&self, port: Port, dtype: DType) -> Result<()> {
        let known = self.model.ports().get(port.index()).filter(|spec| spec.dtype == dtype);
        known.map(|_| ()).ok_or_else(|| Error::graph("port", format!("{port:?} is no port of {dtype} of this model")))
    }

    /// The graph of every stage, in every form in turn; none where stages are computed in strips.
    pub fn graphs(&self) -> &[Graph] {
        match &self.work {
            Work::Graphs(work) => &work.graphs,
            Work::Strips(_) => &[],
        }
    }

    /// The ports that the host fills, each once: a stage reads them, and none writes them before. None where stages are
    /// computed in strips.
    pub fn inputs(&self) -> &[Port] {
        match &self.work {
            Work::Graphs(work) => &work.inputs,
            Work::Strips(_) => &[],
        }
    }

    /// What the stages of a request made ready for the passes that it was filled for. Steps of other passes begin with
    /// [`put_back`](Session::put_back).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; what the device says.
    pub fn put_aside(&self) -> Result<Vec<(Port, Vec<f32>)>> {
        self.of_a_pass().iter().map(|&port| Ok((port, self.get(port)?))).collect()
    }

    /// The ports that hold what is put aside.
    pub(super) fn of_a_pass(&self) -> &[Port] {
        match &self.work {
            Work::Graphs(work) => &work.of_a_pass,
            Work::Strips(_) => &[],
        }
    }

    /// The way back from [`put_aside`](Session::put_aside).
    ///
    /// # Errors
    /// [`Error::Graph`] if it is of a session of another model or size; what the device says.
    pub fn put_back(&mut self, aside: &[(Port, Vec<f32>)]) -> Result<()> {
        for (port, values) in aside {
            self.set(*port, values)?;
        }
        Ok(())
    }

    /// Computes the stage number `stage` once, on the CPU and with weights that are all there, and says how long each of its
    /// operations took.
    ///
    /// # Errors
    /// [`Error::Cancelled`]; [`Error::Graph`] where there is no such stage, or it is computed in strips or streamed.
    pub fn time_operations(&mut self, backend: &mut Backend, stage: usize) -> Result<Vec<OperationTime>> {
        let streams = self.uploads.is_some();
        let (graphs, graph_of, arena) = match &mut self.work {
            Work::Graphs(work) if !streams => (&work.graphs, &work.graph_of, &mut work.arena),
            _ => return Err(Error::graph("time", "stages are timed by operation where they are whole and resident")),
        };
        let graph = graph_of.get(stage).copied().flatten().and_then(|at| graphs.get(at));
        let graph = graph.ok_or_else(|| Error::graph("time", format!("there is no stage {stage}")))?;
        backend.compute_timed(graph, arena)
    }

    /// The ports that the host has filled since this was asked last.
    pub(super) fn take_filled(&mut self) -> Vec<Port> {
        std::mem::take(&mut self.filled)
    }

    /// What stage number `stage` touches, if the session has some of the tokens.
    ///
    /// # Errors
    /// [`Error::Graph`] if it has all of them.
    pub(super) fn touched(&self, stage: usize) -> Result<&Touched> {
        let found = match &self.work {
            Work::Graphs(work) => work.touched.get(self.form * self.model.stages().len() + stage),
            Work::Strips(_) => None,
        };
        found.ok_or_else(|| Error::graph("session", "what has all tokens runs with others"))
    }

    /// How many tokens there are in `port`: its second dimension.
    pub(super) fn tokens_of(&self, port: Port) -> usize {
        match &self.work {
            Work::Graphs(work) => work.ports[port.index()].as_ref().map_or(0, |place| place.shape().dims()[1]),
            Work::Strips(_) => 0,
        }
    }

    /// Where `rows` are at stage number `stage`.
    ///
    /// # Errors
    /// [`Error::Graph`] if they are not here.
    pub(super) fn rows_at(&self, stage: usize, rows: Rows) -> Result<Placed> {
        let found = match (&self.work, rows) {
            (Work::Graphs(work), Rows::Port(port)) => work.ports[port.index()].clone(),
            (_, Rows::Gathered(number)) => {
                self.touched(stage)?.gathered.get(number).map(|gathered| gathered.place.clone())
            }
            (Work::Strips(_), Rows::Port(_)) => None,
        };
        found.ok_or_else(|| Error::graph("session", format!("{rows:?} of stage {stage} is not on this device")))
    }
}
