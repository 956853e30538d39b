//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::HeaderValue;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pinhole::plan::Offload;
use pinhole::plan::devices::Among;
use pinhole::size::Size;

use crate::catalogue::Entry;
#[cfg(feature = "cluster")]
use crate::fleet::QueueAddress;
use crate::limits::Limits;

/// Draw pictures for those who ask over HTTP
///
/// A queue in front of one device, or of several that compute together, which never takes more memory than it may: a job that cannot fit is refused before it is accepted,
/// with the number that would do. It speaks OpenAI's images interface, that of AUTOMATIC1111's web UI (/sdapi/v1), and one of its own,
/// which /openapi.json describes; at / there is a page.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "pinhole serve", bin_name = "pinhole serve", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Options {
    /// A model, as `pinhole generate` takes it, and the name that requests have for it [default name: its file's]; may be given several
    /// times. The first one is meant by requests without a name. They are loaded when they are needed
    #[arg(short, long = "model", value_name = "[NAME=]MODEL", required = true)]
    pub models: Vec<Entry>,
    /// A LoRA that requests may name; may be given several times
    #[arg(long = "lora", value_name = "[NAME=]FILE")]
    pub loras: Vec<Entry>,
    /// Where to listen; port 0 is any that is free
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7860")]
    pub listen: SocketAddr,

    /// Where to compute: auto, a device that `pinhole devices` lists, or several with commas between them, which compute each job together
    #[arg(long, value_name = "NAMES", default_value = "auto", help_heading = "Memory")]
    pub device: String,
    /// The most memory to take on each device, all models together, never exceeded: 4G, 3500M, ...; auto is what is free, less a margin.
    /// One size for all devices, or one for each with commas between them
    #[arg(long, value_name = "SIZES", default_value = "auto", value_parser = budgets, help_heading = "Memory")]
    pub vram: Budgets,
    /// What several devices may have among them of what denoises: auto, none, or passes, tokens and stages with commas between them
    #[arg(long, value_name = "WAYS", default_value = "auto", value_parser = among, help_heading = "Memory")]
    pub devices_by: Among,
    /// How to share a device that is smaller than the model: none, model, sequential, or auto, the fastest that fits
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = offload(), help_heading = "Memory")]
    pub offload: Offload,
    /// The most memory to take on the host, everything counted; auto is what is free
    #[arg(long, value_name = "SIZE", default_value = "auto", value_parser = budget, help_heading = "Memory")]
    pub host_memory: Budget,
    /// Threads of the CPU [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512), help_heading = "Memory")]
    pub threads: Option<u32>,
    /// Unload all models after so many seconds without a job [default: they stay]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Memory")]
    pub idle: Option<u64>,

    /// Keep jobs and pictures in this folder: what was accepted is done after a restart, even after kill -9
    #[arg(long, value_name = "DIR", help_heading = "Jobs")]
    pub state: Option<PathBuf>,
    /// Jobs that wait at most; others are told to come again (429)
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue, help_heading = "Jobs")]
    pub queue_length: usize,
    /// Jobs of one key, or of one address where there are no keys, that wait at most
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue_per_key, help_heading = "Jobs")]
    pub queue_per_key: usize,
    /// Seconds from a job's acceptance to its end, at most; a job may ask for less
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().deadline.as_secs(), help_heading = "Jobs")]
    pub deadline: u64,
    /// Draw so many jobs at once that differ in their seeds alone; 1 is each by itself
    #[arg(long, value_name = "N", default_value_t = Limits::default().coalesce, help_heading = "Jobs")]
    pub coalesce: usize,
    /// Know so many jobs that have ended
    #[arg(long, value_name = "N", default_value_t = Limits::default().kept_jobs, help_heading = "Jobs")]
    pub keep: usize,
    /// Keep so much of their pictures
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size, help_heading = "Jobs")]
    pub keep_size: usize,
    /// Know them for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().kept_for.as_secs(), help_heading = "Jobs")]
    pub keep_time: u64,
    /// After the signal to stop, let what is drawn go on for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().grace.as_secs(), help_heading = "Jobs")]
    pub grace: u64,

    /// What makes this server one machine of many
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    pub cluster: Cluster,

    /// A file with API keys, NAME:KEY on each line. Without it, everybody who reaches the address may ask
    #[arg(long, value_name = "FILE", help_heading = "Access")]
    pub api_keys: Option<PathBuf>,
    /// Listen on an address that others reach, without keys
    #[arg(long, help_heading = "Access")]
    pub without_keys: bool,
    /// Pages that may use this server from a browser, as `https://example.org`; * is every page; may be given several times
    #[arg(long = "cors", value_name = "ORIGIN", value_parser = origin, help_heading = "Access")]
    pub origins: Vec<HeaderValue>,
    /// A name that this server is called by, where there are no keys; addresses and localhost need none
    #[arg(long = "host", value_name = "NAME", help_heading = "Access")]
    pub hosts: Vec<String>,

    /// The most bytes of a request
    #[arg(long, value_name = "SIZE", default_value = "32M", value_parser = size, help_heading = "Limits")]
    pub max_body: usize,
    /// The most bytes of a prompt
    #[arg(long, value_name = "SIZE", default_value = "16K", value_parser = size, help_heading = "Limits")]
    pub max_prompt: usize,
    /// The most pixels that a job draws, in all of its pictures
    #[arg(long, value_name = "N", default_value_t = Limits::default().pixels, help_heading = "Limits")]
    pub max_pixels: usize,
    /// The most pixels of a picture that is given
    #[arg(long, value_name = "N", default_value_t = Limits::default().input_pixels, help_heading = "Limits")]
    pub max_input_pixels: usize,
    /// The most pictures of a job
    #[arg(long, value_name = "N", default_value_t = Limits::default().batch, help_heading = "Limits")]
    pub max_batch: usize,
    /// The most steps of a job
    #[arg(long, value_name = "N", default_value_t = Limits::default().steps, help_heading = "Limits")]
    pub max_steps: usize,
    /// The most connections at once
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections, help_heading = "Limits")]
    pub max_connections: usize,

    /// How to write the log, which goes to stderr: text, or json, an object on each line
    #[arg(long, value_name = "FORM", default_value = "text", value_parser = ["text", "json"], help_heading = "Output")]
    pub log: String,
    /// How much to write: error, warn, info or debug
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug"], help_heading = "Output")]
    pub log_level: String,
}

