//! The model that a bench measures: given, or made on the fly.

use std::path::{Path, PathBuf};

use pinhole::Error;
use pinhole::ggml::CancelFlag;
use pinhole::source::{Slot, Source};
use pinhole::synthetic::{self, Architecture, Options};
use pinhole_quant::recipe::FileType;

use super::model::architecture_parser;
use crate::cli::failure::Failure;
use crate::cli::interrupt::TemporaryFolder;
use crate::cli::model;
use crate::cli::printer::{Printer, Unit};

/// Options that say which model is measured.
#[derive(clap::Args)]
pub(super) struct SubjectArgs {
    /// A pinhole bundle (.gguf), or a diffusers directory
    #[arg(short, long, value_name = "MODEL", required_unless_present = "arch", conflicts_with = "arch")]
    model: Option<PathBuf>,
    /// Make a model of these sizes with random weights, and measure that
    #[arg(long, value_name = "NAME", value_parser = architecture_parser())]
    arch: Option<Architecture>,
    /// The type of the model that is made
    #[arg(long = "type", value_name = "TYPE", default_value = "q4_k_s", conflicts_with = "model")]
    file_type: FileType,
    /// How many double and how many single blocks the model that is made has [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "model")]
    blocks: Option<u16>,
    /// Keep the model that is made in this directory, and use it again [default: a temporary one]
    #[arg(long, value_name = "DIR", conflicts_with = "model")]
    cache: Option<PathBuf>,
}

/// What of a model is measured. Only that is made.
#[derive(Clone, Copy)]
pub(super) enum Measured {
    All,
    Denoiser,
    Part(&'static Slot),
}

/// An open model.
pub(super) struct Subject {
    pub(super) source: Source,
    /// What it is called in reports.
    pub(super) name: String,
    path: PathBuf,
    /// Where it lies, if no one keeps it.
    _temporary: Option<TemporaryFolder>,
}

impl SubjectArgs {
    /// Opens the model; with `--arch`, makes it first.
    pub(super) fn open(
        &self,
        measured: Measured,
        (printer, cancel): (&Printer, &CancelFlag),
    ) -> Result<Subject, Failure> {
        let Some(architecture) = self.arch else {
            let path = self.model.as_deref().unwrap_or_else(|| Path::new(""));
            let name = path.display().to_string();
            return Ok(Subject { source: model::open(path)?, name, path: path.to_owned(), _temporary: None });
        };
        let blocks = self.blocks.map(usize::from);
        let only = match measured {
            Measured::All => None,
            Measured::Denoiser => Some(architecture.denoiser()),
            Measured::Part(slot) => Some(slot),
        };
        let options = Options { architecture, file_type: self.file_type, blocks, hollow: false, only };
        let mut name = format!("{}-{}", architecture.name(), self.file_type);
        name += &blocks.map_or(String::new(), |blocks| format!("-{blocks}-blocks"));
        let temporary = match &self.cache {
            Some(_) => None,
            None => Some(TemporaryFolder::new()?),
        };
        let directory = self.cache.as_deref().or(temporary.as_ref().map(TemporaryFolder::path)).unwrap_or(".".as_ref());
        std::fs::create_dir_all(directory).map_err(|error| Error::io("create", directory, error))?;
        let file = name.clone() + &only.map_or(String::new(), |slot| format!("-{}", slot.name)) + ".gguf";
        let path = directory.join(file);
        if !path.exists() {
            printer.begin("write", synthetic::total_bytes(&options)?, Unit::Bytes);
            let mut done = 0;
            synthetic::write(&path, &options, |bytes| {
                printer.progress(done);
                done += bytes;
                cancel.check()
            })?;
            printer.end("write");
        }
        Ok(Subject { source: Source::open(&path)?, name, path, _temporary: temporary })
    }
}

impl Subject {
    /// The model, opened anew.
    pub(super) fn reopen(&self) -> Result<Source, Error> {
        model::open(&self.path)
    }
}
