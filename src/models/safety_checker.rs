//! The safety checker of Stable Diffusion: CLIP's vision tower, and concepts that pictures are compared with.
//!
//! Follows `StableDiffusionSafetyChecker` of diffusers (`pipelines/stable_diffusion/safety_checker.py`), and has its names, except
//! that those of the tower are CLIP's own. See Rando et al., *Red-Teaming the Stable Diffusion Safety Filter* (arXiv:2210.04610).
//!
//! A picture shows a concept if the cosine between what the tower sees of it and the concept's embedding is above the concept's
//! threshold. Concepts that ask for special care come first: a picture that shows one of these has all thresholds lowered.
//!
//! The stages are those of [`Vision`], which gives one projected vector. Embeddings and thresholds stay on the host.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::models::config::{self as settings, Shapes};
use crate::models::vision::{self, Family, Output, Vision};
use crate::stage::{Model, Port};
use crate::tensor::Shape;
use crate::weights::{Role, Scope, WeightId};
use crate::{Error, Result};

/// What a picture that asks for special care has added to its scores.
const ADJUSTMENT: f32 = 0.01;

/// Scores are rounded to this part of 1 before they decide.
const ROUNDING: f32 = 1000.0;

/// More concepts than any checker has.
const MOST_CONCEPTS: usize = 1 << 12;

/// The weights of the two lists: embeddings and thresholds of concepts, and of those that ask for special care.
const CONCEPTS: [&str; 2] = ["concept_embeds", "concept_embeds_weights"];
const SPECIAL: [&str; 2] = ["special_care_embeds", "special_care_embeds_weights"];

/// The settings.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Config {
    /// The vision tower.
    #[serde(flatten)]
    pub vision: vision::Config,
    /// How many concepts there are.
    pub concepts: usize,
    /// How many of those there are that ask for special care.
    pub special_care: usize,
}

impl Config {
    /// Reads the text of a `config.json`, which `origin` holds. How many concepts there are is read off the weights, whose
    /// shapes `shape_of` gives.
    ///
    /// # Errors
    /// As [`vision::Config::from_json`]; [`Error::Mismatch`] if there are no concepts.
    pub fn from_json(text: &str, origin: &Path, shape_of: impl Fn(&str) -> Option<Shape>) -> Result<Config> {
        Config::with(vision::Config::from_json(text, origin, Family::Clip)?, shape_of, origin)
    }

    /// Reads all settings off the weights in the file `origin`, where `shape_of` gives the shape of a canonical name.
    ///
    /// # Errors
    /// As [`vision::Config::from_shapes`]; [`Error::Mismatch`] if there are no concepts.
    pub fn from_shapes(shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        Config::with(vision::Config::from_shapes(&shape_of, origin, Family::Clip)?, shape_of, origin)
    }

    fn with(vision: vision::Config, shape_of: impl Fn(&str) -> Option<Shape>, origin: &Path) -> Result<Config> {
        let shapes = Shapes::new(&shape_of, origin);
        let [[_, concepts, ..], [_, special_care, ..]] = [shapes.dims(CONCEPTS[0])?, shapes.dims(SPECIAL[0])?];
        settings::limit(origin, "number of concept_embeds", concepts, 1..=MOST_CONCEPTS)?;
        settings::limit(origin, "number of special_care_embeds", special_care, 1..=MOST_CONCEPTS)?;
        Ok(Config { vision, concepts, special_care })
    }
}

/// The embeddings of concepts, and their thresholds.
#[derive(Clone, Copy, Debug)]
pub struct ConceptWeights {
    /// `[P, n]`.
    pub embeddings: WeightId,
    /// `[n]`.
    pub thresholds: WeightId,
}

impl ConceptWeights {
    fn declare(scope: &mut Scope<'_>, [embeddings, thresholds]: [&str; 2], dims: [usize; 2]) -> Result<ConceptWeights> {
        Ok(ConceptWeights {
            embeddings: scope.weight(embeddings, &dims, Role::Vector)?,
            thresholds: scope.weight(thresholds, &dims[1..], Role::Vector)?,
        })
    }
}

/// The checker.
pub struct SafetyChecker {
    /// The tower's stages and ports, and all weights.
    pub model: Model,
    /// `[C, N]`: in, as [`Vision`] takes them.
    pub pixels: Port,
    /// `[P]`: out, what is seen.
    pub seen: Port,
    /// What is looked for.
    pub concepts: ConceptWeights,
    /// What asks for special care.
    pub special: ConceptWeights,
    config: Config,
}

