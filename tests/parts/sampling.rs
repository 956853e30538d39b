//! Noise and schedules against torch and diffusers, as recorded.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;

use crate::support::Golden;
use pinhole::Result;
use pinhole::sample::{
    DiscreteConfig, FlowMatchConfig, Levels, Noise, Prediction, Sampler, Sampling, Schedule, Scheduler, Space, Spacing,
    randn,
};
use pinhole_quant::metrics;
use serde_json::Value;

/// How far a number may be from torch's.
const MOST: f64 = 1e-6;

/// How many numbers the longest recorded draw has, and which of them were recorded.
const LONG: usize = 262_144;
const EVERY: usize = 1021;
const ENDS: usize = 16;

#[track_caller]
fn assert_close(what: &str, reference: &[f32], value: &[f32]) {
    let error = metrics::max_error(reference, value).unwrap_or_else(|| panic!("{what}: lengths differ"));
    assert!(error <= MOST, "{what}: off by {error}");
}

#[test]
fn noise_is_that_of_torch() {
    let golden = Golden::load("noise");
    for seed in [0, 42, (1 << 32) + 5, 1 << 63, u64::MAX] {
        for n in [5, 17, 64] {
            assert_close(&format!("seed {seed}, {n}"), &golden.f32(&format!("{seed}.{n}")), &randn(seed, n).unwrap());
        }
        let drawn = randn(seed, LONG).unwrap();
        let recorded = |part: &str| golden.f32(&format!("{seed}.{LONG}.{part}"));
        assert_close("first", &recorded("first"), &drawn[..ENDS]);
        assert_close("last", &recorded("last"), &drawn[LONG - ENDS..]);
        let sample: Vec<f32> = drawn.iter().copied().step_by(EVERY).collect();
        assert_close("sample", &recorded("sample"), &sample);
        let sums = golden.f64(&format!("{seed}.{LONG}.sums"));
        let sum: f64 = drawn.iter().copied().map(f64::from).sum();
        let absolute: f64 = drawn.iter().map(|value| f64::from(value.abs())).sum();
        let most = MOST * LONG as f64;
        assert!((sum - sums[0]).abs() <= most && (absolute - sums[1]).abs() <= most, "{sum} {absolute} {sums:?}");
    }
}

#[test]
fn sigmas_are_those_of_diffusers() {
    let golden = Golden::load("sigmas");
    for (i, schedule) in golden.list("/schedules").iter().enumerate() {
        let text = schedule["scheduler"].to_string();
        let config = FlowMatchConfig::from_json(&text, Path::new("scheduler_config.json")).unwrap();
        for (j, run) in golden.list(&format!("/schedules/{i}/runs")).iter().enumerate() {
            let [steps, tokens] = ["steps", "tokens"].map(|key| run[key].as_u64().unwrap() as usize);
            let recorded = golden.numbers(&format!("/schedules/{i}/runs/{j}/sigmas"));
            let sigmas = config.sigmas(steps, tokens).unwrap();
            let what = format!("{} at {steps} steps, {tokens} tokens", schedule["name"]);
            assert_close(&what, &recorded, &sigmas);
        }
    }
}

/// How far latents may be from diffusers', as a mean square over theirs.
const MOST_NMSE: f64 = 1e-12;

/// Reads a list of recorded numbers from its front.
struct Reader<'a>(&'a [f32]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> &'a [f32] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }
}

/// The model of tests/reference/samplers.py.
fn model(x: &[f32], time: f32) -> Vec<f32> {
    let mut output = Vec::new();
    for (j, x) in x.iter().enumerate() {
        let pattern = ((j * 7 % 11) as f32 - 5.0) * 0.125;
        output.push(x / (x.abs() + 1.0) + pattern * (time * 0.000_976_562_5));
    }
    output
}

/// One recorded request.
struct Case {
    name: String,
    scheduler: Scheduler,
    sampling: Sampling,
    steps: usize,
    strength: Option<f32>,
    pictures: usize,
    times: usize,
    sigmas: usize,
}

impl Case {
    fn read(value: &Value, configs: &[Value]) -> Case {
        let count = |key| value[key].as_u64().map(|count| count as usize);
        let number = |key| value[key].as_f64().map(|number| number as f32);
        let text = configs[count("config").unwrap()]["text"].as_str().unwrap();
        let sigmas = value["sigmas"].as_array();
        Case {
            name: value.to_string(),
            scheduler: Scheduler::from_json(text, Path::new("scheduler_config.json")).unwrap(),
            sampling: Sampling {
                sampler: Some(value["sampler"].as_str().unwrap().parse().unwrap()),
                schedule: value["schedule"].as_str().map(|name| name.parse().unwrap()),
                sigmas: sigmas.map(|list| list.iter().map(|sigma| sigma.as_f64().unwrap() as f32).collect()),
                eta: number("eta"),
                shift: None,
            },
            steps: count("steps").unwrap(),
            strength: number("strength"),
            pictures: count("pictures").unwrap_or(1),
            times: count("times_count").unwrap(),
            sigmas: count("sigmas_count").unwrap(),
        }
    }

