//! Buffers, places, and the block that graphs share: what does not fit is refused, and everything is given back.

use std::sync::Arc;

use pinhole::Error;
use pinhole::ggml::{Arena, Buffer, Graph, Placed};
use pinhole::index::Map;
use pinhole_quant::DType;

use crate::array::Array;
use crate::rig::{Rig, bytes_of, read, shape};

#[track_caller]
fn refused<T>(part: &str, result: pinhole::Result<T>) {
    let message = match result {
        Err(error @ (Error::Graph { .. } | Error::Device { .. })) => error.to_string(),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("it went well"),
    };
    assert!(message.contains(part) && !message.contains("in ggml"), "`{part}` is not in: {message}");
}

#[test]
fn places_lie_inside_and_aligned() {
    let rig = Rig::new();
    let buffer = rig.buffer(1024);
    let place = |offset, dtype, dims| Placed::new(&buffer, offset, dtype, shape(dims));
    assert!(place(0, DType::F32, [256, 1, 1, 1]).is_ok());
    assert!(place(768, DType::F32, [64, 1, 1, 1]).is_ok());
    refused("1028 bytes at 0 leave a buffer of 1024", place(0, DType::F32, [257, 1, 1, 1]));
    refused("leave", place(1024, DType::F32, [1, 1, 1, 1]));
    refused("leave", place(usize::MAX, DType::F32, [1, 1, 1, 1]));
    refused("leave", place(usize::MAX - 63, DType::F32, [64, 1, 1, 1]));
    refused("leave", place(0, DType::F32, [1 << 40, 1 << 20, 1, 1]));
    refused("offset 4 is not aligned", place(4, DType::F32, [1, 1, 1, 1]));
    refused("q8_0", place(0, DType::Q8_0, [33, 1, 1, 1]));
    // More bytes than a `usize` counts.
    refused("", place(0, DType::F64, [1 << 62, 1, 1, 1]));
}

#[test]
fn lengths_are_those_of_the_place() {
    let rig = Rig::new();
    let place = rig.f32(&Array::random([3, 1, 1, 1], 51));
    for length in [0, 11, 13, 1 << 20] {
        refused(&format!("{length} bytes given for a place of 12"), place.write(&vec![0; length]));
        refused(&format!("{length} bytes given for a place of 12"), place.read(&mut vec![0; length]));
    }
    assert_eq!(read(&place), Array::random([3, 1, 1, 1], 51).f32());
}

#[test]
fn a_map_is_read_and_never_written() {
    let mut rig = Rig::new();
    let array = Array::random([6, 4, 1, 1], 52);
    let map = Map::from_bytes("weights", &bytes_of(&array.f32(), f32::to_ne_bytes)).unwrap();
    let buffer = Buffer::over_map(rig.device, &map).unwrap();
    let place = Placed::new(&buffer, 0, DType::F32, shape(array.dims)).unwrap();
    refused("memory map", place.write(&[0; 96]));
    assert_eq!(read(&place), array.f32());
    let graph = rig.graph();
    let leaf = graph.leaf(&place).unwrap();
    refused("memory map", graph.store(graph.scale(leaf, 2.0).unwrap(), &place));
    assert_eq!(rig.run(|g| g.scale(g.leaf(&place)?, 2.0)).unwrap(), array.map(|x| 2.0 * x));
    // The map belongs to no one's account.
    drop(graph);
    assert_eq!(rig.ledger.usage().by_purpose.get("weights"), None);

    let empty = Map::from_bytes("empty", &[]).unwrap();
    refused("empty", Buffer::over_map(rig.device, &empty));
    refused("leave", Placed::new(&buffer, 64, DType::F32, shape([9, 1, 1, 1])));
}

#[test]
fn graphs_keep_their_buffers() {
    let mut rig = Rig::new();
    let array = Array::random([6, 4, 1, 1], 53);
    let out = rig.f32(&array);
    let graph = rig.graph();
    {
        let place = rig.f32(&array);
        graph.store(graph.scale(graph.leaf(&place).unwrap(), 3.0).unwrap(), &out).unwrap();
    }
    rig.compute(&graph).unwrap();
    let tripled: Vec<f32> = array.f32().iter().map(|x| 3.0 * x).collect();
    assert_eq!(read(&out), tripled);
}

