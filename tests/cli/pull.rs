//! `pull` and `models`, against a server that plays the hub.

#[path = "../../hub/tests/played/mod.rs"]
mod played;

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::played::{COMMIT, Fault, Hub, Played, file};
use super::run::{Outcome, Workplace, mini_bytes, snapshot};
use crate::support::{Golden, Layout, write_model};

const REPOSITORY: &str = "owner/model";
const LARGE: &str = "weights/large.gguf";

/// Where files come from, and where they go.
struct Pulling {
    hub: Hub,
    place: Workplace,
}

impl Pulling {
    fn new(files: Vec<Played>) -> Pulling {
        Pulling { hub: Hub::new(files), place: Workplace::new() }
    }

    /// A hub with a large file and a small one.
    fn plain(bytes: usize) -> Pulling {
        Pulling::new(vec![file(REPOSITORY, LARGE, bytes, true), file(REPOSITORY, "config.json", 300, false)])
    }

    /// A hub where each file of `flux1-schnell` in its first type is the built-in model, and each place takes its part of it.
    fn catalogue() -> Pulling {
        let mini = |repository: &str, path: &str| Played {
            repository: repository.into(),
            path: path.into(),
            content: mini_bytes(),
            is_large: true,
        };
        Pulling::new(vec![
            mini("city96/FLUX.1-schnell-gguf", "flux1-schnell-Q4_K_S.gguf"),
            mini("comfyanonymous/flux_text_encoders", "clip_l.safetensors"),
            mini("city96/t5-v1_1-xxl-encoder-gguf", "t5-v1_1-xxl-encoder-Q4_K_M.gguf"),
            mini("Comfy-Org/z_image_turbo", "split_files/vae/ae.safetensors"),
            file("ByteDance/Hyper-SD", "Hyper-FLUX.1-dev-8steps-lora.safetensors", 1000, true),
        ])
    }

    /// A hub with a diffusers directory, the weights of its transformer in shards.
    fn directory() -> Pulling {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout { max_shard_bytes: Some(8 << 20), ..Layout::default() };
        write_model(dir.path(), &Golden::load("dev"), &layout);
        let (mut files, mut folders) = (Vec::new(), vec![dir.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let (repository, content) = (REPOSITORY.into(), fs::read(&path).unwrap());
                let path = path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
                files.push(Played { repository, content, is_large: path.ends_with(".safetensors"), path });
            }
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Pulling::new(files)
    }

    /// The command that converts it to `out/made.gguf`.
    fn convert(&self) -> Command {
        fs::create_dir_all(self.place.path("out")).unwrap();
        self.command(&["pull", "hf:owner/model", "--convert", "q8_0", "-o", "out/made.gguf"])
    }

    /// Whether a file of the hub's is there in part.
    fn is_coming(&self) -> bool {
        let blobs = fs::read_dir(self.place.path("hf/hub/models--owner--model/blobs"));
        blobs.into_iter().flatten().flatten().any(|entry| entry.file_name().to_string_lossy().contains("part"))
    }

    /// Bytes of the bundle that `process` writes, which has no name before it is whole.
    fn written(&self, process: u32) -> u64 {
        let (mut bytes, out) = (0, fs::canonicalize(self.place.path("out")).unwrap());
        for open in fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten() {
            let is_output = fs::read_link(open.path()).is_ok_and(|target| target.starts_with(&out));
            bytes += fs::metadata(open.path()).ok().filter(|_| is_output).map_or(0, |about| about.len());
        }
        bytes
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.command(arguments);
        for name in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HUB_OFFLINE",
            "SSL_CERT_FILE",
        ] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.place.path("hf")).env("PINHOLE_HOME", self.place.path("own"));
        command.env("HF_ENDPOINT", &self.hub.url).env("MODELSCOPE_ENDPOINT", &self.hub.url).env("NO_PROXY", "*");
        command
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        let output = self.command(arguments).output().unwrap();
        Outcome {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let outcome = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        serde_json::from_str(&outcome.stdout).unwrap()
    }

    /// Draws a small picture with the model that the options give.
    fn draw(&self, model: &[&str], picture: &str) {
        let rest = ["-p", "x", "--steps", "1", "--seed", "7", "--width", "128", "--height", "128", "-o", picture];
        let drawn = self.run(&[&["generate"], model, &rest].concat());
        assert_eq!(drawn.code, 0, "{}", drawn.stderr);
    }

