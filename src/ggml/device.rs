//! The devices that ggml was built for and the machine has.

use std::ffi::CStr;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ggml_sys as sys;
use ggml_sys::account::{self, Memory};

use super::remote::{PREFIX, Remote};
use super::scratch::{Card as CudaCard, Table};
use super::{Staging, absent, build, guarded, log};
use crate::kernels::Kernel;
use crate::size::Size;
use crate::{Error, Result};

/// What sort of device it is, as far as placement cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// Computes in host memory: weights are used from the memory map.
    Cpu,
    /// Has memory of its own, or is `cpu:discrete`, which plays such a card.
    Discrete,
    /// Shares the host's memory.
    Integrated,
}

/// What a device can do beside computing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Copies go on while it computes.
    pub async_copies: bool,
    /// Queues can wait for one another.
    pub events: bool,
    /// The driver gives host memory that the device reads by itself.
    pub pinned_memory: bool,
}

impl Features {
    /// Whether copies can be ordered with computations without the host in between.
    pub fn overlaps(self) -> bool {
        self.async_copies && self.events
    }

    /// Those that it has, by name.
    pub fn names(self) -> Vec<&'static str> {
        let all = [(self.async_copies, "async"), (self.events, "events"), (self.pinned_memory, "pinned")];
        all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect()
    }
}

/// One device. Cheap to copy; ggml keeps its devices until the process ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Of a device of another machine: this machine's CPU, for the shapes of what is computed there.
    raw: sys::ggml_backend_dev_t,
    card: Option<Card>,
    remote: Option<&'static Remote>,
}

/// The CPU made to behave like a card: `cpu:discrete`. Weights never lie in the map, what is freed is poisoned, and bytes
/// come over a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Card {
    /// The CPU may play several cards at once.
    number: usize,
    /// Bytes a second; as fast as it goes where none is given.
    link: Option<NonZeroU64>,
    fault: Option<Fault>,
}

/// When a card that the CPU plays fails, so that what follows can be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Instead of computing the graph with this number; the first that it is given is 1.
    pub(super) at: usize,
    /// Whether it does not start again.
    pub(super) for_good: bool,
}

/// Whose backend computes on it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Vulkan,
    Cuda,
    /// The CPU, and those that allocate nothing on the way.
    Other,
}

/// How many buffers pinhole has on a device at once, at most: weights of four components, slots, ports, activations.
const MOST_BUFFERS: usize = 8;

/// What CUDA's driver takes for kernels that it loads when they are first called: an estimate, since no card was at hand.
const LAZY_KERNELS: usize = 64 << 20;

/// What follows the CPU's name in that of the card.
const CARD: &str = ":discrete";

/// How many cards the CPU plays at once, at most.
const MOST_CARDS: usize = 16;

// SAFETY: a `ggml_backend_dev_t` points at a static table of functions and constant properties in ggml's registry;
// the registry is filled once, under C++'s static-initialisation lock, and never changes afterwards.
unsafe impl Send for Device {}
// SAFETY: as above: nothing behind the pointer is written after the registry is filled.
unsafe impl Sync for Device {}

/// Every device, the CPU and `cpu:discrete` among them.
///
/// # Errors
/// [`Error::Graph`] if ggml fails while it looks for devices (a driver that throws, say); [`Error::Device`] on a processor that this
/// build is not for.
pub fn devices() -> Result<Vec<Device>> {
    build::check_processor()?;
    log::take_over();
    guarded("devices", || {
        // SAFETY: no arguments; the registry initialises itself on first use.
        let count = unsafe { sys::ggml_backend_dev_count() };
        // SAFETY: every index is below the count.
        (0..count).map(|i| Device { raw: unsafe { sys::ggml_backend_dev_get(i) }, card: None, remote: None }).collect()
    })
    .map(|devices: Vec<Device>| devices.into_iter().flat_map(with_card).collect())
}

/// `device`, and after the CPU the card that it plays.
fn with_card(device: Device) -> impl Iterator<Item = Device> {
    let card = (device.kind() == DeviceKind::Cpu).then(|| Device { card: Some(Card::default()), ..device });
    std::iter::once(device).chain(card)
}

impl Device {
    /// The CPU.
    ///
    /// # Errors
    /// [`Error::Device`] if ggml was built without its CPU backend.
    pub fn cpu() -> Result<Device> {
        devices()?.into_iter().find(|device| device.kind() == DeviceKind::Cpu).ok_or_else(|| Error::Device {
            device: "cpu".into(),
            message: "this build of ggml has no CPU backend".into(),
            hint: None,
        })
    }

