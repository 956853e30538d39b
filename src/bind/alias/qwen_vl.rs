//! The vision towers of Qwen2.5-VL and Qwen3-VL: canonical names are those of transformers; llama.cpp has others, in a file of its own
//! (`mmproj`).

use super::{Alternative, Follows, Kind, Part, Sign};

/// The vision tower, as files know it.
pub static KIND: Kind = Kind {
    words: "Qwen2.5-VL vision tower",
    what: "Qwen2.5-VL vision tower",
    signs: &[
        Sign::named("visual.merger.ln_q.weight", "transformers names"),
        Sign::named("v.patch_embd.weight.1", "llama.cpp names"),
    ],
    also: &[],
    // What files have that hold the language model as well.
    beside: &[
        "model.layers.",
        "model.embed_tokens.",
        "model.norm.",
        "language_model.",
        "model.language_model.",
        "lm_head.",
        "layers.",
        "embed_tokens.",
        "norm.",
    ],
    highlights: &["depth", "hidden_size", "num_heads", "patch_size", "window_size", "out_hidden_size"],
    follows: Follows::Text,
    label: "",
    reads: None,
};

/// That of Qwen3-VL. In llama.cpp's layout, it has the other's patches.
pub static QWEN3: Kind = Kind {
    words: "Qwen3-VL vision tower",
    what: "Qwen3-VL vision tower",
    signs: &[
        Sign::named("visual.deepstack_merger_list.0.norm.weight", "transformers names"),
        Sign::named("v.deepstack.", "llama.cpp names"),
    ],
    also: &["v.patch_embd.weight.1"],
    highlights: &["depth", "hidden_size", "num_heads", "patch_size", "deepstack_visual_indexes", "out_hidden_size"],
    ..KIND
};

/// Behind which blocks something is taken for the language model, as the names of llama.cpp's layout say it: what comes of `has`, which
/// says whether the file has a tensor.
pub fn deepstack(has: impl Fn(&str) -> bool) -> Option<Vec<usize>> {
    let found: Vec<usize> = (0..MOST_BLOCKS).filter(|i| has(&format!("v.deepstack.{i}.norm.weight"))).collect();
    Some(found).filter(|found| !found.is_empty())
}

/// More than any tower has.
const MOST_BLOCKS: usize = 1 << 10;

/// See [`Aliases`](super::Aliases). Those of Qwen3-VL, where something is taken behind the blocks `deepstack`.
pub fn aliases_of_qwen3(deepstack: Vec<usize>) -> impl Fn(&str) -> Vec<Alternative> + Clone + Send + Sync + 'static {
    move |canonical: &str| {
        let own = canonical.strip_prefix("visual.").unwrap_or(canonical);
        if let Some(frame) = frame(canonical, own) {
            return frame;
        }
        let theirs = qwen3_in_llama(own, &deepstack).map(|name| vec![Part::all(name)]);
        std::iter::once(vec![Part::all(canonical)]).chain(theirs).collect()
    }
}

/// The name of `own` in llama.cpp's layout.
fn qwen3_in_llama(own: &str, deepstack: &[usize]) -> Option<String> {
    if own == "patch_embed.proj.bias" {
        return Some("v.patch_embd.bias".into());
    }
    let (path, kind) = own.rsplit_once('.')?;
    if let Some((number, layer)) = path.strip_prefix("deepstack_merger_list.").and_then(|rest| rest.split_once('.')) {
        let block = deepstack.get(number.parse::<usize>().ok()?)?;
        return Some(format!("v.deepstack.{block}.{}.{kind}", layer.trim_start_matches("linear_")));
    }
    let path = match path {
        "pos_embed" => "v.position_embd".to_owned(),
        "merger.norm" => "v.post_ln".to_owned(),
        "merger.linear_fc1" => "mm.0".to_owned(),
        "merger.linear_fc2" => "mm.2".to_owned(),
        _ => {
            let (block, layer) = path.strip_prefix("blocks.")?.split_once('.')?;
            let (_, name) = QWEN3_LAYERS.iter().chain(&LAYERS).find(|(ours, _)| *ours == layer)?;
            format!("v.blk.{block}.{name}")
        }
    };
    Some(format!("{path}.{kind}"))
}

/// See [`Aliases`](super::Aliases).
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let own = canonical.strip_prefix("visual.").unwrap_or(canonical);
    if let Some(frame) = frame(canonical, own) {
        return frame;
    }
    std::iter::once(vec![Part::all(canonical)]).chain(in_llama(own)).collect()
}

