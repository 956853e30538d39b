//! What a LoRA's metadata say: PEFT's settings of the training, and what the file is for.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::{Error, Result, json};

/// What the metadata of a LoRA say about it, for people who choose one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Its title.
    pub title: Option<String>,
    /// The model that it was trained on, in its trainer's words.
    pub base: Option<String>,
    /// Words in a prompt that bring it out.
    pub triggers: Option<String>,
    /// What it says of the requests that it is for: each key and its text.
    pub settings: Vec<(String, String)>,
}

/// Words in the keys of such settings.
const SETTINGS: [&str; 9] =
    ["usage_hint", "recommended", "steps", "guidance", "cfg", "sampler", "scheduler", "strength", "weight"];

/// What keys of trainers begin with that say how a LoRA was trained.
const TRAINING: [&str; 2] = ["ss_", "sshs_"];

fn is_setting(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key != KEY && !TRAINING.iter().any(|start| key.starts_with(start)) && SETTINGS.iter().any(|word| key.contains(word))
}

impl About {
    pub(super) fn read(metadata: &BTreeMap<String, String>) -> About {
        let first =
            |keys: &[&str]| keys.iter().find_map(|key| metadata.get(*key).filter(|text| !text.trim().is_empty()));
        let mut settings = Vec::new();
        for (key, text) in metadata.iter().filter(|(key, text)| is_setting(key) && !text.trim().is_empty()) {
            settings.push((key.clone(), text.clone()));
        }
        About {
            settings,
            title: first(&["modelspec.title", "ss_output_name", "name"]).cloned(),
            base: first(&["ss_base_model_version", "modelspec.architecture", "ss_sd_model_name"]).cloned(),
            triggers: first(&["modelspec.trigger_phrase", "trigger_phrase", "trigger_words", "trigger_word"]).cloned(),
        }
    }
}

/// Where PEFT and diffusers keep the settings of a training.
const KEY: &str = "lora_adapter_metadata";

/// PEFT's settings of a training. They say what a low-rank change is multiplied with in files that have no tensors for it.
#[derive(Default)]
pub(super) struct Adapter(serde_json::Map<String, Value>);

impl Adapter {
    /// # Errors
    /// [`Error::Malformed`] where they are no JSON object.
    pub(super) fn read(metadata: &BTreeMap<String, String>, path: &Path) -> Result<Adapter> {
        let Some(text) = metadata.get(KEY) else { return Ok(Adapter::default()) };
        json::read(text).map(Adapter).map_err(|error| {
            let found = error.to_string().escape_debug().to_string();
            Error::malformed(path, format!("metadata `{KEY}`"), "a JSON object of settings", found)
        })
    }

    /// The setting `name` of `component`: diffusers puts the component's name before it, PEFT does not.
    fn get(&self, component: &str, name: &str) -> Option<&Value> {
        self.0.get(&format!("{component}.{name}")).or_else(|| self.0.get(name))
    }

    /// What the change of the module `stem` of `component`, of rank `rank`, is multiplied with: `alpha / rank`, or with rsLoRA
    /// `alpha / sqrt(rank)`. 1 where nothing is said.
    pub(super) fn scale(&self, component: &str, stem: &str, rank: usize) -> f32 {
        let Some(alpha) = self.alpha(component, stem) else { return 1.0 };
        let is_rs = self.get(component, "use_rslora").and_then(Value::as_bool) == Some(true);
        let rank = rank as f64;
        (alpha / if is_rs { rank.sqrt() } else { rank }) as f32
    }

    /// The alpha of the module `stem` of `component`, if anything is said.
    pub(super) fn alpha(&self, component: &str, stem: &str) -> Option<f64> {
        let pattern = self.get(component, "alpha_pattern").and_then(Value::as_object);
        let special = pattern.and_then(|patterns| patterns.iter().find(|(pattern, _)| matches(pattern, stem)));
        let alpha = special.map(|(_, alpha)| alpha).or_else(|| self.get(component, "lora_alpha"));
        alpha.and_then(Value::as_f64)
    }
}

/// Whether a module is one that a key of PEFT's patterns names: by its last parts, or by all with `^` before.
fn matches(pattern: &str, stem: &str) -> bool {
    match pattern.strip_prefix('^') {
        Some(all) => all == stem,
        None => stem.strip_suffix(pattern).is_some_and(|before| before.is_empty() || before.ends_with('.')),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn adapter(json: &str) -> Result<Adapter> {
        Adapter::read(&[(KEY.to_owned(), json.to_owned())].into(), Path::new("f"))
    }

    #[test]
    fn scales_follow_alpha_rank_and_patterns() {
        let json = r#"{"transformer.lora_alpha": 8, "transformer.r": 4,
            "transformer.alpha_pattern": {"attn.to_q": 16, "^proj_out": 2}, "text_encoder.lora_alpha": 4,
            "text_encoder.use_rslora": true}"#;
        let adapter = adapter(json).unwrap();
        assert_eq!(adapter.scale("transformer", "x.attn.to_k", 4), 2.0);
        assert_eq!(adapter.scale("transformer", "x.attn.to_q", 4), 4.0);
        assert_eq!(adapter.scale("transformer", "proj_out", 4), 0.5);
        assert_eq!(adapter.scale("transformer", "x.proj_out", 4), 2.0);
        assert_eq!(adapter.scale("text_encoder", "q_proj", 4), 2.0);
        assert_eq!(adapter.scale("unet", "x", 4), 1.0);
        assert_eq!(Adapter::default().scale("transformer", "x", 4), 1.0);
        assert_eq!(self::adapter(r#"{"lora_alpha": 2, "r": 4}"#).unwrap().scale("", "x", 4), 0.5);
    }

    #[test]
    fn settings_that_are_none_are_refused() {
        let error = adapter("[]").err().unwrap().to_string();
        assert!(error.starts_with("f: metadata `lora_adapter_metadata`: expected a JSON object"), "{error}");
    }

    #[test]
    fn a_file_says_what_it_is_for() {
        let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let metadata =
            [text("ss_base_model_version", "flux1"), text("modelspec.trigger_phrase", "xyz"), text("name", " ")];
        let training = [text("ss_steps", "900"), text("modelspec.usage_hint", "strength 0.125"), text("Steps", "8")];
        let about = About::read(&metadata.into_iter().chain(training).collect());
        assert_eq!(about.settings, [text("Steps", "8"), text("modelspec.usage_hint", "strength 0.125")]);
        assert_eq!((about.title, about.base.as_deref(), about.triggers.as_deref()), (None, Some("flux1"), Some("xyz")));
    }
}
