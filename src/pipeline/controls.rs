//! ControlNets in a request: the picture that each follows, how, and in which steps.

use std::borrow::Cow;
use std::sync::Arc;

use super::choices::Preprocess;
use super::request::{CONTROL_NETS, Control, ControlSettings, JoinedSettings, Request, Settings};
use super::rules::{ControlRules, Rules, Takes};
use crate::image::{Mask, Picture};
use crate::models::control_runs::control_runs;
use crate::source::model_name;
use crate::stage::Span;
use crate::{Error, Result};

const IMAGE: &str = "--control-image";
const SCALE: &str = "--control-scale";
const START: &str = "--control-start";
const END: &str = "--control-end";
const MODE: &str = "--control-mode";

/// How many pictures one ControlNet follows, at most: more than there are kinds.
const MOST_JOINED: usize = 16;

/// The largest factor of a ControlNet's share.
const MOST_SCALE: f32 = 100.0;

/// Refuses more ControlNets than a model runs with.
pub(super) fn check_count(count: usize) -> Result<()> {
    if count <= CONTROL_NETS.len() {
        return Ok(());
    }
    Err(Error::option("--control", format!("at most {} ControlNets", CONTROL_NETS.len()), count.to_string()))
}

/// What each ControlNet of a model follows in `request`.
pub(super) fn of<'r>(rules: &Rules, request: &'r Request) -> Result<Cow<'r, [Control]>> {
    let alone = match (&rules.controls[..], &request.control_image) {
        ([_], Some(image)) if request.controls.is_empty() => {
            Some(Control { preprocess: request.control_preprocess, ..Control::new(Arc::clone(image)) })
        }
        _ => None,
    };
    let controls = alone.map_or(Cow::Borrowed(&request.controls[..]), |control| Cow::Owned(vec![control]));
    let (expected, found) = (rules.controls.len(), nets(&controls).count());
    if found == expected {
        for (rules, followed) in rules.controls.iter().zip(nets(&controls)) {
            check_joined(rules, followed)?;
        }
        return Ok(controls);
    }
    let found = if found == 0 { "none".to_owned() } else { found.to_string() };
    let error = match expected {
        0 => return Err(Error::option(IMAGE, "nothing, since the model was opened without a ControlNet", found)),
        1 => Error::option(IMAGE, "a picture for the ControlNet to follow", found),
        _ => Error::option(IMAGE, format!("a picture for each of the {expected} ControlNets"), found),
    };
    Err(error.with_hint("give one with --control-image behind each --control"))
}

/// The pictures that each ControlNet follows, of those of all.
pub(super) fn nets(controls: &[Control]) -> impl Iterator<Item = &[Control]> {
    controls.chunk_by(|_, next| next.joins)
}

/// Refuses several pictures for a ControlNet that follows one, and more than any follows.
fn check_joined(rules: &ControlRules, followed: &[Control]) -> Result<()> {
    let count = followed.len();
    if count > 1 && (rules.modes == 0 || rules.takes != Takes::Levels) {
        let expected = "one picture for each ControlNet, except union ControlNets of Stable Diffusion XL";
        let error = Error::option(IMAGE, expected, format!("{count} for {}", model_name(&rules.path)));
        return Err(error.with_hint("give a --control before each"));
    }
    if count > MOST_JOINED {
        return Err(Error::option(
            IMAGE,
            format!("at most {MOST_JOINED} pictures for a ControlNet"),
            count.to_string(),
        ));
    }
    Ok(())
}

/// How each of `controls` is followed.
pub(super) fn settings(rules: &Rules, controls: &[Control]) -> Result<Vec<ControlSettings>> {
    let mut all = Vec::with_capacity(rules.controls.len());
    for (rules, followed) in rules.controls.iter().zip(nets(controls)) {
        let Some((first, others)) = followed.split_first() else { continue };
        let mut settings = one(rules, first)?;
        for other in others {
            // Start and end are those of the first picture.
            let other = one(rules, &Control { start: first.start, end: first.end, ..other.clone() })?;
            let ControlSettings { scale, mode, mode_name, preprocess, .. } = other;
            settings.more.push(JoinedSettings { scale, mode, mode_name, preprocess });
        }
        all.push(settings);
    }
    Ok(all)
}

fn one(rules: &ControlRules, control: &Control) -> Result<ControlSettings> {
    let Control { scale, start, end, .. } = *control;
    if !(-MOST_SCALE..=MOST_SCALE).contains(&scale) {
        let expected = format!("a number from {} to {MOST_SCALE}", -MOST_SCALE);
        return Err(Error::option(SCALE, expected, scale.to_string()));
    }
    if !(0.0..=1.0).contains(&start) {
        return Err(Error::option(START, "a number from 0 to 1", start.to_string()));
    }
    if !(start..=1.0).contains(&end) {
        return Err(Error::option(END, format!("a number from the start, {start}, to 1"), end.to_string()));
    }
    let mode = mode(rules, control.mode.as_deref())?;
    let mode_name = mode.and_then(|mode| rules.mode_names.get(mode)?.split('/').next());
    if let Preprocess::Canny(thresholds) = control.preprocess {
        thresholds.check("--canny-thresholds")?;
    }
    if control.preprocess == Preprocess::Inpaint && rules.modes > 0 {
        let expected = "none, since a union ControlNet takes its picture as it is";
        let error = Error::option("--control-preprocess", expected, "`inpaint`");
        return Err(error.with_hint("paint black what is to be painted anew, and give --control-mode repaint"));
    }
    if control.preprocess == Preprocess::Inpaint && rules.takes != Takes::Levels {
        let expected = "another, since it is for inpainting ControlNets of Stable Diffusion";
        return Err(Error::option("--control-preprocess", expected, "`inpaint`"));
    }
    let (name, preprocess) = (model_name(&rules.path), control.preprocess);
    Ok(ControlSettings { name, scale, start, end, mode, mode_name, preprocess, more: Vec::new() })
}

