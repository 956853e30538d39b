//! What weights belong to, by the names of their tensors: files are mislabelled, or carry no label at all.

use std::collections::BTreeSet;

use super::ComponentKind;
use crate::index::Index;

use ComponentKind::{TextEncoder, TextEncoder2, Transformer, Vae};

/// A tensor that every model of some kind has.
struct Sign {
    /// Its name, or how all names of such tensors go on: what stands before it in a file is a prefix.
    name: &'static str,
    /// The kind of model, and in whose words the names are.
    what: &'static str,
    /// The part of a FLUX model that it is.
    kind: Option<ComponentKind>,
}

const fn part(name: &'static str, what: &'static str, kind: ComponentKind) -> Sign {
    Sign { name, what, kind: Some(kind) }
}

const fn other(name: &'static str, what: &'static str) -> Sign {
    Sign { name, what, kind: None }
}

/// From the files that people exchange. Of each kind of model the first sign that is found decides.
const SIGNS: &[Sign] = &[
    part("double_blocks.0.img_attn.qkv.weight", "FLUX transformer, original names", Transformer),
    part("single_transformer_blocks.0.norm.linear.weight", "FLUX transformer, diffusers names", Transformer),
    other("joint_blocks.0.", "Stable Diffusion 3 transformer, original names"),
    other("transformer_blocks.0.ff_context.", "MMDiT transformer, diffusers names"),
    other("input_blocks.0.0.weight", "Stable Diffusion UNet, original names"),
    other("mid_block.attentions.0.transformer_blocks.", "Stable Diffusion UNet, diffusers names"),
    other("blocks.0.cross_attn.k.weight", "Wan transformer"),
    part("text_model.embeddings.token_embedding.weight", "CLIP text encoder", TextEncoder),
    // transformers 5 leaves out the first part of the names.
    part("embeddings.token_embedding.weight", "CLIP text encoder", TextEncoder),
    part("encoder.block.0.layer.0.SelfAttention.q.weight", "T5 encoder, transformers names", TextEncoder2),
    part("enc.blk.0.attn_q.weight", "T5 encoder, llama.cpp names", TextEncoder2),
    other("token_embd.weight", "language model, llama.cpp names"),
    part("decoder.up.0.block.0.", "autoencoder, original names", Vae),
    part("decoder.up_blocks.0.resnets.0.", "autoencoder, diffusers names", Vae),
    other("lora_A.", "LoRA"),
    other("lora_down.", "LoRA"),
];

impl Sign {
    /// What stands before the sign in `name`, where it is a name of this kind.
    fn prefix_in<'a>(&self, name: &'a str) -> Option<&'a str> {
        let prefix = &name[..name.find(self.name)?];
        // Files of other models are only described: there, a sign may stand anywhere.
        (prefix.is_empty() || prefix.ends_with('.') || self.kind.is_none()).then_some(prefix)
    }

    /// Whether models of `kind` have such tensors too: FLUX has the blocks of other MMDiTs, and llama.cpp's T5 a table of
    /// tokens as language models do.
    fn is_of(&self, kind: ComponentKind) -> bool {
        match kind {
            Transformer => self.name.starts_with("transformer_blocks"),
            TextEncoder2 => self.name.starts_with("token_embd"),
            TextEncoder | Vae => false,
        }
    }

    /// What it is without whose names it has.
    fn model(&self) -> &'static str {
        self.what.split(',').next().unwrap_or(self.what)
    }
}

/// What a file with tensors of these names holds, in the order of the table: `FLUX transformer, original names`.
pub fn recognise<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<&'static str> {
    let mut found: Vec<&Sign> = Vec::new();
    for sign in SIGNS {
        let known =
            found.iter().any(|known| known.model() == sign.model() || known.kind.is_some_and(|kind| sign.is_of(kind)));
        if !known && names.clone().any(|name| sign.prefix_in(name).is_some()) {
            found.push(sign);
        }
    }
    found.into_iter().map(|sign| sign.what).collect()
}

/// A part of a model in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recognised {
    pub(super) kind: ComponentKind,
    /// What stands before its names.
    pub(super) prefix: String,
}

/// The parts of a FLUX model in `index`, with every prefix under which one is.
pub(super) fn parts(index: &Index) -> Vec<Recognised> {
    let mut found: Vec<Recognised> = Vec::new();
    for kind in ComponentKind::ALL {
        let signs = || SIGNS.iter().filter(|sign| sign.kind == Some(kind));
        let prefixes = |sign: &Sign| index.iter().filter_map(|(name, _)| sign.prefix_in(name)).collect::<BTreeSet<_>>();
        // The first sign that a file has, so that a shorter one does not find the same part under another prefix.
        let prefixes = signs().map(prefixes).find(|prefixes| !prefixes.is_empty()).unwrap_or_default();
        found.extend(prefixes.into_iter().map(|prefix| Recognised { kind, prefix: prefix.to_owned() }));
    }
    found
}

#[cfg(test)]
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
    fn a_t5_encoder_is_no_language_model() {
        let names = ["enc.blk.0.attn_q.weight", "token_embd.weight"];
        assert_eq!(recognise(names.into_iter()), ["T5 encoder, llama.cpp names"]);
        assert_eq!(recognise(["token_embd.weight"].into_iter()), ["language model, llama.cpp names"]);
        assert!(recognise(["x"].into_iter()).is_empty());
    }

    #[test]
    fn a_sign_stands_behind_a_dot() {
        let sign = part("encoder.x", "", Vae);
        assert_eq!(sign.prefix_in("a.b.encoder.x"), Some("a.b."));
        assert_eq!(sign.prefix_in("encoder.x"), Some(""));
        assert_eq!(sign.prefix_in("text_encoder.x"), None);
        assert_eq!(sign.prefix_in("a.encoder.x.y"), Some("a."));
    }
}
