//! Attention over many tokens, which a device must not sum in F16.

use std::ops::Range;

use ggml_sys::account::{self, Memory};
use pinhole::ggml::{Arena, Backend, Buffer, CancelFlag, Device, Graph, Ledger, Placed};
use pinhole::sample::randn;
use pinhole::tensor::Shape;
use pinhole_quant::{DType, metrics};

use super::{GRANULARITY, alone, bits, device};

/// The width of heads, how many there are, how many of keys and values, and tokens: scores of more than pinhole makes at a time.
const WIDTH: usize = 64;
const HEADS: usize = 4;
const GROUPS: usize = 2;
const TOKENS: usize = 1500;

/// Queries, keys, shares and values become F16 where they are multiplied. A software device cuts them off, by 2^-12 of themselves in the mean:
/// shares and values always towards zero, which comes to (2 * 2^-12)^2, and scores by as much in any direction.
const NMSE_OF_FACTORS: f64 = 3e-7;

fn placed(device: Device, dims: &[usize], numbers: &[f32], ledger: &Ledger) -> Placed {
    let shape = Shape::new(dims).unwrap();
    let buffer = Buffer::allocate(device, 4 * shape.elements(), ledger, "test").unwrap();
    let place = Placed::new(&buffer, 0, DType::F32, shape).unwrap();
    place.write(&numbers.iter().flat_map(|number| number.to_ne_bytes()).collect::<Vec<_>>()).unwrap();
    place
}

/// What some queries see of what comes before them: `[d, heads, queries]`.
fn attended(device: Device, queries: Range<usize>) -> Vec<f32> {
    let ledger = Ledger::new();
    let [q, k, v] = [(1, HEADS), (2, GROUPS), (3, GROUPS)].map(|(seed, heads)| {
        placed(device, &[WIDTH, heads, TOKENS], &randn(seed, WIDTH * heads * TOKENS).unwrap(), &ledger)
    });
    let mut mask = vec![f32::NEG_INFINITY; TOKENS * queries.len()];
    for (row, seeing) in mask.chunks_mut(TOKENS).zip(queries.clone()) {
        row[..=seeing].fill(0.0);
    }
    let mask = placed(device, &[TOKENS, queries.len()], &mask, &ledger);
    let out = placed(device, &[WIDTH, HEADS, queries.len()], &vec![0.0; WIDTH * HEADS * queries.len()], &ledger);

    let (graph, mut backend) = (Graph::new(device, 512).unwrap(), Backend::new(device, 2, CancelFlag::new()).unwrap());
    let [q, k, v] = [q, k, v].map(|place| graph.permute(graph.leaf(&place).unwrap(), [0, 2, 1, 3]).unwrap());
    let q = graph.slice(q, 1, queries.start, queries.len()).unwrap();
    let mask = graph.to_f16(graph.leaf(&mask).unwrap()).unwrap();
    let found = graph.flash_attention(q, k, v, (WIDTH as f32).sqrt().recip(), Some(mask)).unwrap();
    graph.store(found, &out).unwrap();

    let planned = Arena::measure(&graph).unwrap() + backend.scratch(&graph).unwrap().bytes();
    let before = account::read(Memory::Device).now;
    account::reset_peak(Memory::Device);
    let mut arena = Arena::new(device, &ledger).unwrap();
    arena.assign(&[&graph]).unwrap();
    backend.reserve(&[&graph], &mut arena).unwrap();
    backend.compute(&graph, &mut arena).unwrap();
    let taken = account::read(Memory::Device).peak - before;
    println!("{}: {taken} bytes taken, {planned} planned", device.name());
    assert!(taken <= planned + GRANULARITY, "{taken} taken, {planned} planned");

    let mut bytes = vec![0; out.bytes()];
    out.read(&mut bytes).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_ne_bytes(number)).collect()
}

#[test]
fn attention_loses_nothing_with_the_number_of_tokens() {
    let _alone = alone();
    println!("attention sums in F16: {}", device().sums_attention_in_f16().unwrap());
    let cpu = attended(Device::cpu().unwrap(), 0..TOKENS);
    let whole = attended(device(), 0..TOKENS);
    let nmse = metrics::nmse(&cpu, &whole).unwrap();
    println!("nmse {nmse:.1e}");
    assert!(nmse < NMSE_OF_FACTORS, "{nmse:.1e}");
    // Some queries see what they see in company, to the bit.
    let some = 700..1030;
    let company = &whole[WIDTH * HEADS * some.start..WIDTH * HEADS * some.end];
    assert!(bits(&attended(device(), some)) == bits(company));
}
