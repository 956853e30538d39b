//! EXIF data (CIPA DC-008) with the texts of a picture: one directory that points to another with the texts.

use super::{PARAMETERS, PINHOLE};

/// The most bytes of EXIF data in a JPEG: a segment's 65535, less its length and the name `Exif`.
pub(super) const JPEG_ROOM: usize = 65535 - 2 - 6;

const EXIF_DIRECTORY: u16 = 0x8769;
const MAKER_NOTE: u16 = 0x927c;
const USER_COMMENT: u16 = 0x9286;

/// A 32-bit number.
const LONG: u16 = 4;
/// Bytes of any meaning.
const UNDEFINED: u16 = 7;

/// Bytes of a directory's entry, and of its count and the link to the next together.
const ENTRY: usize = 12;
const AROUND_ENTRIES: usize = 6;
/// Bytes before the first directory.
const HEADER: usize = 8;

/// The texts under [`PARAMETERS`] and [`PINHOLE`] as EXIF data of at most `room` bytes. If both are too long, the second is left
/// out, then the first. Empty if nothing is left.
pub(crate) fn of(text: &[(&str, &str)], room: usize) -> Vec<u8> {
    let mut entries = Vec::new();
    for &(keyword, text) in text {
        match keyword {
            PARAMETERS => entries.push((USER_COMMENT, user_comment(text))),
            PINHOLE => entries.push((MAKER_NOTE, text.as_bytes().to_vec())),
            _ => {}
        }
    }
    // In the order of their tags, as the standard wants them: the maker's note comes first.
    entries.sort_by_key(|(tag, _)| *tag);
    while size(&entries) > room {
        entries.remove(0);
    }
    if entries.is_empty() { Vec::new() } else { encode(&entries) }
}

/// A comment as piexif writes it, and readers expect it: its character code, and UTF-16 from the high byte.
fn user_comment(text: &str) -> Vec<u8> {
    let mut bytes = b"UNICODE\0".to_vec();
    bytes.extend(text.encode_utf16().flat_map(u16::to_be_bytes));
    bytes
}

/// Where the values begin.
fn values_at(entries: &[(u16, Vec<u8>)]) -> usize {
    HEADER + 2 * AROUND_ENTRIES + ENTRY * (1 + entries.len())
}

fn size(entries: &[(u16, Vec<u8>)]) -> usize {
    if entries.is_empty() {
        return 0;
    }
    values_at(entries) + entries.iter().map(|(_, value)| value.len().max(4).next_multiple_of(2)).sum::<usize>()
}

fn encode(entries: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = b"MM\0\x2a".to_vec();
    put_long(&mut bytes, HEADER);
    put_directory(&mut bytes, &[(EXIF_DIRECTORY, LONG, 1, HEADER + AROUND_ENTRIES + ENTRY)]);
    let mut at = values_at(entries);
    let mut directory = Vec::new();
    for (tag, value) in entries {
        // A value of fewer bytes would lie in the entry itself.
        let length = value.len().max(4);
        directory.push((*tag, UNDEFINED, length, at));
        at += length.next_multiple_of(2);
    }
    put_directory(&mut bytes, &directory);
    for (_, value) in entries {
        bytes.extend(value);
        let padded = value.len().max(4).next_multiple_of(2);
        bytes.resize(bytes.len() + padded - value.len(), 0);
    }
    bytes
}

/// Entries of a tag, a type, a count and a value or its place.
fn put_directory(bytes: &mut Vec<u8>, entries: &[(u16, u16, usize, usize)]) {
    bytes.extend((entries.len() as u16).to_be_bytes());
    for &(tag, kind, count, value) in entries {
        bytes.extend(tag.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        put_long(bytes, count);
        put_long(bytes, value);
    }
    put_long(bytes, 0);
}

/// Prompts are far from 4 GiB; what is not is cut off here rather than refused.
fn put_long(bytes: &mut Vec<u8>, value: usize) {
    bytes.extend((value as u32).to_be_bytes());
}