    /// Compares with a snapshot in which addresses and folders are the same on every machine.
    fn snapshot(&self, name: &str, outcome: &Outcome) {
        let place = self.place.path("").display().to_string();
        let plain = |text: &str| text.replace(&self.hub.url, "[hub]").replace(place.trim_end_matches('/'), "[place]");
        let (stdout, stderr) = (plain(&outcome.stdout), plain(&outcome.stderr));
        snapshot(name, &format!("exit code {}\n--- stdout\n{stdout}--- stderr\n{stderr}", outcome.code));
    }

    /// The bytes that were asked for where the hub's redirects lead, since the hub was last mended.
    fn fetched(&self) -> u64 {
        let asked = self.hub.asked();
        asked
            .iter()
            .filter(|asked| asked.elsewhere)
            .filter_map(|asked| asked.headers.get("range"))
            .map(|range| bytes_of(range))
            .sum()
    }

    /// The large file, where it was pulled to.
    fn large(&self) -> std::path::PathBuf {
        self.place.path("hf/hub/models--owner--model/snapshots").join(COMMIT).join(LARGE)
    }
}

#[test]
fn a_file_is_pulled_and_found_by_its_name() {
    let pulling = Pulling::new(vec![Played {
        repository: REPOSITORY.into(),
        path: "mini.gguf".into(),
        content: mini_bytes(),
        is_large: true,
    }]);
    let name = "hf:owner/model:mini.gguf";
    let missing = pulling.run(&["plan", "-m", name]);
    pulling.snapshot("pull_not_pulled", &missing);
    pulling.snapshot("pull_file", &pulling.run(&["pull", name]));
    pulling.snapshot("pull_again", &pulling.run(&["pull", name, "--check"]));
    assert_eq!(pulling.run(&["inspect", name]).code, 0);
    // A repository with one file with weights is that file.
    let report = pulling.json(&["pull", "hf:owner/model"]);
    assert_eq!(report["pulled"][0]["files"][0]["was_there"], true);
    pulling.draw(&["-m", name], "a.png");
}

#[test]
fn a_model_of_the_catalogue_is_pulled_drawn_converted_and_removed() {
    let pulling = Pulling::catalogue();
    pulling.snapshot("pull_model_missing", &pulling.run(&["generate", "-m", "flux1-schnell", "-p", "x"]));
    let planned = pulling.json(&["pull", "flux1-schnell", "--dry-run"]);
    assert_eq!(planned["written"], false);
    assert_eq!(planned["bytes_fetched"], mini_bytes().len() as u64 * 4);
    let report = pulling.json(&["pull", "flux1-schnell", "flux1-hyper-8steps"]);
    let places: Vec<&str> =
        report["pulled"][0]["files"].as_array().unwrap().iter().map(|file| file["place"].as_str().unwrap()).collect();
    assert_eq!(places, ["text_encoder", "text_encoder_2", "transformer", "vae"]);
    assert_eq!(
        (&report["pulled"][0]["type"], &report["pulled"][0]["licence"]),
        (&"q4_k_s".into(), &"apache-2.0".into())
    );
    // The same as its files, given one by one.
    pulling.place.write("mini.gguf", &mini_bytes());
    let parts = [
        "--transformer",
        "mini.gguf",
        "--text-encoder",
        "mini.gguf",
        "--text-encoder-2",
        "mini.gguf",
        "--vae",
        "mini.gguf",
    ];
    pulling.draw(&parts, "b.png");
    pulling.draw(&["-m", "flux1-schnell"], "c.png");
    assert_eq!(pulling.json(&["compare", "b.png", "c.png"])["identical"], true);
    // A LoRA by its name: it is no safetensors file here, and the message says where it lies.
    let lora = pulling.run(&["generate", "-m", "mini", "-p", "x", "--lora", "flux1-hyper-8steps:0.125", "-o", "d.png"]);
    assert!(lora.stderr.contains("Hyper-FLUX.1-dev-8steps-lora.safetensors"), "{}", lora.stderr);
    let missing = pulling.run(&["generate", "-m", "mini", "-p", "x", "--lora", "sdxl-lcm", "-o", "d.png"]);
    assert!(missing.code == 2 && missing.stderr.contains("`pinhole pull sdxl-lcm`"), "{}", missing.stderr);

    let made = pulling.json(&["pull", "flux1-schnell:q4_k_s", "--convert", "q8_0"]);
    assert_eq!(
        made["pulled"][0]["converted"],
        pulling.place.path("own/models/flux1-schnell-q8_0.gguf").display().to_string()
    );
    pulling.draw(&["-m", "flux1-schnell:q8_0"], "e.png");

    let models = pulling.json(&["models"]);
    let names: Vec<&str> =
        models["models"].as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap()).collect();
    let converted = pulling.place.path("own/models/flux1-schnell-q8_0.gguf").display().to_string();
    assert_eq!(names, ["flux1-schnell:q4_k_s", "flux1-hyper-8steps:original", &converted]);
    assert_eq!(pulling.run(&["models"]).code, 0);
    let kept = pulling.json(&["models", "rm", "flux1-schnell", "--dry-run"]);
    assert!(kept["bytes"].as_u64().unwrap() > 4 * mini_bytes().len() as u64);
    assert_eq!(pulling.run(&["models", "rm", "flux1-schnell"]).code, 0);
    let models = pulling.json(&["models"]);
    assert_eq!(models["models"][0]["name"], "flux1-hyper-8steps:original");
    assert!(!Path::new(&converted).exists());
    assert_eq!(pulling.run(&["models", "rm", "flux1-schnell"]).code, 2);
    assert!(pulling.json(&["models", "prune"])["removed"].as_array().unwrap().is_empty());
}

