//! The header by itself.

use std::fs;
use std::process::Command;

use pinhole::pipeline::{CacheKind, CacheRequest};
use pinhole::sample::{Sampler, Schedule};
use pinhole_capi::request::{CACHES, SAMPLERS, SCHEDULES};

use crate::rig::{folder, has, root, run};

/// In every language and standard that it promises, by both compilers, without a warning.
#[test]
fn the_header_alone_compiles_everywhere() {
    let folder = folder("header");
    let (c, cpp) = (folder.join("header.c"), folder.join("header.cpp"));
    for source in [&c, &cpp] {
        fs::write(source, "#include <pinhole.h>\n#include <pinhole.h>\nint main(void) { return PINHOLE_OK; }\n")
            .unwrap();
    }
    let compilers = [("gcc", &c), ("clang", &c), ("g++", &cpp), ("clang++", &cpp)];
    for (compiler, source) in compilers.into_iter().filter(|(compiler, _)| has(compiler)) {
        let standards = if source == &c { ["c99", "c11"] } else { ["c++11", "c++17"] };
        for standard in standards {
            let mut command = Command::new(compiler);
            command.arg(format!("-std={standard}")).args(["-Wall", "-Wextra", "-pedantic", "-Werror"]);
            run(command.arg("-I").arg(root().join("include")).args(["-fsyntax-only"]).arg(source));
        }
    }
}

/// The codes with their names and numbers are those of the implementation.
#[test]
fn the_codes_are_those_of_the_header() {
    let header = fs::read_to_string(root().join("include/pinhole.h")).unwrap();
    let found = header.lines().filter_map(|line| {
        let (name, number) = line.trim().trim_end_matches(',').split_once(" = ")?;
        let is_code = name.starts_with("PINHOLE_E_") || name == "PINHOLE_OK";
        is_code.then(|| (number.parse::<i32>().unwrap(), name.to_owned()))
    });
    let known = pinhole_capi::error::CODES.iter();
    let known: Vec<_> = known.map(|(code, name)| (*code, name.to_str().unwrap().to_owned())).collect();
    assert_eq!(found.collect::<Vec<_>>(), known);
}

/// The samplers with their numbers are those of the implementation.
#[test]
fn the_samplers_are_those_of_the_header() {
    let header = fs::read_to_string(root().join("include/pinhole.h")).unwrap();
    let mut found = vec![None; SAMPLERS.len()];
    for line in header.lines() {
        let line = line.trim().trim_end_matches(',');
        let Some((name, number)) = line.strip_prefix("PINHOLE_SAMPLER_").and_then(|line| line.split_once(" = ")) else {
            continue;
        };
        let number: usize = number.parse().unwrap();
        match name {
            "DEFAULT" | "EULER" => assert_eq!(number, 0),
            // Every other name is a spelling that the command line reads.
            name => found[number] = Some(Sampler::with_schedule(name).unwrap()),
        }
    }
    assert_eq!(found, SAMPLERS);
    assert!(Sampler::ALL.iter().all(|sampler| SAMPLERS.contains(&Some((*sampler, None)))));
}

/// And so are the schedules.
#[test]
fn the_schedules_are_those_of_the_header() {
    let header = fs::read_to_string(root().join("include/pinhole.h")).unwrap();
    let mut found = vec![None; SCHEDULES.len()];
    for line in header.lines() {
        let line = line.trim().trim_end_matches(',');
        let named = line.strip_prefix("PINHOLE_SCHEDULE_").and_then(|line| line.split_once(" = "));
        if let Some((name, number)) = named.filter(|(name, _)| *name != "DEFAULT") {
            found[number.parse::<usize>().unwrap()] = Some(name.parse::<Schedule>().unwrap());
        }
    }
    assert_eq!(found, SCHEDULES);
    assert!(Schedule::ALL.iter().all(|schedule| SCHEDULES.contains(&Some(*schedule))));
}

/// And so are the step caches.
#[test]
fn the_step_caches_are_those_of_the_header() {
    let header = fs::read_to_string(root().join("include/pinhole.h")).unwrap();
    let mut found = vec![None; CACHES.len()];
    for line in header.lines() {
        let line = line.trim().trim_end_matches(',');
        let named = line.strip_prefix("PINHOLE_CACHE_").and_then(|line| line.split_once(" = "));
        if let Some((name, number)) = named.filter(|(name, _)| *name != "NONE") {
            let name = name.to_lowercase().replace('_', "-");
            found[number.parse::<usize>().unwrap()] = Some(name.parse::<CacheRequest>().unwrap().kind);
        }
    }
    assert_eq!(found, CACHES);
    assert!(CacheKind::ALL.iter().all(|kind| CACHES.contains(&Some(*kind))));
}

/// The program of the overview is the example, word for word.
#[test]
fn the_program_of_the_overview_is_the_example() {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let header = fs::read_to_string(root().join("include/pinhole.h")).unwrap();
    let shown: Vec<&str> = header.lines().filter_map(|line| line.strip_prefix(" *     ")).collect();
    let begin = shown.iter().position(|line| *line == "#include <pinhole.h>").unwrap();
    let end = shown.iter().position(|line| *line == "}").unwrap();
    let example = fs::read_to_string(root().join("examples/c/minimal.c")).unwrap();
    let example = &example[example.find("#include").unwrap()..];
    // The example takes the name of its output from its arguments.
    let example = example.replace("int argc, char **argv", "void").replace("argc > 1 ? argv[1] : ", "");
    assert_eq!(words(&shown[begin..=end].join("\n")), words(&example));
}
