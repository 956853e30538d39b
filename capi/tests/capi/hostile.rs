//! The suite of hostile files through the C library: an error or success as each case says, the file to blame in the message.
#![cfg(unix)]

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::rig::{bundle, command, compile, folder, left_out, root};
use crate::suite::{Case, Use, Verdict, cases};

/// Longer than all of it takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(300);

/// What a step came to.
struct Said<'a> {
    step: &'a str,
    code: &'a str,
    message: &'a str,
    hint: &'a str,
}

/// What is wrong with how `case` went.
fn fault(case: &Case, steps: &[Said<'_>]) -> Option<String> {
    let step = |name: &str| steps.iter().find(|said| said.step == name);
    for purpose in Use::ALL {
        let names = match purpose {
            // What it finds wrong with a model is in its answer.
            Use::Inspect | Use::Check => &[][..],
            Use::Plan => &["open", "plan"][..],
            Use::Generate => &["open", "plan", "generate"],
            Use::Convert => &["convert"],
        };
        let failure = names.iter().find_map(|name| step(name).filter(|said| said.code != "PINHOLE_OK"));
        match (case.verdict.allows(purpose), failure) {
            (true, Some(said)) => return Some(format!("{}: {}", said.step, said.message)),
            (false, None) if !names.is_empty() => return Some(format!("{purpose:?} took it")),
            _ => {}
        }
    }
    if case.verdict == Verdict::Warned && step("warning").is_none_or(|said| !said.message.contains(&case.blamed)) {
        return Some("no warning".into());
    }
    for said in steps.iter().filter(|said| said.code != "PINHOLE_OK") {
        if ["PINHOLE_E_PANIC", "PINHOLE_E_INTERNAL"].contains(&said.code) {
            return Some(format!("{}: {} {}", said.step, said.code, said.message));
        }
        // When numbers overflow, no file is known to be to blame.
        let blamed = if said.code == "PINHOLE_E_NOT_FINITE" { "not finite" } else { &case.blamed };
        if !format!("{} {}", said.message, said.hint).contains(blamed) {
            return Some(format!("{}: `{}` is not named: {}", said.step, case.blamed, said.message));
        }
    }
    None
}

#[test]
fn hostile_files_are_answered() {
    if left_out("the same files were tried without it") {
        return;
    }
    let place = folder("hostile");
    let files = place.join("files");
    fs::create_dir(&files).unwrap();
    let cases = cases(&files);
    let mini = bundle().display().to_string();
    let mut list = String::new();
    for (number, case) in cases.iter().enumerate() {
        let base = case.given[0].1.display().to_string();
        let base = if base == "mini" { &mini } else { &base };
        let (option, path) = case.given.get(1).map_or(("", String::new()), |(o, path)| (o, path.display().to_string()));
        list += &format!("{number}\t{}\t{base}\t{option}\t{path}\n", case.inspected.display());
    }
    fs::write(place.join("list"), list).unwrap();
    fs::create_dir(place.join("out")).unwrap();
    let program = compile(&root().join("capi/tests/c/hostile.c"));
    let mut child = command(&program).args(["list", "out", "answers"].map(|name| place.join(name))).spawn().unwrap();
    let started = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if started.elapsed() > PATIENCE => {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let answers = fs::read_to_string(place.join("answers")).unwrap();
    let mut steps: HashMap<usize, Vec<Said<'_>>> = HashMap::new();
    for line in answers.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let [number, step, code, message, hint] = fields[..] else { panic!("{line}") };
        steps.entry(number.parse().unwrap()).or_default().push(Said { step, code, message, hint });
    }
    let last = cases.get(steps.len().saturating_sub(1)).map_or("", |case| case.name.as_str());
    assert!(status.success(), "{status} at {last}: {}", answers.lines().last().unwrap_or_default());
    let mut faults = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        faults.extend(fault(case, &steps[&number]).map(|fault| format!("{}: {fault}", case.name)));
    }
    println!("{} cases, {:?}", cases.len(), started.elapsed());
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    assert!(fs::read_dir(place.join("out")).unwrap().next().is_none());
    fs::remove_dir_all(files).unwrap();
}
