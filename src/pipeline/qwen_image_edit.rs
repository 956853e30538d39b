//! What the edits of Qwen-Image have beside it: pictures that a vision tower makes tokens of the prompt of, and that the denoiser is given
//! behind the one that it draws.

use std::sync::Arc;

use super::language_model::{LanguageEncoder, SeenInText};
use super::opened::{Additions, once, subject};
use super::request::Settings;
use super::rules::of_area;
use super::run::{Run, finite};
use super::{fit, qwen_image_eyes as eyes};
use crate::bind::alias;
use crate::image::{Filter, Image, Picture};
use crate::models::qwen_vl::{Grid, VisionTower};
use crate::plan::Phase;
use crate::plan::measure::Subject;
use crate::source::slot::{IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER};
use crate::source::{Network, Networks, Part, Place, Source, Text, model_name, networks};
use crate::stage::Cadence;
use crate::{Result, reserve};

/// diffusers' pipelines: of one picture, and of several.
pub(super) const CLASSES: [&str; 2] = ["QwenImageEditPipeline", "QwenImageEditPlusPipeline"];

/// What a bundle says of itself, in the place of a class.
const SETTING: &str = "qwen_image_edit";

/// The pixels that pictures are resized to for the autoencoder; and in Plus, for the vision tower.
pub(super) const AREA: usize = 1024 * 1024;
const SEEN_AREA: usize = 384 * 384;

/// How many of the first tokens the denoiser is not given.
pub(super) const DROPPED: usize = 64;

/// What stands before the pictures of a prompt.
const BEFORE: &str = "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), then \
                      explain how the user's text instruction should alter or modify the image. Generate a new image that meets the \
                      user's requirements while maintaining consistency with the original input where appropriate.<|im_end|>\n\
                      <|im_start|>user\n";

/// The fewest and the most pixels that the tower is given.
const SEEN_PIXELS: [usize; 2] = [56 * 56, 28 * 28 * 16384];

/// Which of the edits a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edits {
    /// The first: one picture.
    One,
    /// Plus, of September and November 2025: several.
    Several,
}

impl Edits {
    /// How many pictures it looks at, at most.
    pub(super) fn most(self) -> usize {
        match self {
            Edits::One => 1,
            Edits::Several => 10,
        }
    }
}

/// Which of the edits `source` is: by its class, by what its bundle says, or by the name of its transformer.
pub(super) fn of(source: &Source) -> Result<Option<Edits>> {
    if let Some(known) = source.pipeline_setting(SETTING).and_then(|setting| setting.as_u64()) {
        return Ok(Some(if known > 1 { Edits::Several } else { Edits::One }));
    }
    match source.says.as_deref() {
        Some(says) if says == CLASSES[0] => return Ok(Some(Edits::One)),
        Some(says) if says == CLASSES[1] => return Ok(Some(Edits::Several)),
        _ => {}
    }
    let transformer = source.component(&TRANSFORMER)?;
    let name = [&source.path, &transformer.origin].map(|path| model_name(path).to_lowercase()).join(" ");
    if !name.contains("edit") {
        return Ok(None);
    }
    let is_plus = ["2509", "2511", "plus"].iter().any(|sign| name.contains(sign));
    Ok(Some(if is_plus { Edits::Several } else { Edits::One }))
}

/// Notes in `source` which of the edits it is, so that a bundle says it.
pub(super) fn note(source: &mut Source, edits: Option<Edits>) {
    let Some(edits) = edits else { return };
    let number = match edits {
        Edits::One => 1,
        Edits::Several => 2,
    };
    let mut settings = serde_json::Map::new();
    if let Some(text) = &source.pipeline {
        // What is no JSON object is made anew.
        settings = serde_json::from_str(&text.text).unwrap_or_default();
    }
    settings.insert(SETTING.to_owned(), number.into());
    source.pipeline = Some(Text { text: serde_json::Value::Object(settings).to_string(), origin: source.path.clone() });
}

/// What sees pictures for the language model.
pub(super) struct Eye {
    tower: Part<VisionTower>,
    mark: u32,
    edits: Edits,
}

impl Networks for Eye {
    fn networks(&self) -> Vec<Network<'_>> {
        self.tower.networks()
    }
}

static PLACE: Place =
    Place::needed(&IMAGE_ENCODER, &alias::QWEN_VL_VISION, |component| Ok(Box::new(networks::qwen_vl(component)?)));

impl Eye {
    /// That of `source`: given, in its place, in the file of the text encoder, or in one that lies beside it.
    ///
    /// # Errors
    /// [`Error::NotAModel`] if there is none; [`Error::Mismatch`] if it does not fit the language model.
    pub(super) fn open(
        source: &Source,
        additions: &Additions,
        (edits, language): (Edits, &LanguageEncoder),
    ) -> Result<Eye> {
        let Some(component) = eyes::component(source, additions, &PLACE)? else {
            return Err(eyes::missing(&source.component(&TEXT_ENCODER)?.origin));
        };
        let tower = networks::qwen_vl(&component)?;
        let (found, expected) = (tower.net.config().out_hidden_size, language.config.hidden_size);
        fit::exactly(&tower, "numbers of a token, as the language model has", found, expected)?;
        for mark in [eyes::START, eyes::END] {
            language.id(mark)?;
        }
        Ok(Eye { tower, mark: language.id(eyes::MARK)?, edits })
    }

