//! ControlNets beside FLUX.1: how they are opened, what they take, and in which steps they run.

use super::controls;
use super::opened::Additions;
use super::request::{ControlSettings, Settings};
use super::rules::{ControlRules, Rules, Takes};
use crate::Result;
use crate::models::flux::{ControlNet, control_runs};
use crate::source::networks;
use crate::source::{Part, Place, Source};
use crate::stage::Span;

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
        rules.controls.push(ControlRules { path, takes, modes, mode_names: MODES });
        // Beside a model that takes no guidance, a ControlNet may.
        rules.guidance = rules.guidance.or(config.net.guidance_embeds.then_some(guidance));
        // Their residuals are for the tokens of the picture that is drawn.
        rules.references = None;
    }
    rules
}

/// The steps in which the same ControlNets run, one after the other. With a step cache it is not known before the request which steps
/// are computed, so that a ControlNet that runs at all runs in each.
pub(super) fn spans(settings: &Settings, evaluations: usize) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for evaluation in 0..evaluations {
        let runs = |control: &ControlSettings| usize::from(control.factor(evaluation, evaluations) != 0.0);
        let sizes = control_runs(settings.controls.iter().map(runs));
        match spans.last_mut() {
            Some(last) if last.sizes == sizes => last.steps += 1,
            _ => spans.push(Span { steps: 1, sizes }),
        }
    }
    if settings.cache.is_none() || spans.len() < 2 {
        return spans;
    }
    let runs = |control: usize| spans.iter().map(|span| span.sizes[control].1).max().unwrap_or(0);
    vec![Span { steps: evaluations, sizes: control_runs((0..settings.controls.len()).map(runs)) }]
}
