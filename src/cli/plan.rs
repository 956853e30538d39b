//! `pinhole plan`: what a request will have on the device, and when.

use std::path::PathBuf;
use std::time::Duration;

use pinhole::entries::Entries;
use pinhole::ggml::Device;
use pinhole::pipeline::{CacheReport, Pipeline, Settings};
use pinhole::plan::{ComponentPlan, HostUse, Plan, TokenShare};
use pinhole::sample::Chosen;
use pinhole::size::Size;
use serde::Serialize;

use super::failure::Failure;
use super::printer::{Printer, Talk};
use super::request::{self, RequestArgs};
use super::table::Table;
use super::{interrupt, model, threads, units};

/// Say what a request will have on the device, and compute nothing
///
/// Prints, for each phase, what stays on the device, what streams, and what the peak consists of. `generate` with the same
/// options follows the same plan.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, allow_negative_numbers = true)]
pub(super) struct Args {
    /// A model, as `pinhole generate` takes it
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// What to draw; changes nothing
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    #[command(flatten)]
    request: RequestArgs,
    /// Bytes a second that reach the device, for the time that moving takes [default: 12G, as PCIe 3.0 x16 gives]
    #[arg(long, value_name = "SPEED")]
    link: Option<Size>,
    #[command(flatten)]
    parts: model::PartArgs,
    #[command(flatten)]
    pub(super) talk: Talk,
}

const EXAMPLES: &str = "\
Examples:
  pinhole plan -m dev.gguf --width 1024 --height 1024 --vram 4G --device cuda0
  pinhole plan -m dev.gguf --vram 4G --offload sequential --device cpu:discrete
  pinhole plan -m mini --json";

/// What a PCIe 3.0 x16 link moves from pinned memory.
const LINK: u64 = 12 << 30;

/// A plan in JSON.
#[derive(Serialize)]
pub(super) struct PlanReport {
    /// The device, if it is one of several.
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
    limit_bytes: Option<usize>,
    peak_bytes: usize,
    all_resident: bool,
    /// Of host memory, all that the process holds counted, if that is known.
    host_limit_bytes: Option<usize>,
    host_peak_bytes: Option<usize>,
    components: Vec<ComponentReport>,
    /// Those of the other devices, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    other_devices: Vec<PlanReport>,
    /// That of a second pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    second: Option<Box<PlanReport>>,
}

#[derive(Serialize)]
struct ComponentReport {
    phase: &'static str,
    component: &'static str,
    variant: String,
    stages: usize,
    streamed_stages: usize,
    slots: usize,
    slot_bytes: usize,
    mapped_bytes: usize,
    host_bytes: usize,
    peak_bytes: usize,
    peak: Entries<usize>,
    /// Pages of the file that are in host memory at most.
    page_bytes: usize,
    /// What host memory has no room for.
    read_each_step_bytes: usize,
    moved_once_bytes: usize,
    moved_each_step_bytes: usize,
    /// Of several devices that have the tokens among them, the number of this one and how many they are; and what it takes from the
    /// others and gives them.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_share: Option<[usize; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchanged_each_step_bytes: Option<usize>,
    /// How much of the batch is computed at once, and how often the stages of a step run in one step.
    batch: String,
    parts_each_step: usize,
}

impl ComponentReport {
    fn new(plan: &ComponentPlan) -> ComponentReport {
        ComponentReport {
            phase: plan.phase.name(),
            component: plan.name,
            variant: plan.way.to_string(),
            stages: plan.stages(),
            streamed_stages: plan.streamed(),
            slots: plan.placement.slots,
            slot_bytes: plan.placement.slot_bytes,
            mapped_bytes: plan.mapped,
            host_bytes: plan.host,
            peak_bytes: plan.parts.total(),
            peak: plan.parts.named().into_iter().collect(),
            page_bytes: plan.pages,
            read_each_step_bytes: plan.read_each_step,
            moved_once_bytes: plan.moved_once,
            moved_each_step_bytes: plan.moved_each_step,
            token_share: shares_tokens(plan).then_some([plan.placement.share.number, plan.placement.share.of]),
            exchanged_each_step_bytes: shares_tokens(plan).then_some(plan.work.exchanged()),
            batch: plan.batch.to_string(),
            parts_each_step: plan.batch.parts_each_step(),
        }
    }
}

impl PlanReport {
    /// `plan`, which is made for `devices`.
    pub(super) fn new(plan: &Plan, devices: &[Device]) -> PlanReport {
        let (first, others) = devices.split_first().map_or((None, devices), |(first, others)| (Some(first), others));
        let others = plan.others.iter().zip(others);
        PlanReport {
            device: first.filter(|_| !plan.others.is_empty()).map(Device::name),
            limit_bytes: plan.limit,
            peak_bytes: plan.peak(),
            all_resident: plan.all_resident,
            host_limit_bytes: plan.host.map(|host| host.limit),
            host_peak_bytes: plan.host.map(|host| host.peak),
            components: plan.components.iter().map(ComponentReport::new).collect(),
            other_devices: others
                .map(|(plan, device)| PlanReport {
                    device: Some(device.name()),
                    ..PlanReport::new(plan, std::slice::from_ref(device))
                })
                .collect(),
            second: plan.second.as_deref().map(|second| Box::new(PlanReport::new(second, devices))),
        }
    }
}

