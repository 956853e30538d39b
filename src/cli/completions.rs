//! `pinhole completions`: what makes a shell complete pinhole's options.

use clap_complete::Shell;

use super::failure::Failure;
use super::printer::{Printer, Talk};

/// Print what makes a shell complete commands and options
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole completions bash > ~/.local/share/bash-completion/completions/pinhole
  pinhole completions zsh > ~/.zfunc/_pinhole
  pinhole completions fish > ~/.config/fish/completions/pinhole.fish
  pinhole completions powershell >> $PROFILE";

pub(super) fn run(args: &Args, mut command: clap::Command, printer: &Printer) -> Result<(), Failure> {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    printer.data(&String::from_utf8_lossy(&script))
}
