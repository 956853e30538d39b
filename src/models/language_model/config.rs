//! The settings of a language model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::models::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;
use crate::{Error, Result, json, reserve};

/// The settings of a language model, by their names in transformers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// The family, which says whether heads are normalised and whether projections have biases: see `FAMILIES`.
    pub model_type: String,
    /// How many tokens have an embedding.
    pub vocab_size: usize,
    /// `D`: the length of the vector of a token.
    pub hidden_size: usize,
    /// `F`: the inner width of the feed-forward layers.
    pub intermediate_size: usize,
    /// How many layers there are.
    pub num_hidden_layers: usize,
    /// `H`: how many heads the queries have.
    pub num_attention_heads: usize,
    /// `G`: how many heads keys and values have; as many as the queries by default. Divides `H`.
    pub num_key_value_heads: Option<usize>,
    /// `d`: the width of a head; `D / H` by default.
    pub head_dim: Option<usize>,
    /// The function of the gate: `silu`.
    pub hidden_act: String,
    /// What is added to the mean square in norms.
    pub rms_norm_eps: f32,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// Whether neighbouring numbers of a head are turned together, as in llama.cpp's files of Llama and Mistral, and not those of its
    /// two halves.
    pub rope_interleaved: bool,
}

/// What the families differ in.
struct Family {
    /// As in `model_type`.
    names: &'static [&'static str],
    /// Whether queries and keys of each head are normalised.
    has_head_norms: bool,
    /// Whether queries, keys and values have biases.
    has_biases: bool,
    /// Whether what fills up a text stands before it.
    fills_left: bool,
    /// How the pairs of a head are shared out among the axes on which tokens of pictures stand.
    axes: Axes,
    /// The base of the rotary frequencies, where shapes do not tell.
    rope_theta: f64,
}

/// How the pairs of a head are shared out among three axes: time, row, column.
#[derive(Clone, Copy)]
enum Axes {
    /// One axis behind the other: 4, 6 and 6 sixteenths.
    Sections,
    /// Row and column take every third pair, from the second and the third on, until each has 5 sixteenths of all.
    Turns,
}

impl Axes {
    /// The axis that pair `i` of `pairs` turns by.
    fn of(self, i: usize, pairs: usize) -> usize {
        match self {
            Axes::Sections => usize::from(i >= pairs * 4 / 16) + usize::from(i >= pairs * 10 / 16),
            Axes::Turns if i < 3 * (pairs * 5 / 16) => i % 3,
            Axes::Turns => 0,
        }
    }
}

/// The families, by their names in transformers and llama.cpp.
static FAMILIES: [Family; 4] = [
    Family {
        names: &["qwen3"],
        has_head_norms: true,
        has_biases: false,
        fills_left: false,
        axes: Axes::Sections,
        rope_theta: 1e6,
    },
    Family {
        names: &[QWEN3_VL, "qwen3_vl", "qwen3vl"],
        has_head_norms: true,
        has_biases: false,
        fills_left: false,
        axes: Axes::Turns,
        rope_theta: 5e6,
    },
    Family {
        names: &["qwen2", "qwen2_5_vl_text", "qwen2_5_vl", "qwen2_vl_text", "qwen2vl"],
        has_head_norms: false,
        has_biases: true,
        fills_left: false,
        axes: Axes::Sections,
        rope_theta: 1e6,
    },
    Family {
        names: &["mistral", "llama"],
        has_head_norms: false,
        has_biases: false,
        fills_left: true,
        axes: Axes::Sections,
        rope_theta: 1e9,
    },
];

/// What the language model of Qwen3-VL is called. Its shapes are those of Qwen3.
pub const QWEN3_VL: &str = "qwen3_vl_text";

/// The width of a head, where shapes do not tell.
const HEAD_WIDTH: usize = 128;

impl Default for Config {
    fn default() -> Config {
        Config {
            model_type: "qwen3".into(),
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 22016,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            hidden_act: "silu".into(),
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_interleaved: false,
        }
    }
}

/// Settings that stand elsewhere in other versions of a `config.json`, or ask for what is not computed.
#[derive(Deserialize)]
struct Elsewhere {
    rope_theta: Option<f64>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    use_sliding_window: Option<bool>,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
}

/// How positions are turned.
#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    r#type: Option<String>,
}

impl Rope {
    fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default")
    }
}

/// The longest text that is read at all, in tokens.
const MOST_TOKENS: usize = 1024;

impl Config {
    /// Qwen3-4B, the text encoder of Z-Image and of FLUX.2 klein 4B.
    pub fn qwen3_4b() -> Config {
        Config {
            hidden_size: 2560,
            intermediate_size: 9728,
            num_hidden_layers: 36,
            num_key_value_heads: Some(8),
            head_dim: Some(HEAD_WIDTH),
            ..Config::default()
        }
    }

