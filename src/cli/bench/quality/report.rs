//! The measurements of all types, as a table and as JSON.

use std::path::{Path, PathBuf};

use pinhole::Error;
use pinhole::pipeline::Settings;
use serde::Serialize;

use super::pictures::{self, Nearness, Picture};
use super::weights::{Matrices, Weights};
use crate::cli::failure::Failure;
use crate::cli::printer::Printer;
use crate::cli::table::Table;
use crate::cli::units;

/// The JSON of a run.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub(super) version: &'static str,
    #[serde(serialize_with = "units::path")]
    pub(super) model: &'a Path,
    pub(super) device: String,
    pub(super) threads: usize,
    /// Whether text encoders are what `convert --type` makes them, and not of the named type.
    pub(super) recipe: bool,
    pub(super) settings: Shared,
    pub(super) prompts: &'a [String],
    /// The reference, f32, then the others in the order in which they were asked for.
    pub(super) types: Vec<Row<'a>>,
    pub(super) seconds: f64,
    pub(super) warnings: Vec<String>,
}

/// The settings that all pictures share.
#[derive(Serialize)]
pub(super) struct Shared {
    width: usize,
    height: usize,
    steps: usize,
    guidance: Option<f32>,
    cfg_scale: f32,
    /// Of the first picture; each further one has the next.
    seed: u64,
}

impl From<Settings> for Shared {
    fn from(settings: Settings) -> Shared {
        let Settings { width, height, steps, guidance, cfg_scale, seed, .. } = settings;
        Shared { width, height, steps, guidance, cfg_scale, seed }
    }
}

/// What was measured of one type.
#[derive(Serialize)]
pub(super) struct Row<'a> {
    #[serde(rename = "type")]
    name: &'static str,
    /// The type of every component.
    components: String,
    /// Of the bundle.
    bytes: u64,
    /// Of the transformer's weights.
    transformer_bytes: u64,
    /// The matrices of transformer and text encoders.
    matrices: Matrices,
    /// Those of the transformer alone.
    transformer_matrices: Matrices,
    /// `None` for the reference itself.
    psnr: Option<Psnr<'a>>,
    ssim: Option<Summary<'a>>,
    /// The median over the pictures, which a pause of the machine does not move.
    seconds_per_picture: f64,
    pictures: Vec<PictureRow<'a>>,
    /// The file, where it was kept.
    bundle: Option<PathBuf>,
}

/// A mean, and the worst with what it was drawn from.
#[derive(Clone, Copy, Serialize)]
struct Summary<'a> {
    mean: f64,
    worst: f64,
    worst_prompt: &'a str,
    worst_seed: u64,
}

#[derive(Serialize)]
struct Psnr<'a> {
    /// Pictures that equal the reference to the bit: they have no finite PSNR, and are not in the mean.
    identical: usize,
    /// In dB; `None` where all pictures are identical.
    #[serde(flatten)]
    others: Option<Summary<'a>>,
}

#[derive(Serialize)]
struct PictureRow<'a> {
    prompt: &'a str,
    seed: u64,
    #[serde(flatten)]
    nearness: Option<Nearness>,
    seconds: f64,
    path: Option<PathBuf>,
}

/// The files and weights of one type.
pub(super) struct Measured {
    pub(super) name: &'static str,
    pub(super) components: String,
    pub(super) bytes: u64,
    pub(super) bundle: Option<PathBuf>,
    pub(super) weights: Weights,
}

impl<'a> Row<'a> {
    /// The row of a type whose `pictures`, of `prompts` with their seeds, are held against `reference`; `None` where they
    /// are the reference.
    ///
    /// # Errors
    /// [`Error::Graph`] where there is no picture, or one that cannot be compared.
    pub(super) fn new(
        measured: Measured,
        prompts: &[(&'a str, u64)],
        pictures: &[Picture],
        reference: Option<&[Picture]>,
    ) -> Result<Row<'a>, Error> {
        let rows = rows(prompts, pictures, reference)?;
        Ok(Row {
            name: measured.name,
            components: measured.components,
            bytes: measured.bytes,
            transformer_bytes: measured.weights.transformer_bytes,
            matrices: measured.weights.all,
            transformer_matrices: measured.weights.transformer,
            psnr: reference.map(|_| psnr(&rows)),
            ssim: summary(&rows, |nearness| Some(nearness.ssim)),
            seconds_per_picture: median(rows.iter().map(|row| row.seconds).collect()),
            pictures: rows,
            bundle: measured.bundle,
        })
    }
}

fn rows<'a>(
    prompts: &[(&'a str, u64)],
    pictures: &[Picture],
    reference: Option<&[Picture]>,
) -> Result<Vec<PictureRow<'a>>, Error> {
    let mut rows = Vec::with_capacity(pictures.len());
    for (i, (&(prompt, seed), picture)) in prompts.iter().zip(pictures).enumerate() {
        let mut nearness = None;
        if let Some(reference) = reference {
            nearness = reference.get(i).and_then(|other| pictures::compare(&other.image, &picture.image));
            if nearness.is_none() {
                return Err(Error::graph("compare", format!("picture {i} and its reference differ in size")));
            }
        }
        rows.push(PictureRow { prompt, seed, nearness, seconds: picture.seconds, path: picture.path.clone() });
    }
    Ok(rows)
}

fn psnr<'a>(rows: &[PictureRow<'a>]) -> Psnr<'a> {
    let identical = rows.iter().filter(|row| row.nearness.is_some_and(|nearness| nearness.psnr.is_none())).count();
    Psnr { identical, others: summary(rows, |nearness| nearness.psnr) }
}

