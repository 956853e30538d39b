//! `pinhole devices`: what there is to compute on.

use pinhole::Error;
use pinhole::ggml::{self, Device, DeviceKind};
use serde::Serialize;

use super::failure::Failure;
use super::printer::{Printer, Talk};
use super::table::Table;
use super::{request, units};

/// List the devices that can compute, with their memory
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Devices to look at instead: rpc:HOST:PORT, where another machine runs `pinhole rpc-server`, with `,` between several
    #[arg(long, value_name = "NAME,...")]
    device: Option<String>,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole devices
  pinhole devices --device rpc:192.168.1.5:7007
  pinhole devices --json";

#[derive(Serialize)]
struct Report {
    /// What `--device auto` means here.
    auto: String,
    devices: Vec<Row>,
    /// Why kinds of devices that this build could compute on are not there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    absent: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) kind: &'static str,
    description: String,
    features: Vec<&'static str>,
    memory_free_bytes: usize,
    memory_total_bytes: usize,
    /// What its own attention adds values up in; `None` where the device does not compute.
    attention_sums: Option<&'static str>,
    /// What else was found.
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
    /// How long a question takes to another machine and back.
    #[serde(skip_serializing_if = "Option::is_none")]
    round_trip_seconds: Option<f64>,
    /// Whether it is the CPU that plays a card.
    #[serde(skip)]
    pub(super) played: bool,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let devices = match &args.device {
        Some(names) => request::devices(names)?,
        None => ggml::devices()?,
    };
    let devices = devices.iter().map(row).collect::<Result<Vec<Row>, Error>>()?;
    let absences = if args.device.is_none() { ggml::absences() } else { Vec::new() };
    let absent = absences.iter().map(|absence| absence.what.clone()).collect();
    let report = Report { auto: Device::by_name("auto")?.name(), devices, absent };
    if printer.json() {
        return printer.object(&report);
    }
    printer.data(&table(&report.devices).to_string())?;
    let mut note = remarks(&report.devices);
    for absence in &absences {
        note += &format!("\n{}: {}", absence.what, absence.hint);
    }
    if args.device.is_none() {
        note += &format!(
            "
--device auto is {} here",
            report.auto
        );
    }
    if !note.is_empty() {
        printer.note(&note);
    }
    Ok(())
}

/// The devices, line by line.
pub(super) fn table(rows: &[Row]) -> Table<6> {
    let mut table = Table::new(["name", "kind", ">free", ">total", "features", "description"]);
    for row in rows {
        let [free, total] = [row.memory_free_bytes, row.memory_total_bytes].map(|bytes| units::bytes(bytes as u64));
        let features = if row.features.is_empty() { "-".to_owned() } else { row.features.join(", ") };
        let mut description = row.description.clone();
        if let Some(seconds) = row.round_trip_seconds {
            description += &format!(", {:.1} ms there and back", seconds * 1e3);
        }
        table.row([row.name.clone(), row.kind.into(), free, total, features, units::shown(&description)]);
    }
    table
}

/// What is to be said of single devices, a line each.
pub(super) fn remarks(rows: &[Row]) -> String {
    let said = rows.iter().filter_map(|row| Some(format!("\n{}: {}", row.name, row.remark.as_ref()?)));
    said.collect()
}

pub(super) fn row(device: &Device) -> Result<Row, Error> {
    let (memory_free_bytes, memory_total_bytes) = device.memory()?;
    let kind = match device.kind() {
        DeviceKind::Cpu => "cpu",
        DeviceKind::Discrete => "discrete",
        DeviceKind::Integrated => "integrated",
        _ => "other",
    };
    let (attention_sums, remark) = match device.sums_attention_in_f16() {
        Ok(false) => (Some("f32"), None),
        Ok(true) => (Some("f16"), Some("attention sums in F16: pinhole multiplies and normalises instead".to_owned())),
        Err(error) => (None, Some(format!("does not compute: {error}"))),
    };
    Ok(Row {
        name: device.name(),
        kind,
        description: device.description(),
        features: device.features()?.names(),
        memory_free_bytes,
        memory_total_bytes,
        attention_sums,
        remark,
        round_trip_seconds: device.round_trip()?.map(|time| time.as_secs_f64()),
        played: device.is_cpu() && device.kind() != DeviceKind::Cpu,
    })
}