/// The number of the mode `given`.
fn mode(rules: &ControlRules, given: Option<&str>) -> Result<Option<usize>> {
    let ControlRules { modes, mode_names, .. } = *rules;
    if modes == 0 {
        return match given {
            Some(mode) => Err(Error::option(MODE, "nothing, since this ControlNet has no modes", format!("`{mode}`"))),
            None => Ok(None),
        };
    }
    let named = given.and_then(|given| {
        mode_names.iter().position(|names| names.split('/').any(|name| name.eq_ignore_ascii_case(given)))
    });
    let number = named.or_else(|| given.and_then(|given| given.parse().ok())).filter(|&mode| mode < modes);
    if number.is_some() {
        return Ok(number);
    }
    let names = mode_names.get(..modes.min(mode_names.len())).unwrap_or_default().join(", ");
    let numbers = format!("a number from 0 to {}", modes - 1);
    let expected = if names.is_empty() { numbers } else { format!("one of {names}, or {numbers}") };
    Err(Error::option(MODE, expected, given.map_or("none".to_owned(), |given| format!("`{given}`"))))
}

/// Whether ControlNets guess in `request`: the prompt's pass alone follows them, and what comes in first counts least.
pub(super) fn guesses(rules: &Rules, request: &Request) -> Result<bool> {
    const OPTION: &str = "--control-guess";
    if request.control_guess {
        if rules.controls.is_empty() {
            let error = Error::option(OPTION, "a ControlNet that guesses", "none");
            return Err(error.with_hint("give one with --control"));
        }
        if rules.controls.iter().any(|control| control.takes != Takes::Levels) {
            return Err(Error::option(OPTION, "nothing, since ControlNets of this kind do not guess", "it"));
        }
    }
    // As diffusers, which looks at the first alone.
    Ok(request.control_guess || rules.controls.first().is_some_and(|control| control.pooled))
}

/// The picture that the mask of `request` has to cover for a ControlNet, if one of them takes it.
pub(super) fn masked<'c>(rules: &Rules, controls: &'c [Control]) -> Option<&'c Arc<Picture>> {
    for (rules, followed) in rules.controls.iter().zip(nets(controls)) {
        for control in followed {
            if rules.takes == Takes::Masked || control.preprocess == Preprocess::Inpaint {
                return Some(&control.image);
            }
        }
    }
    None
}

/// Whether a ControlNet is given the mask of `request` and what that leaves of the picture to begin with: then nothing else keeps that.
pub(super) fn paints(rules: &Rules, request: &Request) -> bool {
    let takes_mask = rules.controls.iter().any(|control| control.takes == Takes::Mean { masked: true });
    takes_mask && request.mask.is_some() && request.image.is_some()
}

/// The steps in which the same ControlNets run, one after the other. With a step cache it is not known before the request which steps
/// are computed, so that a ControlNet that runs at all runs in each.
pub(super) fn spans(settings: &Settings, evaluations: usize) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for evaluation in 0..evaluations {
        let factors = settings.controls.iter().map(|control| control.factor(evaluation, evaluations));
        let sizes = control_runs(factors.map(|factor| usize::from(factor != 0.0)));
        match spans.last_mut() {
            Some(last) if last.sizes == sizes => last.steps += 1,
            _ => spans.push(Span { steps: 1, sizes }),
        }
    }
    if settings.cache.is_none() || spans.len() < 2 {
        return spans;
    }
    let mut runs = Vec::with_capacity(settings.controls.len());
    for control in 0..settings.controls.len() {
        runs.push(spans.iter().map(|span| span.sizes[control].1).max().unwrap_or(0));
    }
    vec![Span { steps: evaluations, sizes: control_runs(runs) }]
}

/// The mask of `request` for `control`, at the size that is drawn.
pub(super) fn mask(request: &Request, control: &Control, [width, height]: [usize; 2]) -> Result<Mask> {
    let mask = request.mask.as_ref().ok_or_else(|| Error::graph("mask", "a ControlNet without its mask"))?;
    mask.mask_for(&control.image, width, height)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_names_and_numbers() {
        let rules = |modes| ControlRules {
            path: "c".into(),
            takes: Takes::Latents,
            modes,
            mode_names: &["canny", "tile/detail", "depth"],
            pooled: false,
        };
        assert_eq!(mode(&rules(10), Some("Depth")).unwrap(), Some(2));
        assert_eq!(mode(&rules(10), Some("detail")).unwrap(), Some(1));
        assert_eq!(mode(&rules(10), Some("9")).unwrap(), Some(9));
        assert_eq!(mode(&rules(0), None).unwrap(), None);
        for (modes, given) in [(10, Some("10")), (10, None), (2, Some("depth")), (0, Some("canny")), (10, Some("-1"))] {
            assert!(mode(&rules(modes), given).is_err(), "{modes} {given:?}");
        }
        let error = mode(&rules(10), Some("pose")).unwrap_err().to_string();
        let expected = "expected one of canny, tile/detail, depth, or a number from 0 to 9, found `pose`";
        assert!(error.contains(expected), "{error}");
    }
}
