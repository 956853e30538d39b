//! What a transformer is given for one picture, at random.

use pinhole::Result;
use pinhole::exec::Session;
use pinhole::models::flux::{ControlConfig, Flux, IP_PICTURES, sinusoid};
use pinhole::sample::randn;
use pinhole::stage::{Dims, Symbol};

/// Tokens of a face.
const FACE: usize = 3;

/// Pictures that an IP-Adapter is given.
const PICTURES: usize = 2;

/// Of a picture and its prompt, in tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) columns: usize,
    pub(crate) rows: usize,
    pub(crate) text: usize,
    /// Rows and columns of a picture that the model looks at; zeros if there is none.
    pub(crate) reference: [usize; 2],
}

impl Size {
    /// Tokens of both pictures.
    fn image(self) -> usize {
        self.columns * self.rows + self.reference[0] * self.reference[1]
    }

    /// Rows and columns of the pictures that there are.
    fn grids(self) -> Vec<[usize; 2]> {
        let all = [[self.rows, self.columns], self.reference];
        all.into_iter().filter(|grid| grid[0] > 0).collect()
    }

    pub(crate) fn dims(self) -> Dims {
        let image = self.image();
        let dims = Dims::new()
            .with(IP_PICTURES, PICTURES)
            .with(Symbol::BATCH, 1)
            .with(Symbol::CONDITIONS, 1)
            .with(Symbol::IMAGE_TOKENS, image)
            .with(Symbol::TEXT_TOKENS, self.text)
            .with(Symbol::JOINT_TOKENS, self.text + image);
        let latents = [2 * self.columns, 2 * self.rows];
        let of_controls = ControlConfig::sizes(1, self.text, image, latents);
        let of_controls = of_controls.into_iter().chain(ControlConfig::face_sizes(FACE, image));
        of_controls.fold(dims, |dims, (symbol, size)| dims.with(symbol, size))
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
    let (cos, sin) = net.rotary(size.text, &size.grids())?;
    session.set(ports.cos, &cos)?;
    session.set(ports.sin, &sin)?;
    if let Some(ip) = ports.ip {
        let seen = net.model.ports()[ip.seen.index()].shape(&size.dims())?;
        session.set(ip.seen, &randn(7, seen.elements())?)?;
        session.set(ip.scale, &[0.8])?;
    }
    for control in &net.controls {
        session.set(control.picture, &randn(4, config.in_channels * size.image())?)?;
        session.set(control.scale, &[0.7])?;
        if let Some(face) = control.face {
            session.set(face, &randn(6, config.joint_attention_dim * FACE)?)?;
        }
        if let Some((_, mode)) = control.mode {
            session.set(mode, &randn(5, config.hidden())?)?;
        }
        if let Some([cos, sin]) = control.rotary {
            let text = if control.face.is_some() { FACE } else { size.text + 1 };
            let tables = net.rotary(text, &size.grids())?;
            session.set(cos, &tables.0)?;
            session.set(sin, &tables.1)?;
        }
    }
    session.set_indices(ports.condition, &[0])
}

/// The latents of one step, from noise of `seed`.
pub(crate) fn latents(net: &Flux, size: Size, seed: u64) -> Result<Vec<f32>> {
    randn(seed, net.config().in_channels * size.image())
}
