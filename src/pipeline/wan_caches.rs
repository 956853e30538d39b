//! The step caches of Wan.

use std::path::Path;

use super::step_cache::{CacheKind, Caches, Rescaling};
use crate::models::step_cache::{Cached, DecidedBy};
use crate::models::wan::{Config, Wan};
use crate::source::Source;
use crate::source::slot::TRANSFORMER;

/// What TeaCache's script for Wan 2.1 has, without `--use_ret_steps`: what the change of what becomes of the time is rescaled by, and
/// the largest of the thresholds that are recommended.
const T2V_1_3B: Rescaling = Rescaling {
    coefficients: [2.39676752e+03, -1.31110545e+03, 2.01331979e+02, -8.29855975e+00, 1.37887774e-01],
    threshold: 0.08,
};
const T2V_14B: Rescaling = Rescaling {
    coefficients: [-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404],
    threshold: 0.2,
};
const I2V_480P: Rescaling = Rescaling {
    coefficients: [-3.02331670e+02, 2.23948934e+02, -5.25463970e+01, 5.87348440e+00, -2.01973289e-01],
    threshold: 0.26,
};
const I2V_720P: Rescaling =
    Rescaling { coefficients: [-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683], threshold: 0.3 };

/// What MagCache's authors measured, in as many steps as are published, of the pass with the prompt: for each step, the quotient of the
/// magnitude of what the blocks add and that of the step before.
const T2V_1_3B_MAGNITUDES: [f32; 50] = [
    1.0, 1.0124, 1.00166, 0.99791, 0.99682, 0.99634, 0.99567, 0.99416, 0.99578, 0.9957, 0.99511, 0.99535, 0.99552,
    0.99541, 0.9954, 0.99489, 0.99518, 0.99484, 0.99481, 0.99415, 0.99419, 0.99396, 0.99388, 0.99349, 0.99309, 0.9927,
    0.99228, 0.99171, 0.99137, 0.99068, 0.99005, 0.98944, 0.98849, 0.98758, 0.98644, 0.98504, 0.9836, 0.98202, 0.97977,
    0.97717, 0.9741, 0.97003, 0.96538, 0.9593, 0.95086, 0.94013, 0.92402, 0.90241, 0.86821, 0.81838,
];
const T2V_14B_MAGNITUDES: [f32; 50] = [
    1.0, 1.02504, 1.00025, 0.9985, 0.99779, 0.9966, 0.99482, 0.99467, 0.99664, 0.99434, 0.99533, 0.99468, 0.99438,
    0.99516, 0.99384, 0.99404, 0.99517, 0.99409, 0.99428, 0.99347, 0.99418, 0.99271, 0.99313, 0.99215, 0.99218,
    0.99216, 0.99163, 0.99138, 0.98982, 0.98996, 0.9887, 0.98772, 0.98767, 0.98573, 0.98501, 0.9838, 0.98177, 0.98037,
    0.97678, 0.97546, 0.97184, 0.96711, 0.96349, 0.95629, 0.94926, 0.93964, 0.92511, 0.90693, 0.8796, 0.86111,
];
const I2V_480P_MAGNITUDES: [f32; 40] = [
    1.0, 0.98783, 0.97559, 0.98311, 0.98202, 0.9888, 0.98762, 0.98957, 0.99052, 0.99383, 0.98857, 0.99065, 0.98845,
    0.99057, 0.98957, 0.98601, 0.98823, 0.98756, 0.98808, 0.98721, 0.98571, 0.98543, 0.98157, 0.98411, 0.97952,
    0.98149, 0.9774, 0.97825, 0.97355, 0.97085, 0.97056, 0.96588, 0.96113, 0.9567, 0.94961, 0.93973, 0.93217, 0.91878,
    0.90955, 0.92617,
];
const I2V_720P_MAGNITUDES: [f32; 40] = [
    1.0, 0.99428, 0.98588, 0.98273, 0.99018, 0.98911, 0.98646, 0.99454, 0.9891, 0.99124, 0.99102, 0.99215, 0.99515,
    0.99576, 0.99068, 0.99097, 0.99166, 0.99041, 0.99201, 0.99101, 0.98599, 0.98845, 0.98848, 0.98862, 0.98718,
    0.98497, 0.98264, 0.98389, 0.97938, 0.97535, 0.97498, 0.973, 0.96827, 0.96261, 0.95335, 0.94649, 0.93397, 0.91636,
    0.89088, 0.8679,
];
const TI2V_5B_MAGNITUDES: [f32; 50] = [
    1.0, 0.99505, 0.99441, 0.99558, 0.99499, 0.99534, 0.99468, 0.99463, 0.9946, 0.99408, 0.9945, 0.99409, 0.99403,
    0.99382, 0.99349, 0.99377, 0.9933, 0.99303, 0.99217, 0.992, 0.99201, 0.99133, 0.99112, 0.99155, 0.98958, 0.98959,
    0.98838, 0.98826, 0.9883, 0.98711, 0.98562, 0.98511, 0.98414, 0.98284, 0.98104, 0.97981, 0.97849, 0.97557, 0.97398,
    0.97171, 0.96917, 0.96511, 0.96263, 0.95839, 0.95483, 0.94942, 0.9468, 0.94583, 0.94843, 0.96949,
];

/// The widest hidden states of a small model; those of 1.3B have 1536.
const SMALL: usize = 2048;

/// The step caches of the model of `source`. Nothing was published for models that end with a given frame, or follow a film. Two experts are two networks:
/// nothing that counts all steps holds for the second.
pub(super) fn caches(source: &Source, config: &Config, is_alone: bool, expands: bool) -> Caches {
    if config.guide_channels() > 0 {
        return Caches::NONE;
    }
    let (from_text, follows) = (config.channels_beside() == 0, config.follows_film());
    let (teacache, magcache): (Option<Rescaling>, Option<&'static [f32]>) = match () {
        () if !is_alone || follows || config.pos_embed_seq_len.is_some() => (None, None),
        () if expands => (None, Some(&TI2V_5B_MAGNITUDES)),
        () if from_text && config.hidden() <= SMALL => (Some(T2V_1_3B), Some(&T2V_1_3B_MAGNITUDES)),
        () if from_text => (Some(T2V_14B), Some(&T2V_14B_MAGNITUDES)),
        () if is_for_720p(source) => (Some(I2V_720P), Some(&I2V_720P_MAGNITUDES)),
        () => (Some(I2V_480P), Some(&I2V_480P_MAGNITUDES)),
    };
    Caches { first_block: config.num_layers > 1, teacache, magcache, taylorseer: is_alone }
}

/// Whether a name says that a model for pictures is that for 720p: nothing in its files does.
fn is_for_720p(source: &Source) -> bool {
    let says =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().to_lowercase().contains("720p"));
    says(&source.path) || source.component(&TRANSFORMER).is_ok_and(|component| says(&component.origin))
}

/// The transformer with each of the caches that it has the blocks for.
pub(super) fn cached(transformer: &Wan) -> Vec<(CacheKind, Cached)> {
    let by = [
        (CacheKind::FirstBlock, DecidedBy::FirstBlock),
        (CacheKind::TeaCache, DecidedBy::Time),
        (CacheKind::MagCache, DecidedBy::Host),
    ];
    by.into_iter().filter_map(|(kind, by)| Some((kind, transformer.cached(by)?))).collect()
}
