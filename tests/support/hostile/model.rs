//! The built-in model as a diffusers directory and as files of other tools.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use pinhole::pipeline::Opened;

use super::fixtures::{RawGguf, RawTensor, text};

/// Tensors by name: their extents, slowest first, and their numbers.
pub(super) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The file with the weights of a component.
pub(super) fn weights_of(component: &str) -> String {
    let stem = if component.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
    format!("{component}/{stem}.safetensors")
}

/// Writes the built-in model into `dir`, as diffusers does, with original names.
pub(super) fn write(dir: &Path) {
    let model = pinhole::open("mini").unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    put("model_index.json", r#"{"_class_name": "FluxPipeline"}"#);
    put("scheduler/scheduler_config.json", &model.source.scheduler.as_ref().unwrap().text);
    put("generation_config.json", &model.source.defaults.as_ref().unwrap().text);
    for component in model.source.components() {
        let slot = component.slot;
        put(&format!("{}/config.json", slot.name), &component.config.as_ref().unwrap().text);
        if let (Some(name), Some(files)) = (slot.tokenizer, model.source.tokenizer(slot)) {
            put(&format!("{name}/tokenizer.json"), &files.tokenizer.text);
            put(&format!("{name}/tokenizer_config.json"), &files.config.as_ref().unwrap().text);
        }
        fs::write(dir.join(weights_of(slot.name)), safetensors(&tensors(&model, slot.name))).unwrap();
    }
}

/// The tensors of a component.
pub(super) fn tensors(model: &Opened, component: &str) -> Tensors {
    let mut tensors = Tensors::new();
    for network in model.networks().into_iter().filter(|network| network.slot.name == component) {
        for (id, weight) in network.model.manifest().iter() {
            let mut extents = weight.shape.dims().to_vec();
            while extents.len() > 1 && extents.last() == Some(&1) {
                extents.pop();
            }
            extents.reverse();
            tensors.insert(weight.name.clone(), (extents, network.bound.read_f32(id).unwrap()));
        }
    }
    tensors
}

/// A safetensors file with them, in BF16.
pub(super) fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, (extents, numbers)) in tensors {
        let start = data.len();
        data.extend(numbers.iter().flat_map(|number| ((number.to_bits() >> 16) as u16).to_le_bytes()));
        let end = data.len();
        entries.push(format!(r#""{name}":{{"dtype":"BF16","shape":{extents:?},"data_offsets":[{start},{end}]}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

/// A GGUF file with them, in F32.
pub(super) fn gguf(tensors: &Tensors) -> RawGguf {
    let mut file = RawGguf::empty();
    file.push("general.architecture", text(b"flux"));
    for (name, (extents, numbers)) in tensors {
        let dims: Vec<u64> = extents.iter().rev().map(|&extent| extent as u64).collect();
        file.tensors.push(RawTensor::new(name, &dims, 0, file.data.len() as u64));
        file.data.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        file.data.resize(file.data.len().next_multiple_of(file.alignment), 0);
    }
    file
}
