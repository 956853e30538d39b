//! ControlNets beside FLUX.1: how they are opened, and what they take.

use super::controls;
use super::opened::Additions;
use super::rules::{ControlRules, Rules, Takes};
use crate::Result;
use crate::models::flux::ControlNet;
use crate::source::networks;
use crate::source::{Part, Place, Source};

/// What InstantX's and Shakker's union ControlNets call the kinds of pictures that they tell apart.
const MODES: &[&str] = &["canny", "tile", "depth", "blur", "pose", "gray", "lq"];

/// The ControlNets of `additions`, which are at `place`.
pub(super) fn open(additions: &Additions, place: &Place) -> Result<Vec<Part<ControlNet>>> {
    controls::check_count(additions.controls.len())?;
    let mut controls = Vec::with_capacity(additions.controls.len());
    for path in &additions.controls {
        controls.push(networks::flux_control(&Source::lone(path, place)?)?);
    }
    // The first of several is InfiniteYou's network.
    if let Some(first) = controls.first_mut()
        && (additions.takes_id || additions.id_projector.is_some())
    {
        first.net.read_face();
    }
    Ok(controls)
}

/// With what `controls` follow, and take; `guidance` is that of a model that takes any.
pub(super) fn followed(mut rules: Rules, controls: &[Part<ControlNet>], guidance: f32) -> Rules {
    for control in controls {
        let config = control.net.config();
        let takes = match (config.takes_pixels(), config.takes_mask()) {
            (true, _) => Takes::Pixels,
            (false, true) => Takes::Masked,
            (false, false) => Takes::Latents,
        };
        let (path, modes) = (control.bound.origin().to_owned(), config.num_mode.unwrap_or(0));
        rules.controls.push(ControlRules { path, takes, modes, mode_names: MODES, pooled: false });
        // Beside a model that takes no guidance, a ControlNet may.
        rules.guidance = rules.guidance.or(config.net.guidance_embeds.then_some(guidance));
        // Their residuals are for the tokens of the picture that is drawn.
        rules.references = None;
    }
    rules
}
