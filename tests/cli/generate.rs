use std::fs;
use std::io::BufReader;
use std::path::Path;

use pinhole::image::{Image, Picture};
use pinhole::sample::randn;
use serde_json::{Value, json};

use super::run::{Workplace, mini_bytes, safetensors, snapshot};

/// A request that takes no time: one token of the picture is 16x16 pixels.
const SMALL: &[&str] = &[
    "generate",
    "-m",
    "mini",
    "-p",
    "a red circle",
    "--width",
    "64",
    "--height",
    "48",
    "--steps",
    "2",
    "--threads",
    "1",
];

pub(crate) fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [SMALL, more].concat()
}

/// The texts of a PNG by keyword.
pub(crate) fn texts(path: &Path) -> Vec<(String, String)> {
    let decoder = png::Decoder::new(BufReader::new(fs::File::open(path).unwrap()));
    let reader = decoder.read_info().unwrap();
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.text.clone()));
    let utf8 = info.utf8_text.iter().map(|chunk| (chunk.keyword.clone(), chunk.get_text().unwrap()));
    latin1.chain(utf8).collect()
}

#[test]
fn success() {
    let place = Workplace::new();
    place.run(&small(&["--seed", "1", "-o", "circle.png"])).snapshot("generate");
    let image = Image::open_png(&place.path("circle.png")).unwrap();
    assert_eq!((image.width(), image.height()), (64, 48));
    assert_eq!(place.names(), ["circle.png"]);
}

#[test]
fn parts_in_files_of_their_own_draw_the_same() {
    let place = Workplace::new();
    place.write("mini.gguf", &mini_bytes());
    place.run(&small(&["--seed", "1", "-o", "whole.png"]));
    // The built-in model is q8_0, so that these parts hold its numbers as they are.
    for (component, output) in [("transformer", "dit.gguf"), ("text_encoder_2", "t5.gguf")] {
        let convert = ["convert", "mini", "-o", output, "--type", "q8_0", "--component", component];
        assert_eq!(place.run(&convert).code, 0);
    }
    let with = |parts: &[&str]| {
        let ran = place.run(&small(&[&["--seed", "1", "-o", "parts.png"], parts].concat()));
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        let pixels = |name: &str| Image::open_png(&place.path(name)).unwrap();
        assert!(pixels("whole.png") == pixels("parts.png"), "{parts:?}");
    };
    with(&["--transformer", "dit.gguf"]);
    with(&["--text-encoder-2", "t5.gguf", "--vae", "mini.gguf", "--transformer", "dit.gguf"]);
    with(&["--tokenizer-2", "t5.gguf"]);
}

#[test]
fn outputs_replace_nothing_else() {
    let place = Workplace::new();
    place.write("mini.gguf", &mini_bytes());
    place.write("other.gguf", &mini_bytes());
    let of_mini = |more: &[&str]| {
        let arguments = [&["generate", "-m", "mini.gguf", "-p", "a red circle"], &SMALL[5..], more].concat();
        place.run(&arguments)
    };
    assert_eq!(&SMALL[..4], ["generate", "-m", "mini", "-p"]);
    let refused = |more: &[&str], code: i32, said: &str| {
        let before = place.names();
        let ran = of_mini(more);
        assert_eq!(ran.code, code, "{more:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{more:?}: {}", ran.stderr);
        assert_eq!(place.names(), before);
        assert!(fs::read(place.path("mini.gguf")).unwrap() == mini_bytes());
        assert!(fs::read(place.path("other.gguf")).unwrap() == mini_bytes());
    };
    let model = "--save-latents: expected another file than that of --model, found mini.gguf";
    refused(&["--save-latents", "mini.gguf"], 2, model);
    refused(&["--save-latents", "other.gguf"], 1, "other.gguf exists already");
    let output = "--save-latents: expected another file than that of --output, found x.png";
    refused(&["-o", "x.png", "--save-latents", "x.png"], 2, output);
    assert_eq!(of_mini(&["-o", "x.png", "--save-latents", "x.safetensors", "--seed", "1"]).code, 0);
    let image = "--output: expected another file than that of --image, found x.png";
    refused(&["-o", "x.png", "--image", "x.png"], 2, image);
    refused(&["-o", "y.png", "--save-latents", "x.png"], 1, "hint: it holds no latents, so it is not replaced");
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("other.gguf", place.path("link.png")).unwrap();
        refused(&["-o", "link.png"], 1, "hint: it is no picture, so it is not replaced");
    }
    // The same again is what it always was, and is called what it was called.
    let again = of_mini(&["-o", "x.png", "--save-latents", "x.safetensors", "--seed", "1"]);
    assert_eq!((again.code, again.stdout.as_str()), (0, "x.png\n"));
}