/// The bundle of a directory that was there before it was converted.
fn converted_after(pulling: &Pulling) -> Vec<u8> {
    assert_eq!(pulling.run(&["pull", "hf:owner/model"]).code, 0);
    let made = pulling.convert().output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let bundle = fs::read(pulling.place.path("out/made.gguf")).unwrap();
    fs::remove_file(pulling.place.path("out/made.gguf")).unwrap();
    fs::remove_dir_all(pulling.place.path("hf")).unwrap();
    bundle
}

#[test]
fn a_directory_is_converted_while_it_comes() {
    let pulling = Pulling::directory();
    let expected = converted_after(&pulling);
    pulling.hub.slow(Some(8 << 20));
    let mut child = pulling.convert().stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut met = false;
    let status = loop {
        // A part of the bundle is there while a part of the weights is not.
        met |= pulling.is_coming() && (pulling.written(child.id()) > 1 << 20 || cfg!(not(target_os = "linux")));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        thread::sleep(Duration::from_millis(5));
    };
    let mut stderr = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut stderr).unwrap();
    assert!(status.success() && met, "{stderr}");
    assert!(fs::read(pulling.place.path("out/made.gguf")).unwrap() == expected);
    assert!(fs::read_dir(pulling.place.path("own")).unwrap().next().is_none());
    // The files are there as if nothing had been made of them.
    assert_eq!(pulling.run(&["inspect", "hf:owner/model"]).code, 0);
}

#[test]
fn what_breaks_off_or_is_wrong_makes_no_wrong_bundle() {
    let pulling = Pulling::directory();
    let expected = converted_after(&pulling);
    // Connections that break off are made again.
    let cuts = AtomicUsize::new(0);
    pulling.hub.fail(move |asked, _| {
        let begins = asked.headers.get("range").is_some_and(|range| range.starts_with("bytes=0-"));
        let is_of_weights = asked.elsewhere && !begins && asked.path.contains("safetensors");
        (is_of_weights && cuts.fetch_add(1, Ordering::Relaxed) < 3).then_some(Fault::Cut(300_000))
    });
    let made = pulling.convert().output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(fs::read(pulling.place.path("out/made.gguf")).unwrap() == expected);
    for (name, wrongs, is_made) in [("once", 1, true), ("always", usize::MAX, false)] {
        fs::remove_file(pulling.place.path("out/made.gguf")).unwrap();
        fs::remove_dir_all(pulling.place.path("hf")).unwrap();
        let (begun, count) = (Mutex::new(HashSet::new()), AtomicUsize::new(0));
        pulling.hub.fail(move |asked, _| {
            // Not its header, which is asked for first.
            let is_wrong =
                asked.elsewhere && asked.path.contains("vae") && !begun.lock().unwrap().insert(asked.path.clone());
            (is_wrong && count.fetch_add(1, Ordering::Relaxed) < wrongs).then_some(Fault::Wrong)
        });
        let made = pulling.convert().output().unwrap();
        let stderr = String::from_utf8_lossy(&made.stderr);
        assert_eq!(made.status.success(), is_made, "{name}: {stderr}");
        match is_made {
            true => assert!(fs::read(pulling.place.path("out/made.gguf")).unwrap() == expected),
            false => {
                assert!(fs::read_dir(pulling.place.path("out")).unwrap().next().is_none());
                assert!(stderr.contains("vae"), "{stderr}");
            }
        }
        assert!(fs::read_dir(pulling.place.path("own")).unwrap().next().is_none());
    }
}

