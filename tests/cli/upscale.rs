use std::fs;
use std::path::Path;

use pinhole::image::Image;
use serde_json::Value;

use super::run::{Workplace, mini_bytes};

/// A place with a small network that makes pictures three times as large, and a picture of 11x16.
fn place() -> Workplace {
    let place = Workplace::new();
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    place.write("x3.pth", &fs::read(goldens.join("pickles/upscaler.pth")).unwrap());
    place.write("alpha.png", &fs::read(goldens.join("pictures/gray_alpha.png")).unwrap());
    place.write("gray.jpg", &fs::read(goldens.join("pictures/gray.jpg")).unwrap());
    let mut bytes = Vec::new();
    let rgb = (0..11 * 16 * 3).map(|i| (i * 7) as u8).collect();
    Image::new(11, 16, rgb).unwrap().write_png(&mut bytes, &[]).unwrap();
    place.write("in.png", &bytes);
    place
}

fn size(place: &Workplace, name: &str) -> [usize; 2] {
    let image = Image::open_png(&place.path(name)).unwrap();
    [image.width(), image.height()]
}

#[test]
fn success() {
    let place = place();
    place.run(&["upscale", "in.png", "out.png", "-m", "x3.pth"]).snapshot("upscale");
    assert_eq!(size(&place, "out.png"), [33, 48]);
    place
        .run(&[
            "upscale",
            "in.png",
            "none.png",
            "-m",
            "x3.pth",
            "--dry-run",
            "--device",
            "cpu:discrete",
            "--vram",
            "1G",
        ])
        .snapshot("upscale_dry_run");
    assert!(!place.path("none.png").exists());
    // What is there is replaced, and transparency is laid over white.
    place.run(&["upscale", "alpha.png", "out.png", "-m", "x3.pth", "--outscale", "2"]).snapshot("upscale_alpha");
    let gray = place.run(&["upscale", "gray.jpg", "gray.webp", "-m", "x3.pth", "--quiet"]);
    assert_eq!((gray.code, gray.stdout.as_str(), gray.stderr.as_str()), (0, "gray.webp\n", ""));
}

#[test]
fn json_says_what_it_took() {
    let place = place();
    let arguments = ["upscale", "in.png", "out.png", "-m", "x3.pth", "--outscale", "1.5", "--device", "cpu:discrete"];
    let report = place.json(&arguments);
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_u64).unwrap();
    assert_eq!((report["architecture"].as_str(), number("/scale")), (Some("compact"), 3));
    assert_eq!((report["from"].to_string(), report["size"].to_string()), ("[11,16]".into(), "[16,24]".into()));
    assert_eq!(number("/memory/planned_peak_bytes"), number("/memory/device_peak_bytes"));
    let dry = place.json(&[&arguments[..], &["--dry-run"]].concat());
    assert_eq!(dry["plan"]["peak_bytes"], report["plan"]["peak_bytes"]);
    let least = dry["least_budget_bytes"].to_string();
    let whole = fs::read(place.path("out.png")).unwrap();
    place.json(&[&arguments[..], &["--vram", &least]].concat());
    assert!(whole == fs::read(place.path("out.png")).unwrap());
    let text = String::from_utf8_lossy(&whole).into_owned();
    assert!(text.contains(r#"{"upscaler":"x3.pth","architecture":"compact","#), "{text:?}");
}

#[test]
fn failures() {
    let place = place();
    place.write("mini.gguf", &mini_bytes());
    let run = |arguments: &[&str]| place.run(&[&["upscale"], arguments].concat());
    run(&["in.png", "out.png", "-m", "mini.gguf"]).snapshot("upscale_model");
    run(&["none.png", "out.png", "-m", "x3.pth"]).snapshot("upscale_missing");
    run(&["in.png", "in.png", "-m", "x3.pth"]).snapshot("upscale_same_file");
    run(&["in.png", "out.tiff", "-m", "x3.pth"]).snapshot("upscale_format");
    run(&["in.png", "out.png", "-m", "x3.pth", "--outscale", "0"]).snapshot("upscale_outscale");
    run(&["in.png", "out.png", "-m", "x3.pth", "--device", "cpu:discrete", "--vram", "1K"]).snapshot("upscale_budget");
    place.run(&["generate", "-m", "x3.pth", "-p", "x"]).snapshot("upscale_no_model");
    assert!(!place.path("out.png").exists());
    place.run(&["convert", "x3.pth", "-o", "x3.gguf", "--type", "f16"]).snapshot("upscale_convert");
    place.run(&["inspect", "x3.gguf"]).snapshot("upscale_inspect");
    let gguf = run(&["in.png", "out.png", "-m", "x3.gguf", "--quiet"]);
    assert_eq!((gguf.code, gguf.stdout.as_str()), (0, "out.png\n"), "{}", gguf.stderr);
}
