//! Fetching files, and what is said meanwhile.

use pinhole::ggml::CancelFlag;
use pinhole_hub::{Event, Hub, Wanted};

use crate::cli::failure::Failure;
use crate::cli::printer::{Printer, Unit};
use crate::cli::units;

/// Fetches what is missing of `all`, so many bytes.
pub(super) fn fetch(
    hub: &Hub,
    all: &[Wanted],
    missing: u64,
    cancel: &CancelFlag,
    printer: &Printer,
) -> Result<(), Failure> {
    if missing > 0 {
        printer.note(&format!("{} to fetch", units::bytes(missing)));
        printer.begin("pull", missing, Unit::Bytes);
    }
    hub.fetch(all, &|| cancel.is_raised(), &mut |event| listened(printer, event))?;
    if missing > 0 {
        printer.end("pull");
    }
    Ok(())
}

/// Says what happens.
pub(super) fn listened(printer: &Printer, event: Event<'_>) {
    match event {
        Event::Begin { file } => printer.doing(units::shown(file)),
        Event::Progress { bytes } => printer.progress(bytes),
        Event::Again { error, pause } if pause.as_millis() > 0 => {
            printer.note(&format!("{}; again in {}", units::shown(&error.to_string()), units::time(pause)));
        }
        Event::Waiting { file } => {
            printer.note(&format!("another process fetches {}: waiting for it", units::shown(file)))
        }
        Event::Anew { file } => printer.note(&format!("{} came with another checksum: anew", units::shown(file))),
        _ => {}
    }
}
