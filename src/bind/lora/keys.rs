//! What the names of a LoRA's tensors say: which module they change, and which part of the change they are.

/// A part of the change of one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Down,
    Up,
    Mid,
    Alpha,
    /// DoRA's norms of rows, or of columns.
    Magnitude,
    /// LoHa's factors: first and second matrix, `a` and `b` of each, and Tucker's core.
    HadaW1A,
    HadaW1B,
    HadaT1,
    HadaW2A,
    HadaW2B,
    HadaT2,
    /// LoKr's factors, whole or cut in two.
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    /// A difference as large as the weight.
    Diff,
    /// A difference of the bias.
    DiffBias,
    /// A bias of the low-rank change, which its factor multiplies as well.
    UpBias,
    /// What takes the weight's place.
    Set,
    /// What takes the place of a norm's scales, however strongly the rest works: they belong to the other changes.
    Scales,
}

/// The model that a name is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Meant {
    /// It does not say.
    Any,
    Denoiser,
    /// A text encoder, counted from 1.
    Text(u8),
}

/// A module as a file names it, and what that may stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    /// Its tensors' names without the part.
    pub(super) name: String,
    /// Ways to read that, the longest prefix taken off last.
    pub(super) readings: Vec<Reading>,
    /// Whether the change may be of the first outputs only.
    pub(super) first_rows: bool,
}

/// One way to read a module's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) meant: Meant,
    /// What PEFT's settings call the model.
    pub(super) component: &'static str,
    /// The name in the model, with dots or underscores.
    pub(super) stem: String,
}

/// How tensors' names end. Of those that fit, the longest counts.
const ENDS: [(&str, Part); 45] = [
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_A", Part::Down),
    (".lora_B", Part::Up),
    (".lora_down", Part::Down),
    (".lora_up", Part::Up),
    (".down.weight", Part::Down),
    (".up.weight", Part::Up),
    (".lora_up.bias", Part::UpBias),
    (".lora_B.bias", Part::UpBias),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".lora_magnitude_vector", Part::Magnitude),
    (".hada_w1_a", Part::HadaW1A),
    (".hada_w1_b", Part::HadaW1B),
    (".hada_t1", Part::HadaT1),
    (".hada_w2_a", Part::HadaW2A),
    (".hada_w2_b", Part::HadaW2B),
    (".hada_t2", Part::HadaT2),
    (".lokr_w1", Part::LokrW1),
    (".lokr_w1_a", Part::LokrW1A),
    (".lokr_w1_b", Part::LokrW1B),
    (".lokr_w2", Part::LokrW2),
    (".lokr_w2_a", Part::LokrW2A),
    (".lokr_w2_b", Part::LokrW2B),
    (".lokr_t2", Part::LokrT2),
    (".diff", Part::Diff),
    (".diff_b", Part::DiffBias),
    (".w_norm", Part::Diff),
    (".b_norm", Part::DiffBias),
    (".set_weight", Part::Set),
    (".lora_A.default.weight", Part::Down),
    (".lora_B.default.weight", Part::Up),
    (".lora_A.default", Part::Down),
    (".lora_B.default", Part::Up),
    (".lora_B.default.bias", Part::UpBias),
    (".lora_magnitude_vector.default.weight", Part::Magnitude),
];

/// How the scales of norms end that lie in a file as they are: in the files of Black Forest Labs, and in diffusers'.
const SCALES: [(&str, &str); 6] = [
    ("_norm.scale", ".scale"),
    (".norm_q.weight", ".weight"),
    (".norm_k.weight", ".weight"),
    (".norm_added_q.weight", ".weight"),
    (".norm_added_k.weight", ".weight"),
    ("_norm.weight", ".weight"),
];

