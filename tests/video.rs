//! Films, written and read: each kind is read back by something else than what wrote it. With ffmpeg, if this machine has it; where
//! `PINHOLE_FFMPEG` is `required`, as in CI, it must.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

mod support;

use std::env;
use std::fs;
use std::io::{BufReader, Cursor, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use image::codecs::{gif::GifDecoder, png::PngDecoder};
use image::{AnimationDecoder, ImageDecoder};
use openh264::decoder::Decoder;
use openh264::formats::YUVSource;
use pinhole::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::image::{Image, PARAMETERS, PINHOLE, Picture};
use pinhole::pipeline::{self, Pipeline, Request};
use pinhole::source::Source;
use pinhole::video::{Clip, Film, Rate, Shape};
use pinhole_quant::metrics;
use serde_json::Value;
use support::wan::write_directory;
use support::{Golden, given};
use tempfile::TempDir;

const WIDTH: usize = 48;
const HEIGHT: usize = 32;
const TEXT: [(&str, &str); 2] = [(PARAMETERS, "ein Häuschen\nSteps: 4"), (PINHOLE, r#"{"seed":7}"#)];

/// Slow changes of strong colours, which move.
fn frame(width: usize, height: usize, number: usize) -> Image {
    let mut rgb = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let across = 255 * x / width.max(2);
            let down = (255 * y / height.max(2) + 20 * number) % 512;
            rgb.extend([across, 255 - across, down.min(511 - down)].map(|colour| colour as u8));
        }
    }
    Image::new(width, height, rgb).unwrap()
}

/// Every pixel by chance.
fn noise(width: usize, height: usize, mut state: u32) -> Image {
    let mut rgb = Vec::new();
    for _ in 0..width * height * 3 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        rgb.push((state >> 24) as u8);
    }
    Image::new(width, height, rgb).unwrap()
}

fn rate(text: &str) -> Rate {
    text.parse().unwrap()
}

fn shape(frames: usize, fps: &str) -> Shape {
    Shape { width: WIDTH, height: HEIGHT, frames, rate: rate(fps) }
}

/// A film of `shape` at `path`, and its frames.
fn write(path: &Path, shape: Shape) -> Vec<Image> {
    let frames: Vec<Image> = (0..shape.frames).map(|number| frame(shape.width, shape.height, number)).collect();
    let is_new = !path.exists();
    let mut film = Film::create(path, shape).unwrap();
    film.set_text(&TEXT);
    for frame in &frames {
        assert!(!is_new || path.is_dir() || !path.exists());
        film.push(frame).unwrap();
    }
    assert_eq!(film.finish().unwrap(), path);
    frames
}

/// The worst and the mean square difference of two pictures' bytes.
fn difference(one: &[u8], other: &[u8]) -> (u8, f64) {
    assert_eq!(one.len(), other.len());
    let differences = || one.iter().zip(other).map(|(&a, &b)| a.abs_diff(b));
    let squares: f64 = differences().map(|difference| f64::from(difference).powi(2)).sum();
    (differences().max().unwrap(), squares / one.len() as f64)
}

/// Whether this machine has ffmpeg.
fn has_ffmpeg() -> bool {
    let found = Command::new("ffprobe").arg("-version").output().is_ok();
    assert!(found || env::var_os("PINHOLE_FFMPEG").is_none(), "ffmpeg is required and not there");
    if !found {
        eprintln!("left out: there is no ffmpeg here");
    }
    found
}

fn output(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What ffprobe says of the film, and its frames in RGB as ffmpeg decodes them.
fn by_ffmpeg(path: &Path) -> (Value, Vec<u8>) {
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"]).arg(path);
    let said = serde_json::from_slice(&output(&mut probe)).unwrap();
    let mut decode = Command::new("ffmpeg");
    decode.args(["-v", "error", "-i"]).arg(path);
    // Every frame once, whatever its time.
    decode.args([
        "-vsync",
        "0",
        "-sws_flags",
        "accurate_rnd+full_chroma_int",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-",
    ]);
    (said, output(&mut decode))
}

/// The content of the first box of each name in `path`, one inside the other.
fn box_in<'a>(mut bytes: &'a [u8], path: &[&str]) -> &'a [u8] {
    for name in path {
        loop {
            let size = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
            let (header, size) = match size {
                1 => (16, u64::from_be_bytes(bytes[8..16].try_into().unwrap()) as usize),
                size => (8, size),
            };
            if &bytes[4..8] == name.as_bytes() {
                bytes = &bytes[header..size];
                break;
            }
            bytes = &bytes[size..];
        }
    }
    bytes
}