    /// How pictures of a request are seen: each as so many tokens.
    fn grids(&self, settings: &Settings) -> Result<Vec<Grid>> {
        let mut grids = Vec::with_capacity(settings.references.len());
        for sizes in settings.reference_sources.iter().zip(&settings.references) {
            let side = self.tower.net.config().token_side();
            let [width, height] = resized(self.shown(sizes), side)?;
            grids.push(Grid { rows: height / side, columns: width / side });
        }
        Ok(grids)
    }

    /// The size that a picture has before it is resized for the tower: in Plus a small one, else that for the autoencoder.
    fn shown(&self, (own, encoded): (&[usize; 2], &[usize; 2])) -> [usize; 2] {
        match self.edits {
            Edits::One => *encoded,
            Edits::Several => of_area(SEEN_AREA, *own),
        }
    }

    /// What stands before the words of a prompt.
    pub(super) fn before(&self, settings: &Settings) -> Result<String> {
        let mut before = BEFORE.to_owned();
        for (i, grid) in self.grids(settings)?.into_iter().enumerate() {
            if self.edits == Edits::Several {
                before += &format!("Picture {}: ", i + 1);
            }
            before += &eyes::marked(grid);
        }
        Ok(before)
    }

    /// The most tokens that pictures take in a prompt, with what stands around them.
    pub(super) fn tokens(&self, settings: &Settings) -> Result<usize> {
        const AROUND: usize = 64;
        Ok(self.grids(settings)?.into_iter().map(|grid| grid.tokens() + AROUND).sum())
    }

    /// What runs for each picture.
    pub(super) fn subjects(&self, settings: &Settings) -> Vec<Subject<'_>> {
        // Sizes that cannot be are refused where texts are counted.
        let grids = self.grids(settings).unwrap_or_default();
        let mut subjects = Vec::with_capacity(grids.len());
        for (grid, name) in grids.into_iter().zip(eyes::TOWERS) {
            subjects.push(subject(&self.tower, name, Phase::Encode, grid.dims(self.tower.net.config()), once(1)));
        }
        subjects
    }

    /// Makes tokens of `pictures`, which `subjects` compute.
    ///
    /// # Errors
    /// What the device returns; [`Error::NotFinite`] if numbers overflow.
    pub(super) fn look(
        &self,
        run: &mut Run<'_>,
        settings: &Settings,
        subjects: &[Subject<'_>],
        pictures: &[Arc<Picture>],
    ) -> Result<SeenInText> {
        let (net, grids) = (&self.tower.net, self.grids(settings)?);
        let mut vectors = Vec::new();
        let sizes = settings.reference_sources.iter().zip(&settings.references);
        for (((subject, picture), grid), sizes) in subjects.iter().zip(pictures).zip(&grids).zip(sizes) {
            let image = self.seen(picture.image(), sizes, *grid)?;
            let mut running = run.start(subject)?;
            running.set(net.pixels, &net.patches(*grid, image.rgb())?)?;
            let (cos, sin) = net.rotary(*grid)?;
            running.set(net.positions.cos, &cos)?;
            running.set(net.positions.sin, &sin)?;
            run.compute(&mut running, Cadence::Request)?;
            let tokens = finite(running.get(net.tokens)?, "what the vision tower sees")?;
            vectors.extend(net.in_rows(*grid, &tokens)?);
            run.finish(running);
        }
        let grids = grids.into_iter().map(|grid| [grid.rows, grid.columns]);
        Ok(SeenInText {
            mark: self.mark,
            vectors,
            deepstack: Vec::new(),
            grids: reserve::collect("pictures", settings.references.len(), grids)?,
        })
    }

    /// The picture as the tower is given it: resized twice, as the reference does it.
    fn seen(&self, image: &Image, sizes: (&[usize; 2], &[usize; 2]), grid: Grid) -> Result<Image> {
        let [width, height] = self.shown(sizes);
        let side = self.tower.net.config().token_side();
        let shown = image.resized(width, height, Filter::Lanczos)?;
        shown.resized(grid.columns * side, grid.rows * side, Filter::Bicubic)
    }
}

/// The size in multiples of `side` that a picture is resized to for the tower: transformers' `smart_resize`.
fn resized([width, height]: [usize; 2], side: usize) -> Result<[usize; 2]> {
    eyes::check_shape([width, height])?;
    let [least, most] = SEEN_PIXELS.map(|pixels| pixels as f64);
    let (pixels, of) = ((width * height) as f64, side as f64);
    let whole = [width, height].map(|length| (length as f64 / of).round_ties_even() * of);
    let sides = if whole[0] * whole[1] > most {
        let factor = (pixels / most).sqrt();
        [width, height].map(|length| ((length as f64 / factor / of).floor() * of).max(of))
    } else if whole[0] * whole[1] < least {
        let factor = (least / pixels).sqrt();
        [width, height].map(|length| (length as f64 * factor / of).ceil() * of)
    } else {
        whole
    };
    Ok(sides.map(|length| length as usize))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pictures_become_whole_tokens() {
        for (size, expected) in [
            ([384, 384], [392, 392]),
            ([320, 448], [308, 448]),
            ([96, 64], [84, 56]),
            ([30, 30], [56, 56]),
            ([14, 70], [28, 140]),
            ([14, 2700], [28, 784]),
            ([8192, 4096], [5068, 2520]),
        ] {
            assert_eq!(resized(size, 28).unwrap(), expected, "{size:?}");
        }
        assert!(resized([201, 1], 28).is_err());
    }
}
