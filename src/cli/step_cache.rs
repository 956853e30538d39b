//! `--cache`.

use pinhole::pipeline::CacheRequest;

/// What `--cache` names; `None` for `none`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given(pub(super) Option<CacheRequest>);

pub(super) fn parse(text: &str) -> Result<Given, String> {
    if text == "none" { Ok(Given(None)) } else { text.parse().map(|cache| Given(Some(cache))) }
}
