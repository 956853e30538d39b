//! Devices that are not there, or cannot compute, and why.

use ggml_sys::cuda::{self, Fault};
use serde::Serialize;

use super::build::backends;

/// Where NVIDIA's library for matrix products comes from.
const CUBLAS: &str = "it comes with NVIDIA's CUDA toolkit, and with `pip install nvidia-cublas`: name the folder where it lies in \
    LD_LIBRARY_PATH, or put it and libcublasLt beside the program";

/// Why a kind of devices that this build could compute on is not there, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Absence {
    /// A fact: `no CUDA device: the driver's library is not there`.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// All that this build could compute on and this machine cannot, as far as the reason is known: CUDA's.
pub fn absences() -> Vec<Absence> {
    of_cuda().into_iter().collect()
}

pub(super) fn of_cuda() -> Option<Absence> {
    let (fault, said) = cuda::fault()?;
    let (major, minor) = cuda::version();
    let (what, hint) = match fault {
        Fault::NoDriver => {
            let hint = "install NVIDIA's driver; in a container, give it the card (`--gpus all`)";
            (format!("no CUDA device: the driver's library is not there ({said})"), hint.to_owned())
        }
        Fault::OldDriver => {
            let hint = format!("update NVIDIA's driver, or compile pinhole with an older toolkit than {major}.{minor}");
            (format!("no CUDA device: the driver is older than CUDA {major}.{minor}"), hint)
        }
        Fault::NoCard => {
            ("no CUDA device: the driver finds no card".to_owned(), "see what `nvidia-smi` says".to_owned())
        }
        Fault::Failed => (format!("no CUDA device: {said}"), "see what `nvidia-smi` says".to_owned()),
        Fault::NoCublas => (format!("CUDA devices cannot compute without cuBLAS: {said}"), CUBLAS.to_owned()),
    };
    Some(Absence { what, hint })
}

/// What to say to one who asks for a device called `name`, which is not there: the build lacks its kind, or the system does.
pub(super) fn reason(name: &str) -> Option<String> {
    let kinds = [("cuda", "cuda"), ("mtl", "metal"), ("vulkan", "vulkan")];
    let (_, feature) = kinds.into_iter().find(|(start, _)| name.starts_with(start))?;
    if !backends().contains(&feature) {
        return Some(format!(
            "this build is without {feature}: take one with it, or `cargo build --release --features {feature}`"
        ));
    }
    let absence = of_cuda().filter(|_| feature == "cuda")?;
    Some(format!("{}: {}", absence.what, absence.hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_that_a_build_lacks_is_named() {
        for (name, feature) in [("cuda0", "cuda"), ("mtl0", "metal"), ("vulkan3", "vulkan")] {
            let said = reason(name);
            assert!(backends().contains(&feature) || said.unwrap().contains(&format!("--features {feature}")));
        }
        assert_eq!(reason("cpu:discreet"), None);
    }
}
