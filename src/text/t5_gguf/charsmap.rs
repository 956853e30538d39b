//! SentencePiece's normaliser: a trie over UTF-8 (its size in bytes as a `u32`, then units of 4 bytes), whose leaves point
//! into the texts behind it, which end with a zero byte each.

/// The longest text that a character may become, in bytes. NFKC's longest is 33.
const MAX_TEXT: usize = 1024;

/// What is wrong with a map, if anything. Where the trie's leaves point is left to the library, which indexes with
/// them, and to the guard around it.
pub(super) fn fault(map: &[u8]) -> Option<String> {
    let Some((size, rest)) = map.split_first_chunk::<4>() else { return Some(format!("{} bytes", map.len())) };
    let trie = u32::from_le_bytes(*size) as usize;
    if trie == 0 || !trie.is_multiple_of(4) || trie >= rest.len() {
        return Some(format!("{trie} bytes of trie in {} bytes", map.len()));
    }
    let texts = &rest[trie..];
    if let Err(error) = std::str::from_utf8(texts) {
        return Some(format!("texts that are not UTF-8 from byte {} on", 4 + trie + error.valid_up_to()));
    }
    // A character that becomes megabytes would turn a prompt into gigabytes.
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    (longest > MAX_TEXT).then(|| format!("a text of {longest} bytes for one character"))
}
