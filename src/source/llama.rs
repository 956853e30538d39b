//! The settings of a language model in the metadata of a GGUF, as llama.cpp writes them.

use serde_json::{Map, Value};

use super::Text;
use crate::Result;
use crate::gguf::Metadata;

/// The architectures, what transformers calls each, and whether the rows of its queries and keys are permuted, so that neighbouring
/// numbers of a head are turned together.
const ARCHITECTURES: [(&str, &str, bool); 7] = [
    ("qwen3", "qwen3", false),
    ("qwen3vl", "qwen3_vl_text", false),
    ("qwen2", "qwen2", false),
    ("qwen2vl", "qwen2", false),
    ("llama", "mistral", true),
    ("mistral3", "mistral", true),
    ("mistral", "mistral", true),
];

/// Whole numbers: ours, and the end of theirs.
const SIZES: [(&str, &str); 6] = [
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
];

/// Others.
const NUMBERS: [(&str, &str); 2] =
    [("rms_norm_eps", "attention.layer_norm_rms_epsilon"), ("rope_theta", "rope.freq_base")];

/// The `config.json` of the language model with `rows` tokens that `metadata` describes; `None` if it describes none.
///
/// # Errors
/// [`Error::Mismatch`](crate::Error::Mismatch) where a key has another type.
pub(super) fn config(metadata: &Metadata, rows: usize) -> Result<Option<Text>> {
    let named = metadata.string("general.architecture")?;
    let known = ARCHITECTURES.iter().find(|(architecture, ..)| Some(*architecture) == named);
    let Some((architecture, family, interleaved)) = known else { return Ok(None) };
    let mut settings = Map::new();
    settings.insert("model_type".into(), (*family).into());
    settings.insert("vocab_size".into(), rows.into());
    settings.insert("rope_interleaved".into(), (*interleaved).into());
    for (ours, theirs) in SIZES {
        if let Some(size) = metadata.integer(&format!("{architecture}.{theirs}"))? {
            settings.insert(ours.into(), size.into());
        }
    }
    for (ours, theirs) in NUMBERS {
        if let Some(number) = metadata.float(&format!("{architecture}.{theirs}"))? {
            settings.insert(ours.into(), number.into());
        }
    }
    let is_whole = SIZES[..4].iter().all(|(ours, _)| settings.contains_key(*ours));
    let text = Value::Object(settings).to_string();
    Ok(is_whole.then(|| Text { text, origin: metadata.path().to_owned() }))
}
