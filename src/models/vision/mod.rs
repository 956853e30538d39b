//! Vision towers: transformers over the patches of a picture, as CLIP and SigLIP have them.
//!
//! Follows `CLIPVisionModelWithProjection` and `SiglipVisionModel` of transformers (`models/clip/modeling_clip.py`,
//! `models/siglip/modeling_siglip.py`), whose names the weights have; see Dosovitskiy et al., *An Image is Worth 16x16 Words*
//! (arXiv:2010.11929), and Zhai et al., *Sigmoid Loss for Language Image Pre-Training* (arXiv:2303.15343).
//!
//! Legend: `D` hidden size, `H` heads, `N` patches, `T` tokens (CLIP: `N + 1`), `C` numbers of a patch, `P` width of the projection.
//! One picture at a time.
//!
//! | stage | in | out |
//! |---|---|---|
//! | `embed` | `pixels [C, N]` | `hidden [D, T]`: patches, CLIP's own token before them, positions added |
//! | `layer.0`, `layer.1`, ... | `hidden` | `hidden` |
//! | `final_norm` (if [`Output::States`] are normalised) | `hidden` | `hidden`, the result |
//! | `pool` (of [`Output::Pooled`]) | `hidden` | `pooled [D]` or `[P]`, the result |

mod config;
mod ends;
mod layer;

use pinhole_quant::DType;

use self::ends::{Embed, FinalNorm, Pool};
use self::layer::Layer;
use crate::stage::{Cadence, Lifetime, Model, Port};
use crate::{Error, Result};

pub use config::{Config, Family};

/// What a vision tower gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// The hidden states of all tokens.
    States {
        /// How many of the last layers they have not been through. Those are not part of the model.
        skipped: usize,
        /// Whether the final norm is applied to them.
        normalised: bool,
    },
    /// One vector for the picture, after the final norm: CLIP's own token, or what SigLIP's head makes of all tokens.
    Pooled {
        /// Whether CLIP's goes through the `visual_projection`.
        projected: bool,
    },
}

impl Output {
    /// All tokens after all layers, normalised.
    pub const LAST: Output = Output::States { skipped: 0, normalised: true };

    /// How many layers it leaves out.
    fn skipped(self) -> usize {
        match self {
            Output::States { skipped, .. } => skipped,
            Output::Pooled { .. } => 0,
        }
    }
}

/// A vision tower.
pub struct Vision {
    /// Its stages, ports and weights.
    pub model: Model,
    /// `[C, N]`: in, the patches row by row, each with its colours one after the other, and of each its pixels row by row.
    pub pixels: Port,
    /// Out: `[D, T]`, or one vector.
    pub result: Port,
    config: Config,
}

impl Vision {
    /// The tower that `config` describes, which gives `output`.
    ///
    /// # Errors
    /// [`Error::Graph`] for sizes that [`Config::validate`] refuses, for more layers skipped than there are, and for a projection
    /// that the model does not have.
    pub fn new(config: &Config, output: Output) -> Result<Vision> {
        let through = config.num_hidden_layers.checked_sub(output.skipped()).filter(|&through| through > 0);
        let through = through.ok_or_else(|| Error::graph("declare", format!("{output:?} of a vision tower")))?;
        let mut model = Model::new();
        let patches = config.patches() * config.patches();
        let pixels = model.port("pixels", &[config.patch_numbers().into(), patches.into()], DType::F32, Lifetime::Pass);
        let hidden =
            model.port("hidden", &[config.hidden_size.into(), config.tokens().into()], DType::F32, Lifetime::Pass);
        model.stage("embed", Cadence::Request, |scope| {
            Embed::declare(&mut scope.sub("vision_model"), config, (pixels, hidden))
        })?;
        for i in 0..through {
            model.stage(format!("layer.{i}"), Cadence::Request, |scope| {
                Layer::declare(&mut scope.sub("vision_model.encoder.layers").sub(i), config, (hidden, hidden))
            })?;
        }
        let result = match output {
            Output::States { normalised, .. } => {
                if normalised {
                    model.stage("final_norm", Cadence::Request, |scope| {
                        FinalNorm::declare(&mut scope.sub("vision_model"), config, hidden)
                    })?;
                }
                hidden
            }
            Output::Pooled { projected } => {
                let width = if projected { config.projection_dim } else { Some(config.hidden_size) };
                let width = width.ok_or_else(|| Error::graph("declare", "a projection of no width"))?;
                let pooled = model.port("pooled", &[width.into()], DType::F32, Lifetime::Pass);
                model.stage("pool", Cadence::Request, |scope| {
                    Pool::declare(scope, config, projected.then_some(width), (hidden, pooled))
                })?;
                pooled
            }
        };
        Ok(Vision { model, pixels, result, config: config.clone() })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::models::layers::Activation;

    fn so400m() -> Config {
        let text = r#"{"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
            "image_size": 384, "patch_size": 14, "model_type": "siglip_vision_model"}"#;
        Config::from_json(text, Path::new("config.json"), Family::Siglip).unwrap()
    }

    fn vit_l() -> Config {
        let text = r#"{"projection_dim": 768, "vision_config": {"hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}}"#;
        Config::from_json(text, Path::new("config.json"), Family::Clip).unwrap()
    }

    #[test]
    fn published_sizes() {
        let (siglip, clip) = (so400m(), vit_l());
        assert_eq!((siglip.tokens(), siglip.layer_norm_eps, siglip.hidden_act), (729, 1e-6, Activation::GeluNew));
        assert_eq!((clip.tokens(), clip.projection_dim), (257, Some(768)));
        let parameters = |config: &Config, output| Vision::new(config, output).unwrap().model.manifest().parameters();
        // The head is 15.2 million of the 428,225,600.
        assert_eq!(parameters(&siglip, Output::Pooled { projected: false }), 428_225_600);
        assert_eq!(parameters(&siglip, Output::LAST), 412_987_248);
        assert_eq!(parameters(&clip, Output::Pooled { projected: true }), 303_966_208);
    }

    #[test]
    fn settings_are_read_off_the_shapes() {
        for (config, family, output) in [
            (Config { projection_dim: None, ..so400m() }, Family::Siglip, Output::LAST),
            (vit_l(), Family::Clip, Output::Pooled { projected: true }),
        ] {
            let model = Vision::new(&config, output).unwrap().model;
            assert_eq!(
                Config::from_shapes(|name| model.manifest().shape(name), Path::new("f"), family).unwrap(),
                config
            );
        }
    }

    #[test]
    fn layers_that_nothing_needs_are_not_there() {
        let states = |skipped, normalised| Vision::new(&vit_l(), Output::States { skipped, normalised });
        assert_eq!(states(1, false).unwrap().model.stages().len(), 1 + 23);
        assert!(states(24, false).is_err());
        assert!(Vision::new(&so400m(), Output::Pooled { projected: true }).is_err());
    }

    #[test]
    fn impossible_settings_are_refused() {
        for text in [
            r#"{"num_attention_heads": 7}"#,
            r#"{"patch_size": 0}"#,
            r#"{"image_size": 15}"#,
            r#"{"num_channels": 1}"#,
            r#"{"layer_norm_eps": 0}"#,
            r#"{"hidden_act": "mish"}"#,
            r#"{"image_size": [224, 224]}"#,
            "[]",
        ] {
            assert!(Config::from_json(text, Path::new("config.json"), Family::Siglip).is_err(), "{text}");
        }
    }
}