fn long(bytes: &[u8], index: usize) -> u32 {
    u32::from_be_bytes(bytes[4 * index..][..4].try_into().unwrap())
}

/// The frames of an MP4, by its index, as openh264's decoder gives them.
fn decoded_mp4(bytes: &[u8]) -> Vec<Vec<u8>> {
    let samples = ["moov", "trak", "mdia", "minf", "stbl"];
    let table = |name| box_in(bytes, &[&samples[..], &[name]].concat());
    let (sizes, mut at) = (table("stsz"), long(table("stco"), 2) as usize);
    // Behind the header of the table and what all entries for pictures have.
    let sets = box_in(&table("stsd")[8 + 8 + 78..], &["avcC"]);
    let mut decoder = Decoder::new().unwrap();
    let mut stream = Vec::new();
    let mut at_set = 6;
    for _ in 0..2 {
        let length = usize::from(u16::from_be_bytes(sets[at_set..at_set + 2].try_into().unwrap()));
        stream.extend([0, 0, 0, 1]);
        stream.extend(&sets[at_set + 2..][..length]);
        at_set += 3 + length;
    }
    let mut frames = Vec::new();
    for index in 0..long(sizes, 2) as usize {
        let mut sample = &bytes[at..][..long(sizes, 3 + index) as usize];
        at += sample.len();
        while !sample.is_empty() {
            let length = long(sample, 0) as usize;
            stream.extend([0, 0, 0, 1]);
            stream.extend(&sample[4..][..length]);
            sample = &sample[4 + length..];
        }
        let picture = decoder.decode(&stream).unwrap().unwrap();
        let mut luma = Vec::new();
        let (width, height) = picture.dimensions();
        for y in 0..height {
            luma.extend(&picture.y()[y * picture.strides().0..][..width]);
        }
        frames.push(luma);
        stream.clear();
    }
    frames
}

fn luma(image: &Image) -> Vec<u8> {
    let weights = [0.2126, 0.7152, 0.0722];
    let bright = |pixel: &[u8]| pixel.iter().zip(weights).map(|(&c, weight)| f64::from(c) * weight).sum::<f64>();
    image.rgb().chunks(3).map(|pixel| (16.0 + 219.0 / 255.0 * bright(pixel)).round() as u8).collect()
}

#[test]
fn mp4() {
    let folder = tempfile::tempdir().unwrap();
    for (fps, wanted) in [("16", "16/1"), ("23.976", "24000/1001"), ("12.5", "25/2")] {
        let path = folder.path().join(format!("{}.mp4", fps));
        let frames = write(&path, shape(5, fps));
        let bytes = fs::read(&path).unwrap();
        for (decoded, frame) in decoded_mp4(&bytes).iter().zip(&frames) {
            let (worst, mean) = difference(decoded, &luma(frame));
            assert!(worst <= 8 && mean < 3.0, "{worst}, {mean}");
        }
        if !has_ffmpeg() {
            continue;
        }
        let (said, rgb) = by_ffmpeg(&path);
        let stream = &said["streams"][0];
        for (name, value) in [
            ("codec_name", "h264"),
            ("pix_fmt", "yuv420p"),
            ("color_range", "tv"),
            ("color_space", "bt709"),
            ("color_transfer", "bt709"),
            ("color_primaries", "bt709"),
            ("r_frame_rate", wanted),
            ("avg_frame_rate", wanted),
            ("nb_frames", "5"),
            ("nb_read_frames", "5"),
            ("sample_aspect_ratio", "1:1"),
        ] {
            assert_eq!(stream[name], value, "{name}");
        }
        assert_eq!((stream["width"].as_u64(), stream["height"].as_u64()), (Some(48), Some(32)));
        for (keyword, text) in TEXT {
            assert_eq!(said["format"]["tags"][keyword], text);
        }
        let given: Vec<u8> = frames.iter().flat_map(|frame| frame.rgb()).copied().collect();
        let (_, mean) = difference(&rgb, &given);
        // 38 dB: half of the colours, and what H.264 leaves out.
        assert!(mean < 10.0, "{mean}");
    }
}

