//! The matrix products and the attentions of a graph by themselves, and where the time of a graph goes: what it costs to
//! compute a graph is held against what it would cost to compute nothing else.

use std::collections::HashMap;
use std::ffi::CStr;
use std::time::Duration;

use ggml_sys as sys;
use pinhole_quant::DType;

use super::{Buffer, Graph, Ledger, Placed, Tensor};
use crate::tensor::Shape;
use crate::{Error, Result};

/// Which operations of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heavy {
    /// Matrix products, by whichever kernel the graph has them, with their activations quantized as there.
    Products,
    /// Flash attentions.
    Attentions,
}

/// Some operations of a graph in a graph of their own: the same shapes, formats and layouts, and the same weights.
pub struct Alone {
    /// Computes them one after another, from operands that are there when it begins.
    pub graph: Graph,
    /// Multiplications and additions.
    pub operations: u64,
    /// Bytes of weights that are read.
    pub weight_bytes: u64,
}

/// Places for operands that another operation would compute. Graphs that do not run at the same time share them.
pub struct Operands {
    ledger: Ledger,
    places: HashMap<(DType, [usize; 4]), Vec<Placed>>,
    number: fn(usize) -> f32,
}

impl Operands {
    /// Places that are entered in `ledger` and filled with a `number` for each position.
    pub fn new(ledger: &Ledger, number: fn(usize) -> f32) -> Operands {
        Operands { ledger: ledger.clone(), places: HashMap::new(), number }
    }

    /// The place of operand `nth` of this shape.
    fn place(&mut self, graph: &Graph, shape: Shape, nth: usize) -> Result<Placed> {
        let places = self.places.entry((DType::F32, shape.dims())).or_default();
        while places.len() <= nth {
            let bytes = shape.bytes(DType::F32).ok_or_else(|| Error::graph("alone", format!("operand {shape}")))?;
            let buffer = Buffer::allocate(graph.device(), bytes, &self.ledger, "operands")?;
            let place = Placed::new(&buffer, 0, DType::F32, shape)?;
            let numbers: Vec<u8> = (0..shape.elements()).flat_map(|i| (self.number)(i).to_ne_bytes()).collect();
            place.write(&numbers)?;
            places.push(place);
        }
        Ok(places[nth].clone())
    }
}

/// What a node of a graph is to [`Graph::alone`].
struct Node {
    what: Heavy,
    /// A product's weights and its activations, which may be in two parts; or an attention's queries, keys and values.
    operands: Vec<*mut sys::ggml_tensor>,
}

impl Graph {
    /// The operations `what` of this graph by themselves, on operands from `operands`; `None` where it has none.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] for operands; [`Error::Graph`] where an operation cannot be made again.
    pub fn alone(&self, what: Heavy, operands: &mut Operands) -> Result<Option<Alone>> {
        let nodes: Vec<Node> = self.heavy().into_iter().filter(|node| node.what == what).collect();
        if nodes.is_empty() {
            return Ok(None);
        }
        // For each node a packing, a product, and operands with what they are views of, and what joins them.
        let graph = Graph::new(self.device(), nodes.len() * 10)?;
        graph.set_kernel(self.products.borrow().kernel());
        graph.set_precision(self.precision());
        let mut copied = Copied {
            from: self,
            to: &graph,
            operands,
            tensors: HashMap::new(),
            used: HashMap::new(),
            joined: Vec::new(),
        };
        let (mut operations, mut weight_bytes) = (0, 0);
        for node in &nodes {
            let tensors = node.operands.iter().map(|&raw| copied.tensor(raw)).collect::<Result<Vec<_>>>()?;
            let result = match (node.what, tensors.as_slice()) {
                (Heavy::Products, &[w, ref parts @ ..]) => {
                    let x = copied.joined(parts)?;
                    let ([k, m, ..], rows) = (graph.shape(w)?.dims(), graph.shape(x)?.rows());
                    operations += 2 * (k * m * rows) as u64;
                    if copied.is_leaf(node.operands[0]) {
                        weight_bytes += graph.shape(w)?.bytes(graph.dtype(w)?).unwrap_or(0) as u64;
                    }
                    graph.mul_mat(w, x)?
                }
                (Heavy::Attentions, &[q, k, v]) => {
                    let ([d, queries, heads, batch], keys) = (graph.shape(q)?.dims(), graph.shape(k)?.dims()[1]);
                    operations += 4 * (d * queries * keys * heads * batch) as u64;
                    graph.flash_attention(q, k, v, 1.0 / (d as f32).sqrt(), None)?
                }
                _ => return Err(Error::graph("alone", "an operation with other operands than expected")),
            };
            graph.output(result)?;
        }
        Ok(Some(Alone { graph, operations, weight_bytes }))
    }

