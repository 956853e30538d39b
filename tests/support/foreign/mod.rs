//! The synthetic models as files of other tools: one file for each component with original names, everything in one file,
//! GGUF as ComfyUI-GGUF, llama.cpp and stable-diffusion.cpp write it.
//!
//! `tests/reference/foreign.py` says which files there are, which of diffusers' tensors make up each of theirs, and
//! gives the digest of every tensor and of every file as Python's packages write it. What is written here is held to
//! both, so that a file of this module is to the last byte the file that was proved there.

mod gguf;
mod safetensors;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::numbers::Format;
use super::synth::{Weight, weights};
use super::{Golden, Layout, write_component, write_parts};

/// A tensor of a file.
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Extents in PyTorch's order, slowest first.
    pub(crate) shape: Vec<usize>,
    /// In PyTorch's row-major order.
    pub(crate) values: Vec<f32>,
}

/// A component in a file.
pub(crate) struct Part {
    /// Which: `transformer`, `vae`, ...
    pub(crate) component: String,
    /// What stands before its tensors' names.
    prefix: String,
    /// How its numbers are stored, for the most part.
    format: Format,
    /// Whether its names are those of transformers.
    as_in_transformers: bool,
    rules: Rules,
}

/// Whose rules decide in which format a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rules {
    /// A safetensors file's: all of a component in one.
    Plain,
    /// ComfyUI-GGUF's.
    City96,
    /// Those of llama.cpp's converter.
    LlamaCpp,
    /// stable-diffusion.cpp's: one throughout.
    Throughout,
}

/// A synthetic model in the layouts of other tools.
pub(crate) struct Foreign {
    /// The case that it was made of.
    pub(crate) case: Golden,
    name: &'static str,
    golden: Golden,
}

impl Foreign {
    /// The case `name` of the golden.
    pub(crate) fn load(name: &'static str) -> Foreign {
        Foreign { case: Golden::load(name), name, golden: Golden::load("foreign") }
    }

    fn at(&self, pointer: &str) -> &Value {
        self.golden.at(&format!("/{}{pointer}", self.name))
    }

    /// The models that are made of the case's files, by name.
    pub(crate) fn sets(&self) -> Vec<&str> {
        self.at("/sets").as_object().unwrap().keys().map(String::as_str).collect()
    }

    /// The files of a model.
    pub(crate) fn files(&self, set: &str) -> Vec<&str> {
        self.at(&format!("/sets/{set}")).as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect()
    }

    /// The latents after the last step that diffusers makes with the numbers in the files of `set`.
    pub(crate) fn latents(&self, set: &str) -> Vec<f32> {
        self.golden.f32(&format!("{}.{set}.latents", self.name))
    }

    /// The components in a file.
    pub(crate) fn parts(&self, file: &str) -> Vec<Part> {
        let described = self.at(&format!("/files/{file}"));
        let rules = match described["rules"].as_str() {
            None => Rules::Plain,
            Some("city96") => Rules::City96,
            Some("llama.cpp") => Rules::LlamaCpp,
            Some("throughout") => Rules::Throughout,
            Some(other) => panic!("no rules {other}"),
        };
        let text = |part: &Value, key: &str| part[key].as_str().unwrap_or_else(|| panic!("{file}: {key}")).to_owned();
        let parts = described["parts"].as_array().unwrap().iter();
        parts
            .map(|part| Part {
                component: text(part, "component"),
                prefix: text(part, "prefix"),
                format: Format::named(&text(part, "format")),
                as_in_transformers: part["names"] == "transformers",
                rules,
            })
            .collect()
    }

    /// The tensors of a component under foreign names, in single precision. T5's are llama.cpp's.
    pub(crate) fn tensors(&self, component: &str) -> Vec<Tensor> {
        let weights = weights(&self.case, component);
        let described = self.at(&format!("/components/{component}")).as_array().unwrap().iter();
        described.map(|tensor| made_of(tensor, &weights)).collect()
    }

    /// The tensors of a component as diffusers and transformers name them.
    fn own_tensors(&self, component: &str) -> Vec<Tensor> {
        weights(&self.case, component)
            .into_iter()
            .map(|weight| {
                let values = weight.values();
                Tensor { name: weight.name, shape: weight.shape, values }
            })
            .collect()
    }

