//! What is wrong with what was found, and what to do about it.

use std::time::Duration;

use pinhole::size::Size;
use serde::Serialize;

use super::cards::Vendor;
use super::disk::Disk;
use super::findings::Findings;
use crate::cli::units;

/// Something to mend.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Problem {
    /// What was found.
    pub(super) found: String,
    /// What to do about it.
    pub(super) advice: String,
}

fn problem(found: impl Into<String>, advice: impl Into<String>) -> Problem {
    Problem { found: found.into(), advice: advice.into() }
}

/// Reading slower than this is no solid-state disk's.
const SLOW: u64 = 300 << 20;

/// Everything that is wrong, the worst first.
pub(super) fn problems(found: &Findings) -> Vec<Problem> {
    let all = [of_the_plan, of_cuda, of_cards, of_vulkan, of_device_files, of_the_processor, of_addresses, of_the_disk];
    all.iter().flat_map(|look| look(found)).collect()
}

fn of_the_plan(found: &Findings) -> Option<Problem> {
    let Findings { plan, disk, .. } = found;
    if let Some(refusal) = &plan.refusal {
        let advice = plan.hint.clone().unwrap_or_else(|| "close other programs, or take a smaller --type".to_owned());
        return Some(problem(refusal.clone(), advice));
    }
    let bytes = plan.read_each_step();
    if bytes == 0 {
        return None;
    }
    let time = match &disk.measured {
        Ok(speed) => {
            let seconds = Duration::from_secs_f64(bytes as f64 / speed.bytes_per_second as f64);
            format!(", which takes {}", units::time(seconds))
        }
        Err(_) => String::new(),
    };
    let found = format!(
        "host memory is smaller than the model: each step reads {} from the disk{time}",
        units::bytes(bytes as u64)
    );
    Some(problem(found, "close other programs, take a smaller --type, or keep the model on the fastest disk"))
}

/// What CUDA lacks here, if there is a card for it.
fn of_cuda(found: &Findings) -> Option<Problem> {
    let has_card = found.cards.found.iter().any(|card| card.vendor == Vendor::Nvidia);
    let absence = found.absent.first().filter(|_| has_card)?;
    Some(problem(format!("there is an NVIDIA card, and {}", absence.what), absence.hint.clone()))
}

/// A card that this build cannot compute on.
fn of_cards(found: &Findings) -> Option<Problem> {
    let Findings { cards, build, .. } = found;
    if found.has_accelerator() || of_cuda(found).is_some() {
        return None;
    }
    let card = cards.found.iter().min_by_key(|card| match card.vendor {
        Vendor::Nvidia => 0,
        Vendor::Amd => 1,
        Vendor::Intel => 2,
    })?;
    let built = |name: &str| build.computes_on.contains(&name);
    let name = card.vendor.name();
    if !built("cuda") && !built("vulkan") {
        let found = format!("there is a card of {name}, and this build computes on the CPU alone");
        let features = if card.vendor == Vendor::Nvidia { "cuda or vulkan" } else { "vulkan" };
        return Some(problem(
            found,
            format!("take a build with {features}, or make one: cargo build --release --features vulkan"),
        ));
    }
    if card.driver.is_none() {
        let found = format!("the system has no driver for the card of {name}");
        return Some(problem(found, "install the driver of your distribution, and start the machine anew"));
    }
    None
}

/// Vulkan in the build, and nothing behind it.
fn of_vulkan(found: &Findings) -> Option<Problem> {
    let Findings { cards, build, .. } = found;
    if !build.computes_on.contains(&"vulkan") || found.has_accelerator() || build.system.ends_with("windows") {
        return None;
    }
    if !cards.vulkan {
        let found = "this build computes on Vulkan, and there is no driver of it";
        return Some(problem(found, "install your card's Vulkan driver (Debian and Ubuntu: mesa-vulkan-drivers)"));
    }
    let found = "there are drivers of Vulkan, and none of them has a card";
    Some(problem(
        found,
        "`vulkaninfo --summary` says more; Mesa's software device is used with GGML_VK_VISIBLE_DEVICES=0",
    ))
}

fn of_device_files(found: &Findings) -> Option<Problem> {
    let closed = &found.cards.closed;
    let names = closed.join(", ");
    let advice = "let your user open it: sudo usermod -aG render,video $USER, and log in again";
    (!closed.is_empty()).then(|| problem(format!("no permission to open {names}"), advice))
}

fn of_the_processor(found: &Findings) -> Option<Problem> {
    let Findings { processor, build, .. } = found;
    if build.system.starts_with("x86_64") && !processor.instructions.contains(&"avx2") {
        let found = "the processor has no AVX2: it computes, many times slower than one that has";
        return Some(problem(found, "take a smaller model, fewer steps, or another machine"));
    }
    let worth: Vec<&str> = processor.unused.iter().copied().filter(|name| WORTH.contains(name)).collect();
    if worth.is_empty() {
        return None;
    }
    let found =
        format!("ggml was compiled for {}, without {} that this processor has", build.compiled_for, worth.join(", "));
    let advice =
        "compile it on this machine, or with PINHOLE_TARGET_CPU=portable, for what pinhole's own kernels leave to ggml";
    Some(problem(found, advice))
}

