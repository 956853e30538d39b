//! Models and ControlNets of full size, with weights that are not there: what a request is planned to take.

use pinhole::synthetic::{self, Architecture};

use super::*;

/// The file of `architecture` in `dir`.
fn written(dir: &Path, architecture: Architecture, file_type: &str) -> PathBuf {
    let path = dir.join(format!("{}-{file_type}.gguf", architecture.name()));
    let file_type = file_type.parse::<FileType>().unwrap();
    let options = synthetic::Options { architecture, file_type, blocks: None, hollow: true, only: None };
    synthetic::write(&path, &options, |_| Ok(())).unwrap();
    path
}

/// The least budget for a picture of the model at `model`, with guidance, and with the ControlNets at `controls`.
fn least(model: &Path, controls: Vec<PathBuf>, side: usize) -> usize {
    let followed = controls.iter().map(|_| Control::new(given::picture(64, 64))).collect();
    let additions = Additions { controls, ..Additions::default() };
    let pipeline = on(pipeline::open_with(&Source::open(model).unwrap(), &additions).unwrap(), "cpu:discrete");
    let request = Request {
        negative_prompt: Some("blurred".into()),
        cfg_scale: Some(5.0),
        width: Some(side),
        height: Some(side),
        controls: followed,
        ..Request::new("a lighthouse")
    };
    let components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
    let within = |bytes| {
        let limits = Limits { bytes: Some(bytes), ..Limits::default() };
        budget::plan(&components, Offload::Auto, &limits)
    };
    let refusal = within(1).unwrap_err();
    println!("least {} MiB, for the {}", refusal.least >> 20, refusal.component);
    for bytes in [refusal.least, 2 << 30, 3 << 30] {
        for component in within(bytes).iter().flat_map(|plan| &plan.components) {
            let (once, step) = (component.moved_once >> 20, component.moved_each_step >> 20);
            let (name, parts) = (component.name, component.parts.total() >> 20);
            println!(
                "  in {} MiB: {name}, {}: {parts} MiB, {once} MiB once, {step} MiB each step",
                bytes >> 20,
                component.batch
            );
        }
    }
    refusal.least
}

#[test]
fn a_model_has_a_plan_in_2_gib_and_with_a_control_in_3() {
    let dir = tempfile::tempdir().unwrap();
    for (model, control, side) in
        [(Architecture::SDXL, Architecture::SDXL_CONTROL, 1024), (Architecture::SD15, Architecture::SD15_CONTROL, 512)]
    {
        for file_type in ["q8_0", "q4_k_s"] {
            let name = format!("{} {file_type}", model.name());
            let [file, control] = [model, control].map(|architecture| written(dir.path(), architecture, file_type));
            for (controls, most) in [(Vec::new(), 2 << 30), (vec![control], 3 << 30)] {
                println!("{name}, {} ControlNets:", controls.len());
                let least = least(&file, controls, side);
                assert!(least <= most, "{name}: {least}, and not {most}");
            }
        }
    }
}