/// Where the kernel of one frame of a patch is, if `own` is that: both are planes of one.
fn frame(canonical: &str, own: &str) -> Option<Vec<Alternative>> {
    let (at, llama) = match own {
        "patch_embed.proj.0.weight" => (0, "v.patch_embd.weight"),
        "patch_embed.proj.1.weight" => (1, "v.patch_embd.weight.1"),
        _ => return None,
    };
    let whole = Part::plane("visual.patch_embed.proj.weight", at);
    Some(vec![vec![Part::all(canonical)], vec![whole], vec![Part::all(llama)]])
}

/// The parts in llama.cpp's layout, which has queries, keys and values apart.
fn in_llama(own: &str) -> Option<Alternative> {
    let (path, kind) = own.rsplit_once('.')?;
    let one = |name: &str| Some(vec![Part::all(format!("{name}.{kind}"))]);
    match path {
        "merger.ln_q" => return one("v.post_ln"),
        "merger.mlp.0" => return one("mm.0"),
        "merger.mlp.2" => return one("mm.2"),
        _ => {}
    }
    let (block, layer) = path.strip_prefix("blocks.")?.split_once('.')?;
    if layer == "attn.qkv" {
        return Some(
            ["attn_q", "attn_k", "attn_v"].map(|part| Part::all(format!("v.blk.{block}.{part}.{kind}"))).into(),
        );
    }
    let (_, name) = LAYERS.iter().find(|(ours, _)| *ours == layer)?;
    one(&format!("v.blk.{block}.{name}"))
}

/// What transformers and llama.cpp call the layers of a block.
const LAYERS: [(&str, &str); 6] = [
    ("norm1", "ln1"),
    ("attn.proj", "attn_out"),
    ("norm2", "ln2"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The same of what Qwen3-VL has otherwise.
const QWEN3_LAYERS: [(&str, &str); 3] =
    [("attn.qkv", "attn_qkv"), ("mlp.linear_fc1", "ffn_up"), ("mlp.linear_fc2", "ffn_down")];

#[cfg(test)]
mod tests {
    use super::*;

    fn names(canonical: &str) -> Vec<String> {
        aliases(canonical).into_iter().flatten().map(|part| part.name).collect()
    }

    #[test]
    fn names_of_both_makers() {
        let qkv =
            ["visual.blocks.3.attn.qkv.bias", "v.blk.3.attn_q.bias", "v.blk.3.attn_k.bias", "v.blk.3.attn_v.bias"];
        assert_eq!(names("visual.blocks.3.attn.qkv.bias"), qkv);
        assert_eq!(names("visual.blocks.0.mlp.gate_proj.weight")[1], "v.blk.0.ffn_gate.weight");
        assert_eq!(names("visual.merger.ln_q.weight")[1], "v.post_ln.weight");
        let kernels = names("visual.patch_embed.proj.1.weight");
        assert_eq!(kernels[1..], ["visual.patch_embed.proj.weight", "v.patch_embd.weight.1"]);
    }

    #[test]
    fn names_of_qwen3_in_llama_cpp() {
        let aliases = aliases_of_qwen3(vec![5, 11, 17]);
        for (ours, theirs) in [
            ("visual.deepstack_merger_list.1.linear_fc2.bias", "v.deepstack.11.fc2.bias"),
            ("visual.deepstack_merger_list.2.norm.weight", "v.deepstack.17.norm.weight"),
            ("visual.merger.linear_fc1.weight", "mm.0.weight"),
            ("visual.merger.norm.bias", "v.post_ln.bias"),
            ("visual.pos_embed.weight", "v.position_embd.weight"),
            ("visual.blocks.3.attn.qkv.weight", "v.blk.3.attn_qkv.weight"),
            ("visual.blocks.3.mlp.linear_fc1.bias", "v.blk.3.ffn_up.bias"),
            ("visual.blocks.3.norm2.bias", "v.blk.3.ln2.bias"),
            ("visual.patch_embed.proj.bias", "v.patch_embd.bias"),
            ("visual.patch_embed.proj.1.weight", "v.patch_embd.weight.1"),
        ] {
            let last = aliases(ours).into_iter().flatten().last().map(|part| part.name);
            assert_eq!(last.as_deref(), Some(theirs));
        }
        let held = ["v.deepstack.5.norm.weight", "v.deepstack.17.norm.weight"];
        assert_eq!(deepstack(|name| held.contains(&name)), Some(vec![5, 17]));
        assert_eq!(deepstack(|_| false), None);
    }
}
