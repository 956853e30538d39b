//! What requests of a model may say, and what they mean if they do not: data, which the family fills in.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde::Deserialize;

use super::request::{Experts, OpenedWith};
use super::step_cache::Caches;
use crate::sample::AYS;
use crate::source::{Source, Text};
use crate::{Error, Result, json};

/// Limits and defaults of requests.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// What the sides of a picture are multiples of.
    pub multiple: usize,
    /// The longest side.
    pub most_pixels: usize,
    /// How many tokens a request may ask for.
    pub tokens: RangeInclusive<usize>,
    /// Guidance as an input of the model, and its default; `None` if the model takes none.
    pub guidance: Option<f32>,
    /// Above which scale there is classifier-free guidance: 1, or 0 where the reference counts from there.
    pub guided_above: f32,
    /// Whether the model is told the size of an original, and where that was cut off.
    pub is_told_sizes: bool,
    /// Whether the model is told how pleasing a picture is.
    pub is_told_scores: bool,
    /// Whether zeros stand for a negative prompt that is not given.
    pub zeros_without_negative: bool,
    /// The timesteps of [`Schedule::Ays`](crate::sample::Schedule::Ays).
    pub ays: [u16; 10],
    /// What pictures in a request may be for.
    pub inputs: &'static [Use],
    /// What the denoiser takes in channels of its own beside the latents.
    pub beside: Option<Beside>,
    /// Pictures that the model looks at, as it does at the prompt; `None` if it looks at none.
    pub references: Option<References>,
    /// How a picture to begin with becomes latents.
    pub starts: Starts,
    /// The ControlNets beside it, in the order in which they were given.
    pub controls: Vec<ControlRules>,
    /// Step caches that are defined for it.
    pub caches: Caches,
    /// How many frames there are; `None` for models of pictures.
    pub frames: Option<Frames>,
    /// How two experts share the steps, unless a request says otherwise; `None` for models of one.
    pub experts: Option<Experts>,
    /// How given frames come in; `None` for models that take none.
    pub first: Option<FirstFrame>,
    /// Whether a film beside the latents says what is drawn: what of it is kept and what is made anew, with pictures to refer to before it.
    pub guide: bool,
    /// How a film is followed that stands beside the latents; `None` for models that follow none.
    pub followed: Option<Followed>,
    /// What it was opened with that none of its files say.
    pub told: OpenedWith,
    /// What is not said.
    pub defaults: Defaults,
}

/// How many frames a video has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frames {
    /// Unless a request says otherwise.
    pub default: usize,
    /// At most.
    pub most: usize,
    /// One more than a multiple of this.
    pub step: usize,
    /// How many are shown in a second, unless a request says otherwise.
    pub fps: f32,
}

impl Frames {
    /// The possible number of frames that is nearest to `frames`.
    pub fn nearest(&self, frames: usize) -> usize {
        let Frames { most, step, .. } = *self;
        let steps = (frames.saturating_sub(1) + step / 2) / step;
        (steps * step + 1).min((most - 1) / step * step + 1)
    }

    /// What numbers are possible instead of `frames`, which is not: the next smaller and the next larger.
    pub fn nearest_in_words(&self, frames: usize) -> String {
        let (most, step) = (self.nearest(self.most), self.step);
        match frames {
            0 => "the nearest is 1".to_owned(),
            _ if frames > most => format!("the nearest is {most}"),
            _ => {
                let below = (frames - 1) / step * step + 1;
                format!("the nearest are {below} and {}", below + step)
            }
        }
    }
}

/// How pictures that are frames of a video come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstFrame {
    /// Whether a request without a first frame is refused.
    pub needed: bool,
    /// Whether the denoiser takes them in channels of their own, in a video that has nothing else; otherwise the first latent frame stays
    /// what it is.
    pub beside: bool,
    /// Whether a last frame may be given.
    pub last: bool,
    /// Whether a request without a last frame is refused.
    pub last_needed: bool,
}

/// How a film beside the latents is followed: edges, poses, depths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Whether the denoiser is told which frames are given.
    pub told_given: bool,
    /// Whether a picture may be referred to.
    pub refers: bool,
}

