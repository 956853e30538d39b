//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::models::config::{self, Shapes};
use crate::tensor::Shape;

/// Hyperparameters, named as in diffusers' `config.json`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Config {
    /// The sides of a patch of latents: one frame, two rows, two columns.
    pub patch_size: Vec<usize>,
    /// `H`
    pub num_attention_heads: usize,
    /// `d`
    pub attention_head_dim: usize,
    /// Channels of what is denoised, with what stands beside it.
    pub in_channels: usize,
    /// Latent channels.
    pub out_channels: Option<usize>,
    /// `J`: the width of the prompt's hidden states.
    pub text_dim: usize,
    /// The width of the sinusoidal embedding of time.
    pub freq_dim: usize,
    /// `F`: the inner width of the feed-forward layers.
    pub ffn_dim: usize,
    /// Blocks.
    pub num_layers: usize,
    /// Whether a norm stands before attention to the prompt: it does.
    pub cross_attn_norm: bool,
    /// The norms of queries and keys: over the whole width.
    pub qk_norm: Option<String>,
    /// The epsilon of the norms.
    pub eps: f32,
    /// `V`: the width of what a vision tower sees, in models that look at pictures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_dim: Option<usize>,
    /// The width of the keys and values that are made of it: `D`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub added_kv_proj_dim: Option<usize>,
    /// Positions that the reference has tables for, on every axis.
    pub rope_max_seq_len: usize,
    /// How many positions tokens of pictures have, in models that look at the first and the last frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pos_embed_seq_len: Option<usize>,
    /// Behind which blocks something is added that a film beside the latents is made into, in models of VACE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vace_layers: Option<Vec<usize>>,
    /// Channels of that film.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vace_in_channels: Option<usize>,
    /// Whether tokens of a picture that is referred to stand before those of the video, in models of Fun Control.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub add_ref_conv: bool,
}

/// The sides of a patch, and how many latents one has.
const PATCH: [usize; 3] = [1, 2, 2];
pub(super) const PATCH_LATENTS: usize = 4;

/// Channels that say of four frames whether each is given.
const GIVEN: usize = 4;

/// The only kind of norms of queries and keys.
const QK_NORM: &str = "rms_norm_across_heads";

/// The width of the heads of all published models.
const HEAD: usize = 128;

impl Default for Config {
    /// That of Wan 2.1 T2V 14B.
    fn default() -> Config {
        Config {
            patch_size: PATCH.to_vec(),
            num_attention_heads: 40,
            attention_head_dim: HEAD,
            in_channels: 16,
            out_channels: Some(16),
            text_dim: 4096,
            freq_dim: 256,
            ffn_dim: 13824,
            num_layers: 40,
            cross_attn_norm: true,
            qk_norm: Some(QK_NORM.into()),
            eps: 1e-6,
            image_dim: None,
            added_kv_proj_dim: None,
            rope_max_seq_len: 1024,
            pos_embed_seq_len: None,
            vace_layers: None,
            vace_in_channels: None,
            add_ref_conv: false,
        }
    }
}

impl Config {
    /// That of Wan 2.1 T2V 1.3B.
    pub fn of_1_3b() -> Config {
        Config { num_attention_heads: 12, ffn_dim: 8960, num_layers: 30, ..Config::default() }
    }

    /// That of Wan 2.2 TI2V 5B.
    pub fn of_ti2v_5b() -> Config {
        let published = Config { num_attention_heads: 24, ffn_dim: 14336, num_layers: 30, ..Config::default() };
        Config { in_channels: 48, out_channels: Some(48), ..published }
    }

    /// Reads the text of a `config.json`, which `origin` holds, and validates it.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) if it is no such configuration; [`Error::Mismatch`](crate::Error::Mismatch) if it
    /// makes no model.
    pub fn from_json(text: &str, origin: &Path) -> Result<Config> {
        let config: Config = config::from_json(text, origin)?;
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What shapes do not
    /// tell is as in the published models.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) if a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [freq_dim, hidden, ..] = shapes.dims("time_embedding.0.weight")?;
        let [text_dim, ..] = shapes.dims("text_embedding.0.weight")?;
        let [_, ffn_dim, ..] = shapes.dims("blocks.0.ffn.0.weight")?;
        let [_, outputs, ..] = shapes.dims("head.head.weight")?;
        // Files have it as a kernel, or with extents that were put together.
        let patches = shapes.dims("patch_embedding.weight")?.into_iter().product::<usize>();
        let image = "img_emb.proj.1.weight";
        let image_dim = if shapes.has(image) { Some(shapes.dims(image)?[0]) } else { None };
        let positions = "img_emb.emb_pos";
        let pos_embed_seq_len = if shapes.has(positions) { Some(shapes.dims(positions)?[1]) } else { None };
        let num_layers = shapes.count(|i| format!("blocks.{i}.self_attn.norm_q.weight"));
        let guide = "vace_patch_embedding.weight";
        let is_guided = shapes.has(guide);
        let vace_in_channels = match is_guided {
            true => Some(shapes.dims(guide)?.into_iter().product::<usize>() / hidden / PATCH_LATENTS),
            false => None,
        };
        let guides = shapes.count(|i| format!("vace_blocks.{i}.self_attn.norm_q.weight"));
        // In all that are published, they are spread evenly.
        let vace_layers = is_guided.then(|| (0..num_layers).step_by((num_layers / guides.max(1)).max(1)).take(guides));
        let config = Config {
            num_attention_heads: hidden / HEAD,
            in_channels: patches / hidden / PATCH_LATENTS, // extents are never 0
            out_channels: Some(outputs / PATCH_LATENTS),
            text_dim,
            freq_dim,
            ffn_dim,
            num_layers,
            image_dim,
            added_kv_proj_dim: image_dim.map(|_| hidden),
            pos_embed_seq_len,
            vace_layers: vace_layers.map(Iterator::collect),
            vace_in_channels,
            add_ref_conv: shapes.has("ref_conv.weight"),
            ..Config::default()
        };
        config::require(
            origin,
            "the width of the blocks",
            hidden.is_multiple_of(HEAD),
            || format!("a multiple of {HEAD}, the width of a head"),
            hidden,
        )?;
        config.validate(origin)?;
        Ok(config)
    }

