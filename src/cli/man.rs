//! `pinhole man`: manual pages, made from the same declarations as the help.

use std::fs;
use std::path::PathBuf;

use pinhole::Error;
use serde_json::json;

use super::failure::Failure;
use super::printer::{Printer, Talk};
use super::units;

/// Write the manual pages, one for each command
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The folder to write pinhole.1, pinhole-generate.1, ... to; it is made if it is not there, and pages in it are replaced
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole man ~/.local/share/man/man1";

pub(super) fn run(args: &Args, command: clap::Command, printer: &Printer) -> Result<(), Failure> {
    let folder = &args.folder;
    fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    clap_mangen::generate_to(command, folder).map_err(|error| Error::io("write to", folder, error))?;
    let shown = units::shown(&folder.display().to_string());
    if printer.json() {
        return printer.object(&json!({ "folder": shown }));
    }
    printer.data(&format!("{shown}\n"))
}
