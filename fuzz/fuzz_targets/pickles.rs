//! Any bytes as a file of PyTorch's: an error or a sound index, never a panic. Bytes that begin as neither kind of file are also taken
//! as the object of an older one, so that the machine gets to see them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pinhole::index::Map;
use pinhole::pickle;

/// What stands before the object in an older file, and what may stand behind it.
const BEFORE: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
const BEHIND: &[u8] = b"\x80\x02](X\x01\0\0\x000e.\x04\0\0\0\0\0\0\0................";

fuzz_target!(|bytes: &[u8]| {
    look(bytes);
    if !bytes.starts_with(b"PK") && !bytes.starts_with(&BEFORE[..2]) {
        look(&[BEFORE, bytes, BEHIND].concat());
    }
});

fn look(bytes: &[u8]) {
    let Ok(map) = Map::from_bytes("fuzz.pt", bytes) else { return };
    let Ok(index) = pickle::from_map(&map) else { return };
    for (name, tensor) in index.iter() {
        assert!(!name.is_empty() && index.get(name).is_some_and(|found| found.offset() == tensor.offset()), "{name}");
        assert_eq!(Some(tensor.bytes().len()), tensor.storage.bytes(&tensor.shape), "{name}");
        assert_eq!(tensor.file_shape.iter().product::<usize>(), tensor.shape.elements(), "{name}");
    }
}
