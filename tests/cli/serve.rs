//! `pinhole serve` without the program that it runs; `serve/tests` has the rest.

use std::fs;

use super::run::Workplace;

/// A copy of the program where nothing lies beside it.
#[test]
fn a_server_that_is_not_there_is_said() {
    let place = Workplace::new();
    let copy = place.path("pinhole");
    fs::copy(env!("CARGO_BIN_EXE_pinhole"), &copy).unwrap();
    let mut command = std::process::Command::new(&copy);
    let output = command.args(["serve", "--help"]).env("PATH", place.path("")).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{stderr}");
    assert!(stderr.contains("cannot run pinhole-serve") && stderr.contains("put it beside pinhole"), "{stderr}");
}

/// Its options are its own, `--help` among them.
#[cfg(unix)]
#[test]
fn the_program_beside_gets_all_arguments() {
    use std::os::unix::fs::PermissionsExt;
    let place = Workplace::new();
    let copy = place.path("pinhole");
    fs::copy(env!("CARGO_BIN_EXE_pinhole"), &copy).unwrap();
    let beside = place.write("pinhole-serve", b"#!/bin/sh\necho \"$@\"\nexit 7\n");
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).unwrap();
    let output = std::process::Command::new(&copy).args(["serve", "-m", "mini", "--json", "--help"]).output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(7), &b"-m mini --json --help\n"[..]));
}
