//! Films that cannot be written, or not to their end.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pinhole::Error;
use pinhole::video::{Clip, Film, Shape};

use crate::decoders::decoded_mp4;
use crate::frames::{HEIGHT, WIDTH, frame, names, noise, rate, shape, write};

#[test]
fn what_a_kind_does_not_hold_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |name: &str, shape: Shape| {
        let error = Film::create(&folder.path().join(name), shape).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Option { .. }) && error.hint().is_some(), "{error:?}");
        error.to_string()
    };
    let sized = |width, height| Shape { width, height, ..shape(2, "16") };
    assert!(
        refused("a.mp4", sized(47, 32)).contains("even sides") && refused("a.mp4", sized(48, 31)).contains("48x31")
    );
    assert!(refused("a.mp4", sized(14, 32)).contains("at least 16"));
    assert!(refused("a.mp4", sized(3842, 32)).contains("3840x2160 or 2160x3840"));
    assert!(refused("a.mp4", sized(2162, 2162)).contains("2162x2162"));
    assert!(refused("a.gif", shape(2, "60")).contains("at most 50 frames in a second"));
    assert!(refused("a.webp", sized(0, 8)).contains("0x8"));
    assert!(refused("a.png", shape(0, "16")).contains("1 to 1048576 frames"));
    assert!(refused("a.avi", shape(2, "16")).contains(".mp4, .webp, .gif, .apng, .png or .y4m"));
    assert_eq!(names(folder.path()), [""; 0]);
    // Something else stays, a film is replaced.
    fs::write(folder.path().join("a.mp4"), "GGUF and more").unwrap();
    let error = Film::create(&folder.path().join("a.mp4"), shape(2, "16")).map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::Exists { .. }) && error.hint().unwrap().contains("no film"));
    write(&folder.path().join("b.gif"), shape(2, "16"));
    write(&folder.path().join("b.gif"), shape(1, "16"));
}

#[test]
fn frames_are_of_one_size_and_as_many_as_was_said() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.mp4", "a.gif", "a.webp", "a.png", "a.y4m"] {
        let path = folder.path().join(name);
        let mut film = Film::create(&path, shape(2, "16")).unwrap();
        assert!(matches!(film.push(&frame(16, 16, 0)), Err(Error::Graph { .. })));
        film.push(&frame(WIDTH, HEIGHT, 0)).unwrap();
        let error = film.finish().unwrap_err();
        // What there is of it is kept, if it can be.
        assert!(error.to_string().contains("1 of 2 frames were made"), "{error}");
        assert_eq!(path.exists(), name != "a.png", "{name}");
        let mut film = Film::create(&path, shape(1, "16")).unwrap();
        film.push(&frame(WIDTH, HEIGHT, 0)).unwrap();
        assert!(film.push(&frame(WIDTH, HEIGHT, 0)).is_err());
        film.finish().unwrap();
        drop(Film::create(&folder.path().join(format!("dropped-{name}")), shape(1, "16")).unwrap());
    }
    assert_eq!(names(folder.path()), ["a.gif", "a.mp4", "a.png", "a.webp", "a.y4m"]);
    // A name that is taken is not.
    let at = folder.path().to_owned();
    let free = move || {
        (1..9).map({
            let at = at.clone();
            move |number: usize| at.join(format!("free-{number}.gif"))
        })
    };
    for number in 1..3 {
        let mut film = Film::create_free(free(), shape(1, "16")).unwrap();
        film.push(&frame(WIDTH, HEIGHT, 0)).unwrap();
        assert!(film.finish().unwrap().ends_with(format!("free-{number}.gif")));
    }
}

/// Frames of noise, where few fit, are written by this test again, in a process that may make no larger files.
#[cfg(unix)]
#[test]
fn a_disk_that_fills() {
    const PLACE: &str = "PINHOLE_TEST_FULL";
    let kinds = ["a.mp4", "a.gif", "a.webp", "a.png", "a.y4m", "frames/"];
    if let Some(place) = env::var_os(PLACE) {
        for kind in kinds {
            let path = PathBuf::from(&place).join(kind);
            let side = if kind == "frames/" { 96 } else { 64 };
            let shape = Shape { width: side, height: side, frames: 9, rate: rate("16") };
            let mut film = Film::create(&path, shape).unwrap();
            let mut pushed = (0..9).map(|number| match kind {
                // Two that fit, and one that does not.
                "frames/" if number < 2 => film.push(&frame(side, side, number)),
                _ => film.push(&noise(side, side, number as u32)),
            });
            let error = pushed.find_map(Result::err).unwrap();
            println!("{kind}: {error}|{}", error.hint().unwrap());
        }
        return;
    }
    let place = tempfile::tempdir().unwrap();
    // In blocks of 512 bytes; a signal would end the process.
    let script = "trap '' XFSZ; ulimit -f 40; exec \"$0\" --exact writing::a_disk_that_fills --nocapture";
    let mut again = Command::new("sh");
    again.args(["-c", script]).arg(env::current_exe().unwrap()).env(PLACE, place.path());
    let output = again.output().unwrap();
    let [said, heard] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{heard}");
    // Encoders say nothing by themselves.
    assert!(!heard.contains("OpenH264"), "{heard}");
    for kind in kinds {
        let line = said.lines().find_map(|line| line.split_once(&format!("{kind}: "))).unwrap().1;
        let (error, hint) = line.split_once('|').unwrap();
        assert!(error.contains("File too large") && error.ends_with(" of 9 frames were made"), "{error}");
        let made: usize = error.split(" of 9 ").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();
        let path = place.path().join(kind);
        println!("{error}\n{hint}");
        match kind {
            "a.png" => assert!(hint.contains("NAME/") && !path.exists()),
            "a.mp4" => assert_eq!(decoded_mp4(&fs::read(&path).unwrap()).len(), made),
            _ => assert_eq!(Clip::open(&path, 99).unwrap().frames().len(), made),
        }
        assert!(kind == "a.png" || (1..9).contains(&made), "{made}");
        assert!(
            kind == "a.png" || hint.contains(&format!("after frame {made}")) || hint.contains("00002.png"),
            "{hint}"
        );
    }
    assert_eq!(names(place.path()), ["a.gif", "a.mp4", "a.webp", "a.y4m", "frames"]);
}
