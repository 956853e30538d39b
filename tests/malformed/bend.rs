//! Texts with something wrong in a random place, the same for each seed.

/// Values that readers trip over.
const ODD: &[&str] = &[
    "0",
    "-1",
    "1",
    "77",
    "4294967295",
    "18446744073709551615",
    "1e400",
    "0.5",
    "-0.0",
    "NaN",
    "\"\"",
    "\"a\"",
    "null",
    "true",
    "[]",
    "{}",
    "[[]]",
    "\"\\u0000\"",
    "\"▁\"",
    "\"Sequence\"",
    "\"Replace\"",
    "\"(a*)*\"",
    "{\"String\":\"\"}",
    "{\"Regex\":\"a*\"}",
];

/// Marsaglia's xorshift.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most.max(1) as u64) as usize
    }
}

/// `text` with one to four changes: a value exchanged, a stretch left out or doubled, a stretch of `other` put in, a byte changed.
pub(crate) fn bend(random: &mut Random, text: &str, other: &str) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for _ in 0..=random.below(4) {
        let start = random.below(bytes.len());
        let end = bytes.len().min(start + random.below(40));
        match random.below(6) {
            // What lies between two signs of JSON's.
            0 | 1 => {
                let sign = |byte: &u8| b":,[]{}".contains(byte);
                let from = bytes[start..].iter().position(sign).map_or(bytes.len(), |at| start + at + 1);
                let to = bytes[from..].iter().position(sign).map_or(bytes.len(), |at| from + at);
                bytes.splice(from..to, ODD[random.below(ODD.len())].bytes());
            }
            2 => drop(bytes.drain(start..end)),
            3 => {
                let twice = bytes[start..end].to_vec();
                bytes.splice(start..start, twice);
            }
            4 => {
                let from = random.below(other.len());
                let part = other.as_bytes()[from..other.len().min(from + random.below(200))].to_vec();
                bytes.splice(start..end, part);
            }
            _ => {
                if let Some(byte) = bytes.get_mut(start) {
                    *byte = random.below(128) as u8;
                }
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
