//! Any text as a configuration, of the kind that the first byte says: an error or settings, never a panic. A schedule is worked
//! out as well, and a model is opened with generation defaults.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use pinhole::models::{autoencoder_kl, clip, flux, t5, unet};
use pinhole::pipeline::{Request, settings};
use pinhole::sample::{Sampler, Sampling, Scheduler};
use pinhole::source::Text;
use pinhole::text::TokenizerConfig;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, text)) = bytes.split_first() else { return };
    let (text, origin) = (String::from_utf8_lossy(text), Path::new("fuzz.json"));
    match kind % 8 {
        0 => drop(flux::Config::from_json(&text, origin)),
        1 => drop(clip::Config::from_json(&text, origin)),
        2 => drop(t5::Config::from_json(&text, origin)),
        3 => drop(unet::Config::from_json(&text, origin)),
        4 => drop(autoencoder_kl::Config::from_json(&text, origin)),
        5 => drop(TokenizerConfig::from_json(&text, origin)),
        6 => schedule(&text, origin),
        _ => defaults(&text, origin),
    }
});

fn schedule(text: &str, origin: &Path) {
    let Ok(scheduler) = Scheduler::from_json(text, origin) else { return };
    for sampler in Sampler::ALL {
        let asked = Sampling { sampler: Some(*sampler), ..Sampling::default() };
        let Ok(chosen) = scheduler.choose(&asked) else { continue };
        for steps in [1, 7, 1000] {
            let _ = scheduler.levels(&chosen, steps, 64);
        }
    }
}

fn defaults(text: &str, origin: &Path) {
    let Ok(mut source) = pinhole::builtin::mini() else { return };
    source.defaults = Some(Text { text: text.to_owned(), origin: origin.to_owned() });
    if let Ok(model) = pinhole::pipeline::open(&source) {
        let _ = settings(&model, &Request::new("a red circle"));
    }
}