#[test]
fn gif() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.gif");
    let frames = write(&path, shape(5, "16"));
    let bytes = fs::read(&path).unwrap();
    let decoded = GifDecoder::new(Cursor::new(&bytes)).unwrap().into_frames().collect_frames().unwrap();
    let delays: Vec<u32> = decoded.iter().map(|frame| frame.delay().numer_denom_ms().0).collect();
    assert_eq!(delays, [60, 70, 60, 60, 60]);
    for (decoded, frame) in decoded.iter().zip(&frames) {
        let rgb: Vec<u8> = decoded.buffer().pixels().flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
        let (worst, mean) = difference(&rgb, frame.rgb());
        // 25 dB: there are six times as many colours as a frame can have.
        assert!(worst <= 70 && mean < 200.0, "{worst}, {mean}");
    }
    // The texts lie behind the frames, in blocks of at most 255 bytes.
    let whole = String::from_utf8_lossy(&bytes);
    assert!(whole.contains(TEXT[0].1) && whole.contains("pinhole 1.0") && whole.contains(TEXT[1].1));
    if has_ffmpeg() {
        let (said, rgb) = by_ffmpeg(&path);
        assert_eq!(said["streams"][0]["nb_read_frames"], "5");
        assert_eq!(rgb.len(), 5 * WIDTH * HEIGHT * 3);
    }
}

#[test]
fn webp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("film.webp");
    // Odd sides.
    let shape = Shape { width: 37, height: 21, ..shape(4, "24") };
    let frames = write(&path, shape);
    let bytes = fs::read(&path).unwrap();
    assert_eq!(u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize + 8, bytes.len());
    let mut decoder = image_webp::WebPDecoder::new(Cursor::new(&bytes)).unwrap();
    assert_eq!((decoder.dimensions(), decoder.num_frames()), ((37, 21), 4));
    assert_eq!(decoder.loop_count(), image_webp::LoopCount::Forever);
    let mut rgb = vec![0; 37 * 21 * 3];
    let mut delays = Vec::new();
    for frame in &frames {
        delays.push(decoder.read_frame(&mut rgb).unwrap());
        assert_eq!(rgb, frame.rgb());
    }
    assert_eq!(delays, [42, 41, 42, 42]);
    let exif = decoder.exif_metadata().unwrap().unwrap();
    assert!(exif.windows(10).any(|part| part == TEXT[1].1.as_bytes()));
    let comment: Vec<u8> = TEXT[0].1.encode_utf16().flat_map(u16::to_be_bytes).collect();
    assert!(exif.windows(comment.len()).any(|part| part == comment));
    // A picture's reader shows the first frame.
    assert_eq!(Picture::open(&path).unwrap().image(), &frames[0]);
}

#[test]
fn apng() {
    let folder = tempfile::tempdir().unwrap();
    for (name, fps, delay) in [("film.png", "16", (62, 63)), ("film.apng", "24000/1001", (41, 42))] {
        let path = folder.path().join(name);
        let frames = write(&path, shape(3, fps));
        let decoder = PngDecoder::new(BufReader::new(fs::File::open(&path).unwrap())).unwrap();
        assert_eq!(decoder.dimensions(), (48, 32));
        let decoded = decoder.apng().unwrap().into_frames().collect_frames().unwrap();
        for (decoded, frame) in decoded.iter().zip(&frames) {
            let (milliseconds, of) = decoded.delay().numer_denom_ms();
            assert!((delay.0..=delay.1).contains(&(milliseconds / of)));
            let rgb: Vec<u8> = decoded.buffer().pixels().flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect();
            assert_eq!(rgb, frame.rgb());
        }
        assert_eq!(decoded.len(), 3);
        let reader = png::Decoder::new(BufReader::new(fs::File::open(&path).unwrap())).read_info().unwrap();
        assert_eq!(reader.info().utf8_text[0].get_text().unwrap(), TEXT[0].1);
        assert_eq!(reader.info().uncompressed_latin1_text[0].text, TEXT[1].1);
        if has_ffmpeg() {
            let (said, rgb) = by_ffmpeg(&path);
            assert_eq!(said["streams"][0]["codec_name"], "apng");
            assert_eq!(rgb, frames.iter().flat_map(|frame| frame.rgb()).copied().collect::<Vec<u8>>());
        }
    }
}

