//! CLIP's text encoder: canonical names are those of transformers before version 5.

use super::{Alternative, Follows, Kind, Part, Reads, Rows, Sign};
use crate::index::Index;

/// The tensor by which OpenCLIP's names are known.
const OPEN_CLIP: &str = "ln_final.weight";

/// CLIP's text encoder, as files know it.
pub static KIND: Kind = Kind {
    words: "CLIP text encoder",
    what: "CLIP text encoder",
    signs: &[
        Sign::new("text_model.embeddings.token_embedding.weight"),
        // transformers 5 leaves out the first part of the names.
        Sign::new("embeddings.token_embedding.weight"),
        // Its vision tower has no such norm.
        Sign::named(OPEN_CLIP, "OpenCLIP names"),
    ],
    also: &[],
    beside: &[
        "vision_model.",
        "visual_projection.",
        "logit_scale",
        "text_projection",
        "text_model.text_projection",
        "text_model.embeddings.position_ids",
        "embeddings.position_ids",
    ],
    highlights: &[
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "hidden_act",
        "max_position_embeddings",
        "vocab_size",
    ],
    // CLIP's pooled vector is sensitive, and CLIP small.
    follows: Follows::Half,
    label: "",
    reads: Some(Reads::Clip),
};

/// Whether the text encoder with `prefix` in `index` has the names, and so is of the kind, that OpenCLIP gives.
pub fn is_open_clip(index: &Index, prefix: &str) -> bool {
    index.has(&format!("{prefix}{OPEN_CLIP}"))
}

/// See [`Aliases`](super::Aliases). Files written by transformers 5 leave out the first part of the name. The first files of Stable
/// Diffusion 2 and XL have OpenCLIP's names, and stable-diffusion.cpp's its fused projections under those of transformers.
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let short = canonical.strip_prefix("text_model.").unwrap_or(canonical);
    let mut found: Vec<Alternative> = [canonical, short].map(|name| vec![Part::all(name)]).into();
    let others = match short {
        "embeddings.token_embedding.weight" => vec![Part::all("token_embedding.weight")],
        "embeddings.position_embedding.weight" => vec![Part::all("positional_embedding")],
        "final_layer_norm.weight" => vec![Part::all(OPEN_CLIP)],
        "final_layer_norm.bias" => vec![Part::all("ln_final.bias")],
        "text_projection.weight" => ["text_projection", "text_model.text_projection"].map(transposed).into(),
        layer => layer.strip_prefix("encoder.layers.").map_or(Vec::new(), resblock),
    };
    found.extend(others.into_iter().map(|part| vec![part]));
    found
}

/// OpenCLIP multiplies with it from the other side.
fn transposed(name: &str) -> Part {
    Part { name: name.into(), rows: Rows::Columns }
}

/// Where else the weight `3.mlp.fc1.bias` of a layer may be.
fn resblock(path: &str) -> Vec<Part> {
    let [number, block, layer, leaf] = match path.split('.').collect::<Vec<_>>()[..] {
        [number, block, layer, leaf] => [number, block, layer, leaf],
        [number, norm, leaf] => [number, norm, "", leaf],
        _ => return Vec::new(),
    };
    let inside = format!("transformer.resblocks.{number}");
    let third = |at| {
        let rows = Rows::Part { at, of: 3 };
        let one = Part { name: format!("{inside}.attn.in_proj_{leaf}"), rows };
        vec![one, Part { name: format!("text_model.encoder.layers.{number}.self_attn.in_proj.{leaf}"), rows }]
    };
    let name = match (block, layer) {
        ("self_attn", "q_proj") => return third(0),
        ("self_attn", "k_proj") => return third(1),
        ("self_attn", "v_proj") => return third(2),
        ("self_attn", "out_proj") => "attn.out_proj",
        ("mlp", "fc1") => "mlp.c_fc",
        ("mlp", "fc2") => "mlp.c_proj",
        ("layer_norm1", _) => "ln_1",
        ("layer_norm2", _) => "ln_2",
        _ => return Vec::new(),
    };
    vec![Part::all(format!("{inside}.{name}.{leaf}"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shorter_or_longer() {
        let expected = ["text_model.final_layer_norm.bias", "final_layer_norm.bias", "ln_final.bias"];
        assert_eq!(aliases("text_model.final_layer_norm.bias"), expected.map(|name| vec![Part::all(name)]));
    }

    #[test]
    fn openclip_fuses_projections() {
        let third = |name: &str| vec![Part { name: name.into(), rows: Rows::Part { at: 1, of: 3 } }];
        let found = aliases("text_model.encoder.layers.11.self_attn.k_proj.bias");
        assert_eq!(found[2], third("transformer.resblocks.11.attn.in_proj_bias"));
        assert_eq!(found[3], third("text_model.encoder.layers.11.self_attn.in_proj.bias"));
        let found = aliases("text_model.encoder.layers.0.layer_norm2.weight");
        assert_eq!(found[2], [Part::all("transformer.resblocks.0.ln_2.weight")]);
        let found = aliases("text_projection.weight");
        assert_eq!(found[2], [transposed("text_projection")]);
    }
}
