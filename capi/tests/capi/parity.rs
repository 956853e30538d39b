//! One prompt and seed through the command line, the C library and the Python example: the same pixels.

use std::process::Command;

use pinhole::image::Image;

use crate::rig::{command, compile, folder, has, left_out, prefix, profile_dir, root, run};

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
    if has("python3") {
        let python = root().join("examples/python/pinhole.py");
        let mut script = Command::new("python3");
        script.env("PINHOLE_LIBRARY", prefix().join("lib/libpinhole.so.0")).arg(python).arg(PROMPT);
        run(script.arg(out.join("python.png")));
        assert!(cli == open("python.png"), "the Python example draws something else");
    }
}