    /// Its products and attentions, in the order in which they are computed.
    fn heavy(&self) -> Vec<Node> {
        let operands = |raw: *mut sys::ggml_tensor, count| {
            // SAFETY: a live tensor of this context, of an operation with so many operands.
            (0..count).map(|i| unsafe { (*raw).src[i] }).collect::<Vec<_>>()
        };
        self.raw_nodes()
            .filter_map(|raw| {
                // SAFETY: as above.
                let (op, type_id) = unsafe { ((*raw).op, (*raw).type_) };
                match op {
                    sys::GGML_OP_MUL_MAT => Some(Node { what: Heavy::Products, operands: operands(raw, 2) }),
                    sys::GGML_OP_FLASH_ATTN_EXT => Some(Node { what: Heavy::Attentions, operands: operands(raw, 3) }),
                    sys::GGML_OP_CUSTOM if self.is_own_attention(raw) => {
                        Some(Node { what: Heavy::Attentions, operands: operands(raw, 3) })
                    }
                    sys::GGML_OP_CUSTOM if self.is_float_product(raw) => {
                        Some(Node { what: Heavy::Products, operands: operands(raw, 2) })
                    }
                    sys::GGML_OP_CUSTOM if type_id == sys::GGML_TYPE_F32 => {
                        let [w, packed]: [_; 2] = operands(raw, 2).try_into().ok()?;
                        if !is_packed(packed) {
                            return None;
                        }
                        let parts = operands(packed, 2).into_iter().filter(|part| !part.is_null());
                        Some(Node { what: Heavy::Products, operands: std::iter::once(w).chain(parts).collect() })
                    }
                    _ => None,
                }
            })
            .collect()
    }

    fn raw_nodes(&self) -> impl Iterator<Item = *mut sys::ggml_tensor> {
        let count = i32::try_from(self.nodes()).unwrap_or(0);
        // SAFETY: the graph is live and has so many nodes.
        (0..count).map(|i| unsafe { sys::ggml_graph_node(self.cgraph(), i) })
    }

    /// What the CPU computes between two looks at the flag that stops it, in order: an operation, or two that it joins.
    pub(super) fn operations(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for raw in self.raw_nodes() {
            // SAFETY: a live tensor of this context; ggml's names are static.
            let (op, type_id, name) = unsafe { ((*raw).op, (*raw).type_, CStr::from_ptr(sys::ggml_op_desc(raw))) };
            let name = match op {
                sys::GGML_OP_NONE
                | sys::GGML_OP_VIEW
                | sys::GGML_OP_RESHAPE
                | sys::GGML_OP_PERMUTE
                | sys::GGML_OP_TRANSPOSE => continue,
                sys::GGML_OP_CUSTOM if type_id == sys::GGML_TYPE_I8 => "quantize activations".to_owned(),
                // SAFETY: as above; every operation of pinhole's has two operands at least, but packings.
                sys::GGML_OP_CUSTOM if is_packed(unsafe { (*raw).src[1] }) => "matrix product".to_owned(),
                sys::GGML_OP_CUSTOM if self.is_float_product(raw) => "matrix product".to_owned(),
                sys::GGML_OP_CUSTOM if self.is_own_attention(raw) => "attention".to_owned(),
                sys::GGML_OP_CUSTOM => {
                    let name = self.elementwise_name(raw).or_else(|| self.convolution_name(raw));
                    name.unwrap_or("rotate pairs").to_owned()
                }
                sys::GGML_OP_MUL_MAT => "matrix product of ggml's".to_owned(),
                sys::GGML_OP_FLASH_ATTN_EXT => "attention of ggml's".to_owned(),
                _ => name.to_string_lossy().to_ascii_lowercase(),
            };
            match names.last_mut() {
                Some(last) if last == "rms_norm" && name == "mul" => "rms_norm and mul".clone_into(last),
                _ => names.push(name),
            }
        }
        names
    }
}

