//! The UNet of Stable Diffusion in a request: what its ports are filled with, and those of the ControlNets that run beside it.

use super::controls;
use super::opened::{Denoiser, Given, StepPorts, subject};
use super::prompts::Prompt;
use super::request::{ControlSettings, Settings};
use crate::exec::Session;
use crate::image::{CHANNELS, luma};
use crate::models::control_runs::{pictures_of, runs_of};
use crate::models::layers::sinusoid;
use crate::models::unet::adapter;
use crate::models::unet::control::{Colours, Kinds};
use crate::models::unet::{IP_PICTURES, SideConfig, Size, Unet};
use crate::plan::measure::Subject;
use crate::plan::{Phase, Runs};
use crate::source::networks::Side as Follower;
use crate::source::slot::UNET;
use crate::source::{Network, Networks, Part};
use crate::stage::{Dims, Symbol};
use crate::{Error, Result, reserve};

/// The UNet, with the ControlNets that run beside it.
pub(super) struct UnetDenoiser {
    part: Part<Unet>,
    controls: Vec<SideConfig>,
}

impl Networks for UnetDenoiser {
    fn networks(&self) -> Vec<Network<'_>> {
        self.part.networks()
    }
}

/// The colours of `picture [W, H, 3]` in the other order.
fn turned(picture: &[f32]) -> Result<Vec<f32>> {
    let mut turned = reserve::room("a picture", picture.len())?;
    let planes = picture.chunks_exact((picture.len() / CHANNELS).max(1));
    planes.rev().for_each(|plane| turned.extend_from_slice(plane));
    Ok(turned)
}

/// `picture [W, H, 3]` as an adapter takes it: the pixels of a square as channels, those of one colour row by row, then those of the next.
/// PyTorch's `pixel_unshuffle`.
fn unshuffled(picture: &[f32], width: usize, config: &adapter::Config) -> Result<Vec<f32>> {
    let adapter::Config { downscale_factor: side, in_channels, .. } = *config;
    let pixels = picture.len() / CHANNELS;
    let mut gray;
    let planes = match in_channels {
        1 => {
            // Of bytes, as Pillow makes it.
            let byte = |i: usize, c: usize| (255.0 * picture[c * pixels + i]).round() as u8;
            gray = reserve::room("a picture", pixels)?;
            for i in 0..pixels {
                gray.push(f32::from(luma(&[byte(i, 0), byte(i, 1), byte(i, 2)])) / 255.0);
            }
            &gray[..]
        }
        _ => picture,
    };
    let mut all = reserve::room("a picture", planes.len())?;
    for plane in planes.chunks_exact(pixels.max(1)) {
        for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
            for row in plane.chunks_exact(width).skip(y).step_by(side) {
                all.extend(row.iter().skip(x).step_by(side));
            }
        }
    }
    Ok(all)
}

/// What the residuals of a ControlNet are multiplied with, `count` of them: as diffusers, a guess begins with a tenth for the finest.
fn residual_scales(count: usize, scale: f32, guesses: bool) -> Vec<f32> {
    let last = count.saturating_sub(1).max(1) as f64;
    let mut scales = Vec::with_capacity(count);
    for i in 0..count {
        scales.push(if guesses { 10f64.powf(i as f64 / last - 1.0) as f32 * scale } else { scale });
    }
    scales
}

/// The guidance as a UNet is told it: `width` numbers, sines first, as `get_guidance_scale_embedding` of diffusers' pipelines computes them.
fn embedded_guidance(guidance: f32, width: usize) -> Vec<f32> {
    let (half, scaled) = (width / 2, (guidance - 1.0) * 1000.0);
    let step = 10000f32.ln() / half.saturating_sub(1).max(1) as f32;
    let angle = |i: usize| scaled * (i as f32 * -step).exp();
    (0..half).map(|i| angle(i).sin()).chain((0..half).map(|i| angle(i).cos())).collect()
}

impl UnetDenoiser {
    pub(super) fn new(part: Part<Unet>, controls: &[Follower]) -> UnetDenoiser {
        UnetDenoiser { part, controls: controls.iter().map(Follower::config).collect() }
    }

    /// `dims` with what ControlNets run in: those steps that each has a part in, and, if they guess, the prompt's pass alone.
    fn with_runs(&self, mut dims: Dims, settings: &Settings, evaluations: usize) -> Dims {
        for pass in 1..if settings.control_guess { settings.passes() } else { 0 } {
            for (i, config) in self.controls.iter().enumerate() {
                if let (SideConfig::Net(_), Some(runs)) = (config, runs_of(i)) {
                    dims = dims.with_in_pass(pass, runs, 0);
                }
            }
        }
        dims.with_spans(controls::spans(settings, evaluations))
    }