/// What stands before a module's name in its model, whose it then is, and what PEFT's settings call that.
const PREFIXES: [(&str, Meant, &str); 24] = [
    ("base_model.model.", Meant::Any, ""),
    ("model.diffusion_model.", Meant::Denoiser, "transformer"),
    ("diffusion_model.", Meant::Denoiser, "transformer"),
    ("transformer.", Meant::Denoiser, "transformer"),
    ("unet.", Meant::Denoiser, "unet"),
    ("net.", Meant::Denoiser, "transformer"),
    ("lora_unet_", Meant::Denoiser, "unet"),
    ("lora_transformer_", Meant::Denoiser, "transformer"),
    ("lycoris_", Meant::Denoiser, "transformer"),
    ("text_encoder.", Meant::Text(1), "text_encoder"),
    ("text_encoder_2.", Meant::Text(2), "text_encoder_2"),
    ("text_encoder_3.", Meant::Text(3), "text_encoder_3"),
    ("lora_te_", Meant::Text(1), "text_encoder"),
    ("lora_te1_", Meant::Text(1), "text_encoder"),
    ("lora_te2_", Meant::Text(2), "text_encoder_2"),
    ("lora_te3_", Meant::Text(3), "text_encoder_3"),
    ("lycoris_text_encoder_", Meant::Text(1), "text_encoder"),
    ("text_encoders.clip_l.transformer.", Meant::Text(1), "text_encoder"),
    ("text_encoders.clip_g.transformer.", Meant::Text(2), "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", Meant::Text(2), "text_encoder_2"),
    ("clip_l.", Meant::Text(1), "text_encoder"),
    ("clip_l.transformer.", Meant::Text(1), "text_encoder"),
    ("t5xxl.transformer.", Meant::Text(2), "text_encoder_2"),
    ("transformer_2.", Meant::Denoiser, "transformer_2"),
];

/// What XLabs' files call layers of FLUX's blocks: by what their names end in.
const XLABS: [(&str, &str, &str); 6] = [
    ("double_blocks.", ".processor.qkv_lora1", ".img_attn.qkv"),
    ("double_blocks.", ".processor.proj_lora1", ".img_attn.proj"),
    ("double_blocks.", ".processor.qkv_lora2", ".txt_attn.qkv"),
    ("double_blocks.", ".processor.proj_lora2", ".txt_attn.proj"),
    ("single_blocks.", ".processor.qkv_lora", ".linear1"),
    ("single_blocks.", ".processor.proj_lora", ".linear2"),
];

/// Module and part of the tensor `name`; `None` for one that no LoRA has.
pub(super) fn parse(name: &str) -> Option<(Module, Part)> {
    if let Some(stem) = name.strip_suffix(".diff_m") {
        // Wan's tables of modulation, which are parameters and no layers.
        return Some((module(&format!("{stem}.modulation")), Part::Diff));
    }
    let known = ENDS.iter().filter_map(|(end, part)| Some((name.strip_suffix(end)?, *part)));
    let (stem, part) =
        known.min_by_key(|(stem, _)| stem.len()).or_else(|| of_adapter(name)).or_else(|| of_norm(name))?;
    (!stem.is_empty()).then(|| (module(stem), part))
}

/// The module whose scales the tensor `name` has, if they lie in the file as they are.
fn of_norm(name: &str) -> Option<(&str, Part)> {
    let (_, leaf) = SCALES.iter().find(|(end, _)| name.ends_with(end))?;
    name.strip_suffix(leaf).map(|stem| (stem, Part::Scales))
}

/// `MODULE.lora_A.ADAPTER.weight`, where PEFT saved an adapter with its name.
fn of_adapter(name: &str) -> Option<(&str, Part)> {
    let (rest, _adapter) = name.strip_suffix(".weight")?.rsplit_once('.')?;
    match rest.rsplit_once('.')? {
        (stem, "lora_A") => Some((stem, Part::Down)),
        (stem, "lora_B") => Some((stem, Part::Up)),
        (stem, "lora_magnitude_vector") => Some((stem, Part::Magnitude)),
        _ => None,
    }
}

