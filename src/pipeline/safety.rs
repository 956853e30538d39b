//! What a safety checker says of the pictures that were drawn.

use super::choices::SafetyMode;
use super::request::Settings;
use super::run::{Run, finite, stage_runs};
use crate::bind::alias;
use crate::image::{CHANNELS, Image, View};
use crate::models::safety_checker::{ConceptWeights, Concepts, SafetyChecker, Verdict};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::slot::SAFETY_CHECKER;
use crate::source::{Network, Networks, Part, Place, Source, Text, networks};
use crate::stage::{Cadence, Dims};
use crate::{Error, Result, reserve};

/// Its place, which every family has: it looks at pictures, and not at what drew them.
pub(super) const PLACE: Place = Place::found(&SAFETY_CHECKER, &alias::SAFETY_CHECKER, |component| {
    Ok(Box::new(networks::safety_checker(component)?))
});

/// The option that says what becomes of flagged pictures.
const OPTION: &str = "--safety";

/// The safety checker of a model.
pub struct Safety {
    part: Part<SafetyChecker>,
    view: View,
}

impl Safety {
    /// That of `source`, if it has one.
    ///
    /// # Errors
    /// What reading it returns; [`Error::Mismatch`] if pictures are prepared in another way than it sees them.
    pub(super) fn open(source: &Source) -> Result<Option<Safety>> {
        if !source.has(&SAFETY_CHECKER) {
            return Ok(None);
        }
        let part = networks::safety_checker(source.component(&SAFETY_CHECKER)?)?;
        let tower = &part.net.config().vision;
        let (side, patch) = (tower.image_size, tower.patch_size);
        let view = match &source.feature_extractor {
            Some(Text { text, origin }) => View::from_json(text, origin, side, patch)?,
            None => View::clip(side, patch),
        };
        Ok(Some(Safety { part, view }))
    }

    /// What runs for each picture of a request.
    pub(super) fn subject(&self, settings: &Settings) -> Option<Subject<'_>> {
        if settings.safety == SafetyMode::Off {
            return None;
        }
        let (name, model, bound) = (SAFETY_CHECKER.name, &self.part.net.model, &self.part.bound);
        let runs = Runs::of_request(settings.batch * settings.frames);
        Some(Subject { name, phase: Phase::Safety, model, bound, dims: Dims::new(), runs })
    }

    /// Bytes of the arrays in host memory beside what the network has, at most: the pictures, the one that is seen, and what is seen.
    pub(super) fn bytes(&self, settings: &Settings) -> usize {
        let (width, height, config) = (settings.width, settings.height, self.part.net.config());
        let shorter = self.view.shorter.unwrap_or(self.view.side);
        let longer = shorter.saturating_mul(width.max(height)).div_ceil(width.min(height).max(1));
        // Rows come before columns, so that there is a picture between.
        let between = longer.max(width.max(height)).saturating_mul(shorter.max(width.min(height)));
        let pictures = CHANNELS * (width * height * settings.batch * settings.frames + 2 * between);
        let numbers = 2 * config.vision.patches().pow(2) * config.vision.patch_numbers();
        let width = config.vision.projection_dim.unwrap_or(0) + 1;
        let concepts = 2 * (config.concepts + config.special_care) * width;
        pictures.saturating_add(size_of::<f32>() * (numbers + concepts))
    }

    /// Judges `images`, one after the other; those that are flagged become black if the request says so.
    ///
    /// # Errors
    /// What the device returns; [`Error::NotFinite`] if numbers overflow.
    pub(super) fn judge(&self, images: &mut [Image], settings: &Settings, run: &mut Run<'_>) -> Result<Vec<Verdict>> {
        let Some(subject) = self.subject(settings) else { return Ok(Vec::new()) };
        let start = run.begin(Phase::Safety, stage_runs(run.plan, &subject), 0)?;
        let net = &self.part.net;
        let (concepts, special) = (self.read(net.concepts)?, self.read(net.special)?);
        let (mut running, mut verdicts) = (run.start(&subject)?, Vec::with_capacity(images.len()));
        for image in images.iter() {
            running.set(net.pixels, &image.patches(&self.view)?)?;
            run.compute(&mut running, Cadence::Request)?;
            let seen = finite(running.get(net.seen)?, "what the safety checker sees")?;
            verdicts.push(Verdict::of(&seen, &concepts, &special));
        }
        run.finish(running);
        run.end(Phase::Safety, start)?;
        for (i, (image, verdict)) in images.iter_mut().zip(&verdicts).enumerate() {
            if !verdict.flagged {
                continue;
            }
            let which = if settings.batch > 1 { format!("picture {}", i + 1) } else { "the picture".to_owned() };
            let replaced = settings.safety == SafetyMode::On;
            if replaced {
                *image = black(image)?;
            }
            let becomes = if replaced { "it became black (--safety report keeps it)" } else { "it is kept" };
            run.warn(format!("the safety checker flagged {which}: {becomes}"))?;
        }
        Ok(verdicts)
    }

    fn read(&self, ConceptWeights { embeddings, thresholds }: ConceptWeights) -> Result<Concepts> {
        let bound = &self.part.bound;
        Ok(Concepts { embeddings: bound.read_f32(embeddings)?, thresholds: bound.read_f32(thresholds)? })
    }
}

impl Networks for Safety {
    fn networks(&self) -> Vec<Network<'_>> {
        self.part.networks()
    }
}

/// A black picture of the size of `image`.
fn black(image: &Image) -> Result<Image> {
    let (width, height) = (image.width(), image.height());
    let rgb = reserve::zeros("a picture", image.rgb().len())?;
    Image::new(width, height, rgb).ok_or_else(|| Error::graph("picture", "a black one"))
}

/// What becomes of flagged pictures if `asked` is what a request says: with a checker they become black unless it says otherwise.
///
/// # Errors
/// [`Error::Option`] if something is to be checked and nothing can.
pub(super) fn mode(safety: Option<&Safety>, asked: Option<SafetyMode>) -> Result<SafetyMode> {
    match (safety, asked) {
        (None, None | Some(SafetyMode::Off)) => Ok(SafetyMode::Off),
        (Some(_), asked) => Ok(asked.unwrap_or(SafetyMode::On)),
        (None, Some(asked)) => {
            let error = Error::option(OPTION, "a model with a safety checker", format!("`{}` and none", asked.name()));
            Err(error.with_hint("give one with --safety-checker FILE"))
        }
    }
}
