//! `pinhole rpc-server`: lends a device to another machine.

use std::net::SocketAddr;
use std::sync::mpsc;
use std::thread;

use pinhole::Error;
use pinhole::rpc::{Heard, Lending, Server};
use pinhole::size::Size;
use serde::Serialize;

use super::failure::Failure;
use super::printer::{Printer, Talk};
use super::{interrupt, request, threads};

/// Lend a device to another machine, which names it as --device rpc:ADDRESS:PORT
///
/// Computes for one client at a time, in no more memory than --vram. Nothing is encrypted and no one is asked who they are: all who reach the
/// server may use the device, and the network between the two sees and may change all that goes by. So it is bound to loopback and
/// private addresses only; through other networks take a tunnel, such as ssh -L 7007:127.0.0.1:7007 HOST.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Where to be reached; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7007")]
    bind: String,
    /// The most memory that a client may take on the device, never exceeded: 8G, 3500M, ... in units of 1024
    #[arg(long, value_name = "SIZE")]
    vram: Size,
    /// What is lent: auto, or a device that `pinhole devices` lists
    #[arg(long, value_name = "NAME", default_value = "auto")]
    device: String,
    /// Threads that compute, if the CPU does [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser())]
    threads: Option<usize>,
    /// Allow addresses that the internet may know, where a firewall keeps others away
    #[arg(long)]
    allow_public_address: bool,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole rpc-server --bind 192.168.1.5:7007 --vram 10G --device cuda0
  pinhole generate -m flux1-dev-q8_0.gguf -p \"a lighthouse\" --device cuda0,rpc:192.168.1.5:7007
  pinhole rpc-server --vram 2G --device cpu --threads 8
  pinhole devices --device rpc:127.0.0.1:7007";

/// Where the server is, in JSON.
#[derive(Serialize)]
struct Report {
    address: SocketAddr,
    device: String,
    vram_bytes: u64,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let device = request::device(&args.device)?;
    let (threads, _inside) = threads::start(args.threads);
    let vram = usize::try_from(args.vram.0).unwrap_or(usize::MAX);
    let server = Server::bind(&args.bind, args.allow_public_address, Lending { device, threads, vram })?;
    let stop = interrupt::cancel_flag(printer);
    let (address, name) = (server.address(), device.name());
    if printer.json() {
        printer.object(&Report { address, device: name, vram_bytes: args.vram.0 })?;
    } else {
        printer.data(&format!("{address} computes on {name} with {}\n", args.vram))?;
    }
    let (told, hears) = mpsc::channel();
    thread::scope(|scope| {
        let (server, stop) = (&server, &stop);
        let serving = scope.spawn(move || {
            // Who hears is there until this ends.
            let served = server.run(stop, &|heard| told.send(heard).unwrap_or_default());
            drop(told);
            served
        });
        for heard in hears {
            printer.note(&said(&heard));
        }
        serving.join().unwrap_or_else(|_| {
            Err(Error::Device {
                device: device.name(),
                message: "the server ended in a way that was not expected".into(),
                hint: None,
            })
        })
    })?;
    Ok(())
}

fn said(heard: &Heard) -> String {
    match heard {
        Heard::Came(client) => format!("{client} came"),
        Heard::Went(client, None) => format!("{client} went"),
        Heard::Went(client, Some(why)) => format!("{client} was let go: {why}"),
        Heard::TurnedAway(client) => format!("{client} was turned away: one client at a time"),
        other => format!("{other:?}"),
    }
}