/// Mean and worst of what `of` finds; `None` where it finds nothing.
fn summary<'a>(rows: &[PictureRow<'a>], of: impl Fn(Nearness) -> Option<f64>) -> Option<Summary<'a>> {
    let found: Vec<(f64, &PictureRow<'a>)> =
        rows.iter().filter_map(|row| Some((row.nearness.and_then(&of)?, row))).collect();
    let (worst, row) = *found.iter().min_by(|(a, _), (b, _)| a.total_cmp(b))?;
    let mean = found.iter().map(|(value, _)| value).sum::<f64>() / found.len() as f64;
    Some(Summary { mean, worst, worst_prompt: row.prompt, worst_seed: row.seed })
}

/// The middle one of `values`, of an even number the lower of two; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// Prints the table, or with `--json` everything.
pub(super) fn print(report: &Report<'_>, printer: &Printer) -> Result<(), Failure> {
    if printer.json() { printer.object(report) } else { printer.data(&table(&report.types)) }
}

fn table(rows: &[Row<'_>]) -> String {
    let mut table = Table::new([
        "type",
        ">size",
        ">transformer",
        ">bits",
        ">of type",
        ">error",
        ">PSNR",
        ">worst",
        ">SSIM",
        ">worst",
        ">time",
    ]);
    for row in rows {
        let [psnr, worst_psnr] = psnr_cells(row);
        let ssim = |of: fn(&Summary<'_>) -> f64| row.ssim.map_or(String::new(), |ssim| format!("{:.4}", of(&ssim)));
        table.row([
            row.name.to_owned(),
            units::bytes(row.bytes),
            units::bytes(row.transformer_bytes),
            format!("{:.2}", row.matrices.bits_per_weight),
            format!("{:.1}%", 100.0 * row.matrices.share_of_type),
            format!("{:.1e}", row.matrices.error),
            psnr,
            worst_psnr,
            ssim(|ssim| ssim.mean),
            ssim(|ssim| ssim.worst),
            format!("{:.2} s", row.seconds_per_picture),
        ]);
    }
    table.to_string()
}

fn psnr_cells(row: &Row<'_>) -> [String; 2] {
    match &row.psnr {
        None => ["reference".into(), String::new()],
        Some(Psnr { others: None, .. }) => ["identical".into(), String::new()],
        Some(Psnr { others: Some(psnr), .. }) => [psnr.mean, psnr.worst].map(|value| format!("{value:.1} dB")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole::image::Image;

    use super::*;

    fn picture(seconds: f64, change: impl Fn(usize) -> i32) -> Picture {
        let rgb = (0..16 * 16 * 3).map(|i| (100 + i as i32 % 50 + change(i)) as u8).collect();
        Picture { image: Image::new(16, 16, rgb).unwrap(), seconds, path: None }
    }

    #[test]
    fn means_and_the_worst() {
        let reference = [picture(1.0, |_| 0), picture(1.0, |_| 0), picture(1.0, |_| 0)];
        let pictures = [picture(1.0, |_| 0), picture(2.0, |i| i as i32 % 2), picture(6.0, |i| 4 * (i as i32 % 2))];
        let prompts = [("a", 7), ("b", 8), ("c", 9)];
        let rows = rows(&prompts, &pictures, Some(&reference)).unwrap();
        // Half of the bytes differ, by 1 and by 4: 10 log10(255^2 / 0.5) and 10 log10(255^2 / 8).
        let Psnr { identical, others: Some(psnr) } = psnr(&rows) else { panic!("all identical") };
        assert_eq!((identical, psnr.worst_prompt, psnr.worst_seed), (1, "c", 9));
        assert!((psnr.worst - 39.0999).abs() < 1e-3, "{}", psnr.worst);
        assert!((psnr.mean - (39.0999 + 51.1411) / 2.0).abs() < 1e-3, "{}", psnr.mean);
        let ssim = summary(&rows, |nearness| Some(nearness.ssim)).unwrap();
        assert_eq!(ssim.worst_prompt, "c");
        assert!(ssim.worst < ssim.mean && ssim.mean < 1.0);
        let each: Vec<f64> = rows.iter().map(|row| row.nearness.unwrap().ssim).collect();
        assert!((each[0] - 1.0).abs() < 1e-12 && (ssim.mean - each.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![9.0, 1.0, 2.0, 3.0]), 2.0);
        assert_eq!((median(vec![4.0]), median(vec![])), (4.0, 0.0));
    }

    #[test]
    fn identical_pictures_have_no_psnr() {
        let (reference, pictures) = ([picture(1.0, |_| 0)], [picture(1.0, |_| 0)]);
        let rows = rows(&[("a", 0)], &pictures, Some(&reference)).unwrap();
        let psnr = psnr(&rows);
        assert!(psnr.identical == 1 && psnr.others.is_none());
        assert_eq!(serde_json::to_value(&psnr).unwrap(), serde_json::json!({ "identical": 1 }));
    }

    #[test]
    fn pictures_of_other_sizes_are_no_reference() {
        let small = Picture { image: Image::new(16, 8, vec![0; 384]).unwrap(), seconds: 1.0, path: None };
        assert!(rows(&[("a", 0)], &[small], Some(&[picture(1.0, |_| 0)])).is_err());
    }
}
