//! The ControlNet beside Z-Image: how it is opened, and what it takes.

use super::opened::Additions;
use super::rules::{ControlRules, Rules, Takes};
use crate::models::z_image::{self, ControlNet};
use crate::source::{Part, Place, Source, networks};
use crate::{Error, Result};

/// The ControlNet of `additions`, which is at `place`, beside a model that `beside` describes.
pub(super) fn open(additions: &Additions, place: &Place, beside: &z_image::Config) -> Result<Option<Part<ControlNet>>> {
    match &additions.controls[..] {
        [] => Ok(None),
        [path] => networks::z_image_control(&Source::lone(path, place)?, Some(beside)).map(Some),
        several => {
            let expected = "one ControlNet, since no more go beside Z-Image";
            Err(Error::option("--control", expected, several.len().to_string()))
        }
    }
}

/// With what `control` follows, beside a model of `channels` latent channels.
pub(super) fn followed(mut rules: Rules, control: Option<&Part<ControlNet>>, channels: usize) -> Rules {
    if let Some(control) = control {
        let takes = Takes::Mean { masked: control.net.config().takes_mask(channels) };
        let path = control.bound.origin().to_owned();
        rules.controls.push(ControlRules { path, takes, modes: 0, mode_names: &[], pooled: false });
    }
    rules
}
