//! `pinhole compare`: how far two pictures are apart.

use std::path::PathBuf;

use pinhole::Error;
use pinhole::image::Image;
use pinhole::reserve;
use pinhole_quant::metrics;
use serde::Serialize;

use super::failure::Failure;
use super::printer::{Printer, Talk};
use super::units;

/// Compare two pictures of the same size: PSNR, SSIM, largest difference
///
/// PSNR is over all channels in dB; SSIM is over luma with Gaussian windows of 11 pixels (Wang et al., 2004). SSIM
/// needs sides of at least 11 pixels.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The picture to compare with
    #[arg(value_name = "A.png")]
    a: PathBuf,
    /// The picture to judge
    #[arg(value_name = "B.png")]
    b: PathBuf,
    /// Fail (exit code 1) where the PSNR is below this
    #[arg(long, value_name = "DB")]
    min_psnr: Option<f64>,
    /// Fail (exit code 1) where the SSIM is below this
    #[arg(long, value_name = "SSIM")]
    min_ssim: Option<f64>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole compare f32.png q8_0.png
  pinhole compare reference.png star.png --min-psnr 50";

#[derive(Serialize)]
struct Report {
    #[serde(serialize_with = "units::path")]
    a: PathBuf,
    #[serde(serialize_with = "units::path")]
    b: PathBuf,
    width: usize,
    height: usize,
    identical: bool,
    /// In dB; `None` where the pictures are identical and it is infinite.
    psnr: Option<f64>,
    /// `None` for pictures too small for it.
    ssim: Option<f64>,
    /// Of a channel, 0 to 255.
    max_error: u8,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let report = compare(args)?;
    if printer.json() {
        printer.object(&report)?;
    } else {
        printer.data(&text(&report))?;
    }
    check("PSNR", report.psnr.unwrap_or(f64::INFINITY), args.min_psnr)?;
    match (report.ssim, args.min_ssim) {
        (None, Some(_)) => Err(Failure::Check("the pictures are too small for an SSIM".into())),
        (ssim, least) => check("SSIM", ssim.unwrap_or(1.0), least),
    }
}

fn compare(args: &Args) -> Result<Report, Error> {
    let (a, b) = (Image::open_png(&args.a)?, Image::open_png(&args.b)?);
    let size = |image: &Image| format!("{}x{}", image.width(), image.height());
    let mismatch = || {
        let expected = format!("{}, the size of {}", size(&a), args.a.display());
        Error::mismatch(&args.b, "picture", expected, size(&b))
    };
    if (a.width(), a.height()) != (b.width(), b.height()) {
        return Err(mismatch());
    }
    // The comparison takes a byte for each pixel of both, and some rows.
    reserve::probe("the comparison", 2 * a.width() * a.height() + (4 << 20))?;
    // Both are there for pictures of one size, which have a pixel at least.
    let psnr = metrics::psnr(a.rgb(), b.rgb()).ok_or_else(mismatch)?;
    let max_error = metrics::max_channel_error(a.rgb(), b.rgb()).ok_or_else(mismatch)?;
    let ssim = metrics::ssim(a.rgb(), b.rgb(), a.width(), a.height());
    Ok(Report {
        a: args.a.clone(),
        b: args.b.clone(),
        width: a.width(),
        height: a.height(),
        identical: a == b,
        psnr: psnr.is_finite().then_some(psnr),
        ssim,
        max_error,
    })
}

fn text(report: &Report) -> String {
    let psnr = report.psnr.map_or("infinite".into(), |psnr| format!("{psnr:.2} dB"));
    let ssim = report.ssim.map_or("none (too small)".into(), |ssim| format!("{ssim:.5}"));
    format!("PSNR       {psnr}\nSSIM       {ssim}\nmax error  {}\n", report.max_error)
}

/// Fails where `value` is not at least `least`: NaN on either side fails too.
fn check(name: &str, value: f64, least: Option<f64>) -> Result<(), Failure> {
    let Some(least) = least else { return Ok(()) };
    if value >= least { Ok(()) } else { Err(Failure::Check(format!("{name} is {value:.5}, below {least}"))) }
}
