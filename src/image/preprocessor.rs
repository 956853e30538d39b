//! How a vision tower sees pictures, by transformers' `preprocessor_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::patches::RESCALE;
use super::{CHANNELS, Filter, View};
use crate::{Error, Result, json};

/// The settings of a `CLIPImageProcessor`, with its defaults.
#[derive(Deserialize)]
#[serde(default)]
struct Settings {
    do_resize: bool,
    /// A number, for the shorter side; or an object with `shortest_edge`, or with `height` and `width`.
    size: Value,
    /// By Pillow's numbers.
    resample: u8,
    do_center_crop: bool,
    /// A number, or an object with `height` and `width`.
    crop_size: Value,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: [f32; CHANNELS],
    image_std: [f32; CHANNELS],
}

impl Default for Settings {
    fn default() -> Settings {
        let View { mean, deviation, .. } = View::clip(1, 1);
        Settings {
            do_resize: true,
            size: 224.into(),
            resample: 3,
            do_center_crop: true,
            crop_size: 224.into(),
            do_rescale: true,
            rescale_factor: RESCALE,
            do_normalize: true,
            image_mean: mean,
            image_std: deviation,
        }
    }
}

/// A number of pixels that `size` names.
fn pixels(size: &Value) -> Option<usize> {
    size.as_u64().and_then(|pixels| usize::try_from(pixels).ok()).filter(|&pixels| pixels > 0)
}

/// Both sides that `size` names.
fn sides(size: &Value) -> Option<[usize; 2]> {
    match pixels(size) {
        Some(side) => Some([side, side]),
        None => Some([pixels(&size["width"])?, pixels(&size["height"])?]),
    }
}

impl View {
    /// The view that the text of a `preprocessor_config.json`, which `origin` holds, describes, for a tower that sees `side` pixels of each
    /// side in patches of `patch`.
    ///
    /// # Errors
    /// [`Error::Malformed`] if it is no such text; [`Error::Mismatch`] for another size, and for what pinhole does not do with pictures.
    pub fn from_json(text: &str, origin: &Path, side: usize, patch: usize) -> Result<View> {
        let expected = "a JSON object of settings as CLIP's image processor has them";
        let settings: Settings = json::object(text)
            .map_err(|error| Error::malformed(origin, "preprocessor", expected, error.to_string()))?;
        let other = |key: &str, expected: String, found: String| Err(Error::mismatch(origin, key, expected, found));
        if !settings.do_resize {
            return other("do_resize", "true".into(), "false".into());
        }
        let filter = match settings.resample {
            0 => Filter::Nearest,
            1 => Filter::Lanczos,
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            number => return other("resample", "0 to 3".into(), number.to_string()),
        };
        let shorter = pixels(&settings.size).or_else(|| pixels(&settings.size["shortest_edge"]));
        let crop = settings.do_center_crop.then(|| sides(&settings.crop_size));
        let shorter = match (shorter, crop) {
            (Some(shorter), Some(Some(crop))) if crop == [side, side] && shorter >= side => Some(shorter),
            (Some(_), Some(_)) => {
                let expected = format!("{side}, as the tower sees, and at most the size");
                return other("crop_size", expected, settings.crop_size.to_string());
            }
            (Some(_), None) => return other("do_center_crop", "true".into(), "false".into()),
            (None, crop)
                if sides(&settings.size) == Some([side, side])
                    && crop.is_none_or(|crop| crop == Some([side, side])) =>
            {
                None
            }
            (None, _) => return other("size", format!("{side}, as the tower sees"), settings.size.to_string()),
        };
        let (mean, deviation) = match settings.do_normalize {
            true => (settings.image_mean, settings.image_std),
            false => ([0.0; CHANNELS], [1.0; CHANNELS]),
        };
        let rescale = if settings.do_rescale { settings.rescale_factor } else { 1.0 };
        let divides = deviation.iter().all(|deviation| deviation.is_finite() && *deviation != 0.0);
        if !divides || !rescale.is_finite() || !mean.iter().all(|mean| mean.is_finite()) {
            let found = format!("{mean:?}, {deviation:?} and {rescale}");
            return other(
                "image_mean, image_std, rescale_factor",
                "finite numbers, and a deviation above 0".into(),
                found,
            );
        }
        Ok(View { side, patch, shorter, filter, rescale, mean, deviation })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str, side: usize) -> Result<View> {
        View::from_json(text, Path::new("preprocessor_config.json"), side, 14)
    }

    #[test]
    fn published_settings_are_clips() {
        // As beside Stable Diffusion 1.5, and as newer versions of transformers write them.
        let older = r#"{"crop_size": 224, "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true, "do_resize": true,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224}"#;
        let newer = r#"{"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}, "do_rescale": true,
            "rescale_factor": 0.00392156862745098}"#;
        for text in [older, newer, "{}"] {
            assert_eq!(read(text, 224).unwrap(), View::clip(224, 14), "{text}");
        }
    }

    #[test]
    fn other_settings_are_followed() {
        let view =
            read(r#"{"size": 64, "crop_size": 58, "resample": 2, "do_normalize": false, "rescale_factor": 0.5}"#, 58);
        let expected = View { shorter: Some(64), filter: Filter::Bilinear, rescale: 0.5, ..View::clip(58, 14) };
        assert_eq!(view.unwrap(), View { mean: [0.0; 3], deviation: [1.0; 3], ..expected });
        let stretched = read(r#"{"size": {"height": 58, "width": 58}, "do_center_crop": false}"#, 58).unwrap();
        assert_eq!(stretched, View { shorter: None, ..View::clip(58, 14) });
        for text in [
            "[]",
            r#"{"do_resize": false}"#,
            r#"{"resample": 4}"#,
            r#"{"crop_size": 336}"#,
            r#"{"size": 200}"#,
            r#"{"do_center_crop": false}"#,
            r#"{"size": {"height": 224, "width": 100}}"#,
            r#"{"image_std": [0, 1, 1]}"#,
            r#"{"image_mean": [0.5]}"#,
        ] {
            assert!(read(text, 224).is_err(), "{text}");
        }
    }
}