/// Instructions that ggml is much faster with.
const WORTH: [&str; 5] = ["avx2", "avx512f", "avx512vnni", "dotprod", "i8mm"];

/// A limit on addresses that the model's map does not fit in.
fn of_addresses(found: &Findings) -> Option<Problem> {
    let room = found.memory.address_bytes?;
    let bytes = found.plan.model_bytes;
    let found = format!(
        "the limit on addresses leaves {}, and the model's file has {}",
        units::bytes(room),
        units::bytes(bytes)
    );
    (room < bytes).then(|| problem(found, "lift the limit: ulimit -v unlimited"))
}

fn of_the_disk(found: &Findings) -> Option<Problem> {
    let Disk { path, measured } = &found.disk;
    match measured {
        Ok(speed) if speed.bytes_per_second < SLOW => {
            let found =
                format!("{} reads {}/s: a model takes long to load", path.display(), Size(speed.bytes_per_second));
            Some(problem(found, "keep models on a solid-state disk"))
        }
        Ok(_) => None,
        Err(why) => {
            let found = format!("the disk of {} could not be measured: {why}", path.display());
            Some(problem(found, "name a folder that you may write to, or a model file: --path"))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole::ggml::Absence;

    use super::*;
    use crate::cli::doctor::cards::{Card, Cards};
    use crate::cli::doctor::disk::Speed;

    /// What is said of the one problem of a machine that `break_it` has changed.
    fn found(break_it: impl FnOnce(&mut Findings)) -> String {
        let mut report = Findings::sound();
        break_it(&mut report);
        match problems(&report).as_slice() {
            [one] => format!("{}: {}", one.found, one.advice),
            other => panic!("{other:?}"),
        }
    }

    fn card(vendor: Vendor) -> Card {
        Card { vendor, device: "0x1".into(), driver: Some("driver".into()) }
    }

    #[test]
    fn a_sound_machine_has_no_problem() {
        assert_eq!(problems(&Findings::sound()), []);
    }

    #[test]
    fn every_problem_has_its_advice() {
        let of_plan = found(|report| {
            (report.plan.refusal, report.plan.hint) = (Some("needs 2 GiB".into()), Some("try --vram 2G".into()));
        });
        assert_eq!(of_plan, "needs 2 GiB: try --vram 2G");
        let cpu_alone = found(|report| report.cards.found = vec![card(Vendor::Intel), card(Vendor::Nvidia)]);
        assert!(cpu_alone.contains("a card of NVIDIA") && cpu_alone.contains("cuda or vulkan"), "{cpu_alone}");
        for what in ["no CUDA device: the driver's library is not there", "CUDA devices cannot compute without cuBLAS"]
        {
            let of_cuda = found(|report| {
                report.cards.found = vec![card(Vendor::Intel), card(Vendor::Nvidia)];
                report.build.computes_on = vec!["cuda"];
                report.absent = vec![Absence { what: what.into(), hint: "install it".into() }];
            });
            assert_eq!(of_cuda, format!("there is an NVIDIA card, and {what}: install it"));
        }
        let no_driver = found(|report| report.build.computes_on = vec!["vulkan"]);
        assert!(no_driver.contains("mesa-vulkan-drivers"), "{no_driver}");
        let no_card = found(|report| {
            report.build.computes_on = vec!["vulkan"];
            report.cards = Cards { vulkan: true, ..Cards::default() };
        });
        assert!(no_card.contains("none of them has a card"), "{no_card}");
        let closed = found(|report| report.cards.closed = vec!["/dev/dri/renderD128".into()]);
        assert!(closed.contains("no permission to open /dev/dri/renderD128"), "{closed}");
        let old = found(|report| report.processor.instructions = vec!["sse4.2"]);
        assert!(old.contains("has no AVX2"), "{old}");
        let unused = found(|report| report.processor.unused = vec!["gfni", "avx512f"]);
        assert!(unused.contains("without avx512f that"), "{unused}");
        let addresses = found(|report| {
            (report.memory.address_bytes, report.plan.model_bytes) = (Some(1 << 30), 2 << 30);
        });
        assert!(addresses.contains("ulimit -v unlimited"), "{addresses}");
        let slow = found(|report| report.disk.measured = Ok(Speed { bytes: 1, bytes_per_second: 100 << 20 }));
        assert!(slow.contains("reads 100 MiB/s"), "{slow}");
        let closed = found(|report| report.disk.measured = Err("read-only".into()));
        assert!(closed.contains("--path"), "{closed}");
    }
}
