//! Number formats: one table, from which every other part of pinhole reads names, block sizes and ids.

use std::fmt;
use std::str::FromStr;

/// A number format of a tensor in a file or in memory.
///
/// The discriminant is ggml's (and GGUF's) type id. Ids that were retired (4, 5, 31 to 33, 36 to 38)
/// have no variant, and [`DType::from_id`] refuses them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
#[allow(non_camel_case_types, missing_docs)] // the names are the formats' own
pub enum DType {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q8_1 = 9,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    Q8_K = 15,
    IQ2_XXS = 16,
    IQ2_XS = 17,
    IQ3_XXS = 18,
    IQ1_S = 19,
    IQ4_NL = 20,
    IQ3_S = 21,
    IQ2_S = 22,
    IQ4_XS = 23,
    I8 = 24,
    I16 = 25,
    I32 = 26,
    I64 = 27,
    F64 = 28,
    IQ1_M = 29,
    BF16 = 30,
    TQ1_0 = 34,
    TQ2_0 = 35,
    MXFP4 = 39,
    NVFP4 = 40,
    Q1_0 = 41,
    Q2_0 = 42,
}

/// One row of the format table: `(format, name, numbers in a block, bytes in a block)`.
type Row = (DType, &'static str, usize, usize);

/// Every format ggml 0.26 knows. A test in this crate holds it against ggml's own table.
const TABLE: &[Row] = &[
    (DType::F32, "f32", 1, 4),
    (DType::F16, "f16", 1, 2),
    (DType::Q4_0, "q4_0", 32, 18),
    (DType::Q4_1, "q4_1", 32, 20),
    (DType::Q5_0, "q5_0", 32, 22),
    (DType::Q5_1, "q5_1", 32, 24),
    (DType::Q8_0, "q8_0", 32, 34),
    (DType::Q8_1, "q8_1", 32, 36),
    (DType::Q2_K, "q2_k", 256, 84),
    (DType::Q3_K, "q3_k", 256, 110),
    (DType::Q4_K, "q4_k", 256, 144),
    (DType::Q5_K, "q5_k", 256, 176),
    (DType::Q6_K, "q6_k", 256, 210),
    (DType::Q8_K, "q8_k", 256, 292),
    (DType::IQ2_XXS, "iq2_xxs", 256, 66),
    (DType::IQ2_XS, "iq2_xs", 256, 74),
    (DType::IQ3_XXS, "iq3_xxs", 256, 98),
    (DType::IQ1_S, "iq1_s", 256, 50),
    (DType::IQ4_NL, "iq4_nl", 32, 18),
    (DType::IQ3_S, "iq3_s", 256, 110),
    (DType::IQ2_S, "iq2_s", 256, 82),
    (DType::IQ4_XS, "iq4_xs", 256, 136),
    (DType::I8, "i8", 1, 1),
    (DType::I16, "i16", 1, 2),
    (DType::I32, "i32", 1, 4),
    (DType::I64, "i64", 1, 8),
    (DType::F64, "f64", 1, 8),
    (DType::IQ1_M, "iq1_m", 256, 56),
    (DType::BF16, "bf16", 1, 2),
    (DType::TQ1_0, "tq1_0", 256, 54),
    (DType::TQ2_0, "tq2_0", 256, 66),
    (DType::MXFP4, "mxfp4", 32, 17),
    (DType::NVFP4, "nvfp4", 64, 36),
    (DType::Q1_0, "q1_0", 128, 18),
    (DType::Q2_0, "q2_0", 64, 18),
];

impl DType {
    /// Every format, in the order of the table.
    pub fn all() -> impl Iterator<Item = DType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        // Every variant has its row: `every_variant_has_a_row` walks all ids.
        TABLE.iter().find(|row| row.0 == self).unwrap_or(&TABLE[0])
    }

    /// The format with ggml's type id `id`, or `None` where ggml has none (retired ids included).
    pub fn from_id(id: u32) -> Option<DType> {
        DType::all().find(|dtype| dtype.id() == id)
    }

    /// ggml's type id, which is also GGUF's.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// The lower-case name used on the command line and in messages.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// How many numbers share one block; rows must be a multiple of it.
    pub fn block_size(self) -> usize {
        self.row().2
    }

    /// Bytes in one block.
    pub fn block_bytes(self) -> usize {
        self.row().3
    }

    /// Bytes of a row of `n` numbers, or `None` where a block does not divide `n` or the product overflows.
    pub fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_size()) {
            return None;
        }
        (n / self.block_size()).checked_mul(self.block_bytes())
    }

    /// Whether numbers are stored in blocks with a shared scale.
    pub fn is_quantized(self) -> bool {
        self.block_size() > 1
    }

    /// Whether numbers are stored one by one as floating point.
    pub fn is_float(self) -> bool {
        matches!(self, DType::F64 | DType::F32 | DType::F16 | DType::BF16)
    }

    /// Average bits that one number takes.
    pub fn bits_per_weight(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_size() as f64
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no number format has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownDType(pub String);

impl fmt::Display for UnknownDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown number format `{}`", self.0)
    }
}

impl std::error::Error for UnknownDType {}

impl FromStr for DType {
    type Err = UnknownDType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let lower = name.to_ascii_lowercase();
        DType::all().find(|dtype| dtype.name() == lower).ok_or_else(|| UnknownDType(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ffi::table;

    #[test]
    fn the_table_is_ggml_s() {
        for id in 0..table::COUNT {
            let (name, block_size, block_bytes) = table::row(id);
            match DType::from_id(id) {
                Some(dtype) => {
                    assert_eq!(dtype.name(), name.to_ascii_lowercase());
                    assert_eq!((dtype.block_size(), dtype.block_bytes()), (block_size, block_bytes), "{name}");
                }
                None => assert_eq!(block_size, 0, "{name}, id {id}, is missing"),
            }
        }
        assert!(DType::all().all(|dtype| dtype.id() < table::COUNT));
    }

    #[test]
    fn every_variant_has_a_row() {
        let ids: Vec<u32> = DType::all().map(DType::id).collect();
        let retired = [4, 5, 31, 32, 33, 36, 37, 38];
        let expected: Vec<u32> = (0..=DType::Q2_0.id()).filter(|id| !retired.contains(id)).collect();
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, expected);
    }

    #[test]
    fn names_and_ids_lead_back() {
        for dtype in DType::all() {
            assert_eq!(DType::from_id(dtype.id()), Some(dtype));
            assert_eq!(dtype.name().to_ascii_uppercase().parse(), Ok(dtype));
        }
        assert_eq!("q9_9".parse::<DType>(), Err(UnknownDType("q9_9".into())));
    }

    #[test]
    fn row_bytes_counts_whole_blocks() {
        assert_eq!(DType::Q4_K.row_bytes(512), Some(288));
        assert_eq!(DType::Q4_K.row_bytes(511), None);
        assert_eq!(DType::F64.row_bytes(usize::MAX), None);
    }
}
