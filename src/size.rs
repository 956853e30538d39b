//! Sizes in bytes, as people write and read them. Units are binary: `4G`, `4GB` and `4GiB` are all 4 x 2^30 bytes, since
//! that is how device memory is sold and reported.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(pub u64);

/// Why a text is no [`Size`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SizeError(&'static str);

/// The letters of the units, each 1024 times the one before.
const UNITS: &str = "KMGTP";

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Size, SizeError> {
        const FORM: SizeError = SizeError("expected a size as 4G, 3500M, 1.5GiB or a number of bytes");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: f64 = number.parse().map_err(|_| FORM)?;
        let unit = unit.trim_start().to_ascii_uppercase();
        let letter = unit.strip_suffix("IB").or(unit.strip_suffix('B')).unwrap_or(&unit);
        let power = match letter {
            // "iB" alone is no unit.
            "" if !unit.ends_with("IB") => 0,
            _ if letter.len() == 1 => UNITS.find(letter).ok_or(FORM)? as i32 + 1,
            _ => return Err(FORM),
        };
        let bytes = number * 1024f64.powi(power);
        // Beyond 2^53 a byte more or less cannot be told apart, and no machine has it.
        if bytes >= (1u64 << 53) as f64 {
            return Err(SizeError("more memory than any machine has"));
        }
        match bytes as u64 {
            0 => Err(SizeError("expected more than 0 bytes")),
            bytes => Ok(Size(bytes)),
        }
    }
}

impl fmt::Display for Size {
    /// With three digits: `511 B`, `1.50 MiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, None);
        for letter in UNITS.chars() {
            // What would be shown as a full 1024 of a unit is one of the next.
            if value < 1023.5 {
                break;
            }
            (value, unit) = (value / 1024.0, Some(letter));
        }
        let Some(unit) = unit else { return write!(f, "{} B", self.0) };
        let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
        write!(f, "{value:.digits$} {unit}iB")
    }
}

impl Size {
    /// The smallest number of whole units that is at least as much, as an option takes it: `1741M`.
    pub fn rounded_up(self) -> String {
        let (unit, letter) = match self.0 {
            ..0x40_0000 => (1 << 10, 'K'),
            _ => (1 << 20, 'M'),
        };
        format!("{}{letter}", self.0.div_ceil(unit))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read() {
        for text in ["4G", "4g", "4GB", "4GiB", "4 GiB", "4gib", "4096M", "4294967296", "4294967296B"] {
            assert_eq!(text.parse(), Ok(Size(4 << 30)), "{text}");
        }
        assert_eq!("1.5M".parse(), Ok(Size(3 << 19)));
        for text in
            ["", "0", "0G", "-1", "banana", "4X", "4GG", "iB", "4iB", "G", "1e9", "4 4", "inf", "99999999T", "1.2.3"]
        {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        let cases = [(511, "511 B"), (1024, "1.00 KiB"), (3 << 19, "1.50 MiB"), (1_048_570, "1.00 MiB")];
        for (bytes, text) in cases {
            assert_eq!(Size(bytes).to_string(), text);
        }
        assert_eq!(Size(u64::MAX).to_string(), "16384 PiB");
    }

    proptest! {
        #[test]
        fn what_is_rounded_up_is_enough(bytes in 1u64..1 << 45) {
            let again: Size = Size(bytes).rounded_up().parse().unwrap();
            prop_assert!(again.0 >= bytes && again.0 - bytes < 1 << 20);
        }
    }
}
