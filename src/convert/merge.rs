//! LoRAs that become part of the weights.

use std::path::PathBuf;

use crate::Result;
use crate::bind::lora::{self, Merged, Report};
use crate::source::Network;
use crate::source::slot::VAE;

/// What the LoRAs at `paths`, each with its strength, make of each of `networks`, and a report for each file.
///
/// # Errors
/// As [`lora::merged`].
pub(super) fn merge(paths: &[(PathBuf, f32)], networks: &[Network<'_>]) -> Result<(Vec<Merged>, Vec<Report>)> {
    let mut merged: Vec<Merged> = networks.iter().map(|_| Merged::default()).collect();
    if paths.is_empty() {
        return Ok((merged, Vec::new()));
    }
    // LoRAs are trained for denoisers and text encoders. A name that does not say which is meant is none of an autoencoder's.
    let (mut places, mut bases) = (Vec::new(), Vec::new());
    for (place, network) in networks.iter().enumerate().filter(|(_, network)| *network.slot != VAE) {
        places.push(place);
        bases.push(network.base());
    }
    let (changed, reports) = lora::merged(paths, &bases)?;
    for (place, changed) in places.into_iter().zip(changed) {
        merged[place] = changed;
    }
    Ok((merged, reports))
}

/// What a file says of the LoRA of `report`: `style:0.8`.
pub(super) fn entry(report: &Report) -> String {
    let name = report.path.file_stem().unwrap_or_default().to_string_lossy();
    format!("{name}:{}", report.strength)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole_quant::DType;
    use pinhole_quant::gguf::{Layout, TensorSpec};
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    use super::*;
    use crate::bind::Bound;
    use crate::bind::alias::Part;
    use crate::convert::{Plan, Planned, PlannedTensor, WriteOptions};
    use crate::gguf::Gguf;
    use crate::weights::{Manifest, Role, Scope};

    const COLUMNS: usize = 1000;
    /// The rows of the weight's two halves in the source.
    const ROWS: [usize; 2] = [1500, 1700];

    fn numbers(len: usize) -> Vec<u8> {
        (0..len).flat_map(|i| ((i % 251) as f32 * 0.01 - 1.0).to_le_bytes()).collect()
    }

    /// A file of matrices.
    fn write(path: &std::path::Path, tensors: &[(&str, [usize; 2])]) {
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, [rows, columns])| numbers(rows * columns)).collect();
        let mut views = Vec::new();
        for ((name, shape), bytes) in tensors.iter().zip(&bytes) {
            views.push((*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap()));
        }
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// A weight of several chunks, which do not end where its pieces do.
    #[test]
    fn chunks_of_a_merged_weight_are_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let [model, lora, out] = ["model", "lora", "out"].map(|name| dir.path().join(name));
        let [first, second] = ROWS;
        write(&model, &[("a", [first, COLUMNS]), ("b", [second, COLUMNS])]);
        write(&lora, &[("w.lora_A.weight", [2, COLUMNS]), ("w.lora_B.weight", [first + second, 2])]);
        let (mut manifest, mut declared) = (Manifest::default(), Vec::new());
        let mut root = Scope::root(&mut manifest, &mut declared);
        let id = root.weight("w.weight", &[COLUMNS, first + second], Role::MatMul).unwrap();
        let index = crate::safetensors::open(&model).unwrap();
        let aliases = |name: &str| vec![vec![Part::all(name)], vec![Part::all("a"), Part::all("b")]];
        let bound = Bound::new(&manifest, &index, "", &aliases, &model).unwrap();
        let base = lora::Base { slot: "transformer", manifest: &manifest, bound: &bound, aliases: &aliases };
        let (merged, loras) = lora::merged(&[(lora, 0.5)], &[base]).unwrap();
        let expected = merged[0].read_f32(&manifest, &bound, id).unwrap();

        let shape = manifest.get(id).shape;
        let spec = TensorSpec { name: "w".into(), dims: shape.dims()[..2].to_vec(), dtype: DType::F32 };
        let layout = Layout::new(&[], &[spec], 32).unwrap();
        let tensor = PlannedTensor {
            name: "w".into(),
            shape,
            from: "f32".into(),
            merged: true,
            to: DType::F32,
            bytes: 4 * shape.elements() as u64,
            fallback: None,
        };
        let plan = Plan {
            types: Vec::new(),
            tensors: vec![tensor],
            total_bytes: layout.total_bytes(),
            requantized: Vec::new(),
            left_out: Vec::new(),
            loras,
            layout,
            weights: vec![Planned { tensor: 0, bound: &bound, id, shape, merged: Some(0) }],
            merged,
            sources: Vec::new(),
        };
        let mut steps = 0;
        plan.write(&out, WriteOptions::default(), &mut |_| {
            steps += 1;
            Ok(())
        })
        .unwrap();
        assert!(steps > 2, "{steps} chunks");
        let written = Gguf::open(&out).unwrap();
        let bytes: Vec<u8> = expected.iter().flat_map(|number| number.to_le_bytes()).collect();
        assert!(written.index.get("w").unwrap().bytes() == bytes, "chunks are not the whole");
    }
}
