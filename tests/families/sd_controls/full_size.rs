//! ControlNets of full size, with weights that are not there: what a request is planned to take.

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

#[test]
fn a_model_with_a_control_has_a_plan_in_3_gib() {
    const MOST: usize = 3 << 30;
    let dir = tempfile::tempdir().unwrap();
    for (model, control, side) in
        [(Architecture::SDXL, Architecture::SDXL_CONTROL, 1024), (Architecture::SD15, Architecture::SD15_CONTROL, 512)]
    {
        for file_type in ["q8_0", "q4_k_s"] {
            let control = written(dir.path(), control, file_type);
            let additions = Additions { controls: vec![control], ..Additions::default() };
            let source = Source::open(&written(dir.path(), model, file_type)).unwrap();
            let pipeline = on(pipeline::open_with(&source, &additions).unwrap(), "cpu:discrete");
            let request = Request {
                negative_prompt: Some("blurred".into()),
                cfg_scale: Some(5.0),
                width: Some(side),
                height: Some(side),
                controls: vec![Control::new(given::picture(64, 64))],
                ..Request::new("a lighthouse")
            };
            let components = pipeline.measure(&pipeline.settings(&request).unwrap()).unwrap();
            let within = |bytes| {
                let limits = Limits { bytes: Some(bytes), ..Limits::default() };
                budget::plan(&components, Offload::Auto, &limits)
            };
            let refusal = within(1).unwrap_err();
            println!("{} {file_type}: least {} MiB, for the {}", model.name(), refusal.least >> 20, refusal.component);
            for bytes in [refusal.least, 2 << 30, MOST] {
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
            assert!(refusal.least <= MOST, "{} {file_type}: {}", model.name(), refusal.least);
        }
    }
}
