//! `pinhole serve`: runs the program `pinhole-serve`, as git runs its own.
//!
//! The server links the library of this package, so this package cannot link the server.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use super::failure::Failure;
use super::printer::Talk;

/// Draw pictures for those who ask over HTTP
///
/// Runs pinhole-serve, which lies beside this program or in PATH. `pinhole serve --help` has its options.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Args {
    /// The server's options
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
    #[arg(skip)]
    pub(super) talk: Talk,
}

/// The program's name.
const PROGRAM: &str = "pinhole-serve";

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut command = Command::new(program());
    command.args(&args.arguments);
    let failed = |source| Failure::Program { name: PROGRAM, source };
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        // It takes this process's place, so that signals reach it.
        Err(failed(command.exec()))
    }
    #[cfg(not(unix))]
    {
        let status = command.status().map_err(failed)?;
        std::process::exit(status.code().unwrap_or(1))
    }
}

/// The one beside this program, or else the one that the system finds.
fn program() -> PathBuf {
    let name = format!("{PROGRAM}{}", env::consts::EXE_SUFFIX);
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(&name)));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| name.into())
}
