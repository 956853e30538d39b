//! A model's weights where a device computes: in the memory map, in a buffer of their own, or in slots that they share.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pinhole_quant::DType;

use super::device_link::DeviceLink;
use super::feed::{Conversion, Feed};
use super::link::{HostLink, Link};
use super::pages::{Pager, Pages};
use super::uploads::{Ring, Upload, Uploads};
use crate::bind::Bound;
use crate::ggml::{Buffer, Device, Ledger, Placed, SlotEvents};
use crate::index::Map;
use crate::plan::layout::{self, StageLayout};
use crate::plan::{Batch, Placement, Runs};
use crate::stage::{Dims, Model};
use crate::weights::WeightId;
use crate::{Error, Result};

/// Every weight that a stage needs, at its place.
pub struct DeviceWeights {
    /// Stopped before the places go.
    uploads: Option<Arc<Uploads>>,
    places: Vec<Option<Placed>>,
    mapped: usize,
    copied: usize,
    /// By stage.
    pages: Arc<[Pages]>,
    /// The weights of each stage.
    stages: Vec<Vec<WeightId>>,
    /// As the [`Placement`] has it.
    dropped: Vec<bool>,
    own: Vec<bool>,
    /// By id: the format that the device computes in.
    wanted: Vec<DType>,
}

impl DeviceWeights {
    /// Places all weights of `model` to stay, and waits for them. On a device that computes in host memory a tensor that is
    /// usable as it stands stays in the file's map; all others are converted or joined into one buffer, entered in
    /// `ledger`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; what reading a weight returns.
    pub fn load(model: &Model, bound: &Bound, device: Device, ledger: &Ledger) -> Result<DeviceWeights> {
        let layouts = layout::stages(model, bound, device)?;
        let slot_of = vec![None; layouts.len()];
        let resident_bytes = layouts.iter().map(|layout| layout.bytes).sum();
        let placement = Placement { slot_of, resident_bytes, ..Placement::default() };
        let (weights, uploads, _) = allocate(model, bound, device, ledger, &placement, &layouts)?;
        let mut link = link_to(device, None, Arc::new(AtomicBool::new(false)))?;
        let mut conversion = Conversion::default();
        for upload in uploads.iter().flatten() {
            upload.feed.bring(link.as_mut(), &mut conversion)?;
        }
        link.finish(None)?;
        Ok(weights)
    }

    /// Gives the weights of `model` their places as `placement` says, and begins to bring them from a thread of their own, in
    /// the order of a request that runs its stages as often as `runs` says.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Graph`] for a placement of another model. What goes wrong on the way is told to
    /// the computation that waits for it.
    pub fn place(
        model: &Model,
        bound: &Bound,
        device: Device,
        ledger: &Ledger,
        placement: &Placement,
        runs: Runs,
    ) -> Result<DeviceWeights> {
        let order = Batch::default().order(model, &Dims::new(), runs);
        DeviceWeights::place_in_order(model, bound, device, ledger, placement, order)
    }

    /// As [`place`](DeviceWeights::place), in the order of a request that runs lists of stages one after the other, each as often as
    /// it says. Of the last, some runs may be skipped.
    ///
    /// # Errors
    /// As [`place`](DeviceWeights::place).
    pub fn place_in_order(
        model: &Model,
        bound: &Bound,
        device: Device,
        ledger: &Ledger,
        placement: &Placement,
        order: Vec<(Vec<usize>, usize)>,
    ) -> Result<DeviceWeights> {
        let layouts = layout::stages(model, bound, device)?;
        let (mut weights, uploads, ring) = allocate(model, bound, device, ledger, placement, &layouts)?;
        let mut order = order;
        for (stages, _) in &mut order {
            stages.retain(|&stage| placement.owns(stage));
        }
        if uploads.iter().any(Option::is_some) {
            let events = ring.as_ref().and_then(|ring| ring.events.clone());
            let uploads = Uploads::start(uploads, order, ring, |stop| link_to(device, events.as_ref(), stop))?;
            weights.uploads = Some(Arc::new(uploads));
        }
        Ok(weights)
    }

