//! Requests that cannot work, odd ones that do, and those that are called off.

use std::cell::Cell;

use pinhole::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::Pipeline;
use pinhole::pipeline::{CacheRequest, Event, Phase, Request};

use crate::disk::{Disk, refused};

pub(crate) fn small() -> Request {
    Request {
        prompt: "a red circle".into(),
        width: Some(32),
        height: Some(48),
        steps: Some(2),
        max_sequence_length: Some(16),
        // One picture.
        ..Request::default()
    }
}

fn quiet(_: Event) -> pinhole::Result<()> {
    Ok(())
}

#[test]
fn options_that_cannot_work() {
    let pipeline = Disk::new().pipeline();
    let settings = |change: fn(&mut Request)| {
        let mut request = small();
        change(&mut request);
        pipeline.settings(&request)
    };
    let width = refused!(Option, settings(|r| r.width = Some(100)), "--width", "multiple of 16", "100");
    assert!(width.hint().unwrap().contains("96") || width.hint().unwrap().contains("112"));
    refused!(Option, settings(|r| r.width = Some(0)), "--width", "found 0");
    refused!(Option, settings(|r| r.height = Some(8)), "--height", "found 8");
    refused!(Option, settings(|r| r.height = Some(1 << 40)), "--height");
    refused!(Option, settings(|r| r.width = Some(usize::MAX)), "--width");
    refused!(Option, settings(|r| r.steps = Some(0)), "--steps", "1 to", "found 0");
    refused!(Option, settings(|r| r.steps = Some(usize::MAX)), "--steps");
    refused!(Option, settings(|r| r.batch = 0), "--batch", "found 0");
    refused!(Option, settings(|r| r.batch = usize::MAX), "--batch");
    refused!(Option, settings(|r| r.max_sequence_length = Some(0)), "--max-sequence-length", "1 to 512", "found 0");
    refused!(Option, settings(|r| r.max_sequence_length = Some(513)), "--max-sequence-length", "1 to 512", "found 513");
    refused!(Option, settings(|r| r.cfg_scale = Some(f32::NAN)), "--cfg-scale", "NaN");
    refused!(Option, settings(|r| r.cfg_scale = Some(f32::INFINITY)), "--cfg-scale", "inf");
    refused!(Option, settings(|r| r.cfg_scale = Some(-1.0)), "--cfg-scale", "-1");
    refused!(Option, settings(|r| r.guidance = Some(f32::NAN)), "--guidance", "NaN");
    let cache = |text: &str| text.parse::<CacheRequest>().ok();
    for text in ["teacache:-1", "first-block:inf", "magcache:NaN", "taylorseer:0", "taylorseer:1.5"] {
        let request = Request { cache: cache(text), ..small() };
        refused!(Option, pipeline.settings(&request), "--cache", text.split_once(':').unwrap().1);
    }
    assert!(cache("tea").is_none() && cache("teacache:").is_none() && cache("teacache:1,magcache").is_none());
    let long = "--prompt: expected at most 65536 bytes of text, found 32000000 bytes";
    refused!(Option, settings(|r| r.prompt = "word ".repeat(6_400_000)), long);
    refused!(Option, settings(|r| r.negative_prompt = Some("a".repeat(65_537))), "--negative-prompt", "65537 bytes");
    assert!(settings(|r| r.prompt = "a".repeat(65_536)).is_ok());
}

#[test]
fn noise_of_a_wrong_length() {
    let mut pipeline = Disk::new().pipeline();
    // 32 x 48 pixels are 4 x 6 latents of 16 channels.
    for length in [0, 383, 385, 768] {
        let request = Request { noise: Some(vec![0.0; length]), ..small() };
        let generated = pipeline.generate_watched(&request, &mut quiet);
        refused!(Option, generated, "--noise", "384", &format!("found {length}"));
    }
    let request = Request { noise: Some(vec![f32::NAN; 384]), ..small() };
    // Said of the option, and not of the weights.
    refused!(Option, pipeline.generate_watched(&request, &mut quiet), "--noise", "finite", "NaN");
    let request = Request { noise: Some(vec![0.0; 384]), ..small() };
    assert_eq!(pipeline.generate_watched(&request, &mut quiet).unwrap().images.len(), 1);
}

