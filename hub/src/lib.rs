//! Models by name: what there is, where it lies on a hub, and how it gets here.
//!
//! ```no_run
//! use pinhole_hub::{Asked, Catalogue, Hub, Settings};
//!
//! let hub = Hub::new(Settings::from_env()?)?;
//! let asked = Asked::parse("hf:Tongyi-MAI/Z-Image-Turbo:model_index.json", &hub.settings)?;
//! let wanted = hub.find(&asked, Catalogue::built_in(), &|| false, &mut |_| {})?;
//! let files = hub.fetch(&wanted, &|| false, &mut |_| {})?;
//! println!("{}", files[0].display());
//! # Ok::<(), pinhole_hub::Error>(())
//! ```
//!
//! Files lie as Hugging Face's own tools keep them (`models--OWNER--NAME/{blobs,refs,snapshots}`), so that each tool finds what another
//! one fetched. Everything that a hub answers is hostile until it is checked: names of files, revisions, sizes, checksums, redirects.
//!
//! # Modules
//!
//! | module | |
//! |---|---|
//! | [`error`] | Why something was not fetched, and what to do. |
//! | [`settings`] | What the environment says: folders, tokens, mirrors. |
//! | [`name`] | What a user asks for, and which names are safe. |
//! | [`catalogue`] | The list of models that have a name here. |
//! | [`checksum`] | What says that a file is the right one. |
//! | `url` | Addresses, their origins, and what a redirect leads to. |
//! | `client` | One request: redirects, tokens, refusals that are explained. |
//! | `patience` | How often and how long to try again. |
//! | [`listing`] | Which files a repository has. |
//! | `chosen` | What a repository is read from. |
//! | [`cache`] | Where files lie. |
//! | [`wanted`] | One file that is to be there. |
//! | `part` | A file that is not yet whole. |
//! | [`arriving`] | What is there of a file, for those who read it meanwhile. |
//! | [`fetch`] | Gets files: in parallel ranges, resumed, checked. |
//! | [`hub`] | All of it together. |
//! | [`tidy`] | What lies here: listed and removed. |

pub mod arriving;
pub mod cache;
pub mod catalogue;
pub mod checksum;
mod chosen;
mod client;
pub mod error;
pub mod fetch;
pub mod hub;
pub mod listing;
pub mod name;
mod part;
mod patience;
pub mod settings;
pub mod tidy;
mod url;
pub mod wanted;

pub use arriving::Arriving;
pub use catalogue::Catalogue;
pub use error::{Error, Result};
pub use fetch::Event;
pub use hub::Hub;
pub use name::Asked;
pub use settings::Settings;
pub use wanted::Wanted;
