//! Pictures that clients send, and those that they get.

use std::io::Cursor;

use axum::body::Bytes;
use image::ImageReader;
use pinhole::image::{Image, PARAMETERS, PINHOLE, Picture};

use crate::fault::Fault;
use crate::limits::Limits;

/// The picture in `text`: base64, or a `data:` URL with base64. `name` is the member of the request. Nothing is ever fetched.
///
/// # Errors
/// A fault that names the member.
pub fn read(name: &'static str, text: &str, limits: &Limits) -> Result<Picture, Fault> {
    let payload = match text.split_once(',') {
        Some((head, payload)) if head.starts_with("data:") && head.ends_with(";base64") => payload,
        _ if text.contains(':') => {
            let fault = Fault::invalid(name, format!("{name}: expected base64 or a data: URL, found another URL"));
            return Err(fault.with_hint("nothing is fetched from addresses in requests: send the picture itself"));
        }
        _ => text,
    };
    let bytes = base64::decode(payload.trim())
        .map_err(|error| Fault::invalid(name, format!("{name}: expected base64: {error}")))?;
    from_file(name, &bytes, limits)
}

/// The picture in the bytes of a file. Its size is looked at before it is decoded: a small file can claim any.
///
/// # Errors
/// As [`read`].
pub fn from_file(name: &'static str, bytes: &[u8], limits: &Limits) -> Result<Picture, Fault> {
    let size = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok().and_then(|it| it.into_dimensions().ok());
    let Some((width, height)) = size else {
        let message = format!("{name}: expected a PNG, JPEG or WebP, found {} bytes of something else", bytes.len());
        return Err(Fault::invalid(name, message));
    };
    if u64::from(width) * u64::from(height) > limits.input_pixels as u64 {
        let message = format!("{name}: expected at most {} pixels, found {width}x{height}", limits.input_pixels);
        return Err(Fault::invalid(name, message).with_hint("make the picture smaller"));
    }
    Picture::from_memory(name, bytes).map_err(|error| {
        let fault = Fault::invalid(name, error.to_string());
        match error.hint() {
            Some(hint) => fault.with_hint(hint),
            None => fault,
        }
    })
}

/// `image` as a PNG that says how it was made: `parameters` as the web UI writes them, and as JSON.
///
/// # Errors
/// What the encoder says.
pub fn png(image: &Image, parameters: &str, json: &str) -> Result<Bytes, Fault> {
    let mut bytes = Vec::new();
    let written = image.write_png(&mut bytes, &[(PARAMETERS, parameters), (PINHOLE, json)]);
    written.map_err(|error| Fault::internal(format!("cannot write a PNG: {error}")))?;
    Ok(bytes.into())
}

/// A preview as a PNG, without a word.
pub fn preview(image: &Image) -> Option<Bytes> {
    let mut bytes = Vec::new();
    image.write_png(&mut bytes, &[]).ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_too_large_is_refused_before_it_is_decoded() {
        let limits = Limits { input_pixels: 100, ..Limits::default() };
        let png = |width, height| {
            let image = Image::new(width, height, vec![7; width * height * 3]);
            image.and_then(|image| preview(&image)).unwrap_or_default()
        };
        assert!(from_file("image", &png(10, 10), &limits).is_ok());
        let refused = from_file("image", &png(10, 11), &limits).map(|_| ()).map_err(|fault| fault.message.clone());
        assert_eq!(refused, Err("image: expected at most 100 pixels, found 10x11".into()));
        let cut = png(10, 10);
        assert!(from_file("image", &cut[..cut.len() - 20], &limits).is_err());
        let text = format!("data:image/png;base64,{}", base64::encode(png(4, 4)));
        assert!(
            read("image", &text, &limits).is_ok()
                && read("image", text.rsplit(',').next().unwrap_or(""), &limits).is_ok()
        );
    }
}
