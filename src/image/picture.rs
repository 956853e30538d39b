//! Pictures that somebody gives, from files or memory.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::decode::{self, MAX_SIDE};
use super::{Filter, Image, Mask, content};
use crate::size::Size;
use crate::{Error, Result, file, reserve};

/// The most bytes that a picture's file may have (512 MiB).
pub const MAX_FILE: u64 = 512 << 20;

/// A picture that somebody gave: 8-bit RGB, upright and without transparency.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    name: PathBuf,
    image: Image,
    notes: Vec<String>,
}

impl Picture {
    /// Reads a PNG, JPEG or WebP file; its content and not its name says which. Of an animation, the first frame.
    ///
    /// - The orientation in EXIF data is applied, as Pillow's `ImageOps.exif_transpose` does it.
    /// - Transparent pixels are laid over white. (diffusers' `load_image` drops transparency instead, and with it shows
    ///   whatever colours lie below it.)
    /// - 16 bits lose the lower 8, as in Pillow. (It does so for colours. Of 16-bit gray it makes white from 256 on.)
    /// - Gray, palettes and CMYK become RGB. Colour profiles are left out, as in diffusers.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read or is no regular file, [`Error::Mismatch`] if it is no picture, is damaged
    /// or is too large, [`Error::OutOfMemory`].
    pub fn open(path: &Path) -> Result<Picture> {
        Picture::from_memory(path, &read(path)?)
    }

    /// Reads the bytes of a file as [`open`](Picture::open) does. `name` is for messages.
    ///
    /// # Errors
    ///
    /// As [`open`](Picture::open).
    pub fn from_memory(name: impl Into<PathBuf>, bytes: &[u8]) -> Result<Picture> {
        let name = name.into();
        let format = content::format(bytes, &name)?;
        let (image, notes) = decode::decode(format, bytes, &name)?;
        Ok(Picture { name, image, notes })
    }

    /// The picture with these bytes: row by row from the top, three bytes a pixel.
    ///
    /// # Errors
    ///
    /// [`Error::Option`] if a side is 0 or longer than [`MAX_SIDE`], or there are not `width * height * 3` bytes;
    /// [`Error::OutOfMemory`].
    pub fn from_rgb8(width: usize, height: usize, rgb: &[u8]) -> Result<Picture> {
        if width.max(height) > MAX_SIDE {
            let expected = format!("at most {MAX_SIDE} pixels a side");
            return Err(Error::option("picture", expected, format!("{width}x{height}")));
        }
        let copy = reserve::collect("a picture", rgb.len(), rgb.iter().copied())?;
        let Some(image) = Image::new(width, height, copy) else {
            let expected = format!("{} bytes for {width}x{height} pixels of RGB, at least one", width * height * 3);
            return Err(Error::option("picture", expected, format!("{} bytes", rgb.len())));
        };
        Ok(Picture { name: "picture".into(), image, notes: Vec::new() })
    }

    /// Its file, or what else it is called in messages.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// The pixels.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The pixels, without the rest.
    pub fn into_image(self) -> Image {
        self.image
    }

    /// What the user should know about how the file was read, each a sentence without its end: `photo.webp is animated: the
    /// first frame is used`.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The numbers that an autoencoder's encoder takes: this picture, resized to `width` by `height` with Lanczos' filter as
    /// diffusers does it by default, as [`Image::to_samples`] gives them.
    ///
    /// # Errors
    ///
    /// Those of [`Image::resized`].
    pub fn samples(&self, width: usize, height: usize) -> Result<Vec<f32>> {
        self.image.resized(width, height, Filter::Lanczos)?.to_samples()
    }

    /// Refuses this picture as the mask for `picture` if the two differ in size.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn require_size_of(&self, picture: &Picture) -> Result<()> {
        let size = |image: &Image| format!("{}x{}", image.width(), image.height());
        let (mine, wanted) = (size(&self.image), size(&picture.image));
        if mine != wanted {
            let expected = format!("{wanted} pixels, as {} has", picture.name.display());
            let error = Error::mismatch(&self.name, "mask", expected, mine);
            return Err(error.with_hint("a mask covers its picture pixel by pixel: resize or crop it alike"));
        }
        Ok(())
    }

    /// This picture as the mask for `picture`, both resized to `width` by `height`. White is painted anew.
    ///
    /// # Errors
    /// As [`require_size_of`](Picture::require_size_of), and those of [`Mask::new`].
    pub fn mask_for(&self, picture: &Picture, width: usize, height: usize) -> Result<Mask> {
        self.require_size_of(picture)?;
        Mask::new(&self.image, width, height, Filter::Lanczos)
    }
}

/// The bytes of the regular file at `path`.
fn read(path: &Path) -> Result<Vec<u8>> {
    let (file, metadata) = file::open(path)?;
    if metadata.len() > MAX_FILE {
        let (expected, found) = (format!("at most {}", Size(MAX_FILE)), Size(metadata.len()).to_string());
        return Err(Error::mismatch(path, "picture", expected, found).with_hint("make the picture smaller"));
    }
    let length = metadata.len() as usize;
    let mut bytes = reserve::room("a picture's file", length)?;
    // A file that grows meanwhile is read up to here.
    file.take(metadata.len()).read_to_end(&mut bytes).map_err(|source| Error::io("read", path, source))?;
    Ok(bytes)
}
