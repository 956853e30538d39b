//! Films that pinhole reads, whole and damaged.

use std::fs;
use std::path::PathBuf;

use pinhole::Error;
use pinhole::video::{Clip, Shape};
use tempfile::TempDir;

use crate::frames::{difference, frame, shape, write};

/// Films of each kind that is read.
fn readable() -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a.gif", "a.webp", "a.png", "a.y4m"].map(|name| folder.path().join(name));
    for path in &paths {
        write(path, Shape { width: 24, height: 16, ..shape(3, "16") });
    }
    (folder, paths.to_vec())
}

#[test]
fn films_are_read() {
    let (folder, paths) = readable();
    for path in &paths {
        let clip = Clip::open(path, 99).unwrap();
        assert_eq!((clip.frames().len(), clip.is_cut(), clip.notes().len()), (3, false, 0), "{}", path.display());
        let fps = clip.rate().unwrap().fps();
        assert!((15.0..17.5).contains(&fps), "{fps}");
        for (i, read) in clip.frames().iter().enumerate() {
            let (_, mean) = difference(read.rgb(), frame(24, 16, i).rgb());
            assert!(mean < 250.0, "{}: {mean}", path.display());
        }
        let two = Clip::open(path, 2).unwrap();
        assert_eq!((two.frames(), two.is_cut()), (&clip.frames()[..2], true));
    }
    // By what is inside, and not by the name.
    fs::rename(&paths[0], folder.path().join("b.webp")).unwrap();
    assert_eq!(Clip::open(&folder.path().join("b.webp"), 9).unwrap().frames().len(), 3);
}

#[test]
fn folders_are_read_in_the_order_of_their_numbers() {
    let place = tempfile::tempdir().unwrap();
    for number in [1, 2, 10] {
        frame(16, 16, number).save(place.path().join(format!("f{number}.png"))).unwrap();
    }
    fs::write(place.path().join("notes.txt"), "x").unwrap();
    fs::write(place.path().join(".hidden.png"), "x").unwrap();
    let clip = Clip::open(place.path(), 9).unwrap();
    assert_eq!(clip.frames(), [1, 2, 10].map(|number| frame(16, 16, number)));
    assert!(clip.notes()[0].contains("has 1 files that are no frames"));
    frame(16, 8, 3).save(place.path().join("f3.png")).unwrap();
    let error = Clip::open(place.path(), 9).unwrap_err();
    let message = error.to_string();
    assert!(
        message.contains("f3.png: frame: expected 16x16 pixels, as ") && message.ends_with("found 16x8"),
        "{message}"
    );
    let empty = tempfile::tempdir().unwrap();
    assert!(Clip::open(empty.path(), 9).unwrap_err().to_string().ends_with("found nothing"));
}

#[test]
fn films_that_are_cut_off_are_refused() {
    /// Bytes of the last chunk.
    const PNG_END: usize = 12;
    let (_folder, paths) = readable();
    for path in &paths {
        let bytes = fs::read(path).unwrap();
        let is_y4m = path.ends_with("a.y4m");
        let frame = 24 * 16 * 3 / 2 + 6;
        for length in (0..bytes.len()).step_by(7) {
            fs::write(path, &bytes[..length]).unwrap();
            let read = Clip::open(path, 99);
            // Between two frames, no reader can tell; and behind the last one, a PNG has its end alone.
            let has_all = path.ends_with("a.png") && length + PNG_END >= bytes.len();
            let may_be_whole = has_all || is_y4m && (bytes.len() - length) % frame == 0;
            assert!(read.is_err() || may_be_whole, "{}: {length} of {}", path.display(), bytes.len());
            if let Err(error) = read {
                assert!(matches!(error, Error::Mismatch { .. }), "{error:?}");
                assert!(error.hint().is_some());
            }
        }
        fs::write(path, &bytes).unwrap();
    }
}

#[test]
fn damaged_films_end_in_an_error_or_in_frames() {
    let (_folder, paths) = readable();
    for path in &paths {
        let bytes = fs::read(path).unwrap();
        let mut state = 1u32;
        for _ in 0..150 {
            let mut bent = bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // The headers most of all.
                let at = (state >> 8) as usize % if state & 64 > 0 { 120.min(bent.len()) } else { bent.len() };
                bent[at] = (state >> 24) as u8;
            }
            fs::write(path, &bent).unwrap();
            match Clip::open(path, 20) {
                Ok(clip) => assert!(!clip.frames().is_empty()),
                Err(Error::Mismatch { .. } | Error::OutOfMemory { .. } | Error::Malformed { .. }) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn what_is_no_film_is_called_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let said = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = Clip::open(&path, 9).unwrap_err();
        format!("{error}; {}", error.hint().unwrap_or_default())
    };
    assert!(said("a.mp4", b"\0\0\0\x20ftypisom").contains("found MP4 or a film like it; `ffmpeg -i"));
    assert!(said("a.mkv", b"\x1a\x45\xdf\xa3rest").contains("Matroska or WebM"));
    assert!(said("a.jpg", b"\xff\xd8\xff\xe0rest").contains("--image takes pictures"));
    assert!(said("a.gguf", b"GGUF").contains("expected a folder of pictures, a film in Y4M, or an animation"));
    assert!(said("empty", b"").contains("an empty file"));
    for (header, found) in [
        ("W9999999999999999999 H2", "sides of 1 to 16384 pixels"),
        ("W16384 H16385", "sides of 1 to 16384"),
        ("W0 H2", "sides of 1 to"),
        ("H2", "a header with W and H"),
        ("W2 H2 C420p10", "found `C420p10`; `ffmpeg -i FILM -pix_fmt yuv420p"),
        ("W2 H2 It", "deinterlace"),
        ("W2 H2\nFRAMES\n", "begins with FRAME"),
        ("W2 H2\n", "at least one frame"),
        ("W2 H2\nFRAME\nxy", "its end in the middle of frame 1"),
    ] {
        let ends = if header.contains('\n') { "" } else { "\nFRAME\n" };
        let said = said("a.y4m", format!("YUV4MPEG2 {header}{ends}").as_bytes());
        assert!(said.contains(found), "{header}: {said}");
    }
    let still = folder.path().join("still.png");
    frame(16, 16, 0).save(&still).unwrap();
    let error = Clip::open(&still, 9).unwrap_err();
    assert!(error.to_string().contains("a picture that does not move"), "{error}");
    assert!(matches!(Clip::open(&folder.path().join("none"), 9), Err(Error::Io { .. })));
}
