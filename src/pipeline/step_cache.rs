//! Step caches: what a request may say of them.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// How it is decided which evaluations of the denoiser are not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheKind {
    /// By how much the change differs that the first block makes: diffusers' `FirstBlockCacheConfig`.
    FirstBlock,
    /// By how much the input of the first block differs, rescaled and added up: Liu et al., "Timestep Embedding Tells: It's Time to
    /// Cache for Video Diffusion Model" (2024).
    TeaCache,
    /// By magnitudes that were measured once for the model: diffusers' `MagCacheConfig`.
    MagCache,
    /// At fixed intervals; the prediction is then extrapolated: diffusers' `TaylorSeerCacheConfig`, with `use_lite_mode`.
    TaylorSeer,
}

impl CacheKind {
    /// All of them.
    pub const ALL: [CacheKind; 4] =
        [CacheKind::FirstBlock, CacheKind::TeaCache, CacheKind::MagCache, CacheKind::TaylorSeer];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            CacheKind::FirstBlock => "first-block",
            CacheKind::TeaCache => "teacache",
            CacheKind::MagCache => "magcache",
            CacheKind::TaylorSeer => "taylorseer",
        }
    }
}

/// A step cache: evaluations of the denoiser that change little are not computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cache {
    /// How it is decided.
    pub kind: CacheKind,
    /// The larger it is, the more evaluations are skipped; for TaylorSeer every so many are computed.
    pub threshold: f32,
}

/// What a request says of a step cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CacheRequest {
    /// How it is decided.
    pub kind: CacheKind,
    /// As in [`Cache`]; that which was published for the model if it is `None`.
    pub threshold: Option<f32>,
}

impl CacheRequest {
    /// With the threshold that was published for the model.
    pub fn new(kind: CacheKind) -> CacheRequest {
        CacheRequest { kind, threshold: None }
    }
}

impl From<Cache> for CacheRequest {
    fn from(Cache { kind, threshold }: Cache) -> CacheRequest {
        CacheRequest { kind, threshold: Some(threshold) }
    }
}

/// The longest interval of TaylorSeer.
const MOST_INTERVAL: f32 = 1000.0;

impl Cache {
    /// # Errors
    /// [`Error::Option`] for a threshold that cannot work.
    pub(super) fn check(self) -> Result<()> {
        let Cache { kind, threshold } = self;
        let (works, expected) = match kind {
            CacheKind::TaylorSeer => {
                let works = threshold.fract() == 0.0 && (1.0..=MOST_INTERVAL).contains(&threshold);
                (works, format!("a whole number of evaluations from 1 to {MOST_INTERVAL} behind taylorseer:"))
            }
            _ => {
                let works = threshold.is_finite() && threshold >= 0.0;
                (works, format!("a finite threshold of at least 0 behind {}:", kind.name()))
            }
        };
        if works { Ok(()) } else { Err(Error::option("--cache", expected, threshold.to_string())) }
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.threshold)
    }
}

impl FromStr for CacheRequest {
    type Err = String;

    fn from_str(text: &str) -> Result<CacheRequest, String> {
        let (name, threshold) = text.split_once(':').map_or((text, None), |(name, number)| (name, Some(number)));
        let kind = CacheKind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| format!("expected none, or one of {}", names(&CacheKind::ALL)))?;
        match threshold {
            None => Ok(CacheRequest::new(kind)),
            Some(number) => match number.trim().parse() {
                Ok(threshold) => Ok(CacheRequest { kind, threshold: Some(threshold) }),
                Err(_) => Err(format!("expected a number behind {name}:")),
            },
        }
    }
}

/// The names of `kinds`.
fn names(kinds: &[CacheKind]) -> String {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    names.join(", ")
}

/// What was measured for TeaCache with a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rescaling {
    /// The polynomial by which a change is rescaled, the highest power first.
    pub coefficients: [f64; 5],
    /// The threshold of its authors.
    pub threshold: f32,
}

/// The step caches that are defined for a model, with what was measured for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Caches {
    /// Whether the first block can be computed alone.
    pub first_block: bool,
    /// How TeaCache decides.
    pub teacache: Option<Rescaling>,
    /// For each step, the quotient of the magnitude of what the blocks add and that of the step before.
    pub magcache: Option<&'static [f32]>,
    /// Whether the prediction can be extrapolated.
    pub taylorseer: bool,
}

impl Caches {
    /// None is defined.
    pub const NONE: Caches = Caches { first_block: false, teacache: None, magcache: None, taylorseer: false };

    /// Their kinds.
    pub fn kinds(&self) -> Vec<CacheKind> {
        CacheKind::ALL
            .into_iter()
            .filter(|kind| match kind {
                CacheKind::FirstBlock => self.first_block,
                CacheKind::TeaCache => self.teacache.is_some(),
                CacheKind::MagCache => self.magcache.is_some(),
                CacheKind::TaylorSeer => self.taylorseer,
            })
            .collect()
    }

