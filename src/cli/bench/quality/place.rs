//! Where bundles and pictures are kept: a temporary directory, or one that the user names.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use pinhole::convert::{self, Progress, Types, WriteOptions};
use pinhole::ggml::CancelFlag;
use pinhole::image::{Image, PINHOLE};
use pinhole::pipeline::Opened;
use pinhole::source::Source;
use pinhole::{Error, Result, file};
use pinhole_quant::output::{AtomicFile, OutputError};
use serde::Serialize;

use crate::cli::failure::Failure;
use crate::cli::interrupt::TemporaryFolder;
use crate::cli::printer::{Printer, Unit};

/// The file in a kept directory that says what its files were made of.
const IDENTITY: &str = "source.json";

/// The keyword of a kept picture's chunk with the time that it took.
const SECONDS: &str = "seconds";

/// A directory for bundles and pictures.
pub(super) enum Place {
    /// Gone when this is dropped.
    Temporary(TemporaryFolder),
    /// Named by the user, and used again.
    Kept(PathBuf),
}

/// A bundle in a [`Place`].
pub(super) struct Bundle {
    pub(super) source: Source,
    /// The type of each component.
    pub(super) types: String,
    /// Of the file.
    pub(super) bytes: u64,
    /// Where it stays, if it does.
    pub(super) kept: Option<PathBuf>,
}

/// What the files of a kept directory were made of. Another model, or the same one changed, must not meet its leftovers.
#[derive(Serialize)]
struct Identity<'a> {
    version: &'static str,
    source: PathBuf,
    architecture: &'a str,
    bytes: usize,
    /// The source's last change, in seconds since 1970; of a directory, the latest of its weight files.
    modified: u64,
}

impl Place {
    /// The directory `keep` for what is made of `source`, or a temporary one.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be made, [`Error::Mismatch`] where it holds what another source made.
    pub(super) fn open(keep: Option<&Path>, source: &Source) -> Result<Place, Failure> {
        let Some(directory) = keep else {
            return Ok(Place::Temporary(TemporaryFolder::new()?));
        };
        let failed = |error| Error::io("create", directory, error);
        fs::create_dir_all(directory).map_err(failed)?;
        let path = directory.join(IDENTITY);
        let identity = identity(source)?;
        match file::text(&path) {
            Ok(found) if found == identity => {}
            Ok(_) => {
                let found = "those of another model or version of pinhole";
                let error = Error::mismatch(&path, "source", format!("files made of {}", source.path.display()), found);
                return Err(error.with_hint("name another directory, or remove this one").into());
            }
            // Files that no one said are pinhole's might be precious.
            Err(_) if fs::read_dir(directory).map_err(failed)?.next().is_some() => {
                let found = format!("{}, which holds other files", directory.display());
                return Err(Error::option("--keep", "a new directory, or that of an earlier run", found).into());
            }
            Err(_) => write(&path, |file| file.write_all(identity.as_bytes()))?,
        }
        Ok(Place::Kept(directory.to_owned()))
    }

    fn directory(&self) -> &Path {
        match self {
            Place::Temporary(directory) => directory.path(),
            Place::Kept(directory) => directory,
        }
    }

    /// The bundle `name` of `model` in `types`: converted, unless it is there from another run.
    ///
    /// # Errors
    /// Those of planning and writing a conversion, and of opening what it wrote.
    pub(super) fn bundle(
        &self,
        name: &str,
        model: &Opened,
        types: Types,
        (printer, cancel): (&Printer, &CancelFlag),
    ) -> Result<Bundle> {
        let path = self.directory().join(format!("{name}.gguf"));
        let plan = convert::plan(&model.source, &model.networks(), types)?;
        let there = fs::metadata(&path).is_ok_and(|file| file.len() == plan.total_bytes);
        if !there {
            printer.begin("convert", plan.tensors.iter().map(|tensor| tensor.bytes).sum(), Unit::Bytes);
            printer.doing(name.to_owned());
            plan.write(
                &path,
                WriteOptions { overwrite: true, ..WriteOptions::default() },
                &mut |Progress { done, .. }| {
                    printer.progress(done);
                    cancel.check()
                },
            )?;
        }
        let source = Source::open(&path)?;
        if let Place::Temporary(_) = self {
            // It is mapped, and needs no name any more: even a killed process leaves nothing large behind. Where the
            // system does not allow that, it goes with its directory.
            let _ = fs::remove_file(&path);
        }
        let kept = matches!(self, Place::Kept(_)).then_some(path);
        Ok(Bundle { source, types: plan.requested(), bytes: plan.total_bytes, kept })
    }

    /// The path of picture `number` of the bundle `name`, where pictures are kept.
    pub(super) fn picture(&self, name: &str, number: usize) -> Option<PathBuf> {
        match self {
            Place::Temporary(_) => None,
            Place::Kept(directory) => Some(directory.join(name).join(format!("{number:02}.png"))),
        }
    }
}

fn identity(source: &Source) -> Result<String> {
    // The built-in model has no file; the program's version says which it is.
    let path = source.path.canonicalize().unwrap_or_else(|_| source.path.clone());
    let maps = source.indexes().into_iter().flat_map(|index| index.maps());
    let changes = maps.filter_map(|map| {
        let time = fs::metadata(map.path()).and_then(|file| file.modified()).ok()?;
        time.duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs())
    });
    let identity = Identity {
        version: env!("CARGO_PKG_VERSION"),
        architecture: source.says.as_deref().unwrap_or_default(),
        bytes: source.bytes(),
        modified: changes.max().unwrap_or(0),
        source: path,
    };
    let text = serde_json::to_string_pretty(&identity);
    text.map_err(|error| Error::io("describe", &identity.source, error.into()))
}

fn write(path: &Path, fill: impl FnOnce(&mut AtomicFile) -> std::io::Result<()>) -> Result<(), OutputError> {
    let mut file = AtomicFile::create(path, true)?;
    fill(&mut file).map_err(|source| OutputError::Io { action: "write", path: path.to_owned(), source })?;
    file.commit()
}

/// The picture at `path` and the seconds that it took, where it was made with exactly `settings`.
pub(super) fn read_picture(path: &Path, settings: &str) -> Option<(Image, f64)> {
    let (file, _) = file::open(path).ok()?;
    let reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().ok()?;
    let info = reader.info();
    let ascii = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), Some(chunk.text.clone())));
    let utf8 = info.utf8_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().ok()));
    let texts: Vec<(String, Option<String>)> = ascii.chain(utf8).collect();
    let text = |name: &str| texts.iter().find(|(keyword, _)| keyword == name)?.1.as_deref();
    let seconds = text(SECONDS)?.parse().ok()?;
    if text(PINHOLE)? != settings {
        return None;
    }
    Some((Image::open_png(path).ok()?, seconds))
}

/// Writes a picture that took `seconds` to `path`, with its `settings` inside.
pub(super) fn write_picture(path: &Path, image: &Image, settings: &str, seconds: f64) -> Result<(), Failure> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| Error::io("create", directory, error))?;
    }
    let seconds = seconds.to_string();
    write(path, |file| image.write_png(file, &[(PINHOLE, settings), (SECONDS, seconds.as_str())]))?;
    Ok(())
}
