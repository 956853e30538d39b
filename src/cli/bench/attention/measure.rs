//! Attentions, timed in turn.

use std::time::Instant;

use pinhole::ggml::{Arena, Backend, Buffer, CancelFlag, Device, Graph, Ledger, Placed};
use pinhole::kernels::Precision;
use pinhole::{Error, Result, sample};
use pinhole_quant::DType;

use super::report::{Attention, Measured};
use super::shape::Shape;
use crate::cli::bench::matmul::Multiplier;
use crate::cli::bench::matmul::report::{Speed, ratio};

/// Queries of each attention that are computed in double precision.
const CHECKED: usize = 16;

/// A CPU, and what is entered of its memory.
pub(super) struct Bench {
    backend: Backend,
    ledger: Ledger,
}

/// Queries, keys and values, `[width, heads, tokens]` each.
struct Operands {
    shape: Shape,
    scale: f32,
    numbers: [Vec<f32>; 3],
    places: [Placed; 3],
}

/// One attention in one way: its graph in an arena of its own, and the seconds of each round.
struct Timed {
    graph: Graph,
    arena: Arena,
    result: Placed,
    seconds: Vec<f64>,
}

impl Bench {
    pub(super) fn new(threads: usize, cancel: CancelFlag) -> Result<Bench> {
        Ok(Bench { backend: Backend::new(Device::cpu()?, threads, cancel)?, ledger: Ledger::new() })
    }

    /// Every shape by the first of `ways` and, where there is one, by the second. `round` is called after every round, the first, which
    /// is not counted, among them.
    pub(super) fn measure(
        &mut self,
        shapes: &[Shape],
        (ways, precision): ([Option<Multiplier>; 2], Precision),
        rounds: usize,
        round: impl Fn(),
    ) -> Result<Vec<Attention>> {
        let mut cases = Vec::new();
        for &shape in shapes {
            self.backend.cancel().check()?;
            let operands = self.operands(shape)?;
            let mut timed = Vec::new();
            for way in ways.into_iter().flatten() {
                timed.push(self.timed(&operands, way, precision)?);
            }
            cases.push((operands, timed));
        }
        for counted in std::iter::once(false).chain(std::iter::repeat_n(true, rounds)) {
            for timed in cases.iter_mut().flat_map(|(_, timed)| timed) {
                let started = Instant::now();
                self.backend.compute(&timed.graph, &mut timed.arena)?;
                if counted {
                    timed.seconds.push(started.elapsed().as_secs_f64());
                }
            }
            round();
        }
        let mut attentions = Vec::new();
        for (operands, timed) in &cases {
            let mut measured = Vec::new();
            for timed in timed {
                self.backend.cancel().check()?;
                let speed = Speed::of(operands.shape.operations(), &timed.seconds);
                measured.push(Measured { speed, error: operands.error(&timed.result)? });
            }
            let ratio = match timed.as_slice() {
                [by, against] => Some(ratio(&by.seconds, &against.seconds)),
                _ => None,
            };
            let mut measured = measured.into_iter();
            attentions.push(Attention { shape: operands.shape, by: measured.next(), against: measured.next(), ratio });
        }
        Ok(attentions)
    }

    fn operands(&self, shape: Shape) -> Result<Operands> {
        let Shape { width, queries, keys, heads } = shape;
        let random = |seed: u64, tokens: usize| sample::randn(seed, width * heads * tokens);
        let numbers = [random(1, queries)?, random(2, keys)?, random(3, keys)?];
        let [q, k, v] = [0, 1, 2].map(|i: usize| self.place([width, heads, [queries, keys, keys][i]], &numbers[i]));
        Ok(Operands { shape, scale: (width as f32).sqrt().recip(), numbers, places: [q?, k?, v?] })
    }

    fn place(&self, dims: [usize; 3], numbers: &[f32]) -> Result<Placed> {
        let impossible = || Error::option("--shapes", "attentions that fit memory", format!("{dims:?}"));
        let shape = pinhole::tensor::Shape::new(&dims).ok_or_else(impossible)?;
        let bytes = shape.bytes(DType::F32).ok_or_else(impossible)?;
        let buffer = Buffer::allocate(self.backend.device(), bytes, &self.ledger, "operands")?;
        let place = Placed::new(&buffer, 0, DType::F32, shape)?;
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        place.write(&bytes)?;
        Ok(place)
    }

    fn timed(&self, operands: &Operands, by: Multiplier, precision: Precision) -> Result<Timed> {
        let Shape { width, queries, heads, .. } = operands.shape;
        let graph = Graph::new(self.backend.device(), 16)?;
        graph.set_kernel(by.kernel());
        graph.set_precision(precision);
        let [q, k, v] = operands.places.each_ref().map(|place| graph.permute(graph.leaf(place)?, [0, 2, 1, 3]));
        let attended = graph.flash_attention(q?, k?, v?, operands.scale, None)?;
        let result = self.place([width, heads, queries], &vec![0.0; width * heads * queries])?;
        graph.store_alone(attended, &result)?;
        let mut arena = Arena::new(self.backend.device(), &self.ledger)?;
        arena.assign(&[&graph])?;
        Ok(Timed { graph, arena, result, seconds: Vec::new() })
    }
}

impl Operands {
    /// The largest error of some queries of `result`, relative to the largest value.
    fn error(&self, result: &Placed) -> Result<f64> {
        let Shape { width, queries, heads, .. } = self.shape;
        let mut bytes = vec![0; result.bytes()];
        result.read(&mut bytes)?;
        let found = bytes.as_chunks::<4>().0;
        let rows = queries * heads;
        let mut worst: f64 = 0.0;
        for row in (0..rows).step_by(rows.div_ceil(CHECKED)) {
            let expected = self.exact(row);
            for (found, expected) in found[row * width..][..width].iter().zip(expected) {
                worst = worst.max((f64::from(f32::from_ne_bytes(*found)) - expected).abs());
            }
        }
        let largest = self.numbers[2].iter().fold(0f32, |most, value| most.max(value.abs()));
        Ok(worst / f64::from(largest))
    }

    /// Row number `row` of the result, in double precision.
    fn exact(&self, row: usize) -> Vec<f64> {
        let Shape { width, keys, heads, .. } = self.shape;
        let [q, k, v] = &self.numbers;
        let (query, head) = (&q[row * width..][..width], row % heads);
        let of_key = |key: usize| (key * heads + head) * width..(key * heads + head + 1) * width;
        let score = |key: usize| {
            let pairs = query.iter().zip(&k[of_key(key)]);
            f64::from(self.scale) * pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>()
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
        let mut all = vec![0.0; width];
        for (key, score) in scores.iter().enumerate() {
            let weight = (score - most).exp() / sum;
            all.iter_mut().zip(&v[of_key(key)]).for_each(|(all, value)| *all += weight * f64::from(*value));
        }
        all
    }
}
