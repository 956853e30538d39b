//! Which family of models a LoRA seems to be for, by names that only one family has.

/// Parts of names, with underscores for dots, and whose they are. The first line decides whose parts are all in a file.
const SIGNS: [(&[&str], &str); 26] = [
    (&["double_stream_modulation_img"], "FLUX.2"),
    (&["single_transformer_blocks_", "attn_to_qkv_mlp_proj"], "FLUX.2"),
    (&["content_mode_blocks_"], "FLUX.3"),
    (&["single_transformer_blocks_", "ff_linear_in"], "FLUX.3"),
    (&["txt_mode_blocks_"], "FLUX.3"),
    (&["distilled_guidance_layer"], "Chroma"),
    (&["double_blocks_", "img_attn"], "FLUX.1"),
    (&["double_blocks_", "processor_qkv_lora"], "FLUX.1"),
    (&["single_blocks_", "linear1"], "FLUX.1"),
    (&["single_transformer_blocks_"], "FLUX.1"),
    (&["joint_blocks_"], "SD3"),
    (&["transformer_blocks_", "img_mlp_gate"], "Qwen-Image 2.1"),
    (&["transformer_blocks_", "img_mlp_proj"], "Qwen-Image 2.1"),
    (&["transformer_blocks_", "img_mlp"], "Qwen-Image"),
    (&["transformer_blocks_", "img_mod"], "Qwen-Image"),
    (&["transformer_blocks_", "ff_context"], "SD3"),
    (&["transformer_blocks_", "norm1_context"], "SD3"),
    (&["cross_attn", "self_attn", "blocks_"], "Wan"),
    (&["layers_", "feed_forward_w1"], "Z-Image"),
    (&["layers_", "attention_qkv"], "Z-Image"),
    (&["layers_", "attention_to_q"], "Z-Image"),
    (&["input_blocks_4_1_transformer_blocks_1"], "SDXL"),
    (&["down_blocks_2_attentions_0_transformer_blocks_1"], "SDXL"),
    (&["mid_block_attentions_0_transformer_blocks_1"], "SDXL"),
    (&["middle_block_1_transformer_blocks_1"], "SDXL"),
    (&["transformer_blocks_", "add_q_proj"], "Qwen-Image or SD3"),
];

/// Inputs of a UNet's cross-attention, which are as wide as the model's text encoders.
const CONTEXTS: [(usize, &str); 3] = [(768, "SD1.5"), (1024, "SD2"), (2048, "SDXL")];

/// The family of a file with the modules `names`. `columns` gives the inputs of one of them.
pub(super) fn family<'n>(
    names: impl Iterator<Item = &'n str> + Clone,
    columns: impl Fn(&str) -> Option<usize>,
) -> Option<&'static str> {
    let flat: Vec<String> = names.clone().map(|name| name.replace('.', "_")).collect();
    for (parts, family) in SIGNS {
        if parts.iter().all(|part| flat.iter().any(|name| name.contains(part))) {
            return Some(family);
        }
    }
    for (name, flat) in names.zip(&flat) {
        if flat.ends_with("attn2_to_k") || flat.ends_with("attn2_to_v") {
            let inputs = columns(name)?;
            return CONTEXTS.iter().find(|(context, _)| *context == inputs).map(|(_, family)| *family);
        }
    }
    flat.iter().any(|name| is_of_text(name)).then_some("text encoders alone")
}

/// What FLUX.1's first layer is called by its publisher and by diffusers.
pub const FIRST_LAYERS: [&str; 2] = ["img_in", "x_embedder"];

/// What a LoRA of `family` has to do with pictures if its first layer has so many `inputs`.
pub(super) fn pictures(family: &str, inputs: Option<usize>) -> Option<String> {
    let what = match (family, inputs?) {
        ("FLUX.1", 128) => "makes a plain model follow a picture, as FLUX.1 Canny and Depth do",
        ("FLUX.1", 384) => "is for FLUX.1 Fill, which paints within a picture",
        _ => return None,
    };
    Some(what.to_owned())
}

/// Words in the names of LoRAs with which a model draws in few steps.
const FEW_STEPS: [&str; 6] = ["turbo", "hyper", "lightning", "lcm", "dmd2", "schnell"];

/// What the name of a LoRA says of steps.
pub(super) fn few_steps(name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    if let Some((before, _)) = name.split_once("step") {
        let before = before.trim_end_matches(['-', '_', ' ']);
        let start = before.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |at| at + 1);
        if let Ok(steps @ 1..=64) = before[start..].parse::<u8>() {
            return Some(format!("draws in {steps} steps, as its name says"));
        }
    }
    let words = name.split(|c: char| !c.is_ascii_alphanumeric());
    let mut known = words.filter(|word| FEW_STEPS.contains(word));
    known.next().map(|word| format!("draws in few steps, as `{word}` in its name says"))
}

/// What else a LoRA of `family` asks of requests, by its name.
pub(super) fn schedule(family: &str, name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    match family {
        "Qwen-Image" if name.contains("lightning") => {
            Some("was trained without guidance and with a shift that is fixed: --cfg-scale 1 --shift 3".to_owned())
        }
        _ => None,
    }
}

/// Whether the module with the `flat` name is a text encoder's.
pub(super) fn is_of_text(flat: &str) -> bool {
    const PARTS: [&str; 6] =
        ["self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "SelfAttention", "DenseReluDense", "mlp_fc"];
    PARTS.iter().any(|part| flat.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_how_many_steps() {
        let says = |name: &str| few_steps(name).unwrap_or_default();
        assert_eq!(says("Hyper-FLUX.1-dev-8steps-lora"), "draws in 8 steps, as its name says");
        assert_eq!(says("sdxl_lightning_4step_lora"), "draws in 4 steps, as its name says");
        assert_eq!(says("FLUX.1-Turbo-Alpha"), "draws in few steps, as `turbo` in its name says");
        assert_eq!(says("style-step"), "");
        assert_eq!(says("hyperreal"), "");
        assert_eq!(pictures("FLUX.1", Some(64)), None);
        assert!(
            schedule("Qwen-Image", "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16")
                .unwrap_or_default()
                .ends_with("--shift 3")
        );
        assert_eq!(schedule("FLUX.1", "Lightning"), None);
    }

    #[test]
    fn families_are_known_by_their_names() {
        for (names, columns, expected) in [
            (&["lora_unet_double_blocks_0_img_attn_qkv"][..], 0, Some("FLUX.1")),
            (&["transformer.single_transformer_blocks.0.attn.to_q"], 0, Some("FLUX.1")),
            (&["lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"], 768, Some("SD1.5")),
            (&["unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"], 2048, Some("SDXL")),
            (&["lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"], 0, Some("SDXL")),
            (&["diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.0.cross_attn.q"], 0, Some("Wan")),
            (&["transformer_blocks.0.attn.add_q_proj", "transformer_blocks.0.img_mlp.net.2"], 0, Some("Qwen-Image")),
            (&["transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.gate_up"], 0, Some("Qwen-Image 2.1")),
            (&["layers.0.attention.to_q"], 0, Some("Z-Image")),
            (&["lora_te_text_model_encoder_layers_0_self_attn_q_proj"], 0, Some("text encoders alone")),
            (&["something.else"], 0, None),
        ] {
            assert_eq!(family(names.iter().copied(), |_| Some(columns)), expected, "{names:?}");
        }
    }
}
