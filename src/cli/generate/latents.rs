//! Latents in safetensors files: `--noise` and `--save-latents`.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use ::safetensors::tensor::{Dtype, TensorView};
use pinhole::pipeline::{Generated, published_extents};
use pinhole::{Error, Result, safetensors};
use pinhole_quant::DType;

/// The tensor that `--noise` reads.
const NOISE: &str = "noise";
/// The tensor that `--save-latents` writes.
const LATENTS: &str = "latents";

/// The noise in the file at `path`, for latents of the extents `dims`: `[w, h, F, C, N]`.
///
/// # Errors
/// [`Error::Mismatch`] where there is no such tensor, or it has another type or shape; [`Error::NotFinite`]; those of
/// [`safetensors::open`].
pub(super) fn read_noise(path: &Path, dims: [usize; 5]) -> Result<Vec<f32>> {
    let index = safetensors::open(path)?;
    let at = format!("tensor `{NOISE}`");
    let Some(tensor) = index.get(NOISE) else {
        let names: Vec<&str> = index.iter().map(|(name, _)| name).take(5).collect();
        let found = if names.is_empty() { "no tensors".into() } else { format!("none; there is {}", names.join(", ")) };
        return Err(Error::mismatch(path, at, "one", found));
    };
    let [w, h, frames, channels, batch] = dims;
    let folded = if frames == 1 { [w, h, channels, batch] } else { [w, h, frames, channels * batch] };
    if tensor.storage != DType::F32 || tensor.shape != folded {
        let found = format!("{} {:?}", tensor.storage, slowest_first(&tensor.file_shape));
        let expected = format!("f32 {:?}", slowest_first(&published_extents(dims)));
        let hint = match frames {
            1 => format!("a picture of this size needs [N, {channels}, {h}, {w}] with N of --batch"),
            _ => format!("a video of this size needs [N, {channels}, {frames}, {h}, {w}] with N of --batch"),
        };
        return Err(Error::mismatch(path, at, expected, found).with_hint(hint));
    }
    let noise: Vec<f32> = tensor.bytes().as_chunks::<4>().0.iter().map(|&number| f32::from_le_bytes(number)).collect();
    match noise.iter().position(|number| !number.is_finite()) {
        Some(i) => Err(Error::NotFinite { at: format!("{}: number {i} of {at}", path.display()), hint: None }),
        None => Ok(noise),
    }
}

/// Writes the latents of `generated` to `writer` as a safetensors file.
///
/// # Errors
/// What `writer` reports.
pub(super) fn write(generated: &Generated, mut writer: impl Write) -> io::Result<()> {
    let bytes: Vec<u8> = generated.latents.iter().flat_map(|number| number.to_le_bytes()).collect();
    let view =
        TensorView::new(Dtype::F32, slowest_first(&generated.latent_extents()), &bytes).map_err(io::Error::other)?;
    let about = HashMap::from([("seed".to_owned(), generated.settings.seed.to_string())]);
    let file = ::safetensors::serialize([(LATENTS, view)], Some(about)).map_err(io::Error::other)?;
    writer.write_all(&file)
}

/// ggml's order of extents, turned into that of PyTorch and safetensors.
fn slowest_first(dims: &[usize]) -> Vec<usize> {
    dims.iter().rev().copied().collect()
}