    /// The levels, and the latents that the first evaluation begins with.
    fn begin(&self, tokens: usize, noise: &[f32], width: usize) -> Result<(Levels, Vec<f32>)> {
        let levels = self.scheduler.levels(&self.scheduler.choose(&self.sampling)?, self.steps, tokens)?;
        let Some(strength) = self.strength else {
            let x = noise.iter().map(|noise| noise * levels.start()).collect();
            return Ok((levels, x));
        };
        let first = levels.first_of(strength)?;
        let levels = levels.starting_at(first)?;
        let flipped: Vec<f32> = noise.chunks_exact(width).flat_map(|row| row.iter().rev().copied()).collect();
        let x = levels.mixed(&model(&flipped, 700.0), noise, 0)?;
        Ok((levels, x))
    }
}

/// How far timesteps that are not whole may be from diffusers': they are interpolated between logarithms, in single precision
/// in some places.
const MOST_TIME: f32 = 2e-4;

/// What is wrong with the levels of a case.
fn wrong_levels(case: &Case, levels: &Levels, times: &[f32], sigmas: &[f32]) -> Option<String> {
    if times.len() != levels.len() {
        return Some(format!("{} evaluations for {}", levels.len(), times.len()));
    }
    for (wanted, found) in times.iter().zip(&levels.times) {
        let is_middle = levels.space == Space::Sigmas && levels.sampler.order() == 2;
        let is_whole = levels.space == Space::Alphas || *wanted == wanted.trunc() && !is_middle;
        let most = if is_whole { 0.0 } else { MOST_TIME };
        if (wanted - found).abs() > most {
            return Some(format!("timestep {found} for {wanted}"));
        }
    }
    for (wanted, found) in sigmas.iter().take(case.sigmas).zip(&levels.sigmas) {
        if (wanted - found).abs() > 1e-6 * wanted {
            return Some(format!("sigma {found} for {wanted}"));
        }
    }
    None
}

fn nmse(wanted: &[f32], found: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let error: f64 = wanted.iter().zip(found).map(|(wanted, found)| square(wanted - found)).sum();
    error / wanted.iter().map(|&wanted| square(wanted)).sum::<f64>()
}

