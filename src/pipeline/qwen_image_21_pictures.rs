//! What Qwen-Image 2.1 has beside it for pictures that it looks at: Qwen3-VL's vision tower makes tokens of them for the language model,
//! and the denoiser is given their latents in the place of what becomes of these tokens.

use std::path::PathBuf;
use std::sync::Arc;

use super::language_model::{LanguageEncoder, SeenInText};
use super::opened::{Additions, once, subject};
use super::request::Settings;
use super::run::{Run, finite};
use super::{fit, qwen_image_eyes as eyes};
use crate::bind::alias;
use crate::image::{Filter, Picture};
use crate::models::qwen_image::single::MOST_REFERENCES;
use crate::models::qwen_vl::Grid;
use crate::models::qwen_vl::qwen3::VisionTower;
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::source::slot::{IMAGE_ENCODER, TEXT_ENCODER};
use crate::source::{Network, Networks, Part, Place, Source, networks};
use crate::stage::Cadence;
use crate::{Result, reserve};

/// Pixels of a token of the tower, in both directions: two of the denoiser's.
pub(super) const TOKEN_SIDE: usize = 32;

/// The pixels that pictures are resized to.
pub(super) const AREA: usize = 1024 * 1024;

/// Where the tower of a model is. Models without one look at no pictures.
pub(super) const PLACE: Place = Place {
    needed: false,
    ..Place::needed(&IMAGE_ENCODER, &alias::QWEN3_VL_VISION, |component| Ok(Box::new(networks::qwen3_vl(component)?)))
};

/// What sees pictures for the language model.
pub(super) struct Eye {
    tower: Part<VisionTower>,
    mark: u32,
}

/// What there is to see with: a tower, or the file in which there is none.
pub(super) enum Sight {
    Eye(Box<Eye>),
    Without(PathBuf),
}

impl Networks for Sight {
    fn networks(&self) -> Vec<Network<'_>> {
        match self {
            Sight::Eye(eye) => eye.tower.networks(),
            Sight::Without(_) => Vec::new(),
        }
    }
}

/// What stands before picture number `i` of a prompt, behind what stands before the user's words or behind the picture before.
fn before(i: usize) -> String {
    let apart = if i == 0 { "" } else { " " };
    format!("{apart}<image{}>", i + 1)
}

/// How many tokens stand before each picture, if those of `first` stand before all: the end of the picture before counts, and its own
/// beginning.
///
/// # Errors
/// What the tokenizer returns.
pub(super) fn gaps(language: &LanguageEncoder, first: &str) -> Result<Vec<usize>> {
    let mut gaps = Vec::with_capacity(MOST_REFERENCES);
    for i in 0..MOST_REFERENCES {
        let behind = if i == 0 { first } else { eyes::END };
        gaps.push(language.tokenize(&format!("{behind}{}{}", before(i), eyes::START), usize::MAX)?.used);
    }
    Ok(gaps)
}

impl Sight {
    /// What the model of `source` has.
    ///
    /// # Errors
    /// What opening its file returns; [`Error::Mismatch`](crate::Error::Mismatch) if it does not fit the language model.
    pub(super) fn open(source: &Source, additions: &Additions, language: &LanguageEncoder) -> Result<Sight> {
        let Some(component) = eyes::component(source, additions, &PLACE)? else {
            return Ok(Sight::Without(source.component(&TEXT_ENCODER)?.origin.clone()));
        };
        let tower = networks::qwen3_vl(&component)?;
        let (config, expected) = (tower.net.config(), language.config.hidden_size);
        fit::exactly(&tower, "numbers of a token, as the language model has", config.out_hidden_size, expected)?;
        fit::exactly(&tower, "pixels of a token, each way", config.token_side(), TOKEN_SIDE)?;
        for mark in [eyes::START, eyes::END] {
            language.id(mark)?;
        }
        Ok(Sight::Eye(Box::new(Eye { mark: language.id(eyes::MARK)?, tower })))
    }

    /// The tower, if there is one.
    pub(super) fn eye(&self) -> Option<&Eye> {
        match self {
            Sight::Eye(eye) => Some(eye),
            Sight::Without(_) => None,
        }
    }

