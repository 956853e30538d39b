//! Files from a server that plays the hub, with everything that goes wrong on the way.

#![allow(clippy::unwrap_used)]

mod played;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use pinhole_hub::{Asked, Catalogue, Error, Event, Hub, Result, Settings, Wanted, tidy};
use played::{COMMIT, Fault, file};
use tempfile::TempDir;

const REPOSITORY: &str = "owner/model";
const LARGE: &str = "weights/model.safetensors";

/// A played hub, and a place for what comes from it.
struct Place {
    server: played::Hub,
    dir: TempDir,
    hub: Hub,
}

impl Place {
    fn new() -> Place {
        Place::with(vec![
            file(REPOSITORY, LARGE, 300_000, true),
            file(REPOSITORY, "config.json", 700, false),
            file(REPOSITORY, "empty.txt", 0, false),
        ])
    }

    fn with(files: Vec<played::Played>) -> Place {
        let server = played::Hub::new(files);
        let dir = tempfile::tempdir().unwrap();
        let hub = Hub::new(settings(&server, dir.path(), &[])).unwrap();
        Place { server, dir, hub }
    }

    fn find(&self, asked: &str) -> Result<Vec<Wanted>> {
        let asked = Asked::parse(asked, &self.hub.settings)?;
        self.hub.find(&asked, Catalogue::built_in(), &|| false, &mut |_| {})
    }

    fn pull(&self, asked: &str) -> Result<Vec<PathBuf>> {
        self.hub.fetch(&self.find(asked)?, &|| false, &mut |_| {})
    }

    /// Pulls the large file, which has to be right.
    fn pull_large(&self) {
        let paths = self.pull(&format!("hf:{REPOSITORY}:{LARGE}")).unwrap();
        assert!(fs::read(&paths[0]).unwrap() == self.content(LARGE));
    }

    fn content(&self, path: &str) -> Vec<u8> {
        let size = match path {
            LARGE => 300_000,
            "config.json" => 700,
            _ => 0,
        };
        file(REPOSITORY, path, size, path == LARGE).content
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("hf/hub/models--owner--model")
    }
}

/// Small ranges and no pauses.
fn settings(server: &played::Hub, dir: &Path, variables: &[(&str, &str)]) -> Settings {
    let dir = dir.to_str().unwrap();
    let (hf, own) = (format!("{dir}/hf"), format!("{dir}/own"));
    let base = [
        ("HF_ENDPOINT", server.url.as_str()),
        ("MODELSCOPE_ENDPOINT", &server.url),
        ("HF_HOME", &hf),
        ("PINHOLE_HOME", &own),
    ];
    let all: Vec<(&str, &str)> = base.into_iter().chain(variables.iter().copied()).collect();
    let settings = Settings::from(&|name| {
        let found = all.iter().rev().find(|(other, _)| *other == name);
        found.map(|(_, value)| value.into())
    });
    Settings {
        range: 40_000,
        grain: 10_000,
        pause: Duration::from_millis(1),
        silence: Duration::from_secs(5),
        ..settings.unwrap()
    }
}

fn is_large(asked: &played::Asked) -> bool {
    asked.path.contains(LARGE)
}

#[test]
fn files_lie_as_other_tools_keep_them() {
    let place = Place::new();
    place.pull_large();
    let paths = place.pull(&format!("hf:{REPOSITORY}:config.json")).unwrap();
    assert_eq!(fs::read(&paths[0]).unwrap(), place.content("config.json"));
    let cache = place.cache();
    assert_eq!(fs::read_to_string(cache.join("refs/main")).unwrap(), COMMIT);
    for (path, is_large) in [(LARGE, true), ("config.json", false)] {
        let link = cache.join("snapshots").join(COMMIT).join(path);
        let size = place.content(path).len();
        let digits = file(REPOSITORY, path, size, is_large).digits();
        assert!(fs::read_link(&link).unwrap().is_relative());
        assert_eq!(fs::canonicalize(&link).unwrap(), fs::canonicalize(cache.join("blobs").join(digits)).unwrap());
    }
    assert!(
        fs::read_dir(cache.join("blobs")).unwrap().all(|entry| !entry
            .unwrap()
            .file_name()
            .to_str()
            .unwrap()
            .contains("part"))
    );
    assert_eq!(fs::read(&place.pull(&format!("hf:{REPOSITORY}:empty.txt")).unwrap()[0]).unwrap(), b"");
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let place = Place::new();
    place.pull_large();
    place.server.mend();
    place.pull_large();
    assert!(!place.server.asked().iter().any(|asked| asked.path.contains("resolve")));
    // What another tool fetched has no link of ours, and is there too.
    fs::remove_dir_all(place.cache().join("snapshots")).unwrap();
    place.pull_large();
    assert!(!place.server.asked().iter().any(|asked| asked.path.contains("resolve")));
}

