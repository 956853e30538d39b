//! Diffusion models through a 4 GB pinhole.
//!
//! ```
//! use pinhole::ggml::Device;
//! use pinhole::pipeline::{Pipeline, Request};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # std::env::set_current_dir(&dir).unwrap();
//! let model = pinhole::open("mini")?; // or a bundle, a diffusers directory, a folder with a model's files
//! let mut pipeline = Pipeline::new(model, Device::best()?)?;
//! let generated = pipeline.generate(&Request::new("a red heart"))?;
//! generated.images[0].save("heart.png")?;
//! # std::env::set_current_dir("..").unwrap();
//! # Ok::<(), pinhole::Error>(())
//! ```
//!
//! [`Pipeline::set_memory`](pipeline::Pipeline::set_memory) sets a ceiling: what a request takes on the device is planned before
//! anything is loaded ([`Pipeline::plan`](pipeline::Pipeline::plan)), and never exceeds it. `examples/draw.rs` does a little more.
//!
//! pinhole reads image and video diffusion models from GGUF bundles, diffusers directories and files of other tools, maps
//! them into memory and runs them through ggml. Data goes one way: file, map, index, bind, stages, plan, executor, latents,
//! autoencoder, picture.
//!
//! # Modules
//!
//! A module imports only from those above it in this table (`tests/layers` checks that). The program's own files,
//! `src/main.rs` and `src/cli`, come after all of them.
//!
//! | module | |
//! |---|---|
//! | [`size`] | Sizes in bytes, as people write and read them. |
//! | [`entries`] | JSON objects whose members keep their order. |
//! | [`json`] | JSON as Python writes it. |
//! | [`error`] | The one error type: what was expected, what was found, and what to do. |
//! | [`file`] | Opens files: regular ones only, with texts of a bounded size. |
//! | [`quiet`] | Panics of other people's code that are caught: they say nothing. |
//! | [`reserve`] | Vectors that report an error if there is no memory for them. |
//! | [`memory`] | The memory that this process takes, by the kernel's account. |
//! | [`processors`] | The processors that this process may use. |
//! | [`trace`] | What happened when, on which thread, as Chrome's trace format. |
//! | [`tensor`] | Shapes, in ggml order. |
//! | [`index`] | Which tensor lies where in a mapped file. |
//! | [`gguf`] | Reads and validates GGUF files. |
//! | [`pickle`] | Reads PyTorch's own files, and runs nothing that is in them. |
//! | [`safetensors`] | Reads and validates safetensors files, single or in shards. |
//! | [`npy`] | Reads NumPy's arrays of floats. |
//! | [`kernels`] | Matrix products, convolutions and attention on the CPU that are faster than ggml's. Knows no ggml. |
//! | [`ggml`] | The safe wrapper over ggml: devices, buffers, graphs, shape-checked operations, the account of memory. |
//! | [`rpc`] | Lends a device to another machine. |
//! | [`weights`] | The one list of a model's weights: name, shape, role. |
//! | [`stage`] | Stages, ports and blocks, which models are written in. |
//! | [`models`] | The networks: each declares its weights and builds its graphs. No files, no devices, no number formats. |
//! | [`bind`] | From a model's weights to the tensors of a file; has the only table of other names for weights. |
//! | [`sample`] | Noise, schedules, solvers and guidance, in plain f32. |
//! | [`text`] | Tokenizers. |
//! | [`image`] | Pictures, and their PNG files. |
//! | [`video`] | Films: files that grow by frame, and those that are read. |
//! | [`source`] | What a bundle, a directory or loose files hold, and which networks that makes. |
//! | [`builtin`] | The small model inside the program. |
//! | [`convert`] | From a source to a bundle or to the file of a component, a few megabytes at a time. |
//! | [`synthetic`] | Models of real size with random weights, to plan and to measure with. |
//! | [`plan`] | What a request has on the device, and when, before anything is read. |
//! | [`exec`] | The executor: weights and ports to their places, then graphs in order. Knows no model's name. |
//! | [`pipeline`] | From a request to pictures. |
//! | [`inspect`] | What a file or directory is, and what is wrong with it. |

pub mod bind;
pub mod builtin;
pub mod convert;
#[doc(hidden)]
pub mod entries;
pub mod error;
#[doc(hidden)]
pub mod exec;
#[doc(hidden)]
pub mod file;
pub mod ggml;
pub mod gguf;
pub mod image;
#[doc(hidden)]
pub mod index;
pub mod inspect;
#[doc(hidden)]
pub mod json;
#[doc(hidden)]
pub mod kernels;
pub mod memory;
pub mod models;
pub mod npy;
pub mod pickle;
pub mod pipeline;
pub mod plan;
pub mod processors;
#[doc(hidden)]
pub mod quiet;
#[doc(hidden)]
pub mod reserve;
pub mod rpc;
pub mod safetensors;
pub mod sample;
pub mod size;
pub mod source;
pub mod stage;
#[doc(hidden)]
pub mod synthetic;
pub mod tensor;
pub mod text;
pub mod trace;
pub mod video;
#[doc(hidden)]
pub mod weights;

pub use error::{Error, Result};

/// Opens the model `name`: a bundle, a diffusers directory, a file or folder of files of other tools, or `mini`, the model that is
/// built in. Reads headers and configurations, no weights.
///
/// # Errors
/// As [`source::Source::open`] and [`pipeline::open`].
pub fn open(name: impl AsRef<std::path::Path>) -> Result<pipeline::Opened> {
    let name = name.as_ref();
    let source =
        if name == std::path::Path::new(builtin::MINI_NAME) { builtin::mini()? } else { source::Source::open(name)? };
    pipeline::open(&source)
}
