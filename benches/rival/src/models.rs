//! The weights, once for each of the two: both files of a type hold the same bytes.
//!
//! pinhole writes a synthetic FLUX.1-dev with as many single and double blocks as there are to be single ones. What is too
//! much is left out here. T5-XXL keeps one of its 24 layers for pinhole, and stable-diffusion.cpp, for which the depth of T5
//! is a constant, gets none at all: it then gives the denoiser zeros, as many as there were tokens. The text encoders run
//! before what is measured, and at full size would only make every run longer.
//!
//! Z-Image keeps as many layers as there are to be, and 2 of the 36 layers of its language model, for both.
//!
//! Wan 2.1 is whole, with one of the 24 layers of umt5 for pinhole and none for stable-diffusion.cpp, as FLUX. Its autoencoder's
//! convolutions lie in pinhole's file as one kernel for each frame, and become one kernel of three dimensions for stable-diffusion.cpp.
//!
//! Stable Diffusion 1.5 and XL are whole. In 1.5, stable-diffusion.cpp's transformers begin and end with convolutions of 1x1, whose
//! weights it has no blocks for: it gets these in F16, with other random numbers.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::gguf::{Entry, Gguf, Tensor};
use crate::{Arch, Work};

/// The files of one type.
pub(crate) struct Models {
    /// For pinhole.
    pub(crate) bundle: PathBuf,
    /// For stable-diffusion.cpp, with the original names: each with the option of `draw` that takes it.
    pub(crate) rival: Vec<(&'static str, PathBuf)>,
}

/// Layers that the language model of Z-Image keeps.
const READER_LAYERS: u16 = 2;

/// The option of `draw` that takes a file, and the prefixes of a bundle that become prefixes of that file.
type Cut = (&'static str, &'static [(&'static str, &'static str)]);

const FLUX: &[Cut] = &[("--transformer", &[("dit.", "")]), ("--clip", &[("te.", "")]), ("--vae", &[("vae.", "")])];

const SD: &[Cut] = &[(
    "--checkpoint",
    &[("u.", "model.diffusion_model."), ("te.", "cond_stage_model.transformer."), ("vae.", "first_stage_model.")],
)];

const SDXL: &[Cut] = &[(
    "--checkpoint",
    &[
        ("u.", "model.diffusion_model."),
        ("te.", "cond_stage_model.transformer."),
        ("te2.", "cond_stage_model.1.transformer."),
        ("vae.", "first_stage_model."),
    ],
)];

const Z_IMAGE: &[Cut] = &[("--transformer", &[("dit.", "")]), ("--llm", &[("te.", "")]), ("--vae", &[("vae.", "")])];

const WAN: &[Cut] = &[("--transformer", &[("dit.", "")]), ("--vae", &[("vae.", "")])];

impl Arch {
    /// As `pinhole bench model` calls it.
    fn name(self) -> &'static str {
        match self {
            Arch::Flux => "flux-dev",
            Arch::Sd => "sd1.5",
            Arch::SdXl => "sdxl",
            Arch::ZImage => "z-image",
            Arch::Wan => "wan-1.3b",
        }
    }

    /// How its files of fewer blocks are called.
    fn depth(self, Work { double, single, layers, .. }: &Work) -> String {
        match self {
            Arch::Flux => format!("-{double}-{single}"),
            Arch::ZImage => format!("-{layers}"),
            Arch::Sd | Arch::SdXl | Arch::Wan => String::new(),
        }
    }

    /// With how many blocks pinhole writes it; `None` for all that it has.
    fn blocks(self, work: &Work) -> Option<u16> {
        match self {
            Arch::Flux => Some(work.double.max(work.single)),
            Arch::ZImage => Some(work.layers),
            Arch::Sd | Arch::SdXl | Arch::Wan => None,
        }
    }

    fn cuts(self) -> &'static [Cut] {
        match self {
            Arch::Flux => FLUX,
            Arch::Sd => SD,
            Arch::SdXl => SDXL,
            Arch::ZImage => Z_IMAGE,
            Arch::Wan => WAN,
        }
    }
}

impl Models {
    /// Makes the files of the type `file_type` in `directory`, unless they are there.
    pub(crate) fn make(pinhole: &Path, directory: &Path, file_type: &str, work: &Work) -> Result<Models> {
        let arch = work.arch;
        let depth = arch.depth(work);
        let file = |name: &str| directory.join(format!("{}{depth}-{file_type}-{name}.gguf", arch.name()));
        let rival = arch.cuts().iter().map(|(option, _)| (*option, file(option.trim_start_matches('-')))).collect();
        let models = Models { bundle: file("bundle"), rival };
        if models.files().iter().all(|path| path.exists()) {
            return Ok(models);
        }
        let whole = file("whole");
        let mut command = Command::new(pinhole);
        command.args(["bench", "model", "--quiet", "--arch", arch.name(), "--type", file_type, "-o"]).arg(&whole);
        if let Some(blocks) = arch.blocks(work) {
            command.args(["--blocks", &blocks.to_string()]);
        }
        let written = command.output().with_context(|| format!("{} cannot be run", pinhole.display()))?;
        ensure!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        models.cut(&Gguf::open(&whole)?, work)?;
        std::fs::remove_file(&whole)?;
        Ok(models)
    }

