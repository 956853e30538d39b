//! Recipes: which weight of a model gets which number format.
//!
//! What the common converters of diffusion models do, so that files have the sizes and the quality that people know:
//! vectors and small tensors stay F32, only matrices are quantized, the layers where the model's inputs come in and its
//! result goes out are kept, and rows that a block does not divide become F16.

use std::fmt;

use crate::DType;
pub use crate::file_type::FileType;
use crate::pattern::TensorPattern;

/// What a weight is to its model, as far as precision goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The matrix of a linear layer.
    MatMul,
    /// A matrix whose products may exceed F16's range, as T5's feed-forward output `wo`: quantized as others are, and
    /// never F16.
    WideMatMul,
    /// A matrix that is kept unquantized: FLUX's `txt_in`, `img_in`, `time_in`, `vector_in`, `guidance_in` and `final_layer`.
    SensitiveMatMul,
    /// A table whose rows are looked up: tokens, positions.
    Embedding,
    /// The kernel of a convolution, which is never quantized.
    ConvKernel,
    /// Biases, norm scales, small tables that are added: F32 always.
    Vector,
}

/// A weight, as a recipe sees it.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// What stands before its name in a bundle: `dit.`.
    pub prefix: &'a str,
    /// Its name, without that.
    pub name: &'a str,
    /// What it is to its model.
    pub role: Role,
    /// Numbers in a row, the fastest dimension.
    pub row_len: usize,
    /// Numbers in all.
    pub elements: usize,
    /// The format that it comes in; F16 for one in 8-bit floats, which F16 holds exactly.
    pub source: DType,
}

/// Why a weight is not in the format that its file type asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fallback {
    /// The blocks of `wanted` do not divide its rows.
    RowLength {
        /// The format asked for.
        wanted: DType,
        /// Numbers in a row.
        row_len: usize,
    },
    /// Its products may exceed F16's range.
    Range,
    /// The model's answers depend on it more than on others.
    Finer {
        /// The format asked for.
        wanted: DType,
    },
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fallback::RowLength { wanted, row_len } => {
                write!(f, "{wanted} has blocks of {}, which do not divide its rows of {row_len}", wanted.block_size())
            }
            Fallback::Range => f.write_str("its products may exceed the range of f16"),
            Fallback::Finer { wanted } => write!(f, "in {wanted} it would cost more quality than it saves room"),
        }
    }
}

/// The format of a weight in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The format.
    pub dtype: DType,
    /// Why it is not what the file type asks for, where it is not.
    pub fallback: Option<Fallback>,
}

/// Tensors of up to this many numbers are F32: they take no room.
const SMALL: usize = 1024;

/// The format of `weight` in a file of `file_type`, without a mix.
///
/// - Vectors and tensors of at most 1024 numbers: F32.
/// - Under f32, f16 and bf16, all others are of that type.
/// - Under a quantized type, matrices and embeddings are quantized, and F16 where blocks do not divide their rows. All others
///   are BF16 from BF16, F32 and F64, F16 from F16, and F32 from anything else.
/// - Where that makes F16 of a [`Role::WideMatMul`], it is BF16 from BF16, and otherwise F32.
pub fn choose(file_type: FileType, weight: &Weight) -> Choice {
    choose_as(file_type.dtype(), weight)
}

fn choose_as(matrix: DType, weight: &Weight) -> Choice {
    use Role::{ConvKernel, Embedding, MatMul, SensitiveMatMul, Vector, WideMatMul};
    if weight.elements <= SMALL {
        return Choice { dtype: DType::F32, fallback: None };
    }
    match weight.role {
        Vector => Choice { dtype: DType::F32, fallback: None },
        SensitiveMatMul | ConvKernel if matrix.is_quantized() => {
            Choice { dtype: unquantized(weight.source), fallback: None }
        }
        WideMatMul => widen(divide(matrix, weight.row_len), weight.source),
        MatMul | Embedding | SensitiveMatMul | ConvKernel => divide(matrix, weight.row_len),
    }
}

