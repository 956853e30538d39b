//! LoRAs against diffusers: latents with merged weights, as `tests/reference/lora.py` recorded them, from files in every spelling;
//! streamed as resident, and planned as measured; and files that are refused.

mod control;
mod kernels;
mod merge;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::support::lora::Tensor;
use crate::support::{self, Golden, Layout, Parts};
use pinhole::bind::lora;
use pinhole::convert::{self, WriteOptions};
use pinhole::error::Error;
use pinhole::ggml::{CancelFlag, Device};
use pinhole::pipeline::{self, Additions, Generated, MemoryOptions, Pipeline, Request};
use pinhole::plan::Offload;
use pinhole::source::Source;
use pinhole_quant::metrics;
use pinhole_quant::recipe::FileType;

/// What single precision and the order of sums make of latents at most.
const MOST: f64 = 1e-7;

/// The synthetic model, LoRAs for it, and what is drawn.
struct Case {
    golden: Golden,
    dir: tempfile::TempDir,
}

impl Case {
    fn new() -> Case {
        let dir = tempfile::tempdir().unwrap();
        support::write_model(&dir.path().join("dev"), &Golden::load("dev"), &Layout::default());
        Case { golden: Golden::load("lora"), dir }
    }

    fn source(&self) -> Source {
        Source::open(&self.dir.path().join("dev")).unwrap()
    }

    /// The parts of the model, to be looked into.
    fn parts(&self) -> Parts {
        Parts::open(&self.source()).unwrap()
    }

    /// Writes a file of a set.
    fn file(&self, set: &str, file: &str) -> PathBuf {
        let (tensors, metadata) = support::lora::file(&self.golden, set, file);
        support::lora::write(self.dir.path(), file, &tensors, metadata)
    }

    /// Writes a file of a set, changed.
    fn changed(&self, set: &str, file: &str, change: impl FnOnce(&mut BTreeMap<String, Tensor>)) -> PathBuf {
        let (mut tensors, metadata) = support::lora::file(&self.golden, set, file);
        change(&mut tensors);
        support::lora::write(self.dir.path(), "changed", &tensors, metadata)
    }

    fn files(&self, set: &str) -> Vec<String> {
        self.golden.at(&format!("/sets/{set}")).as_object().unwrap().keys().cloned().collect()
    }

    fn pipeline(&self, source: &Source, loras: &[(PathBuf, f32)], device: &str) -> Pipeline {
        let additions = Additions { loras: loras.to_vec(), ..Additions::default() };
        let model = pipeline::open_with(source, &additions).unwrap();
        model.loras.iter().for_each(|report| assert_eq!(report.unused, [""; 0], "{}", report.path.display()));
        Pipeline::with_threads(model, Device::by_name(device).unwrap(), 2, CancelFlag::new()).unwrap()
    }

    fn draw(&self, pipeline: &mut Pipeline) -> Generated {
        pipeline.generate(&self.golden.request("/generate")).unwrap()
    }

    fn latents(&self, loras: &[(PathBuf, f32)]) -> Vec<f32> {
        self.draw(&mut self.pipeline(&self.source(), loras, "cpu")).latents
    }

    #[track_caller]
    fn assert_drawn(&self, what: &str, recorded: &str, loras: &[(PathBuf, f32)]) {
        let nmse = metrics::nmse(&self.golden.f32(recorded), &self.latents(loras)).unwrap();
        println!("{what}: nmse {nmse:.2e} (at most {MOST:.0e})");
        assert!(nmse <= MOST, "{what}: nmse {nmse:e}");
    }

    fn refused(&self, path: &Path) -> Error {
        lora::add(path, 1.0, &mut self.parts().lora_targets()).unwrap_err()
    }
}

#[test]
fn every_spelling_draws_what_diffusers_draws_with_merged_weights() {
    let case = Case::new();
    for set in ["plain", "xlabs", "dora", "loha", "lokr", "diffs", "text"] {
        for file in case.files(set) {
            case.assert_drawn(&file, set, &[(case.file(set, &file), 1.0)]);
        }
    }
}

