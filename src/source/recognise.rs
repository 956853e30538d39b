//! What weights belong to, by the names of their tensors: files are mislabelled, or carry no label at all.

use std::collections::BTreeSet;
use std::path::Path;

use super::packing;
use super::strangers::{self, STRANGERS, Stranger};
use crate::Error;
use crate::bind::alias::{KINDS, Kind, PASS_FOR, Sign};
use crate::index::Index;

/// The first sign of `kind` that a file with tensors of these names has, so that a shorter one does not find the same network
/// under another prefix.
fn sign_of<'a>(kind: &'static Kind, names: impl Iterator<Item = &'a str> + Clone) -> Option<&'static Sign> {
    kind.signs.iter().find(|sign| {
        names.clone().any(|name| sign.shown_in(name, |other| names.clone().any(|name| name == other)).is_some())
    })
}

/// `T5 encoder, llama.cpp names`
fn described(what: &str, naming: &str) -> String {
    if naming.is_empty() { what.to_owned() } else { format!("{what}, {naming}") }
}

/// A network in a file: what it is, and the stranger that it is.
struct Found {
    what: String,
    stranger: Option<&'static Stranger>,
}

/// What a file with tensors of these names holds: networks of a kind that pinhole runs, then others.
fn found<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<Found> {
    let shown = STRANGERS.iter().filter(|stranger| names.clone().any(|name| stranger.is_shown_by(name)));
    let mut strangers: Vec<&Stranger> = shown.collect();
    let mut all = Vec::new();
    let mut passed_for: Vec<&Kind> = Vec::new();
    for kind in KINDS {
        let Some(sign) = sign_of(kind, names.clone()) else { continue };
        if passed_for.contains(kind) {
            continue;
        }
        passed_for.extend(PASS_FOR.iter().filter(|(other, ..)| other == kind).map(|(_, like, _)| *like));
        let stranger = strangers.iter().find(|stranger| stranger.passes_for(kind)).copied();
        let what = stranger.map_or_else(|| described(kind.what, sign.naming), |stranger| stranger.what.to_owned());
        all.push(Found { what, stranger });
        // Signs of strangers that this kind has as well say nothing more.
        strangers.retain(|stranger| {
            !stranger.passes_for(kind) && !stranger.signs.iter().any(|sign| kind.also.contains(sign))
        });
    }
    for stranger in strangers.into_iter().filter(|stranger| stranger.alone) {
        all.push(Found { what: stranger.what.to_owned(), stranger: Some(stranger) });
    }
    all
}

/// What a file with tensors of these names holds: `T5 encoder, llama.cpp names`.
pub fn recognise<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    found(names).into_iter().map(|found| found.what).collect()
}

/// The error for what lies at `path`, with the tensors of `index`, if it holds something that pinhole does not run, or weights that
/// are packed so that nothing else is recognised.
pub fn not_run(path: &Path, index: &Index) -> Option<Error> {
    let strangers = found(index.names()).into_iter().filter_map(|found| found.stranger);
    let refused = strangers.into_iter().find_map(|stranger| Some((stranger.what, stranger.instead?)));
    match refused {
        Some((what, instead)) => Some(strangers::refusal(path, what, instead)),
        None => packing::refusal(path, index, ""),
    }
}

/// What to do with a file with the tensors of `index` that is no network of another kind, if it has one that passes for such.
pub(super) fn instead(index: &Index) -> Option<&'static str> {
    let passes = parts(index).iter().any(|part| PASS_FOR.iter().any(|(kind, ..)| *kind == part.kind));
    if passes { strangers::instead(index) } else { None }
}

/// A network in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recognised {
    pub(super) kind: &'static Kind,
    /// What stands before its names.
    pub(super) prefix: String,
}

/// The kinds of networks in `index`, each with what stands before its names.
pub fn kinds_in(index: &Index) -> impl Iterator<Item = (&'static Kind, String)> {
    parts(index).into_iter().map(|part| (part.kind, part.prefix))
}

