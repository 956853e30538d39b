//! Hyperparameters.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::config::Config as Network;
use crate::Result;
use crate::models::config::{self as settings, MOST_LAYERS, MOST_WIDTH, Shapes};
use crate::tensor::Shape;

/// More widths than any picture's pixels go through.
const MOST_HINTS: usize = 8;

/// In which order a ControlNet takes a picture's colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Colours {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first.
    Bgr,
}

/// Hyperparameters, named as in diffusers' `config.json` and with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Config {
    /// What it has as a UNet has it. Of the way up nothing is there.
    #[serde(flatten)]
    pub net: Network,
    /// Channels of the picture.
    pub conditioning_channels: usize,
    /// Channels that the picture's pixels become, one after the other: each but the first halves the picture.
    pub conditioning_embedding_out_channels: Vec<usize>,
    /// In which order it takes the picture's colours.
    pub controlnet_conditioning_channel_order: Colours,
    /// Whether its residuals are averaged over all pixels.
    pub global_pool_conditions: bool,
    /// Those of a ControlNet that tells kinds of pictures apart; diffusers' `ControlNetUnionModel`.
    #[serde(flatten)]
    pub union: Option<Union>,
}

/// How many kinds of pictures a ControlNet tells apart, and in how many layers it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Union {
    /// How many kinds it knows.
    pub num_control_type: usize,
    /// Layers of the transformer that sees a picture's mean and its kind.
    pub num_trans_layer: usize,
}

/// More kinds of pictures than any ControlNet knows.
const MOST_KINDS: usize = 64;

/// What a ControlNet has beside that.
#[derive(Deserialize)]
#[serde(default)]
struct Own {
    conditioning_channels: usize,
    conditioning_embedding_out_channels: Option<Vec<usize>>,
    controlnet_conditioning_channel_order: Colours,
    global_pool_conditions: bool,
}

impl Default for Own {
    fn default() -> Own {
        Own {
            conditioning_channels: 3,
            conditioning_embedding_out_channels: None,
            controlnet_conditioning_channel_order: Colours::Rgb,
            global_pool_conditions: false,
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config::new(Network::default(), Own::default())
    }
}

impl Config {
    /// Of a UNet that `net` describes, as published.
    pub fn of(net: Network) -> Config {
        Config::new(net, Own::default())
    }

    fn new(net: Network, own: Own) -> Config {
        Config {
            net: net.without_way_up(),
            conditioning_channels: own.conditioning_channels,
            conditioning_embedding_out_channels: own.conditioning_embedding_out_channels.unwrap_or(PUBLISHED.into()),
            controlnet_conditioning_channel_order: own.controlnet_conditioning_channel_order,
            global_pool_conditions: own.global_pool_conditions,
            union: None,
        }
    }

    /// Reads the text of a `config.json`, which `origin` holds, and validates it. The weights say whether kinds of pictures are told apart;
    /// `shape_of` gives the shape of the one with a canonical name. If the text does not give the widths of what becomes of pixels, the
    /// weights give these too, since there are two defaults.
    ///
    /// # Errors
    /// As [`Network::from_json`].
    pub fn from_json(text: &str, origin: &Path, shape_of: impl Fn(&str) -> Option<Shape>) -> Result<Config> {
        Network::check_fixed(text, origin)?;
        // Each by itself: serde reads no fractions of what it flattens.
        let mut own: Own = settings::from_json(text, origin)?;
        let shapes = Shapes::new(&shape_of, origin);
        if own.conditioning_embedding_out_channels.is_none() {
            own.conditioning_embedding_out_channels = Some(widths(&shapes)?).filter(|widths| !widths.is_empty());
        }
        let config = Config { union: Union::of(&shapes)?, ..Config::new(settings::from_json(text, origin)?, own) };
        config.validate(origin)?;
        Ok(config)
    }

    /// Reads the sizes off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name. What shapes do not
    /// tell is as published.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) where a weight is missing, and those of [`validate`](Config::validate).
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [_, _, conditioning_channels, _] = shapes.dims(&hint(0))?;
        let config = Config {
            net: Network::of_encoder(&shape_of, origin)?,
            conditioning_channels,
            conditioning_embedding_out_channels: widths(&shapes)?,
            union: Union::of(&shapes)?,
            ..Config::default()
        };
        config.validate(origin)?;
        Ok(config)
    }

    /// Of a network with the layers of `unet`, as a control LoRA is: what becomes of pixels is read off the weights in the file `origin`.
    ///
    /// # Errors
    /// As [`from_shapes`](Config::from_shapes).
    pub fn over(unet: &Network, shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [_, _, conditioning_channels, _] = shapes.dims(&hint(0))?;
        let widths = widths(&shapes)?;
        let of = Config::of(unet.clone());
        let config = Config { conditioning_channels, conditioning_embedding_out_channels: widths, ..of };
        config.validate(origin)?;
        Ok(config)
    }

    /// The same with the heads and norms of `unet`, if that has the same levels: shapes do not tell these.
    #[must_use]
    pub fn like(self, unet: &Network) -> Config {
        if self.net.block_out_channels != unet.block_out_channels {
            return self;
        }
        let Network { attention_head_dim, norm_num_groups, norm_eps, .. } = unet.clone();
        Config { net: Network { attention_head_dim, norm_num_groups, norm_eps, ..self.net }, ..self }
    }