#[test]
fn a_file_that_was_begun_is_read_while_it_comes() {
    let mut large = file(REPOSITORY, LARGE, 300_000, true);
    // The length of its header.
    large.content[..8].copy_from_slice(&25_000u64.to_le_bytes());
    let content = large.content.clone();
    let place = Place::with(vec![large, file(REPOSITORY, "no.safetensors", 50_000, true)]);
    let begun = |name: &str| {
        let mut wanted = place.find(&format!("hf:{REPOSITORY}:{name}")).unwrap();
        place.hub.begin(&mut wanted, &|| false, &mut |_| {}).unwrap();
        wanted
    };
    // What does not begin as these files do is no one's to read.
    assert!(begun("no.safetensors")[0].arriving.is_none());
    let wanted = begun(LARGE);
    let arriving = wanted[0].arriving.as_ref().unwrap();
    assert!(fs::read(arriving.part()).unwrap()[..25_008] == content[..25_008]);
    assert!(!wanted[0].is_there() && place.hub.missing(&wanted) == 270_000);
    place.server.slow(Some(600_000));
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| place.hub.fetch(&wanted, &|| false, &mut |_| {}));
        // Opened before it is whole, it is the same file afterwards.
        let mut part = fs::File::open(arriving.part()).unwrap();
        arriving.wait(101_000..102_000).unwrap();
        let mut read = [0; 1000];
        part.seek(SeekFrom::Start(101_000)).and_then(|_| part.read_exact(&mut read)).unwrap();
        assert!(read == content[101_000..102_000]);
        arriving.wait_for_all().unwrap();
        assert!(fetching.join().unwrap().is_ok());
    });
    assert!(begun(LARGE)[0].arriving.is_none());
}

#[test]
fn a_token_goes_to_the_hub_and_nowhere_else() {
    let place = Place::new();
    let hub = Hub::new(settings(&place.server, place.dir.path(), &[("HF_TOKEN", "hf_secret")])).unwrap();
    let asked = Asked::parse(&format!("hf:{REPOSITORY}:{LARGE}"), &hub.settings).unwrap();
    let wanted = hub.find(&asked, Catalogue::built_in(), &|| false, &mut |_| {}).unwrap();
    hub.fetch(&wanted, &|| false, &mut |_| {}).unwrap();
    let asked = place.server.asked();
    assert!(asked.iter().any(|asked| asked.elsewhere) && asked.iter().any(|asked| !asked.elsewhere));
    for asked in asked {
        assert_eq!(
            asked.headers.get("authorization").map(String::as_str),
            (!asked.elsewhere).then_some("Bearer hf_secret"),
            "{asked:?}"
        );
    }
}

#[test]
fn ranges_are_asked_for_where_the_redirect_led() {
    let place = Place::new();
    place.pull_large();
    let asked = place.server.asked();
    let at_hub = asked.iter().filter(|asked| is_large(asked) && !asked.elsewhere).count();
    let elsewhere = asked.iter().filter(|asked| is_large(asked) && asked.elsewhere).count();
    assert!(elsewhere >= 8 && at_hub <= 8, "{at_hub} {elsewhere}");
}

