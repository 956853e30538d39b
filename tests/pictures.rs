//! Pictures from files and to files, held against Pillow's and diffusers' numbers (tests/reference/pictures.py).

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use pinhole::Error;
use pinhole::image::{Filter, Format, Image, PARAMETERS, PINHOLE, Picture};
use proptest::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn golden() -> Value {
    let golden: Value = serde_json::from_slice(&fs::read(goldens().join("pictures.json")).unwrap()).unwrap();
    assert_eq!(golden["format"], 1);
    golden
}

fn file(name: &str) -> PathBuf {
    goldens().join("pictures").join(name)
}

fn open(name: &str) -> Picture {
    Picture::open(&file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The first 8 bytes of SHA-256.
fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn size(value: &Value) -> (usize, usize) {
    let side = |i: usize| value[i].as_u64().unwrap() as usize;
    (side(0), side(1))
}

/// The picture that `formula` in pictures.py makes.
fn formula((width, height): (usize, usize), pattern: &str) -> Image {
    let mut rgb = Vec::new();
    for i in 0..width * height * 3 {
        let (x, y, channel) = (i / 3 % width, i / 3 / width, i % 3);
        rgb.push(match pattern {
            "noise" => ((i as u32).wrapping_mul(2654435761) >> 24) as u8,
            _ => 255 * ((x / (3 + channel) + y / (2 + channel)) % 2) as u8,
        });
    }
    Image::new(width, height, rgb).unwrap()
}

#[test]
fn pictures_are_read_as_pillow_reads_them() {
    let golden = golden();
    for (name, wanted) in golden["exact"].as_object().unwrap() {
        let picture = open(name);
        let image = picture.image();
        let sides = ["width", "height"].map(|side| wanted[side].as_u64().unwrap() as usize);
        assert_eq!([image.width(), image.height()], sides, "{name}");
        assert_eq!(checksum(image.rgb()), wanted["sum"], "{name}");
    }
}

/// How far another decoder may round away from Pillow's. One step of blue-yellow is 1.772 steps of blue, so that one step there makes
/// two of 255. Where colours are stored at half the resolution, each decoder rounds in between, too.
fn tolerance(name: &str) -> u8 {
    match name {
        "lossy.webp" => 0,
        "gray.jpg" | "cmyk.jpg" => 1,
        "420.jpg" | "422.jpg" => 3,
        _ => 2,
    }
}

#[test]
fn lossy_pictures_are_within_rounding_of_pillows() {
    let bytes = fs::read(goldens().join("pictures.safetensors")).unwrap();
    for (name, wanted) in SafeTensors::deserialize(&bytes).unwrap().iter() {
        let picture = open(name);
        let image = picture.image();
        assert_eq!(wanted.shape(), [image.height(), image.width(), 3], "{name}");
        let differences: Vec<u8> = image.rgb().iter().zip(wanted.data()).map(|(a, b)| a.abs_diff(*b)).collect();
        let worst = *differences.iter().max().unwrap();
        let mean = differences.iter().map(|&difference| f64::from(difference)).sum::<f64>() / differences.len() as f64;
        assert!(worst <= tolerance(name) && mean < 0.5, "{name}: at most {worst}, {mean} on average");
    }
}

#[test]
fn pictures_are_resized_as_pillow_resizes_them() {
    let filters = [
        ("nearest", Filter::Nearest),
        ("bilinear", Filter::Bilinear),
        ("bicubic", Filter::Bicubic),
        ("lanczos", Filter::Lanczos),
    ];
    for case in golden()["resized"].as_array().unwrap() {
        let image = formula(size(&case["from"]), case["pattern"].as_str().unwrap());
        let (width, height) = size(&case["to"]);
        for (name, filter) in filters {
            let resized = image.resized(width, height, filter).unwrap();
            assert_eq!((resized.width(), resized.height()), (width, height));
            assert_eq!(checksum(resized.rgb()), case["sums"][name], "{case}, {name}");
        }
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn pictures_and_masks_are_prepared_as_diffusers_prepares_them() {
    for case in golden()["prepared"].as_array().unwrap() {
        let (from, (width, height)) = (size(&case["from"]), size(&case["to"]));
        let as_picture = |image: &Image| Picture::from_rgb8(from.0, from.1, image.rgb()).unwrap();
        let picture = as_picture(&formula(from, "noise"));
        let mask = as_picture(&formula(from, case["pattern"].as_str().unwrap()));
        let mut samples = picture.samples(width, height).unwrap();
        let mask = mask.mask_for(&picture, width, height).unwrap();
        let check =
            |name: &str, values: &[f32]| assert_eq!(checksum(&bytes(values)), case["sums"][name], "{name}, {case}");
        check("samples", &samples);
        check("mask", mask.values());
        check("latents", &mask.latents(8).unwrap());
        mask.hide(&mut samples).unwrap();
        samples.iter_mut().for_each(|sample| *sample += 0.0);
        check("hidden", &samples);
    }
}

fn refused(name: &str, bytes: &[u8]) -> (String, String) {
    let error = Picture::from_memory(name, bytes).unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{name}: {error}");
    (error.to_string(), error.hint().unwrap_or_else(|| panic!("{name}: no hint")).to_owned())
}

#[test]
fn what_is_no_picture_is_called_by_its_name() {
    for (bytes, found) in [
        (&b""[..], "an empty file"),
        (b"  \n<!DOCTYPE html><html>404", "a web page"),
        (b"<html>", "a web page"),
        (b"<svg xmlns=''/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>", "XML"),
        (b"{\"error\": \"gated\"}", "JSON"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer, not the file itself"),
        (b"a red heart", "text"),
        (b"GIF89a...", "a picture in the format GIF"),
        (b"BM....", "a picture in the format BMP"),
        (b"II*\0....", "a picture in the format TIFF"),
        (b"\0\0\0\x18ftypheic", "HEIF, AVIF or a video"),
        (b"GGUF\x03\0\0\0", "a GGUF model"),
        (b"\x40\0\0\0\0\0\0\0{\"w\":", "a safetensors file"),
        (b"\x01\x02\x03\x04", "data that is none of these"),
    ] {
        let wanted = format!("a.png: picture: expected a PNG, JPEG or WebP picture, found {found}");
        assert_eq!(refused("a.png", bytes).0, wanted);
    }
}

/// A PNG of nothing but a header, and the beginning of its pixels.
fn claims(width: u32, height: u32, color: png::ColorType, depth: png::BitDepth) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    encoder.write_header().unwrap().write_chunk(png::chunk::IDAT, &[0]).unwrap();
    bytes
}

#[test]
fn a_picture_too_large_is_refused_before_it_is_decoded() {
    use png::{BitDepth, ColorType};
    let (message, hint) = refused("a.png", &claims(20_000, 20_000, ColorType::Rgb, BitDepth::Eight));
    assert_eq!(message, "a.png: picture: expected at most 16384 pixels a side, found 20000x20000");
    assert_eq!(hint, "make the picture smaller");
    let (message, _) = refused("a.png", &claims(16384, 16384, ColorType::Rgba, BitDepth::Sixteen));
    assert_eq!(message, "a.png: picture: expected at most 1.00 GiB when it is decoded, found 2.00 GiB, 16384x16384");
}

#[test]
fn a_picture_that_is_cut_off_is_refused() {
    for name in
        ["rgb.png", "444.jpg", "progressive.jpg", "lossless.webp", "lossy.webp", "alpha.webp", "orientation_6.jpg"]
    {
        let bytes = fs::read(file(name)).unwrap();
        // Behind the pixels of a PNG lies a chunk without content.
        let end = if name.ends_with("png") { bytes.len() - 12 } else { bytes.len() - 1 };
        for length in 0..end {
            let error = Picture::from_memory(name, &bytes[..length]).unwrap_err();
            assert!(error.hint().is_some(), "{name}, {length} bytes: {error}");
        }
        let (message, hint) = refused(name, &bytes[..bytes.len() / 2]);
        assert!(message.contains("expected a whole "), "{message}");
        assert_eq!(hint, "the file is cut off or damaged: copy or download it again");
    }
}

#[test]
fn what_was_done_to_a_picture_is_said() {
    let path = |name| file(name).display().to_string();
    for name in ["animated.webp", "animated.png"] {
        assert_eq!(open(name).notes(), [format!("{} is animated: the first frame is used", path(name))]);
    }
    for name in ["rgba.png", "palette_transparent.png", "gray_alpha.png", "alpha.webp"] {
        assert_eq!(open(name).notes(), [format!("{} has transparency: it is laid over white", path(name))]);
    }
    assert_eq!(open("pixel.png").notes().len(), 1);
    assert!(open("rgb.png").notes().is_empty() && open("turned.webp").notes().is_empty());
}

#[test]
fn the_content_and_not_the_name_is_the_format() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    fs::copy(file("444.jpg"), &path).unwrap();
    assert_eq!(Picture::open(&path).unwrap().image(), open("444.jpg").image());
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &Path| Picture::open(path).unwrap_err();
    assert!(matches!(error(dir.path()), Error::Io { action: "open", .. }));
    assert!(matches!(error(&dir.path().join("none.png")), Error::Io { action: "open", .. }));
    if cfg!(unix) {
        let message = error(Path::new("/dev/null")).to_string();
        assert_eq!(message, "cannot open /dev/null: not a regular file");
        let pipe = dir.path().join("pipe");
        if std::process::Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()) {
            assert!(error(&pipe).to_string().ends_with("not a regular file"));
        }
    }
}

#[test]
fn bytes_that_make_no_picture_are_refused() {
    for (width, height, bytes) in
        [(2, 2, 11), (2, 2, 13), (0, 0, 0), (0, 4, 0), (20_000, 1, 60_000), (usize::MAX, 2, 6)]
    {
        let error = Picture::from_rgb8(width, height, &vec![0; bytes]).unwrap_err();
        assert!(matches!(error, Error::Option { .. }), "{width}x{height}, {bytes}: {error}");
    }
}

#[test]
fn a_mask_of_another_size_is_refused() {
    let (picture, mask) = (open("rgb.png"), open("pixel.png"));
    let error = mask.mask_for(&picture, 32, 32).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("pixel.png: mask: expected 23x17 pixels, as ") && message.ends_with("found 1x1"),
        "{message}"
    );
    assert!(error.hint().is_some());
    assert!(open("gray.png").mask_for(&picture, 32, 32).unwrap().latents(7).is_err());
}

const PROMPT: &str = "un chat \u{1f431}, flou\nSteps: 20";
const JSON: &str = r#"{"seed":1}"#;

/// A field of a file's EXIF data, by walking its directories.
fn exif_field(bytes: &[u8], tag: u16) -> Option<Vec<u8>> {
    let start = bytes.windows(4).position(|window| window == b"MM\0\x2a")?;
    let tiff = &bytes[start..];
    let long = |at: usize| u32::from_be_bytes(tiff[at..at + 4].try_into().unwrap()) as usize;
    let short = |at: usize| u16::from_be_bytes(tiff[at..at + 2].try_into().unwrap());
    let find = |directory: usize, tag: u16| {
        let entries = (0..usize::from(short(directory))).map(|i| directory + 2 + 12 * i);
        entries.into_iter().find(|&entry| short(entry) == tag)
    };
    let directory = long(find(long(4), 0x8769)? + 8);
    let entry = find(directory, tag)?;
    Some(tiff[long(entry + 8)..][..long(entry + 4)].to_vec())
}

#[test]
fn pictures_survive_every_format_with_their_texts() {
    let image = formula((37, 21), "edges");
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.png", "a.webp", "a.jpg"] {
        let path = dir.path().join(name);
        image.save_with(&path, &[(PARAMETERS, PROMPT), (PINHOLE, JSON)]).unwrap();
        let again = Picture::open(&path).unwrap();
        assert!(again.notes().is_empty());
        if name != "a.jpg" {
            assert_eq!(again.image(), &image, "{name}");
        }
        if name != "a.png" {
            let bytes = fs::read(&path).unwrap();
            let comment = exif_field(&bytes, 0x9286).unwrap();
            let utf16: Vec<u16> = comment[8..].chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
            assert_eq!((&comment[..8], String::from_utf16(&utf16).unwrap().as_str()), (&b"UNICODE\0"[..], PROMPT));
            assert_eq!(exif_field(&bytes, 0x927c).unwrap(), JSON.as_bytes());
        }
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary file is left");
    assert!(matches!(image.save(dir.path().join("a.gif")), Err(Error::Option { .. })));
    assert!(matches!(image.save(dir.path().join("none/a.png")), Err(Error::Io { .. })));
}

#[test]
fn a_jpeg_is_near_what_was_drawn() {
    let image = open("rgb.png").into_image();
    let mut bytes = Vec::new();
    image.write(Format::Jpeg, &mut bytes, &[]).unwrap();
    let again = Picture::from_memory("a.jpg", &bytes).unwrap();
    let sum: u32 = image.rgb().iter().zip(again.image().rgb()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    assert!(f64::from(sum) / (image.rgb().len() as f64) < 3.0, "{sum}");
}

#[test]
fn a_text_too_long_for_a_jpeg_is_left_out() {
    let image = formula((8, 8), "noise");
    for (prompt, json, has_prompt, has_json) in
        [(10, 70_000, true, false), (40_000, 70_000, false, false), (20_000, 20_000, true, true)]
    {
        let (prompt, json) = ("p".repeat(prompt), "j".repeat(json));
        let mut bytes = Vec::new();
        image.write(Format::Jpeg, &mut bytes, &[(PARAMETERS, &prompt), (PINHOLE, &json)]).unwrap();
        let found = (exif_field(&bytes, 0x9286).is_some(), exif_field(&bytes, 0x927c).is_some());
        assert_eq!(found, (has_prompt, has_json));
        assert!(Picture::from_memory("a.jpg", &bytes).is_ok());
    }
}

/// Files to bend: one of each decoder and kind.
const SEEDS: [&str; 8] = [
    "rgba_16.png",
    "palette_transparent.png",
    "animated.png",
    "420.jpg",
    "progressive.jpg",
    "cmyk.jpg",
    "lossy.webp",
    "animated.webp",
];

proptest! {
    #[test]
    fn any_bytes_are_a_picture_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Picture::from_memory("a.png", &bytes);
        for magic in [&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], b"\xff\xd8\xff", b"RIFF\x40\0\0\0WEBPVP8 "] {
            let _ = Picture::from_memory("a.png", &[magic, &bytes].concat());
        }
    }

    #[test]
    fn damaged_pictures_are_a_picture_or_an_error(
        seed in 0..SEEDS.len(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = fs::read(file(SEEDS[seed])).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(picture) = Picture::from_memory("a.png", &bytes) {
            prop_assert_eq!(picture.image().rgb().len(), picture.image().width() * picture.image().height() * 3);
        }
    }
}
