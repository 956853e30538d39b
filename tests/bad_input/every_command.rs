//! The suite of hostile files on every command, as a process each: an error or success as the case says, no panic, no signal, the
//! file to blame in the message, nothing left behind, nothing on stdout that is no JSON.
#![cfg(unix)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::hostile::{Case, Use, Verdict, cases};

/// Longer than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a command ended.
struct Ended {
    status: Option<ExitStatus>,
    stdout: String,
    stderr: String,
}

/// Runs `command` in `place` with what it says in files beside: a pipe that fills up would stop it.
fn run(mut command: Command, place: &Path) -> Ended {
    let said = |name: &str| place.with_extension(name);
    let file = |name: &str| File::create(said(name)).unwrap();
    command.current_dir(place).stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            None if started.elapsed() > PATIENCE => {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(2)),
            status => break status,
        }
    };
    let text = |name: &str| String::from_utf8_lossy(&fs::read(said(name)).unwrap()).into_owned();
    Ended { status, stdout: text("out"), stderr: text("err") }
}

/// The command line that does `purpose` with `case`.
fn command(case: &Case, purpose: Use) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole"));
    command.env_remove("RUST_BACKTRACE");
    let given = |command: &mut Command, base: Option<&str>| {
        for (option, path) in &case.given {
            match base {
                None if *option == "--model" => command.arg(path),
                _ => command.arg(option).arg(path),
            };
        }
    };
    match purpose {
        Use::Inspect => drop(command.arg("inspect").arg(&case.inspected)),
        Use::Check => drop(command.args(["inspect", "--check", "--threads", "1"]).arg(&case.inspected)),
        Use::Plan => {
            given(command.arg("plan"), Some("--model"));
            command.args(["--width", "32", "--height", "32"]);
        }
        Use::Generate => {
            given(command.arg("generate"), Some("--model"));
            command.args(["-p", "a red heart", "--width", "32", "--height", "32", "--steps", "1", "--threads", "1"]);
            command.args(["--max-sequence-length", "8", "-o", "out.png", "--seed", "1"]);
        }
        Use::Convert => {
            given(command.arg("convert"), None);
            command.args(["-o", "out.gguf", "--type", "q8_0", "--threads", "1"]);
        }
    }
    command.arg("--json");
    command
}

/// What is wrong with how `case` went.
fn fault(case: &Case, purpose: Use, ended: &Ended, left: &[String]) -> Option<String> {
    let Ended { status, stdout, stderr } = ended;
    let Some(status) = status else { return Some("it waits, or reads without end".into()) };
    let allowed = case.verdict.allows(purpose);
    match status.code() {
        None => return Some(format!("ended by a signal: {status}")),
        Some(0) if !allowed => return Some("taken".into()),
        Some(1 | 2) if allowed => return Some("refused".into()),
        Some(0..=2) => {}
        Some(code) => return Some(format!("exit code {code}")),
    }
    if ["panicked", "RUST_BACKTRACE", "overflowed its stack"].iter().any(|word| stderr.contains(word)) {
        return Some("a panic".into());
    }
    let expected = match purpose {
        Use::Generate if allowed => vec!["out.png"],
        Use::Convert if allowed => vec!["out.gguf"],
        _ => Vec::new(),
    };
    if left != expected {
        return Some(format!("left behind: {left:?}"));
    }
    let is_json = serde_json::from_str::<serde_json::Value>(stdout).is_ok();
    let is_fit = is_json || (stdout.is_empty() && !allowed);
    if !is_fit {
        return Some("stdout is neither empty nor JSON".into());
    }
    let said = format!("{stderr}{stdout}");
    // When numbers overflow, no file is known to be to blame.
    let blamed = match case.verdict {
        Verdict::WrongNumbers if purpose == Use::Generate => "not finite",
        _ => &case.blamed,
    };
    if (!allowed || case.verdict == Verdict::Warned) && !said.contains(blamed) {
        return Some(format!("`{blamed}` is not named"));
    }
    if !allowed && !stderr.contains("error: ") {
        return Some("no word of an error".into());
    }
    // What cannot be opened says why. In the report of `inspect`, each problem has its own hint.
    let advice = ["hint: ", "\"hint\": \"", "cannot open ", "cannot read ", "not_finite"];
    (!allowed && !advice.iter().any(|words| said.contains(words))).then(|| "it does not say what to do".into())
}

fn names(place: &Path) -> Vec<String> {
    fs::read_dir(place).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// All that lies below `dir`.
fn tree(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap()) {
        found.insert(entry.path().display().to_string());
        if entry.file_type().unwrap().is_dir() {
            found.extend(tree(&entry.path()));
        }
    }
    found
}

#[test]
fn hostile_files_on_every_command() {
    let root = tempfile::tempdir().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let cases = cases(root.path());
    let before = tree(root.path());
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(case) = cases.get(number / Use::ALL.len()) else { return };
            let purpose = Use::ALL[number % Use::ALL.len()];
            if case.skips(purpose) {
                continue;
            }
            let place = scratch.path().join(number.to_string());
            fs::create_dir(&place).unwrap();
            let ended = run(command(case, purpose), &place);
            if let Some(fault) = fault(case, purpose, &ended, &names(&place)) {
                let said = format!("{}{}", ended.stderr, ended.stdout);
                let said: String = said.chars().take(700).collect();
                faults.lock().unwrap().push(format!("{}, {purpose:?}: {fault}\n{said}", case.name));
            }
            fs::remove_dir_all(&place).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(4) {
            scope.spawn(work);
        }
    });
    let faults = faults.into_inner().unwrap();
    println!("{} cases, {} faults", cases.len(), faults.len());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    // Neither beside the models.
    assert_eq!(tree(root.path()), before);
}