#[derive(Serialize)]
struct Report {
    device: String,
    width: usize,
    height: usize,
    /// Of a film.
    #[serde(skip_serializing_if = "Option::is_none")]
    frames: Option<usize>,
    steps: usize,
    sampler: &'static str,
    schedule: &'static str,
    /// Of the denoiser, for each pass.
    evaluations: usize,
    /// The least that --vram works with, in this offload mode.
    least_budget_bytes: usize,
    link_bytes_per_second: u64,
    /// A step cache, and how many bytes of the denoiser's ports it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<CacheReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache_bytes: Option<usize>,
    plan: PlanReport,
}

pub(super) fn run(args: &Args, printer: &Printer) -> Result<(), Failure> {
    let cancel = interrupt::cancel_flag(printer);
    let (threads, _inside) = threads::start(args.request.threads);
    let devices = request::devices(&args.request.device)?;
    let source = args.parts.open(args.model.as_deref(), "--model")?;
    let pipeline = args.request.pipeline(&source, &devices, threads, cancel)?;
    let request = args.request.request(args.prompt.as_deref(), printer)?;
    let settings = pipeline.settings(&request)?;
    let plan = pipeline.plan(&request)?;
    for text in pipeline.model().source.passed_over() {
        printer.warn(text);
    }
    for note in pipeline.budget_notes()? {
        printer.warn(&note);
    }
    let least = pipeline.least_budget(&request)?;
    let link = args.link.map(|size| size.0).or(devices[0].link().map(|speed| speed.get())).unwrap_or(LINK);
    if printer.json() {
        return printer.object(&Report {
            device: request::device_names(&devices),
            width: settings.width,
            height: settings.height,
            frames: settings.fps.map(|_| settings.frames),
            steps: settings.steps,
            sampler: settings.sampling.sampler.name(),
            schedule: settings.sampling.schedule.name(),
            evaluations: pipeline.evaluations(&settings)?,
            least_budget_bytes: least,
            link_bytes_per_second: link,
            cache: settings.cache.map(CacheReport::new),
            cache_bytes: settings.cache.map(|_| pipeline.cache_bytes(&settings)).transpose()?,
            plan: PlanReport::new(&plan, &devices),
        });
    }
    printer.data(&tables(&plan, &devices))?;
    if let Some(second) = &plan.second {
        printer.data(&format!("\nsecond pass\n{}", tables(second, &devices)))?;
    }
    let size = match settings.fps {
        Some(_) => format!("{}x{}, {}", settings.width, settings.height, units::counted(settings.frames, "frame")),
        None => format!("{}x{}", settings.width, settings.height),
    };
    let size = format!("{size}, {}", units::counted(settings.steps, "step"));
    let (Chosen { sampler, schedule, sigmas, .. }, evaluations) =
        (&settings.sampling, pipeline.evaluations(&settings)?);
    let over = if sigmas.is_some() { "given sigmas" } else { schedule.name() };
    let size = format!("{size} ({sampler}, {over}, {})", units::counted(evaluations, "evaluation"));
    for (at, (own, device)) in plan.devices().zip(&devices).enumerate() {
        let peak = units::bytes(plan.peak_on(at) as u64);
        let limit = own.limit.map_or(String::new(), |limit| format!(", of {}", units::bytes(limit as u64)));
        let what = if at == 0 { format!("\n{size} on") } else { "and on".to_owned() };
        printer.note(&format!("{what} {}: {peak} at most{limit}", device.name()));
    }
    for device in &devices {
        if let Some(time) = device.round_trip()? {
            let time = time.as_secs_f64() * 1e3;
            printer.note(&format!(
                "{} is {time:.1} ms away, there and back: each step waits for that about twice",
                device.name()
            ));
        }
    }
    if let Some(HostUse { peak, limit }) = plan.devices().filter_map(|plan| plan.host).max_by_key(|host| host.peak) {
        let [peak, limit] = [peak, limit].map(|bytes| units::bytes(bytes as u64));
        printer.note(&format!("in host memory, with all that the program holds: {peak} at most, of {limit}"));
    }
    let parts = if devices.len() > 1 { " with each component on one device" } else { "" };
    printer.note(&format!("the least that works{parts} is --vram {}", Size(least as u64).rounded_up()));
    if let Some(second) = &settings.second {
        let size = format!("{}x{}", second.width, second.height);
        printer.note(&format!("the second pass, {size}, has {}", evaluated(&pipeline, second)?));
    }
    let mut components = Vec::new();
    for plan in [Some(&plan), plan.second.as_deref()].into_iter().flatten() {
        for (own, device) in plan.devices().zip(&devices) {
            let place = if devices.len() > 1 { format!(" on {}", device.name()) } else { String::new() };
            components.extend(own.components.iter().map(|component| (format!("{}{place}", component.name), component)));
        }
    }
    for (name, component) in components.iter().filter(|(_, component)| !component.placement.own.is_empty()) {
        let all = units::counted(component.placement.own.len(), "stage");
        printer.note(&format!("{name}: {} of {all}", component.stages()));
    }
    for (name, component) in components.iter().filter(|(_, component)| shares_tokens(component)) {
        let [taken, given] = [component.work.taken, component.work.given].map(|bytes| units::bytes(bytes as u64));
        let share = component.placement.share;
        printer.note(&format!("{name}: {share}; takes {taken} from other devices in each step, and gives {given}"));
    }
    if plan.devices().flat_map(|plan| &plan.components).any(shares_tokens) {
        let time = units::time(Duration::from_secs_f64(plan.seconds(&pipeline.speeds())));
        printer.note(&format!("denoising is forecast to take {time}, at speeds that are assumed"));
    }
    for (name, component) in components.iter().filter(|(_, component)| component.batch.at_once.is_some()) {
        printer.note(&in_parts(name, component));
    }
    if let Some(cache) = settings.cache {
        let bytes = units::bytes(pipeline.cache_bytes(&settings)? as u64);
        printer
            .note(&format!("the step cache {cache} has {bytes} of the ports; in steps that it skips, nothing moves"));
    }
    for (name, component) in components.iter().filter(|(_, component)| component.moved() > 0) {
        printer.note(&moved(name, component, link));
    }
    for (name, component) in components.iter().filter(|(_, component)| component.read_each_step > 0) {
        let bytes = units::bytes(component.read_each_step as u64);
        printer.note(&format!("{name}: {bytes} are read from the disk in each step, since host memory is short"));
    }
    Ok(())
}