    /// Whether they are placed for the stages of `model`, in its order.
    pub fn are_of(&self, model: &Model) -> bool {
        self.stages.iter().eq(model.stages().iter().map(|stage| &stage.weights))
    }

    /// By stage: whether it is computed here; empty if all are.
    pub fn own(&self) -> &[bool] {
        &self.own
    }

    /// By id; `None` for weights that stay on the host.
    pub(crate) fn places(&self) -> &[Option<Placed>] {
        &self.places
    }

    /// The format of `id` on the device.
    pub(crate) fn dtype(&self, id: WeightId) -> Option<DType> {
        if !self.own.is_empty() {
            // Stages of other devices are looked at, too: when ports live depends on them.
            return self.wanted.get(id.index()).copied();
        }
        self.places.get(id.index())?.as_ref().map(Placed::dtype)
    }

    pub(super) fn uploads(&self) -> Option<&Arc<Uploads>> {
        self.uploads.as_ref()
    }

    /// Gives the memory of the file's pages back to the system, which reads again what is still used.
    pub fn give_back_pages(&self) {
        self.pages.iter().for_each(Pages::give_back);
    }

    /// Lets go of the pages of weights that are used where they lie in the file: the system keeps them as long as it has room.
    pub fn let_go_of_pages(&self) {
        if self.mapped > 0 {
            self.pages.iter().for_each(Pages::let_go);
        }
    }

    /// What reads ahead of computations in the map, and gives back behind them; `None` where nothing is used there.
    pub(super) fn pager(&self) -> Option<Pager> {
        (self.mapped > 0).then(|| Pager::start(Arc::clone(&self.pages), self.dropped.clone())).flatten()
    }

    /// The pages of every stage, if any weights are used where they lie in the file.
    pub(super) fn in_place(&self) -> Option<Arc<[Pages]>> {
        (self.mapped > 0).then(|| Arc::clone(&self.pages))
    }

    /// Bytes that are used where they lie in the file.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped
    }

    /// Bytes that were converted, joined or brought, each weight counted once.
    pub fn copied_bytes(&self) -> usize {
        self.copied
    }

    /// Bytes that were brought from a thread so far.
    pub fn moved_bytes(&self) -> u64 {
        self.uploads.as_ref().map_or(0, |uploads| uploads.moved())
    }

    /// How long computations have waited for weights.
    pub fn waited(&self) -> Duration {
        self.uploads.as_ref().map_or(Duration::ZERO, |uploads| uploads.waited())
    }
}

type Allocated = (DeviceWeights, Vec<Option<Upload>>, Option<Ring>);

