//! SentencePiece's normaliser: a trie over UTF-8 (its size in bytes as a `u32`, then units of 4 bytes), whose leaves point
//! into the texts behind it, which end with a zero byte each.

/// The longest text that a character may become, in bytes. NFKC's longest is 33.
const MAX_TEXT: usize = 1024;
/// How many bytes the library looks up at once, at most.
const MAX_KEY: usize = 5;

/// How many times as long a text gets by the map, at most; or what is wrong with it. Where leaves point that no text leads to is
/// left to the library, which indexes with them, and to the guard around it.
pub(super) fn growth(map: &[u8]) -> Result<usize, String> {
    let Some((size, rest)) = map.split_first_chunk::<4>() else { return Err(format!("{} bytes", map.len())) };
    let trie = u32::from_le_bytes(*size) as usize;
    if trie == 0 || !trie.is_multiple_of(4) || trie >= rest.len() {
        return Err(format!("{trie} bytes of trie in {} bytes", map.len()));
    }
    let (units, texts) = rest.split_at(trie);
    if let Err(error) = std::str::from_utf8(texts) {
        return Err(format!("texts that are not UTF-8 from byte {} on", 4 + trie + error.valid_up_to()));
    }
    // A character that becomes megabytes would turn a prompt into gigabytes.
    let longest = texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0);
    if longest > MAX_TEXT {
        return Err(format!("a text of {longest} bytes for one character"));
    }
    let units: Vec<Unit> =
        units.as_chunks::<4>().0.iter().map(|&unit| Unit(u32::from_le_bytes(unit) as usize)).collect();
    Ok(furthest(&units, texts).unwrap_or(longest).max(1))
}

/// A unit of the trie, as darts-clone packs it.
#[derive(Clone, Copy)]
struct Unit(usize);

impl Unit {
    fn has_leaf(self) -> bool {
        (self.0 >> 8) & 1 == 1
    }

    fn value(self) -> usize {
        self.0 & 0x7fff_ffff
    }

    fn label(self) -> usize {
        self.0 & 0x8000_00ff
    }

    fn offset(self) -> usize {
        (self.0 >> 10) << ((self.0 & (1 << 9)) >> 6)
    }
}

/// The most bytes of text for a byte of what leads to it. `None` for a trie that leads outside itself or in circles.
fn furthest(units: &[Unit], texts: &[u8]) -> Option<usize> {
    let (mut growth, mut visits) = (1, 0);
    let mut ways = vec![(units.first()?.offset(), 0)];
    while let Some((place, depth)) = ways.pop() {
        visits += 1;
        if visits > units.len() {
            return None;
        }
        for label in 1..=0xff {
            // A trie without holes has no unit for most labels of its last nodes.
            let Some(&unit) = units.get(place ^ label) else { continue };
            if unit.label() != label {
                continue;
            }
            let next = place ^ label ^ unit.offset();
            if unit.has_leaf() {
                // The library takes the first leaf on its way, and what lies behind it never.
                let text = texts.get(units.get(next)?.value()..)?;
                let len = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
                growth = growth.max(len.div_ceil(depth + 1));
            } else if depth + 1 < MAX_KEY {
                ways.push((next, depth + 1));
            }
        }
    }
    Some(growth)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn map(units: &[u32], texts: &str) -> Vec<u8> {
        let units: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&(units.len() as u32).to_le_bytes()[..], &units, texts.as_bytes()].concat()
    }

    /// A trie with one letter: `a` leads to text number `at`.
    fn letter(at: u32) -> Vec<u32> {
        let mut units = vec![0; 256];
        // Offset 0 at the root, so the letter's unit is its code; its leaf is the unit beside it.
        units[0] = 0;
        units[usize::from(b'a')] = u32::from(b'a') | 1 << 8 | 1 << 10;
        units[usize::from(b'a') ^ 1] = at | 1 << 31;
        units
    }

    #[test]
    fn growth_is_that_of_the_letters_that_there_are() {
        assert_eq!(growth(&map(&letter(0), "bbb\0cccccccc\0")), Ok(3));
        assert_eq!(growth(&map(&letter(4), "bbb\0cccccccc\0")), Ok(8));
        assert_eq!(growth(&map(&letter(12), "bbb\0cccccccc\0")), Ok(1));
        // Nowhere: the longest text counts.
        assert_eq!(growth(&map(&letter(99), "bbb\0cccccccc\0")), Ok(8));
    }

    #[test]
    fn circles_end() {
        let mut units = letter(0);
        // Back to the root, for every letter.
        for label in 1..=0xffu32 {
            units[label as usize] = label | label << 10;
        }
        assert_eq!(growth(&map(&units, "bbb\0")), Ok(3));
    }
}
