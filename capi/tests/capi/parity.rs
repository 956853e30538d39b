//! One request through the command line, the C library and the Python example: the same pixels.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use pinhole::image::Image;

use crate::rig::{c_test, command, compile, folder, has, left_out, prefix, profile_dir, root, run};
use crate::support::{Golden, wan::write_directory};

const PROMPT: &str = "a small yellow star on a blue background";

/// The program, built as these tests were.
fn pinhole() -> Command {
    let mut build = Command::new(env!("CARGO"));
    build.current_dir(root()).args(["build", "--quiet", "--package", "pinhole", "--bin", "pinhole"]);
    build.arg("--target-dir").arg(profile_dir().parent().expect("a profile is in the target folder"));
    if profile_dir().ends_with("release") {
        build.arg("--release");
    }
    run(&mut build);
    Command::new(profile_dir().join("pinhole"))
}

/// The Python example with the installed library.
fn python() -> Command {
    let mut script = Command::new("python3");
    script.env("PINHOLE_LIBRARY", prefix().join("lib/libpinhole.so.0")).arg(root().join("examples/python/pinhole.py"));
    script
}

/// Writes a mask of 128x128 pixels: white in its left half and black in its right.
fn write_mask(path: &Path) {
    let row = [[255u8; 64 * 3], [0; 64 * 3]].concat();
    let mask = Image::new(128, 128, row.repeat(128)).unwrap();
    mask.write_png(File::create(path).unwrap(), &[]).unwrap();
}

/// What the picture at `path` says of how it was made.
fn inside(path: &Path) -> String {
    const CHUNK: &[u8] = b"tEXtpinhole\0";
    let file = std::fs::read(path).unwrap();
    let start = file.windows(CHUNK.len()).position(|bytes| bytes == CHUNK).expect("a chunk of pinhole's");
    let length = u32::from_be_bytes(file[start - 4..start].try_into().unwrap()) as usize;
    String::from_utf8(file[start + 4..][..length].to_vec()).unwrap()
}

/// A program outside of the workspace, built with what pkg-config says and nothing else, makes the miniature's picture; and so
/// do the others.
#[test]
fn all_draw_the_same_pixels() {
    if left_out("the same libraries were compared without it") {
        return;
    }
    let out = folder("parity");
    let open = |name: &str| Image::open_png(&out.join(name)).unwrap_or_else(|error| panic!("{error}"));
    run(pinhole().args(["generate", "-m", "mini", "--seed", "0", "-p", PROMPT, "-o"]).arg(out.join("cli.png")));

    let source = out.join("minimal.c");
    std::fs::copy(root().join("examples/c/minimal.c"), &source).unwrap();
    run(command(&compile(&source)).arg(out.join("c.png")));

    let cli = open("cli.png");
    assert!(cli.width() == 128 && cli.height() == 128);
    assert!(cli == open("c.png"), "the C library draws something else");
    assert_eq!(inside(&out.join("c.png")), inside(&out.join("cli.png")));
    if has("python3") {
        run(python().arg(PROMPT).arg(out.join("python.png")));
        assert!(cli == open("python.png"), "the Python example draws something else");
    }
}

/// A picture and a mask go in. The C program gives them as files, as bytes and as pixels, and compares these itself.
#[test]
fn all_paint_a_part_of_a_picture_anew() {
    if left_out("the same libraries were compared without it") {
        return;
    }
    let out = folder("pictures");
    let open = |name: &str| Image::open_png(&out.join(name)).unwrap_or_else(|error| panic!("{error}"));
    let (star, mask) = (out.join("star.png"), out.join("mask.png"));
    let generate = |prompt: &str, seed: &str, name: &str| {
        let mut generate = pinhole();
        generate.args(["generate", "-m", "mini", "-p", prompt, "--seed", seed, "-o"]).arg(out.join(name));
        generate
    };
    run(&mut generate(PROMPT, "0", "star.png"));
    write_mask(&mask);
    let mut paint = generate("a red heart", "5", "cli.png");
    run(paint.arg("--image").arg(&star).arg("--mask").arg(&mask).args(["--strength", "0.5"]));

    let animation = root().join("tests/goldens/pictures/animated.webp");
    let network = root().join("tests/goldens/pickles/upscaler.pth");
    c_test("pictures", [star.clone(), mask.clone(), out.join("c.png"), animation, network]);
    let cli = open("cli.png");
    assert!(cli != open("star.png"));
    assert!(cli == open("c.png"), "the C library paints something else");
    if has("python3") {
        let mut script = python();
        script.arg("a red heart").arg(out.join("python.png")).args(["5", "0.5"]).arg(&star).arg(&mask);
        run(&mut script);
        assert!(cli == open("python.png"), "the Python example paints something else");
    }
}

/// Films of a small model: frame for frame what the command line draws, in files of all types.
#[test]
fn films_are_the_command_lines() {
    let out = folder("films");
    let model = out.join("model");
    write_directory(&model, &Golden::load("wan"), "t2v");
    c_test("films", [&model, &out]);
    if left_out("the same libraries were compared without it") {
        return;
    }
    let mut generate = pinhole();
    generate.args([
        "generate",
        "-p",
        "a red star",
        "--seed",
        "3",
        "--steps",
        "2",
        "--cfg-scale",
        "1",
        "--threads",
        "1",
    ]);
    generate.args(["--width", "48", "--height", "32", "--frames", "5", "--fps", "8", "-m"]).arg(&model);
    run(generate.arg("-o").arg(out.join("cli.y4m")));
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    assert!(read("cli.y4m") == read("c.y4m"), "the C library draws another film");
    for number in 1..=5 {
        let name = format!("c/{number:05}.png");
        let frame = Image::open_png(&out.join(&name)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((frame.width(), frame.height()), (48, 32), "{name}");
    }
    assert!(inside(&out.join("c/00001.png")).contains("\"frames\":5"), "{}", inside(&out.join("c/00001.png")));
}