#[test]
fn shared_files_stay_when_a_model_goes() {
    let pulling = Pulling::catalogue();
    pulling.json(&["pull", "flux1-schnell", "clip-l"]);
    let shared = pulling.place.path("hf/hub/models--comfyanonymous--flux_text_encoders");
    // Another model of the catalogue has it: dev's transformer, as another tool fetched it.
    let folder = pulling.place.path("hf/hub/models--city96--FLUX.1-dev-gguf/snapshots").join(COMMIT);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("flux1-dev-Q4_K_S.gguf"), mini_bytes()).unwrap();
    assert_eq!(pulling.run(&["models", "rm", "flux1-schnell"]).code, 0);
    assert!(shared.join("snapshots").join(COMMIT).join("clip_l.safetensors").exists());
    assert!(
        !pulling
            .place
            .path("hf/hub/models--city96--FLUX.1-schnell-gguf/snapshots")
            .join(COMMIT)
            .join("flux1-schnell-Q4_K_S.gguf")
            .exists()
    );
    let drawn = pulling.run(&["plan", "-m", "flux1-dev"]);
    assert_eq!(drawn.code, 0, "{}", drawn.stderr);
}

#[test]
fn killed_at_fifty_moments_it_goes_on() {
    const BYTES: usize = 64 << 20;
    let pulling = Pulling::plain(BYTES);
    // So slow that all runs together do not fetch the whole of it.
    pulling.hub.slow(Some(64 << 20));
    let asked = format!("hf:{REPOSITORY}:{LARGE}");
    let mut random = 12_345_u64;
    let mut kills = 0;
    for i in 0..50 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        pulling.hub.mend();
        let mut child =
            pulling.command(&["pull", &asked, "--quiet"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Half of the moments lie anywhere from the start on, half behind the first range.
        let started = Instant::now();
        while i % 2 == 0
            && pulling.fetched() == 0
            && child.try_wait().unwrap().is_none()
            && started.elapsed() < Duration::from_secs(10)
        {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis((random >> 33) % 120));
        let _ = child.kill();
        let status = child.wait().unwrap();
        kills += usize::from(status.signal() == Some(9));
        // It may be killed behind its end, too.
        let bytes = fs::metadata(pulling.large()).map_or(BYTES as u64, |data| data.len());
        assert_eq!(bytes, BYTES as u64, "what is not whole does not appear");
    }
    assert!(kills >= 30, "{kills} kills came before the end");
    pulling.hub.slow(None);
    pulling.hub.mend();
    assert_eq!(pulling.run(&["pull", &asked]).code, 0);
    let content = file(REPOSITORY, LARGE, BYTES, true).content;
    assert!(fs::read(pulling.large()).unwrap() == content);
    // The last run fetched only what was left.
    assert!(pulling.fetched() < BYTES as u64 * 7 / 8, "{}", pulling.fetched());
}

/// The bytes that the header `Range` asks for.
fn bytes_of(range: &str) -> u64 {
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    to.parse::<u64>().unwrap() + 1 - from.parse::<u64>().unwrap()
}

#[test]
fn a_limit_on_files_is_said_and_what_came_stays() {
    let pulling = Pulling::plain(40 << 20);
    let asked = format!("hf:{REPOSITORY}:{LARGE}");
    let mut command = Command::new("sh");
    let limited = pulling.command(&["pull", &asked]);
    command.args(["-c", "ulimit -f 20000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_pinhole"), "pull", &asked]);
    for (name, value) in limited.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = command.current_dir(pulling.place.path(".")).stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("File too large") && stderr.contains("ulimit -f"), "{stderr}");
    assert!(!pulling.large().exists());
    assert_eq!(pulling.run(&["pull", &asked]).code, 0);
    assert!(fs::read(pulling.large()).unwrap() == file(REPOSITORY, LARGE, 40 << 20, true).content);
}

