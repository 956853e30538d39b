//! What weights belong to, by the names of their tensors: files are mislabelled, or carry no label at all.

use std::collections::BTreeSet;

use crate::bind::alias::{KINDS, Kind, Sign};
use crate::index::Index;

/// A network that pinhole does not run, only to be described.
struct Other {
    /// How names of its tensors go on. It may stand anywhere in a name.
    sign: &'static str,
    /// What it is.
    what: &'static str,
    /// In whose words the names are, if that has to be said.
    naming: &'static str,
}

const fn other(sign: &'static str, what: &'static str, naming: &'static str) -> Other {
    Other { sign, what, naming }
}

/// From the files that people exchange. Of each network the first sign that is found decides.
const OTHERS: &[Other] = &[
    other("joint_blocks.0.", "Stable Diffusion 3 transformer", "original names"),
    other("transformer_blocks.0.ff_context.", "MMDiT transformer", "diffusers names"),
    other("blocks.0.cross_attn.k.weight", "Wan transformer", ""),
    other("token_embd.weight", "language model", "llama.cpp names"),
    other("lora_A.", "LoRA", ""),
    other("lora_down.", "LoRA", ""),
];

/// The first sign of `kind` that a file with tensors of these names has, so that a shorter one does not find the same network
/// under another prefix.
fn sign_of<'a>(kind: &'static Kind, names: impl Iterator<Item = &'a str> + Clone) -> Option<&'static Sign> {
    kind.signs.iter().find(|sign| names.clone().any(|name| sign.prefix_in(name).is_some()))
}

/// `T5 encoder, llama.cpp names`
fn described(what: &str, naming: &str) -> String {
    if naming.is_empty() { what.to_owned() } else { format!("{what}, {naming}") }
}

/// What a file with tensors of these names holds: `T5 encoder, llama.cpp names`.
pub fn recognise<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let (mut found, mut known) = (Vec::new(), Vec::new());
    for kind in KINDS {
        if let Some(sign) = sign_of(kind, names.clone()) {
            found.push(described(kind.what, sign.naming));
            known.push(*kind);
        }
    }
    let mut others: Vec<&str> = Vec::new();
    for Other { sign, what, naming } in OTHERS {
        let explained =
            others.contains(what) || known.iter().any(|kind| kind.what == *what || kind.also.contains(sign));
        if !explained && names.clone().any(|name| name.contains(sign)) {
            found.push(described(what, naming));
            others.push(what);
        }
    }
    found
}

/// A network in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recognised {
    pub(super) kind: &'static Kind,
    /// What stands before its names.
    pub(super) prefix: String,
}

/// The networks in `index`, with every prefix under which one is.
pub(super) fn parts(index: &Index) -> Vec<Recognised> {
    let mut found: Vec<Recognised> = Vec::new();
    let names = index.names();
    for kind in KINDS {
        let Some(sign) = sign_of(kind, names.clone()) else { continue };
        let prefixes: BTreeSet<&str> = names.clone().filter_map(|name| sign.prefix_in(name)).collect();
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
}
