//! `pinhole pull`: models by name, from where they are published to here.

mod fetch;
mod meanwhile;

use std::path::{Path, PathBuf};
use std::time::Instant;

use pinhole::convert::{self, Options, Progress, Types, WriteOptions};
use pinhole::ggml::CancelFlag;
use pinhole::pipeline;
use pinhole::source::Source;
use pinhole_hub::catalogue::{Entry, Kind};
use pinhole_hub::checksum::Checksum;
use pinhole_hub::{Asked, Catalogue, Event, Hub, Settings, Wanted, tidy};
use serde::Serialize;

use self::fetch::{fetch, listened};
use super::failure::Failure;
use super::printer::{Printer, Talk, Unit};
use super::{interrupt, pulled, threads, units};

/// Fetch models by name, from Hugging Face, ModelScope or any address
///
/// Prints where the files lie: in the folders of Hugging Face's own tools, which share them. What was begun goes on where it broke
/// off, and nothing appears that does not have the checksum that the hub names. HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT (a mirror),
/// HTTPS_PROXY and SSL_CERT_FILE are followed; what is pinhole's alone lies in PINHOLE_HOME [default: ~/.cache/pinhole].
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// A name of the catalogue (`pinhole models --all`), with a type if you want another than the first; hf:OWNER/NAME[@REVISION][:FILE]
    /// of Hugging Face, or ms: of ModelScope; or an address
    #[arg(value_name = "NAME[:TYPE]", required = true)]
    names: Vec<String>,
    /// Make a bundle of it, in this type: q8_0, q6_k, q4_k_s, .. as for `pinhole convert`. Without a type in NAME, it is made from the
    /// published weights, and while they come
    #[arg(long, value_name = "TYPE")]
    convert: Option<String>,
    /// The bundle to write [default: in PINHOLE_HOME, where -m NAME:TYPE finds it]
    #[arg(short, long, value_name = "OUT.gguf", requires = "convert")]
    output: Option<PathBuf>,
    /// The SHA-256 that the file of an address has to have
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<Checksum>,
    /// Read files again that are there, and compare their checksums
    #[arg(long)]
    check: bool,
    /// Say what would be fetched, and fetch nothing
    #[arg(long)]
    dry_run: bool,
    /// Ranges of a file that are fetched at a time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Threads that convert [default: one for each core]
    #[arg(long, value_name = "N", value_parser = threads::parser(), requires = "convert")]
    threads: Option<usize>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole pull z-image-turbo
  pinhole pull flux1-schnell:q8_0 flux1-turbo-alpha
  pinhole pull sdxl --convert q8_0
  pinhole pull hf:city96/FLUX.1-dev-gguf:flux1-dev-Q3_K_S.gguf
  pinhole pull hf:Tongyi-MAI/Z-Image-Turbo@main --convert q4_k_s -o z.gguf
  HF_ENDPOINT=https://hub.example pinhole pull qwen-image
  pinhole generate -m z-image-turbo -p \"a lighthouse at dusk\" -o lighthouse.png";

#[derive(Serialize)]
struct Report {
    version: &'static str,
    pulled: Vec<Row>,
    /// What was to be fetched, without what was there.
    bytes_fetched: u64,
    /// Whether anything was.
    written: bool,
    seconds: f64,
    warnings: Vec<String>,
}

/// One of the names.
#[derive(Serialize)]
struct Row {
    name: String,
    #[serde(rename = "type")]
    dtype: Option<String>,
    licence: Option<String>,
    /// The folder of a whole repository.
    #[serde(serialize_with = "units::path_if_any")]
    directory: Option<PathBuf>,
    files: Vec<FileRow>,
    /// The bundle that was made of it.
    #[serde(serialize_with = "units::path_if_any")]
    converted: Option<PathBuf>,
}

#[derive(Serialize)]
struct FileRow {
    /// The place that it takes in a model.
    place: Option<String>,
    file: String,
    repository: Option<String>,
    bytes: Option<u64>,
    checksum: Option<String>,
    /// Whether it was there before.
    was_there: bool,
    #[serde(serialize_with = "units::path")]
    path: PathBuf,
}

/// One of the names, with the files that it means.
struct Pull {
    name: String,
    entry: Option<&'static Entry>,
    dtype: Option<String>,
    wanted: Vec<Wanted>,
}