#[test]
fn prompts_of_any_kind() {
    let mut pipeline = Disk::new().pipeline();
    for prompt in ["", " ", "\0", "\u{1F680}\u{FE0F}\u{200D}", "<|endoftext|>", "</s>", "\r\n\t", "\u{202E}abc", "%s%n"]
    {
        let request = Request { prompt: prompt.into(), ..small() };
        let mut warnings = Vec::new();
        let generated = pipeline.generate_watched(&request, &mut |event: Event| {
            warnings.extend(match event {
                Event::Warning(text) => Some(text),
                _ => None,
            });
            Ok(())
        });
        let generated = generated.unwrap();
        assert_eq!((generated.images[0].width(), generated.images[0].height()), (32, 48), "{prompt:?}");
        assert_eq!(warnings, [""; 0], "{prompt:?}");
    }
}

#[test]
fn a_prompt_of_ten_thousand_words_is_cut_with_a_warning() {
    let mut pipeline = Disk::new().pipeline();
    let request = Request { prompt: "a yellow star ".repeat(3334), ..small() };
    let mut warnings = Vec::new();
    let generated = pipeline.generate_watched(&request, &mut |event: Event| {
        if let Event::Warning(text) = event {
            warnings.push(text);
        }
        Ok(())
    });
    assert_eq!(generated.unwrap().images.len(), 1);
    warnings.iter().for_each(|warning| println!("warning: {warning}"));
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("CLIP reads 77 tokens") && warnings[1].contains("T5 reads 16 tokens"), "{warnings:?}");
    assert!(warnings.iter().all(|warning| warning.len() < 200), "{warnings:?}");
}

#[test]
fn an_observer_calls_a_request_off_at_any_event() {
    let mut pipeline = Disk::new().pipeline();
    // Every request goes through the text encoders.
    pipeline.set_remembered_bytes(0);
    // How many say that bytes were moved depends on how far the copying thread is; all others come every time.
    let counts = |event: &Event| !matches!(event, Event::Moved { .. });
    let count = Cell::new(0);
    let whole = pipeline.generate_watched(&small(), &mut |event: Event| {
        count.set(count.get() + usize::from(counts(&event)));
        Ok(())
    });
    let whole = whole.unwrap();
    assert!(count.get() > 20);
    for last in (0..count.get()).step_by(7) {
        let mut left = last;
        let cancelled = pipeline.generate_watched(&small(), &mut |event: Event| {
            match (counts(&event), left) {
                (true, 0) => return Err(Error::Cancelled),
                (true, _) => left -= 1,
                (false, _) => {}
            }
            Ok(())
        });
        refused!(Cancelled, cancelled, "cancelled");
    }
    // Nothing of the cancelled ones is left.
    let again = pipeline.generate_watched(&small(), &mut quiet).unwrap();
    assert_eq!(again.images[0].rgb(), whole.images[0].rgb());
    assert_eq!((again.memory.total, again.memory.peak), (0, whole.memory.peak));
}

#[test]
fn a_raised_flag_calls_a_request_off_in_every_phase() {
    for stop in [Phase::Encode, Phase::Denoise, Phase::Decode] {
        let flag = CancelFlag::new();
        let model = Disk::new().open().unwrap();
        let mut pipeline = Pipeline::with_threads(model, Device::cpu().unwrap(), 1, flag.clone()).unwrap();
        let reached = Cell::new(None);
        let generated = pipeline.generate_watched(&small(), &mut |event: Event| {
            if let Event::Begin { phase, .. } = event {
                reached.set(Some(phase));
                if phase == stop {
                    flag.raise();
                }
            }
            Ok(())
        });
        refused!(Cancelled, generated, "cancelled");
        assert_eq!(reached.get(), Some(stop));
    }
}

#[test]
fn seeds_go_round() {
    let mut pipeline = Disk::new().pipeline();
    let request = Request { seed: u64::MAX, batch: 2, ..small() };
    let both = pipeline.generate_watched(&request, &mut quiet).unwrap();
    let second = pipeline.generate_watched(&Request { seed: 0, batch: 1, ..small() }, &mut quiet).unwrap();
    assert_eq!(both.images[1].rgb(), second.images[0].rgb());
}
