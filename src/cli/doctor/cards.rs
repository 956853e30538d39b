//! Graphics cards and their drivers, as Linux shows them, whether or not this build can compute on them.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What is there. Empty on systems other than Linux.
#[derive(Default, Serialize)]
pub(super) struct Cards {
    pub(super) found: Vec<Card>,
    /// What of drivers there is for programs, each in words.
    pub(super) drivers: Vec<String>,
    /// Whether CUDA's library is there.
    pub(super) cuda: bool,
    /// Whether Vulkan's loader and a description of a driver are.
    pub(super) vulkan: bool,
    /// Device files that this user may not open.
    pub(super) closed: Vec<String>,
}

/// A card on the bus.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Card {
    pub(super) vendor: Vendor,
    /// The device's number, as in lists of PCI devices.
    pub(super) device: String,
    /// The kernel's driver.
    pub(super) driver: Option<String>,
}

/// Who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Vendor {
    Nvidia,
    Amd,
    Intel,
}

impl Vendor {
    /// By the number that the PCI's registry has; `None` for others, which no backend here computes on.
    fn of(number: &str) -> Option<Vendor> {
        match number {
            "0x10de" => Some(Vendor::Nvidia),
            "0x1002" => Some(Vendor::Amd),
            "0x8086" => Some(Vendor::Intel),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Vendor::Nvidia => "NVIDIA",
            Vendor::Amd => "AMD",
            Vendor::Intel => "Intel",
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver =
            self.driver.as_deref().map_or("without a driver of the kernel".to_owned(), |name| format!("driver {name}"));
        write!(f, "{} {}, {driver}", self.vendor.name(), self.device)
    }
}

/// Where Linux has libraries, in the order of common distributions; the last are of WSL and NixOS.
const LIBRARIES: [&str; 8] = [
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "lib64",
    "usr/lib",
    "usr/local/lib",
    "usr/lib/wsl/lib",
    "run/opengl-driver/lib",
];

/// Where Vulkan's loader looks for descriptions of drivers.
const DESCRIPTIONS: [&str; 4] = [
    "usr/share/vulkan/icd.d",
    "etc/vulkan/icd.d",
    "usr/local/share/vulkan/icd.d",
    "run/opengl-driver/share/vulkan/icd.d",
];

impl Cards {
    pub(super) fn look() -> Cards {
        Cards::under(Path::new("/"))
    }

    /// What the files below `root` say.
    fn under(root: &Path) -> Cards {
        let mut cards = Cards { found: on_the_bus(&root.join("sys/bus/pci/devices")), ..Cards::default() };
        if let Ok(version) = fs::read_to_string(root.join("sys/module/nvidia/version")) {
            cards.drivers.push(format!("NVIDIA's of the kernel, {}", version.trim()));
        }
        if let Some(library) = library(root, "libcuda.so.1") {
            cards.cuda = true;
            cards.drivers.push(format!("CUDA, {}", library.display()));
        }
        if let Some(loader) = library(root, "libvulkan.so.1") {
            let names = descriptions(root);
            cards.vulkan = !names.is_empty();
            let names = if names.is_empty() { "no driver".to_owned() } else { names.join(", ") };
            cards.drivers.push(format!("Vulkan, {}: {names}", loader.display()));
        }
        cards.closed = closed(root);
        cards
    }
}

/// Display controllers of vendors that backends compute on, in the bus's order.
fn on_the_bus(devices: &Path) -> Vec<Card> {
    let mut cards = Vec::new();
    for device in sorted(devices) {
        let number = |name: &str| Some(fs::read_to_string(device.join(name)).ok()?.trim().to_owned());
        // The class of display controllers.
        let is_display = number("class").is_some_and(|class| class.starts_with("0x03"));
        let Some(vendor) = number("vendor").filter(|_| is_display).and_then(|vendor| Vendor::of(&vendor)) else {
            continue;
        };
        let driver = fs::read_link(device.join("driver")).ok();
        let driver = driver.and_then(|driver| Some(driver.file_name()?.to_string_lossy().into_owned()));
        cards.push(Card { vendor, device: number("device").unwrap_or_default(), driver });
    }
    cards
}

/// What lies in `folder`, in order.
fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// The library `name`, where it usually lies.
fn library(root: &Path, name: &str) -> Option<PathBuf> {
    LIBRARIES.iter().map(|folder| root.join(folder).join(name)).find(|path| path.exists())
}

/// The names of the descriptions of Vulkan's drivers.
fn descriptions(root: &Path) -> Vec<String> {
    let paths = DESCRIPTIONS.iter().flat_map(|folder| sorted(&root.join(folder)));
    let paths = paths.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect()
}

/// The device files of cards that are there and cannot be opened.
fn closed(root: &Path) -> Vec<String> {
    let mut files = sorted(&root.join("dev/dri"));
    files.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("renderD")));
    files.push(root.join("dev/nvidia0"));
    files
        .into_iter()
        .filter(|path| {
            let opened = fs::File::options().read(true).write(true).open(path);
            opened.is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
        })
        .map(|path| path.display().to_string())
        .collect()
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cards_and_drivers_are_read_as_linux_shows_them() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let none = Cards::under(root.path());
        assert!(none.found.is_empty() && none.drivers.is_empty() && !none.cuda && !none.vulkan);
        for (device, class, vendor) in
            [("00:02.0", "0x030000", "0x8086"), ("01:00.0", "0x030200", "0x10de"), ("03:00.0", "0x020000", "0x8086")]
        {
            write(&format!("sys/bus/pci/devices/0000:{device}/class"), &format!("{class}\n"));
            write(&format!("sys/bus/pci/devices/0000:{device}/vendor"), &format!("{vendor}\n"));
            write(&format!("sys/bus/pci/devices/0000:{device}/device"), "0x2684\n");
        }
        let driver = root.path().join("sys/bus/pci/devices/0000:00:02.0/driver");
        std::os::unix::fs::symlink("../../../bus/pci/drivers/i915", driver).unwrap();
        write("sys/module/nvidia/version", "570.1\n");
        write("usr/lib64/libcuda.so.1", "");
        write("usr/lib64/libvulkan.so.1", "");
        let without = Cards::under(root.path());
        assert!(without.cuda && !without.vulkan);
        assert!(without.drivers[2].ends_with("no driver"), "{:?}", without.drivers);
        write("etc/vulkan/icd.d/nvidia_icd.json", "{}");
        let cards = Cards::under(root.path());
        let card =
            |vendor, driver: Option<&str>| Card { vendor, device: "0x2684".into(), driver: driver.map(str::to_owned) };
        assert_eq!(cards.found, [card(Vendor::Intel, Some("i915")), card(Vendor::Nvidia, None)]);
        assert!(cards.vulkan && cards.drivers[2].ends_with("nvidia_icd"), "{:?}", cards.drivers);
        assert_eq!(cards.drivers[0], "NVIDIA's of the kernel, 570.1");
    }
}