#[test]
fn every_passing_fault_ends_in_a_right_file() {
    let status = |status: u16| Fault::Status(status, Vec::new());
    let faults = [
        ("cut at once", Fault::Cut(0)),
        ("cut in the middle", Fault::Cut(17_000)),
        ("500", status(500)),
        ("502", status(502)),
        ("503", Fault::Status(503, vec![("Retry-After", "0".into())])),
        ("429", Fault::Status(429, vec![("Retry-After", "0".into())])),
        ("408", status(408)),
        ("a range is not kept to", Fault::Whole),
    ];
    for (name, fault) in faults {
        let place = Place::new();
        let count = AtomicUsize::new(0);
        place.server.fail(move |asked, _| {
            let is_hit = is_large(asked) && asked.elsewhere && count.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
            is_hit.then(|| fault.clone())
        });
        let pulled = place.pull(&format!("hf:{REPOSITORY}:{LARGE}"));
        let paths = pulled.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(fs::read(&paths[0]).unwrap() == place.content(LARGE), "{name}");
    }
}

#[test]
fn lists_are_asked_for_again_too() {
    let place = Place::new();
    place
        .server
        .fail(|asked, before| (asked.path.contains("/api/") && before < 3).then(|| Fault::Status(503, Vec::new())));
    place.pull_large();
}

#[test]
fn a_signature_that_has_run_out_is_asked_for_anew() {
    let place = Place::new();
    let count = AtomicUsize::new(0);
    place.server.fail(move |asked, _| {
        let is_hit = is_large(asked) && asked.elsewhere && count.fetch_add(1, Ordering::Relaxed) == 2;
        is_hit.then(|| Fault::Status(403, Vec::new()))
    });
    place.pull_large();
}

#[test]
fn a_server_without_ranges_gives_the_whole() {
    let place = Place::new();
    place.server.fail(|asked, _| asked.elsewhere.then_some(Fault::Whole));
    place.pull_large();
}

/// What a lasting fault says: a part of the message, and of the hint.
fn refusal(choose: impl Fn(&played::Asked, usize) -> Option<Fault> + Send + Sync + 'static) -> (String, String) {
    let place = Place::new();
    place.server.fail(choose);
    let error = place.pull(&format!("hf:{REPOSITORY}:{LARGE}")).unwrap_err();
    let parts = place.cache().join("blobs");
    let whole = fs::read_dir(parts)
        .into_iter()
        .flatten()
        .filter(|entry| !entry.as_ref().unwrap().file_name().to_str().unwrap().contains("part"));
    assert_eq!(whole.count(), 0, "no file appears that is not right");
    (error.to_string(), error.hint().unwrap_or_default().to_owned())
}

