//! What weights belong to, by the names of their tensors: files are mislabelled, or carry no label at all.

/// Part of a tensor's name, and what has such tensors. From the files that people exchange; the first part that is
/// found of each kind of model decides.
const SIGNS: &[(&str, &str)] = &[
    ("double_blocks.0.img_attn.qkv.weight", "FLUX transformer, original names"),
    ("single_transformer_blocks.0.", "FLUX transformer, diffusers names"),
    ("joint_blocks.0.", "Stable Diffusion 3 transformer, original names"),
    ("transformer_blocks.0.ff_context.", "MMDiT transformer, diffusers names"),
    ("input_blocks.0.0.weight", "Stable Diffusion UNet, original names"),
    ("mid_block.attentions.0.transformer_blocks.", "Stable Diffusion UNet, diffusers names"),
    ("blocks.0.cross_attn.k.weight", "Wan transformer"),
    ("text_model.encoder.layers.0.self_attn.", "CLIP text encoder"),
    ("block.0.layer.0.SelfAttention.q.weight", "T5 encoder, transformers names"),
    ("enc.blk.0.attn_q.weight", "T5 encoder, llama.cpp names"),
    ("token_embd.weight", "language model, llama.cpp names"),
    ("decoder.up.0.block.0.", "autoencoder, original names"),
    ("decoder.up_blocks.0.resnets.0.", "autoencoder, diffusers names"),
    ("lora_A.", "LoRA"),
    ("lora_down.", "LoRA"),
];

/// What a file with tensors of these names holds, in the order of the table.
pub(super) fn recognise<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<&'static str> {
    let mut found: Vec<&'static str> = Vec::new();
    for &(sign, what) in SIGNS {
        let kind = what.split(',').next();
        let known = found.iter().any(|known| known.split(',').next() == kind);
        // llama.cpp's T5 files have a table of tokens too, and so have language models.
        let encoder = sign.starts_with("token_embd") && found.iter().any(|known| known.starts_with("T5"));
        if !known && !encoder && names.clone().any(|name| name.contains(sign)) {
            found.push(what);
        }
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
