//! The command line as its users meet it: every command's help, a success and its failures, as snapshots, and what
//! snapshots cannot show.
//!
//! `INSTA_UPDATE=always cargo test --test cli` writes the snapshots anew; read the difference before you keep it.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[cfg(unix)]
mod support;

mod cli {
    mod bench;
    mod compare;
    mod convert;
    mod devices;
    mod doctor;
    mod generate;
    mod help;
    mod inspect;
    mod limits;
    mod plan;
    #[cfg(unix)]
    mod pull;
    mod rpc_server;
    mod run;
    mod serve;
    mod shells;
    mod texts;
    mod upscale;
}
