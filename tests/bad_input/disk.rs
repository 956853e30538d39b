//! A small model on disk, to be damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use pinhole::convert::{self, WriteOptions};
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::Opened;
use pinhole::pipeline::Pipeline;
use pinhole::source::Source;
use pinhole::{Error, Result};
use pinhole_quant::recipe::FileType;
use safetensors::tensor::{TensorView, serialize_to_file};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Golden, Layout, write_model};

/// Fails unless `result` is an error of `kind` whose message has all `parts`; prints the message with its hint.
macro_rules! refused {
    ($kind:ident, $result:expr, $($part:expr),* $(,)?) => {{
        let error = $result.map(|_| ()).unwrap_err();
        $crate::disk::show(&error);
        assert!(matches!(error, pinhole::Error::$kind { .. }), "no {}: {error:?}", stringify!($kind));
        let message = error.to_string();
        $(assert!(message.contains($part), "`{}` is not in: {message}", $part);)*
        error
    }};
}
pub(crate) use refused;

/// Prints what a user would read.
pub(crate) fn show(error: &Error) {
    println!("error: {error}");
    if let Some(hint) = error.hint() {
        println!("hint: {hint}");
    }
}

/// The whole model, written once for all tests.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<TempDir> = OnceLock::new();
    let directory = TEMPLATE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout { dtype: Dtype::BF16, ..Layout::default() };
        write_model(directory.path(), &Golden::load("schnell"), &layout);
        directory
    });
    directory.path()
}

/// A bundle of it, written once for all tests.
pub(crate) fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<TempDir> = OnceLock::new();
    let directory = BUNDLE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        convert_to(template(), &directory.path().join("model.gguf")).unwrap();
        directory
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| directory.path().join("model.gguf"))
}

/// Converts the model at `from` to a bundle.
pub(crate) fn convert_to(from: &Path, to: &Path) -> Result<()> {
    let source = Source::open(from)?;
    let model = pinhole::pipeline::open(&source)?;
    convert::plan(&model.source, &model.networks(), FileType::BF16)?
        .write(to, WriteOptions::default(), &mut |_| Ok(()))
        .map(|_| ())
}

/// A model that shares its files with the template until they are changed.
pub(crate) struct Disk {
    directory: TempDir,
}

impl Disk {
    pub(crate) fn new() -> Disk {
        let directory = tempfile::tempdir().unwrap();
        link(template(), directory.path());
        Disk { directory }
    }

    /// A file or folder of the model.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn open(&self) -> Result<Opened> {
        pinhole::pipeline::open(&Source::open(self.root())?)
    }

    pub(crate) fn pipeline(&self) -> Pipeline {
        pipeline(self.open().unwrap())
    }

    /// Replaces a file: a link's other end stays as it is.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        if path.exists() {
            fs::remove_file(&path).unwrap();
        }
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    pub(crate) fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(name)).unwrap()).unwrap()
    }

    /// Changes a JSON file.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.json(name);
        change(&mut value);
        self.write(name, value.to_string());
    }

    /// Changes the tensors of a component's file.
    pub(crate) fn edit_tensors(&self, component: &str, change: impl FnOnce(&mut Tensors)) {
        edit_file(&self.path(&weights_of(component)), change);
    }
}

/// Changes the tensors of the safetensors file at `path`; a link's other end stays as it is.
pub(crate) fn edit_file(path: &Path, change: impl FnOnce(&mut Tensors)) {
    let bytes = fs::read(path).unwrap();
    let mut tensors: Tensors = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| (name.to_owned(), Tensor::of(&view)))
        .collect();
    change(&mut tensors);
    fs::remove_file(path).unwrap();
    let views = tensors.iter().map(|(name, Tensor { dtype, shape, bytes })| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

/// The weights of a component, relative to the model.
pub(crate) fn weights_of(component: &str) -> String {
    let stem = if component.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
    format!("{component}/{stem}.safetensors")
}

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// A tensor of a safetensors file.
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Tensor {
    fn of(view: &TensorView<'_>) -> Tensor {
        Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() }
    }
}

/// Computes with one thread: the test runner has a test for every core.
pub(crate) fn pipeline(model: Opened) -> Pipeline {
    Pipeline::with_threads(model, Device::cpu().unwrap(), 1, CancelFlag::new()).unwrap()
}

/// Links every file below `from` to its place below `to`.
pub(crate) fn link(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            link(&entry.path(), &target);
        } else if fs::hard_link(entry.path(), &target).is_err() {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}
