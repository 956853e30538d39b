//! What a release brings beside the program: completions and manual pages.

use std::fs;
use std::process::Command;

use super::run::Workplace;

#[test]
fn every_shell_has_completions() {
    let place = Workplace::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let outcome = place.run(&["completions", shell]);
        assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{shell}");
        for word in ["pinhole", "generate", "doctor", "max-sequence-length"] {
            assert!(outcome.stdout.contains(word), "{shell}: {word}");
        }
    }
    place.run(&["completions", "tcsh"]).snapshot("completions_other_shell");
}

/// Every machine here has bash: what it makes of the script.
#[cfg(unix)]
#[test]
fn bash_completes() {
    let place = Workplace::new();
    place.write("pinhole.bash", place.run(&["completions", "bash"]).stdout.as_bytes());
    let script = "source ./pinhole.bash; COMP_WORDS=(pinhole gen); COMP_CWORD=1; _pinhole pinhole gen pinhole; echo \"${COMPREPLY[@]}\"";
    let output = Command::new("bash").args(["-c", script]).current_dir(place.path("")).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "generate\n", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_command_has_a_page() {
    let place = Workplace::new();
    let outcome = place.run(&["man", "pages"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    for (page, words) in [
        ("pinhole.1", ["pinhole", "generate"]),
        ("pinhole-generate.1", ["max\\-sequence\\-length", "Examples"]),
        ("pinhole-bench-offload.1", ["pinhole\\-bench\\-offload", "Examples"]),
    ] {
        let text = fs::read_to_string(place.path("pages").join(page)).unwrap();
        for word in words {
            assert!(text.contains(word), "{page}: {word}: {text}");
        }
    }
    assert_eq!(outcome.stdout, "pages\n");
    place.write("file", b"");
    assert_eq!(place.run(&["man", "file/below"]).code, 1);
}
