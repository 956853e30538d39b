//! Each kind of film, written by pinhole and read back by something else.

use std::fs;
use std::io::{BufReader, Cursor, Write};
use std::sync::{Arc, Mutex};

use image::codecs::{gif::GifDecoder, png::PngDecoder};
use image::{AnimationDecoder, ImageDecoder};
use pinhole::Error;
use pinhole::image::{Image, Picture};
use pinhole::video::{Clip, Film, Shape};

use crate::decoders::{by_ffmpeg, decoded_mp4, has_ffmpeg, luma};
use crate::frames::{HEIGHT, TEXT, WIDTH, difference, names, rate, shape, write};

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
