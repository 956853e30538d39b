//! Which model the arguments mean.

use std::path::{Path, PathBuf};

use pinhole::source::{Files, Source};
use pinhole::{Error, Result, builtin};

use super::pulled;

/// The options that give a model's parts one by one.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Parts of a model")]
pub(super) struct PartArgs {
    /// The transformer: GGUF or safetensors, with original or diffusers names
    #[arg(long, value_name = "FILE")]
    transformer: Option<PathBuf>,
    /// The second transformer of models with two experts (Wan 2.2 A14B): the one for low noise
    #[arg(long, value_name = "FILE")]
    transformer_2: Option<PathBuf>,
    /// The UNet, for models that have one in the transformer's place
    #[arg(long, value_name = "FILE")]
    unet: Option<PathBuf>,
    /// The CLIP text encoder
    #[arg(long, value_name = "FILE")]
    text_encoder: Option<PathBuf>,
    /// The T5 text encoder
    #[arg(long, value_name = "FILE")]
    text_encoder_2: Option<PathBuf>,
    /// The autoencoder
    #[arg(long, value_name = "FILE")]
    vae: Option<PathBuf>,
    /// A tiny autoencoder (TAESD, TAESDXL, TAEF1), which decodes and encodes in the autoencoder's stead and makes the previews: a file,
    /// or a folder of a diffusers directory. Of taesd_decoder.safetensors, taesd_encoder.safetensors beside it is taken, too
    #[arg(long, value_name = "FILE")]
    tiny_vae: Option<PathBuf>,
    /// What judges the pictures that are drawn, Stable Diffusion's safety checker: a file, or a folder of a diffusers directory
    #[arg(long, value_name = "FILE")]
    safety_checker: Option<PathBuf>,
    /// A scheduler_config.json, whose settings are used in the place of the model's own
    #[arg(long, value_name = "FILE")]
    scheduler_config: Option<PathBuf>,
    /// CLIP's tokenizer: a tokenizer.json, or a folder with one or with vocab.json and merges.txt [default: the model's, or OpenAI's]
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer: Option<PathBuf>,
    /// T5's tokenizer: a tokenizer.json, a spiece.model, a folder with one, or a GGUF of T5 [default: the model's, or the text encoder's]
    #[arg(long, value_name = "FILE|DIR")]
    tokenizer_2: Option<PathBuf>,
}

impl PartArgs {
    /// Opens the model `base` with these parts in the place of its own; without a base, these parts. `option` is how a
    /// base is given.
    ///
    /// # Errors
    /// [`Error::Option`] where neither is given, those of [`Source::open`] and [`Source::assemble`].
    pub(super) fn open(&self, base: Option<&Path>, option: &'static str) -> Result<Source> {
        let files = self.files();
        let mut source = match base {
            Some(base) if files.is_empty() => open(base),
            None if files.is_empty() => {
                let error = Error::option(option, "a model, or its parts", "neither");
                Err(error.with_hint("parts are given with --transformer, --text-encoder, --text-encoder-2 and --vae"))
            }
            base => Source::assemble(base.map(open).transpose()?, &files),
        }?;
        if let Some(path) = &self.scheduler_config {
            source.set_scheduler(path)?;
        }
        Ok(source)
    }

    /// What to call the model, for people: the base, or else the transformer or another part.
    pub(super) fn name<'a>(&'a self, base: Option<&'a Path>) -> &'a Path {
        let parts = self.parts().into_iter().filter_map(|(_, path)| path.as_deref());
        base.into_iter().chain(parts).next().unwrap_or(Path::new(""))
    }

    fn files(&self) -> Files {
        let mut files = Files::default();
        let tokenizers = [("tokenizer", &self.tokenizer), ("tokenizer_2", &self.tokenizer_2)];
        for (name, path) in self.parts().into_iter().chain(tokenizers) {
            if let Some(path) = path {
                files.add(name, path.clone());
            }
        }
        files
    }

    /// What is given for each place with weights.
    fn parts(&self) -> [(&'static str, &Option<PathBuf>); 8] {
        let PartArgs {
            transformer,
            transformer_2,
            unet,
            text_encoder,
            text_encoder_2,
            vae,
            tiny_vae,
            safety_checker,
            ..
        } = self;
        [
            ("transformer", transformer),
            ("transformer_2", transformer_2),
            ("unet", unet),
            ("text_encoder", text_encoder),
            ("text_encoder_2", text_encoder_2),
            ("vae", vae),
            ("tiny_vae", tiny_vae),
            ("safety_checker", safety_checker),
        ]
    }
}

/// Refuses `-` as a file to write: other tools mean stdout by it, which takes no file that appears whole or not at all.
///
/// # Errors
/// [`Error::Option`].
pub(super) fn refuse_stdout(option: &'static str, path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) if path.as_os_str() == "-" => {
            let error = Error::option(option, "a file", "`-`, which is stdout to other tools");
            Err(error.with_hint("a file of that name is ./-"))
        }
        _ => Ok(()),
    }
}

/// Whether `name` means the model inside the program. A file or folder of that name is `./mini`.
pub(super) fn is_built_in(name: &Path) -> bool {
    name.as_os_str() == builtin::MINI_NAME
}

/// Opens what lies at `name`, the model inside the program, or else one that was pulled under that name.
///
/// # Errors
/// Those of [`Source::open`], and of a name that was not pulled.
pub(super) fn open(name: &Path) -> Result<Source> {
    if is_built_in(name) {
        return builtin::mini();
    }
    if !name.exists()
        && let Some(source) = pulled::open(name)?
    {
        return Ok(source);
    }
    Source::open(name)
}