    /// The language model of Qwen2.5-VL-7B, the text encoder of Qwen-Image.
    pub fn qwen2_5_vl_7b() -> Config {
        Config {
            model_type: "qwen2".into(),
            vocab_size: 152_064,
            hidden_size: 3584,
            intermediate_size: 18944,
            num_hidden_layers: 28,
            num_attention_heads: 28,
            num_key_value_heads: Some(4),
            head_dim: Some(HEAD_WIDTH),
            ..Config::default()
        }
    }

    /// Qwen3-8B, the text encoder of FLUX.2 klein 9B.
    pub fn qwen3_8b() -> Config {
        Config {
            intermediate_size: 12288,
            num_hidden_layers: 36,
            num_key_value_heads: Some(8),
            head_dim: Some(HEAD_WIDTH),
            ..Config::default()
        }
    }

    /// The language model of Qwen3-VL-8B, the text encoder of Qwen-Image 2.1.
    pub fn qwen3_vl_8b() -> Config {
        Config { model_type: QWEN3_VL.into(), rope_theta: 5e6, ..Config::qwen3_8b() }
    }

    /// The language model of Mistral-Small-3.2-24B, the text encoder of FLUX.2 dev.
    pub fn mistral_small() -> Config {
        Config {
            model_type: "mistral".into(),
            vocab_size: 131_072,
            hidden_size: 5120,
            intermediate_size: 32768,
            num_hidden_layers: 40,
            num_key_value_heads: Some(8),
            head_dim: Some(HEAD_WIDTH),
            rms_norm_eps: 1e-5,
            rope_theta: 1e9,
            ..Config::default()
        }
    }