    /// `given`, if it can work.
    ///
    /// # Errors
    /// [`Error::Option`] for a cache that is not defined, or a threshold that cannot work.
    pub(super) fn checked(&self, given: Option<CacheRequest>) -> Result<Option<Cache>> {
        let Some(CacheRequest { kind, threshold }) = given else { return Ok(None) };
        let kinds = self.kinds();
        if kinds.contains(&kind) {
            let cache = Cache { kind, threshold: threshold.unwrap_or_else(|| self.threshold(kind)) };
            return cache.check().map(|()| Some(cache));
        }
        let expected = match kinds.is_empty() {
            true => "none, since no step cache is defined for this model".to_owned(),
            false => format!("none, or one that is defined for this model: {}", names(&kinds)),
        };
        Err(Error::option("--cache", expected, kind.name()))
    }

    /// The threshold of a request that does not say: those of diffusers, and of the scripts of TeaCache's authors.
    fn threshold(&self, kind: CacheKind) -> f32 {
        match kind {
            CacheKind::FirstBlock => 0.05,
            CacheKind::TeaCache => self.teacache.unwrap_or_default().threshold,
            CacheKind::MagCache => 0.06,
            CacheKind::TaylorSeer => 5.0,
        }
    }
}

/// How many evaluations were not computed, of all passes: `computed` says for each pass which were.
pub fn skipped(computed: &[Vec<bool>]) -> usize {
    computed.iter().flatten().filter(|computed| !**computed).count()
}

/// Which evaluations were not computed, as pictures carry it: their numbers from 1 on, with `/` between them, and `;` between passes
/// that differ. `None` if all were.
pub fn skipped_in_words(computed: &[Vec<bool>]) -> Option<String> {
    if skipped(computed) == 0 {
        return None;
    }
    let mut passes = Vec::new();
    for pass in computed {
        let numbers = pass.iter().enumerate().filter(|(_, computed)| !**computed).map(|(i, _)| (i + 1).to_string());
        passes.push(numbers.collect::<Vec<String>>().join("/"));
    }
    passes.dedup();
    Some(passes.join("; "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_threshold() {
        let parsed = |text: &str| text.parse::<CacheRequest>();
        assert_eq!(parsed("teacache").unwrap(), CacheRequest::new(CacheKind::TeaCache));
        let given = CacheRequest { kind: CacheKind::FirstBlock, threshold: Some(0.08) };
        assert_eq!(parsed("first-block:0.08").unwrap(), given);
        for kind in CacheKind::ALL {
            let cache = Cache { kind, threshold: 3.0 };
            assert_eq!(parsed(&cache.to_string()).unwrap(), CacheRequest::from(cache));
        }
        let names = "expected none, or one of first-block, teacache, magcache, taylorseer";
        for unknown in ["", "tea", "TeaCache", "firstblock", "none:1", "teacache,first-block"] {
            assert_eq!(parsed(unknown).unwrap_err(), names);
        }
        assert_eq!(parsed("teacache:").unwrap_err(), "expected a number behind teacache:");
        assert_eq!(parsed("magcache:0.1:0.2").unwrap_err(), "expected a number behind magcache:");
    }

    #[test]
    fn thresholds_that_cannot_work() {
        let teacache = Some(Rescaling { threshold: 0.2, ..Rescaling::default() });
        let all = Caches { first_block: true, teacache, magcache: Some(&[1.0]), taylorseer: true };
        let checked = |caches: &Caches, text: &str| caches.checked(Some(text.parse().unwrap()));
        for text in ["teacache:0", "first-block:1e30", "magcache:0.5", "taylorseer:1", "taylorseer:1000"] {
            assert!(checked(&all, text).unwrap().is_some(), "{text}");
        }
        for text in
            ["teacache:-0.1", "first-block:nan", "magcache:inf", "taylorseer:0", "taylorseer:2.5", "taylorseer:1001"]
        {
            assert!(matches!(checked(&all, text), Err(Error::Option { option: "--cache", .. })), "{text}");
        }
        assert_eq!(checked(&all, "teacache").unwrap().unwrap().to_string(), "teacache:0.2");
        let error = checked(&Caches::NONE, "teacache").unwrap_err().to_string();
        assert_eq!(error, "--cache: expected none, since no step cache is defined for this model, found teacache");
        let some = Caches { first_block: false, ..all };
        let error = checked(&some, "first-block").unwrap_err().to_string();
        let expected = "none, or one that is defined for this model: teacache, magcache, taylorseer";
        assert_eq!(error, format!("--cache: expected {expected}, found first-block"));
    }

    #[test]
    fn what_was_skipped_in_words() {
        let passes = [vec![true, false, true, false], vec![true, false, false, true]];
        assert_eq!(skipped(&passes), 4);
        assert_eq!(skipped_in_words(&passes).unwrap(), "2/4; 2/3");
        assert_eq!(skipped_in_words(&[passes[0].clone(), passes[0].clone()]).unwrap(), "2/4");
        assert_eq!(skipped_in_words(&[vec![true; 3]]), None);
        assert_eq!(skipped_in_words(&[]), None);
    }
}