fn sha256(text: &str) -> Result<Checksum, String> {
    Checksum::sha256(text).ok_or_else(|| "expected 64 hexadecimal digits".to_owned())
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let started = Instant::now();
    refuse_combinations(args)?;
    let cancel = interrupt::cancel_flag(printer);
    let settings = Settings { connections: args.connections.into(), ..Settings::from_env()? };
    let hub = Hub::new(settings)?;
    let mut pulls = Vec::new();
    for name in &args.names {
        pulls.push(find(args, name, &hub, &cancel, printer)?);
    }
    let all: Vec<Wanted> = pulls.iter().flat_map(|pull| pull.wanted.clone()).collect();
    if args.check || args.sha256.is_some() {
        check(&hub, &all, &cancel, printer)?;
    }
    let bytes_fetched = hub.missing(&all);
    let mut rows: Vec<Row> = pulls.iter().map(row).collect();
    if !args.dry_run {
        match (&args.convert, &pulls[..], &mut rows[..]) {
            (Some(types), [pull], [row]) => {
                row.converted = Some(converted(args, types, pull, &hub, (&cancel, printer))?)
            }
            _ => fetch(&hub, &all, bytes_fetched, &cancel, printer)?,
        }
    }
    let (version, seconds) = (env!("CARGO_PKG_VERSION"), started.elapsed().as_secs_f64());
    let written = !args.dry_run;
    let report = Report { version, pulled: rows, bytes_fetched, written, seconds, warnings: printer.warnings() };
    if printer.json() {
        return printer.object(&report);
    }
    text(args, &report, &pulls, printer)
}

/// Refuses options that mean nothing together.
fn refuse_combinations(args: &Args) -> Result<(), pinhole::Error> {
    let several = args.names.len() > 1;
    if several && args.convert.is_some() {
        return Err(pinhole::Error::option("--convert", "one NAME", format!("{} of them", args.names.len())));
    }
    if args.sha256.is_some() && (several || !args.names.iter().all(|name| name.contains("://"))) {
        let error = pinhole::Error::option("--sha256", "one address", "something else");
        return Err(error.with_hint("the files of a hub are compared with its own checksums"));
    }
    Ok(())
}

/// Asks which files `name` means.
fn find(args: &Args, name: &str, hub: &Hub, cancel: &CancelFlag, printer: &Printer) -> Result<Pull, Failure> {
    let asked = Asked::parse(name, &hub.settings)?;
    let catalogue = Catalogue::built_in();
    let mut listen = |event: Event<'_>| listened(printer, event);
    let cancelled = || cancel.is_raised();
    let Asked::Model { name: entry, dtype } = &asked else {
        let mut wanted = hub.find(&asked, catalogue, &cancelled, &mut listen)?;
        if let (Some(checksum), [only]) = (&args.sha256, &mut wanted[..]) {
            only.expect(checksum.clone());
        }
        return Ok(Pull { name: name.to_owned(), entry: None, dtype: None, wanted });
    };
    let entry = catalogue.entry(entry)?;
    let is_made = args.convert.is_some() && dtype.is_none();
    let variant = if is_made { entry.original()? } else { entry.variant(dtype.as_deref())? };
    let wanted = hub.contents(&catalogue.contents(variant)?, &cancelled, &mut listen)?;
    Ok(Pull { name: entry.name.clone(), entry: Some(entry), dtype: Some(variant.dtype.clone()), wanted })
}

/// Compares what is there with the checksums of the hub. What is wrong is gone afterwards, and fetched anew.
fn check(hub: &Hub, all: &[Wanted], cancel: &CancelFlag, printer: &Printer) -> Result<(), Failure> {
    printer.begin("check", all.len() as u64, Unit::Parts);
    for file in all {
        printer.doing(file.name.clone());
        match hub.check(file, &|| cancel.is_raised()) {
            Err(error @ pinhole_hub::Error::Checksum { .. }) => printer.warn(&format!("{error}; it is fetched anew")),
            other => other?,
        }
        printer.advance();
    }
    printer.end("check");
    Ok(())
}

/// Fetches the files of `pull`, and makes the bundle of them, unless it is there.
fn converted(
    args: &Args,
    types: &str,
    pull: &Pull,
    hub: &Hub,
    (cancel, printer): (&CancelFlag, &Printer),
) -> Result<PathBuf, Failure> {
    let output = output(args, types, pull, &hub.settings)?;
    let types: Types = types.parse()?;
    let is_there = output.exists();
    let made = (&types, output.as_path());
    if !is_there && meanwhile::convert((hub, &pull.wanted), made, args.threads, (cancel, printer))? {
        return Ok(output);
    }
    fetch(hub, &pull.wanted, hub.missing(&pull.wanted), cancel, printer)?;
    if is_there {
        printer.note(&format!("{} is there already", output.display()));
        return Ok(output);
    }
    let (_, _inside) = threads::start(args.threads);
    let source = source(pull)?;
    let whole = pipeline::open(&source)?;
    let networks = whole.networks();
    let plan = convert::plan(&whole.source, &networks, Options::from(types))?;
    printer.begin("convert", plan.tensors.iter().map(|tensor| tensor.bytes).sum(), Unit::Bytes);
    plan.write(&output, WriteOptions::default(), &mut |Progress { tensor, done, .. }| {
        printer.progress(done);
        printer.doing(tensor.to_owned());
        cancel.check()
    })?;
    printer.end("convert");
    Ok(output)
}

