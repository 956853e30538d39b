//! Places in a model, by the names of diffusers' folders: one table for all families.

/// A place that a part of a model takes. What kind of network is there depends on the family.
#[derive(Debug)]
pub struct Slot {
    /// The folder in a diffusers directory, and the name in bundles and options.
    pub name: &'static str,
    /// What files with several networks of its kind call this one, beside its name: parts of what stands before its tensors' names.
    pub also: &'static [&'static str],
    /// What stands before its tensors' names in a bundle: short, since ggml keeps 63 characters.
    pub prefix: &'static str,
    /// The option that gives its file.
    pub option: &'static str,
    /// The name of its tokenizer, in diffusers directories and bundles.
    pub tokenizer: Option<&'static str>,
    /// The option that gives its tokenizer.
    pub tokenizer_option: &'static str,
}

impl PartialEq for Slot {
    fn eq(&self, other: &Slot) -> bool {
        self.name == other.name
    }
}

impl Eq for Slot {}

const fn part(name: &'static str, prefix: &'static str, option: &'static str) -> Slot {
    Slot { name, also: &[], prefix, option, tokenizer: None, tokenizer_option: "" }
}

const fn reader(
    name: &'static str,
    prefix: &'static str,
    option: &'static str,
    tokenizer: &'static str,
    tokenizer_option: &'static str,
) -> Slot {
    Slot { name, also: &[], prefix, option, tokenizer: Some(tokenizer), tokenizer_option }
}

impl Slot {
    /// The same, which files call `also`.
    const fn called(self, also: &'static [&'static str]) -> Slot {
        Slot { also, ..self }
    }
}

/// CLIP-L in ComfyUI's files, in those of Stable Diffusion XL, and in stable-diffusion.cpp's.
const CLIP_L: [&str; 3] = ["clip_l", "embedders.0", "cond_stage_model.transformer"];
/// CLIP-G in the same files.
const CLIP_G: [&str; 3] = ["clip_g", "embedders.1", "cond_stage_model.1"];

/// The folder in which a pipeline with a processor for texts and pictures has the tokenizer of its text encoder.
pub(super) const PROCESSOR: &str = "processor";

/// The denoiser of most families.
pub static TRANSFORMER: Slot = part("transformer", "dit.", "--transformer");
/// A second denoiser, which takes the steps that the first leaves.
pub static TRANSFORMER_2: Slot = part("transformer_2", "dit2.", "--transformer-2");
/// The denoiser of the Stable Diffusion families.
pub static UNET: Slot = part("unet", "u.", "--unet");
/// The first text encoder.
pub static TEXT_ENCODER: Slot =
    reader("text_encoder", "te.", "--text-encoder", "tokenizer", "--tokenizer").called(&CLIP_L);
/// The second text encoder.
pub static TEXT_ENCODER_2: Slot =
    reader("text_encoder_2", "te2.", "--text-encoder-2", "tokenizer_2", "--tokenizer-2").called(&CLIP_G);
/// The third text encoder.
pub static TEXT_ENCODER_3: Slot = reader("text_encoder_3", "te3.", "--text-encoder-3", "tokenizer_3", "--tokenizer-3");
/// A vision tower.
pub static IMAGE_ENCODER: Slot = part("image_encoder", "ie.", "--image-encoder");
/// What makes tokens beside those of the prompt of what a vision tower gives.
pub static IMAGE_EMBEDDER: Slot = part("image_embedder", "re.", "--redux");
/// What goes beside a denoiser, so that it looks at pictures. No folder and no bundle has it.
pub static IP_ADAPTER: Slot = part("ip_adapter", "ip.", "--ip-adapter");
/// The autoencoder.
pub static VAE: Slot = part("vae", "vae.", "--vae");
/// A tiny autoencoder, for previews or in the autoencoder's stead.
pub static TINY_VAE: Slot = part("tiny_vae", "tvae.", "--tiny-vae");

/// What judges the pictures that were drawn.
pub static SAFETY_CHECKER: Slot = part("safety_checker", "sc.", "--safety-checker");

/// ControlNets, each in a file of its own beside the model's.
pub static CONTROLNET: Slot = part("controlnet", "cn.", "--control");

/// What makes pictures larger, in a file of its own.
pub static UPSCALER: Slot = part("upscaler", "up.", "--upscaler");

/// What makes tokens of a face for a ControlNet, in a file of its own.
pub static ID_PROJECTOR: Slot = part("id_projector", "idp.", "--id-projector");

/// All that are part of a model, in the order in which bundles hold them.
pub static SLOTS: [&Slot; 11] = [
    &TRANSFORMER,
    &TRANSFORMER_2,
    &UNET,
    &TEXT_ENCODER,
    &TEXT_ENCODER_2,
    &TEXT_ENCODER_3,
    &IMAGE_ENCODER,
    &IMAGE_EMBEDDER,
    &VAE,
    &TINY_VAE,
    &SAFETY_CHECKER,
];

/// The slot `name`.
pub fn slot(name: &str) -> Option<&'static Slot> {
    SLOTS.into_iter().find(|slot| slot.name == name)
}

/// The place of `slot` in the order of bundles.
pub(crate) fn order(slot: &Slot) -> usize {
    SLOTS.iter().position(|other| *other == slot).unwrap_or(SLOTS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_told_apart_by_name_and_by_prefix() {
        for (i, one) in SLOTS.iter().enumerate() {
            assert_eq!(order(one), i);
            // What Redux has in that place is called what it is.
            let is_named = one.option == format!("--{}", one.name.replace('_', "-"));
            assert_eq!(is_named, *one != &IMAGE_EMBEDDER);
            assert!(SLOTS.iter().skip(i + 1).all(|other| other.name != one.name && other.prefix != one.prefix));
        }
        assert_eq!(slot("vae"), Some(&VAE));
        assert_eq!(slot("Vae"), None);
    }
}