#[test]
fn several_loras_add_up_with_their_strengths() {
    let case = Case::new();
    let (plain, lokr) = (case.file("plain", "kohya"), case.file("lokr", "lokr"));
    case.assert_drawn("two", "two", &[(plain.clone(), 0.6), (lokr, -0.8)]);
    case.assert_drawn("half a DoRA", "dora.half", &[(case.file("dora", "dora-kohya"), 0.5)]);
    case.assert_drawn("none", "base", &[]);
    let nothing = [(plain, 0.0), (case.file("dora", "dora-peft"), 0.0)];
    assert_eq!(case.latents(&[]), case.latents(&nothing), "a LoRA of strength 0 changes something");
}

/// What a merge makes of every weight is what branches compute with: the same latents from weights with nothing beside them.
#[test]
fn merged_weights_are_those_of_the_recorded_latents() {
    let case = Case::new();
    for (set, file) in
        [("plain", "kohya"), ("dora", "dora-kohya"), ("loha", "loha"), ("lokr", "lokr"), ("diffs", "diffs")]
    {
        let mut model = case.parts();
        let targets = model.lora_targets();
        let bases = targets.each_ref().map(lora::Target::base);
        let (merged, _) = lora::merged(&[(case.file(set, file), 1.0)], &bases).unwrap();
        let (target, merged) = (&targets[0], &merged[0]);
        let mut changed = 0;
        for (id, weight) in target.model.manifest().iter() {
            let was = target.bound.read_f32(id).unwrap();
            let now = merged.read_f32(target.model.manifest(), target.bound, id).unwrap();
            assert_eq!(was != now, merged.changes(id), "{file}: {}", weight.name);
            changed += usize::from(was != now);
            // Some rows at a time are the same as all.
            let changes = merged.of(id).unwrap();
            let mut rows = was;
            for (i, part) in rows.chunks_mut(3 * changes.row()).enumerate() {
                changes.apply(3 * i * changes.row(), part).unwrap();
            }
            assert_eq!(rows, now, "{file}: {}", weight.name);
        }
        assert!(changed > 2, "{file}: {changed} weights");
    }
}

#[test]
fn quantized_weights_differ_by_their_own_error_alone() {
    let case = Case::new();
    let model = pipeline::open(&case.source()).unwrap();
    let lora = [(case.file("plain", "kohya"), 1.0)];
    for name in ["f16", "bf16", "q8_0", "q4_k_s"] {
        let path = case.dir.path().join(format!("{name}.gguf"));
        let file_type = name.parse::<FileType>().unwrap();
        let plan = convert::plan(&model.source, &model.networks(), file_type).unwrap();
        plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
        let open = || Source::open(&path).unwrap();
        let alone = case.draw(&mut case.pipeline(&open(), &[], "cpu")).latents;
        let with = case.draw(&mut case.pipeline(&open(), &lora, "cpu")).latents;
        let own = metrics::nmse(&case.golden.f32("base"), &alone).unwrap();
        let nmse = metrics::nmse(&case.golden.f32("plain"), &with).unwrap();
        println!("{name}: nmse {nmse:.2e} with a LoRA, {own:.2e} without");
        assert!(nmse < 3.0 * own, "{name}: {nmse:e} with a LoRA, {own:e} without");

        let mut card = case.pipeline(&open(), &lora, "cpu:discrete");
        card.set_remembered_bytes(0);
        let mut drawn = Vec::new();
        for offload in [Offload::None, Offload::Model, Offload::Sequential] {
            card.set_memory(MemoryOptions { vram: None, offload, host: None });
            let generated = case.draw(&mut card);
            for phase in &generated.phases {
                assert_eq!(phase.measured.peak, phase.planned, "{name}, {offload:?}, {:?}", phase.phase);
            }
            drawn.push(generated.latents);
        }
        assert!(drawn.iter().all(|latents| *latents == drawn[0]), "{name}: streamed is not resident");
    }
}

#[test]
fn every_type_streams_as_it_stays() {
    let case = Case::new();
    let model = pipeline::open(&case.source()).unwrap();
    let loras = [(case.file("plain", "kohya"), 1.0), (case.file("lokr", "lokr"), 0.5)];
    let request = Request { steps: Some(1), ..case.golden.request("/generate") };
    for file_type in FileType::all() {
        let path = case.dir.path().join(format!("{file_type}.gguf"));
        let plan = convert::plan(&model.source, &model.networks(), file_type).unwrap();
        plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
        let mut card = case.pipeline(&Source::open(&path).unwrap(), &loras, "cpu:discrete");
        card.set_remembered_bytes(0);
        let mut drawn = Vec::new();
        for offload in [Offload::None, Offload::Sequential] {
            card.set_memory(MemoryOptions { vram: None, offload, host: None });
            let generated = card.generate(&request).unwrap();
            for phase in &generated.phases {
                assert_eq!(phase.measured.peak, phase.planned, "{file_type}, {offload:?}, {:?}", phase.phase);
            }
            drawn.push(generated.latents);
        }
        assert!(drawn[0] == drawn[1], "{file_type}: streamed is not resident");
    }
}