fn module(name: &str) -> Module {
    let (renamed, first_rows) = in_the_model(name);
    let mut readings = vec![Reading { meant: Meant::Any, component: "", stem: renamed }];
    // Prefixes stand before each other: `base_model.model.transformer.`
    for i in 0.. {
        let Some(Reading { meant, component, stem }) = readings.get(i).cloned() else { break };
        for (prefix, whose, settings) in PREFIXES {
            if let Some(rest) = stem.strip_prefix(prefix).filter(|rest| !rest.is_empty()) {
                let (meant, component) = if whose == Meant::Any { (meant, component) } else { (whose, settings) };
                readings.push(Reading { meant, component, stem: rest.to_owned() });
            }
        }
    }
    Module { name: name.to_owned(), readings, first_rows }
}

/// The module's name as its model has it, and whether a change of it may be of the first outputs only.
fn in_the_model(name: &str) -> (String, bool) {
    for (block, theirs, ours) in XLABS {
        let rest = name.strip_suffix(theirs).filter(|rest| rest.contains(block));
        if let Some(rest) = rest {
            return (format!("{rest}{ours}"), ours == ".linear1");
        }
    }
    // Older diffusers put LoRAs into attention processors.
    if let Some((attention, layer)) = name.split_once(".processor.") {
        let layer = layer.strip_suffix("_lora").unwrap_or(layer);
        let layer = if layer == "to_out" { "to_out.0" } else { layer };
        return (format!("{attention}.{layer}"), false);
    }
    (name.strip_suffix("_lora").unwrap_or(name).to_owned(), false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Part, and the last reading, of a tensor's name.
    fn read(name: &str) -> (Part, Meant, String) {
        let (module, part) = parse(name).unwrap_or_else(|| panic!("{name}"));
        let last = module.readings.last().unwrap();
        (part, last.meant, last.stem.clone())
    }

    #[test]
    fn every_spelling_is_read() {
        use Meant::{Any, Denoiser, Text};
        for (name, part, meant, stem) in [
            (
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
                Part::Down,
                Denoiser,
                "double_blocks_0_img_attn_qkv",
            ),
            (
                "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
                Part::Alpha,
                Text(1),
                "text_model_encoder_layers_0_mlp_fc1",
            ),
            ("transformer.x.attn.to_q.lora_A.weight", Part::Down, Denoiser, "x.attn.to_q"),
            ("base_model.model.transformer.x.to_q.lora_B.default.weight", Part::Up, Denoiser, "x.to_q"),
            ("x.to_q.lora_B.mine.weight", Part::Up, Any, "x.to_q"),
            ("unet.x.attn1.processor.to_out_lora.down.weight", Part::Down, Denoiser, "x.attn1.to_out.0"),
            ("text_encoder.x.q_proj.lora_linear_layer.up.weight", Part::Up, Text(1), "x.q_proj"),
            ("double_blocks.3.processor.qkv_lora2.up.weight", Part::Up, Any, "double_blocks.3.txt_attn.qkv"),
            ("single_blocks.3.processor.qkv_lora.down.weight", Part::Down, Any, "single_blocks.3.linear1"),
            ("lycoris_x_to_q.lokr_w2_b", Part::LokrW2B, Denoiser, "x_to_q"),
            ("diffusion_model.blocks.0.norm3.diff_b", Part::DiffBias, Denoiser, "blocks.0.norm3"),
            ("blocks.0.diff_m", Part::Diff, Any, "blocks.0.modulation"),
        ] {
            assert_eq!(read(name), (part, meant, stem.to_owned()), "{name}");
        }
        assert!(parse("double_blocks.0.img_attn.qkv.weight").is_none());
        assert!(parse(".alpha").is_none());
    }

    #[test]
    fn parts_of_one_module_have_one_name() {
        let name = |tensor: &str| parse(tensor).unwrap().0.name;
        assert_eq!(name("a.b.lora_A.weight"), name("a.b.alpha"));
        assert_eq!(name("a_b.lora_down.weight"), name("a_b.dora_scale"));
        assert!(parse("single_blocks.3.processor.qkv_lora.down.weight").unwrap().0.first_rows);
    }
}
