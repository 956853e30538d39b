//! What is measured.

use std::fmt;
use std::str::FromStr;

use clap::ValueEnum;
use pinhole::kernels::Precision;
use serde::Serialize;

/// Extents of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Shape {
    /// Numbers of one head of a token.
    pub(super) width: usize,
    pub(super) queries: usize,
    pub(super) keys: usize,
    pub(super) heads: usize,
}

impl Shape {
    /// Multiplications and additions.
    pub(super) fn operations(self) -> f64 {
        4.0 * self.width as f64 * self.queries as f64 * self.keys as f64 * self.heads as f64
    }
}

/// What attention is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum By {
    /// Single precision
    Exact,
    /// Whole numbers of 11 to 13 bits, as in denoisers with quantized weights
    Codes,
}

impl By {
    pub(super) fn precision(self) -> Precision {
        match self {
            By::Exact => Precision::Exact,
            By::Codes => Precision::Codes,
        }
    }
}

impl FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Shape, String> {
        let expected = "width, queries, keys and heads, as in 128x4608x4608x24: at most 2^12, 2^20, 2^20 and 2^10";
        let extents: Option<Vec<usize>> = text.split('x').map(|extent| extent.parse().ok()).collect();
        // Small enough that no product of extents overflows.
        match extents.as_deref() {
            Some(&[width @ 1..=0x1000, queries @ 1..=0x10_0000, keys @ 1..=0x10_0000, heads @ 1..=0x400]) => {
                Ok(Shape { width, queries, keys, heads })
            }
            _ => Err(expected.into()),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { width, queries, keys, heads } = self;
        write!(f, "{width}x{queries}x{keys}x{heads}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_four_numbers() {
        let shape = Shape { width: 40, queries: 4096, keys: 77, heads: 8 };
        assert_eq!("40x4096x77x8".parse(), Ok(shape));
        assert_eq!(shape.to_string(), "40x4096x77x8");
        for text in ["", "40", "40x4096x77", "40x4096x77x8x1", "0x1x1x1", "1x1x1x-1", "4097x1x1x1", "1x1048577x1x1"] {
            assert!(text.parse::<Shape>().is_err(), "{text}");
        }
    }
}
