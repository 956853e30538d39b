//! Limits that the system sets: what does not fit is refused, and no command is ended by a signal.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::run::{Workplace, mini_bytes};

/// How a run under a limit went; no code where a signal ended it.
struct Limited {
    code: Option<i32>,
    stderr: String,
}

/// Runs the program after the shell has done `before`.
fn run_after(before: &str, place: &Workplace, arguments: &[&str]) -> Limited {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{before}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_pinhole")]).args(arguments);
    let output = shell.current_dir(place.path(".")).stdin(Stdio::null()).output().unwrap();
    Limited { code: output.status.code(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() }
}

/// The same with so much address space.
fn run_within(kibibytes: usize, place: &Workplace, arguments: &[&str]) -> Limited {
    run_after(&format!("ulimit -v {kibibytes}"), place, arguments)
}

/// The least at which the program starts at all.
fn first_step(place: &Workplace) -> usize {
    (10_000..200_000).step_by(2_000).find(|&most| run_within(most, place, &["--version"]).code == Some(0)).unwrap()
}

#[test]
fn no_command_is_ended_by_a_limit_of_address_space() {
    let place = Workplace::new();
    place.write("mini.gguf", &mini_bytes());
    let big = ["generate", "-m", "mini", "-p", "x", "--width", "512", "--height", "512", "--steps", "1", "-o", "a.png"];
    assert_eq!(place.run(&big).code, 0);
    let commands: [&[&str]; 9] = [
        &["inspect", "mini.gguf"],
        &["inspect", "mini.gguf", "--check"],
        &["inspect", "mini.gguf", "--tensors", "--json"],
        &["compare", "a.png", "a.png"],
        &["devices"],
        &["plan", "-m", "mini.gguf"],
        &["generate", "-m", "mini.gguf", "-p", "x", "--steps", "1", "-o", "b.png", "--cfg-scale", "2"],
        &["convert", "mini.gguf", "-o", "c.gguf", "--type", "q8_0", "--overwrite"],
        &["bench", "busy", "-m", "mini.gguf", "--load", "1", "--steps", "1"],
    ];
    let first = first_step(&place);
    // From what is too little for the program itself.
    for most in (first.saturating_sub(4_000)..first + 12_000).step_by(250) {
        let Limited { code, stderr } = run_within(most, &place, &["compare", "a.png", "a.png"]);
        // Below that, the system does not load it.
        let loaded = code == Some(0) || stderr.contains("error: ");
        assert!(most < first || (loaded && matches!(code, Some(0 | 1))), "{most} KiB: {code:?}, {stderr}");
        assert!(!stderr.contains("memory allocation"), "{most} KiB: {stderr}");
    }
    for step in 0..12 {
        let most = first + step * step * 1_000;
        for command in commands {
            let Limited { code, stderr } = run_within(most, &place, command);
            assert!(matches!(code, Some(0 | 1)), "{command:?} within {most} KiB: {code:?}, {stderr}");
            assert!(code == Some(0) || stderr.contains("error: "), "{command:?} within {most} KiB: {stderr}");
        }
    }
}

/// Sizes that fit under the limits below, and some that do not.
const SIZES: [(&str, &str); 8] = [
    ("64", "48"),
    ("384", "256"),
    ("16", "4096"),
    ("768", "768"),
    ("8192", "8192"),
    ("16384", "16"),
    ("12288", "12288"),
    ("16384", "16384"),
];

/// Draws every size with `run`: each gives a picture, or is refused before the first step.
fn drawn_or_refused(place: &Workplace, run: impl Fn(&[&str]) -> Limited) {
    let mut drawn = 0;
    for (width, height) in SIZES {
        let size = ["--width", width, "--height", height, "--steps", "1", "--threads", "2", "-o", "a.png"];
        let Limited { code, stderr } = run(&[&["generate", "-m", "mini", "-p", "x"], &size[..]].concat());
        match code {
            Some(0) => {
                drawn += 1;
                fs::remove_file(place.path("a.png")).unwrap();
            }
            Some(1) => assert!(stderr.contains("error: needs ") && stderr.contains("hint: try "), "{stderr}"),
            other => panic!("{width}x{height}: {other:?}, {stderr}"),
        }
        assert!(place.names().is_empty());
    }
    assert!((2..SIZES.len()).contains(&drawn), "{drawn} drawn");
}

#[test]
fn what_address_space_has_no_room_for_is_refused() {
    let place = Workplace::new();
    drawn_or_refused(&place, |arguments| run_within(900_000, &place, arguments));
}

/// Numbers that look random, the same in every run.
struct Dice(u64);

impl Dice {
    /// A number below `sides`.
    fn below(&mut self, sides: usize) -> usize {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    /// A side from 16 to 16384 pixels, as many small as large ones.
    fn side(&mut self) -> usize {
        let power = self.below(11);
        (16 << power) + if power < 10 { 16 * self.below(1 << power) } else { 0 }
    }
}

/// What `plan` has room for is drawn, as far as that takes no time; what it has none for, `generate` refuses, too.
#[test]
fn random_sizes_under_random_limits_are_drawn_or_refused() {
    let (place, mut dice, mut drawn, mut refused) = (Workplace::new(), Dice(7), 0, 0);
    for _ in 0..24 {
        let (width, height) = (dice.side(), dice.side());
        let limit = 1000 * (250 + dice.below(1250));
        let [w, h] = [width, height].map(|side| side.to_string());
        let size = ["-m", "mini", "-p", "x", "--width", &w, "--height", &h, "--steps", "1", "--threads", "2"];
        let what = format!("{width}x{height} within {limit} KiB");
        let planned = run_within(limit, &place, &[&["plan"], &size[..]].concat());
        let fits = planned.code == Some(0);
        let is_refused = planned.code == Some(1) && planned.stderr.contains("error: needs ");
        assert!(fits || is_refused, "{what}: {:?}, {}", planned.code, planned.stderr);
        if fits && width * height > 1 << 17 {
            continue;
        }
        let Limited { code, stderr } = run_within(limit, &place, &[&["generate", "-o", "a.png"], &size[..]].concat());
        assert_eq!(code, Some(i32::from(!fits)), "{what}: {stderr}");
        match fits {
            true => fs::remove_file(place.path("a.png")).unwrap(),
            // Before the first step, and before the prompt.
            false => assert!(stderr.contains("error: needs ") && !stderr.contains("encode"), "{what}: {stderr}"),
        }
        *(if fits { &mut drawn } else { &mut refused }) += 1;
        assert!(place.names().is_empty(), "{what}: {:?}", place.names());
    }
    assert!(drawn > 3 && refused > 3, "{drawn} drawn, {refused} refused");
}

/// A control group with a limit of memory, gone when this is dropped.
struct Group(PathBuf);

impl Group {
    /// `None` where this process may make none.
    fn new(bytes: usize) -> Option<Group> {
        for (root, limit) in [("/sys/fs/cgroup", "memory.max"), ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")] {
            let folder = Path::new(root).join(format!("pinhole-test-{}", std::process::id()));
            if !Path::new(root).join("cgroup.procs").exists() || fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Group(folder);
            if fs::write(group.0.join(limit), bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn what_a_control_group_has_no_room_for_is_refused() {
    let place = Workplace::new();
    // Where there is no right to make control groups, nothing can be tested.
    let Some(group) = Group::new(400 << 20) else { return };
    let enter = format!("echo $$ > {}", group.0.join("cgroup.procs").display());
    drawn_or_refused(&place, |arguments| run_after(&enter, &place, arguments));
}

#[test]
fn threads_that_cannot_start_are_an_error() {
    let place = Workplace::new();
    let draw = ["generate", "-m", "mini", "-p", "x", "--steps", "1", "--threads", "400"];
    let Limited { code, stderr } = run_within(1_000_000, &place, &draw);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.starts_with("error: cannot allocate memory for a thread\nhint: take fewer threads"), "{stderr}");
    assert!(place.names().is_empty());
}

#[test]
fn more_threads_than_cores_draw_a_warning() {
    let place = Workplace::new();
    let draw = ["generate", "-m", "mini", "-p", "x", "--steps", "1", "--width", "32", "--height", "32", "-o", "a.png"];
    let quiet = place.run(&draw);
    assert!(quiet.code == 0 && !quiet.stderr.contains("threads compute on"), "{}", quiet.stderr);
    let threads = (1 + std::thread::available_parallelism().unwrap().get()).to_string();
    let warned = place.run(&[&draw[..], &["--threads", &threads]].concat());
    assert!(warned.stderr.contains(&format!("{threads} threads compute on ")), "{}", warned.stderr);
}

#[test]
fn the_host_s_memory_has_leaner_ways_and_a_least_too() {
    let place = Workplace::new();
    let plan = |budget: &str| {
        let arguments = ["plan", "-m", "mini", "--width", "1024", "--height", "1024", "--host-memory", budget];
        place.run(&[&arguments[..], &["--json"]].concat())
    };
    let whole: serde_json::Value = serde_json::from_str(&plan("auto").stdout).unwrap();
    let refused = plan("1M");
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains(" in host memory; given "), "{}", refused.stderr);
    let (_, least) = refused.stderr.trim().split_once("--host-memory ").unwrap();
    // What the program holds moves by a little from run to run.
    let least = format!("{}M", least.strip_suffix('M').unwrap().parse::<u64>().unwrap() + 4);
    let lean = plan(&least);
    assert_eq!(lean.code, 0, "{least}: {}", lean.stderr);
    let lean: serde_json::Value = serde_json::from_str(&lean.stdout).unwrap();
    let [whole, lean] = [whole, lean].map(|mut report| report["plan"].take());
    assert!(lean["host_peak_bytes"].as_u64().unwrap() <= lean["host_limit_bytes"].as_u64().unwrap());
    assert!(lean["peak_bytes"].as_u64().unwrap() < whole["peak_bytes"].as_u64().unwrap(), "{lean}");
    let ways = |plan: &serde_json::Value| plan["components"].as_array().unwrap().last().unwrap()["variant"].to_string();
    assert!(ways(&whole) == "\"whole\"" && ways(&lean).contains("strips"), "{lean}");
    // Of what no one has, no option makes more.
    let huge = place.run(&["plan", "-m", "mini", "--width", "16384", "--height", "16384", "--host-memory", "900T"]);
    assert!(huge.code == 1 && huge.stderr.contains(" in host memory"), "{}", huge.stderr);
}
