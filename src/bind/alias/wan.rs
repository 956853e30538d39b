//! The Wan transformer: canonical names are those of its publisher, which GGUF files have, too; diffusers has others.

use super::names::Rows;
use super::{Alternative, Follows, Kind, Part, Sign};

/// The Wan transformer, as files know it.
pub static KIND: Kind = Kind {
    words: "Wan transformer",
    what: "Wan transformer",
    signs: &[
        Sign::named("blocks.0.cross_attn.norm_k.weight", "original names"),
        Sign::named("blocks.0.attn2.norm_k.weight", "diffusers names"),
        // Of files that lack their first block.
        Sign::named("blocks.1.cross_attn.norm_k.weight", "original names"),
        Sign::named("blocks.1.attn2.norm_k.weight", "diffusers names"),
    ],
    also: &[],
    // What diffusers made of norms that are not computed.
    beside: &[".norm_added_q."],
    highlights: &[
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "in_channels",
        "ffn_dim",
        "image_dim",
        "vace_in_channels",
        "add_ref_conv",
    ],
    follows: Follows::Same,
    label: "",
    reads: None,
};

/// See [`Aliases`](super::Aliases).
pub fn aliases(name: &str) -> Vec<Alternative> {
    if ["patch_embedding.weight", "vace_patch_embedding.weight", "ref_conv.weight"].contains(&name) {
        // A kernel over time, height and width, each of whose outputs is a row.
        return vec![vec![Part { name: name.into(), rows: Rows::Flat }]];
    }
    if let Some((part, leaf)) = name.strip_prefix(PROJECTION).and_then(|rest| rest.strip_prefix('.')?.split_once('.')) {
        let whole = format!("{PROJECTION}.{leaf}");
        let rows = part.parse().map_or(Rows::All, |at| Rows::Part { at, of: PROJECTED });
        return both(&whole).map(|name| vec![Part { name, rows }]).collect();
    }
    both(name).map(|name| vec![Part::all(name)]).collect()
}

/// What both makers call `name`.
fn both(name: &str) -> impl Iterator<Item = String> {
    std::iter::once(name.to_owned()).chain(in_diffusers(name))
}

/// One matrix in files, which makes so many parts of the time. Each part is a weight of its own.
const PROJECTION: &str = "time_projection.1";
const PROJECTED: u8 = 6;

/// What the layers of a block are called by the publisher and by diffusers.
const BLOCK: [(&str, &str); 12] = [
    ("self_attn", "attn1"),
    ("cross_attn.k_img", "attn2.add_k_proj"),
    ("cross_attn.v_img", "attn2.add_v_proj"),
    ("cross_attn.norm_k_img", "attn2.norm_added_k"),
    ("cross_attn", "attn2"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("norm3", "norm2"),
    ("modulation", "scale_shift_table"),
    ("norm2", "norm3"),
    ("before_proj", "proj_in"),
    ("after_proj", "proj_out"),
];

/// The same of what is within attention.
const ATTENTION: [(&str, &str); 4] = [("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")];

/// The same of what is before and after the blocks.
const ENDS: [(&str, &str); 12] = [
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("img_emb.proj.0", "condition_embedder.image_embedder.norm1"),
    ("img_emb.proj.1", "condition_embedder.image_embedder.ff.net.0.proj"),
    ("img_emb.proj.3", "condition_embedder.image_embedder.ff.net.2"),
    ("img_emb.proj.4", "condition_embedder.image_embedder.norm2"),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("head.head", "proj_out"),
    ("head.modulation", "scale_shift_table"),
];

/// Whether `name` is `part`, or something inside of it.
fn is_in(name: &str, part: &str) -> bool {
    name.strip_prefix(part).is_some_and(|more| more.is_empty() || more.starts_with('.'))
}

/// The name in diffusers' layout.
fn in_diffusers(name: &str) -> Option<String> {
    if let Some((ours, theirs)) = ENDS.into_iter().find(|(ours, _)| is_in(name, ours)) {
        return Some(format!("{theirs}{}", &name[ours.len()..]));
    }
    let (blocks, rest) =
        ["blocks.", "vace_blocks."].into_iter().find_map(|blocks| Some((blocks, name.strip_prefix(blocks)?)))?;
    let (block, rest) = rest.split_once('.')?;
    let (ours, theirs) = BLOCK.into_iter().find(|(ours, _)| is_in(rest, ours))?;
    let more = &rest[ours.len()..];
    let within = more.strip_prefix('.').and_then(|more| more.split_once('.'));
    if let Some((part, kind)) = within.filter(|_| ours.ends_with("_attn")) {
        let part = ATTENTION.into_iter().find(|(own, _)| *own == part).map_or(part, |(_, theirs)| theirs);
        return Some(format!("{blocks}{block}.{theirs}.{part}.{kind}"));
    }
    Some(format!("{blocks}{block}.{theirs}{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_makers() {
        for (ours, theirs) in [
            ("blocks.3.self_attn.q.weight", "blocks.3.attn1.to_q.weight"),
            ("blocks.3.self_attn.o.bias", "blocks.3.attn1.to_out.0.bias"),
            ("blocks.0.self_attn.norm_q.weight", "blocks.0.attn1.norm_q.weight"),
            ("blocks.0.cross_attn.norm_k.weight", "blocks.0.attn2.norm_k.weight"),
            ("blocks.0.cross_attn.k_img.weight", "blocks.0.attn2.add_k_proj.weight"),
            ("blocks.0.cross_attn.norm_k_img.weight", "blocks.0.attn2.norm_added_k.weight"),
            ("blocks.12.ffn.0.weight", "blocks.12.ffn.net.0.proj.weight"),
            ("blocks.12.ffn.2.bias", "blocks.12.ffn.net.2.bias"),
            ("blocks.1.norm3.weight", "blocks.1.norm2.weight"),
            ("blocks.1.modulation", "blocks.1.scale_shift_table"),
            ("vace_blocks.2.self_attn.q.weight", "vace_blocks.2.attn1.to_q.weight"),
            ("vace_blocks.0.before_proj.weight", "vace_blocks.0.proj_in.weight"),
            ("vace_blocks.7.after_proj.bias", "vace_blocks.7.proj_out.bias"),
            ("head.head.weight", "proj_out.weight"),
            ("head.modulation", "scale_shift_table"),
            ("time_projection.1.bias", "condition_embedder.time_proj.bias"),
            ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
            ("img_emb.proj.3.weight", "condition_embedder.image_embedder.ff.net.2.weight"),
        ] {
            assert_eq!(in_diffusers(ours).as_deref(), Some(theirs));
        }
        assert_eq!(in_diffusers("patch_embedding.bias"), None);
    }

    #[test]
    fn parts_of_the_time_are_one_matrix() {
        let rows = Rows::Part { at: 4, of: 6 };
        let of = |name: &str| vec![Part { name: name.into(), rows }];
        let both = [of("time_projection.1.bias"), of("condition_embedder.time_proj.bias")];
        assert_eq!(aliases("time_projection.1.4.bias"), both);
    }
}
