//! Bundles written from the lists of their weights.

use std::fs::File;
use std::path::Path;

use pinhole::sample::randn;
use pinhole::source::{Slot, keys};
use pinhole::stage::Model;
use pinhole::weights::{Role, Weight};
use pinhole_quant::gguf::{Array, Layout, Strings, TensorSpec, Value, Writer};
use pinhole_quant::recipe::{self, FileType, Recipe};
use pinhole_quant::{DType, rows};

/// One component: what it is, its models, the text of its configuration.
pub(crate) type Part<'a> = (&'static Slot, Vec<&'a Model>, String);

/// The weights of `parts`, and the bundle that they make in `file_type`.
fn layout<'a>(parts: &[Part<'a>], file_type: FileType) -> (Layout, Vec<(&'a Weight, TensorSpec)>) {
    let mut recipe = Recipe::new(file_type, "flux");
    let mut weights = Vec::new();
    let mut names = Strings::with_capacity(parts.len());
    let mut metadata: Vec<(String, Value)> = vec![
        (keys::ARCHITECTURE.into(), "flux".into()),
        (keys::FILE_TYPE.into(), file_type.number().into()),
        (keys::VERSION.into(), 1.into()),
    ];
    for (slot, models, config) in parts {
        names.push(slot.name);
        metadata.push((keys::component_config(slot.name), config.as_str().into()));
        for (_, weight) in models.iter().flat_map(|model| model.manifest().iter()) {
            let choice = recipe.choose(&recipe::Weight {
                prefix: slot.prefix,
                name: &weight.name,
                role: weight.role,
                row_len: weight.shape.row(),
                elements: weight.shape.elements(),
                source: DType::F32,
            });
            let name = format!("{}{}", slot.prefix, weight.name);
            let dims = weight.shape.dims()[..weight.shape.rank()].to_vec();
            weights.push((weight, TensorSpec { name, dims, dtype: choice.dtype }));
        }
    }
    metadata.push((keys::COMPONENTS.into(), Value::Array(Array::String(names))));
    let specs: Vec<TensorSpec> = weights.iter().map(|(_, spec)| spec.clone()).collect();
    (Layout::new(&metadata, &specs, 4096).unwrap(), weights)
}

/// Writes a bundle with the numbers that `numbers` gives each weight.
pub(crate) fn filled(path: &Path, parts: &[Part<'_>], file_type: FileType, numbers: impl Fn(&Weight) -> Vec<f32>) {
    let (layout, weights) = layout(parts, file_type);
    let mut writer = Writer::new(File::create(path).unwrap(), layout).unwrap();
    for (weight, spec) in weights {
        let numbers = numbers(weight);
        let row = weight.shape.row();
        let mut bytes = vec![0; spec.dtype.row_bytes(row).unwrap() * (numbers.len() / row)];
        rows::quantize(spec.dtype, &numbers, row, &mut bytes).unwrap();
        writer.write_tensor(&spec.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Numbers that keep what they multiply in range; scales of norms about 1.
pub(crate) fn numbers(weight: &Weight) -> Vec<f32> {
    let dims = weight.shape.dims();
    let seed = weight.name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31).wrapping_add(u64::from(byte)));
    let random = randn(seed, weight.shape.elements()).unwrap();
    let inputs = if weight.role == Role::ConvKernel { dims[0] * dims[1] * dims[2] } else { dims[0] };
    let (scale, offset) = match weight.role {
        Role::Vector if weight.name.contains("norm") && weight.name.ends_with("weight") => (0.2, 1.0),
        Role::Vector => (0.2, 0.0),
        _ => ((inputs as f32).sqrt().recip(), 0.0),
    };
    random.into_iter().map(|x| x * scale + offset).collect()
}