/// Whether devices have the tokens of a component among them.
fn shares_tokens(component: &ComponentPlan) -> bool {
    component.placement.share != TokenShare::ALL
}

/// How often a pass asks the denoiser.
fn evaluated(pipeline: &Pipeline, settings: &Settings) -> Result<String, Failure> {
    Ok(units::counted(pipeline.evaluations(settings)?, "evaluation"))
}

/// What each component takes, device after device if there are several.
fn tables(plan: &Plan, devices: &[Device]) -> String {
    if plan.others.is_empty() {
        return table(plan).to_string();
    }
    let mut all = String::new();
    for (plan, device) in plan.devices().zip(devices) {
        match plan.components[..] {
            [] => all += &format!("{}: nothing\n", device.name()),
            _ => all += &format!("{}:\n{}", device.name(), table(plan)),
        }
    }
    all
}

/// What each component takes, line by line.
pub(super) fn table(plan: &Plan) -> Table<12> {
    let headings = [
        "phase",
        "component",
        "way",
        ">stages",
        ">stream",
        ">weights",
        ">slots",
        ">ports",
        ">activations",
        ">scratch",
        ">other",
        ">peak",
    ];
    let mut table = Table::new(headings);
    for component in &plan.components {
        let parts = &component.parts;
        let size = |bytes: usize| if bytes == 0 { "-".to_owned() } else { units::bytes(bytes as u64) };
        table.row([
            component.phase.name().to_owned(),
            component.name.to_owned(),
            component.way.to_string(),
            component.stages().to_string(),
            component.streamed().to_string(),
            size(parts.weights),
            size(parts.slots),
            size(parts.ports),
            size(parts.activations),
            size(parts.scratch),
            size(parts.others + parts.overhead),
            size(parts.total()),
        ]);
    }
    table
}

/// How much of the batch a component computes at once, and what that costs.
fn in_parts(name: &str, component: &ComponentPlan) -> String {
    let (batch, parts) = (component.batch, component.batch.parts_each_step());
    let cost = match component.moved_each_step {
        0 => String::new(),
        _ if parts == 1 => String::new(),
        _ => format!("; what streams is brought {parts} times in each step"),
    };
    format!("{name}: {batch}{cost}")
}

/// What moves for a component, and how long that takes.
fn moved(name: &str, component: &ComponentPlan, link: u64) -> String {
    let said = |bytes: usize| {
        let time = units::time(Duration::from_secs_f64(bytes as f64 / link as f64));
        format!("{} ({time} at {}/s)", units::bytes(bytes as u64), Size(link))
    };
    let step = match component.moved_each_step {
        0 => String::new(),
        bytes => format!(", and {} in each step", said(bytes)),
    };
    let some = match component.moved_in_some_steps {
        0 => String::new(),
        bytes => format!(", {} in those steps that need them", said(bytes)),
    };
    let once = component.moved_once.saturating_sub(component.moved_in_some_steps);
    format!("{name}: {} move once{some}{step}", said(once))
}