#[test]
fn previews_stay_as_the_last_left_them() {
    let place = Workplace::new();
    let ran = place.json(&small(&["--seed", "1", "--batch", "2", "-o", "x.png", "--preview", "now.jpg:2"]));
    let names = ["now-1.jpg", "now-2.jpg"];
    assert_eq!(ran["previews"], json!(names));
    assert_eq!(place.names(), ["now-1.jpg", "now-2.jpg", "x-1.png", "x-2.png"]);
    for name in names {
        let picture = Picture::open(&place.path(name)).unwrap();
        // A pixel for each latent.
        assert_eq!((picture.image().width(), picture.image().height()), (8, 6));
    }
    let refused = |more: &[&str], code: i32, said: &str| {
        let ran = place.run(&small(more));
        assert_eq!(ran.code, code, "{more:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{more:?}: {}", ran.stderr);
        assert_eq!(place.names().len(), 4);
    };
    let output = "--preview: expected another file than that of --output, found y.png";
    refused(&["-o", "y.png", "--preview", "y.png"], 2, output);
    let image = "--preview: expected another file than that of --image, found x-1.png";
    refused(&["-o", "y.png", "--image", "x-1.png", "--preview", "x-1.png"], 2, image);
    refused(&["-o", "y.png", "--preview", "y.png:0"], 2, "EVERY is a number of steps from 1 on");
    refused(&["-o", "y.png", "--preview", "y.txt"], 2, "y.txt");
    refused(&["-o", "y.png", "--preview", "none/y.png"], 1, "none");
    refused(&["-o", "y.png", "--tiny-vae-for", "preview"], 2, "hint: give one with --tiny-vae FILE");
}