    /// Fills the ports of the ControlNets.
    fn fill_controls(&self, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (net, settings) = (&self.part.net, given.settings);
        for (i, (ports, config)) in net.controls.iter().zip(&self.controls).enumerate() {
            let (Some(picture), Some(control)) = (given.controls.get(i), settings.controls.get(i)) else {
                return Err(Error::graph("fill", "a ControlNet without its picture"));
            };
            let mut guesses = false;
            match config {
                SideConfig::Net(config) => {
                    guesses = settings.control_guess && !config.global_pool_conditions;
                    match config.controlnet_conditioning_channel_order {
                        Colours::Rgb => session.set(ports.picture, picture)?,
                        Colours::Bgr => {
                            let each = picture.len() / control.pictures();
                            let mut all = Vec::new();
                            for one in picture.chunks_exact(each.max(1)) {
                                all.append(&mut turned(one)?);
                            }
                            session.set(ports.picture, &all)?;
                        }
                    }
                }
                SideConfig::Adapter(config) => {
                    session.set(ports.picture, &unshuffled(picture, settings.width, config)?)?;
                }
            }
            session.set(ports.scale, &residual_scales(ports.residuals, control.whole_scale(), guesses))?;
            if let Some(kinds) = &ports.kinds {
                self.fill_kinds(session, kinds, control)?;
            }
        }
        Ok(())
    }

    /// Tells a ControlNet the kinds of the pictures that `control` has it follow, and how much each counts.
    fn fill_kinds(&self, session: &mut Session<'_>, kinds: &Kinds, control: &ControlSettings) -> Result<()> {
        let (mut numbers, mut shares) = (Vec::new(), Vec::new());
        for (mode, share) in control.kinds_and_shares() {
            let number = mode.and_then(|mode| u32::try_from(mode).ok());
            numbers.push(number.ok_or_else(|| Error::graph("fill", format!("kind {mode:?}")))?);
            shares.push(share);
        }
        session.set(kinds.kind, &self.part.bound.gather(kinds.table, kinds.channels, &numbers)?)?;
        session.set(kinds.shares, &shares)?;
        let mut told = Vec::new();
        for kind in 0..kinds.count {
            let is_told = numbers.iter().any(|number| *number as usize == kind);
            told.extend(sinusoid(if is_told { 1.0 } else { 0.0 }, kinds.width / kinds.count.max(1)));
        }
        session.set(kinds.told, &told)
    }

    /// For every condition, the pooled prompt and behind it the embedded sizes: of the original, where it was cut off, and of the
    /// picture, down before across. A refiner is told how pleasing the picture is in the place of its size. As `_get_add_time_ids` of
    /// diffusers' `StableDiffusionXLPipeline` and `StableDiffusionXLImg2ImgPipeline`.
    fn added(&self, given: &Given<'_>) -> Result<Vec<f32>> {
        let Settings { width, height, original_size, crop, aesthetic, .. } = *given.settings;
        let [original_width, original_height] = original_size;
        let [left, top] = crop;
        let size_width = self.part.net.config().addition_time_embed_dim.unwrap_or(0);
        let mut one = Vec::new();
        for (i, Prompt(arrays)) in given.prompts.iter().enumerate() {
            one.extend_from_slice(&arrays[1]);
            let is_first = given.pass + i == 0;
            // diffusers tells a refiner of no crop with the negative prompt.
            let [top, left] = if aesthetic.is_some() && !is_first { [0, 0] } else { [top, left] };
            let mut told = [original_height, original_width, top, left].map(|size| size as f32).to_vec();
            match aesthetic {
                Some([with, without]) => told.push(if is_first { with } else { without }),
                None => told.extend([height, width].map(|size| size as f32)),
            }
            for size in told {
                one.extend(sinusoid(size, size_width));
            }
        }
        reserve::repeat("the sizes", &one, given.evaluations.len())
    }
}