    /// Reads the text of a `config.json`, which `origin` holds, and validates it. Of a model that sees as well, the settings of its
    /// text part count.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is not such a configuration, and those of [`validate`](Config::validate).
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let mut settings: serde_json::Map<String, serde_json::Value> = json::read(text).map_err(|error| {
            let expected = "a JSON object of settings that pinhole knows";
            Error::malformed(origin, "configuration", expected, error.to_string())
        })?;
        if let Some(serde_json::Value::Object(inner)) = settings.remove("text_config") {
            settings = inner;
        }
        let text = serde_json::Value::Object(settings).to_string();
        let (config, more) =
            (config::from_json::<Config>(&text, origin)?, config::from_json::<Elsewhere>(&text, origin)?);
        let rope = more.rope_parameters.as_ref().or(more.rope_scaling.as_ref());
        let kind = rope.map_or("default", Rope::kind);
        // A text alone has the same position on every axis.
        let is_plain = ["default", "mrope"].contains(&kind);
        config::require(origin, "rope_type", is_plain, || "default or mrope".into(), kind)?;
        more.check_window(origin)?;
        let theta = more.rope_theta.or(rope.and_then(|rope| rope.rope_theta));
        let config = Config { rope_theta: theta.unwrap_or(config.rope_theta), ..config };
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What shapes do not
    /// tell is as in the published models.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [hidden_size, vocab_size, ..] = shapes.dims("token_embd.weight")?;
        let [_, queries, ..] = shapes.dims("blk.0.attn_q.weight")?;
        let [_, keys, ..] = shapes.dims("blk.0.attn_k.weight")?;
        let [_, intermediate_size, ..] = shapes.dims("blk.0.ffn_gate.weight")?;
        let (is_qwen3, is_qwen2) = (shapes.has("blk.0.attn_q_norm.weight"), shapes.has("blk.0.attn_q.bias"));
        let width = if is_qwen3 { shapes.dims("blk.0.attn_q_norm.weight")?[0] } else { HEAD_WIDTH };
        let model_type = if is_qwen3 {
            "qwen3"
        } else if is_qwen2 {
            "qwen2"
        } else {
            "mistral"
        };
        let config = Config {
            model_type: model_type.into(),
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: shapes.count(|i| format!("blk.{i}.attn_norm.weight")),
            num_attention_heads: queries / width, // extents are never 0
            num_key_value_heads: Some(keys / width),
            head_dim: Some(width),
            rms_norm_eps: if model_type == "mistral" { 1e-5 } else { 1e-6 },
            ..Config::default()
        };
        let config = config.of_family(model_type);
        config.validate(origin)?;
        Ok(config)
    }

    /// The same of a model of the family that `name` is one of the names of: of two families with the same shapes, shapes tell the more
    /// common one.
    #[must_use]
    pub fn of_family(self, name: &str) -> Config {
        let config = Config { model_type: name.into(), ..self };
        let rope_theta = config.family().map_or(config.rope_theta, |family| family.rope_theta);
        Config { rope_theta, ..config }
    }

    /// Checks that the settings, which `origin` holds, make a model that pinhole computes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        if self.family().is_none() {
            let names: Vec<&str> = FAMILIES.iter().flat_map(|family| family.names).copied().collect();
            let expected = format!("one of {}", names.join(", "));
            return Err(Error::mismatch(origin, "model_type", expected, &self.model_type));
        }
        config::require(origin, "hidden_act", self.hidden_act == "silu", || "silu".into(), &self.hidden_act)?;
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("vocab_size", self.vocab_size, 1 << 24)?;
        limit("hidden_size", self.hidden_size, MOST_WIDTH)?;
        limit("intermediate_size", self.intermediate_size, MOST_WIDTH)?;
        limit("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)?;
        limit("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        let (heads, groups) = (self.num_attention_heads, self.groups());
        let divides = groups > 0 && heads.is_multiple_of(groups);
        config::require(origin, "num_key_value_heads", divides, || format!("a divisor of {heads}"), groups)?;
        let width = self.head_width();
        let turns = width.is_multiple_of(2) && (2..=1 << 12).contains(&width);
        config::require(origin, "head_dim", turns, || format!("an even number from 2 to {}", 1 << 12), width)?;
        let positive = self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0;
        config::require(origin, "rms_norm_eps", positive, || "a positive number".into(), self.rms_norm_eps)?;
        let turns = self.rope_theta.is_finite() && self.rope_theta >= 1.0;
        config::require(origin, "rope_theta", turns, || "a number from 1 on".into(), self.rope_theta)
    }

    fn family(&self) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.names.contains(&self.model_type.as_str()))
    }

    /// Whether it is of the family that `name` is one of the names of.
    pub fn is_like(&self, name: &str) -> bool {
        self.family().is_some_and(|family| family.names.contains(&name))
    }

    /// Whether queries and keys of each head are normalised.
    pub fn has_head_norms(&self) -> bool {
        self.family().is_some_and(|family| family.has_head_norms)
    }

    /// Whether queries, keys and values have biases.
    pub fn has_biases(&self) -> bool {
        self.family().is_some_and(|family| family.has_biases)
    }

    /// Whether what fills up a text stands before it.
    pub fn fills_left(&self) -> bool {
        self.family().is_some_and(|family| family.fills_left)
    }

    /// `d`
    pub fn head_width(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1))
    }

    /// `G`
    pub fn groups(&self) -> usize {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// The rotary tables `(cos, sin)` of `tokens` tokens in a row, `[d, T]` each, with the sign of the rotation in the second:
    /// position `p` turns pair `i` by `p theta^(-2i/d)`, in single precision as transformers does.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn rotary(&self, tokens: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let width = self.head_width();
        let theta = self.rope_theta as f32;
        let frequencies: Vec<f32> = (0..width / 2).map(|i| 1.0 / theta.powf(2.0 * i as f32 / width as f32)).collect();
        let mut cos = reserve::room("the rotary tables", tokens.saturating_mul(width))?;
        let mut sin = reserve::room("the rotary tables", tokens.saturating_mul(width))?;
        for position in 0..tokens {
            let angles = frequencies.iter().map(|frequency| position as f32 * frequency);
            if self.rope_interleaved {
                cos.extend(angles.clone().flat_map(|angle| [angle.cos(); 2]));
                sin.extend(angles.flat_map(|angle| [-angle.sin(), angle.sin()]));
            } else {
                cos.extend(angles.clone().chain(angles.clone()).map(f32::cos));
                sin.extend(angles.clone().map(|angle| -angle.sin()).chain(angles.map(f32::sin)));
            }
        }
        Ok((cos, sin))
    }
}

impl Config {
    /// The rotary tables of tokens that stand at `positions` on three axes, time, row and column: as [`rotary`](Config::rotary), where
    /// the axes are the same.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn rotary_at(&self, positions: &[[usize; 3]]) -> Result<(Vec<f32>, Vec<f32>)> {
        let (width, theta) = (self.head_width(), self.rope_theta as f32);
        let pairs = width / 2;
        let axes = self.family().map_or(Axes::Sections, |family| family.axes);
        let mut cos = reserve::room("the rotary tables", positions.len().saturating_mul(width))?;
        let mut sin = reserve::room("the rotary tables", positions.len().saturating_mul(width))?;
        for at in positions {
            let angles =
                (0..pairs).map(|i| at[axes.of(i, pairs)] as f32 * (1.0 / theta.powf(2.0 * i as f32 / width as f32)));
            cos.extend(angles.clone().chain(angles.clone()).map(f32::cos));
            sin.extend(angles.clone().map(|angle| -angle.sin()).chain(angles.map(f32::sin)));
        }
        Ok((cos, sin))
    }
}