/// Without a name, each picture gets one of its own, however many begin at once.
#[test]
fn pictures_without_a_name_lose_none() {
    let place = Workplace::new();
    let children: Vec<_> = (0..4)
        .map(|_| {
            let mut command = place.command(&small(&["--seed", "7"]));
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut said: Vec<String> = children
        .into_iter()
        .map(|child| String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned())
        .collect();
    said.sort();
    assert_eq!(said, ["pinhole-7-2.png", "pinhole-7-3.png", "pinhole-7-4.png", "pinhole-7.png"]);
    assert_eq!(place.names(), said);
}

#[test]
fn wrong_parts() {
    let place = Workplace::new();
    place.write("ae.safetensors", &safetensors(&[("decoder.up.0.block.0.conv1.bias", &[3], &[1.0, 2.0, 3.0])]));
    place.write("lora.safetensors", &safetensors(&[("x.lora_A.weight", &[3], &[1.0, 2.0, 3.0])]));
    place.write("vae/diffusion_pytorch_model.safetensors", &safetensors(&[("x", &[1, 2], &[1.0, 2.0])]));
    place.write("two/a.safetensors", &safetensors(&[("decoder.up.0.block.0.conv1.bias", &[1], &[1.0])]));
    place.write("two/b.safetensors", &safetensors(&[("vae.decoder.up.0.block.0.conv1.bias", &[1], &[1.0])]));
    let with = |name: &str, arguments: &[&str]| {
        place
            .run(&[&["generate", "-p", "a red circle"], arguments].concat())
            .snapshot(&format!("generate_parts_{name}"));
    };
    with("none", &[]);
    with("missing", &["--transformer", "no.gguf"]);
    with("other", &["-m", "mini", "--transformer", "ae.safetensors"]);
    with("lora", &["-m", "mini", "--transformer", "lora.safetensors"]);
    with("folder", &["-m", "mini", "--transformer", "vae"]);
    with("incomplete", &["--vae", "ae.safetensors"]);
    with("two", &["-m", "two"]);
    with("tokenizer", &["-m", "mini", "--tokenizer-2", "ae.safetensors"]);
}

#[test]
fn the_report_says_everything() {
    let place = Workplace::new();
    let arguments = small(&["--seed", "7", "-o", "a.png", "--batch", "2", "--save-latents", "l.safetensors"]);
    let mut report = place.json(&arguments);
    let total = report["seconds"]["total"].as_f64().unwrap();
    let phases = report["seconds"].as_object_mut().unwrap();
    let parts: f64 = phases.iter().filter(|(phase, _)| *phase != "total").map(|(_, time)| time.as_f64().unwrap()).sum();
    assert!(parts <= total, "{parts} of {total} s");
    phases.values_mut().for_each(|time| *time = json!("[time]"));
    for (key, value) in report["memory"].as_object_mut().unwrap() {
        let said = value.is_object() || value.as_u64().is_some_and(|bytes| bytes > 0);
        assert!(said || !cfg!(target_os = "linux"), "{key}: {value}");
        *value = json!("[bytes]");
    }
    for component in report["plan"]["components"].as_array_mut().unwrap() {
        // The CPU's work space depends on its threads.
        (component["peak"], component["peak_bytes"]) = (json!("[bytes]"), json!("[bytes]"));
    }
    for key in ["peak_bytes", "host_limit_bytes", "host_peak_bytes"] {
        report["plan"][key] = json!("[bytes]");
    }
    report["version"] = json!("[version]");
    snapshot("generate_json", &serde_json::to_string_pretty(&report).unwrap());
    assert_eq!(place.names(), ["a-1.png", "a-2.png", "l.safetensors"]);
}

#[test]
fn json_is_the_only_thing_on_stdout_and_quiet_says_nothing() {
    let place = Workplace::new();
    let outcome = place.run(&small(&["-o", "a.png", "--json", "--quiet"]));
    serde_json::from_str::<Value>(&outcome.stdout).unwrap();
    assert_eq!(outcome.stderr, "");
}

#[test]
fn pictures_carry_what_made_them() {
    let place = Workplace::new();
    place.run(&small(&["--seed", "3", "-o", "a.png", "--cfg-scale", "2.5", "--negative-prompt", "grün"]));
    let texts = texts(&place.path("a.png"));
    let text = |keyword: &str| &texts.iter().find(|(other, _)| other == keyword).unwrap().1;
    let expected = format!(
        "a red circle\nNegative prompt: grün\nSteps: 2, Sampler: Euler, Schedule type: Normal, CFG scale: 2.5, Seed: 3, Size: 64x48, \
         Model: mini, Version: pinhole {}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(text("parameters"), &expected);
    let inside: Value = serde_json::from_str(text("pinhole")).unwrap();
    assert_eq!((&inside["seed"], &inside["cfg_scale"], &inside["width"]), (&json!(3), &json!(2.5), &json!(64)));
}

/// What a picture says of its sampler makes the same picture again.
#[test]
fn samplers_and_schedules_are_read_back() {
    let place = Workplace::new();
    let parameters = |file: &str| {
        let texts = texts(&place.path(file));
        texts.into_iter().find(|(keyword, _)| keyword == "parameters").unwrap().1
    };
    place.run(&small(&["--seed", "3", "-o", "a.png", "--sampler", "UniPC Karras"]));
    assert!(parameters("a.png").contains("Sampler: UniPC, Schedule type: Karras,"), "{}", parameters("a.png"));
    place.run(&small(&["--seed", "3", "-o", "b.png", "--sampler", "unipc", "--schedule", "Karras"]));
    let open = |name| Image::open_png(&place.path(name)).unwrap();
    assert!(open("a.png") == open("b.png"));
    let sigmas = ["--cfg-scale", "2", "--rescale-cfg", "0.5", "--sigmas", "1, 0.25"];
    place.run(&small(&[&["--seed", "3", "-o", "c.png"], &sigmas[..]].concat()));
    let said = parameters("c.png");
    assert!(said.contains("Sampler: Euler, Sigmas: \"1,0.25\", CFG scale: 2, CFG rescale: 0.5,"), "{said}");
}

#[test]
fn what_a_cache_skipped_is_said() {
    let place = Workplace::new();
    let run = |cache: &str| {
        let size = ["--width", "64", "--height", "48", "--steps", "6", "--cfg-scale", "2", "--seed", "3"];
        let report = place.json(&[&SMALL[..5], &size, &["-o", "a.png", "--cache", cache]].concat());
        let inside = texts(&place.path("a.png"));
        let text = |keyword: &str| inside.iter().find(|(other, _)| other == keyword).unwrap().1.clone();
        let json: Value = serde_json::from_str(&text("pinhole")).unwrap();
        assert_eq!(json["computed"], report["computed"]);
        assert_eq!(json["cache"], report["parameters"]["cache"]);
        (report, text("parameters"))
    };
    let (report, parameters) = run("none");
    assert!(report["computed"].is_null() && report["parameters"]["cache"].is_null());
    assert!(!parameters.contains("cache") && !parameters.contains("Skipped"), "{parameters}");
    // Both passes skip the same.
    let (report, parameters) = run("taylorseer:2");
    assert_eq!(report["computed"], json!([true, true, true, false, true, false]));
    assert_eq!(report["parameters"]["cache"], json!({"kind": "taylorseer", "threshold": 2.0}));
    assert!(parameters.contains("Step cache: \"taylorseer:2\", Skipped evaluations: 4/6,"), "{parameters}");
}

#[test]
fn exact_attention_is_said() {
    let place = Workplace::new();
    let drawn = |file: &str, more: &[&str]| {
        let report = place.json(&[&small(&["--seed", "3", "-o", file])[..], more].concat());
        let inside = texts(&place.path(file));
        let text = |keyword: &str| inside.iter().find(|(other, _)| other == keyword).unwrap().1.clone();
        let json: Value = serde_json::from_str(&text("pinhole")).unwrap();
        assert_eq!(json["attention"], report["parameters"]["attention"]);
        (report["parameters"]["attention"].clone(), text("parameters"))
    };
    let (said, parameters) = drawn("auto.png", &[]);
    assert!(said.is_null() && !parameters.contains("Attention"), "{parameters}");
    let (said, parameters) = drawn("exact.png", &["--attention", "exact"]);
    assert_eq!(said, json!("exact"));
    assert!(parameters.contains("Attention: exact,"), "{parameters}");
    place.run(&["compare", "auto.png", "exact.png", "--min-ssim", "0.99"]);
}

#[test]
fn a_batch_is_its_seeds_one_after_the_other() {
    let place = Workplace::new();
    let batch = place.run(&small(&["--seed", "5", "--batch", "2", "-o", "b.png"]));
    assert_eq!(batch.stdout, "b-1.png\nb-2.png\n");
    for (name, seed) in [("b-1.png", "5"), ("b-2.png", "6")] {
        place.run(&small(&["--seed", seed, "-o", "single.png"]));
        let open = |name| Image::open_png(&place.path(name)).unwrap();
        assert!(open(name) == open("single.png"), "seed {seed}");
    }
}

#[test]
fn noise_from_a_file_is_that_of_its_seed() {
    let place = Workplace::new();
    let noise = randn(9, 16 * 6 * 8).unwrap();
    place.write("noise.safetensors", &safetensors(&[("noise", &[1, 16, 6, 8], &noise)]));
    place.run(&small(&["--noise", "noise.safetensors", "-o", "a.png", "--save-latents", "a.safetensors"]));
    place.run(&small(&["--seed", "9", "-o", "b.png", "--save-latents", "b.safetensors"]));
    assert!(Image::open_png(&place.path("a.png")).unwrap() == Image::open_png(&place.path("b.png")).unwrap());
    let latents = |name| pinhole::safetensors::open(&place.path(name)).unwrap();
    let (a, b) = (latents("a.safetensors"), latents("b.safetensors"));
    let [a, b] = [&a, &b].map(|index| index.get("latents").unwrap());
    assert_eq!(a.file_shape, [8, 6, 16, 1]);
    assert_eq!(a.bytes(), b.bytes());
    assert!(texts(&place.path("a.png")).iter().any(|(_, text)| text.contains("Noise: noise.safetensors")));
}

#[test]
fn pictures_that_no_one_named_are_not_replaced() {
    let place = Workplace::new();
    place.write("pinhole-4.png", b"precious");
    assert_eq!(place.run(&small(&["--seed", "4", "--batch", "2"])).stdout, "pinhole-4-2.png\npinhole-5.png\n");
    assert_eq!(fs::read(place.path("pinhole-4.png")).unwrap(), b"precious");
    let random = place.run(&small(&["-q"])).stdout;
    assert!(random.starts_with("pinhole-") && random != place.run(&small(&["-q"])).stdout, "{random}");
}

#[test]
fn an_empty_prompt_is_a_prompt() {
    let outcome = Workplace::new().run(&small(&["-p", "", "-o", "a.png"]));
    assert_eq!(outcome.code, 2, "given twice: {}", outcome.stderr);
    let arguments =
        ["generate", "-m", "mini", "-p", "", "--width", "64", "--height", "64", "--steps", "1", "-o", "a.png"];
    assert_eq!(Workplace::new().run(&arguments).code, 0);
}

#[test]
fn options_without_effect_are_warned_of() {
    let place = Workplace::new();
    place.write("noise.safetensors", &safetensors(&[("noise", &[1, 16, 6, 8], &[0.5; 768])]));
    let more = ["--seed", "1", "-o", "a.png", "--cfg-scale", "1", "--negative-prompt", "x", "--guidance", "3"];
    let more = [&more[..], &["--noise", "noise.safetensors"]].concat();
    place.run(&small(&more)).snapshot("generate_warnings");
}

#[test]
fn a_long_prompt_is_cut_with_a_warning() {
    let place = Workplace::new();
    let prompt = vec!["star"; 10_000].join(" ");
    let size = ["--width", "64", "--height", "64", "--steps", "1", "--seed", "1", "-o", "a.png"];
    place.run(&[&["generate", "-m", "mini", "-p", &prompt], &size[..]].concat()).snapshot("generate_long_prompt");
}

#[test]
fn wrong_options() {
    let place = Workplace::new();
    place.write("noise.safetensors", &safetensors(&[("noise", &[1, 16, 8, 8], &[0.0; 1024])]));
    place.write("nan.safetensors", &safetensors(&[("noise", &[1, 16, 6, 8], &[f32::NAN; 768])]));
    place.write("latents.safetensors", &safetensors(&[("latents", &[1], &[0.0])]));
    let mini = ["generate", "-m", "mini", "-p", "x", "-o", "a.png"];
    for (name, more) in [
        ("width", &["--width", "100"][..]),
        ("steps", &["--steps", "0"]),
        ("sampler", &["--sampler", "dpm++"]),
        ("sampler_for", &["--sampler", "DDIM"]),
        ("schedule", &["--schedule", "kl optimal"]),
        ("schedule_for", &["--sampler", "heun", "--schedule", "karras"]),
        ("schedules", &["--sampler", "UniPC Karras", "--schedule", "beta"]),
        ("sigmas", &["--sigmas", "0.5,1"]),
        ("sigmas_words", &["--sigmas", "high,low"]),
        ("sigmas_steps", &["--sigmas", "1,0.5", "--steps", "3"]),
        ("eta", &["--eta", "-0.5"]),
        ("eta_nan", &["--eta", "nan"]),
        ("rescale_cfg", &["--rescale-cfg", "2"]),
        ("cache", &["--cache", "tea"]),
        ("cache_threshold", &["--cache", "teacache:-0.5"]),
        ("cache_words", &["--cache", "teacache:high"]),
        ("caches", &["--cache", "teacache", "--cache", "first-block"]),
        ("device", &["--device", "gpu7"]),
        ("batch", &["--batch", "0"]),
        ("guidance", &["--guidance", "-1"]),
        ("cfg_scale", &["--cfg-scale", "nan"]),
        ("sequence_length", &["--max-sequence-length", "1000"]),
        ("threads", &["--threads", "0"]),
        ("frames", &["--frames", "5"]),
        ("fps", &["--fps", "23.976"]),
        ("fps_zero", &["--fps", "0"]),
        ("expert", &["--cfg-scale-2", "3"]),
        ("lora_high", &["--lora-high", "a.safetensors"]),
        ("noise_shape", &["--width", "64", "--height", "48", "--noise", "noise.safetensors"]),
        ("noise_nan", &["--width", "64", "--height", "48", "--noise", "nan.safetensors"]),
        ("noise_missing", &["--noise", "latents.safetensors"]),
        ("latents_unwritable", &["--save-latents", "no/such/l.safetensors"]),
    ] {
        place.run(&[&mini[..], more].concat()).snapshot(&format!("generate_wrong_{name}"));
    }
    let output = |output| place.run(&["generate", "-m", "mini", "-p", "x", "-o", output]);
    output("no/such/a.png").snapshot("generate_unwritable");
    output("a.gif").snapshot("generate_no_format");
    output("a.tiff").snapshot("generate_unknown_format");
    output("film/").snapshot("generate_folder_of_frames");
    assert_eq!(place.names(), ["latents.safetensors", "nan.safetensors", "noise.safetensors"]);
}

#[test]
fn wrong_models() {
    let place = Workplace::new();
    place.write("empty/readme.txt", b"nothing here");
    place.write("text.gguf", b"a file that is no GGUF");
    place.write("cut.gguf", &mini_bytes()[..1_000_000]);
    place.write("ae.safetensors", &safetensors(&[("x", &[1], &[0.0])]));
    for (name, model) in [
        ("missing", "missing.gguf"),
        ("no_model", "empty"),
        ("no_gguf", "text.gguf"),
        ("truncated", "cut.gguf"),
        ("component", "ae.safetensors"),
    ] {
        let arguments = ["generate", "-m", model, "-p", "x", "-o", "a.png"];
        place.run(&arguments).snapshot(&format!("generate_model_{name}"));
    }
}

/// Ctrl-C while the denoiser runs: exit code 130, a word, and no partial file.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing_behind() {
    use std::process::Command;
    use std::time::{Duration, Instant};

    let place = Workplace::new();
    let arguments = ["generate", "-m", "mini", "-p", "x", "-o", "a.png", "--steps", "900"];
    // The output is begun before the work.
    let child = super::convert::started(&place, &arguments, 0);
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    assert_eq!(output.status.code(), Some(130));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.ends_with("error: interrupted\n"), "{stderr}");
    assert_eq!(place.names(), [""; 0]);
}

/// The trace appears with the picture, has what computed and what was brought, and replaces traces alone.
#[test]
fn a_trace_is_written() {
    let place = Workplace::new();
    let draw = |more: &[&str]| place.run(&small(&[&["-o", "a.png", "--device", "cpu:discrete"], more].concat()));
    let streamed = ["--offload", "sequential", "--trace", "t.json"];
    assert_eq!(draw(&streamed).code, 0);
    let trace: Value = serde_json::from_slice(&fs::read(place.path("t.json")).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for kind in ["phase", "stage", "upload", "read", "wait for a slot"] {
        let mut of_kind = events.iter().filter(|event| event["cat"] == kind);
        assert!(of_kind.any(|event| event["dur"].as_f64().unwrap() >= 0.0), "{kind}: {trace}");
    }
    assert_eq!(draw(&streamed).code, 0, "a trace is replaced by a trace");
    place.write("notes.json", b"{}");
    let refused = draw(&["--trace", "notes.json"]);
    assert!(refused.code == 1 && refused.stderr.contains("it holds no trace"), "{}", refused.stderr);
    let refused = draw(&["--trace", "-"]);
    assert!(refused.code == 2 && refused.stderr.contains("--trace: expected a file"), "{}", refused.stderr);
    let failed = draw(&["--trace", "new.json", "--vram", "1M"]);
    assert_eq!((failed.code, place.names()), (1, vec!["a.png".to_owned(), "notes.json".into(), "t.json".into()]));
}
