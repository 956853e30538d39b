//! Goldens: what diffusers computed, recorded by `tests/reference/record.py`, whose README lists keys and tensors.

use std::fs;
use std::path::PathBuf;

use pinhole::pipeline::Request;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// The layout of keys and tensors that these readers know.
const FORMAT: u64 = 1;

/// The folder of the recorded files.
pub(crate) fn directory() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // The C library is a package in a folder of the repository.
    let own = root.join("tests/goldens");
    if own.exists() { own } else { root.join("../tests/goldens") }
}

/// One golden: a JSON header and, beside it, named tensors. Reading what is not there panics with its name.
pub(crate) struct Golden {
    pub(crate) name: String,
    header: Value,
    tensors: Vec<u8>,
}

impl Golden {
    /// Reads the golden `name` (`dev`, `schnell`, `loose`, `odd_vae`, `foreign`, `mini`, `noise`, `sigmas`, ...).
    pub(crate) fn load(name: &str) -> Golden {
        let file = |extension| directory().join(format!("{name}.{extension}"));
        let text = fs::read_to_string(file("json")).unwrap_or_else(|e| panic!("golden {name}: {e}"));
        let header: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("golden {name}: {e}"));
        assert_eq!(header["format"], FORMAT, "golden {name}: recorded in another format");
        let tensors = fs::read(file("safetensors")).unwrap_or_default();
        let header = match header["based_on"].as_str() {
            Some(base) => changed(Golden::load(base).header, &header),
            None => header,
        };
        Golden { name: name.to_owned(), header, tensors }
    }

    /// The header's value at a JSON pointer: `/generate/seed`.
    pub(crate) fn at(&self, pointer: &str) -> &Value {
        self.header.pointer(pointer).unwrap_or_else(|| panic!("golden {}: no {pointer}", self.name))
    }

    /// The header's value at a JSON pointer, to be changed.
    pub(crate) fn at_mut(&mut self, pointer: &str) -> &mut Value {
        self.header.pointer_mut(pointer).unwrap_or_else(|| panic!("golden {}: no {pointer}", self.name))
    }

    /// The value at a JSON pointer, if there is one.
    pub(crate) fn get(&self, pointer: &str) -> Option<&Value> {
        self.header.pointer(pointer)
    }

    /// The text at a JSON pointer.
    pub(crate) fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_else(|| panic!("golden {}: {pointer} is no text", self.name))
    }

    /// The whole number at a JSON pointer.
    pub(crate) fn integer(&self, pointer: &str) -> u64 {
        self.at(pointer).as_u64().unwrap_or_else(|| panic!("golden {}: {pointer} is no whole number", self.name))
    }

    /// The number at a JSON pointer, rounded to single precision.
    pub(crate) fn number(&self, pointer: &str) -> f32 {
        self.at(pointer).as_f64().unwrap_or_else(|| panic!("golden {}: {pointer} is no number", self.name)) as f32
    }

    /// The list of numbers at a JSON pointer, rounded to single precision.
    pub(crate) fn numbers(&self, pointer: &str) -> Vec<f32> {
        self.list(pointer).iter().map(|v| v.as_f64().unwrap() as f32).collect()
    }

    /// The list of token ids at a JSON pointer: `/generate/token_ids/t5`.
    pub(crate) fn ids(&self, pointer: &str) -> Vec<u32> {
        self.list(pointer).iter().map(|v| u32::try_from(v.as_u64().unwrap()).unwrap()).collect()
    }

    /// The list at a JSON pointer.
    pub(crate) fn list(&self, pointer: &str) -> &[Value] {
        self.at(pointer).as_array().unwrap_or_else(|| panic!("golden {}: {pointer} is no list", self.name))
    }

    /// Width and height, a list of two whole numbers at a JSON pointer.
    pub(crate) fn sides(&self, pointer: &str) -> [usize; 2] {
        let sides = self.list(pointer).iter().map(|v| v.as_u64().unwrap() as usize).collect::<Vec<_>>();
        sides.try_into().unwrap_or_else(|_| panic!("golden {}: {pointer} is no width and height", self.name))
    }

    /// The request that was recorded, which the value at a JSON pointer describes: `/generate`.
    pub(crate) fn request(&self, at: &str) -> Request {
        let size = |key| Some(self.integer(&format!("{at}/{key}")) as usize);
        Request {
            prompt: self.text(&format!("{at}/prompt")).to_owned(),
            negative_prompt: self.at(&format!("{at}/negative_prompt")).as_str().map(str::to_owned),
            width: size("width"),
            height: size("height"),
            steps: size("steps"),
            seed: self.integer(&format!("{at}/seed")),
            guidance: Some(self.number(&format!("{at}/guidance_scale"))),
            cfg_scale: Some(self.number(&format!("{at}/true_cfg_scale"))),
            max_sequence_length: size("max_sequence_length"),
            batch: 1,
            ..Request::default()
        }
    }

    /// A tensor's extents in PyTorch's order, slowest first.
    pub(crate) fn shape(&self, tensor: &str) -> Vec<usize> {
        self.with(tensor, |_, shape, _| shape.to_vec())
    }

    /// A tensor of single precision numbers, in PyTorch's row-major order.
    pub(crate) fn f32(&self, tensor: &str) -> Vec<f32> {
        self.with(tensor, |dtype, _, bytes| {
            assert_eq!(dtype, Dtype::F32, "golden {}: {tensor}", self.name);
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        })
    }

    /// A tensor of double precision numbers.
    pub(crate) fn f64(&self, tensor: &str) -> Vec<f64> {
        self.with(tensor, |dtype, _, bytes| {
            assert_eq!(dtype, Dtype::F64, "golden {}: {tensor}", self.name);
            bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
        })
    }

    /// A tensor of bytes: a picture, `[height, width, 3]`.
    pub(crate) fn u8(&self, tensor: &str) -> Vec<u8> {
        self.with(tensor, |dtype, _, bytes| {
            assert_eq!(dtype, Dtype::U8, "golden {}: {tensor}", self.name);
            bytes.to_vec()
        })
    }

    fn with<T>(&self, tensor: &str, read: impl FnOnce(Dtype, &[usize], &[u8]) -> T) -> T {
        let file = SafeTensors::deserialize(&self.tensors).unwrap_or_else(|e| panic!("golden {}: {e}", self.name));
        let view = file.tensor(tensor).unwrap_or_else(|e| panic!("golden {}: {tensor}: {e}", self.name));
        read(view.dtype(), view.shape(), view.data())
    }
}

/// The header `base` of a model with the denoiser that `header` describes: another configuration, and another first layer.
fn changed(mut base: Value, header: &Value) -> Value {
    let changed = &header["changed"];
    if let Some(component) = changed["component"].as_str() {
        let component = &mut base["components"][component];
        component["config"] = changed["config"].clone();
        let (name, described) = (&changed["tensor"]["name"], &changed["tensor"]);
        for tensor in component["tensors"].as_array_mut().unwrap() {
            if tensor[0] == *name {
                *tensor = ["name", "shape", "scale", "offset"].map(|key| described[key].clone()).to_vec().into();
            } else if tensor["name"] == *name {
                *tensor = described.clone();
            }
        }
    }
    for key in ["cases", "class", "taught"] {
        if let Some(value) = header.get(key) {
            base[key] = value.clone();
        }
    }
    base
}