impl SafetyChecker {
    /// The checker that `config` describes.
    ///
    /// # Errors
    /// As [`Vision::new`].
    pub fn new(config: &Config) -> Result<SafetyChecker> {
        let Vision { mut model, pixels, result: seen, .. } =
            Vision::new(&config.vision, Output::Pooled { projected: true })?;
        let width =
            config.vision.projection_dim.ok_or_else(|| Error::graph("declare", "a tower without projection"))?;
        let [concepts, special] = model.on_host(|scope| {
            Ok([
                ConceptWeights::declare(scope, CONCEPTS, [width, config.concepts])?,
                ConceptWeights::declare(scope, SPECIAL, [width, config.special_care])?,
            ])
        })?;
        Ok(SafetyChecker { model, pixels, seen, concepts, special, config: config.clone() })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Concepts that pictures are compared with.
#[derive(Clone, Debug, PartialEq)]
pub struct Concepts {
    /// One behind the other, each as long as what is seen of a picture.
    pub embeddings: Vec<f32>,
    /// One for each.
    pub thresholds: Vec<f32>,
}

impl Concepts {
    /// The cosine between `seen` and each of them.
    pub fn cosines(&self, seen: &[f32]) -> Vec<f32> {
        // As `torch.nn.functional.normalize` has it, in a wider type.
        let length = |vector: &[f32]| dot(vector, vector).sqrt().max(1e-12);
        let own = length(seen);
        self.embeddings
            .chunks_exact(seen.len().max(1))
            .map(|embedding| (dot(seen, embedding) / (own * length(embedding))) as f32)
            .collect()
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

/// What a safety checker says of a picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// Whether it shows a concept.
    pub flagged: bool,
    /// By how much each cosine is above its threshold, which special care may have lowered. What is above 0, in thousandths, is shown.
    pub concepts: Vec<f32>,
    /// The same of those that ask for special care.
    pub special_care: Vec<f32>,
}

impl Verdict {
    /// Of a picture that gave `seen`.
    pub fn of(seen: &[f32], concepts: &Concepts, special: &Concepts) -> Verdict {
        let (mut adjustment, mut verdict) = (0.0, Verdict::default());
        for (cosine, threshold) in special.cosines(seen).into_iter().zip(&special.thresholds) {
            let score = cosine - threshold + adjustment;
            if is_above(score) {
                adjustment = ADJUSTMENT;
            }
            verdict.special_care.push(score);
        }
        for (cosine, threshold) in concepts.cosines(seen).into_iter().zip(&concepts.thresholds) {
            verdict.concepts.push(cosine - threshold + adjustment);
        }
        verdict.flagged = verdict.concepts.iter().copied().any(is_above);
        verdict
    }
}

/// Whether anything is left of a score, which diffusers rounds to three digits.
fn is_above(score: f32) -> bool {
    (score * ROUNDING).round_ties_even() > 0.0
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn published_size() {
        let text = r#"{"projection_dim": 768, "vision_config": {"hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}}"#;
        let vision = vision::Config::from_json(text, Path::new("config.json"), Family::Clip).unwrap();
        let config = Config { vision, concepts: 17, special_care: 3 };
        let checker = SafetyChecker::new(&config).unwrap();
        assert_eq!(checker.model.manifest().parameters(), 303_966_208 + 20 * 768 + 20);
        let shape_of = |name: &str| checker.model.manifest().shape(name);
        assert_eq!(Config::from_shapes(shape_of, Path::new("f")).unwrap(), config);
        assert_eq!(Config::from_json(text, Path::new("f"), shape_of).unwrap(), config);
        assert!(Config::from_json(text, Path::new("f"), |_| None).is_err());
    }

    #[test]
    fn special_care_lowers_what_comes_after_it() {
        let of =
            |thresholds: &[f32]| Concepts { embeddings: vec![2.0, 0.0, 0.0, 3.0], thresholds: thresholds.to_vec() };
        let flagged = |concepts: &[f32], special: &[f32]| Verdict::of(&[5.0, 0.0], &of(concepts), &of(special)).flagged;
        assert!(!flagged(&[1.0, 0.005], &[2.0, 2.0]));
        assert!(flagged(&[1.0, 0.005], &[0.9, 2.0]));
        assert!(flagged(&[0.999, 2.0], &[2.0, 2.0]));
        // Of the second, less than half of a thousandth is left.
        assert!(!flagged(&[2.0, -0.0004], &[2.0, 2.0]));
        let verdict = Verdict::of(&[5.0, 0.0], &of(&[1.0, 1.0]), &of(&[0.5, 0.005]));
        assert_eq!((verdict.special_care, verdict.flagged), (vec![0.5, -0.005 + 0.01], true));
    }
}