#[test]
fn every_lasting_fault_is_explained() {
    let (said, _) = refusal(|asked, _| (is_large(asked) && asked.elsewhere).then_some(Fault::Wrong));
    assert!(said.contains("expected SHA-256") && said.contains("found SHA-256"), "{said}");
    let (said, hint) = refusal(|asked, _| is_large(asked).then_some(Fault::Page));
    assert!(said.contains("found a page of HTML") && hint.contains("browser"), "{said} {hint}");
    let (said, hint) = refusal(|asked, _| asked.path.contains("/api/").then_some(Fault::Page));
    assert!(said.contains("found a page of HTML") && hint.contains("is that address a hub"), "{said} {hint}");
    let (said, _) = refusal(|asked, _| (is_large(asked) && asked.elsewhere).then_some(Fault::OtherRange));
    assert!(said.contains("expected bytes from"), "{said}");
    let (said, hint) =
        refusal(|asked, _| is_large(asked).then(|| Fault::Status(429, vec![("Retry-After", "7200".into())])));
    assert!(said.contains("too many requests") && hint.contains("120 minutes"), "{said} {hint}");
    let (said, _) = refusal(|asked, _| is_large(asked).then(|| Fault::Status(500, Vec::new())));
    assert!(said.contains("the server failed (HTTP 500)"), "{said}");
    let (said, _) = refusal(|asked, _| (is_large(asked) && asked.elsewhere).then_some(Fault::Cut(0)));
    assert!(said.contains("broke off") || said.contains("cannot reach"), "{said}");
    for status in [401, 403] {
        let (said, hint) = refusal(move |asked, _| {
            is_large(asked).then(|| Fault::Status(status, vec![("X-Error-Code", "GatedRepo".into())]))
        });
        assert!(said.contains("accepted its terms") && hint.contains("HF_TOKEN"), "{said} {hint}");
    }
    let (said, _) =
        refusal(|asked, _| is_large(asked).then(|| Fault::Status(404, vec![("X-Error-Code", "EntryNotFound".into())])));
    assert!(said.contains("there is no such file"), "{said}");
    let (said, _) =
        refusal(|asked, _| is_large(asked).then(|| Fault::Status(302, vec![("Location", asked.path.clone())])));
    assert!(said.contains("more than 10 redirects"), "{said}");
    for to in ["file:///etc/passwd", "ftp://a.example/x", "", "http://user@a.example/"] {
        let (said, _) =
            refusal(move |asked, _| is_large(asked).then(|| Fault::Status(302, vec![("Location", to.into())])));
        assert!(said.contains("expected a redirect to a file") || said.contains("more than 10"), "{to}: {said}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let place = Place::new();
    let said = |asked: &str| {
        let error = place.pull(asked).unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or_default())
    };
    assert!(said("hf:owner/nothing").contains("there is no such repository"));
    assert!(said("hf:owner/model@v2:config.json").contains("no such revision"));
    assert!(said("hf:owner/model:weights/modle.safetensors").contains("it has weights/model.safetensors"));
    assert!(said("flux1-schnel").contains("the nearest: flux1-schnell"));
    let offline = Hub::new(settings(&place.server, place.dir.path(), &[("HF_HUB_OFFLINE", "1")])).unwrap();
    let asked = Asked::parse("hf:owner/model", &offline.settings).unwrap();
    let error = offline.find(&asked, Catalogue::built_in(), &|| false, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn hostile_lists_write_nothing() {
    let sha = "a".repeat(64);
    let hostile = [
        r#"[{"type": "file", "oid": "", "size": 1, "path": "../../../x", "lfs": {"oid": "SHA", "size": 1}}]"#,
        r#"[{"type": "file", "oid": "", "size": 1, "path": "/tmp/x", "lfs": {"oid": "SHA", "size": 1}}]"#,
        r#"[{"type": "file", "oid": "../../x", "size": 1, "path": "x"}]"#,
        r#"[{"type": "file", "oid": "", "size": 1, "path": "x", "lfs": {"oid": "../../../x", "size": 1}}]"#,
        r#"[{"type": "file", "oid": "", "size": 1, "path": "x", "lfs": {"oid": "SHA", "size": 18446744073709551615}}]"#,
        r#"[{"type": "file", "oid": "", "size": -1, "path": "x"}]"#,
        "{}",
        "[",
    ];
    for list in hostile {
        let (place, list) = (Place::new(), list.replace("SHA", &sha));
        let body = list.clone().into_bytes();
        place
            .server
            .fail(move |asked, _| asked.path.contains("/tree/").then(|| Fault::Body("application/json", body.clone())));
        assert!(place.pull("hf:owner/model:x").is_err(), "{list}");
        assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 0, "{list}");
    }
    for commit in ["../../../x", "", "main"] {
        let place = Place::new();
        let body = format!("{{\"sha\": \"{commit}\"}}").into_bytes();
        place.server.fail(move |asked, _| {
            asked.path.contains("/revision/").then(|| Fault::Body("application/json", body.clone()))
        });
        assert!(matches!(place.pull("hf:owner/model:config.json"), Err(Error::Answer { .. })), "{commit}");
    }
    let place = Place::new();
    place
        .server
        .fail(|asked, _| asked.path.contains("/tree/").then(|| Fault::Body("application/json", vec![b' '; 17 << 20])));
    assert!(place.pull("hf:owner/model:config.json").unwrap_err().to_string().contains("more than 16 MiB"));
}

#[test]
fn what_broke_off_goes_on_where_it_was() {
    let place = Place::new();
    let wanted = place.find(&format!("hf:{REPOSITORY}:{LARGE}")).unwrap();
    assert_eq!(place.hub.missing(&wanted), 300_000);
    // The second half fails for good.
    place.server.fail(|asked, _| {
        let from: u64 = asked.headers.get("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()?;
        (from >= 160_000).then(|| Fault::Status(404, Vec::new()))
    });
    let one = Hub::new(Settings { connections: 1, ..settings(&place.server, place.dir.path(), &[]) }).unwrap();
    assert!(one.fetch(&wanted, &|| false, &mut |_| {}).is_err());
    let missing = place.hub.missing(&wanted);
    assert_eq!(missing, 140_000);
    place.server.mend();
    let mut came = 0;
    place
        .hub
        .fetch(&wanted, &|| false, &mut |event| {
            if let Event::Progress { bytes } = event {
                came = bytes
            }
        })
        .unwrap();
    assert_eq!(came, missing);
    place.pull_large();
}

#[test]
fn a_part_that_is_wrong_is_thrown_away() {
    let place = Place::new();
    place.server.fail(|asked, _| {
        let from: u64 = asked.headers.get("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()?;
        if from < 120_000 { Some(Fault::Wrong) } else { Some(Fault::Status(404, Vec::new())) }
    });
    let one = Hub::new(Settings { connections: 1, ..settings(&place.server, place.dir.path(), &[]) }).unwrap();
    let wanted = place.find(&format!("hf:{REPOSITORY}:{LARGE}")).unwrap();
    assert!(one.fetch(&wanted, &|| false, &mut |_| {}).is_err());
    place.server.mend();
    let mut anew = 0;
    place.hub.fetch(&wanted, &|| false, &mut |event| anew += usize::from(matches!(event, Event::Anew { .. }))).unwrap();
    assert_eq!(anew, 1);
    place.pull_large();
}

#[test]
fn cancelling_keeps_what_came() {
    let place = Place::new();
    place.server.slow(Some(300_000));
    let wanted = place.find(&format!("hf:{REPOSITORY}:{LARGE}")).unwrap();
    let came = AtomicUsize::new(0);
    let result = place.hub.fetch(&wanted, &|| came.load(Ordering::Relaxed) > 100_000, &mut |event| {
        if let Event::Progress { bytes } = event {
            came.store(bytes as usize, Ordering::Relaxed);
        }
    });
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    place.server.slow(None);
    assert!(place.hub.missing(&wanted) <= 280_000, "{}", place.hub.missing(&wanted));
    place.pull_large();
}

#[test]
fn two_processes_fetch_a_file_once() {
    let place = Place::new();
    place.server.slow(Some(2_000_000));
    let waited = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let hub = Hub::new(settings(&place.server, place.dir.path(), &[])).unwrap();
                let wanted = place.find(&format!("hf:{REPOSITORY}:{LARGE}")).unwrap();
                hub.fetch(&wanted, &|| false, &mut |event| {
                    waited.fetch_add(usize::from(matches!(event, Event::Waiting { .. })), Ordering::Relaxed);
                })
                .unwrap();
            });
        }
    });
    let ranges: Vec<String> = place
        .server
        .asked()
        .iter()
        .filter(|asked| asked.elsewhere)
        .map(|asked| asked.headers["range"].clone())
        .collect();
    let mut once = ranges.clone();
    once.sort();
    once.dedup();
    assert_eq!(once.len(), ranges.len(), "{ranges:?}");
    assert!(waited.into_inner() >= 1);
    place.pull_large();
}