    /// All of them.
    pub(crate) fn files(&self) -> Vec<&Path> {
        let rival = self.rival.iter().map(|(_, path)| path.as_path());
        std::iter::once(self.bundle.as_path()).chain(rival).collect()
    }

    /// Deletes them.
    pub(crate) fn remove(&self) -> Result<()> {
        self.files().into_iter().try_for_each(|path| Ok(std::fs::remove_file(path)?))
    }

    fn cut(&self, whole: &Gguf, work: &Work) -> Result<()> {
        let kept: Vec<Tensor> = whole.tensors.iter().filter(|tensor| is_kept(&tensor.name, work)).cloned().collect();
        let entries = whole.entries.iter().map(|entry| shorter(entry, work)).collect::<Result<Vec<Entry>>>()?;
        whole.write(&self.bundle, &entries, &kept)?;
        let general: Vec<Entry> = entries.into_iter().filter(|entry| entry.key == "general.alignment").collect();
        for ((_, path), (_, prefixes)) in self.rival.iter().zip(work.arch.cuts()) {
            let mut part = Vec::new();
            for (tensor, (from, to)) in kept.iter().flat_map(|tensor| prefixes.iter().map(move |pair| (tensor, pair))) {
                let Some(rest) = tensor.name.strip_prefix(from) else { continue };
                let tensor = tensor.called(&format!("{to}{rest}"));
                part.push(if work.arch == Arch::Sd && is_projection(&tensor.name) {
                    whole.convolution(&tensor)?
                } else {
                    tensor
                });
            }
            if work.arch == Arch::Wan {
                part = of_three_dimensions(whole, part)?;
            }
            if let Some(norm) = part.iter().find(|tensor| tensor.name == "blk.0.attn_norm.weight") {
                // pinhole reads no norm behind the last layer, and its file has none; stable-diffusion.cpp asks for one.
                part.push(norm.called("output_norm.weight"));
            }
            whole.write(path, &general, &part)?;
        }
        Ok(())
    }
}

/// Whether `name` is what a transformer of Stable Diffusion begins or ends with.
fn is_projection(name: &str) -> bool {
    name.starts_with("model.diffusion_model.")
        && (name.ends_with("proj_in.weight") || name.ends_with("proj_out.weight"))
}

/// The tensors of a file of Wan in the shapes that they have in its original files, the rows of kernels in three dimensions joined as
/// stable-diffusion.cpp has them.
fn of_three_dimensions(whole: &Gguf, tensors: Vec<Tensor>) -> Result<Vec<Tensor>> {
    let mut shaped = Vec::new();
    for tensor in &tensors {
        let earlier = [0, 1].map(|tap| {
            let name = format!("{}.{tap}", tensor.name);
            tensors.iter().find(|other| other.name == name)
        });
        shaped.push(match (earlier, tensor.dims()) {
            ([Some(first), Some(second)], _) => whole.volume([first, second, tensor])?,
            _ if tensor.name.ends_with("weight.0") || tensor.name.ends_with("weight.1") => continue,
            (_, &[1, 1, channels_in, channels_out]) => tensor.shaped(&[1, 1, 1, channels_in * channels_out])?,
            (_, &[columns, rows]) if tensor.name == "patch_embedding.weight" => {
                tensor.shaped(&[2, 2, 1, columns / 4 * rows])?
            }
            (_, &[columns, rows]) if tensor.name.ends_with("to_qkv.weight") || tensor.name.ends_with("proj.weight") => {
                tensor.shaped(&[1, 1, columns, rows])?
            }
            _ => tensor.clone(),
        });
    }
    Ok(shaped)
}

/// Whether the tensor `name` is in none of the blocks that are left out.
fn is_kept(name: &str, work: &Work) -> bool {
    let limits: &[(&str, u16)] = match work.arch {
        Arch::Flux => &[("dit.double_blocks.", work.double), ("dit.single_blocks.", work.single), ("te2.enc.blk.", 1)],
        Arch::ZImage => &[("te.blk.", READER_LAYERS)],
        Arch::Wan => &[("te.enc.blk.", 1)],
        Arch::Sd | Arch::SdXl => &[],
    };
    limits.iter().all(|(prefix, count)| match name.strip_prefix(prefix).and_then(|rest| rest.split('.').next()) {
        Some(index) => index.parse::<u16>().is_ok_and(|index| index < *count),
        None => true,
    })
}

/// `entry` of the model with fewer blocks.
fn shorter(entry: &Entry, work: &Work) -> Result<Entry> {
    let counts: &[(&str, u16)] = match (work.arch, entry.key.as_str()) {
        (Arch::Flux, "pinhole.transformer.config") => {
            &[("num_layers", work.double), ("num_single_layers", work.single)]
        }
        (Arch::Wan, "pinhole.text_encoder.config") => &[("num_layers", 1)],
        (Arch::Flux, "pinhole.text_encoder_2.config") => &[("num_layers", 1)],
        (Arch::ZImage, "pinhole.text_encoder.config") => &[("num_hidden_layers", READER_LAYERS)],
        _ => return Ok(entry.clone()),
    };
    let mut config: Value = serde_json::from_str(entry.text().context("a configuration that is no text")?)?;
    for (key, count) in counts {
        ensure!(config.get(key).is_some_and(Value::is_u64), "{} has no {key}", entry.key);
        config[*key] = (*count).into();
    }
    Ok(entry.with_text(&config.to_string()))
}