/// The networks in `index`, with every prefix under which one is. Of one kind, they may have names of several makers.
pub(super) fn parts(index: &Index) -> Vec<Recognised> {
    let mut found: Vec<Recognised> = Vec::new();
    for kind in KINDS {
        let mut prefixes: BTreeSet<&str> = BTreeSet::new();
        for sign in kind.signs {
            let mut more: BTreeSet<&str> =
                index.names().filter_map(|name| sign.shown_in(name, |other| index.has(other))).collect();
            // A shorter sign finds the same network under a longer prefix.
            more.retain(|prefix| !prefixes.iter().any(|known| prefix.starts_with(known)));
            prefixes.append(&mut more);
        }
        found.extend(prefixes.into_iter().map(|prefix| Recognised { kind, prefix: prefix.to_owned() }));
    }
    for (kind, like, inner) in PASS_FOR {
        let of_kind: Vec<String> =
            found.iter().filter(|part| part.kind == *kind).map(|part| format!("{}{inner}", part.prefix)).collect();
        found.retain(|part| part.kind != *like || !of_kind.contains(&part.prefix));
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_may_hold_several_models() {
        let names = [
            "model.diffusion_model.double_blocks.0.img_attn.qkv.weight",
            "first_stage_model.decoder.up.0.block.0.conv1.weight",
        ];
        let expected = ["FLUX transformer, original names", "autoencoder, original names"];
        assert_eq!(recognise(names.into_iter()), expected);
    }

    #[test]
    fn one_file_may_have_names_of_two_makers() {
        let mut index = Index::default();
        let names = [
            "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
            "conditioner.embedders.1.model.token_embedding.weight",
            "conditioner.embedders.1.model.ln_final.weight",
        ];
        for name in names {
            let map = crate::index::Map::from_bytes(Path::new("f"), &[0; 4]).unwrap();
            let form =
                crate::index::Form::new(Path::new("f"), name, pinhole_quant::DType::F32.into(), vec![1]).unwrap();
            let tensor = crate::index::Entry::Tensor(form.place(&map, name, 0).unwrap());
            index.insert(name.into(), tensor).unwrap();
        }
        let prefixes: Vec<String> = parts(&index).into_iter().map(|part| part.prefix).collect();
        assert_eq!(prefixes, ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."]);
    }

    #[test]
    fn relatives_are_not_taken_for_what_they_are_like() {
        let chroma = ["double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight"];
        assert_eq!(recognise(chroma.into_iter()), ["Chroma transformer"]);
        let flux = ["single_transformer_blocks.0.norm.linear.weight", "transformer_blocks.0.ff_context.net.2.bias"];
        assert_eq!(recognise(flux.into_iter()), ["FLUX transformer, diffusers names"]);
        assert_eq!(recognise(flux[1..].iter().copied()), ["MMDiT transformer, diffusers names"]);
        assert_eq!(recognise(["blocks.0.cross_attn.k.weight"].into_iter()), ["Wan transformer"]);
    }

    #[test]
    fn a_controlnet_is_of_the_model_whose_blocks_it_has() {
        let of = |block: &'static str| {
            recognise(["controlnet_x_embedder.weight", "controlnet_blocks.0.weight", block].into_iter())
        };
        assert_eq!(of("transformer_blocks.0.img_mod.1.weight"), ["ControlNet of Qwen-Image"]);
        assert_eq!(of("transformer_blocks.0.ff_context.net.2.bias"), ["ControlNet of FLUX.1, diffusers names"]);
        assert_eq!(recognise(["transformer_blocks.0.img_mod.1.weight"].into_iter()), ["Qwen-Image transformer"]);
    }

    #[test]
    fn a_t5_encoder_is_no_language_model() {
        let names = ["enc.blk.0.attn_q.weight", "token_embd.weight"];
        assert_eq!(recognise(names.into_iter()), ["T5 encoder, llama.cpp names"]);
        assert_eq!(recognise(["token_embd.weight"].into_iter()), ["language model, llama.cpp names"]);
        assert!(recognise(["x"].into_iter()).is_empty());
    }
}