#[test]
fn modelscope_gives_the_same() {
    let place = Place::new();
    let paths = place.pull(&format!("ms:{REPOSITORY}:{LARGE}")).unwrap();
    assert_eq!(fs::read(&paths[0]).unwrap(), place.content(LARGE));
    assert!(
        paths[0].starts_with(place.dir.path().join("own/modelscope/models--owner--model/snapshots/master")),
        "{paths:?}"
    );
}

#[test]
fn any_address_is_fetched() {
    let place = Place::new();
    let address = format!("{}/plain/{LARGE}", place.server.elsewhere);
    let paths = place.pull(&address).unwrap();
    assert_eq!(fs::read(&paths[0]).unwrap(), place.content(LARGE));
    assert!(paths[0].ends_with("files/127.0.0.1/model.safetensors"), "{paths:?}");
    place.server.mend();
    place.pull(&address).unwrap();
    assert_eq!(place.server.asked().len(), 1, "only looked at");
    fs::remove_file(&paths[0]).unwrap();
    place.server.fail(|asked, before| (before > 0 && asked.headers.contains_key("range")).then_some(Fault::Cut(3_000)));
    place.pull(&address).unwrap();
    assert_eq!(fs::read(&paths[0]).unwrap(), place.content(LARGE));
    // Without a length, it comes in one piece.
    fs::remove_file(&paths[0]).unwrap();
    place.server.fail(|_, _| Some(Fault::Unsized));
    place.pull(&address).unwrap();
    assert_eq!(fs::read(&paths[0]).unwrap(), place.content(LARGE));
    place.server.fail(|_, _| Some(Fault::Page));
    assert!(place.pull(&address).unwrap_err().to_string().contains("a page of HTML"));
}

