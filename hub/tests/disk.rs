//! A disk that fills while a file comes.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

mod played;

use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pinhole_hub::{Asked, Catalogue, Error, Event, Hub, Settings};
use played::file;

/// In the process that has a disk of its own: where it is.
const DISK: &str = "PINHOLE_TEST_DISK";
/// What is fetched, and the disk: room for it, and for what has to stay free before anything is fetched.
const BYTES: usize = 8 << 20;
const DISK_BYTES: usize = 80 << 20;

#[test]
fn a_disk_that_fills_is_said_and_what_came_stays() {
    if let Some(disk) = env::var_os(DISK) {
        return fill_and_go_on(Path::new(&disk));
    }
    let namespace = ["--map-root-user", "--mount"];
    let is_allowed = Command::new("unshare").args(namespace).arg("true").status().is_ok_and(|status| status.success());
    assert!(is_allowed || env::var_os("PINHOLE_NAMESPACES").is_none(), "namespaces are required, and not allowed here");
    if !is_allowed {
        return;
    }
    // A disk in memory, which this process's child alone sees.
    let place = tempfile::tempdir().unwrap();
    let script = format!("mount -t tmpfs -o size={DISK_BYTES} none \"$1\" && exec \"$0\" --nocapture");
    let mut again = Command::new("unshare");
    again.args(namespace).args(["sh", "-c", &script]).arg(env::current_exe().unwrap()).arg(place.path());
    let output = again.env(DISK, place.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn fill_and_go_on(disk: &Path) {
    let server = played::Hub::new(vec![file("owner/model", "model.gguf", BYTES, true)]);
    let home = disk.join("hf").to_str().unwrap().to_owned();
    let settings = Settings::from(&|name| match name {
        "HF_ENDPOINT" => Some(server.url.clone().into()),
        "HF_HOME" | "PINHOLE_HOME" => Some(home.clone().into()),
        _ => None,
    });
    let settings = Settings { range: 400_000, grain: 100_000, pause: Duration::from_millis(1), ..settings.unwrap() };
    let hub = Hub::new(settings).unwrap();
    let asked = Asked::parse("hf:owner/model:model.gguf", &hub.settings).unwrap();
    let wanted = hub.find(&asked, Catalogue::built_in(), &|| false, &mut |_| {}).unwrap();

    // Somebody else takes what is left in the middle.
    server.slow(Some(10 << 20));
    let filling = disk.join("filling");
    let error = hub.fetch(&wanted, &|| false, &mut |event| {
        if matches!(event, Event::Progress { bytes } if bytes as usize > BYTES / 4) && !filling.exists() {
            let filled = File::create(&filling).unwrap().write_all(&vec![1; DISK_BYTES]);
            assert_eq!(filled.unwrap_err().kind(), ErrorKind::StorageFull);
        }
    });
    let error = error.unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == ErrorKind::StorageFull), "{error}");
    assert!(error.to_string().contains("cannot write"), "{error}");
    assert!(error.hint().unwrap().contains("goes on from there"), "{error:?}");
    let missing = hub.missing(&wanted) as usize;
    assert!((1..BYTES * 4 / 5).contains(&missing), "{missing}");
    // While there is no room it is said before anything is asked for.
    assert!(matches!(hub.fetch(&wanted, &|| false, &mut |_| {}), Err(Error::NoSpace { .. })));

    fs::remove_file(&filling).unwrap();
    server.slow(None);
    let mut came = 0;
    let paths = hub.fetch(&wanted, &|| false, &mut |event| {
        if let Event::Progress { bytes } = event {
            came = bytes as usize;
        }
    });
    assert!(fs::read(&paths.unwrap()[0]).unwrap() == file("owner/model", "model.gguf", BYTES, true).content);
    assert_eq!(came, missing);
}