/// The format of what is kept under a quantized type.
fn unquantized(source: DType) -> DType {
    match source {
        DType::BF16 | DType::F32 | DType::F64 => DType::BF16,
        DType::F16 => DType::F16,
        _ => DType::F32,
    }
}

/// `matrix`, or F16 where its blocks do not divide the rows.
fn divide(matrix: DType, row_len: usize) -> Choice {
    if row_len.is_multiple_of(matrix.block_size()) {
        return Choice { dtype: matrix, fallback: None };
    }
    Choice { dtype: DType::F16, fallback: Some(Fallback::RowLength { wanted: matrix, row_len }) }
}

/// `choice`, or what has F32's range where it is F16.
fn widen(choice: Choice, source: DType) -> Choice {
    if choice.dtype != DType::F16 {
        return choice;
    }
    let dtype = if source == DType::BF16 { DType::BF16 } else { DType::F32 };
    Choice { dtype, fallback: choice.fallback.or(Some(Fallback::Range)) }
}

/// One line of a mix: in files of `file_type` and models of `architecture`, the first `first` weights whose name ends in
/// `suffix` are in `dtype`.
#[derive(Debug)]
struct Mix {
    /// As in GGUF's `general.architecture`.
    architecture: &'static str,
    file_type: FileType,
    first: usize,
    suffix: &'static str,
    dtype: DType,
}

const ALL: usize = usize::MAX;

impl Mix {
    const fn new(
        architecture: &'static str,
        file_type: FileType,
        first: usize,
        suffix: &'static str,
        dtype: DType,
    ) -> Mix {
        Mix { architecture, file_type, first, suffix, dtype }
    }
}

/// The mixes of ComfyUI-GGUF's patched llama.cpp, which made the files that people have. The fused query, key and value are
/// what llama.cpp does to `attn_qkv` (`src/llama-quant.cpp`).
const MIXES: &[Mix] = &[
    Mix::new("flux", FileType::Q3_K_M, ALL, "attn.qkv.weight", DType::Q4_K),
    Mix::new("flux", FileType::Q4_K_M, ALL, "attn.qkv.weight", DType::Q5_K),
    Mix::new("flux", FileType::Q5_K_M, ALL, "attn.qkv.weight", DType::Q6_K),
    Mix::new("wan", FileType::Q4_K_S, 4, ".v.weight", DType::Q5_K),
    Mix::new("wan", FileType::Q4_K_S, ALL, ".ffn.2.weight", DType::Q5_K),
];

/// What is not as coarse as the rest of a model of `architecture`: modulation, which says what a prompt changes, and the blocks at both
/// ends.
#[derive(Debug)]
struct Finer {
    architecture: &'static str,
    /// How the names of modulation end, and the coarsest format that they have.
    modulation: &'static [&'static str],
    least: DType,
    /// How the names of blocks begin; their number follows.
    blocks: &'static str,
    /// The formats of the first and the last block by those of the others: the bits of a number up to which the others have, finest
    /// last.
    ends: &'static [(f64, DType)],
}

/// Which families need that. Without it, edits of 2 to 4 bits lose the instruction.
const FINER: &[Finer] = &[
    Finer {
        architecture: "qwen_image",
        modulation: &[".img_mod.1.weight", ".txt_mod.1.weight"],
        least: DType::Q8_0,
        blocks: "transformer_blocks.",
        ends: &[(4.0, DType::Q4_K), (5.2, DType::Q5_K)],
    },
    // All blocks share one modulation.
    Finer {
        architecture: "qwen_image_21",
        modulation: &["modulation.1.weight"],
        least: DType::Q8_0,
        blocks: "transformer_blocks.",
        ends: &[],
    },
];

impl Finer {
    /// The format of the weight `name` where `wanted` is asked for, if that is too coarse. `last` is the number of the last block.
    fn than(&self, wanted: DType, name: &str, last: Option<usize>) -> Option<DType> {
        if !wanted.is_quantized() {
            return None;
        }
        if self.modulation.iter().any(|end| name.ends_with(end)) {
            return (wanted.bits_per_weight() < self.least.bits_per_weight()).then_some(self.least);
        }
        let number = block(self.blocks, name)?;
        let is_end = number == 0 || Some(number) == last;
        let finer = self.ends.iter().find(|(bits, _)| wanted.bits_per_weight() < *bits);
        finer.filter(|_| is_end).map(|(_, finer)| *finer)
    }
}