#[test]
fn samplers_are_those_of_diffusers() {
    let golden = Golden::load("samplers");
    let numbers = golden.f32("numbers");
    let mut reader = Reader(&numbers);
    let (mut wrong, mut worst) = (Vec::new(), BTreeMap::new());
    for value in golden.list("/cases") {
        let case = Case::read(value, golden.list("/configs"));
        match replay(&golden, &case, &mut reader) {
            Ok(error) => {
                let worst: &mut f64 = worst.entry(case.sampling.sampler.unwrap().name()).or_default();
                *worst = worst.max(error);
            }
            Err(what) => wrong.push(format!("{what}: {}", case.name)),
        }
    }
    assert!(reader.0.is_empty());
    println!("{} cases, the worst NMSE of each sampler:", golden.list("/cases").len());
    for (sampler, error) in worst {
        println!("{sampler:12} {error:.1e}");
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Takes the steps of a case, and returns how far the latents were away at most, as a mean square over theirs.
fn replay(golden: &Golden, case: &Case, reader: &mut Reader<'_>) -> Result<f64, String> {
    let [seed, tokens, each, long] = ["/seed", "/tokens", "/each", "/long"].map(|at| golden.integer(at));
    let (start, times, sigmas) = (reader.take(1)[0], reader.take(case.times), reader.take(case.sigmas));
    let count = case.pictures * each as usize;
    let recorded = if case.steps >= long as usize { 2 } else { case.times + 1 };
    let mut latents = Reader(reader.take(recorded * count));
    let mut noise = Noise::new(seed, case.pictures);
    let first = noise.draw(each as usize).unwrap();
    let (levels, mut x) = case.begin(tokens as usize, &first, 3).map_err(|error| error.to_string())?;
    if (levels.start() - start).abs() > 1e-6 * start {
        return Err(format!("begins with {} for {start}", levels.start()));
    }
    wrong_levels(case, &levels, times, sigmas).map_or(Ok(()), Err)?;
    let (mut solver, mut worst) = (levels.solver(), 0.0_f64);
    for i in 0..=levels.len() {
        if recorded > 2 || i == 0 || i == levels.len() {
            let wanted = latents.take(count);
            let error = nmse(wanted, &x);
            let most = MOST_NMSE;
            if error.is_nan() || error > most {
                return Err(format!("{error:.1e} before evaluation {i}, {x:?} for {wanted:?}"));
            }
            worst = worst.max(error);
            if i == 0 {
                // Noise is not torch's to the last digit, and where sigma is 4096 the first step magnifies that digit.
                x.copy_from_slice(wanted);
            }
        }
        if i < levels.len() {
            let input = solver.input(i, &levels, &x).unwrap();
            let output = model(&input, levels.times[i]);
            solver.step(i, &levels, &output, &mut x, &mut noise).unwrap();
        }
    }
    Ok(worst)
}

#[test]
fn whole_timesteps_are_those_of_diffusers() {
    let golden = Golden::load("samplers");
    for value in golden.list("/timesteps") {
        let sampler: Sampler = value["sampler"].as_str().unwrap().parse().unwrap();
        let spacing = match value["spacing"].as_str().unwrap() {
            "linspace" => Spacing::Linspace,
            "leading" => Spacing::Leading,
            _ => Spacing::Trailing,
        };
        let config = DiscreteConfig { timestep_spacing: Some(spacing), ..DiscreteConfig::stable_diffusion() };
        for (i, sum) in value["sums"].as_array().unwrap().iter().enumerate() {
            let levels = config.levels(&sampler.into(), i + 1).unwrap();
            let found: u64 = levels.times.iter().zip(1..).map(|(&time, place)| time as u64 * place).sum();
            assert_eq!(found, sum.as_u64().unwrap(), "{}, {} steps", value["name"], i + 1);
        }
    }
}

#[test]
fn noise_goes_on_as_torchs_generators_do() {
    let golden = Golden::load("samplers");
    let mut noise = Noise::new(golden.integer("/seed"), 2);
    let mut drawn = Vec::new();
    for each in golden.ids("/draws") {
        drawn.extend(noise.draw(each as usize).unwrap());
    }
    assert_close("draws", &golden.f32("draws"), &drawn);
}

/// The table of `docs/samplers.md`.
fn table() -> String {
    let mut table = "| sampler | elsewhere | over timesteps: Stable Diffusion | along a flow: FLUX.1 | evaluations | what it needs |\n|---|---|---|---|---|---|\n".to_owned();
    for &sampler in Sampler::ALL {
        let schedules = |is_flow| {
            let names: Vec<&str> = sampler.schedules(is_flow).iter().copied().map(Schedule::name).collect();
            if names.is_empty() { "-".to_owned() } else { names.join(", ") }
        };
        let [discrete, flow] = sampler.classes();
        let mut elsewhere = vec![sampler.label().to_owned()];
        elsewhere.extend([discrete, flow].iter().filter(|class| !class.is_empty()).map(|class| format!("`{class}`")));
        elsewhere.dedup();
        let evaluations = match (sampler, sampler.order()) {
            (Sampler::Pndm, _) => "N + 1",
            (_, 2) => "2N - 1",
            _ => "N",
        };
        let mut needs = Vec::new();
        match sampler {
            Sampler::Lcm | Sampler::Tcd => needs.push("a model that was distilled for it"),
            Sampler::EdmEuler => needs.push("a model with the preconditioning of Karras et al."),
            _ if !sampler.takes(Prediction::Sample) => needs.push("a model that predicts noise or v"),
            _ => {}
        }
        if sampler.draws() {
            needs.push("fresh noise");
        } else if sampler.most_eta().is_some() {
            needs.push("fresh noise if eta is above 0");
        }
        if needs.is_empty() {
            needs.push("-");
        }
        let cells = [
            sampler.name().to_owned(),
            elsewhere.join(", "),
            schedules(false),
            schedules(true),
            evaluations.into(),
            needs.join("; "),
        ];
        table += &format!("| `{}` | {} |\n", cells[0], cells[1..].join(" | "));
    }
    table
}

#[test]
fn the_table_of_the_documentation_is_that_of_the_samplers() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/samplers.md");
    let text = fs::read_to_string(&file).unwrap();
    let [begin, end] = ["<!-- table -->\n", "<!-- end of the table -->"].map(|mark| text.find(mark).unwrap());
    let begin = begin + "<!-- table -->\n".len();
    if env::var_os("PINHOLE_WRITE_DOCS").is_some() {
        fs::write(&file, [&text[..begin], &table(), &text[end..]].concat()).unwrap();
        return;
    }
    let hint = "PINHOLE_WRITE_DOCS=1 cargo test --release --test parts sampling::table";
    assert_eq!(text[begin..end], table(), "docs/samplers.md is out of date: {hint}");
}
