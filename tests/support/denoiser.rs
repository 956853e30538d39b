//! What a transformer is given for one picture, at random.

use pinhole::Result;
use pinhole::exec::Session;
use pinhole::models::flux::{ControlConfig, Flux, sinusoid};
use pinhole::sample::randn;
use pinhole::stage::{Dims, Symbol};

/// Of a picture and its prompt, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
    pub(crate) text: usize,
}

impl Size {
    pub(crate) fn dims(self) -> Dims {
        let image = self.columns * self.rows;
        let dims = Dims::new()
            .with(Symbol::BATCH, 1)
            .with(Symbol::CONDITIONS, 1)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(Symbol::TEXT_TOKENS, self.text)
            .with(Symbol::JOINT_TOKENS, self.text + image);
        let latents = [2 * self.columns, 2 * self.rows];
        let of_controls = ControlConfig::sizes(1, self.text, image, latents);
        of_controls.into_iter().fold(dims, |dims, (symbol, size)| dims.with(symbol, size))
    }
}

/// Sets all that stays the same from step to step.
pub(crate) fn set_request(session: &mut Session<'_>, net: &Flux, size: Size) -> Result<()> {
    let (config, ports) = (net.config(), &net.ports);
    session.set(ports.time, &sinusoid(700.0))?;
    if let Some(guidance) = ports.guidance {
        session.set(guidance, &sinusoid(3500.0))?;
    }
    session.set(ports.pooled, &randn(1, config.pooled_projection_dim)?)?;
    session.set(ports.text, &randn(2, config.joint_attention_dim * size.text)?)?;
    let (cos, sin) = net.rotary(size.text, &[[size.rows, size.columns]])?;
    session.set(ports.cos, &cos)?;
    session.set(ports.sin, &sin)?;
    for control in &net.controls {
        session.set(control.picture, &randn(4, config.in_channels * size.columns * size.rows)?)?;
        session.set(control.scale, &[0.7])?;
        if let Some((_, mode)) = control.mode {
            session.set(mode, &randn(5, config.hidden())?)?;
        }
        if let Some([cos, sin]) = control.rotary {
            let tables = net.rotary(size.text + 1, &[[size.rows, size.columns]])?;
            session.set(cos, &tables.0)?;
            session.set(sin, &tables.1)?;
        }
    }
    session.set_indices(ports.condition, &[0])
}

/// The latents of one step, from noise of `seed`.
pub(crate) fn latents(net: &Flux, size: Size, seed: u64) -> Result<Vec<f32>> {
    randn(seed, net.config().in_channels * size.columns * size.rows)
}