    /// Refuses pictures that there is nothing to see with, and those that are far longer than wide.
    ///
    /// # Errors
    /// [`Error::NotAModel`](crate::Error::NotAModel); [`Error::Option`](crate::Error::Option).
    pub(super) fn check(&self, settings: &Settings) -> Result<()> {
        match self {
            Sight::Without(reader) if !settings.references.is_empty() => Err(eyes::missing(reader)),
            _ => settings.references.iter().try_for_each(|&sides| eyes::check_shape(sides)),
        }
    }
}

/// How pictures of a request are seen: each as so many tokens.
fn grids(settings: &Settings) -> impl Iterator<Item = Grid> {
    settings.references.iter().map(|[width, height]| Grid { rows: height / TOKEN_SIDE, columns: width / TOKEN_SIDE })
}

/// How many tokens pictures take in a prompt.
pub(super) fn seen_tokens(settings: &Settings) -> usize {
    grids(settings).map(Grid::tokens).sum()
}

/// What stands before the words of a prompt.
pub(super) fn pictures(settings: &Settings) -> String {
    let mut all = String::new();
    for (i, grid) in grids(settings).enumerate() {
        all += &before(i);
        all += &eyes::marked(grid);
    }
    all
}

impl Eye {
    /// Behind how many of its first layers the language model is told more of a picture.
    pub(super) fn layers_told(&self) -> usize {
        self.tower.net.deepstack.len()
    }

    /// Bytes of what it makes of the pictures of a request, and of what it makes that from, at most.
    pub(super) fn bytes(&self, settings: &Settings) -> usize {
        let config = self.tower.net.config();
        let made = seen_tokens(settings).saturating_mul((1 + self.layers_told()) * config.out_hidden_size);
        let largest = grids(settings).map(Grid::tokens).max().unwrap_or(0);
        // Pixels of patches, their places and rotary tables.
        let patch = config.patch_size * config.patch_size * config.in_channels + config.hidden_size;
        let patches = largest.saturating_mul(4 * (patch + 2 * config.head_width()));
        let table = config.num_position_embeddings * config.hidden_size;
        made.saturating_add(patches).saturating_add(table).saturating_mul(2 * size_of::<f32>())
    }

    /// What runs for each picture.
    pub(super) fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        let mut subjects = Vec::with_capacity(settings.references.len());
        for (grid, name) in grids(settings).zip(eyes::TOWERS) {
            subjects.push(subject(&self.tower, name, Phase::Encode, self.tower.net.dims(grid), once(1)));
        }
        subjects
    }

    /// Makes tokens of `pictures`, which `subjects` compute.
    ///
    /// # Errors
    /// What the device returns; [`Error::NotFinite`](crate::Error::NotFinite) if numbers overflow.
    pub(super) fn look(
        &self,
        run: &mut Run<'_>,
        settings: &Settings,
        subjects: &[Subject<'_>],
        pictures: &[Arc<Picture>],
    ) -> Result<SeenInText> {
        let net = &self.tower.net;
        let (cells, width) = (net.config().num_position_embeddings, net.config().hidden_size);
        let ids: Vec<u32> = (0..cells as u32).collect();
        let table = self.tower.bound.gather(net.table, width, &ids)?;
        let (mut vectors, mut deepstack) = (Vec::new(), vec![Vec::new(); net.deepstack.len()]);
        for ((subject, picture), grid) in subjects.iter().zip(pictures).zip(grids(settings)) {
            let side = net.config().token_side();
            // The reference resizes once, and the tower is given what comes of it.
            let image = picture.image().resized(grid.columns * side, grid.rows * side, Filter::Lanczos)?;
            let mut running = run.start(subject)?;
            running.set(net.pixels, &net.patches(grid, image.rgb())?)?;
            running.set(net.places, &net.places(grid, &table)?)?;
            let (cos, sin) = net.rotary(grid)?;
            running.set(net.positions.cos, &cos)?;
            running.set(net.positions.sin, &sin)?;
            run.compute(&mut running, Cadence::Request)?;
            vectors.extend(finite(running.get(net.tokens)?, "what the vision tower sees")?);
            for (all, &port) in deepstack.iter_mut().zip(&net.deepstack) {
                all.extend(finite(running.get(port)?, "what the vision tower sees")?);
            }
            run.finish(running);
        }
        let sides = grids(settings).map(|grid| [grid.rows, grid.columns]);
        let grids = reserve::collect("pictures", settings.references.len(), sides)?;
        Ok(SeenInText { mark: self.mark, vectors, deepstack, grids })
    }
}
