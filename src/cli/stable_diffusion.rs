//! The options of Stable Diffusion: how a prompt is read, and what a second pass does.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use pinhole::pipeline::{Additions, Parameters, PromptSyntax, Request, Upscale, UpscaleSpace, WordFile};

use super::units::path_text;

/// What `generate` and `plan` take for Stable Diffusion.
#[derive(clap::Args)]
pub(super) struct StableDiffusionArgs {
    /// A word that the text encoders were taught (textual inversion), for Stable Diffusion: a file of diffusers or of the web UI, and
    /// the word, if it is not the file's own. The prompt brings it in: --embedding cat.pt:"<cat>" -p "a photo of <cat>"
    #[arg(long = "embedding", value_name = "FILE[:WORD]", value_parser = embedding)]
    embeddings: Vec<Embedding>,
    /// A folder of such files, each for the word that is its name; those whose words are in a prompt are opened
    #[arg(long = "embeddings", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// How prompts are read: plain, as they stand, or a1111, where `(word:1.2)`, `(word)` and `[word]` count more or less, BREAK begins a
    /// chunk, and long prompts become chunks of 75 tokens; for Stable Diffusion
    #[arg(long, value_name = "HOW", value_parser = syntax_parser(), default_value = PromptSyntax::Plain.name())]
    prompt_syntax: PromptSyntax,
    /// A model that makes the last steps: the refiner of Stable Diffusion XL. Both are never on the device together
    #[arg(long, value_name = "FILE|DIR")]
    refiner: Option<PathBuf>,
    /// From which part of the steps on the refiner goes on, between 0 and 1 [default: 0.8]
    #[arg(long, value_name = "P", requires = "refiner")]
    refiner_start: Option<f32>,
    /// For the refiner: how pleasing the picture is to be [default: 6]
    #[arg(long, value_name = "SCORE")]
    aesthetic_score: Option<f32>,
    /// For the refiner: how pleasing it is not to be, with the negative prompt [default: 2.5]
    #[arg(long, value_name = "SCORE")]
    negative_aesthetic_score: Option<f32>,
    /// Draw in two passes: the second begins with what the first drew, so many times as large across and down, 1 to 8
    #[arg(long, value_name = "FACTOR")]
    upscale: Option<f32>,
    /// How far from the first pass the second may be: 0 is the same, 1 is as far as without it [default: 0.4]
    #[arg(long, value_name = "S", requires = "upscale")]
    upscale_strength: Option<f32>,
    /// What is made larger between the passes: latent (bilinearly), latent-nearest, or pixel, with Lanczos' filter [default: latent]
    #[arg(long, value_name = "WHAT", requires = "upscale", value_parser = space_parser())]
    upscale_space: Option<UpscaleSpace>,
    /// Denoising steps of the second pass, which takes only the share of --upscale-strength [default: those of the first]
    #[arg(long, value_name = "N", requires = "upscale")]
    upscale_steps: Option<usize>,
}

/// A file of vectors, and its word.
#[derive(Clone, Debug)]
struct Embedding {
    path: PathBuf,
    word: Option<String>,
}

/// Parses `FILE` or `FILE:WORD`. A word may have colons, and so may the file, if it is there.
fn embedding(text: &str) -> Result<Embedding, String> {
    if Path::new(text).exists() {
        return Ok(Embedding { path: text.into(), word: None });
    }
    let mut split = text.rsplit_once(':');
    for (at, _) in text.rmatch_indices(':') {
        if Path::new(&text[..at]).exists() {
            split = Some((&text[..at], &text[at + 1..]));
            break;
        }
    }
    match split {
        Some((path, word)) if !path.is_empty() => Ok(Embedding { path: path.into(), word: Some(word.to_owned()) }),
        _ => Ok(Embedding { path: text.into(), word: None }),
    }
}

fn syntax_parser() -> impl TypedValueParser<Value = PromptSyntax> {
    PossibleValuesParser::new(PromptSyntax::ALL.map(PromptSyntax::name)).map(|name| match name.as_str() {
        "a1111" => PromptSyntax::A1111,
        _ => PromptSyntax::Plain,
    })
}

fn space_parser() -> impl TypedValueParser<Value = UpscaleSpace> {
    PossibleValuesParser::new(UpscaleSpace::ALL.map(UpscaleSpace::name)).map(|name| match name.as_str() {
        "pixel" => UpscaleSpace::Pixel,
        "latent-nearest" => UpscaleSpace::LatentNearest,
        _ => UpscaleSpace::Latent,
    })
}

impl StableDiffusionArgs {
    /// `additions` with what these options add to a model.
    pub(super) fn add_to(&self, additions: Additions) -> Additions {
        let embeddings = self.embeddings.iter().map(|Embedding { path, word }| (path.clone(), word.clone())).collect();
        let (embeddings_folder, refiner) = (self.folder.clone(), self.refiner.clone());
        Additions { embeddings, embeddings_folder, refiner, ..additions }
    }

    /// `request` with what these options say of it.
    pub(super) fn told(&self, request: Request) -> Request {
        let upscale = self.upscale.map(|factor| {
            let plain = Upscale::new(factor);
            Upscale {
                strength: self.upscale_strength.unwrap_or(plain.strength),
                space: self.upscale_space.unwrap_or(plain.space),
                steps: self.upscale_steps,
                ..plain
            }
        });
        Request {
            prompt_syntax: self.prompt_syntax,
            refiner_start: self.refiner_start,
            aesthetic_score: self.aesthetic_score,
            negative_aesthetic_score: self.negative_aesthetic_score,
            upscale,
            ..request
        }
    }

    /// The files that they name, each with its option.
    pub(super) fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let embeddings = self.embeddings.iter().map(|embedding| ("--embedding", embedding.path.clone()));
        embeddings.chain(self.refiner.iter().map(|path| ("--refiner", path.clone()))).collect()
    }

    /// `parameters` with the files that they name.
    pub(super) fn tell<'a>(&self, parameters: Parameters<'a>) -> Parameters<'a> {
        let files = self.embeddings.iter().map(|Embedding { path, word }| WordFile::new(path, word.clone()));
        Parameters {
            embeddings: files.collect(),
            embeddings_folder: path_text(self.folder.as_ref()),
            refiner: path_text(self.refiner.as_ref()),
            ..parameters
        }
    }
}
