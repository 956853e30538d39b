//! Any bytes as a picture: an error or whole pixels, never a panic.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pinhole::image::Picture;

fuzz_target!(|bytes: &[u8]| {
    let Ok(picture) = Picture::from_memory("fuzz.png", bytes) else { return };
    let image = picture.image();
    assert_eq!(image.rgb().len(), image.width() * image.height() * 3);
});
