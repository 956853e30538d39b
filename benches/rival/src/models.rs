//! The weights, once for each of the two: both files of a type hold the same bytes.
//!
//! pinhole writes a synthetic FLUX.1-dev with as many single and double blocks as there are to be single ones. What is too
//! much is left out here. T5-XXL keeps one of its 24 layers for pinhole, and stable-diffusion.cpp, for which the depth of T5
//! is a constant, gets none at all: it then gives the denoiser zeros, as many as there were tokens. The text encoders run
//! before what is measured, and at full size would only make every run longer.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::Work;
use crate::gguf::{Entry, Gguf, Tensor};

/// The files of one type.
pub(crate) struct Models {
    /// For pinhole.
    pub(crate) bundle: PathBuf,
    /// For stable-diffusion.cpp, with the original names.
    pub(crate) transformer: PathBuf,
    pub(crate) clip: PathBuf,
    pub(crate) vae: PathBuf,
}

impl Models {
    /// Makes the files of the type `file_type` in `directory`, unless they are there.
    pub(crate) fn make(pinhole: &Path, directory: &Path, file_type: &str, work: &Work) -> Result<Models> {
        let Work { double, single, .. } = work;
        let file = |name| directory.join(format!("flux-dev-{double}-{single}-{file_type}-{name}.gguf"));
        let models =
            Models { bundle: file("bundle"), transformer: file("transformer"), clip: file("clip"), vae: file("vae") };
        if models.files().iter().all(|path| path.exists()) {
            return Ok(models);
        }
        let whole = file("whole");
        let blocks = double.max(single).to_string();
        let written = Command::new(pinhole)
            .args(["bench", "model", "--quiet", "--arch", "flux-dev", "--type", file_type, "--blocks", &blocks, "-o"])
            .arg(&whole)
            .output()
            .with_context(|| format!("{} cannot be run", pinhole.display()))?;
        ensure!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        models.cut(&Gguf::open(&whole)?, work)?;
        std::fs::remove_file(&whole)?;
        Ok(models)
    }

    /// All of them.
    pub(crate) fn files(&self) -> [&Path; 4] {
        [&self.bundle, &self.transformer, &self.clip, &self.vae]
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
        for (path, prefix) in [(&self.transformer, "dit."), (&self.clip, "te."), (&self.vae, "vae.")] {
            let part = |tensor: &Tensor| Some(tensor.called(tensor.name.strip_prefix(prefix)?));
            whole.write(path, &general, &kept.iter().filter_map(part).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Whether the tensor `name` is in none of the blocks that are left out.
fn is_kept(name: &str, work: &Work) -> bool {
    let limits = [("dit.double_blocks.", work.double), ("dit.single_blocks.", work.single), ("te2.enc.blk.", 1)];
    limits.iter().all(|(prefix, count)| match name.strip_prefix(prefix).and_then(|rest| rest.split('.').next()) {
        Some(index) => index.parse::<u16>().is_ok_and(|index| index < *count),
        None => true,
    })
}

/// `entry` of the model with fewer blocks.
fn shorter(entry: &Entry, work: &Work) -> Result<Entry> {
    let counts: &[(&str, u16)] = match entry.key.as_str() {
        "pinhole.transformer.config" => &[("num_layers", work.double), ("num_single_layers", work.single)],
        "pinhole.text_encoder_2.config" => &[("num_layers", 1)],
        _ => return Ok(entry.clone()),
    };
    let mut config: Value = serde_json::from_str(entry.text().context("a configuration that is no text")?)?;
    for (key, count) in counts {
        ensure!(config.get(key).is_some_and(Value::is_u64), "{} has no {key}", entry.key);
        config[*key] = (*count).into();
    }
    Ok(entry.with_text(&config.to_string()))
}