#[test]
fn a_file_that_is_there_is_checked() {
    let place = Place::new();
    place.pull_large();
    let wanted = &place.find(&format!("hf:{REPOSITORY}:{LARGE}")).unwrap()[0];
    place.hub.check(wanted, &|| false).unwrap();
    let blob = fs::canonicalize(&wanted.path).unwrap();
    let mut content = fs::read(&blob).unwrap();
    content[200_000] ^= 1;
    fs::write(&blob, content).unwrap();
    assert!(matches!(place.hub.check(wanted, &|| false), Err(Error::Checksum { .. })));
    place.pull_large();
}

#[test]
fn a_disk_without_room_is_refused_before() {
    let huge = format!(
        r#"[{{"type": "file", "oid": "", "size": 1, "path": "x.gguf", "lfs": {{"oid": "{}", "size": {}}}}}]"#,
        "a".repeat(64),
        8_u64 << 40
    );
    let place = Place::new();
    place.server.fail(move |asked, _| {
        asked.path.contains("/tree/").then(|| Fault::Body("application/json", huge.clone().into_bytes()))
    });
    let error = place.pull("hf:owner/model:x.gguf").unwrap_err();
    assert!(matches!(error, Error::NoSpace { needed, .. } if needed == 8 << 40), "{error}");
    assert!(error.hint().unwrap().contains("HF_HUB_CACHE"));
    assert!(!place.cache().exists());
}

#[test]
fn an_older_version_is_pruned_if_there_is_a_newer_one() {
    const NAME: &str = "Comfy-Org/z_image_turbo";
    let place = Place::with(vec![file(NAME, "a.gguf", 5_000, true), file(NAME, "b.gguf", 6_000, true)]);
    place.pull(&format!("hf:{NAME}:b.gguf")).unwrap();
    let folder = place.dir.path().join("hf/hub/models--Comfy-Org--z_image_turbo");
    // An older snapshot with one file that changed and one that the newer does not have.
    let old = folder.join("snapshots").join("f".repeat(40));
    fs::create_dir_all(&old).unwrap();
    for (name, digits) in [("b.gguf", "1".repeat(64)), ("c.gguf", "2".repeat(64))] {
        fs::write(folder.join("blobs").join(&digits), "older").unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{digits}"), old.join(name)).unwrap();
    }
    let gone: Vec<PathBuf> =
        tidy::superfluous(&place.hub.settings).unwrap().into_iter().map(|removable| removable.path).collect();
    assert_eq!(gone, [folder.join("blobs").join("1".repeat(64)), old.join("b.gguf")]);
    for path in &gone {
        tidy::remove(path).unwrap();
    }
    assert!(old.join("c.gguf").is_file() && folder.join("snapshots").join(COMMIT).join("b.gguf").is_file());
    assert!(tidy::superfluous(&place.hub.settings).unwrap().is_empty());
}

#[test]
fn links_of_a_conversion_that_was_killed_are_pruned() {
    let place = Place::new();
    let folder = place.hub.settings.home.join(format!("{}1", tidy::ARRIVING));
    fs::create_dir_all(folder.join("models--a--b")).unwrap();
    // One that is young may be in use.
    assert!(tidy::superfluous(&place.hub.settings).unwrap().is_empty());
    let hour = Duration::from_secs(3600);
    fs::File::open(&folder).unwrap().set_modified(SystemTime::now() - hour).unwrap();
    let gone: Vec<PathBuf> =
        tidy::superfluous(&place.hub.settings).unwrap().into_iter().map(|removable| removable.path).collect();
    assert_eq!(gone, [folder.as_path()]);
    tidy::remove(&folder).unwrap();
    assert!(!folder.exists());
}