/// What a picture in a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To begin with.
    Start,
    /// To say which part of that is painted anew.
    Mask,
    /// To be changed as the prompt says.
    Edit,
    /// To be followed: edges, a map of depth.
    Control,
    /// A film to begin with.
    Film,
}

/// How a picture to begin with, and its mask, become latents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Starts {
    /// Latents are drawn from their distribution, if the request does not say otherwise. The first pixel of each latent masks it.
    #[default]
    Drawn,
    /// They are the mean, whatever the request says. The pixels in the middle of each latent mask it.
    Mean,
}

/// Pictures that a model looks at, as it does at the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct References {
    /// How many at most.
    pub most: usize,
    /// The sizes, across and down, that it was trained with: each picture is resized to the one that is nearest in shape. If there are
    /// none, pictures keep their size.
    pub sizes: &'static [[usize; 2]],
    /// How they are cut to whole tokens, if that is not done by resizing.
    pub cropped: Option<Cropped>,
    /// The pixels that a picture is resized to, in its own shape, if there are no such sizes. Then the result has the shape of the last
    /// one, unless a request says otherwise.
    pub area: Option<usize>,
    /// Whether a request without one is refused.
    pub needed: bool,
}

/// Pictures that keep their size if it is not too large, without what is more than whole tokens on all sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cropped {
    /// The most pixels of one. Larger ones are resized to that.
    pub area: usize,
    /// The shortest side that one may have.
    pub least_side: usize,
    /// How many times as long as the shorter side the longer one may be.
    pub most_quotient: usize,
    /// What becomes of a picture instead that is the only one; `None` if that is no exception.
    pub alone: Option<Padded>,
}

/// A picture that is not cut: it stands in the middle of whole tokens, and around it what it reflects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padded {
    /// The most pixels, with what is around it. Larger ones are made smaller.
    pub area: usize,
    /// The shortest side, with what is around it.
    pub least_side: usize,
    /// The longest side.
    pub most_side: usize,
}

impl Padded {
    /// How much smaller a picture becomes at a time until it fits with what is around it.
    const BACKED_OFF: f64 = 0.995;

    /// The size that a picture of `size` is resized to, and its size with what is around it, whose sides are multiples of `multiple`: as
    /// the reference rounds them.
    pub fn sizes(&self, size: [usize; 2], multiple: usize) -> [[usize; 2]; 2] {
        let [width, height] = size.map(|side| side as f64);
        let fits = (self.area as f64 / (width * height)).sqrt();
        let mut scale = fits.min(self.most_side as f64 / width.max(height)).min(1.0);
        loop {
            let whole = [width, height].map(|side| (side * scale).round_ties_even().max(1.0) as usize);
            let around = self.around(whole, multiple);
            if around[0] * around[1] <= self.area {
                return [whole, around];
            }
            scale *= Padded::BACKED_OFF;
        }
    }

    /// The size of a picture of `size` with what is around it.
    pub fn around(&self, size: [usize; 2], multiple: usize) -> [usize; 2] {
        size.map(|side| side.next_multiple_of(multiple).max(self.least_side).min(self.most_side))
    }
}

impl Cropped {
    /// Whether a picture of `size` is neither too small nor too narrow.
    pub fn takes(&self, [width, height]: [usize; 2]) -> bool {
        let (short, long) = (width.min(height), width.max(height));
        short >= self.least_side && long <= short.saturating_mul(self.most_quotient)
    }

    /// The size that a picture of `size` is resized to before it is cut.
    pub fn whole(&self, [width, height]: [usize; 2]) -> [usize; 2] {
        let pixels = width.saturating_mul(height);
        if pixels <= self.area {
            return [width, height];
        }
        let scale = (self.area as f64 / pixels as f64).sqrt();
        [width, height].map(|side| (side as f64 * scale) as usize)
    }
}

/// What the sides of a picture are multiples of that is resized to an area.
const OF_AREA: f64 = 32.0;