#[test]
fn y4m() {
    let folder = tempfile::tempdir().unwrap();
    for (width, height) in [(WIDTH, HEIGHT), (37, 21), (1, 1)] {
        let path = folder.path().join("film.y4m");
        let shape = Shape { width, height, ..shape(3, "23.976") };
        let frames = write(&path, shape);
        let clip = Clip::open(&path, 99).unwrap();
        assert_eq!((clip.rate(), clip.frames().len(), clip.is_cut()), (Some(rate("23.976")), 3, false));
        for (read, frame) in clip.frames().iter().zip(&frames) {
            let (_, mean) = difference(read.rgb(), frame.rgb());
            assert!(mean < 25.0, "{width}x{height}: {mean}");
        }
        if has_ffmpeg() {
            let (said, rgb) = by_ffmpeg(&path);
            let stream = &said["streams"][0];
            assert_eq!((&stream["color_range"], &stream["r_frame_rate"]), (&"tv".into(), &"24000/1001".into()));
            assert_eq!((stream["width"].as_u64(), &stream["nb_read_frames"]), (Some(width as u64), &"3".into()));
            assert_eq!(rgb.len(), 3 * width * height * 3);
        }
        // The same into a stream.
        let stream = Shared::default();
        let mut film = Film::to_stream(stream.clone(), shape).unwrap();
        frames.iter().for_each(|frame| film.push(frame).unwrap());
        film.finish().unwrap();
        assert_eq!(*stream.0.lock().unwrap(), fs::read(&path).unwrap());
    }
}

/// Bytes that can be looked at after they were written.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn folders() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("film/");
    let frames = write(&folder, shape(3, "16"));
    assert_eq!(names(&folder), ["00001.png", "00002.png", "00003.png"]);
    for (i, frame) in frames.iter().enumerate() {
        assert_eq!(&Image::open_png(&folder.join(format!("0000{}.png", i + 1))).unwrap(), frame);
    }
    assert_eq!(Clip::open(&folder, 2).unwrap().frames(), &frames[..2]);
    // Again, and with another pattern beside it.
    write(&folder, shape(3, "16"));
    let beside = folder.join("f-%02d.webp");
    let mut film = Film::create(&beside, shape(1, "16")).unwrap();
    film.push(&frames[0]).unwrap();
    film.finish().unwrap();
    assert_eq!(names(&folder).len(), 4);
    // A frame that would be none of the new film's.
    let error = Film::create(&folder, shape(2, "16")).map(|_| ()).unwrap_err();
    assert!(error.to_string().ends_with("00003.png exists already"), "{error}");
    assert!(error.hint().unwrap().contains("longer than 2"));
    // A folder that is made is gone again if nothing came into it.
    let new = place.path().join("new/");
    drop(Film::create(&new, shape(2, "16")).unwrap());
    assert!(!new.exists());
    assert!(matches!(Film::create(&place.path().join("no/such/"), shape(2, "16")), Err(Error::Io { .. })));
}

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

/// Frames of noise, few of which fit, are written by this test again, in a process that may make no larger files.
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
    let script = "trap '' XFSZ; ulimit -f 40; exec \"$0\" --exact a_disk_that_fills --nocapture";
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

/// A model of films, which draws them from texts.
fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_directory(dir.path(), &Golden::load("wan"), "t2v");
    dir
}

/// A picture that moves to the left, five pixels in each frame: the film of `tests/reference/wan_film.py`.
fn moving(width: usize, height: usize, frames: usize) -> Vec<Image> {
    let picture = given::picture(width, height);
    let moved = |by: usize| {
        let mut rgb = picture.image().rgb().to_vec();
        rgb.chunks_exact_mut(3 * width).for_each(|row| row.rotate_left(3 * by));
        Image::new(width, height, rgb).unwrap()
    };
    (0..frames).map(|number| moved(5 * number)).collect()
}

