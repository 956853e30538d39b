//! The command `pinhole`: arguments in, library calls, results out. See `pinhole --help`.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