/// The number of the block that `name` is of.
fn block(start: &str, name: &str) -> Option<usize> {
    name.strip_prefix(start)?.split('.').next()?.parse().ok()
}

/// The recipe for one file: [`choose`], the mix of the file's type and architecture, and patterns that overrule both.
#[derive(Debug)]
pub struct Recipe {
    file_type: FileType,
    /// The lines of the mix that apply, each with how many weights it still takes.
    mixes: Vec<(&'static Mix, usize)>,
    finer: Option<&'static Finer>,
    /// The number of the last block.
    last: Option<usize>,
    patterns: Vec<TensorPattern>,
}

impl Recipe {
    /// The recipe for a file of `file_type` with a model of `architecture` (as in GGUF's `general.architecture`). An
    /// architecture that has no mix is no error.
    pub fn new(file_type: FileType, architecture: &str) -> Recipe {
        let mixes = MIXES
            .iter()
            .filter(|mix| mix.architecture == architecture && mix.file_type == file_type)
            .map(|mix| (mix, mix.first))
            .collect();
        let finer = FINER.iter().find(|finer| finer.architecture == architecture);
        Recipe { file_type, mixes, finer, last: None, patterns: Vec::new() }
    }

    /// The same for a file with weights of these `names`: which block is the last is read off them.
    #[must_use]
    pub fn for_names<'n>(self, names: impl Iterator<Item = &'n str>) -> Recipe {
        let last = self.finer.and_then(|finer| names.filter_map(|name| block(finer.blocks, name)).max());
        Recipe { last: self.last.max(last), ..self }
    }

    /// The same with `patterns`: the last one that matches a weight decides its format. They reach matrices, those that
    /// are kept unquantized otherwise included; and the kernels of convolutions, but with formats that are not quantized.
    #[must_use]
    pub fn with_patterns(self, patterns: Vec<TensorPattern>) -> Recipe {
        Recipe { patterns, ..self }
    }

    /// The type that the recipe is for.
    pub fn file_type(&self) -> FileType {
        self.file_type
    }

    /// The format of the next weight. Some mixes count, so the weights of a file are asked for once each, in the file's order.
    pub fn choose(&mut self, weight: &Weight) -> Choice {
        let mixed = self.mixed(weight.name);
        match self.patterns.iter().rfind(|pattern| reaches(pattern, weight)) {
            Some(pattern) => choose_as(pattern.dtype(), &Weight { role: asked_for(weight.role), ..*weight }),
            None => {
                let wanted = mixed.unwrap_or(self.file_type.dtype());
                match self.finer.and_then(|finer| finer.than(wanted, weight.name, self.last)) {
                    Some(finer)
                        if matches!(weight.role, Role::MatMul | Role::WideMatMul) && weight.elements > SMALL =>
                    {
                        let choice = choose_as(finer, weight);
                        Choice { fallback: choice.fallback.or(Some(Fallback::Finer { wanted })), ..choice }
                    }
                    _ => choose_as(wanted, weight),
                }
            }
        }
    }

    fn mixed(&mut self, name: &str) -> Option<DType> {
        let (mix, left) = self.mixes.iter_mut().find(|(mix, left)| *left > 0 && name.ends_with(mix.suffix))?;
        *left -= 1;
        Some(mix.dtype)
    }
}

/// Whether `pattern` decides the format of `weight`: it matches the name, and asks for a format that such a weight can have.
pub fn reaches(pattern: &TensorPattern, weight: &Weight) -> bool {
    let possible = match weight.role {
        Role::Vector => false,
        Role::ConvKernel => !pattern.dtype().is_quantized(),
        Role::MatMul | Role::WideMatMul | Role::SensitiveMatMul | Role::Embedding => true,
    };
    possible && weight.elements > SMALL && pattern.matches(weight.prefix, weight.name)
}