/// What makes a server one machine of many.
#[cfg(feature = "cluster")]
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Many machines")]
pub struct Cluster {
    /// Take jobs from this queue of NATS JetStream, and none over HTTP; NAME is pinhole by default. PINHOLE_QUEUE keeps a password from
    /// the list of processes
    #[arg(
        long,
        value_name = "nats://HOST[:PORT][/NAME]",
        env = "PINHOLE_QUEUE",
        hide_env = true,
        requires = "results",
        conflicts_with_all = ["state", "api_keys"]
    )]
    pub queue: Option<QueueAddress>,
    /// A file with credentials for the queue, as `nsc` writes it
    #[arg(long, value_name = "FILE", requires = "queue")]
    pub queue_credentials: Option<PathBuf>,
    /// Take so many jobs from the queue beside the one that is drawn
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub queue_ahead: usize,
    /// Where results of the queue's jobs go: s3://BUCKET/PREFIX, with AWS_ACCESS_KEY_ID and others as Amazon's tools have them, or
    /// file:///FOLDER
    #[arg(long, value_name = "ADDRESS", value_parser = crate::bucket::address, requires = "queue")]
    pub results: Option<url::Url>,
    /// Where models and LoRAs of s3://BUCKET/FILE or s3://BUCKET/FOLDER/ are kept [default: pinhole/s3 in the folder of caches]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  pinhole serve -m mini
  pinhole serve -m dev=flux1-dev-q4_k_s.gguf -m xl=sdxl.safetensors --vram 4G --idle 60
  pinhole serve -m dev.gguf --lora ink=ink.safetensors --state /var/lib/pinhole
  pinhole serve -m dev.gguf --listen 0.0.0.0:7860 --api-keys keys.txt --cors https://example.org
  pinhole serve -m dev=s3://models/dev.gguf --queue nats://queue.lan --results s3://pictures/dev
  curl localhost:7860/v1/images/generations -H 'content-type: application/json' \\
      -d '{\"prompt\": \"a small yellow star on a blue background\", \"response_format\": \"url\"}'";