#[test]
fn parts_are_pruned() {
    let pulling = Pulling::plain(20 << 20);
    pulling.hub.slow(Some(40 << 20));
    let asked = format!("hf:{REPOSITORY}:{LARGE}");
    let mut child = pulling.command(&["pull", &asked]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let blobs = pulling.place.path("hf/hub/models--owner--model/blobs");
    let started = Instant::now();
    while fs::read_dir(&blobs).map_or(0, Iterator::count) == 0 && started.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(5));
    }
    // While somebody fetches it, it stays.
    assert!(pulling.json(&["models", "prune"])["removed"].as_array().unwrap().is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    let report = pulling.json(&["models", "prune", "--dry-run"]);
    assert_eq!(report["removed"].as_array().unwrap().len(), 1);
    assert_eq!(pulling.run(&["models", "prune"]).code, 0);
    assert_eq!(fs::read_dir(&blobs).unwrap().count(), 0);
}

#[test]
fn refusals_say_what_to_do() {
    let pulling = Pulling::plain(1000);
    pulling.snapshot("pull_unknown", &pulling.run(&["pull", "flux1-schnel"]));
    pulling.snapshot("pull_unknown_type", &pulling.run(&["pull", "sdxl:q4_k_s"]));
    pulling.snapshot("pull_slash", &pulling.run(&["pull", "city96/FLUX.1-dev-gguf"]));
    pulling.snapshot("pull_traversal", &pulling.run(&["pull", "hf:owner/model:../../x"]));
    pulling.snapshot("pull_near_model", &pulling.run(&["generate", "-m", "z-image-turb", "-p", "x"]));
    pulling.snapshot("pull_no_file", &pulling.run(&["pull", "hf:owner/model:weights/larg.gguf"]));
    pulling.snapshot("pull_convert_two", &pulling.run(&["pull", "sdxl", "sd1.5", "--convert", "q8_0"]));
    pulling.hub.fail(|asked, _| {
        let gated = Fault::Status(
            401,
            vec![("X-Error-Code", "GatedRepo".into()), ("X-Error-Message", "Access is restricted.".into())],
        );
        asked.path.contains("/resolve/").then_some(gated)
    });
    pulling.snapshot("pull_gated", &pulling.run(&["pull", "hf:owner/model:config.json"]));
    pulling.hub.fail(|_, _| Some(Fault::Page));
    pulling.snapshot("pull_page", &pulling.run(&["pull", "hf:owner/model:config.json"]));
    let address = format!("{}/plain/config.json", pulling.hub.url);
    pulling.hub.mend();
    let wrong = pulling.run(&["pull", &address, "--sha256", &"0".repeat(64)]);
    assert!(wrong.code == 1 && wrong.stderr.contains("expected SHA-256 0000"), "{}", wrong.stderr);
    let right = file(REPOSITORY, "config.json", 300, false).sha256();
    assert_eq!(pulling.run(&["pull", &address, "--sha256", &right]).code, 0);
}

#[test]
fn the_catalogue_is_listed() {
    let pulling = Pulling::plain(10);
    pulling.snapshot("models_none", &pulling.run(&["models"]));
    pulling.snapshot("models_all", &pulling.run(&["models", "--all"]));
    let known = pulling.json(&["models", "--all"]);
    let dev = known.as_array().unwrap().iter().find(|entry| entry["name"] == "flux1-dev").unwrap();
    assert_eq!(dev["gated"], serde_json::json!(["diffusers"]));
}

#[test]
fn a_proxy_of_the_environment_is_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let heard = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        let _ = stream.write_all(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n");
        line
    });
    let pulling = Pulling::plain(10);
    let mut command = pulling.command(&["pull", "hf:owner/model:config.json"]);
    command.env("HF_ENDPOINT", "http://hub.invalid").env_remove("NO_PROXY").env_remove("no_proxy");
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    command.env("ALL_PROXY", &address);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert!(heard.join().unwrap().contains("hub.invalid"));
    let _ = child.kill();
    child.wait().unwrap();
}
