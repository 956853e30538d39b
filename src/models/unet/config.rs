//! The UNet's settings.

mod levels;

pub use levels::{Depths, PerLevel};

use std::path::Path;

use levels::Levels;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::models::config::{self as settings, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;
use crate::{Error, Result};

/// The settings of a UNet, by their names in diffusers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// Channels of the latents that come in: 4, 8 with a picture to edit, 9 with a masked picture and its mask.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Channels of each level, that of the latents' own size first.
    pub block_out_channels: Vec<usize>,
    /// How many residual blocks a level has on the way down. It has one more on the way up.
    pub layers_per_block: PerLevel,
    /// What each level is on the way down: with attention or without.
    pub down_block_types: Vec<String>,
    /// What each level is on the way up, the smallest pixels' first.
    pub up_block_types: Vec<String>,
    /// What stands between the ways: a transformer between two residual blocks, one residual block, or, in `None`, nothing.
    pub mid_block_type: Option<String>,
    /// How many blocks each transformer of a level has. The middle has as many as the last level.
    pub transformer_layers_per_block: Depths,
    /// How many they are on the way up, the smallest pixels' level first; by default as on the way down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverse_transformer_layers_per_block: Option<Depths>,
    /// How many heads attention has. That the name says something else is an old mistake of diffusers', which all files keep.
    pub attention_head_dim: PerLevel,
    /// Width of the prompt's hidden states.
    pub cross_attention_dim: usize,
    /// How many groups of channels are normalised each by itself.
    pub norm_num_groups: usize,
    /// What is added to the variance in the norms of residual blocks.
    pub norm_eps: f32,
    /// Whether files hold the projections around a transformer as matrices: as convolutions of one pixel they are the same.
    pub use_linear_projection: bool,
    /// Width of the embedded guidance that is added to the time, in a UNet that is told how closely to follow the prompt, as a latent
    /// consistency model is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_cond_proj_dim: Option<usize>,
    /// `text_time` where the pooled prompt and six sizes are added to the time.
    pub addition_embed_type: Option<String>,
    /// Width of the sinusoidal embedding of each of the six sizes.
    pub addition_time_embed_dim: Option<usize>,
    /// Width of the pooled prompt and the embedded sizes together.
    pub projection_class_embeddings_input_dim: Option<usize>,
}

/// More levels than any UNet has.
pub const MOST_LEVELS: usize = 8;

/// How many sizes are embedded beside the pooled prompt: the original's, the crop's corner, the target's, two numbers each.
pub const SIZES: usize = 6;

/// The same of a refiner, which is told how pleasing the picture is in the place of the target's size.
pub const SIZES_OF_REFINER: usize = 5;

/// Width of the embedding of a size in the published models.
const SIZE_WIDTH: usize = 256;

/// What a UNet makes of the embedded guidance.
const GUIDANCE: &str = "time_embed.cond_proj.weight";

/// The width of the prompt in Stable Diffusion 1, whose attention has so many heads at every level; later ones have heads of
/// the width below.
const FIRST_CONTEXT: usize = 768;
const FIRST_HEADS: usize = 8;
const HEAD_WIDTH: usize = 64;

const ATTENDS: [&str; 2] = ["CrossAttnDownBlock2D", "CrossAttnUpBlock2D"];
const PLAIN: [&str; 2] = ["DownBlock2D", "UpBlock2D"];
const MIDDLES: [&str; 2] = ["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"];

/// Settings that change the network and that pinhole knows one value of, which is diffusers' default.
const FIXED: [(&str, &str); 26] = [
    ("act_fn", "\"silu\""),
    ("attention_type", "\"default\""),
    ("center_input_sample", "false"),
    ("class_embed_type", "null"),
    ("class_embeddings_concat", "false"),
    ("conv_in_kernel", "3"),
    ("conv_out_kernel", "3"),
    ("cross_attention_norm", "null"),
    ("downsample_padding", "1"),
    ("dual_cross_attention", "false"),
    ("encoder_hid_dim", "null"),
    ("encoder_hid_dim_type", "null"),
    ("flip_sin_to_cos", "true"),
    ("freq_shift", "0"),
    ("mid_block_only_cross_attention", "null"),
    ("mid_block_scale_factor", "1"),
    ("num_attention_heads", "null"),
    ("num_class_embeds", "null"),
    ("only_cross_attention", "false"),
    ("resnet_out_scale_factor", "1"),
    ("resnet_skip_time_act", "false"),
    ("resnet_time_scale_shift", "\"default\""),
    ("time_embedding_act_fn", "null"),
    ("time_embedding_dim", "null"),
    ("time_embedding_type", "\"positional\""),
    ("timestep_post_act", "null"),
];