/// A ceiling; `None` for `auto`.
#[derive(Clone, Copy, Debug)]
pub struct Budget(pub Option<usize>);

fn budget(text: &str) -> Result<Budget, String> {
    match text.eq_ignore_ascii_case("auto") {
        true => Ok(Budget(None)),
        false => size(text).map(|bytes| Budget(Some(bytes))).map_err(|error| format!("{error}, or auto")),
    }
}

/// A ceiling for each device, or one for all.
#[derive(Clone, Debug)]
pub struct Budgets(pub Vec<Budget>);

fn budgets(text: &str) -> Result<Budgets, String> {
    let each: Result<Vec<Budget>, String> = text.split(',').map(|text| budget(text.trim())).collect();
    each.map(Budgets)
}

fn among(text: &str) -> Result<Among, String> {
    text.parse()
}

fn size(text: &str) -> Result<usize, String> {
    let size: Size = text.parse().map_err(|error: pinhole::size::SizeError| error.to_string())?;
    usize::try_from(size.0).map_err(|_| "more memory than this machine can have".to_owned())
}

fn offload() -> impl TypedValueParser<Value = Offload> {
    let names = Offload::ALL.iter().map(|offload| offload.name());
    PossibleValuesParser::new(names).try_map(|name| name.parse::<Offload>().map_err(std::io::Error::other))
}

fn origin(text: &str) -> Result<HeaderValue, String> {
    let is_origin =
        text == "*" || text.split_once("://").is_some_and(|(_, host)| !host.is_empty() && !host.contains('/'));
    let value = HeaderValue::from_str(text).ok().filter(|_| is_origin);
    value.ok_or_else(|| "expected an origin, as https://example.org, or *".to_owned())
}

impl Options {
    /// Whether jobs come from a queue that many machines share.
    pub fn is_worker(&self) -> bool {
        #[cfg(feature = "cluster")]
        return self.cluster.queue.is_some();
        #[cfg(not(feature = "cluster"))]
        return false;
    }

    /// What the server takes at most.
    pub fn limits(&self) -> Limits {
        let standard = Limits::default();
        Limits {
            connections: self.max_connections.max(1),
            body: self.max_body,
            bodies: standard.bodies.max(self.max_body.saturating_mul(4)),
            prompt: self.max_prompt,
            queue: self.queue_length.max(1),
            queue_per_key: self.queue_per_key.max(1),
            pixels: self.max_pixels,
            input_pixels: self.max_input_pixels,
            waiting_pixels: standard.waiting_pixels.max(self.max_input_pixels.saturating_mul(standard.inputs)),
            batch: self.max_batch.max(1),
            steps: self.max_steps.max(1),
            coalesce: self.coalesce.max(1),
            // Results of a worker are in its bucket.
            kept_jobs: if self.is_worker() { 0 } else { self.keep },
            kept_bytes: self.keep_size,
            kept_for: Duration::from_secs(self.keep_time),
            deadline: Duration::from_secs(self.deadline.max(1)),
            grace: Duration::from_secs(self.grace),
            ..standard
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Options::command().debug_assert();
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let parse = |arguments: &[&str]| Options::try_parse_from([&["pinhole-serve"], arguments].concat());
        assert!(parse(&["-m", "mini", "--vram", "4G", "--cors", "https://example.org", "--idle", "60"]).is_ok());
        for arguments in [
            &[][..],
            &["-m", "../=x"],
            &["-m", "mini", "--vram", "banana"],
            &["-m", "mini", "--vram", "4G,banana"],
            &["-m", "mini", "--devices-by", "heads"],
            &["-m", "mini", "--cors", "example.org"],
            &["-m", "mini", "--cors", "https://example.org/path"],
            &["-m", "mini", "--listen", "7860"],
            &["-m", "mini", "--idle", "0"],
            &["-m", "mini", "--queue", "nats://queue.lan"],
            &["-m", "mini", "--results", "s3://bucket"],
            &["-m", "mini", "--queue", "64", "--results", "s3://bucket"],
            &["-m", "mini", "--queue", "nats://queue.lan", "--results", "s3://bucket", "--state", "/tmp"],
            &["-m", "mini", "--threads", "0"],
        ] {
            assert!(parse(arguments).is_err(), "{arguments:?}");
        }
    }
}