/// The time of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationTime {
    /// What it is.
    pub name: String,
    /// From the end of the one before to its own, on the first thread.
    pub time: Duration,
}

/// Tensors of one graph made again as operands in another.
struct Copied<'a> {
    from: &'a Graph,
    to: &'a Graph,
    operands: &'a mut Operands,
    tensors: HashMap<*mut sys::ggml_tensor, Tensor>,
    used: HashMap<[usize; 4], usize>,
    /// Activations in two parts, and the whole.
    joined: Vec<([Tensor; 2], Tensor)>,
}

impl Copied<'_> {
    fn tensor(&mut self, raw: *mut sys::ggml_tensor) -> Result<Tensor> {
        if let Some(&known) = self.tensors.get(&raw) {
            return Ok(known);
        }
        let root = root(raw);
        let tensor = match root == raw {
            true => self.root(raw)?,
            false => {
                let of = self.tensor(root)?;
                self.view(raw, of)?
            }
        };
        self.tensors.insert(raw, tensor);
        Ok(tensor)
    }

    /// Activations of these parts. They are one tensor for all products that share them.
    fn joined(&mut self, parts: &[Tensor]) -> Result<Tensor> {
        match *parts {
            [x] => Ok(x),
            [a, b] => match self.joined.iter().find(|known| known.0 == [a, b]) {
                Some(known) => Ok(known.1),
                None => {
                    let whole = self.to.concat(a, b, 0)?;
                    self.joined.push(([a, b], whole));
                    Ok(whole)
                }
            },
            _ => Err(Error::graph("alone", format!("activations in {} parts", parts.len()))),
        }
    }

    /// Whether `raw` is, or is part of, what lies there before the graph runs.
    fn is_leaf(&self, raw: *mut sys::ggml_tensor) -> bool {
        self.leaf(root(raw)).is_some()
    }

    fn leaf(&self, raw: *mut sys::ggml_tensor) -> Option<Placed> {
        let leaves = self.from.leaves();
        leaves.iter().find(|(leaf, _)| self.from.raw(*leaf).is_ok_and(|of| of == raw)).map(|(_, place)| place.clone())
    }

    fn root(&mut self, raw: *mut sys::ggml_tensor) -> Result<Tensor> {
        if let Some(place) = self.leaf(raw) {
            return self.to.leaf(&place);
        }
        // SAFETY: a live tensor of the graph that is copied.
        let (dims, type_id) = unsafe { ((*raw).ne, (*raw).type_) };
        let dims = dims.map(|extent| usize::try_from(extent).unwrap_or(0));
        let shape = Shape::new(&dims).filter(|_| type_id == sys::GGML_TYPE_F32);
        let shape = shape.ok_or_else(|| Error::graph("alone", format!("an operand of extents {dims:?}")))?;
        let nth = self.used.entry(dims).or_default();
        *nth += 1;
        self.to.leaf(&self.operands.place(self.to, shape, *nth - 1)?)
    }

    /// `raw` as the same view of `of`.
    fn view(&self, raw: *mut sys::ggml_tensor, of: Tensor) -> Result<Tensor> {
        let of = self.to.raw(of)?;
        // SAFETY: a live tensor of the graph that is copied.
        let (ne, nb, offset) = unsafe { ((*raw).ne, (*raw).nb, (*raw).view_offs) };
        self.to.register("view", |context| {
            // SAFETY: `of` has the extents, format and layout of what `raw` is a view of, and the operations that look at `raw`
            // have contiguous rows.
            unsafe { sys::ggml_view_4d(context, of, ne[0], ne[1], ne[2], ne[3], nb[1], nb[2], nb[3], offset) }
        })
    }
}

/// Whether `raw`, an operand, is activations as a kernel of pinhole's wants them: nothing else is I8.
fn is_packed(raw: *mut sys::ggml_tensor) -> bool {
    // SAFETY: null, or a live tensor.
    !raw.is_null() && unsafe { (*raw).type_ } == sys::GGML_TYPE_I8
}

/// What `raw` is a view of, or `raw`.
fn root(raw: *mut sys::ggml_tensor) -> *mut sys::ggml_tensor {
    // SAFETY: a live tensor; ggml resolves views of views when it makes them.
    let of = unsafe { (*raw).view_src };
    if of.is_null() { raw } else { of }
}
