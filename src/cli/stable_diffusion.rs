//! The options of Stable Diffusion that say how a prompt is read.

use std::path::{Path, PathBuf};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use pinhole::pipeline::{Additions, PromptSyntax, Settings};
use serde::Serialize;

use super::units;

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
}

/// A file of vectors, and its word.
#[derive(Clone, Debug, Serialize)]
struct Embedding {
    #[serde(serialize_with = "units::path")]
    path: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
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

impl StableDiffusionArgs {
    /// `additions` with what these options add to a model.
    pub(super) fn add_to(&self, additions: Additions) -> Additions {
        let embeddings = self.embeddings.iter().map(|Embedding { path, word }| (path.clone(), word.clone())).collect();
        Additions { embeddings, embeddings_folder: self.folder.clone(), ..additions }
    }

    /// How the texts of prompts are read.
    pub(super) fn prompt_syntax(&self) -> PromptSyntax {
        self.prompt_syntax
    }

    /// The files that they name, each with its option.
    pub(super) fn files(&self) -> Vec<(&'static str, PathBuf)> {
        self.embeddings.iter().map(|embedding| ("--embedding", embedding.path.clone())).collect()
    }

    /// What they were in a request with these `settings`.
    pub(super) fn parameters<'a>(&'a self, settings: &'a Settings) -> Parameters<'a> {
        let syntax = settings.prompt_syntax;
        Parameters {
            embeddings: &self.embeddings,
            embeddings_folder: self.folder.as_ref(),
            taught_words: &settings.taught,
            prompt_syntax: (syntax != PromptSyntax::Plain).then(|| syntax.name()),
        }
    }
}

/// The same in JSON.
#[derive(Serialize)]
pub(super) struct Parameters<'a> {
    /// The files of `--embedding`.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    embeddings: &'a [Embedding],
    /// The folder of `--embeddings`.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "units::path_if_any")]
    embeddings_folder: Option<&'a PathBuf>,
    /// The taught words in the prompts.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    taught_words: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_syntax: Option<&'static str>,
}
