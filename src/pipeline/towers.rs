//! Vision towers beside a model: which one sees pictures, and how.

use std::path::Path;

use super::opened::{Additions, subject};
use super::run::{Run, finite};
use crate::image::{Image, View};
use crate::models::vision::{self, Family, Vision};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::{self, Component, Part, Place};
use crate::stage::{Cadence, Dims};
use crate::{Error, Result, reserve};

/// Bytes of a picture on its way to a tower, at most.
pub(super) fn of_a_picture(config: &vision::Config) -> usize {
    let patches = config.patches() * config.patches() * config.patch_numbers();
    size_of::<f32>() * patches + 2 * 3 * config.image_size * config.image_size
}

/// The subject of a vision tower.
pub(super) fn tower_subject<'a>(tower: &'a Part<Vision>, name: &'static str, runs: Runs) -> Subject<'a> {
    subject(tower, name, Phase::Encode, Dims::new(), runs)
}

/// What `tower` gives for each of `pictures`, and last, if `blank`, for one of zeros.
pub(super) fn see(
    tower: &Part<Vision>,
    subject: &Subject<'_>,
    pictures: &[&Image],
    blank: bool,
    run: &mut Run<'_>,
) -> Result<Vec<Vec<f32>>> {
    let (net, mut seen) = (&tower.net, Vec::with_capacity(pictures.len() + 1));
    let view = view(net.config());
    let mut running = run.start(subject)?;
    for i in 0..pictures.len() + usize::from(blank) {
        let patches = match pictures.get(i) {
            Some(picture) => picture.patches(&view)?,
            None => {
                let config = net.config();
                reserve::zeros("a picture", config.patches() * config.patches() * config.patch_numbers())?
            }
        };
        running.set(net.pixels, &patches)?;
        run.compute(&mut running, Cadence::Request)?;
        seen.push(finite(running.get(net.result)?, "what the image encoder sees")?);
    }
    run.finish(running);
    Ok(seen)
}

/// How a tower sees pictures.
fn view(config: &vision::Config) -> View {
    match config.model_type {
        Family::Clip => View::clip(config.image_size, config.patch_size),
        Family::Siglip => View::siglip(config.image_size, config.patch_size),
    }
}

impl Additions {
    /// The encoder for `place`: the first of those that were given, or else the one in what lies at `beside`.
    ///
    /// # Errors
    /// As [`source::beside`].
    pub(super) fn image_encoder(&self, place: &Place, beside: &Path) -> Result<Component> {
        let mut first = None;
        for path in &self.image_encoders {
            match source::beside(path, place) {
                Ok(component) => return Ok(component),
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            Some(error) => Err(error),
            None => source::beside(beside, place).map_err(|_| Error::NotAModel {
                path: beside.to_owned(),
                found: format!("there is no {} in it", place.kind.words),
                hint: Some("give one with --image-encoder FILE".into()),
            }),
        }
    }
}
