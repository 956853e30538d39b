//! Films: files that grow by frame, and those that are read.
//!
//! [`Film`] writes one, [`Clip`] is one that somebody gives, [`Kind`] is how a file holds it, [`Rate`] says how many frames are shown in a
//! second. H.264 is encoded by the crate `openh264`, GIF by `gif`, PNG by `png`, WebP's frames by `image`; the boxes of MP4 and the chunks
//! of animated WebP, which no kept crate writes with everything that is needed here, are written by hand.
//!
//! | kind | frames | what it says of itself |
//! |---|---|---|
//! | MP4 | H.264, 4:2:0, BT.709 in limited range, nearly as they are | the metadata `parameters` and `pinhole` |
//! | WebP | every pixel as it is | EXIF, as in pictures |
//! | APNG | every pixel as it is | text, as in pictures |
//! | GIF | 256 colours of its own for each | a comment and an extension of an application |
//! | Y4M | not compressed, 4:2:0, BT.709 in limited range | nothing: it has no place for it |
//! | folder | pictures of their own | as in pictures |

mod animation;
mod apng;
mod body;
mod clip;
mod film;
mod folder;
mod frames;
mod gif;
mod h264;
mod kind;
mod mp4;
mod rate;
mod sink;
mod webp;
mod y4m;
mod y4m_reader;
mod yuv;

pub use body::Shape;
pub use clip::Clip;
pub use film::{Film, check_replaced};
pub use frames::MAX_FRAMES;
pub use kind::Kind;
pub use rate::Rate;
