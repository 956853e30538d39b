//! Films to begin with, and films that the program draws.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pinhole::ggml::{CancelFlag, Device};
use pinhole::image::{Image, PARAMETERS, PINHOLE};
use pinhole::pipeline::{self, Pipeline, Request};
use pinhole::source::Source;
use pinhole::video::{Clip, Film, Shape};
use pinhole_quant::metrics;
use serde_json::Value;
use tempfile::TempDir;

use crate::decoders::{by_ffmpeg, has_ffmpeg, output};
use crate::frames::{names, rate, shape};
use crate::support::wan::write_directory;
use crate::support::{Golden, given};

/// A model of films, which draws them from texts.
fn model() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_directory(dir.path(), &Golden::load("wan"), "t2v");
    dir
}

/// A picture that moves to the left, five pixels in each frame: the film of `tests/reference/wan_film.py`.
fn moving(width: usize, height: usize, frames: usize) -> Vec<Image> {
    let picture = given::picture(width, height);
    let mut moving = Vec::new();
    for number in 0..frames {
        let mut rgb = picture.image().rgb().to_vec();
        rgb.chunks_exact_mut(3 * width).for_each(|row| row.rotate_left(3 * 5 * number));
        moving.push(Image::new(width, height, rgb).unwrap());
    }
    moving
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
        command.args(["generate", "-p", "a red ring", "--width", "48", "--height", "32", "--seed", "3"]);
        if !more.contains(&"--steps") {
            command.args(["--steps", "1"]);
        }
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
