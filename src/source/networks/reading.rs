//! What all loaders begin with.

use super::super::{Component, packing, strangers};
use crate::Result;
use crate::bind;
use crate::bind::alias::{Aliases, Kind};
use crate::models::missing_tensor;
use crate::tensor::Shape;

/// Shapes of a component's weights by canonical name.
pub(in crate::source) fn shapes<'a>(
    component: &'a Component,
    aliases: Aliases<'a>,
) -> impl Fn(&str) -> Option<Shape> + 'a {
    move |name| bind::shape_of(&component.index, &component.prefix, aliases, name)
}

/// Refuses a `component` that is like a network of `kind` and another, or packed in a way that is not read.
pub(super) fn runnable(component: &Component, kind: &Kind) -> Result<()> {
    strangers::refuse(component, kind)?;
    packing::refuse(component)
}

/// What reading settings off the shapes of `component` returned; a weight that is missing has the name that its file would give it.
pub(in crate::source) fn read_off<C>(read: Result<C>, component: &Component, aliases: Aliases<'_>) -> Result<C> {
    let Component { index, prefix, origin, .. } = component;
    read.map_err(|error| match missing_tensor(&error) {
        Some(name) => bind::missing(index, prefix, aliases, name, origin),
        None => error,
    })
}