/// The latents of diffusers' `WanVideoToVideoPipeline` in float32.
#[test]
fn films_to_begin_with_equal_diffusers() {
    let (golden, dir) = (Golden::load("wan_film"), model());
    let opened = pipeline::open(&Source::open(dir.path()).unwrap()).unwrap();
    let device = Device::by_name("cpu").unwrap();
    let mut pipeline = Pipeline::with_threads(opened, device, 2, CancelFlag::new()).unwrap();
    let mut wrong = Vec::new();
    for (name, described) in golden.at("/cases").as_object().unwrap() {
        let number = |key: &str| described[key].as_f64().unwrap() as f32;
        let whole = |key: &str| described[key].as_u64().unwrap() as usize;
        let (width, height, frames) = (whole("width"), whole("height"), whole("frames"));
        // One more than is drawn, of another size.
        let film = moving(width + 16, height, frames + 1);
        let request = Request {
            prompt: described["prompt"].as_str().unwrap().to_owned(),
            negative_prompt: described["negative_prompt"].as_str().map(str::to_owned),
            width: Some(width),
            height: Some(height),
            steps: Some(whole("steps")),
            seed: described["seed"].as_u64().unwrap(),
            cfg_scale: Some(number("cfg_scale")),
            sampler: Some(described["sampler"].as_str().unwrap().parse().unwrap()),
            shift: Some(number("shift")),
            strength: Some(number("strength")),
            video: Some(Arc::new(Clip::of(film, None).unwrap())),
            ..Request::default()
        };
        let generated = pipeline.generate(&request).unwrap();
        assert_eq!((generated.settings.frames, generated.images.len()), (frames, frames));
        let nmse = metrics::nmse(&golden.f32(&format!("{name}.latents")), &generated.latents).unwrap();
        println!("{name}: nmse {nmse:.2e}");
        if nmse > 1e-7 {
            wrong.push(format!("{name}: {nmse:.2e}"));
        }
        assert_eq!(generated.memory.peak, generated.plan.peak());
        let error = pipeline.settings(&Request { frames: Some(frames + 4), ..request }).unwrap_err();
        assert!(error.to_string().starts_with("--video: expected at least "), "{error}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The program, in an empty folder.
struct Program<'a> {
    model: &'a Path,
    place: TempDir,
}

impl Program<'_> {
    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinhole"));
        command.args([
            "generate",
            "-p",
            "a red ring",
            "--width",
            "48",
            "--height",
            "32",
            "--steps",
            "1",
            "--seed",
            "3",
        ]);
        command.args(["--threads", "2", "-m"]).arg(self.model).args(more).current_dir(self.place.path());
        command
    }

    fn refused(&self, more: &[&str]) -> String {
        let output = self.command(more).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &[][..]), "{more:?}: {said}");
        said
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }
}

