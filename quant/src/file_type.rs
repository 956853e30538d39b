//! What `--type` takes: the types of files, by their names and by the numbers that GGUF has for them.

use std::fmt;
use std::str::FromStr;

use crate::DType;

/// What users ask for with `--type`: the format of most matrices, and for the K-quants a mix around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)] // the names are the formats' own
pub enum FileType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_K_S,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
    IQ4_NL,
    IQ4_XS,
    Q3_K_M,
    Q3_K_S,
    Q2_K,
}

/// One row of the table of file types: `(type, name, number, format of most matrices)`.
type FileTypeRow = (FileType, &'static str, u32, DType);

/// The numbers are those of `general.file_type` in GGUF (`enum llama_ftype` in llama.cpp's llama.h).
const FILE_TYPES: &[FileTypeRow] = &[
    (FileType::F32, "f32", 0, DType::F32),
    (FileType::F16, "f16", 1, DType::F16),
    (FileType::BF16, "bf16", 32, DType::BF16),
    (FileType::Q8_0, "q8_0", 7, DType::Q8_0),
    (FileType::Q6_K, "q6_k", 18, DType::Q6_K),
    (FileType::Q5_K_M, "q5_k_m", 17, DType::Q5_K),
    (FileType::Q5_K_S, "q5_k_s", 16, DType::Q5_K),
    (FileType::Q5_1, "q5_1", 9, DType::Q5_1),
    (FileType::Q5_0, "q5_0", 8, DType::Q5_0),
    (FileType::Q4_K_M, "q4_k_m", 15, DType::Q4_K),
    (FileType::Q4_K_S, "q4_k_s", 14, DType::Q4_K),
    (FileType::Q4_1, "q4_1", 3, DType::Q4_1),
    (FileType::Q4_0, "q4_0", 2, DType::Q4_0),
    (FileType::IQ4_NL, "iq4_nl", 25, DType::IQ4_NL),
    (FileType::IQ4_XS, "iq4_xs", 30, DType::IQ4_XS),
    (FileType::Q3_K_M, "q3_k_m", 12, DType::Q3_K),
    (FileType::Q3_K_S, "q3_k_s", 11, DType::Q3_K),
    (FileType::Q2_K, "q2_k", 10, DType::Q2_K),
];

impl FileType {
    /// Every file type, largest files first.
    pub fn all() -> impl Iterator<Item = FileType> {
        FILE_TYPES.iter().map(|row| row.0)
    }

    fn row(self) -> &'static FileTypeRow {
        // Every variant has its row: `file_types_are_the_published_ones` names them all.
        FILE_TYPES.iter().find(|row| row.0 == self).unwrap_or(&FILE_TYPES[0])
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The value of `general.file_type` in GGUF.
    pub fn number(self) -> u32 {
        self.row().2
    }

    /// The type whose `general.file_type` is `number`, if it is one of these.
    pub fn from_number(number: u32) -> Option<FileType> {
        FileType::all().find(|file_type| file_type.number() == number)
    }

    /// The format of most matrices.
    pub fn dtype(self) -> DType {
        self.row().3
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no file type has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownFileType(pub String);

impl fmt::Display for UnknownFileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = FileType::all().map(FileType::name).collect();
        write!(f, "unknown type `{}`, expected one of {}", self.0, names.join(", "))
    }
}

impl std::error::Error for UnknownFileType {}

impl FromStr for FileType {
    type Err = UnknownFileType;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let lower = name.to_ascii_lowercase();
        FileType::all().find(|file_type| file_type.name() == lower).ok_or_else(|| UnknownFileType(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_types_are_the_published_ones() {
        let all = [
            (FileType::F32, "f32", 0),
            (FileType::F16, "f16", 1),
            (FileType::Q4_0, "q4_0", 2),
            (FileType::Q4_1, "q4_1", 3),
            (FileType::Q8_0, "q8_0", 7),
            (FileType::Q5_0, "q5_0", 8),
            (FileType::Q5_1, "q5_1", 9),
            (FileType::Q2_K, "q2_k", 10),
            (FileType::Q3_K_S, "q3_k_s", 11),
            (FileType::Q3_K_M, "q3_k_m", 12),
            (FileType::Q4_K_S, "q4_k_s", 14),
            (FileType::Q4_K_M, "q4_k_m", 15),
            (FileType::Q5_K_S, "q5_k_s", 16),
            (FileType::Q5_K_M, "q5_k_m", 17),
            (FileType::Q6_K, "q6_k", 18),
            (FileType::IQ4_NL, "iq4_nl", 25),
            (FileType::IQ4_XS, "iq4_xs", 30),
            (FileType::BF16, "bf16", 32),
        ];
        assert_eq!(all.len(), FileType::all().count());
        for (file_type, name, number) in all {
            assert_eq!((file_type.name(), file_type.number()), (name, number));
            assert_eq!(name.to_ascii_uppercase().parse(), Ok(file_type));
            assert_eq!(FileType::from_number(number), Some(file_type));
            assert!(name.starts_with(file_type.dtype().name()), "{name} of {}", file_type.dtype());
            assert!(crate::rows::can_quantize(file_type.dtype()));
        }
        assert_eq!(FileType::from_number(4), None);
        let message = "q4_k".parse::<FileType>().map_err(|error| error.to_string());
        assert!(message.is_err_and(|m| m.starts_with("unknown type `q4_k`, expected one of f32, f16, bf16, q8_0, ")));
    }
}