/// A pattern that matches a sensitive matrix gives it the pattern's format.
fn asked_for(role: Role) -> Role {
    if role == Role::SensitiveMatMul { Role::MatMul } else { role }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(name: &str, role: Role, row_len: usize, elements: usize, source: DType) -> Weight<'_> {
        Weight { prefix: "x.", name, role, row_len, elements, source }
    }

    /// The weights of a FLUX-like bundle: name, role, numbers in a row, numbers in all.
    const WEIGHTS: &[(&str, Role, usize, usize)] = &[
        ("dit.img_in.weight", Role::SensitiveMatMul, 64, 64 * 3072),
        ("dit.double_blocks.0.img_attn.qkv.weight", Role::MatMul, 3072, 3072 * 9216),
        ("dit.double_blocks.0.img_attn.qkv.bias", Role::Vector, 9216, 9216),
        ("dit.double_blocks.0.img_mlp.0.weight", Role::MatMul, 3072, 3072 * 12288),
        ("dit.odd.weight", Role::MatMul, 96, 96 * 96),
        ("dit.tiny.weight", Role::MatMul, 32, 32 * 32),
        ("te.token_embd.weight", Role::Embedding, 4096, 4096 * 32128),
        ("te.enc.blk.0.ffn_down.weight", Role::WideMatMul, 10240, 10240 * 4096),
        ("te.odd.ffn_down.weight", Role::WideMatMul, 96, 96 * 64),
        ("vae.decoder.conv_in.weight", Role::ConvKernel, 3, 3 * 3 * 16 * 512),
    ];

    /// The formats of `WEIGHTS`, in order; a `!` marks a fallback.
    fn formats(file_type: FileType, source: DType) -> String {
        let mut recipe = Recipe::new(file_type, "flux");
        WEIGHTS
            .iter()
            .map(|(name, role, row_len, elements)| {
                let choice = recipe.choose(&weight(name, *role, *row_len, *elements, source));
                format!("{}{}", choice.dtype, if choice.fallback.is_some() { "!" } else { "" })
            })
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn golden_formats() {
        use DType as D;
        use FileType as F;
        let golden = [
            // img_in qkv bias mlp odd tiny embedding wo odd-wo conv
            (F::F32, D::BF16, "f32 f32 f32 f32 f32 f32 f32 f32 f32 f32"),
            (F::F16, D::BF16, "f16 f16 f32 f16 f16 f32 f16 bf16! bf16! f16"),
            (F::F16, D::F32, "f16 f16 f32 f16 f16 f32 f16 f32! f32! f16"),
            (F::F16, D::F16, "f16 f16 f32 f16 f16 f32 f16 f32! f32! f16"),
            (F::BF16, D::F32, "bf16 bf16 f32 bf16 bf16 f32 bf16 bf16 bf16 bf16"),
            (F::Q8_0, D::BF16, "bf16 q8_0 f32 q8_0 q8_0 f32 q8_0 q8_0 q8_0 bf16"),
            (F::Q8_0, D::F16, "f16 q8_0 f32 q8_0 q8_0 f32 q8_0 q8_0 q8_0 f16"),
            (F::Q8_0, D::F32, "bf16 q8_0 f32 q8_0 q8_0 f32 q8_0 q8_0 q8_0 bf16"),
            (F::Q8_0, D::F64, "bf16 q8_0 f32 q8_0 q8_0 f32 q8_0 q8_0 q8_0 bf16"),
            (F::Q8_0, D::Q6_K, "f32 q8_0 f32 q8_0 q8_0 f32 q8_0 q8_0 q8_0 f32"),
            (F::Q6_K, D::BF16, "bf16 q6_k f32 q6_k f16! f32 q6_k q6_k bf16! bf16"),
            (F::Q4_K_S, D::BF16, "bf16 q4_k f32 q4_k f16! f32 q4_k q4_k bf16! bf16"),
            (F::Q4_K_S, D::F16, "f16 q4_k f32 q4_k f16! f32 q4_k q4_k f32! f16"),
            (F::Q4_K_M, D::BF16, "bf16 q5_k f32 q4_k f16! f32 q4_k q4_k bf16! bf16"),
            (F::Q5_K_M, D::BF16, "bf16 q6_k f32 q5_k f16! f32 q5_k q5_k bf16! bf16"),
            (F::Q3_K_M, D::BF16, "bf16 q4_k f32 q3_k f16! f32 q3_k q3_k bf16! bf16"),
            (F::Q4_1, D::BF16, "bf16 q4_1 f32 q4_1 q4_1 f32 q4_1 q4_1 q4_1 bf16"),
            (F::IQ4_NL, D::BF16, "bf16 iq4_nl f32 iq4_nl iq4_nl f32 iq4_nl iq4_nl iq4_nl bf16"),
            (F::IQ4_XS, D::BF16, "bf16 iq4_xs f32 iq4_xs f16! f32 iq4_xs iq4_xs bf16! bf16"),
        ];
        for (file_type, source, expected) in golden {
            assert_eq!(formats(file_type, source), expected, "{file_type} from {source}");
        }
    }

    #[test]
    fn patterns_overrule_types_and_mixes() {
        let patterns = ["dit.*=q6_k", "*.img_mlp.0=q5_0", "vae.*=f32", "vae.*=q8_0", "*=q4_k_s", "dit.img_in=q8_0"];
        let patterns = |range: std::ops::Range<usize>| -> Vec<TensorPattern> {
            patterns[range].iter().filter_map(|text| text.parse().ok()).collect()
        };
        let formats = |patterns: Vec<TensorPattern>| {
            let mut recipe = Recipe::new(FileType::Q4_K_M, "flux").with_patterns(patterns);
            WEIGHTS
                .iter()
                .map(|(name, role, row_len, elements)| {
                    recipe.choose(&weight(name, *role, *row_len, *elements, DType::BF16)).dtype.name()
                })
                .collect::<Vec<_>>()
                .join(" ")
        };
        // Rows of 64 and 96 do not fit blocks of 256, and biases, small tensors and kernels are not quantized.
        assert_eq!(formats(patterns(0..4)), "f16 q6_k f32 q5_0 f16 f32 q4_k q4_k bf16 f32");
        // The last one decides.
        assert_eq!(formats(patterns(0..5)), "f16 q4_k f32 q4_k f16 f32 q4_k q4_k bf16 f32");
        assert_eq!(formats(patterns(5..6)), "q8_0 q5_k f32 q4_k f16 f32 q4_k q4_k bf16 bf16");
    }

    #[test]
    fn mixes_count_in_order_and_only_in_their_architecture() {
        let mut wan = Recipe::new(FileType::Q4_K_S, "wan");
        let mut flux = Recipe::new(FileType::Q4_K_S, "flux");
        for block in 0..6 {
            let v = format!("blocks.{block}.self_attn.v.weight");
            let v = weight(&v, Role::MatMul, 1536, 1536 * 1536, DType::F32);
            assert_eq!(wan.choose(&v).dtype, if block < 4 { DType::Q5_K } else { DType::Q4_K }, "{}", v.name);
            assert_eq!(flux.choose(&v).dtype, DType::Q4_K);
            let ffn = Weight { name: "blocks.0.ffn.2.weight", ..v };
            assert_eq!(wan.choose(&ffn).dtype, DType::Q5_K);
        }
        assert_eq!(wan.file_type(), FileType::Q4_K_S);
    }

    #[test]
    fn modulation_and_the_ends_of_a_model_are_finer() {
        let names = [
            "transformer_blocks.0.img_mod.1.weight",
            "transformer_blocks.0.attn.to_q.weight",
            "transformer_blocks.1.txt_mod.1.weight",
            "transformer_blocks.1.attn.to_q.weight",
            "transformer_blocks.12.img_mlp.net.2.weight",
            "transformer_blocks.12.img_mod.1.bias",
        ];
        let formats = |file_type, architecture| {
            let mut recipe = Recipe::new(file_type, architecture).for_names(names.into_iter());
            let formats = names.map(|name| {
                let role = if name.ends_with("bias") { Role::Vector } else { Role::MatMul };
                recipe.choose(&weight(name, role, 256, 256 * 256, DType::BF16)).dtype.name()
            });
            formats.join(" ")
        };
        assert_eq!(formats(FileType::Q4_K_S, "qwen_image"), "q8_0 q5_k q8_0 q4_k q5_k f32");
        assert_eq!(formats(FileType::Q2_K, "qwen_image"), "q8_0 q4_k q8_0 q2_k q4_k f32");
        assert_eq!(formats(FileType::Q5_K_S, "qwen_image"), "q8_0 q5_k q8_0 q5_k q5_k f32");
        assert_eq!(formats(FileType::Q8_0, "qwen_image"), "q8_0 q8_0 q8_0 q8_0 q8_0 f32");
        assert_eq!(formats(FileType::BF16, "qwen_image"), "bf16 bf16 bf16 bf16 bf16 f32");
        assert_eq!(formats(FileType::Q4_K_S, "flux"), "q4_k q4_k q4_k q4_k q4_k f32");
        let mut shared = Recipe::new(FileType::Q4_K_S, "qwen_image_21").for_names(names.into_iter());
        let of_all = weight("modulation.1.weight", Role::MatMul, 256, 256 * 1024, DType::BF16);
        assert_eq!(shared.choose(&of_all).dtype, DType::Q8_0);
        assert_eq!(shared.choose(&weight(names[1], Role::MatMul, 256, 256 * 256, DType::BF16)).dtype, DType::Q4_K);
        let mut recipe = Recipe::new(FileType::Q4_K_S, "qwen_image").for_names(names.into_iter());
        let choice = recipe.choose(&weight(names[0], Role::MatMul, 256, 256 * 256, DType::BF16));
        let reason = choice.fallback.map(|fallback| fallback.to_string());
        assert_eq!(reason.as_deref(), Some("in q4_k it would cost more quality than it saves room"));
        // Who asks for a format gets it.
        let patterns = "*=q4_k_s".parse().into_iter().collect();
        let mut asked = Recipe::new(FileType::Q8_0, "qwen_image").with_patterns(patterns);
        assert_eq!(asked.choose(&weight(names[0], Role::MatMul, 256, 256 * 256, DType::BF16)).dtype, DType::Q4_K);
    }

    #[test]
    fn fallbacks_give_their_reason() {
        let odd = weight("w", Role::MatMul, 96, 96 * 96, DType::BF16);
        let reason = choose(FileType::Q4_K_S, &odd).fallback.map(|fallback| fallback.to_string());
        assert_eq!(reason.as_deref(), Some("q4_k has blocks of 256, which do not divide its rows of 96"));
        let wide = Weight { role: Role::WideMatMul, row_len: 256, elements: 256 * 256, ..odd };
        let reason = choose(FileType::F16, &wide).fallback.map(|fallback| fallback.to_string());
        assert_eq!(reason.as_deref(), Some("its products may exceed the range of f16"));
    }

    #[test]
    fn small_starts_above_1024() {
        let small = |elements| choose(FileType::Q8_0, &weight("w", Role::MatMul, 32, elements, DType::F32)).dtype;
        assert_eq!([small(1024), small(1056)], [DType::F32, DType::Q8_0]);
    }

    /// Every format can be written for the rows it is chosen for, and no wide matrix is ever F16.
    #[test]
    fn choices_can_be_written() {
        use Role::{ConvKernel, Embedding, MatMul, SensitiveMatMul, Vector, WideMatMul};
        for file_type in FileType::all() {
            for role in [MatMul, WideMatMul, SensitiveMatMul, Embedding, ConvKernel, Vector] {
                for (row_len, source) in
                    [1, 3, 32, 96, 256, 768].iter().flat_map(|n| DType::all().map(move |d| (*n, d)))
                {
                    let choice = choose(file_type, &weight("w", role, row_len, row_len * 2048, source));
                    assert!(choice.dtype.row_bytes(row_len).is_some() && crate::rows::can_quantize(choice.dtype));
                    assert!(role != WideMatMul || choice.dtype != DType::F16);
                    assert!(matches!(role, MatMul | WideMatMul | Embedding) || !choice.dtype.is_quantized());
                }
            }
        }
    }
}