#[test]
fn the_program_writes_films() {
    let dir = model();
    let program = Program { model: dir.path(), place: tempfile::tempdir().unwrap() };
    let report: Value =
        serde_json::from_slice(&output(&mut program.command(&["--frames", "5", "-o", "a.mp4", "--json"]))).unwrap();
    let film = &report["films"][0];
    assert_eq!((&film["path"], &film["seed"], &film["frames"]), (&"a.mp4".into(), &3.into(), &5.into()));
    assert_eq!((film["fps"].as_f64(), report["images"].as_array().map(Vec::len)), (Some(16.0), Some(0)));
    assert_eq!((&report["parameters"]["frames"], report["films"].as_array().map(Vec::len)), (&5.into(), Some(1)));
    if has_ffmpeg() {
        let (said, rgb) = by_ffmpeg(&program.path("a.mp4"));
        let tags = &said["format"]["tags"];
        let inside: Value = serde_json::from_str(tags[PINHOLE].as_str().unwrap()).unwrap();
        assert_eq!((&inside["frames"], &inside["seed"]), (&5.into(), &3.into()));
        assert!(tags[PARAMETERS].as_str().unwrap().contains("Frames: 5, FPS: 16"));
        assert_eq!(said["streams"][0]["r_frame_rate"], "16/1");
        assert_eq!(rgb.len(), 5 * 48 * 32 * 3);
    }
    // Every pixel, and what is written to stdout is what a file of them holds.
    let said = output(&mut program.command(&["--frames", "5", "-o", "frames/", "--fps", "23.976"]));
    assert_eq!(String::from_utf8(said).unwrap(), "frames/\n");
    let frames = Clip::open(&program.path("frames"), 99).unwrap();
    assert_eq!((frames.frames().len(), frames.notes().len()), (5, 0));
    fs::write(program.path("a.y4m"), output(&mut program.command(&["--frames", "5", "-o", "-"]))).unwrap();
    let stream = Clip::open(&program.path("a.y4m"), 99).unwrap();
    let mut film = Film::create(&program.path("own.y4m"), Shape { width: 48, height: 32, ..shape(5, "16") }).unwrap();
    frames.frames().iter().for_each(|frame| film.push(frame).unwrap());
    film.finish().unwrap();
    assert_eq!(Clip::open(&program.path("own.y4m"), 99).unwrap().frames(), stream.frames());
    fs::remove_file(program.path("own.y4m")).unwrap();
    assert_eq!((stream.frames().len(), stream.rate()), (5, Some(rate("16"))));
    // A batch, a picture, a name of its own, and a film to begin with.
    output(&mut program.command(&["--frames", "5", "-o", "b.webp", "--batch", "2"]));
    assert_eq!(Clip::open(&program.path("b-1.webp"), 99).unwrap().frames(), frames.frames());
    output(&mut program.command(&["--frames", "1", "-o", "one.png"]));
    assert!(Clip::open(&program.path("one.png"), 9).unwrap_err().to_string().contains("does not move"));
    let said = output(&mut program.command(&["--video", "frames", "--strength", "1", "-o", "c.gif"]));
    assert_eq!((said.as_slice(), Clip::open(&program.path("c.gif"), 99).unwrap().frames().len()), (&b"c.gif\n"[..], 5));
    output(&mut program.command(&["--frames", "5"]));
    let wanted = ["a.mp4", "a.y4m", "b-1.webp", "b-2.webp", "c.gif", "frames", "one.png", "pinhole-3.mp4"];
    assert_eq!(names(program.place.path()), wanted);

    assert!(program.refused(&["--frames", "6", "-o", "x.mp4"]).contains("the nearest are 5 and 9"));
    assert!(program.refused(&["--frames", "0"]).contains("the nearest is 1"));
    assert!(program.refused(&["--fps", "0"]).contains("more than 0 and at most 1000"));
    assert!(program.refused(&["--frames", "5", "-o", "x.avi"]).contains(".mp4, .webp, .gif, .apng, .png or .y4m"));
    assert!(program.refused(&["--frames", "5", "-o", "x.jpg"]).contains("--output: expected a name that ends in .mp4"));
    assert!(program.refused(&["--frames", "5", "-o", "-", "--json"]).contains("stdout"));
    assert!(program.refused(&["--frames", "5", "-o", "-", "--batch", "2"]).contains("more than one film"));
    assert!(program.refused(&["--video", "frames", "--frames", "9"]).contains("at least 9 frames"));
    assert!(
        program.refused(&["--frames", "5", "--fps", "100", "-o", "x.gif"]).contains("at most 50 frames in a second")
    );
    assert_eq!(names(program.place.path()), wanted);
}

/// As pictures do: latents in a file, noise from one, a preview, and samplers that draw noise in every step.
#[test]
fn films_leave_latents_take_noise_and_show_previews() {
    let dir = model();
    let program = Program { model: dir.path(), place: tempfile::tempdir().unwrap() };
    let beside = ["--save-latents", "latents.safetensors", "--preview", "now.png"];
    let film = ["--frames", "5", "--steps", "2", "--cfg-scale", "1", "--sampler", "lcm", "-o"];
    output(&mut program.command(&[&film[..], &["a.webp"], &beside].concat()));
    let first = Clip::open(&program.path("a.webp"), 99).unwrap();
    assert!(Image::open_png(&program.path("now.png")).is_ok_and(|preview| preview.width() > 0));
    let file = fs::read(program.path("latents.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let latents = file.tensor("latents").unwrap();
    // In the layout of PyTorch: a film, channels, latent frames, rows, columns.
    assert_eq!(latents.shape(), [1, 16, 2, 4, 6]);
    safetensors::serialize_to_file([("noise", latents)], None, &program.path("noise.safetensors")).unwrap();
    let mut from_noise = program.command(&[&film[..], &["b.webp", "--noise", "noise.safetensors"]].concat());
    output(&mut from_noise);
    assert!(Clip::open(&program.path("b.webp"), 99).unwrap().frames() != first.frames());
    let output = program.command(&["--frames", "9", "-o", "c.webp", "--noise", "noise.safetensors"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("a video of this size needs [N, 16, 3, 4, 6]"), "{said}");
    assert!(!program.path("c.webp").exists());
}