/// Where the bundle goes.
fn output(args: &Args, types: &str, pull: &Pull, settings: &Settings) -> Result<PathBuf, Failure> {
    if let Some(output) = &args.output {
        return Ok(output.clone());
    }
    if !types.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        let error = pinhole::Error::option("--convert", "one type, or --output beside it", types);
        return Err(error.into());
    }
    let name = match (&pull.entry, &pull.wanted[..]) {
        (Some(entry), _) => entry.name.clone(),
        (None, [only]) => Path::new(&only.name).file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        (None, several) => {
            several.iter().find_map(|file| file.repository.as_ref()).map_or_else(String::new, |found| found.id())
        }
    };
    let output = tidy::converted(settings, &name, &types.to_ascii_lowercase());
    if let Some(folder) = output.parent() {
        std::fs::create_dir_all(folder).map_err(|source| pinhole::Error::Io {
            action: "make",
            path: folder.to_owned(),
            source,
        })?;
    }
    Ok(output)
}

/// The model that was fetched.
fn source(pull: &Pull) -> Result<Source, pinhole::Error> {
    if let Some(directory) = pull.wanted.iter().find_map(|file| file.directory.as_ref()) {
        return Source::open(directory);
    }
    match &pull.wanted[..] {
        [only] => Source::open(&only.path),
        several => {
            let placed = several.iter().map(|file| (file.place.clone().unwrap_or_default(), file.path.clone()));
            pulled::assemble(&placed.collect::<Vec<_>>())
        }
    }
}

fn row(pull: &Pull) -> Row {
    Row {
        name: pull.name.clone(),
        dtype: pull.dtype.clone(),
        licence: pull.entry.and_then(|entry| entry.licence.clone()),
        directory: pull.wanted.iter().find_map(|file| file.directory.clone()),
        files: pull.wanted.iter().map(file_row).collect(),
        converted: None,
    }
}

fn file_row(file: &Wanted) -> FileRow {
    FileRow {
        place: file.place.clone(),
        file: file.name.clone(),
        repository: file.repository.as_ref().map(ToString::to_string),
        bytes: file.size,
        checksum: file.checksum.as_ref().map(|checksum| checksum.digits().to_owned()),
        was_there: file.is_there(),
        path: file.path.clone(),
    }
}

fn text(args: &Args, report: &Report, pulls: &[Pull], printer: &Printer) -> Result<(), Failure> {
    let mut lines = String::new();
    for row in &report.pulled {
        if let Some(path) = row.converted.as_ref().or(row.directory.as_ref()) {
            lines += &format!("{}\n", path.display());
            continue;
        }
        for file in &row.files {
            lines += &format!("{}\n", file.path.display());
        }
    }
    printer.data(&lines)?;
    for pull in pulls {
        if let Some(entry) = pull.entry {
            printer.note(&note(args, entry, pull.dtype.as_deref()));
        }
    }
    if args.dry_run {
        printer.note(&format!("{} to fetch; nothing was fetched", units::bytes(report.bytes_fetched)));
    }
    Ok(())
}

/// What to know of a model of the catalogue, and how to use it.
fn note(args: &Args, entry: &Entry, dtype: Option<&str>) -> String {
    let licence = entry.licence.as_ref().map_or_else(
        || format!("its licence is on {}", entry.source.last().map_or("its page", String::as_str)),
        |licence| format!("licence {licence}"),
    );
    let options = entry.options.as_ref().map_or_else(String::new, |options| format!(" {options}"));
    let is_first = entry.types.first().is_some_and(|first| Some(first.dtype.as_str()) == dtype);
    let dtype = args.convert.as_deref().or(dtype.filter(|_| !is_first));
    let dtype = dtype.map_or_else(String::new, |dtype| format!(":{dtype}"));
    match entry.kind {
        Kind::Model if args.output.is_some() => format!("{} ({licence})", entry.words),
        Kind::Model => format!("{} ({licence}): -m {}{dtype}{options}", entry.words, entry.name),
        Kind::Lora => format!("{} ({licence}):{options}", entry.words),
        Kind::Part => format!("{} ({licence})", entry.words),
    }
}
