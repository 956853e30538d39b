//! Requests that are computed in parts draw what they draw all at once, and take what was planned.

use std::collections::BTreeSet;

use super::drawing::bits;
pub(crate) use super::drawing::kept_to_plan;
use pinhole::error::Error;
use pinhole::pipeline::{Event, Generated, MemoryOptions, Pipeline, Request};
use pinhole::plan::{Component, Limits, Offload, Phase, Variant, Way, budget};
use pinhole_quant::metrics;

fn denoiser(components: &[Component]) -> &Component {
    components.iter().find(|component| component.phase == Phase::Denoise).unwrap()
}

/// The request without guidance, for a single picture.
fn alone(request: &Request) -> Request {
    Request { batch: 1, negative_prompt: None, cfg_scale: Some(1.0), image_cfg_scale: None, ..request.clone() }
}

/// Draws `request` all at once, and then in parts: as the same numbers, with what was planned for them, and, unless prompts have different
/// lengths, in no more than one picture without guidance takes.
pub(crate) fn draws_the_same(pipeline: &mut Pipeline, request: &Request, what: &str) {
    let draw = |pipeline: &mut Pipeline| pipeline.generate_watched(request, &mut |_: Event| Ok(())).unwrap();
    pipeline.set_memory(MemoryOptions { offload: Offload::None, ..MemoryOptions::default() });
    let whole = draw(pipeline);
    kept_to_plan(&whole);
    let settings = pipeline.settings(request).unwrap();
    let components = pipeline.measure(&settings).unwrap();
    let same = |found: &Generated, pictures: usize| {
        assert_eq!(found.computed, whole.computed, "{what}, {pictures} at a time: other steps");
        assert!(bits(&whole) == bits(found), "{what}, {pictures} at a time: other latents");
        assert!(whole.images == found.images, "{what}, {pictures} at a time: other pictures");
    };
    let mut counts = BTreeSet::new();
    let variants = denoiser(&components).variants.clone();
    for (i, variant) in variants.iter().enumerate() {
        let (is_whole, pictures) = (variant.way == Way::Whole, variant.batch.pictures_at_once());
        // All ways of computing tokens would take long: the leanest stands for them.
        if !is_whole && i + 1 < variants.len() {
            continue;
        }
        let components: Vec<Component> = components
            .iter()
            .map(|component| match component.phase {
                // Of two experts each has variants of its own, in the same order.
                Phase::Denoise => Component { variants: vec![component.variants[i].clone()], ..component.clone() },
                _ => component.clone(),
            })
            .collect();
        let offload = if variant.batch.at_once == Some(request.batch) { Offload::Model } else { Offload::Sequential };
        let plan = budget::plan(&components, offload, &Limits::default()).unwrap();
        let generated = pipeline.generate_as(plan, request, &mut |_: Event| Ok(())).unwrap();
        kept_to_plan(&generated);
        match is_whole {
            true => same(&generated, pictures),
            // Some tokens at a time are rounded in another way, unless a cache decides otherwise.
            false if generated.computed == whole.computed => {
                let nmse = metrics::nmse(&whole.latents, &generated.latents).unwrap();
                assert!(nmse <= 1e-6, "{what}, {}: nmse {nmse:e}", variant.way);
            }
            false => {}
        }
        counts.insert(generated.plan.components.iter().map(|component| component.batch.parts_each_step()).max());
    }
    assert!(counts.len() > 1, "{what}: never in parts");
    let single = pipeline.measure(&pipeline.settings(&alone(request)).unwrap()).unwrap();
    let least = |component: &Component| component.variants.iter().map(Variant::bytes).min();
    // A single condition is there twice, to be rounded as several are.
    let alike = settings.text_tokens.windows(2).all(|tokens| tokens[0] == tokens[1]);
    if alike && pipeline.evaluations(&settings).unwrap() > 1 {
        assert_eq!(least(denoiser(&components)), least(denoiser(&single)), "{what}");
    }
    pipeline.set_memory(MemoryOptions { vram: Some(1), ..MemoryOptions::default() });
    let needed = match pipeline.plan(request).unwrap_err() {
        Error::OverBudget { needed, .. } => needed,
        other => panic!("{other}"),
    };
    pipeline.set_memory(MemoryOptions { vram: Some(needed), ..MemoryOptions::default() });
    let leanest = draw(pipeline);
    kept_to_plan(&leanest);
    assert!(leanest.memory.peak <= needed);
}
