//! PyTorch's own files: those that `tests/reference/pickles.py` wrote with it, and those that are wrong in one way each.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pinhole::error::{Error, Result};
use pinhole::index::{Index, Map};
use pinhole::{pickle, safetensors};

use crate::bend::Random;
use crate::{contains, message};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pickles")
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(folder().join(name)).unwrap()
}

fn open(bytes: &[u8]) -> Result<Index> {
    pickle::from_map(&Map::from_bytes("bad.pt", bytes).unwrap())
}

/// What must hold of every file that opens. Tensors may share bytes: files have views of one another.
fn check(index: &Index) {
    for (name, tensor) in index.iter() {
        assert!(!name.is_empty() && index.get(name).is_some(), "{name}");
        assert_eq!(Some(tensor.bytes().len()), tensor.storage.bytes(&tensor.shape), "{name}");
        assert_eq!(tensor.file_shape.iter().product::<usize>(), tensor.shape.elements(), "{name}");
    }
}

/// The bytes of an older file whose object is `object`, with the storages `keys`, each with its numbers.
fn older(object: &[u8], keys: &[(&str, u64, &[u8])]) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02".to_vec();
    file.extend(object);
    file.extend(b".\x80\x02](");
    for (key, ..) in keys {
        file.extend(text(key));
    }
    file.extend(b"e.");
    for (_, count, numbers) in keys {
        file.extend(count.to_le_bytes());
        file.extend(*numbers);
    }
    file
}

fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A dictionary of one tensor of floats, `w`, whose storage `0` has `count` numbers. `view` makes its offset, extents and strides.
fn one(count: u8, view: &[u8]) -> Vec<u8> {
    let storage =
        [&b"(X\x07\0\0\0storagectorch\nFloatStorage\n"[..], &text("0"), &text("cpu"), b"K", &[count], b"tQ"].concat();
    let tensor = [&b"ctorch._utils\n_rebuild_tensor_v2\n("[..], &storage, view, b"\x89}tR"].concat();
    [&b"}"[..], &text("w"), &tensor, b"s"].concat()
}

#[track_caller]
fn refused(object: &[u8], keys: &[(&str, u64, &[u8])], parts: &[&str]) {
    contains(&message(open(&older(object, keys))), &[&["bad.pt: "], parts].concat());
}

#[test]
fn files_of_pytorch_hold_what_it_saved() {
    let expected = safetensors::open(&folder().join("expected.safetensors")).unwrap();
    let mut by_file: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in expected.names() {
        let (file, tensor) = name.split_once('/').unwrap();
        by_file.entry(file).or_default().push(tensor);
    }
    assert!(by_file.len() > 10);
    for (file, tensors) in by_file {
        let index = pickle::open(&folder().join(file)).unwrap();
        check(&index);
        let mut found: Vec<&str> = index.iter().map(|(name, _)| name).collect();
        found.sort_unstable();
        let mut wanted = tensors.clone();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{file}");
        for tensor in tensors {
            let (found, wanted) = (index.get(tensor).unwrap(), expected.get(&format!("{file}/{tensor}")).unwrap());
            assert_eq!((found.storage, &found.file_shape), (wanted.storage, &wanted.file_shape), "{file} {tensor}");
            assert_eq!(found.bytes(), wanted.bytes(), "{file} {tensor}");
        }
    }
    // What no weight can be read from is there by name.
    let index = pickle::open(&folder().join("formats.pt")).unwrap();
    let others: Vec<String> = index.others().iter().map(|other| other.refusal().to_string()).collect();
    contains(&others.join("\n"), &["tensor `empty`: expected extents of at least 1", "tensor `complex`", "complex64"]);
}

#[test]
fn functions_are_refused_by_name_and_nothing_runs() {
    for (file, named) in [
        ("system.bin", "found `posix.system`"),
        ("older_system.pt", "object, byte"),
        ("older_system.pt", "found `posix.system`"),
        ("eval.pt", "found `builtins.eval`"),
        ("load.pt", "found `torch.storage._load_from_bytes`"),
        ("numpy.pt", "numpy"),
        ("whole_module.pt", "found `torch.nn.modules.linear.Linear`"),
    ] {
        let error = pickle::open(&folder().join(file)).unwrap_err();
        contains(&error.to_string(), &[file, "expected tensors, and dictionaries of them", named]);
        contains(error.hint().unwrap(), &["runs no code of a file"]);
    }
    assert!(!Path::new("pinhole-was-run").exists());
    let hidden = b"\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R";
    refused(hidden, &[], &["found `os.system`"]);
    refused(b"cos\nsystem\n", &[], &["found `os.system`"]);
    refused(b"(i__main__\nX\n", &[], &["expected an opcode that tensors are made with, found opcode 0x69"]);
    contains(&message(open(&older(b"K\x01", &[]))), &["without a tensor"]);
}

#[test]
fn other_files_of_pytorch_are_called_that() {
    contains(&message(pickle::open(&folder().join("program.pt"))), &["a program of TorchScript"]);
    contains(&message(pickle::open(&folder().join("nothing.pt"))), &["without a tensor"]);
    contains(
        &message(pickle::open(&folder().join("expanded.pt"))),
        &["tensor `weight`: expected numbers that lie in the file once each"],
    );
    contains(&message(open(b"\x80\x02}.")), &["a Python pickle that PyTorch did not write"]);
    contains(
        &message(open(b"PK\x03\x04archive/data.pkl")),
        &["archive: expected a zip archive that ends with its directory"],
    );
}

