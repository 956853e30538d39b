//! Writes the synthetic model of a golden as a directory in the diffusers layout.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Map, Value, json};

use super::numbers::Format;
use super::synth::{Weight, weights};
use super::{Golden, golden};

/// How the weights are stored.
pub(crate) struct Layout {
    /// `F32`, `F16` or `BF16`, rounded to nearest.
    pub(crate) dtype: Dtype,
    /// How vectors are, where not as the rest.
    pub(crate) vectors: Option<Dtype>,
    /// What the numbers are rounded to before that.
    pub(crate) rounded: Option<Format>,
    /// A component whose weights take more bytes than this is split into several files with an index. Whole tensors
    /// only, so that a shard may be larger.
    pub(crate) max_shard_bytes: Option<usize>,
}

impl Layout {
    fn dtype_of(&self, weight: &Weight) -> Dtype {
        self.vectors.filter(|_| weight.shape.len() == 1).unwrap_or(self.dtype)
    }

    fn bytes_of(&self, weight: &Weight) -> usize {
        weight.shape.iter().product::<usize>() * self.dtype_of(weight).bitsize() / 8
    }
}

impl Default for Layout {
    fn default() -> Layout {
        Layout { dtype: Dtype::F32, vectors: None, rounded: None, max_shard_bytes: None }
    }
}

/// Writes a whole model: `model_index.json`, scheduler, tokenizers and every component of `golden`.
pub(crate) fn write_model(dir: &Path, golden: &Golden, layout: &Layout) {
    write_parts(dir, golden);
    for component in golden.at("/components").as_object().unwrap().keys() {
        write_component(&dir.join(component), golden, component, layout);
    }
}

/// Writes what a model has beside its components: `model_index.json`, scheduler and tokenizers.
pub(crate) fn write_parts(dir: &Path, golden: &Golden) {
    let mut index = Map::new();
    index.insert("_class_name".into(), json!("FluxPipeline"));
    index.insert("_diffusers_version".into(), golden.at("/versions/diffusers").clone());
    index.insert("feature_extractor".into(), json!([null, null]));
    index.insert("image_encoder".into(), json!([null, null]));
    index.insert("scheduler".into(), json!(["diffusers", "FlowMatchEulerDiscreteScheduler"]));
    index.insert("tokenizer".into(), json!(["transformers", "CLIPTokenizer"]));
    index.insert("tokenizer_2".into(), json!(["transformers", "PreTrainedTokenizerFast"]));
    for (key, component) in golden.at("/components").as_object().unwrap() {
        index.insert(key.clone(), json!([component["library"], component["class"]]));
    }
    copy_tokenizer("clip", &dir.join("tokenizer"));
    copy_tokenizer("t5", &dir.join("tokenizer_2"));
    fs::create_dir_all(dir.join("scheduler")).unwrap();
    write_json(&dir.join("scheduler/scheduler_config.json"), golden.at("/scheduler"));
    write_json(&dir.join("model_index.json"), &Value::Object(index));
}

/// Writes one component, config.json and weights, into `dir`.
pub(crate) fn write_component(dir: &Path, golden: &Golden, component: &str, layout: &Layout) {
    fs::create_dir_all(dir).unwrap();
    write_json(&dir.join("config.json"), golden.at(&format!("/components/{component}/config")));
    let file = golden.text(&format!("/components/{component}/file"));
    let shards = shards(weights(golden, component), layout);
    if let [only] = shards.as_slice() {
        return write_weights(&dir.join(file), only, layout);
    }
    let stem = file.strip_suffix(".safetensors").unwrap();
    let (mut map, mut total) = (Map::new(), 0);
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("{stem}-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_weights(&dir.join(&name), shard, layout);
        total += shard.iter().map(|weight| layout.bytes_of(weight)).sum::<usize>();
        map.extend(shard.iter().map(|weight| (weight.name.clone(), json!(name))));
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
    write_json(&dir.join(format!("{file}.index.json")), &index);
}

fn shards(weights: Vec<Weight>, layout: &Layout) -> Vec<Vec<Weight>> {
    let limit = layout.max_shard_bytes.unwrap_or(usize::MAX);
    let (mut shards, mut used) = (vec![Vec::new()], 0);
    for weight in weights {
        let bytes = layout.bytes_of(&weight);
        if used > 0 && used + bytes > limit {
            shards.push(Vec::new());
            used = 0;
        }
        used += bytes;
        shards.last_mut().unwrap().push(weight);
    }
    shards
}

fn write_weights(path: &Path, weights: &[Weight], layout: &Layout) {
    let bytes: Vec<Vec<u8>> = weights.iter().map(|weight| encode(weight, layout)).collect();
    let mut views = BTreeMap::new();
    for (weight, bytes) in weights.iter().zip(&bytes) {
        let view = TensorView::new(layout.dtype_of(weight), weight.shape.clone(), bytes).unwrap();
        views.insert(weight.name.as_str(), view);
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    serialize_to_file(views, Some(metadata), path).unwrap();
}

fn encode(weight: &Weight, layout: &Layout) -> Vec<u8> {
    let mut values = weight.values();
    if let Some(format) = layout.rounded {
        values = format.round(&values);
    }
    match layout.dtype_of(weight) {
        Dtype::F32 => Format::F32.encode(&values),
        Dtype::F16 => Format::F16.encode(&values),
        Dtype::BF16 => Format::BF16.encode(&values),
        other => panic!("weights are written as F32, F16 or BF16, not {other}"),
    }
}

/// Copies the tokenizer `name` of the goldens into the folder `to`.
pub(crate) fn copy_tokenizer(name: &str, to: &Path) {
    let from = golden::directory().join("tokenizers").join(name);
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let file = entry.unwrap();
        fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Writes `value` with indentation.
pub(crate) fn write_json(path: &Path, value: &Value) {
    fs::write(path, serde_json::to_string_pretty(value).unwrap()).unwrap();
}
