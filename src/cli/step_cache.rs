//! `--cache`, and what reports say of a step cache.

use pinhole::pipeline::{Cache, CacheRequest};
use serde::Serialize;

/// What `--cache` names; `None` for `none`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given(pub(super) Option<CacheRequest>);

pub(super) fn parse(text: &str) -> Result<Given, String> {
    if text == "none" { Ok(Given(None)) } else { text.parse().map(|cache| Given(Some(cache))) }
}

/// A step cache.
#[derive(Serialize)]
pub(super) struct CacheReport {
    kind: &'static str,
    threshold: f32,
}

impl CacheReport {
    pub(super) fn new(cache: Cache) -> CacheReport {
        CacheReport { kind: cache.kind.name(), threshold: cache.threshold }
    }
}

/// Which evaluations were computed: one list if all passes have the same, and otherwise one for each.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Computed<'a> {
    Alike(&'a [bool]),
    Each(&'a [Vec<bool>]),
}

impl Computed<'_> {
    /// `None` without a step cache.
    pub(super) fn of(passes: &[Vec<bool>]) -> Option<Computed<'_>> {
        let (first, others) = passes.split_first()?;
        let alike = others.iter().all(|other| other == first);
        Some(if alike { Computed::Alike(first) } else { Computed::Each(passes) })
    }
}