    /// The numbers that the files of `set` hold: for each component its tensors, under foreign names and without a prefix.
    pub(crate) fn numbers(&self, set: &str) -> Vec<(String, Vec<Tensor>)> {
        let parts = self.files(set).into_iter().flat_map(|file| self.parts(file));
        parts
            .map(|part| {
                let mut tensors = self.tensors(&part.component);
                for tensor in &mut tensors {
                    tensor.values = part.format_of(&tensor.name, &tensor.shape).round(&tensor.values);
                }
                (part.component, tensors)
            })
            .collect()
    }

    /// Writes a file into `dir`.
    pub(crate) fn write(&self, dir: &Path, file: &str) -> PathBuf {
        let (path, parts) = (dir.join(file), self.parts(file));
        if let ([part], true) = (parts.as_slice(), file.ends_with(".gguf")) {
            gguf::write(self, part, &path);
        } else {
            safetensors::write(self, &parts, &self.at(&format!("/files/{file}"))["extra"], &path);
        }
        let written = fs::read(&path).unwrap();
        let described = self.at(&format!("/files/{file}"));
        assert_eq!(written.len() as u64, described["bytes"].as_u64().unwrap(), "{file}: not Python's size");
        assert_eq!(sha256(&written), described["sha256"].as_str().unwrap(), "{file}: not Python's file");
        path
    }

    /// Writes the diffusers directory that holds the numbers of `set` in the formats that pinhole reads them in. `None`
    /// where safetensors has no such format.
    pub(crate) fn write_reference(&self, dir: &Path, set: &str) -> Option<()> {
        let parts: Vec<Part> = self.files(set).into_iter().flat_map(|file| self.parts(file)).collect();
        let layouts: Vec<(String, Layout)> =
            parts.iter().map(|part| Some((part.component.clone(), part.reference()?))).collect::<Option<_>>()?;
        write_parts(dir, &self.case);
        for (component, layout) in layouts {
            write_component(&dir.join(&component), &self.case, &component, &layout);
        }
        Some(())
    }
}

impl Part {
    /// How a tensor is stored.
    fn format_of(&self, name: &str, shape: &[usize]) -> Format {
        let divisible = shape.last().unwrap_or(&1).is_multiple_of(self.format.block());
        match self.rules {
            Rules::Plain => self.format,
            // One-dimensional tensors and small ones in single precision, and the layers at either end as the source.
            Rules::City96 if shape.len() == 1 || shape.iter().product::<usize>() <= 1024 => Format::F32,
            Rules::City96 if self.format == Format::Q8_0 && at_an_end(name) => Format::BF16,
            Rules::City96 => self.format,
            Rules::LlamaCpp if shape.len() == 1 => Format::F32,
            Rules::LlamaCpp if !divisible => Format::F16,
            Rules::LlamaCpp => self.format,
            Rules::Throughout if divisible => self.format,
            Rules::Throughout => Format::F32,
        }
    }

    /// Safetensors of the same numbers, in the format that pinhole keeps them in: 8-bit floats become F16.
    fn reference(&self) -> Option<Layout> {
        let vectors = matches!(self.rules, Rules::City96 | Rules::LlamaCpp).then_some(Format::F32.dtype());
        match self.format {
            Format::Q8_0 => None,
            Format::F8E4M3 | Format::F8E5M2 => {
                Some(Layout { dtype: Format::F16.dtype(), rounded: Some(self.format), ..Layout::default() })
            }
            other => Some(Layout { dtype: other.dtype(), vectors, ..Layout::default() }),
        }
    }
}

/// Whether ComfyUI-GGUF leaves the layer in the format of its source.
fn at_an_end(name: &str) -> bool {
    ["txt_in.", "img_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer."]
        .iter()
        .any(|layer| name.starts_with(layer))
}

/// The tensor that the golden describes, which is made of `weights`.
fn made_of(described: &Value, weights: &[Weight]) -> Tensor {
    let name = described["name"].as_str().unwrap().to_owned();
    let mut values = Vec::new();
    for part in described["recipe"].as_array().unwrap() {
        let weight = weights.iter().find(|weight| part["tensor"] == *weight.name);
        let all = weight.unwrap_or_else(|| panic!("{name}: no {}", part["tensor"])).values();
        let half = all.len() / 2;
        match part["rows"].as_str().unwrap() {
            "all" => values.extend(all),
            "first" => values.extend(&all[..half]),
            "second" => values.extend(&all[half..]),
            other => panic!("{name}: no rows {other}"),
        }
    }
    assert_eq!(sha256(&Format::F32.encode(&values)), described["sha256"].as_str().unwrap(), "{name}: not Python's");
    let shape = described["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    Tensor { name, shape, values }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