    /// The best device there is: a GPU if ggml was built for one, finds it, and it can compute; the CPU otherwise.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none.
    pub fn best() -> Result<Device> {
        Device::by_name("auto")
    }

    /// The device called `name` (`cpu`, `cpu:discrete`, `cuda0`, `vulkan0`, ...); `auto` is the best there is.
    /// `cpu:discrete@10G` has a link of 10 GiB a second; `cpu:discrete!40` fails in place of the 40th graph, to try what follows, and
    /// `cpu:discrete!40!` does not start again. The CPU plays several such cards: `cpu:discrete`, which is number 0,
    /// `cpu:discrete1` and so on, up to 15. `rpc:HOST:PORT` is the device of a `pinhole rpc-server`, which is connected to.
    ///
    /// # Errors
    /// [`Error::Device`], listing the devices that exist; or why another machine does not compute for this one.
    pub fn by_name(name: &str) -> Result<Device> {
        let all = devices()?;
        let wanted = name.to_ascii_lowercase();
        if wanted.starts_with(PREFIX) {
            return Ok(Device { remote: Some(Remote::named(&wanted)?), ..Device::cpu()? });
        }
        if wanted == "auto" {
            let accelerator = all.iter().find(|device| !device.is_cpu() && device.check().is_ok());
            return accelerator.copied().map_or_else(Device::cpu, Ok);
        }
        let (wanted, fault) = match wanted.split_once('!') {
            Some((device, when)) if device.contains(CARD) => (device.to_owned(), Some(fault(name, when)?)),
            _ => (wanted, None),
        };
        let (wanted, link) = match wanted.split_once('@') {
            Some((device, speed)) if device.contains(CARD) => (device.to_owned(), Some(link_speed(name, speed)?)),
            _ => (wanted, None),
        };
        let (wanted, number) = card_number(&wanted);
        let found = all.iter().find(|device| device.name() == wanted).copied();
        let Some(found) = found else {
            let reason = absent::reason(wanted).map(|reason| format!("{reason}; ")).unwrap_or_default();
            let known = all.iter().map(Device::name).collect::<Vec<_>>().join(", ");
            return Err(Error::Device {
                device: name.to_owned(),
                message: "there is no such device".into(),
                hint: Some(format!("{reason}known here: auto, rpc:HOST:PORT, {known}")),
            });
        };
        found.check()?;
        Ok(Device { card: found.card.map(|_| Card { number, link, fault }), ..found })
    }

    /// Refuses a device that the driver lists, but that cannot compute for want of a library.
    ///
    /// # Errors
    /// [`Error::Device`], with what to install.
    pub(super) fn check(&self) -> Result<()> {
        let absence = if self.family() == Family::Cuda { absent::of_cuda() } else { None };
        let Some(absence) = absence else { return Ok(()) };
        Err(Error::Device { device: self.name(), message: absence.what, hint: Some(absence.hint) })
    }

    /// pinhole's name for it, in lower case: `cpu`, `cuda0`, `vulkan0`, `mtl0` (Metal), `rpc:desk:7007`.
    pub fn name(&self) -> String {
        if let Some(remote) = self.remote {
            return remote.name().to_owned();
        }
        // SAFETY: the device is valid for ever; ggml returns a NUL-terminated string that lives as long.
        let name = unsafe { CStr::from_ptr(sys::ggml_backend_dev_name(self.raw)) };
        let name = name.to_string_lossy().to_ascii_lowercase();
        match self.card {
            None => name,
            Some(Card { number: 0, .. }) => format!("{name}{CARD}"),
            Some(Card { number, .. }) => format!("{name}{CARD}{number}"),
        }
    }

    /// Whether it rounds as `other` does, so that both give the same bits: devices of one backend, the CPU and the cards that it
    /// plays, and those of other machines that say the same of themselves.
    pub fn rounds_as(&self, other: Device) -> bool {
        self.rounding() == other.rounding()
    }

    /// What its results depend on.
    pub(crate) fn rounding(&self) -> String {
        match self.remote {
            Some(remote) => remote.served().rounding,
            None if self.is_cpu() => {
                let kernel = Kernel::best().map_or("ggml", Kernel::name);
                format!("cpu {kernel} {}", build::chosen_for().unwrap_or(build::compiled_for()))
            }
            None => self.name().trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(),
        }
    }

    /// The hardware's own name.
    pub fn description(&self) -> String {
        if let Some(remote) = self.remote {
            let served = remote.served();
            return format!("{} there: {}", served.device, served.description);
        }
        // SAFETY: as in `name`.
        let text = unsafe { CStr::from_ptr(sys::ggml_backend_dev_description(self.raw)) };
        let text = text.to_string_lossy().trim().to_owned();
        if self.card.is_some() { format!("{text}, as a card with memory of its own") } else { text }
    }