/// The size nearest to `area` pixels in the shape of `size`, as the reference rounds it: halves to the even neighbour.
pub(super) fn of_area(area: usize, [width, height]: [usize; 2]) -> [usize; 2] {
    let shape = width as f64 / height as f64;
    let wide = (area as f64 * shape).sqrt();
    [wide, wide / shape].map(|side| (side / OF_AREA).round_ties_even().max(1.0) as usize * OF_AREA as usize)
}

impl References {
    /// The size that a picture of `size` is resized to, if it is to be one that the model was trained with: the one whose quotient
    /// of width and height is nearest, and of two of these the narrower, as diffusers has it.
    pub fn nearest(&self, [width, height]: [usize; 2]) -> Option<[usize; 2]> {
        if let Some(area) = self.area {
            return Some(of_area(area, [width, height]));
        }
        let shape = width as f64 / height as f64;
        let distance = |&[w, h]: &[usize; 2]| (shape - w as f64 / h as f64).abs();
        self.sizes.iter().copied().min_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)))
    }
}

/// What a denoiser takes in channels of its own beside the latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// The mask, and the picture without what is under it.
    Masked {
        /// Whether diffusers draws the picture's own latents even where none of them is left at the start.
        draws_picture: bool,
    },
    /// The picture to be changed: its mean, as the autoencoder has it. A third pass goes without it.
    Edited,
    /// The picture to be followed.
    Control,
}

/// A ControlNet beside a model, which follows a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct ControlRules {
    /// Its file or folder.
    pub path: PathBuf,
    /// As what it takes the picture.
    pub takes: Takes,
    /// How many kinds of pictures it tells apart; 0 if it is not told the kind of its picture.
    pub modes: usize,
    /// What the first of these are called. Several names of one have `/` between them.
    pub mode_names: &'static [&'static str],
    /// Whether its residuals are averaged, which has the prompt's pass alone follow it.
    pub pooled: bool,
}

/// As what a ControlNet takes its picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// As its latents.
    Latents,
    /// As the latents of what a mask leaves of it, beside the mask.
    Masked,
    /// As the mean of its latents, which is the same for all pictures; and if it has room for a mask, beside that and the mean of what a mask
    /// leaves of the picture to begin with, if there is one.
    Mean {
        /// Whether it has.
        masked: bool,
    },
    /// As its pixels, from -1 to 1.
    Pixels,
    /// As its pixels, from 0 to 1; what a mask covers of an inpainting ControlNet's picture is -1. Such ControlNets know a guess mode.
    Levels,
    /// As its pixels, from 0 to 1, once a request.
    Features,
}

impl Takes {
    /// Whether the autoencoder encodes the picture.
    pub fn latents(self) -> bool {
        matches!(self, Takes::Latents | Takes::Masked | Takes::Mean { .. })
    }
}

/// What a request means if it does not say.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Pixels across.
    pub width: usize,
    /// Pixels down.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance; 1 is off.
    pub cfg_scale: f32,
    /// What not to draw.
    pub negative_prompt: String,
    /// Tokens of the prompt.
    pub tokens: usize,
    /// How far from a given picture the result may be.
    pub strength: f32,
    /// The same with a mask.
    pub strength_with_mask: f32,
}

/// What `guidance_scale` of a `generation_config.json` is to a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GuidanceScale {
    /// The guidance that is an input of the model. Classifier-free guidance is `true_cfg_scale`.
    Input,
    /// Classifier-free guidance.
    Free,
}

/// A `generation_config.json`, by its names.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Published {
    width: Option<usize>,
    height: Option<usize>,
    num_inference_steps: Option<usize>,
    guidance_scale: Option<f32>,
    true_cfg_scale: Option<f32>,
    negative_prompt: Option<String>,
    max_sequence_length: Option<usize>,
}

impl Rules {
    /// Those of a model that draws single pictures from a prompt alone.
    pub(super) fn of_prompts(defaults: Defaults) -> Rules {
        Rules {
            multiple: 1,
            most_pixels: usize::MAX,
            tokens: 1..=defaults.tokens,
            guidance: None,
            guided_above: 1.0,
            is_told_sizes: false,
            is_told_scores: false,
            zeros_without_negative: false,
            ays: AYS,
            inputs: &[],
            beside: None,
            references: None,
            starts: Starts::Drawn,
            controls: Vec::new(),
            caches: Caches::NONE,
            frames: None,
            experts: None,
            first: None,
            guide: false,
            followed: None,
            told: OpenedWith::default(),
            defaults,
        }
    }