#[test]
fn a_result_is_made_where_it_is_stored() {
    let mut rig = Rig::new();
    let array = Array::random([6, 4, 1, 1], 55);
    let (place, out, other) = (rig.f32(&array), rig.f32(&array), rig.f32(&array));
    // Also where two operations more read it, where one could overwrite it.
    let graph = rig.graph();
    let leaf = graph.leaf(&place).unwrap();
    let doubled = graph.scale(leaf, 2.0).unwrap();
    graph.store_alone(doubled, &out).unwrap();
    assert_eq!((graph.nodes(), Arena::measure(&graph).unwrap()), (1, 0));
    let more = graph.add(graph.silu(doubled).unwrap(), graph.scale(doubled, 1.5).unwrap()).unwrap();
    graph.store_alone(more, &other).unwrap();
    rig.compute(&graph).unwrap();
    let twice = array.map(|x| 2.0 * x);
    assert_eq!(read(&out), twice.f32());
    let expected = twice.map(|x| x / (1.0 + (-x).exp()) + 1.5 * x).f32();
    assert!(read(&other).iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-6));

    // Leaves, views, and what lies at one place already are copied.
    let graph = rig.graph();
    let doubled = graph.scale(graph.leaf(&place).unwrap(), 2.0).unwrap();
    let turned = rig.f32(&Array::random([4, 6, 1, 1], 56));
    graph.store_alone(graph.leaf(&place).unwrap(), &out).unwrap();
    graph.store_alone(doubled, &other).unwrap();
    graph.store_alone(doubled, &rig.f32(&array)).unwrap();
    graph.store_alone(graph.permute(doubled, [1, 0, 2, 3]).unwrap(), &turned).unwrap();
    rig.compute(&graph).unwrap();
    assert_eq!((read(&out), read(&other)), (array.f32(), twice.f32()));
    assert_eq!(read(&turned)[1], twice.f32()[6]);
    let graph = rig.graph();
    let doubled = graph.scale(graph.leaf(&place).unwrap(), 2.0).unwrap();
    refused("[6, 4] into [4, 6]", graph.store_alone(doubled, &turned));
}

#[test]
fn the_account_is_empty_in_the_end() {
    let mut rig = Rig::new();
    let ledger = rig.ledger.clone();
    {
        let graph = rig.graph();
        let out = rig.f32(&Array::random([600, 4, 1, 1], 54));
        let leaf = graph.leaf(&rig.f32(&Array::random([600, 4, 1, 1], 54))).unwrap();
        graph.store(graph.silu(leaf).unwrap(), &out).unwrap();
        assert_eq!(ledger.usage().by_purpose["ports"], 2 * 9600);
        let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
        arena.assign(&[&graph]).unwrap();
        assert_eq!(ledger.usage().by_purpose["activations"], arena.size());
        assert_eq!(ledger.usage().total, 2 * 9600 + arena.size());
        assert_eq!(Arena::measure(&rig.graph()).unwrap(), 0);
        rig.backend.compute(&graph, &mut arena).unwrap();
    }
    let usage = ledger.usage();
    assert_eq!((usage.total, usage.by_purpose["ports"], usage.by_purpose["activations"]), (0, 0, 0));
    assert!(usage.peak > 2 * 9600);
}

#[test]
fn a_place_without_memory_is_measured_and_nothing_else() {
    let rig = Rig::new();
    let nowhere = Buffer::nowhere(rig.device).unwrap();
    let dry = Placed::nowhere(&nowhere, DType::F32, shape([64, 4, 1, 1]));
    let real = rig.f32(&Array::random([64, 4, 1, 1], 55));
    refused("no memory", dry.write(&[0; 1024]));
    refused("no memory", dry.read(&mut [0; 1024]));
    let build = |place: &Placed| {
        let graph = rig.graph();
        graph.store(graph.silu(graph.leaf(place).unwrap()).unwrap(), place).unwrap();
        graph
    };
    let measured = Arena::measure(&build(&dry)).unwrap();
    assert_eq!(measured, Arena::measure(&build(&real)).unwrap());
    let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
    refused("no memory", arena.assign(&[&build(&dry)]));
    arena.assign(&[&build(&real)]).unwrap();
    assert_eq!(arena.size(), measured);
}