impl Elsewhere {
    /// Refuses a model in which tokens of a prompt do not see all before them.
    fn check_window(&self, origin: &Path) -> Result<()> {
        let by_layer = self.layer_types.as_ref().is_some_and(|kinds| kinds.iter().any(|kind| kind != "full_attention"));
        let everywhere = self.use_sliding_window.unwrap_or(self.layer_types.is_none());
        let sees = self.sliding_window.filter(|_| by_layer || everywhere).unwrap_or(MOST_TOKENS);
        config::require(
            origin,
            "sliding_window",
            sees >= MOST_TOKENS,
            || format!("at least the {MOST_TOKENS} tokens that a prompt may have"),
            sees,
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config> {
        Config::from_json(text, Path::new("config.json"))
    }

    #[test]
    fn both_forms_of_the_rotary_base_are_read() {
        let new = r#"{"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}"#;
        assert_eq!(read(new).unwrap().rope_theta, 5e5);
        assert_eq!(
            read(r#"{"model_type": "qwen3", "rope_theta": 5e5, "rope_scaling": null}"#).unwrap().rope_theta,
            5e5
        );
        assert_eq!(read("{}").unwrap().rope_theta, 1e6);
    }

    #[test]
    fn the_text_part_of_a_model_that_sees_counts() {
        let text = r#"{"model_type": "qwen2_5_vl", "hidden_size": 8, "text_config": {"model_type": "qwen2_5_vl_text",
            "hidden_size": 512, "num_attention_heads": 4, "rope_scaling": {"type": "mrope", "mrope_section": [1, 2, 3]}}}"#;
        let config = read(text).unwrap();
        assert_eq!((config.hidden_size, config.has_biases(), config.has_head_norms()), (512, true, false));
    }

    #[test]
    fn positions_of_a_text_alone_are_the_same_on_axes_that_take_turns() {
        let text = r#"{"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text", "rope_theta": 5000000,
            "rope_scaling": {"mrope_interleaved": true, "mrope_section": [24, 20, 20], "rope_type": "default"}}}"#;
        let config = read(text).unwrap();
        assert_eq!((config.rope_theta, config.has_head_norms(), config.has_biases()), (5e6, true, false));
        assert!(config.is_like("qwen3vl") && !config.is_like("qwen3"));
        assert_eq!(Config::qwen3_8b().of_family(QWEN3_VL), Config::qwen3_vl_8b());
    }

    #[test]
    fn axes_of_pictures_are_one_behind_the_other_or_take_turns() {
        let axes = |axes: Axes| (0..16).map(|i| axes.of(i, 16).to_string()).collect::<String>();
        assert_eq!((axes(Axes::Sections), axes(Axes::Turns)), ("0000111111222222".into(), "0120120120120120".into()));
        let of = |axis| (0..64).filter(|&i| Axes::Turns.of(i, 64) == axis).count();
        assert_eq!([of(0), of(1), of(2)], [24, 20, 20]);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (text, part) in [
            (r#"{"model_type": "gpt2"}"#, "model_type"),
            (r#"{"hidden_act": "gelu"}"#, "hidden_act"),
            (r#"{"num_key_value_heads": 5}"#, "a divisor of 32"),
            (r#"{"head_dim": 63}"#, "head_dim"),
            (r#"{"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}"#, "rope_type"),
            (r#"{"rope_theta": 0.5}"#, "rope_theta"),
            (r#"{"use_sliding_window": true, "sliding_window": 128}"#, "sliding_window"),
            (r#"{"rms_norm_eps": 0.0}"#, "rms_norm_eps"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with("config.json: ") && error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn tables_turn_halves_or_neighbours() {
        let config = Config { head_dim: Some(4), rope_theta: 100.0, ..Config::default() };
        let (cos, sin) = config.rotary(3).unwrap();
        let (fast, slow) = (2f32, 0.2f32);
        assert_eq!(cos[8..], [fast, slow, fast, slow].map(f32::cos));
        assert_eq!(sin[8..], [-fast.sin(), -slow.sin(), fast.sin(), slow.sin()]);
        let (cos, sin) = Config { rope_interleaved: true, ..config }.rotary(3).unwrap();
        assert_eq!(cos[8..], [fast, fast, slow, slow].map(f32::cos));
        assert_eq!(sin[8..], [-fast.sin(), fast.sin(), -slow.sin(), slow.sin()]);
    }
}