impl Denoiser for UnetDenoiser {
    fn subjects(&self, settings: &Settings, latents: [usize; 5], evaluations: usize) -> Vec<Subject<'_>> {
        let ([width, height, ..], passes) = (latents, settings.passes());
        let dims = self.part.net.dims(Size {
            width,
            height,
            batch: settings.batch * passes,
            text_tokens: settings.most_text_tokens(),
            conditions: evaluations * passes,
            controlled: settings.batch * if settings.control_guess { 1 } else { passes },
        });
        let mut dims = dims.with(Symbol::PASSES, passes).with(IP_PICTURES, settings.ip_images.max(1));
        for i in 0..self.controls.len() {
            if let Some(symbol) = pictures_of(i) {
                dims = dims.with(symbol, settings.controls.get(i).map_or(1, ControlSettings::pictures));
            }
        }
        if !self.controls.is_empty() {
            dims = self.with_runs(dims, settings, evaluations);
        }
        vec![subject(&self.part, UNET.name, Phase::Denoise, dims, Runs::of_steps(evaluations))]
    }

    fn ports(&self, _: usize) -> StepPorts {
        let ports = &self.part.net.ports;
        StepPorts { latents: ports.latents, prediction: ports.prediction, condition: ports.condition }
    }

    fn fill(&self, _: usize, session: &mut Session<'_>, given: &Given<'_>) -> Result<()> {
        let (ports, width) = (&self.part.net.ports, self.part.net.config().time_width());
        self.fill_controls(session, given)?;
        if let Some(ip) = &ports.ip {
            session.set(ip.tokens, &given.ip()?)?;
            session.set(ip.scale, &[given.settings.ip_scale])?;
        }
        session.set(ports.time, &given.times(|time| sinusoid(time, width))?)?;
        if let Some(guidance) = ports.guidance {
            let width = self.part.net.config().time_cond_proj_dim.unwrap_or(0);
            session.set(guidance, &embedded_guidance(given.settings.guidance.unwrap_or(1.0), width))?;
        }
        if let Some(added) = ports.added {
            session.set(added, &self.added(given)?)?;
        }
        session.set(ports.context, &given.prompt(0)?)
    }

    fn filled_bytes(&self, settings: &Settings) -> usize {
        // The pictures of a ControlNet in another order on their way to it.
        let pictures = settings.controls.iter().map(ControlSettings::pictures).max().unwrap_or(0);
        let pixels = settings.width.saturating_mul(settings.height).saturating_mul(pictures);
        pixels.saturating_mul((CHANNELS + 1) * size_of::<f32>())
    }

    fn beside(&self, [w, h, ..]: [usize; 5]) -> usize {
        let config = self.part.net.config();
        config.in_channels.saturating_sub(config.out_channels) * w * h
    }

    fn pack_beside(&self, latents: &[f32], mask: Option<&[f32]>, [w, h, ..]: [usize; 5]) -> Result<Vec<f32>> {
        let mut beside = reserve::room("the latents", latents.len() + w * h)?;
        if let Some(mask) = mask {
            // One of the pixels of each latent, as `torch.nn.functional.interpolate` takes it (`mode="nearest"`).
            let factor = (mask.len() / (w * h)).isqrt();
            for row in mask.chunks_exact(w * factor).step_by(factor) {
                beside.extend(row.iter().step_by(factor));
            }
        }
        beside.extend_from_slice(latents);
        Ok(beside)
    }

    fn pack(&self, latents: &[f32], _: [usize; 5]) -> Result<Vec<f32>> {
        reserve::repeat("the latents", latents, 1)
    }

    fn unpack(&self, packed: &[f32], _: [usize; 5]) -> Result<Vec<f32>> {
        reserve::repeat("the latents", packed, 1)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn squares_become_channels() {
        let config = adapter::Config { downscale_factor: 2, ..adapter::Config::default() };
        let picture: Vec<f32> = (0..4 * 2 * 3).map(|i| i as f32).collect();
        let found = unshuffled(&picture, 4, &config).unwrap();
        assert_eq!(found[..8], [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        let gray = adapter::Config { in_channels: 1, ..config };
        let found = unshuffled(&[0.2; 4 * 2 * 3], 4, &gray).unwrap();
        assert!(found.len() == 8 && found.iter().all(|value| (value - 0.2).abs() < 1e-6));
    }

    #[test]
    fn no_guidance_is_an_angle_of_0() {
        assert_eq!(embedded_guidance(1.0, 6), [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        let found = embedded_guidance(1.001, 4);
        assert!((found[0] - 1f32.sin()).abs() < 1e-3 && (found[1] - 1e-4).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn guesses_begin_with_a_tenth() {
        assert_eq!(residual_scales(3, 2.0, false), [2.0; 3]);
        let expected = [0.2, 2.0 * 0.1f32.sqrt(), 2.0];
        assert!(
            residual_scales(3, 2.0, true).iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6)
        );
    }
}
