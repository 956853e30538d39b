//! Formats for single tensors, by the pattern of their names: what `--tensor` takes.

use std::fmt;
use std::str::FromStr;

use crate::DType;
use crate::file_type::FileType;

/// What ends the names of matrices, and may be left out of a pattern.
const WEIGHT: &str = ".weight";

/// `NAME=FORMAT`, where `NAME` may have `*` for any run of characters, dots included, `?` for any one, and `[...]` for one of
/// a set: `single_blocks.*.linear1=q5_k`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPattern {
    pattern: glob::Pattern,
    dtype: DType,
}

impl TensorPattern {
    /// Whether the pattern covers all of `name`, or all but a `.weight` at its end; `prefix`, a component's, may stand before.
    pub fn matches(&self, prefix: &str, name: &str) -> bool {
        let covers = |name: &str| {
            self.pattern.matches(name) || name.strip_suffix(WEIGHT).is_some_and(|stem| self.pattern.matches(stem))
        };
        covers(name) || covers(&format!("{prefix}{name}"))
    }

    /// The format that it asks for.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
}

impl fmt::Display for TensorPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.pattern, self.dtype)
    }
}

/// Why a text is no [`TensorPattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// There is no `=` between a name and a format.
    #[error("expected NAME=FORMAT, found `{0}`")]
    Form(String),
    /// The name is no pattern.
    #[error("`{pattern}` is no pattern of names: {message}")]
    Pattern {
        /// The name.
        pattern: String,
        /// What is wrong with it.
        message: &'static str,
    },
    /// There is no such format, or nothing is written in it.
    #[error("expected a format that pinhole writes, found `{0}`")]
    Format(String),
}

impl FromStr for TensorPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<TensorPattern, PatternError> {
        let (name, format) = text.rsplit_once('=').ok_or_else(|| PatternError::Form(text.to_owned()))?;
        let (name, format) = (name.trim(), format.trim());
        if name.is_empty() {
            return Err(PatternError::Form(text.to_owned()));
        }
        let pattern = glob::Pattern::new(name)
            .map_err(|error| PatternError::Pattern { pattern: name.to_owned(), message: error.msg })?;
        let dtype = dtype_of(format).ok_or_else(|| PatternError::Format(format.to_owned()))?;
        Ok(TensorPattern { pattern, dtype })
    }
}

/// The format of that name, or of most matrices in files of that type: `q4_k` and `q4_k_s` are the same to one tensor.
fn dtype_of(name: &str) -> Option<DType> {
    let written = FileType::all().map(FileType::dtype);
    match name.parse::<FileType>() {
        Ok(file_type) => Some(file_type.dtype()),
        Err(_) => name.parse().ok().filter(|dtype| written.into_iter().any(|known| known == *dtype)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        pattern.parse::<TensorPattern>().unwrap().matches("dit.", name)
    }

    #[test]
    fn a_pattern_covers_the_whole_name() {
        assert!(matches("single_blocks.*.linear1=q5_k", "single_blocks.11.linear1.weight"));
        assert!(matches("single_blocks.*.linear1.weight=q5_k", "single_blocks.11.linear1.weight"));
        assert!(matches("*=q8_0", "double_blocks.0.img_attn.qkv.weight"));
        assert!(matches("*_blocks.?.*attn.qkv=q8_0", "double_blocks.0.img_attn.qkv.weight"));
        assert!(matches("double_blocks.[0-3].*=q8_0", "double_blocks.3.img_mlp.0.weight"));
        assert!(!matches("double_blocks.[0-3].*=q8_0", "double_blocks.4.img_mlp.0.weight"));
        assert!(matches("dit.single_blocks.*=q5_k", "single_blocks.11.linear1.weight"));
        assert!(!matches("te.*=q5_k", "single_blocks.11.linear1.weight"));
        assert!(!matches("linear1=q5_k", "single_blocks.11.linear1.weight"));
        assert!(!matches("single_blocks.*.linear1=q5_k", "single_blocks.11.linear1.bias"));
    }

    #[test]
    fn formats_go_by_either_name() {
        let dtype = |text: &str| text.parse::<TensorPattern>().map(|pattern| pattern.dtype());
        assert_eq!(dtype("a=q4_k"), Ok(DType::Q4_K));
        assert_eq!(dtype("a = Q4_K_M"), Ok(DType::Q4_K));
        assert_eq!(dtype("a=bf16"), Ok(DType::BF16));
        assert_eq!("a.*=q5_k_s".parse::<TensorPattern>().unwrap().to_string(), "a.*=q5_k");
    }

    #[test]
    fn mistakes_are_named() {
        let message = |text: &str| text.parse::<TensorPattern>().unwrap_err().to_string();
        assert_eq!(message("linear1"), "expected NAME=FORMAT, found `linear1`");
        assert_eq!(message("=q8_0"), "expected NAME=FORMAT, found `=q8_0`");
        assert_eq!(message("a=q9"), "expected a format that pinhole writes, found `q9`");
        assert_eq!(message("a=q8_1"), "expected a format that pinhole writes, found `q8_1`");
        assert!(message("a[=q8_0").starts_with("`a[` is no pattern of names: "), "{}", message("a[=q8_0"));
    }
}