impl Default for Config {
    fn default() -> Config {
        let [down, up] = ATTENDS.map(str::to_owned);
        let [last, first] = PLAIN.map(str::to_owned);
        Config {
            in_channels: 4,
            out_channels: 4,
            block_out_channels: vec![320, 640, 1280, 1280],
            layers_per_block: PerLevel::All(2),
            down_block_types: vec![down.clone(), down.clone(), down, last],
            up_block_types: vec![first, up.clone(), up.clone(), up],
            mid_block_type: Some(MIDDLES[0].into()),
            transformer_layers_per_block: Depths::All(1),
            reverse_transformer_layers_per_block: None,
            attention_head_dim: PerLevel::All(8),
            cross_attention_dim: 1280,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            use_linear_projection: false,
            time_cond_proj_dim: None,
            addition_embed_type: None,
            addition_time_embed_dim: None,
            projection_class_embeddings_input_dim: None,
        }
    }
}

impl Config {
    /// Stable Diffusion 1.5's.
    pub fn sd1() -> Config {
        Config { cross_attention_dim: 768, ..Config::default() }
    }

    /// Stable Diffusion 2.1's.
    pub fn sd2() -> Config {
        Config {
            attention_head_dim: PerLevel::Each(vec![5, 10, 20, 20]),
            cross_attention_dim: 1024,
            use_linear_projection: true,
            ..Config::default()
        }
    }

