use super::run::Workplace;

#[test]
fn help() {
    let place = Workplace::new();
    place.run(&["--help"]).snapshot("help");
    for command in [
        "generate",
        "plan",
        "convert",
        "inspect",
        "upscale",
        "compare",
        "pull",
        "models",
        "devices",
        "rpc-server",
        "doctor",
        "completions",
        "man",
    ] {
        place.run(&[command, "--help"]).snapshot(&format!("help_{command}"));
    }
    for action in ["rm", "prune"] {
        place.run(&["models", action, "--help"]).snapshot(&format!("help_models_{action}"));
    }
    place.run(&["bench", "--help"]).snapshot("help_bench");
    for bench in [
        "attention",
        "busy",
        "devices",
        "card",
        "decode",
        "encode",
        "load",
        "matmul",
        "model",
        "offload",
        "quality",
        "steady",
        "step",
    ] {
        place.run(&["bench", bench, "--help"]).snapshot(&format!("help_bench_{bench}"));
    }
}

#[test]
fn nothing_asked_for_is_wrong_usage() {
    let place = Workplace::new();
    let unknown = ["generate", "-m", "mini", "-p", "x", "--vrom", "4G"];
    for arguments in [&[][..], &["draw"], &["generate"], &unknown] {
        let outcome = place.run(arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{arguments:?}: {}", outcome.stderr);
    }
}

#[test]
fn the_version_is_the_packages() {
    let outcome = Workplace::new().run(&["--version"]);
    assert_eq!(outcome.stdout, format!("pinhole {}\n", env!("CARGO_PKG_VERSION")));
}
