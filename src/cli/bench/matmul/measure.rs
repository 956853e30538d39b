//! Products, timed in turn.

use std::sync::Arc;
use std::time::Instant;

use pinhole::Result;
use pinhole::ggml::{Arena, Backend, Buffer, CancelFlag, Device, Graph, Ledger, Placed};
use pinhole::tensor::Shape;
use pinhole_quant::{DType, rows};

use super::report::{Product, Speed, ratio};
use super::{Multiplier, Size};

/// Rows that are really made; the others repeat them, which no kernel can tell.
const DISTINCT_ROWS: usize = 64;

/// Bytes that are read before each product, more than the caches of most processors hold.
const ELSEWHERE: usize = 256 << 20;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A CPU, and what products are measured on.
pub(super) struct Bench {
    size: Size,
    backend: Backend,
    ledger: Ledger,
}

/// One product in one way: its graph in an arena of its own, and the seconds of each round.
struct Timed {
    graph: Graph,
    arena: Arena,
    seconds: Vec<f64>,
}

impl Bench {
    pub(super) fn new(size: Size, threads: usize, cancel: CancelFlag) -> Result<Bench> {
        let backend = Backend::new(Device::cpu()?, threads, cancel)?;
        Ok(Bench { size, backend, ledger: Ledger::new() })
    }

    /// Every type with every number of tokens, by the first of `multipliers` and, where there is one, by the second. `round` is
    /// called after every round, the first, which is not counted, among them.
    pub(super) fn measure(
        &mut self,
        types: &[DType],
        tokens: &[usize],
        multipliers: &[Option<Multiplier>; 2],
        rounds: usize,
        round: impl Fn(),
    ) -> Result<Vec<Product>> {
        let mut cases = Vec::new();
        for &dtype in types {
            let weights = self.weights(dtype)?;
            for &tokens in tokens {
                self.backend.cancel().check()?;
                let activations = self.activations(tokens)?;
                let [by, against] = multipliers.map(|multiplier| {
                    multiplier.map(|multiplier| self.timed(&weights, &activations, multiplier)).transpose()
                });
                cases.push((dtype, tokens, [by?, against?]));
            }
        }
        // Written once: pages that nothing was written to are all the same one.
        let elsewhere = vec![1_u8; ELSEWHERE];
        for counted in std::iter::once(false).chain(std::iter::repeat_n(true, rounds)) {
            for timed in cases.iter_mut().flat_map(|(.., timed)| timed).flatten() {
                read_all(&elsewhere);
                let started = Instant::now();
                self.backend.compute(&timed.graph, &mut timed.arena)?;
                if counted {
                    timed.seconds.push(started.elapsed().as_secs_f64());
                }
            }
            round();
        }
        let products = cases
            .iter()
            .map(|(dtype, tokens, [by, against])| {
                let operations = 2.0 * self.size.inputs as f64 * self.size.outputs as f64 * *tokens as f64;
                let speed = |timed: &Option<Timed>| timed.as_ref().map(|timed| Speed::of(operations, &timed.seconds));
                let ratio = by.as_ref().zip(against.as_ref()).map(|(by, against)| ratio(&by.seconds, &against.seconds));
                Product { dtype: dtype.name(), tokens: *tokens, by: speed(by), against: speed(against), ratio }
            })
            .collect();
        Ok(products)
    }

    /// Weights that are nothing in particular.
    fn weights(&self, dtype: DType) -> Result<Placed> {
        let Size { inputs, outputs } = self.size;
        let distinct = DISTINCT_ROWS.min(outputs);
        let numbers: Vec<f32> = (0..inputs * distinct).map(number).collect();
        let row_bytes = dtype.row_bytes(inputs).unwrap_or(0); // `types` saw that blocks divide rows
        let mut stripe = vec![0; row_bytes * distinct];
        // A row at a time: some types take minutes, and a stop should be heard.
        for (numbers, row) in numbers.chunks(inputs).zip(stripe.chunks_mut(row_bytes.max(1))) {
            self.backend.cancel().check()?;
            let quantized = rows::quantize(dtype, numbers, inputs, row);
            quantized
                .map_err(|error| pinhole::Error::option("--types", "a type that can be made", error.to_string()))?;
        }
        let place = self.place(dtype, [inputs, outputs])?;
        let bytes: Vec<u8> = stripe.iter().copied().cycle().take(row_bytes * outputs).collect();
        place.write(&bytes)?;
        Ok(place)
    }

    fn activations(&self, tokens: usize) -> Result<Placed> {
        let place = self.place(DType::F32, [self.size.inputs, tokens])?;
        let bytes: Vec<u8> = (0..self.size.inputs * tokens).flat_map(|i| number(i + 7).to_ne_bytes()).collect();
        place.write(&bytes)?;
        Ok(place)
    }

    fn place(&self, dtype: DType, dims: [usize; 2]) -> Result<Placed> {
        let impossible = || pinhole::Error::option("--size", "a matrix that fits memory", format!("{dims:?}"));
        let shape = Shape::new(&dims).ok_or_else(impossible)?;
        let bytes = shape.bytes(dtype).ok_or_else(impossible)?;
        let buffer: Arc<Buffer> = Buffer::allocate(self.backend.device(), bytes, &self.ledger, "weights")?;
        Placed::new(&buffer, 0, dtype, shape)
    }

    fn timed(&self, weights: &Placed, activations: &Placed, by: Multiplier) -> Result<Timed> {
        let graph = Graph::new(self.backend.device(), 8)?;
        graph.set_kernel(by.kernel());
        let product = graph.mul_mat(graph.leaf(weights)?, graph.leaf(activations)?)?;
        graph.output(product)?;
        let mut arena = Arena::new(self.backend.device(), &self.ledger)?;
        arena.assign(&[&graph])?;
        Ok(Timed { graph, arena, seconds: Vec::new() })
    }
}

/// Reads `memory`, so that caches hold it and nothing else: the second of two ways would find the weights there that the first one read, where
/// a model's come from memory.
fn read_all(memory: &[u8]) {
    let lines = memory.iter().step_by(LINE);
    std::hint::black_box(lines.fold(0, |sum: u8, byte| sum.wrapping_add(*byte)));
}

/// Number `i` of a sequence without pattern, in -1 to 1 (Weyl's, with the golden ratio).
fn number(i: usize) -> f32 {
    ((i as f64 * 0.618_033_988_749_895).fract() * 2.0 - 1.0) as f32
}