    /// Stable Diffusion XL's.
    pub fn sdxl() -> Config {
        let [down, up] = ATTENDS.map(str::to_owned);
        let [first, last] = PLAIN.map(str::to_owned);
        Config {
            block_out_channels: vec![320, 640, 1280],
            down_block_types: vec![first, down.clone(), down],
            up_block_types: vec![up.clone(), up, last],
            transformer_layers_per_block: Depths::Each([1, 2, 10].map(PerLevel::All).into()),
            attention_head_dim: PerLevel::Each(vec![5, 10, 20]),
            cross_attention_dim: 2048,
            use_linear_projection: true,
            addition_embed_type: Some("text_time".into()),
            addition_time_embed_dim: Some(SIZE_WIDTH),
            projection_class_embeddings_input_dim: Some(2816),
            ..Config::default()
        }
    }

    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`] where it is not such a configuration, [`Error::Mismatch`] for a setting with a value that pinhole
    /// does not compute, and those of [`validate`](Config::validate).
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        Config::check_fixed(text, origin)?;
        let config: Config = settings::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Refuses a text in which a setting has a value that pinhole does not compute.
    pub(super) fn check_fixed(text: &str, origin: &Path) -> Result<()> {
        let all: serde_json::Map<String, Value> = settings::from_json(text, origin)?;
        for (key, only) in FIXED {
            let Some(found) = all.get(key) else { continue };
            // Whole numbers are written with a point or without.
            let text = found.as_f64().map_or_else(|| found.to_string(), |number| number.to_string());
            settings::require(origin, key, text == only, || only.to_owned(), found)?;
        }
        Ok(())
    }

    /// The same with a plain way up, for networks that have none.
    pub(super) fn without_way_up(self) -> Config {
        let up_block_types = vec![PLAIN[1].to_owned(); self.levels()];
        Config { up_block_types, reverse_transformer_layers_per_block: None, time_cond_proj_dim: None, ..self }
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// What shapes do not tell is as published: 32 groups, and 8 heads where the prompt is 768 wide (Stable Diffusion 1), heads
    /// of 64 otherwise.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        Config::of_levels(&Shapes::new(&shape_of, origin), origin, true)
    }

    /// The same of a network that has no way up.
    pub(super) fn of_encoder(shape_of: &dyn Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        Config::of_levels(&Shapes::new(shape_of, origin), origin, false)
    }

    /// The sizes, of a network that has a way up or that has none.
    fn of_levels(shapes: &Shapes<'_>, origin: &Path, has_way_up: bool) -> Result<Config> {
        let [_, _, in_channels, first] = shapes.dims("input_blocks.0.0.weight")?;
        let out_channels = if has_way_up { shapes.dims("out.2.weight")?[3] } else { in_channels };
        let levels = Levels::read(shapes, first)?;
        let Some(transformer) = levels.transformers().next() else {
            return Err(Error::mismatch(origin, "UNet", "one with attention to a prompt", "one without"));
        };
        let to_k = format!("{transformer}.transformer_blocks.0.attn2.to_k.weight");
        let [cross_attention_dim, ..] = shapes.dims(&to_k)?;
        let heads = levels.channels.iter().map(|channels| match cross_attention_dim {
            FIRST_CONTEXT => FIRST_HEADS,
            _ => channels / HEAD_WIDTH,
        });
        let heads = heads.collect();
        let projection = shapes.dims(&format!("{transformer}.proj_in.weight"))?;
        let added = shapes.has("label_emb.0.0.weight").then(|| shapes.dims("label_emb.0.0.weight")).transpose()?;
        let kinds = |side: usize, ways: &[Vec<usize>]| {
            ways.iter().map(|way| kind(side, way.iter().any(|&depth| depth > 0))).collect()
        };
        let config = Config {
            in_channels,
            out_channels,
            down_block_types: kinds(0, &levels.down),
            up_block_types: kinds(1, &levels.up),
            attention_head_dim: PerLevel::Each(heads),
            layers_per_block: levels.layers_per_block(),
            mid_block_type: levels.middle.map(|depth| MIDDLES[usize::from(depth == 0)].into()),
            transformer_layers_per_block: levels.depths_down(),
            reverse_transformer_layers_per_block: levels.depths_up(),
            block_out_channels: levels.channels,
            cross_attention_dim,
            use_linear_projection: projection[2..] == [1, 1],
            time_cond_proj_dim: if shapes.has(GUIDANCE) { Some(shapes.dims(GUIDANCE)?[0]) } else { None },
            addition_embed_type: added.is_some().then(|| "text_time".into()),
            addition_time_embed_dim: added.is_some().then_some(SIZE_WIDTH),
            projection_class_embeddings_input_dim: added.map(|[width, ..]| width),
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// How many levels there are.
    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// Channels of the first level: the width of the sinusoidal embedding of a time.
    pub fn time_width(&self) -> usize {
        self.block_out_channels.first().copied().unwrap_or(0)
    }

    /// Width of the pooled prompt and the embedded sizes together, in a model that has them.
    pub fn added_width(&self) -> Option<usize> {
        self.addition_embed_type.as_ref().and(self.projection_class_embeddings_input_dim)
    }

    /// How many residual blocks each level has on the way down.
    pub fn layers_by_level(&self) -> Vec<usize> {
        (0..self.levels()).map(|level| self.layers(level)).collect()
    }

    /// How many residual blocks `level` has on the way down.
    pub(super) fn layers(&self, level: usize) -> usize {
        self.layers_per_block.at(level)
    }

    /// How many blocks transformer `block` of `level` has on the way down.
    pub(super) fn depth_down(&self, level: usize, block: usize) -> usize {
        self.transformer_layers_per_block.at(level, block)
    }

    /// The same on the way up.
    pub(super) fn depth_up(&self, level: usize, block: usize) -> usize {
        match &self.reverse_transformer_layers_per_block {
            Some(depths) => depths.at(self.levels() - 1 - level, block),
            None => self.transformer_layers_per_block.at(level, block),
        }
    }

    /// How many blocks the transformer in the middle has; `None` if there is none.
    pub(super) fn depth_of_middle(&self) -> Option<usize> {
        let has = self.mid_block_type.as_deref() == Some(MIDDLES[0]);
        has.then(|| self.transformer_layers_per_block.at(self.levels() - 1, 0))
    }

    /// Whether `level` has attention on the way down.
    pub(super) fn attends_down(&self, level: usize) -> bool {
        self.down_block_types.get(level).is_some_and(|kind| kind == ATTENDS[0])
    }

    /// Whether `level` has attention on the way up.
    pub(super) fn attends_up(&self, level: usize) -> bool {
        self.up_block_types.iter().rev().nth(level).is_some_and(|kind| kind == ATTENDS[1])
    }

    /// Checks that the settings, which `origin` holds, make a UNet that pinhole computes.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| settings::limit(origin, key, value, 1..=most);
        limit("in_channels", self.in_channels, MOST_WIDTH)?;
        limit("out_channels", self.out_channels, MOST_WIDTH)?;
        limit("number of block_out_channels", self.levels(), MOST_LEVELS)?;
        limit("cross_attention_dim", self.cross_attention_dim, MOST_WIDTH)?;
        limit("norm_num_groups", self.norm_num_groups, MOST_WIDTH)?;
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            limit("block_out_channels", channels, MOST_WIDTH)?;
            let groups = self.norm_num_groups;
            let whole = channels.is_multiple_of(groups);
            settings::require(
                origin,
                "block_out_channels",
                whole,
                || format!("multiples of norm_num_groups, {groups}"),
                channels,
            )?;
            limit("layers_per_block", self.layers(level), MOST_LAYERS)?;
            let heads = self.attention_head_dim.at(level);
            let whole = heads > 0 && channels.is_multiple_of(heads);
            settings::require(origin, "attention_head_dim", whole, || format!("a divisor of {channels}"), heads)?;
        }
        let even = self.time_width().is_multiple_of(2);
        settings::require(origin, "block_out_channels", even, || "an even first number".into(), self.time_width())?;
        let positive = self.norm_eps.is_finite() && self.norm_eps > 0.0;
        settings::require(origin, "norm_eps", positive, || "a positive number".into(), self.norm_eps)?;
        self.validate_kinds(origin)?;
        self.validate_depths(origin)?;
        self.validate_added(origin)
    }

    /// Every transformer has blocks.
    fn validate_depths(&self, origin: &Path) -> Result<()> {
        const KEY: &str = "transformer_layers_per_block";
        const REVERSE: &str = "reverse_transformer_layers_per_block";
        let told = self.transformer_layers_per_block.is_even() || self.reverse_transformer_layers_per_block.is_some();
        settings::require(
            origin,
            REVERSE,
            told,
            || "numbers for the way up, if transformers of a level differ".into(),
            "none",
        )?;
        for level in 0..self.levels() {
            for block in 0..self.layers(level) {
                if self.attends_down(level) {
                    settings::limit(origin, KEY, self.depth_down(level, block), 1..=MOST_LAYERS)?;
                }
            }
            for block in 0..=self.layers(level) {
                if self.attends_up(level) {
                    settings::limit(origin, REVERSE, self.depth_up(level, block), 1..=MOST_LAYERS)?;
                }
            }
        }
        if let Some(depth) = self.depth_of_middle() {
            settings::limit(origin, KEY, depth, 1..=MOST_LAYERS)?;
        }
        Ok(())
    }

    fn validate_kinds(&self, origin: &Path) -> Result<()> {
        for (side, key, kinds) in
            [(0, "down_block_types", &self.down_block_types), (1, "up_block_types", &self.up_block_types)]
        {
            let known = kinds.len() == self.levels() && kinds.iter().all(|k| *k == ATTENDS[side] || *k == PLAIN[side]);
            settings::require(
                origin,
                key,
                known,
                || format!("{} or {}, {} times", ATTENDS[side], PLAIN[side], self.levels()),
                kinds.join(", "),
            )?;
        }
        let Some(middle) = &self.mid_block_type else { return Ok(()) };
        let known = MIDDLES.contains(&middle.as_str());
        settings::require(origin, "mid_block_type", known, || format!("{}, {} or null", MIDDLES[0], MIDDLES[1]), middle)
    }

    /// The sizes and the pooled prompt are there together or not at all.
    fn validate_added(&self, origin: &Path) -> Result<()> {
        if let Some(width) = self.time_cond_proj_dim {
            settings::limit(origin, "time_cond_proj_dim", width, 4..=MOST_WIDTH)?;
            settings::require(
                origin,
                "time_cond_proj_dim",
                width.is_multiple_of(2),
                || "an even number".into(),
                width,
            )?;
        }
        let Some(kind) = &self.addition_embed_type else { return Ok(()) };
        settings::require(origin, "addition_embed_type", kind == "text_time", || "text_time or null".into(), kind)?;
        let size = self.addition_time_embed_dim.unwrap_or(0);
        settings::limit(origin, "addition_time_embed_dim", size, 2..=MOST_WIDTH)?;
        settings::require(origin, "addition_time_embed_dim", size.is_multiple_of(2), || "an even number".into(), size)?;
        let width = self.projection_class_embeddings_input_dim.unwrap_or(0);
        settings::limit(
            origin,
            "projection_class_embeddings_input_dim",
            width,
            SIZES_OF_REFINER * size + 1..=MOST_WIDTH,
        )
    }
}

fn kind(side: usize, attends: bool) -> String {
    if attends { ATTENDS[side] } else { PLAIN[side] }.to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::models::unet::Unet;

    fn read(text: &str) -> Result<Config> {
        Config::from_json(text, Path::new("config.json"))
    }

    #[test]
    fn settings_are_read_with_their_defaults() {
        assert_eq!(read(r#"{"cross_attention_dim": 768, "sample_size": 64}"#).unwrap(), Config::sd1());
        for config in [Config::sd1(), Config::sd2(), Config::sdxl(), distilled(), tiny()] {
            assert_eq!(read(&serde_json::to_string(&config).unwrap()).unwrap(), config);
        }
    }

    /// As SSD-1B's.
    fn distilled() -> Config {
        let each = |numbers: &[usize]| PerLevel::Each(numbers.to_vec());
        Config {
            mid_block_type: Some("UNetMidBlock2D".into()),
            transformer_layers_per_block: Depths::Each(vec![PerLevel::All(1), PerLevel::All(2), each(&[4, 3])]),
            reverse_transformer_layers_per_block: Some(Depths::Each(vec![
                each(&[4, 4, 10]),
                each(&[2, 1, 1]),
                PerLevel::All(1),
            ])),
            ..Config::sdxl()
        }
    }

    /// As BK-SDM's smallest.
    fn tiny() -> Config {
        Config {
            block_out_channels: vec![320, 640, 1280],
            down_block_types: vec![ATTENDS[0].into(); 3],
            up_block_types: vec![ATTENDS[1].into(); 3],
            layers_per_block: PerLevel::Each(vec![1, 2, 1]),
            mid_block_type: None,
            ..Config::sd1()
        }
    }

    #[test]
    fn shapes_tell_the_sizes() {
        let inpaint = Config { in_channels: 9, ..Config::sd1() };
        let guided = Config { time_cond_proj_dim: Some(256), ..Config::sd1() };
        for config in [Config::sd1(), Config::sd2(), Config::sdxl(), inpaint, guided, distilled(), tiny()] {
            let net = Unet::new(&config).unwrap();
            let found =
                Config::from_shapes(|name| net.model.manifest().shape(name), Path::new("sd.safetensors")).unwrap();
            let layers = |config: &Config| {
                let net = Unet::new(config).unwrap();
                net.model.manifest().iter().map(|(_, weight)| (weight.name.clone(), weight.shape)).collect::<Vec<_>>()
            };
            assert_eq!(layers(&found), layers(&config));
            for level in 0..config.levels() {
                assert_eq!(found.attention_head_dim.at(level), config.attention_head_dim.at(level));
            }
            let same = Config {
                attention_head_dim: config.attention_head_dim.clone(),
                transformer_layers_per_block: config.transformer_layers_per_block.clone(),
                reverse_transformer_layers_per_block: config.reverse_transformer_layers_per_block.clone(),
                use_linear_projection: config.use_linear_projection,
                ..found
            };
            assert_eq!(same, config);
        }
        let error = Config::from_shapes(|_| None, Path::new("sd.safetensors")).unwrap_err().to_string();
        assert!(error.starts_with("sd.safetensors: input_blocks.0.0.weight: expected a tensor"), "{error}");
    }

    #[test]
    fn other_networks_are_refused() {
        let refusal = |text: &str| read(text).unwrap_err().to_string();
        assert_eq!(
            refusal(r#"{"only_cross_attention": true}"#),
            "config.json: only_cross_attention: expected false, found true"
        );
        assert_eq!(
            refusal(r#"{"time_cond_proj_dim": 257}"#),
            "config.json: time_cond_proj_dim: expected an even number, found 257"
        );
        assert_eq!(
            refusal(r#"{"attention_head_dim": 7}"#),
            "config.json: attention_head_dim: expected a divisor of 320, found 7"
        );
        assert!(
            refusal(r#"{"down_block_types": ["DownBlock2D"]}"#).contains("DownBlock2D, 4 times, found DownBlock2D")
        );
        assert!(refusal(r#"{"addition_embed_type": "image"}"#).contains("expected text_time or null, found image"));
        assert!(refusal(r#"{"addition_embed_type": "text_time"}"#).contains("addition_time_embed_dim"));
        assert!(refusal(r#"{"block_out_channels": []}"#).contains("number of block_out_channels"));
        assert!(refusal(r#"{"transformer_layers_per_block": [[1]]}"#).contains("reverse_transformer_layers_per_block"));
        assert!(refusal(r#"{"transformer_layers_per_block": [[[1]]]}"#).contains("configuration"));
        assert!(refusal(r#"{"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}"#).contains("UNetMidBlock2D or null"));
        // As other versions of diffusers write them.
        read(r#"{"downsample_padding": 1, "mid_block_scale_factor": 1.0, "upcast_attention": true}"#).unwrap();
    }
}