    /// `D`
    pub fn hidden(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Latent channels.
    pub fn latent_channels(&self) -> usize {
        self.out_channels.unwrap_or(self.in_channels)
    }

    /// Channels that stand beside the latents.
    pub fn channels_beside(&self) -> usize {
        self.in_channels.saturating_sub(self.latent_channels())
    }

    /// Channels of the film beside the latents, in models of VACE.
    pub fn guide_channels(&self) -> usize {
        self.vace_layers.as_ref().and(self.vace_in_channels).unwrap_or(0)
    }

    /// Whether the latents of a film that is followed are the first of the channels beside the latents, before those of given frames: in
    /// models of Fun Control.
    pub fn follows_film(&self) -> bool {
        let (own, beside) = (self.latent_channels(), self.channels_beside());
        beside == 2 * own || beside == 2 * own + GIVEN
    }

    /// Whether channels beside the latents say which frames are given.
    pub fn is_told_given(&self) -> bool {
        let (own, beside) = (self.latent_channels(), self.channels_beside());
        beside == own + GIVEN || beside == 2 * own + GIVEN
    }

    /// How `d` is shared out among the rotary axes, frame, row and column: as diffusers does it.
    pub fn axes(&self) -> [usize; 3] {
        let side = 2 * (self.attention_head_dim / 6);
        [self.attention_head_dim - 2 * side, side, side]
    }

    /// Checks that the settings, which `origin` holds, make a model.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        let limit = |key, value, most| config::limit(origin, key, value, 1..=most);
        let require = |key: &str, holds: bool, expected: &str, found: String| {
            config::require(origin, key, holds, || expected.to_owned(), found)
        };
        require("patch_size", self.patch_size == PATCH, "[1, 2, 2]", format!("{:?}", self.patch_size))?;
        limit("in_channels", self.in_channels, 1 << 12)?;
        limit("out_channels", self.latent_channels(), self.in_channels)?;
        limit("num_layers", self.num_layers, config::MOST_LAYERS)?;
        limit("attention_head_dim", self.attention_head_dim, 1 << 12)?;
        limit("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        limit("width, attention_head_dim times num_attention_heads", self.hidden(), config::MOST_WIDTH / 6)?;
        limit("ffn_dim", self.ffn_dim, config::MOST_WIDTH)?;
        limit("text_dim", self.text_dim, config::MOST_WIDTH)?;
        limit("freq_dim", self.freq_dim, config::MOST_WIDTH)?;
        limit("rope_max_seq_len", self.rope_max_seq_len, 1 << 20)?;
        limit("image_dim", self.image_dim.unwrap_or(1), config::MOST_WIDTH)?;
        limit("pos_embed_seq_len", self.pos_embed_seq_len.unwrap_or(1), 1 << 16)?;
        let even = |number: usize| number.is_multiple_of(2);
        require("freq_dim", even(self.freq_dim), "an even number", self.freq_dim.to_string())?;
        let head = self.attention_head_dim;
        require("attention_head_dim", even(head) && head >= 6, "an even number, at least 6", head.to_string())?;
        require("cross_attn_norm", self.cross_attn_norm, "true", self.cross_attn_norm.to_string())?;
        let known = self.qk_norm.as_deref() == Some(QK_NORM);
        require("qk_norm", known, QK_NORM, self.qk_norm.clone().unwrap_or_else(|| "null".into()))?;
        let positive = self.eps.is_finite() && self.eps > 0.0;
        require("eps", positive, "a positive number", self.eps.to_string())?;
        let added = self.image_dim.map(|_| self.hidden());
        let found = format!("{:?}", self.added_kv_proj_dim);
        require("added_kv_proj_dim", self.added_kv_proj_dim == added, &format!("{added:?}"), found)?;
        let placed = self.pos_embed_seq_len.is_none() || self.image_dim.is_some();
        require("pos_embed_seq_len", placed, "null without image_dim", format!("{:?}", self.pos_embed_seq_len))?;
        let refers = !self.add_ref_conv || self.follows_film();
        require("add_ref_conv", refers, "false in a model that follows no film", "true".into())?;
        let Some(layers) = &self.vace_layers else { return Ok(()) };
        limit("vace_in_channels", self.guide_channels(), 1 << 12)?;
        let rise = layers.windows(2).all(|two| two[0] < two[1]);
        let within = layers.first() == Some(&0) && layers.last().is_some_and(|&last| last < self.num_layers);
        require("vace_layers", rise && within, "rising numbers of blocks, from 0 on", format!("{layers:?}"))
    }
}
