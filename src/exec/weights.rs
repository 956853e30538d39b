//! A model's weights where a device computes: in the memory map, or in a buffer of their own.

use std::collections::HashMap;
use std::sync::Arc;

use pinhole_quant::DType;

use crate::Result;
use crate::bind::Bound;
use crate::ggml::{Buffer, Device, DeviceKind, Ledger, Placed, support};
use crate::index::Map;
use crate::stage::Model;
use crate::weights::{Role, Weight, WeightId};

/// Every weight that a stage needs, at its place.
pub struct DeviceWeights {
    places: Vec<Option<Placed>>,
    mapped: usize,
    copied: usize,
}

impl DeviceWeights {
    /// Places the weights of `model`. On a device that computes in host memory a tensor that is usable as it stands stays
    /// in the file's map; all others are converted or joined into one buffer, entered in `ledger`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory); what reading a weight returns.
    pub fn load(model: &Model, bound: &Bound, device: Device, ledger: &Ledger) -> Result<DeviceWeights> {
        let manifest = model.manifest();
        let mut places = vec![None; manifest.len()];
        let mut maps = MapBuffers { device, buffers: HashMap::new() };
        let mut copies = Vec::new();
        let mut mapped = 0;
        for &id in model.stages().iter().flat_map(|stage| &stage.weights) {
            let weight = manifest.get(id);
            let dtype = wanted(weight, bound.dtype(id));
            match maps.place(bound, id, weight, dtype)? {
                Some(place) => {
                    mapped += place.bytes();
                    places[id.index()] = Some(place);
                }
                None => copies.push((id, dtype)),
            }
        }
        let copied = copy(model, bound, device, ledger, &copies, &mut places)?;
        Ok(DeviceWeights { places, mapped, copied })
    }

    /// By id; `None` for weights that stay on the host.
    pub(crate) fn places(&self) -> &[Option<Placed>] {
        &self.places
    }

    /// Bytes that are used where they lie in the file.
    pub fn mapped_bytes(&self) -> usize {
        self.mapped
    }

    /// Bytes that were converted or joined.
    pub fn copied_bytes(&self) -> usize {
        self.copied
    }
}

/// The format that the device needs of a weight stored as `stored`.
fn wanted(weight: &Weight, stored: DType) -> DType {
    match weight.role {
        // ggml adds and scales in F32 only, and a kernel in F16 would round the activations too.
        Role::Vector | Role::ConvKernel => DType::F32,
        _ if support::matrix(stored) => stored,
        _ => DType::F32,
    }
}

/// Buffers over the maps that have been used so far.
struct MapBuffers {
    device: Device,
    buffers: HashMap<*const Map, Arc<Buffer>>,
}

impl MapBuffers {
    /// The place of a weight that can be used where it lies.
    fn place(&mut self, bound: &Bound, id: WeightId, weight: &Weight, dtype: DType) -> Result<Option<Placed>> {
        let Some(tensor) = bound.whole(id) else { return Ok(None) };
        if self.device.kind() != DeviceKind::Cpu || tensor.storage != dtype {
            return Ok(None);
        }
        let address = tensor.map().bytes().as_ptr() as usize;
        let alignment = self.device.alignment();
        if !(address + tensor.offset()).is_multiple_of(alignment) || !address.is_multiple_of(alignment) {
            return Ok(None);
        }
        let key = Arc::as_ptr(tensor.map());
        if !self.buffers.contains_key(&key) {
            self.buffers.insert(key, Buffer::over_map(self.device, tensor.map())?);
        }
        let buffer = &self.buffers[&key];
        Placed::new(buffer, tensor.offset(), dtype, weight.shape).map(Some)
    }
}

/// Brings the weights in `copies` into one new buffer.
fn copy(
    model: &Model,
    bound: &Bound,
    device: Device,
    ledger: &Ledger,
    copies: &[(WeightId, DType)],
    places: &mut [Option<Placed>],
) -> Result<usize> {
    let manifest = model.manifest();
    let alignment = device.alignment();
    let (mut offsets, mut size) = (Vec::with_capacity(copies.len()), 0usize);
    for &(id, dtype) in copies {
        offsets.push(size);
        let shape = manifest.get(id).shape;
        let bytes = shape.bytes(dtype).ok_or_else(|| too_large(manifest.get(id)))?;
        size = size.checked_add(bytes.next_multiple_of(alignment)).ok_or_else(|| too_large(manifest.get(id)))?;
    }
    if copies.is_empty() {
        return Ok(0);
    }
    let buffer = Buffer::allocate(device, size, ledger, "weights")?;
    for (&(id, dtype), offset) in copies.iter().zip(offsets) {
        let weight = manifest.get(id);
        let place = Placed::new(&buffer, offset, dtype, weight.shape)?;
        place.write(&bound.read_as(id, weight.shape.row(), dtype)?)?;
        places[id.index()] = Some(place);
    }
    Ok(size)
}

fn too_large(weight: &Weight) -> crate::Error {
    crate::Error::OutOfMemory { what: format!("weight {}", weight.name), bytes: usize::MAX, hint: None }
}