/// A graph that writes `by` times what is at `from` to `to`.
fn scaled(rig: &Rig, from: &Placed, to: &Placed, by: f32) -> Graph {
    let graph = rig.graph();
    graph.store(graph.scale(graph.leaf(from).unwrap(), by).unwrap(), to).unwrap();
    graph
}

#[test]
fn a_graph_runs_in_the_arena_that_it_was_given() {
    let mut rig = Rig::new();
    let (a, out) = (rig.f32(&Array::random([64, 4, 1, 1], 56)), rig.f32(&Array::random([64, 4, 1, 1], 57)));
    let graph = scaled(&rig, &a, &out, 2.0);
    let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
    refused("no memory", rig.backend.compute(&graph, &mut arena));
    arena.assign(&[&graph]).unwrap();
    rig.backend.compute(&graph, &mut arena).unwrap();
    // Another arena: its own block says nothing about this graph's.
    let mut other = Arena::new(rig.device, &rig.ledger).unwrap();
    refused("arena", rig.backend.compute(&graph, &mut other));
    refused("has its memory already", other.assign(&[&graph]));
    // The block may have moved with what was assigned later.
    arena.assign(&[&scaled(&rig, &a, &out, 3.0)]).unwrap();
    refused("arena", rig.backend.compute(&graph, &mut arena));
    // And is gone with its arena.
    let graph = scaled(&rig, &a, &out, 2.0);
    arena.assign(&[&graph]).unwrap();
    drop(arena);
    refused("arena", rig.backend.compute(&graph, &mut other));
}

#[test]
fn graphs_take_turns_in_one_arena() {
    let mut rig = Rig::new();
    let (large, small) = (Array::random([300, 4, 1, 1], 58), Array::random([100, 4, 1, 1], 59));
    let (large_in, small_in) = (rig.f32(&large), rig.f32(&small));
    let (large_out, small_out) = (rig.f32(&large), rig.f32(&small));
    // As many nodes and leaves each, so that ggml takes one for the other; but the second needs its first result until
    // the end, where the first can forget it.
    let build = |from: &Placed, to: &Placed, kept: usize| {
        let graph = rig.graph();
        let mut results = vec![graph.leaf(from).unwrap()];
        for i in 0..4 {
            results.push(graph.scale(results[i], 2.0).unwrap());
        }
        graph.store(graph.add(results[4], results[kept]).unwrap(), to).unwrap();
        graph
    };
    let (first, second) = (build(&large_in, &large_out, 3), build(&small_in, &small_out, 1));

    let mut arena = Arena::new(rig.device, &rig.ledger).unwrap();
    arena.assign(&[&first, &second]).unwrap();
    for _ in 0..2 {
        rig.backend.compute(&first, &mut arena).unwrap();
        rig.backend.compute(&second, &mut arena).unwrap();
        assert!(read(&large_out) == large.map(|x| 24.0 * x).f32());
        assert!(read(&small_out) == small.map(|x| 18.0 * x).f32());
    }
}

#[test]
fn a_graph_of_nothing() {
    let mut rig = Rig::new();
    let empty = rig.graph();
    rig.compute(&empty).unwrap();
    let leaf_only = rig.graph();
    let place = rig.f32(&Array::random([3, 1, 1, 1], 60));
    leaf_only.output(leaf_only.leaf(&place).unwrap()).unwrap();
    rig.compute(&leaf_only).unwrap();
    Arena::new(rig.device, &rig.ledger).unwrap().assign(&[]).unwrap();
}

#[test]
fn buffers_are_shared_between_threads() {
    let rig = Rig::new();
    let buffer = rig.buffer(4 * 64);
    let threads: Vec<_> = (0..4)
        .map(|i| {
            let buffer = Arc::clone(&buffer);
            std::thread::spawn(move || {
                let place = Placed::new(&buffer, 64 * i, DType::F32, shape([16, 1, 1, 1])).unwrap();
                place.write(&bytes_of(&[i as f32; 16], f32::to_ne_bytes)).unwrap();
                read(&place)
            })
        })
        .collect();
    for (i, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), [i as f32; 16]);
    }
}