#[test]
fn views_lie_inside_their_storage() {
    let numbers: Vec<u8> = (1..=6u8).flat_map(|number| f32::from(number).to_le_bytes()).collect();
    let keys: [(&str, u64, &[u8]); 1] = [("0", 6, &numbers)];
    let index = open(&older(&one(6, b"K\x01K\x02K\x02\x86K\x02K\x01\x86"), &keys)).unwrap();
    assert_eq!(index.get("w").unwrap().bytes(), &numbers[4..20]);
    for view in [
        &b"K\x03K\x02K\x02\x86K\x02K\x01\x86"[..],
        b"K\x07K\x01\x85K\x01\x85",
        b"K\x00K\x02\x85K\x06\x85",
        b"K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\x01\x85",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x01\x85K\x01\x85",
    ] {
        contains(
            &message(open(&older(&one(6, view), &keys))),
            &["tensor `w`: expected numbers among the 6 of its storage"],
        );
    }
    refused(&one(6, b"K\x00K\x02K\x02\x86K\x01\x85"), &keys, &["expected 2 strides, found 1"]);
    refused(&one(6, b"J\xff\xff\xff\xffK\x02\x85K\x01\x85"), &keys, &["none below 0"]);
    let endless =
        b"K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x86K\x00K\x00\x86";
    refused(&one(6, endless), &keys, &["numbers that lie in the file once each"]);
    refused(&one(6, b"K\x00K\x07\x85K\x00\x85"), &keys, &["numbers that lie in the file once each"]);
    refused(
        &one(7, b"K\x00K\x02\x85K\x01\x85"),
        &keys,
        &["expected 7 numbers of 4 bytes in its storage, found 24 bytes"],
    );
    refused(
        &one(6, b"K\x00K\x02\x85K\x01\x85"),
        &[("1", 6, &numbers)],
        &["storage `1`: expected a storage of a tensor"],
    );
    refused(&one(6, b"K\x00K\x02\x85K\x01\x85"), &[], &["tensor `w`: expected the numbers of its storage"]);
    refused(&one(6, b"K\x00K\x02\x85K\x01\x85"), &[("0", u64::MAX, &numbers)], &["storage `0`: expected its numbers"]);
}

#[test]
fn machines_that_stumble() {
    for (object, part) in [
        (&b"0"[..], "a value on the stack"),
        (b"t", "a mark on the stack"),
        (b"h\x07", "none as number 7"),
        (b"K\x01K\x02a", "a list to append to, found 1"),
        (b"](K\x01u", "a dictionary to add to"),
        (b"}(K\x01u", "keys with their values, found 1 of both"),
        (b"K\x01)R", "a function to call, found 1"),
        (b"ccollections\nOrderedDict\nK\x01R", "the arguments of a function, found 1"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R", "arguments of a tensor, found 0 others"),
        (b"K\x01Q", "a storage with its class, key and size"),
        (b"K\x01}b", "a dictionary to give a state to, found 1"),
        (b"X\xff\xff\xff\xff", "4294967295 bytes"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff", "bytes, found"),
    ] {
        contains(&message(open(&older(object, &[]))), &["bad.pt: object, byte ", part]);
    }
}

/// Dictionaries that hold each other: twice each, which would be 2^40 values, and in a circle.
#[test]
fn dictionaries_that_never_end() {
    let mut twice = b"}".to_vec();
    for key in 0..40u8 {
        twice.extend([b'q', key]);
        twice.extend([&b"}"[..], &text("a"), b"h", &[key], b"s", &text("b"), b"h", &[key], b"s"].concat());
    }
    refused(&twice, &[], &["expected at most 1048576 values, 16 within each other"]);
    refused(&[&b"}q\0"[..], &text("a"), b"h\0s"].concat(), &[], &["16 within each other"]);
}

#[test]
fn archives_are_stored_as_they_are() {
    let file = bytes("views.pt");
    let at = |part: &[u8], nth: usize| {
        let mut found = (0..file.len() - part.len()).filter(|at| file[*at..].starts_with(part));
        found.nth(nth).unwrap()
    };
    let bent = |at: usize, new: &[u8]| {
        let mut bent = file.clone();
        bent[at..at + new.len()].copy_from_slice(new);
        message(open(&bent))
    };
    // The method of compression, in the directory.
    contains(
        &bent(at(b"PK\x01\x02", 0) + 10, &[8]),
        &["entry `views/data.pkl`: expected an entry that is stored as it is"],
    );
    // The second storage begins where the first does.
    let (first, second) = (at(b"PK\x01\x02", 4), at(b"PK\x01\x02", 5));
    let start = file[first + 42..first + 46].to_vec();
    contains(&bent(second + 42, &start), &["archive"]);
    // The record at the end.
    contains(&bent(file.len() - 22, b"XX"), &["archive: expected a zip archive that ends with its directory"]);
    let order = at(b"little", 0);
    contains(&bent(order, b"biglit"), &["byteorder: expected `little`, found `biglit`"]);
}

/// Whatever is cut off or changed: an error, or an index that is sound.
#[test]
fn damaged_files() {
    let mut random = Random(7);
    for name in ["nested.bin", "views.pt", "older.pt", "protocol_4.pt", "formats.pt", "checkpoint.ckpt"] {
        let file = bytes(name);
        for length in (0..file.len()).step_by(1 + file.len() / 400) {
            assert!(open(&file[..length]).is_err(), "{name} {length}");
        }
        for _ in 0..1500 {
            let mut bent = file.clone();
            for _ in 0..=random.below(3) {
                let at = random.below(bent.len());
                bent[at] = random.below(256) as u8;
            }
            match open(&bent) {
                Ok(index) => check(&index),
                Err(Error::Malformed { .. } | Error::NotAModel { .. }) => {}
                Err(error) => panic!("{name}: {error:?}"),
            }
        }
    }
}