/// Makes the buffers, gives every weight its place, and says what has to be brought there.
fn allocate(
    model: &Model,
    bound: &Bound,
    device: Device,
    ledger: &Ledger,
    placement: &Placement,
    layouts: &[StageLayout],
) -> Result<Allocated> {
    if placement.slot_of.len() != layouts.len() {
        return Err(Error::graph("place", "the placement is of another model"));
    }
    let manifest = model.manifest();
    let buffer = |bytes: usize, purpose| match bytes {
        0 => Ok(None),
        bytes => Buffer::allocate(device, bytes, ledger, purpose).map(Some),
    };
    let resident = buffer(placement.resident_bytes, "weights")?;
    let slots = buffer(placement.slots * placement.slot_bytes, "slots")?;
    let mut maps = MapBuffers { device, buffers: HashMap::new() };
    let pages: Arc<[Pages]> = model.stages().iter().map(|stage| Pages::of(stage, bound)).collect();
    let mut weights = DeviceWeights {
        uploads: None,
        places: vec![None; manifest.len()],
        mapped: 0,
        copied: 0,
        pages,
        stages: model.stages().iter().map(|stage| stage.weights.clone()).collect(),
        dropped: placement.dropped.clone(),
        own: placement.own.clone(),
        wanted: manifest.iter().map(|(id, weight)| layout::wanted(weight, bound.dtype(id), device)).collect(),
    };
    let (mut uploads, mut next) = (Vec::with_capacity(layouts.len()), 0);
    for (stage, (layout, slot)) in layouts.iter().zip(&placement.slot_of).enumerate() {
        if !placement.owns(stage) {
            uploads.push(None);
            continue;
        }
        for &id in &layout.mapped {
            weights.places[id.index()] = Some(maps.place(bound, id, model)?);
        }
        weights.mapped += layout.mapped_bytes;
        if layout.copies.is_empty() {
            uploads.push(None);
            continue;
        }
        let (buffer, offset, room) = match slot {
            Some(slot) => (&slots, slot * placement.slot_bytes, placement.slot_bytes),
            None => (&resident, next, placement.resident_bytes.saturating_sub(next)),
        };
        let buffer = buffer.as_ref().filter(|_| layout.bytes <= room);
        let buffer = buffer.ok_or_else(|| Error::graph("place", "the placement has no room for a stage"))?;
        next += if slot.is_none() { layout.bytes } else { 0 };
        for copied in &layout.copies {
            let shape = manifest.get(copied.id).shape;
            weights.places[copied.id.index()] = Some(Placed::new(buffer, offset + copied.offset, copied.dtype, shape)?);
            weights.copied += copied.bytes;
        }
        uploads.push(Some(Upload {
            name: model.stages()[stage].name.clone(),
            feed: Feed::new(model, bound, layout, buffer, offset),
            slot: *slot,
            pages: weights.pages[stage].clone(),
            drop_pages: placement.dropped.get(stage) == Some(&true) && layout.mapped.is_empty(),
        }));
    }
    let overlaps = !device.is_cpu() && device.features()?.overlaps();
    let ring = match slots {
        None => None,
        Some(buffer) => {
            let events = overlaps.then(|| SlotEvents::new(device, placement.slots)).transpose()?;
            Some(Ring { buffer, slot_bytes: placement.slot_bytes, events })
        }
    };
    Ok((weights, uploads, ring))
}

/// The best link to `device`: one that copies during computations, ordered by the events of `slots`, if the device can do that.
///
/// # Errors
/// [`Error::Device`] if the device has no queue left.
fn link_to(device: Device, slots: Option<&SlotEvents>, stop: Arc<AtomicBool>) -> Result<Box<dyn Link>> {
    Ok(match DeviceLink::new(device, slots, &stop)? {
        Some(link) => Box::new(link),
        None => Box::new(HostLink::new(device, stop)),
    })
}

impl Drop for DeviceWeights {
    fn drop(&mut self) {
        // The next component needs the room.
        if !self.dropped.is_empty() {
            self.uploads = None;
            self.give_back_pages();
        }
    }
}

/// Buffers over the maps that have been used so far.
struct MapBuffers {
    device: Device,
    buffers: HashMap<*const Map, Arc<Buffer>>,
}

impl MapBuffers {
    /// The place of a weight that is used where it lies.
    fn place(&mut self, bound: &Bound, id: WeightId, model: &Model) -> Result<Placed> {
        let weight = model.manifest().get(id);
        let dtype = layout::wanted(weight, bound.dtype(id), self.device);
        let found = layout::in_map(bound, id, dtype, self.device);
        let (map, offset) = found.ok_or_else(|| Error::graph("place", format!("{} is not in a map", weight.name)))?;
        let key = Arc::as_ptr(map);
        if !self.buffers.contains_key(&key) {
            self.buffers.insert(key, Buffer::over_map(self.device, map)?);
        }
        Placed::new(&self.buffers[&key], offset, dtype, weight.shape)
    }
}
