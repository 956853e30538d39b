//! `pinhole models`: what was pulled, and what could be.

use std::collections::HashSet;
use std::path::PathBuf;

use pinhole_hub::cache::Folder;
use pinhole_hub::catalogue::{Catalogue, Contents, Kind};
use pinhole_hub::tidy::{self, Removable};
use pinhole_hub::{Asked, Settings};
use serde::Serialize;

use super::failure::Failure;
use super::printer::{Printer, Talk};
use super::table::Table;
use super::units;

/// List the models that were pulled, with their sizes; remove them
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// List the catalogue: what `pinhole pull` knows by name
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    talk: Talk,
}

#[derive(clap::Subcommand)]
enum Action {
    Rm(RemoveArgs),
    Prune(PruneArgs),
}

/// Remove models: by their names, or hf:OWNER/NAME with all that lies of it
#[derive(clap::Args)]
#[command(after_help = REMOVE_EXAMPLES)]
struct RemoveArgs {
    /// A name of `pinhole models`; without a type, all types go. Files that another model of the catalogue has stay
    #[arg(value_name = "NAME[:TYPE]", required = true)]
    names: Vec<String>,
    /// Say what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    talk: Talk,
}

/// Remove what no one needs: parts of files that were not fetched to their end, contents that nothing links to, and older versions of
/// models of the catalogue
#[derive(clap::Args)]
#[command(after_help = PRUNE_EXAMPLES)]
struct PruneArgs {
    /// Say what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole models
  pinhole models --all
  pinhole models rm z-image-turbo:q8_0
  pinhole models prune --dry-run";

const REMOVE_EXAMPLES: &str = "\
Examples:
  pinhole models rm z-image-turbo
  pinhole models rm flux1-dev:q8_0 --dry-run
  pinhole models rm hf:city96/FLUX.1-dev-gguf";

const PRUNE_EXAMPLES: &str = "\
Examples:
  pinhole models prune --dry-run
  pinhole models prune";

/// What lies here.
#[derive(Serialize)]
struct Report {
    models: Vec<ModelRow>,
    /// What all repositories and files take together, those of other tools among them.
    bytes: u64,
    #[serde(serialize_with = "units::path")]
    cache: PathBuf,
    #[serde(serialize_with = "units::path")]
    home: PathBuf,
}

#[derive(Serialize)]
struct ModelRow {
    name: String,
    kind: &'static str,
    /// With what it shares with others.
    bytes: u64,
    #[serde(serialize_with = "units::paths")]
    paths: Vec<PathBuf>,
}

/// What could be pulled.
#[derive(Serialize)]
struct KnownRow {
    name: &'static str,
    kind: &'static str,
    #[serde(rename = "is")]
    words: &'static str,
    types: Vec<&'static str>,
    licence: Option<&'static str>,
    /// The types whose owner lets in only accounts that have accepted the terms.
    gated: Vec<&'static str>,
    source: &'static [String],
}

/// What was removed, or would be.
#[derive(Serialize)]
struct RemovedReport {
    removed: Vec<RemovedRow>,
    bytes: u64,
    /// Whether it was.
    written: bool,
}

#[derive(Serialize)]
struct RemovedRow {
    #[serde(serialize_with = "units::path")]
    path: PathBuf,
    bytes: u64,
    reason: &'static str,
}

impl Args {
    pub(super) fn talk(&self) -> &Talk {
        match &self.action {
            None => &self.talk,
            Some(Action::Rm(args)) => &args.talk,
            Some(Action::Prune(args)) => &args.talk,
        }
    }
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let settings = Settings::from_env()?;
    match &args.action {
        None if args.all => list_known(printer),
        None => list(&settings, printer),
        Some(Action::Rm(args)) => {
            let mut gone = Vec::new();
            for name in &args.names {
                gone.extend(named(&settings, name)?);
            }
            gone.sort();
            gone.dedup();
            remove(gone, args.dry_run, printer)
        }
        Some(Action::Prune(args)) => remove(tidy::superfluous(&settings)?, args.dry_run, printer),
    }
}

fn list(settings: &Settings, printer: &Printer) -> Result<(), Failure> {
    let models = rows(settings)?;
    let of_repositories: u64 = tidy::repositories(settings).iter().map(|(_, bytes)| bytes).sum();
    let of_files: u64 = tidy::own_files(settings).iter().map(|(_, bytes)| bytes).sum();
    let bytes = of_repositories + of_files;
    let report = Report { models, bytes, cache: settings.cache.clone(), home: settings.home.clone() };
    if printer.json() {
        return printer.object(&report);
    }
    if report.models.is_empty() {
        printer.note("nothing was pulled yet; `pinhole models --all` lists what there is");
        return Ok(());
    }
    let mut table = Table::new(["name", "kind", ">size"]);
    for row in &report.models {
        table.row([units::shown(&row.name), row.kind.into(), units::bytes(row.bytes)]);
    }
    printer.data(&table.to_string())?;
    printer.note(&format!("\n{} in {} and {}", units::bytes(bytes), report.cache.display(), report.home.display()));
    Ok(())
}

/// What lies here: models of the catalogue, conversions, files from elsewhere, and other repositories.
fn rows(settings: &Settings) -> Result<Vec<ModelRow>, Failure> {
    let mut rows = Vec::new();
    let mut known = HashSet::new();
    let mut pulled = tidy::all_pulled(settings)?;
    let of_models: HashSet<PathBuf> = pulled
        .iter()
        .filter(|found| found.entry.kind != Kind::Part)
        .flat_map(|found| found.files.iter().map(|(_, path)| path.clone()))
        .collect();
    // A part is listed with its models.
    pulled.retain(|found| {
        found.entry.kind != Kind::Part || !found.files.iter().all(|(_, path)| of_models.contains(path))
    });
    for found in pulled {
        let variant = found.entry.variant(Some(found.dtype))?;
        match Catalogue::built_in().contents(variant)? {
            Contents::Directory { repository, .. } => known.extend([repository]),
            Contents::Files(files) => known.extend(files.into_iter().map(|file| file.repository)),
        }
        let paths = found.files.into_iter().map(|(_, path)| path).chain(found.directory).collect();
        let name = format!("{}:{}", found.entry.name, found.dtype);
        rows.push(ModelRow { name, kind: words(found.entry.kind), bytes: found.bytes, paths });
    }
    for (path, bytes) in tidy::own_files(settings) {
        let is_converted = path.starts_with(tidy::converted_folder(settings));
        let kind = if is_converted { "converted" } else { "file" };
        rows.push(ModelRow { name: path.display().to_string(), kind, bytes, paths: vec![path] });
    }
    for (repository, bytes) in tidy::repositories(settings) {
        if !known.contains(&repository) {
            let paths = vec![Folder::of(settings, &repository).path];
            rows.push(ModelRow { name: repository.to_string(), kind: "repository", bytes, paths });
        }
    }
    Ok(rows)
}

fn words(kind: Kind) -> &'static str {
    match kind {
        Kind::Model => "model",
        Kind::Part => "part",
        Kind::Lora => "lora",
    }
}