    /// The same of a denoiser that takes `beside`, and therefore other pictures.
    pub(super) fn with(self, beside: Option<Beside>) -> Rules {
        let inputs: &[Use] = match beside {
            None | Some(Beside::Masked { .. }) => self.inputs,
            Some(Beside::Edited) => &[Use::Edit],
            Some(Beside::Control) => &[Use::Start, Use::Control],
        };
        Rules { inputs, beside, ..self }
    }

    /// The same with what the model's own files say of its defaults.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a text that is no JSON object of such settings.
    pub(super) fn read(mut self, source: &Source, scale: GuidanceScale) -> Result<Rules> {
        let Some(Text { text, origin }) = &source.defaults else { return Ok(self) };
        let published: Published = json::object(text)
            .map_err(|error| Error::malformed(origin, "generation defaults", "JSON settings", error.to_string()))?;
        let defaults = &mut self.defaults;
        defaults.width = published.width.unwrap_or(defaults.width);
        defaults.height = published.height.unwrap_or(defaults.height);
        defaults.steps = published.num_inference_steps.unwrap_or(defaults.steps);
        defaults.tokens = published.max_sequence_length.unwrap_or(defaults.tokens);
        if let Some(text) = published.negative_prompt {
            defaults.negative_prompt = text;
        }
        match scale {
            GuidanceScale::Input => {
                self.guidance = self.guidance.map(|own| published.guidance_scale.unwrap_or(own));
                defaults.cfg_scale = published.true_cfg_scale.unwrap_or(defaults.cfg_scale);
            }
            GuidanceScale::Free => defaults.cfg_scale = published.guidance_scale.unwrap_or(defaults.cfg_scale),
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_has_the_nearest_shape() {
        let references = References {
            most: 1,
            sizes: &[[672, 1568], [1024, 1024], [1568, 672]],
            cropped: None,
            area: None,
            needed: false,
        };
        assert_eq!(references.nearest([512, 512]), Some([1024, 1024]));
        assert_eq!(references.nearest([4000, 1500]), Some([1568, 672]));
        assert_eq!(references.nearest([1, 20000]), Some([672, 1568]));
        assert_eq!(References { sizes: &[], ..references }.nearest([512, 512]), None);
        let by_area = References { sizes: &[], area: Some(1024 * 1024), ..references };
        assert_eq!(by_area.nearest([1920, 1080]), Some([1376, 768]));
        assert_eq!(by_area.nearest([1, 4000]), Some([32, 64768]));
    }

    #[test]
    fn large_references_become_smaller() {
        let cropped = Cropped { area: 1 << 20, least_side: 64, most_quotient: 8, alone: None };
        assert_eq!(cropped.whole([1200, 903]), [1180, 888]);
        assert_eq!(cropped.whole([1024, 1024]), [1024, 1024]);
        assert!(cropped.takes([512, 64]) && !cropped.takes([513, 64]) && !cropped.takes([63, 64]));
    }

    #[test]
    fn a_reference_alone_is_kept_whole() {
        let padded = Padded { area: 4 << 20, least_side: 64, most_side: 4096 };
        // Of Flux3ImageProcessor's `_resize_if_canvas_exceeds_area` and `_get_canvas_height_width`.
        for (size, whole, around) in [
            ([151, 84], [151, 84], [160, 96]),
            ([10, 20], [10, 20], [64, 64]),
            ([2048, 2048], [2048, 2048], [2048, 2048]),
            ([2047, 2049], [2037, 2039], [2048, 2048]),
            ([9000, 300], [4096, 137], [4096, 144]),
            ([4000, 3000], [2341, 1756], [2352, 1760]),
        ] {
            assert_eq!(padded.sizes(size, 16), [whole, around], "{size:?}");
        }
    }
}