    /// How many pixels of the picture become one of the latents' size, in both directions.
    pub fn pixels(&self) -> usize {
        1 << self.conditioning_embedding_out_channels.len().saturating_sub(1)
    }

    /// Checks that the settings, which `origin` holds, make a network.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for the first that does not.
    pub fn validate(&self, origin: &Path) -> Result<()> {
        const KEY: &str = "conditioning_embedding_out_channels";
        self.net.validate(origin)?;
        settings::require(
            origin,
            "mid_block_type",
            self.net.mid_block_type.is_some(),
            || "a middle, as every ControlNet has".into(),
            "none",
        )?;
        settings::limit(origin, "conditioning_channels", self.conditioning_channels, 3..=3)?;
        let widths = &self.conditioning_embedding_out_channels;
        settings::limit(origin, &format!("number of {KEY}"), widths.len(), 1..=MOST_HINTS)?;
        widths.iter().try_for_each(|&width| settings::limit(origin, KEY, width, 1..=MOST_WIDTH))?;
        let Some(Union { num_control_type, num_trans_layer }) = self.union else { return Ok(()) };
        settings::limit(origin, "num_control_type", num_control_type, 1..=MOST_KINDS)?;
        settings::limit(origin, "num_trans_layer", num_trans_layer, 1..=MOST_LAYERS)?;
        // It is told the kind of its picture as the UNet is told sizes.
        settings::limit(
            origin,
            "addition_time_embed_dim",
            self.net.addition_time_embed_dim.unwrap_or(0),
            2..=MOST_WIDTH,
        )
    }
}

/// The widths of what becomes of pixels, as published.
const PUBLISHED: [usize; 4] = [16, 32, 96, 256];

/// The name of convolution `i` of those that a picture's pixels go through.
fn hint(i: usize) -> String {
    format!("input_hint_block.{}.weight", 2 * i)
}

/// The widths of what becomes of a picture's pixels. Each is there twice.
fn widths(shapes: &Shapes<'_>) -> Result<Vec<usize>> {
    (0..shapes.count(hint)).step_by(2).map(|i| Ok(shapes.dims(&hint(i))?[3])).collect()
}

impl Union {
    /// What the weights of a file say of it; `None` if they tell no kinds apart.
    fn of(shapes: &Shapes<'_>) -> Result<Option<Union>> {
        const KINDS: &str = "task_embedding";
        if !shapes.has(KINDS) {
            return Ok(None);
        }
        let num_trans_layer = shapes.count(|i| format!("transformer_layes.{i}.ln_1.weight"));
        Ok(Some(Union { num_control_type: shapes.dims(KINDS)?[1], num_trans_layer }))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::ControlNet;
    use super::*;

    #[test]
    fn published_sizes() {
        let parameters = |config| ControlNet::new(&Config::of(config)).unwrap().model.manifest().parameters();
        assert_eq!(parameters(Network::sd1()), 361_279_120);
        assert_eq!(parameters(Network::sd2()), 364_228_240);
        assert_eq!(parameters(Network::sdxl()), 1_251_014_160);
        // ProMax, without the queries and keys of attention over one token.
        let union = Some(Union { num_control_type: 8, num_trans_layer: 1 });
        let promax = ControlNet::new(&Config { union, ..Config::of(Network::sdxl()) }).unwrap();
        let told = (256 * 8 + 1) * 1280 + 1281 * 1280;
        let seen = 8 * 320 + 2 * 321 * 320 + 2 * 2 * 320 + 321 * 1280 + 1281 * 320 + 321 * 320;
        assert_eq!(promax.model.manifest().parameters(), 1_251_014_160 + told + seen);
    }

    #[test]
    fn settings_are_read_off_the_shapes() {
        let promax = Union { num_control_type: 8, num_trans_layer: 1 };
        for (net, union) in
            [(Network::sd1(), None), (Network::sd2(), None), (Network::sdxl(), None), (Network::sdxl(), Some(promax))]
        {
            let config = Config { conditioning_embedding_out_channels: vec![4, 8, 12, 20], union, ..Config::of(net) };
            let model = ControlNet::new(&config).unwrap().model;
            let shape_of = |name: &str| model.manifest().shape(name);
            let found = Config::from_shapes(shape_of, Path::new("f")).unwrap();
            let names = |config: &Config| {
                let model = ControlNet::new(config).unwrap().model;
                model.manifest().iter().map(|(_, weight)| (weight.name.clone(), weight.shape)).collect::<Vec<_>>()
            };
            assert_eq!(names(&found), names(&config));
            let written = serde_json::to_string(&config).unwrap();
            assert_eq!(Config::from_json(&written, Path::new("config.json"), shape_of).unwrap(), config);
            // Where the text is silent, the weights are asked.
            let text = written.replace("conditioning_embedding_out_channels", "none").replace("num_control_type", "no");
            assert_eq!(Config::from_json(&text, Path::new("config.json"), shape_of).unwrap(), config);
        }
    }

    #[test]
    fn impossible_settings_are_refused() {
        for text in [
            r#"{"conditioning_channels": 1}"#,
            r#"{"conditioning_embedding_out_channels": []}"#,
            r#"{"controlnet_conditioning_channel_order": "grb"}"#,
            r#"{"mid_block_type": null}"#,
            r#"{"class_embed_type": "timestep"}"#,
        ] {
            assert!(Config::from_json(text, Path::new("config.json"), |_| None).is_err(), "{text}");
        }
    }
}