fn list_known(printer: &Printer) -> Result<(), Failure> {
    let catalogue = Catalogue::built_in();
    let mut rows = Vec::new();
    for entry in &catalogue.entries {
        let mut gated = Vec::new();
        for variant in &entry.types {
            let is_gated = match catalogue.contents(variant)? {
                Contents::Directory { repository, .. } => catalogue.is_gated(&repository),
                Contents::Files(files) => files.iter().any(|file| catalogue.is_gated(&file.repository)),
            };
            if is_gated {
                gated.push(variant.dtype.as_str());
            }
        }
        rows.push(KnownRow {
            name: &entry.name,
            kind: words(entry.kind),
            words: &entry.words,
            types: entry.types.iter().map(|variant| variant.dtype.as_str()).collect(),
            licence: entry.licence.as_deref(),
            gated,
            source: &entry.source,
        });
    }
    if printer.json() {
        return printer.object(&rows);
    }
    let mut table = Table::new(["name", "what it is", "types", "licence"]);
    for row in &rows {
        let types: Vec<String> = row
            .types
            .iter()
            .map(|dtype| if row.gated.contains(dtype) { format!("{dtype}*") } else { (*dtype).to_owned() })
            .collect();
        table.row([row.name.into(), row.words.into(), types.join(" "), row.licence.unwrap_or("-").into()]);
    }
    printer.data(&table.to_string())?;
    printer.note(
        "\nThe first type is the one that is meant without a type. * asks for an account that has accepted the terms.",
    );
    Ok(())
}

/// What goes with `name`.
fn named(settings: &Settings, name: &str) -> Result<Vec<Removable>, Failure> {
    // A file as the list names it.
    if let Some((path, bytes)) = tidy::own_files(settings).into_iter().find(|(path, _)| path.as_os_str() == name) {
        return Ok(vec![Removable { path, bytes, reason: "it was named" }]);
    }
    let not_here = || pinhole::Error::option("NAME", "something that `pinhole models` lists", name);
    match Asked::parse(name, settings)? {
        Asked::Model { name, dtype } => {
            let mut found = tidy::all_pulled(settings)?;
            found.retain(|found| found.entry.name.eq_ignore_ascii_case(&name));
            found.retain(|found| dtype.as_deref().is_none_or(|dtype| dtype == found.dtype));
            let mut gone = tidy::removable(settings, &found)?;
            for (of, path) in tidy::conversions(settings, &name) {
                if dtype.as_deref().is_none_or(|dtype| dtype == of) {
                    let bytes = path.metadata().map_or(0, |found| found.len());
                    gone.push(Removable { path, bytes, reason: "it was named" });
                }
            }
            if gone.is_empty() && found.is_empty() {
                // A wrong name says so.
                Catalogue::built_in().entry(&name)?;
                return Err(not_here().into());
            }
            Ok(gone)
        }
        Asked::Repository { repository, file: None, .. } => {
            let path = Folder::of(settings, &repository).path;
            let found = tidy::repositories(settings).into_iter().find(|(other, _)| *other == repository);
            let (_, bytes) = found.ok_or_else(not_here)?;
            Ok(vec![Removable { path, bytes, reason: "it was named" }])
        }
        _ => Err(not_here().into()),
    }
}

fn remove(gone: Vec<Removable>, dry_run: bool, printer: &Printer) -> Result<(), Failure> {
    let bytes = gone.iter().map(|gone| gone.bytes).sum();
    if !dry_run {
        for gone in &gone {
            tidy::remove(&gone.path)?;
        }
    }
    let rows = gone.into_iter().map(|Removable { path, bytes, reason }| RemovedRow { path, bytes, reason }).collect();
    let report = RemovedReport { removed: rows, bytes, written: !dry_run };
    if printer.json() {
        return printer.object(&report);
    }
    for row in &report.removed {
        printer.data(&format!("{}\n", row.path.display()))?;
    }
    let (count, size) = (units::counted(report.removed.len(), "file"), units::bytes(bytes));
    printer.note(&if dry_run {
        format!("{count} would go, with {size}")
    } else {
        format!("{count} removed, {size} freed")
    });
    Ok(())
}
