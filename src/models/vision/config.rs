//! The settings of a vision tower.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::models::config::{self, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::models::layers::Activation;
use crate::tensor::Shape;
use crate::{Error, Result, json};

/// Whose vision tower it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Family {
    /// CLIP's: a token of its own stands before those of the patches, and a norm before the layers.
    #[serde(rename = "clip_vision_model")]
    Clip,
    /// SigLIP's: tokens of patches alone, and attention that makes one vector of them.
    #[serde(rename = "siglip_vision_model")]
    Siglip,
}

/// The settings of a vision tower, by their names in transformers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Config {
    /// Whose it is.
    pub model_type: Family,
    /// `D`: the length of the vector of a token.
    pub hidden_size: usize,
    /// The length of that vector inside the feed-forward layers.
    pub intermediate_size: usize,
    /// How many layers there are.
    pub num_hidden_layers: usize,
    /// `H`: how many heads attention has. Divides `D`.
    pub num_attention_heads: usize,
    /// Colours of a pixel.
    pub num_channels: usize,
    /// Pixels of the picture's sides.
    pub image_size: usize,
    /// Pixels of a patch's sides.
    pub patch_size: usize,
    /// The function inside the feed-forward layers.
    pub hidden_act: Activation,
    /// What is added to the variance in norms.
    pub layer_norm_eps: f32,
    /// `P`: the length of the pooled vector after its projection, in a CLIP that has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projection_dim: Option<usize>,
}

/// The widest CLIP that OpenAI published (ViT-L). The wider ones are OpenCLIP's, with another activation.
const WIDEST_OF_OPENAI: usize = 1024;

/// Widths of towers whose heads are not 64 wide, and how many heads they have: SigLIP's so400m, OpenCLIP's ViT-H and bigG.
const HEADS: [(usize, usize); 3] = [(1152, 16), (1280, 16), (1664, 16)];
const HEAD_WIDTH: usize = 64;

/// The sides of pictures, where `whole` of their pixels make whole patches: published sizes are multiples of 32, and SigLIP's 384 pixels are 27
/// patches of 14 and 6 more.
fn published_size(whole: usize, patch_size: usize) -> usize {
    let published = whole.next_multiple_of(32);
    if published < whole + patch_size { published } else { whole }
}

impl Config {
    /// What transformers takes for a setting that a file does not have.
    fn defaults(family: Family) -> Config {
        let (patch_size, hidden_act, layer_norm_eps) = match family {
            Family::Clip => (32, Activation::QuickGelu, 1e-5),
            Family::Siglip => (16, Activation::GeluNew, 1e-6),
        };
        Config {
            model_type: family,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size,
            hidden_act,
            layer_norm_eps,
            projection_dim: (family == Family::Clip).then_some(512),
        }
    }

    /// Reads the text of a `config.json`, which `origin` holds, and validates it: of the tower alone, or of a whole model, of whose
    /// settings the tower's are `vision_config`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is no such configuration or names an activation that pinhole does not have, and those of
    /// [`validate`](Config::validate).
    pub fn from_json(text: &str, origin: &Path, family: Family) -> Result<Config> {
        let malformed = |error: serde_json::Error| {
            Error::malformed(origin, "configuration", "a JSON object of settings that pinhole knows", error.to_string())
        };
        let mut given: Map<String, Value> = json::read(text).map_err(malformed)?;
        if let Some(Value::Object(own)) = given.remove("vision_config") {
            let projection = given.remove("projection_dim").map(|width| ("projection_dim".to_owned(), width));
            given = projection.into_iter().chain(own).collect();
        }
        given.insert("model_type".into(), serde_json::to_value(family).map_err(malformed)?);
        let defaults = serde_json::to_value(Config::defaults(family)).map_err(malformed)?;
        if let Value::Object(defaults) = defaults {
            for (key, value) in defaults {
                given.entry(key).or_insert(value);
            }
        }
        let config = Config::deserialize(Value::Object(given)).map_err(malformed)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What shapes do not
    /// tell is what the published models have.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path, family: Family) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [patch_size, _, num_channels, hidden_size] =
            shapes.dims("vision_model.embeddings.patch_embedding.weight")?;
        let [_, positions, ..] = shapes.dims("vision_model.embeddings.position_embedding.weight")?;
        let [_, intermediate_size, ..] = shapes.dims("vision_model.encoder.layers.0.mlp.fc1.weight")?;
        let patches = positions.saturating_sub(usize::from(family == Family::Clip));
        let known = HEADS.iter().find(|(width, _)| *width == hidden_size).map(|(_, heads)| *heads);
        let defaults = Config::defaults(family);
        let of_open_clip = family == Family::Clip && hidden_size > WIDEST_OF_OPENAI;
        let config = Config {
            hidden_size,
            intermediate_size,
            num_hidden_layers: shapes.count(|i| format!("vision_model.encoder.layers.{i}.layer_norm1.weight")),
            num_attention_heads: known.unwrap_or(hidden_size / HEAD_WIDTH),
            num_channels,
            image_size: published_size(patches.isqrt() * patch_size, patch_size),
            patch_size,
            hidden_act: if of_open_clip { Activation::Gelu } else { defaults.hidden_act },
            projection_dim: match shapes.has("visual_projection.weight") {
                true => Some(shapes.dims("visual_projection.weight")?[1]),
                false => None,
            },
            ..defaults
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        limit("hidden_size", self.hidden_size, MOST_WIDTH)?;
        limit("intermediate_size", self.intermediate_size, MOST_WIDTH)?;
        limit("num_hidden_layers", self.num_hidden_layers, MOST_LAYERS)?;
        limit("patch_size", self.patch_size, 1 << 10)?;
        limit("image_size", self.image_size, 1 << 12)?;
        limit("projection_dim", self.projection_dim.unwrap_or(1), MOST_WIDTH)?;
        config::limit(origin, "num_channels", self.num_channels, 3..=3)?;
        let (heads, width) = (self.num_attention_heads, self.hidden_size);
        let divides = heads > 0 && width.is_multiple_of(heads);
        config::require(origin, "num_attention_heads", divides, || format!("a divisor of {width}"), heads)?;
        let whole = self.image_size >= self.patch_size;
        config::require(
            origin,
            "image_size",
            whole,
            || format!("at least patch_size, {}", self.patch_size),
            self.image_size,
        )?;
        let positive = self.layer_norm_eps.is_finite() && self.layer_norm_eps > 0.0;
        config::require(origin, "layer_norm_eps", positive, || "a positive number".into(), self.layer_norm_eps)
    }

    /// Patches of a picture's sides. Pixels that make no whole patch are not seen.
    pub fn patches(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// `T`: how many tokens a picture has.
    pub fn tokens(&self) -> usize {
        self.patches() * self.patches() + usize::from(self.model_type == Family::Clip)
    }

    /// Numbers of a patch.
    pub fn patch_numbers(&self) -> usize {
        self.patch_size * self.patch_size * self.num_channels
    }
}