/// Forms that need memory of their own stream as all else.
#[test]
fn every_form_streams_as_it_stays() {
    let case = Case::new();
    for (set, file) in
        [("dora", "dora-kohya"), ("loha", "loha"), ("lokr", "lokr"), ("diffs", "diffs"), ("text", "text-kohya")]
    {
        let mut card = case.pipeline(&case.source(), &[(case.file(set, file), 1.0)], "cpu:discrete");
        card.set_remembered_bytes(0);
        let mut drawn = Vec::new();
        for offload in [Offload::None, Offload::Sequential] {
            card.set_memory(MemoryOptions { vram: None, offload, host: None });
            let generated = case.draw(&mut card);
            for phase in &generated.phases {
                assert_eq!(phase.measured.peak, phase.planned, "{file}, {offload:?}, {:?}", phase.phase);
            }
            drawn.push(generated.latents);
        }
        assert_eq!(drawn[0], drawn[1], "{file}: streamed is not resident");
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let case = Case::new();
    let name = "lora_unet_double_blocks_0_img_attn_qkv";
    let (down, up) = (format!("{name}.lora_down.weight"), format!("{name}.lora_up.weight"));
    type Change<'a> = Box<dyn Fn(&mut BTreeMap<String, Tensor>) + 'a>;
    let shape = |name: &str, shape: [usize; 2]| -> Change<'_> {
        let name = name.to_owned();
        Box::new(move |tensors| {
            let values = vec![0.5; shape[0] * shape[1]];
            tensors.insert(name.clone(), Tensor { shape: shape.to_vec(), values });
        })
    };
    let changes: [(&str, Change<'_>, &str); 7] = [
        ("rows too many", shape(&up, [769, 4]), "768 outputs"),
        ("columns too many", shape(&down, [4, 257]), "256 columns"),
        ("other ranks", shape(&up, [768, 5]), "the rank of its down, 4"),
        ("not a number", Box::new(|tensors| tensors.get_mut(&down).unwrap().values[7] = f32::NAN), "not finite"),
        ("no counterpart", Box::new(|tensors| drop(tensors.remove(&up))), "lora_up or lora_B beside it"),
        (
            "another block",
            Box::new(|tensors| {
                for (name, tensor) in std::mem::take(tensors) {
                    tensors.insert(name.replace("double_blocks_0_img_mlp_0", "double_blocks_7_img_mlp_0"), tensor);
                }
            }),
            "blocks that this model has",
        ),
        ("two alphas", shape(&format!("{name}.alpha"), [1, 2]), "one number"),
    ];
    for (what, change, expected) in changes {
        let path = case.changed("plain", "kohya", change);
        let error = case.refused(&path).to_string();
        println!("{what}: {error}");
        assert!(error.contains(expected) && error.contains("changed.safetensors"), "{what}: {error}");
    }
    let wide = case.changed(
        "plain",
        "diffusers",
        shape("transformer.single_transformer_blocks.1.attn.to_k.lora_B.weight", [257, 4]),
    );
    let error = case.refused(&wide).to_string();
    assert!(error.contains("attn.to_k.lora_B.weight") && error.contains("1792 outputs"), "{error}");
}

/// Rows of tables that stay on the host are looked up with their change.
#[test]
fn tables_on_the_host_change_as_well() {
    let case = Case::new();
    let name = "lora_te1_text_model_embeddings_token_embedding";
    let mut model = case.parts();
    let [table, width] = [model.clip_config.vocab_size, model.clip_config.hidden_size];
    let numbers = |shape: [usize; 2]| {
        let values = (0..shape[0] * shape[1]).map(|i| (i % 13) as f32 * 0.01).collect();
        Tensor { shape: shape.to_vec(), values }
    };
    let (down, up) = (numbers([2, width]), numbers([table, 2]));
    let tensors = [(format!("{name}.lora_down.weight"), down.clone()), (format!("{name}.lora_up.weight"), up.clone())];
    let path = support::lora::write(case.dir.path(), "table", &tensors.into(), Vec::new());
    let rows = |model: &Parts| model.clip.bound.gather(model.clip.net.token_embedding, width, &[5, 690]).unwrap();
    let was = rows(&model);
    lora::add(&path, -0.5, &mut model.lora_targets()).unwrap();
    let now = rows(&model);
    for (row, id) in [5, 690].into_iter().enumerate() {
        for column in 0..width {
            let change: f32 = (0..2).map(|r| up.values[2 * id + r] * down.values[r * width + column]).sum();
            let expected = was[row * width + column] - 0.5 * change;
            assert!((now[row * width + column] - expected).abs() < 1e-6, "row {id}, column {column}");
        }
    }
}

/// What changes a vector or a table of a text encoder in memory changes the key of a kept prompt, and so does its strength.
#[test]
fn prompts_are_kept_apart_by_loras_and_their_strengths() {
    let case = Case::new();
    let model = case.parts();
    let [table, width] = [model.clip_config.vocab_size, model.clip_config.hidden_size];
    let numbers = |shape: &[usize]| {
        let values = (0..shape.iter().product()).map(|i| (i % 13) as f32 * 0.01).collect();
        Tensor { shape: shape.to_vec(), values }
    };
    let vector = "lora_te1_text_model_final_layer_norm.diff";
    let rows = "lora_te1_text_model_embeddings_token_embedding";
    let tables = [
        (format!("{rows}.lora_down.weight"), numbers(&[2, width])),
        (format!("{rows}.lora_up.weight"), numbers(&[table, 2])),
    ];
    let vector =
        support::lora::write(case.dir.path(), "vector", &[(vector.to_owned(), numbers(&[width]))].into(), Vec::new());
    let table = support::lora::write(case.dir.path(), "table", &tables.into(), Vec::new());
    let folder = case.dir.path().join("cache");
    let source = case.source();
    let mut drawn: Vec<Vec<f32>> = Vec::new();
    for loras in [vec![], vec![(&vector, 1.0)], vec![(&vector, 0.5)], vec![(&table, 1.0)], vec![(&table, 0.5)]] {
        let loras: Vec<(PathBuf, f32)> = loras.into_iter().map(|(path, strength)| (path.clone(), strength)).collect();
        for again in [false, true] {
            let mut pipeline = case.pipeline(&source, &loras, "cpu");
            pipeline.set_prompt_cache(Some(&folder)).unwrap();
            let generated = case.draw(&mut pipeline);
            assert_eq!(generated.timings.contains_key("encode"), !again, "{loras:?}");
            match again {
                true => assert_eq!(drawn.last(), Some(&generated.latents), "{loras:?}"),
                false => {
                    assert!(!drawn.contains(&generated.latents), "{loras:?}");
                    drawn.push(generated.latents);
                }
            }
        }
    }
}

#[test]
fn another_familys_lora_is_known_for_what_it_is() {
    let case = Case::new();
    let one = || Tensor { shape: vec![4, 768], values: vec![0.5; 4 * 768] };
    let tensors = |name: &str| [(format!("{name}.lora_down.weight"), one()), (format!("{name}.lora_up.weight"), one())];
    for (name, family) in [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", "SD1.5"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "SDXL"),
        ("lora_unet_blocks_0_cross_attn_q_self_attn", "Wan"),
    ] {
        let path = support::lora::write(case.dir.path(), "other", &tensors(name).into(), Vec::new());
        let error = case.refused(&path);
        assert!(
            error.to_string().contains("other.safetensors: LoRA: expected changes of this model's weights"),
            "{error}"
        );
        assert_eq!(error.hint(), Some(format!("it seems to be a LoRA for {family}").as_str()));
    }
    // What fits nothing beside what fits is counted, and named.
    let path = case.changed("plain", "kohya", |known| {
        known.extend(tensors("lora_unet_something_else"));
        known.insert("something".into(), one());
    });
    let report = lora::add(&path, 1.0, &mut case.parts().lora_targets()).unwrap();
    assert_eq!((report.unused.len(), report.family), (3, Some("FLUX.1")));
    assert!(report.warning().unwrap().contains("3 of its 57 tensors fit nothing"), "{:?}", report.warning());
}