    /// What sort of device it is.
    pub fn kind(&self) -> DeviceKind {
        if self.card.is_some() || self.remote.is_some() {
            return DeviceKind::Discrete;
        }
        // SAFETY: the device is valid.
        match unsafe { sys::ggml_backend_dev_type(self.raw) } {
            sys::GGML_BACKEND_DEVICE_TYPE_GPU => DeviceKind::Discrete,
            sys::GGML_BACKEND_DEVICE_TYPE_IGPU => DeviceKind::Integrated,
            _ => DeviceKind::Cpu,
        }
    }

    /// Whether the CPU computes, be it as itself or as a card.
    pub fn is_cpu(&self) -> bool {
        self.remote.is_none() && (self.card.is_some() || self.kind() == DeviceKind::Cpu)
    }

    /// Whether pinhole's own operations run on it: on this machine's CPU, or on that of another.
    pub(crate) fn runs_own_operations(&self) -> bool {
        self.remote.map_or_else(|| self.is_cpu(), |remote| remote.served().own_operations)
    }

    /// The device of another machine that it is, if it is one.
    pub(super) fn remote(&self) -> Option<&'static Remote> {
        self.remote
    }

    /// Whether another machine computes.
    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }

    /// Whether memory that is given back is filled with NaN, so that a later use of it shows.
    pub fn poisons(&self) -> bool {
        self.card.is_some()
    }

    /// What the link to its memory is held to, in bytes a second.
    pub fn link(&self) -> Option<NonZeroU64> {
        self.card.and_then(|card| card.link)
    }

    /// When it fails, if it is a card that the CPU plays and was told to.
    pub(super) fn fault(&self) -> Option<Fault> {
        self.card.and_then(|card| card.fault)
    }

    /// `(free, total)` memory in bytes, as the driver reports it now.
    ///
    /// # Errors
    /// [`Error::Graph`] if the driver fails.
    pub fn memory(&self) -> Result<(usize, usize)> {
        if let Some(remote) = self.remote {
            return remote.memory();
        }
        let raw = self.raw();
        guarded("device memory", || {
            let (mut free, mut total) = (0, 0);
            // SAFETY: both pointers are valid for the call.
            unsafe { sys::ggml_backend_dev_memory(raw, &mut free, &mut total) };
            (free, total)
        })
    }

    /// How long a question takes to a device of another machine and back, in the best of a few; `None` for one of this machine.
    ///
    /// # Errors
    /// [`Error::Device`] where its server is gone.
    pub fn round_trip(&self) -> Result<Option<Duration>> {
        if self.remote.is_none() {
            return Ok(None);
        }
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let begun = Instant::now();
            self.memory()?;
            best = best.min(begun.elapsed());
        }
        Ok(Some(best))
    }

    /// What it can do beside computing.
    ///
    /// # Errors
    /// [`Error::Graph`] if the driver fails.
    pub fn features(&self) -> Result<Features> {
        if self.remote.is_some() {
            return Ok(Features::default());
        }
        let mut props = sys::ggml_backend_dev_props::default();
        guarded("device features", || {
            // SAFETY: a live device, and properties that are writable.
            unsafe { sys::ggml_backend_dev_get_props(self.raw(), &mut props) }
        })?;
        let caps = props.caps;
        Ok(Features { async_copies: caps.async_, events: caps.events, pinned_memory: caps.host_buffer })
    }

    /// Bytes that addresses on this device must be a multiple of.
    pub fn alignment(&self) -> usize {
        if let Some(remote) = self.remote {
            return remote.served().alignment;
        }
        // SAFETY: the device is valid, and so is its default buffer type.
        unsafe { sys::ggml_backend_buft_get_alignment(self.buffer_type()) }
    }

    /// Which operations make its backend allocate what.
    pub(super) fn scratch_table(&self) -> Result<Table> {
        Ok(match self.family() {
            Family::Vulkan => {
                self.open();
                Table::Vulkan(account::vulkan_features())
            }
            Family::Cuda => Table::Cuda(self.cuda_card()?.0),
            Family::Other => Table::Nothing,
        })
    }

    /// What its allocations are rounded up to: pages of a card's memory, and the granularity of CUDA's memory management.
    pub(super) fn granularity(&self) -> usize {
        match self.family() {
            Family::Vulkan => 64 << 10,
            Family::Cuda => 2 << 20,
            Family::Other => 1,
        }
    }

    /// Bytes that the driver takes on it for this process, whatever is computed: its context, cuBLAS's handle, and what allocations
    /// are rounded up by. What Vulkan's driver takes for itself is not known.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver fails.
    pub fn overhead(&self) -> Result<usize> {
        if let Some(remote) = self.remote {
            return Ok(remote.served().overhead);
        }
        let rounding = MOST_BUFFERS * self.granularity();
        Ok(match self.family() {
            Family::Vulkan if self.shares_memory() => rounding + Staging::BYTES,
            Family::Vulkan => rounding,
            Family::Cuda => rounding + self.cuda_card()?.1 + LAZY_KERNELS,
            Family::Other => 0,
        })
    }

    /// The card, and the bytes of its context.
    fn cuda_card(&self) -> Result<(CudaCard, usize)> {
        let index = self.name().strip_prefix("cuda").and_then(|index| index.parse().ok());
        let card = index.and_then(account::cuda_card).ok_or_else(|| Error::Device {
            device: self.name(),
            message: "the driver does not say what card it is".into(),
            hint: None,
        })?;
        let (capability, multiprocessors) = (card.capability, card.multiprocessors);
        Ok((CudaCard { capability, multiprocessors: multiprocessors as usize }, card.context_bytes))
    }

    /// Whether the host's memory is all that it has, so that what copies go through is in its account.
    fn shares_memory(&self) -> bool {
        // Mesa's software device is not called integrated, but has one heap.
        self.kind() == DeviceKind::Integrated || self.description().contains("llvmpipe")
    }

    /// Whether ggml's Vulkan backend computes on it.
    pub(super) fn is_vulkan(&self) -> bool {
        self.family() == Family::Vulkan
    }

    fn family(&self) -> Family {
        match self.name() {
            _ if self.is_cpu() || self.remote.is_some() => Family::Other,
            name if name.starts_with("vulkan") => Family::Vulkan,
            name if name.starts_with("cuda") => Family::Cuda,
            _ => Family::Other,
        }
    }

    /// Whose account of allocations its memory is in.
    pub(super) fn memory_kind(&self) -> Memory {
        if self.is_cpu() || self.remote.is_some() { Memory::Host } else { Memory::Device }
    }

    pub(super) fn buffer_type(&self) -> sys::ggml_backend_buffer_type_t {
        self.open();
        // SAFETY: the device is valid.
        unsafe { sys::ggml_backend_dev_buffer_type(self.raw) }
    }

    /// ggml's own handle.
    pub(super) fn raw(&self) -> sys::ggml_backend_dev_t {
        self.open();
        self.raw
    }

    /// Has ggml open the device if this is the first use of it. The Vulkan backend does so when it is first asked for anything,
    /// and a second thread that asks meanwhile would get half a device.
    fn open(&self) {
        static OPENED: Mutex<Vec<usize>> = Mutex::new(Vec::new());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let raw = self.raw;
        if !opened.contains(&(raw as usize)) {
            if self.family() == Family::Cuda {
                // Before there is a context, so that it can be seen what that takes. Who needs the answer asks again.
                let _ = self.cuda_card();
            }
            // If a device cannot be opened, the next caller hears of it again.
            // SAFETY: the device is valid.
            if sys::guard(|| unsafe { sys::ggml_backend_dev_buffer_type(raw) }).is_ok() {
                opened.push(raw as usize);
            }
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}

/// The name of the first card that the CPU plays for that of any, and its number; `name` itself for other devices.
fn card_number(name: &str) -> (&str, usize) {
    let Some((start, number)) = name.rfind(CARD).map(|at| name.split_at(at + CARD.len())) else { return (name, 0) };
    // As it is written: 01 is none.
    let known = (0..MOST_CARDS).find(|known| number == known.to_string());
    known.map_or((name, 0), |number| (start, number))
}

/// The speed after the `@` of a device's `name`.
fn link_speed(name: &str, speed: &str) -> Result<NonZeroU64> {
    let speed = speed.parse::<Size>().map_err(|error| Error::Device {
        device: name.to_owned(),
        message: format!("the speed of its link, in bytes a second: {error}"),
        hint: Some(format!("as in cpu{CARD}@10G")),
    })?;
    NonZeroU64::new(speed.0).ok_or_else(|| Error::graph("device", "a link of no speed"))
}

/// What follows the `!` of a device's `name`: when it fails.
fn fault(name: &str, when: &str) -> Result<Fault> {
    let (at, for_good) = when.strip_suffix('!').map_or((when, false), |at| (at, true));
    match at.parse() {
        Ok(at) if at > 0 => Ok(Fault { at, for_good }),
        _ => Err(Error::Device {
            device: name.to_owned(),
            message: "what it fails at: expected the number of a graph, from 1 on".into(),
            hint: Some(format!("as in cpu{CARD}!40, or cpu{CARD}!40! for one that does not start again")),
        }),
    }
}
