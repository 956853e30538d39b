//! What a model on disk consists of: components with their weights and configurations, tokenizers, a schedule, defaults.
//!
//! A [`Source`] is opened from a bundle, a diffusers directory, or files of other tools. It knows no family: a bundle and a
//! directory name the [`Slot`] of each component; of loose files it keeps which [`Kind`](crate::bind::alias::Kind)s of
//! networks they hold, until [`Source::arranged`] gives each the place that a family has for it.

mod bundle;
mod component;
mod diffusers;
mod files;
mod folder;
pub mod keys;
mod llama;
mod model;
mod naming;
pub mod networks;
mod open;
mod packing;
mod part;
mod pieces;
mod place;
mod recognise;
pub mod slot;
mod strangers;
mod tokenizers;
pub mod unet_changes;
mod weight_file;

pub(crate) use bundle::VERSION;
pub use component::{Component, Layout, Text, TokenizerFiles};
pub use files::{Files, beside};
pub(crate) use folder::{is_model, of as folder_of};
pub use model::Source;
pub use naming::model_name;
pub use part::{HasModel, Network, Networks, Part, left_over, unused};
pub use pieces::piece;
pub use place::Place;
pub use recognise::{kinds_in, not_run, recognise};
pub use slot::Slot;
pub use strangers::pipeline as pipeline_not_run;
