//! InfiniteYou: a ControlNet that reads a face in the prompt's place. The expected numbers were recorded by
//! `tests/reference/infinite_you.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pinhole::image::Picture;
use pinhole::pipeline::{self, Additions, Control, MemoryOptions, Opened, Request, read_id_embedding};
use pinhole::plan::Offload;
use pinhole::source::Source;
use pinhole_quant::metrics;
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use tempfile::TempDir;

use super::{bits, bundled, converted, generate, on};
use crate::support::pickle::{Named, older};
use crate::support::synth::{Weight, weights};
use crate::support::{self, Golden, Layout, given, in_parts};

const MOST: f64 = 1e-9;

/// The golden, its model, its ControlNet as a directory, and its projector in a file.
struct Made {
    golden: Golden,
    dir: TempDir,
}

impl Made {
    fn new() -> Made {
        let (golden, dir) = (Golden::load("infinite_you"), tempfile::tempdir().unwrap());
        support::write_model(&dir.path().join("dev"), &Golden::load("dev"), &Layout::default());
        support::write_component(&dir.path().join("infuse"), &golden, "controlnet", &Layout::default());
        let mut tensors: Vec<Named> = weights(&golden, "projector")
            .into_iter()
            .map(|weight| (weight.name.clone(), weight.shape.clone(), weight.values()))
            .collect();
        fs::write(dir.path().join("image_proj_model.bin"), older(Some("image_proj"), &tensors)).unwrap();
        for (name, ..) in &mut tensors {
            *name = format!("image_proj.{name}");
        }
        write(&dir.path().join("projector.safetensors"), &tensors);
        Made { golden, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn opened(&self, projector: Option<&str>, infuse: PathBuf) -> pinhole::Result<Opened> {
        self.opened_with(&self.path("dev"), projector, infuse)
    }

    fn opened_with(&self, model: &Path, projector: Option<&str>, infuse: PathBuf) -> pinhole::Result<Opened> {
        let id_projector = projector.map(|name| self.path(name));
        let additions = Additions { controls: vec![infuse], id_projector, takes_id: true, ..Additions::default() };
        pipeline::open_with(&Source::open(model)?, &additions)
    }

    /// The numbers of a face by the formula.
    fn face(&self) -> Vec<f32> {
        let (shape, width) = (vec![1], self.golden.integer("/sizes/embedding") as usize);
        let weight = Weight {
            component: "id".into(),
            name: "face".into(),
            shape: [&shape[..], &[width]].concat(),
            scale: 1.5,
            offset: 0.0,
            first: Vec::new(),
            checksum: 0,
        };
        weight.values()
    }

    fn request(&self, case: &str) -> Request {
        let at = |key: &str| self.golden.at(&format!("/cases/{case}/{key}"));
        let whole = |key: &str| at(key).as_u64().unwrap() as usize;
        let number = |key: &str| at(key).as_f64().unwrap();
        let (width, height) = (whole("width"), whole("height"));
        let black = || Arc::new(Picture::from_rgb8(width, height, &vec![0; width * height * 3]).unwrap());
        let picture = if at("black").as_bool().unwrap() { black() } else { given::picture(width, height) };
        let (scale, start, end) = (number("control_scale") as f32, number("control_start"), number("control_end"));
        Request {
            prompt: at("prompt").as_str().unwrap().to_owned(),
            negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
            width: Some(width),
            height: Some(height),
            steps: Some(whole("steps")),
            seed: at("seed").as_u64().unwrap(),
            guidance: Some(number("guidance_scale") as f32),
            cfg_scale: Some(number("cfg_scale") as f32),
            max_sequence_length: Some(whole("max_sequence_length")),
            batch: whole("batch"),
            controls: vec![Control { scale, start, end, ..Control::new(picture) }],
            id_embedding: Some(self.face()),
            ..Request::default()
        }
    }
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn write(path: &Path, tensors: &[Named]) {
    let data: Vec<Vec<u8>> = tensors.iter().map(|(.., values)| bytes(values)).collect();
    let mut views = BTreeMap::new();
    for ((name, shape, _), data) in tensors.iter().zip(&data) {
        views.insert(name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap());
    }
    serialize_to_file(views, None, path).unwrap();
}

#[test]
fn latents_equal_diffusers() {
    let made = Made::new();
    let mut pipeline = on(made.opened(Some("projector.safetensors"), made.path("infuse")).unwrap(), "cpu");
    pipeline.set_remembered_bytes(0);
    let mut wrong = Vec::new();
    for case in made.golden.at("/cases").as_object().unwrap().keys() {
        let generated = generate(&mut pipeline, &made.request(case));
        let nmse = metrics::nmse(&made.golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
        println!("{case}: nmse {nmse:.2e} (at most {MOST:.0e})");
        if nmse > MOST {
            wrong.push(format!("{case}: {nmse:.2e}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    // PyTorch's own file, and the tokens as they are, draw the same.
    let request = Request { steps: Some(2), ..made.request("face_batch") };
    let expected = bits(&generate(&mut pipeline, &request));
    let mut pickled = on(made.opened(Some("image_proj_model.bin"), made.path("infuse")).unwrap(), "cpu");
    pickled.set_remembered_bytes(0);
    assert!(bits(&generate(&mut pickled, &request)) == expected, "other latents");
    let mut tokens = on(made.opened(None, made.path("infuse")).unwrap(), "cpu");
    tokens.set_remembered_bytes(0);
    let told = Request { id_embedding: Some(made.golden.f32("tokens")), ..request };
    let nmse = {
        let expected: Vec<f32> = expected.iter().map(|bits| f32::from_bits(*bits)).collect();
        metrics::nmse(&expected, &generate(&mut tokens, &told).latents).unwrap()
    };
    assert!(nmse < MOST, "{nmse:e}");
}

#[test]
fn streamed_equals_resident() {
    let made = Made::new();
    let request = Request { steps: Some(2), ..made.request("face_cfg") };
    for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
        let (mut model, mut infuse) = (made.path("dev"), made.path("infuse"));
        if let Some(file_type) = file_type {
            (model, infuse) = (bundled(&model, file_type), converted(&infuse, file_type));
        }
        let opened = made.opened_with(&model, Some("projector.safetensors"), infuse).unwrap();
        let mut pipeline = on(opened, "cpu:discrete");
        pipeline.set_remembered_bytes(0);
        let mut draw = |offload| {
            pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
            generate(&mut pipeline, &request)
        };
        let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
        assert!(resident.plan.all_resident && !streamed.plan.all_resident);
        assert!(bits(&resident) == bits(&streamed), "{file_type:?}: other latents");
        if file_type.is_none() {
            in_parts::draws_the_same(&mut pipeline, &Request { batch: 2, ..request.clone() }, "InfiniteYou");
        }
    }
}

#[test]
fn faces_that_do_not_fit() {
    let made = Made::new();
    let model = made.opened(Some("projector.safetensors"), made.path("infuse")).unwrap();
    let refused = |model: &Opened, id_embedding: Option<Vec<f32>>| {
        let request = Request { id_embedding, ..made.request("face") };
        pipeline::settings(model, &request).unwrap_err().to_string()
    };
    let expected = "--id-embedding: expected 48 numbers, or tokens of 256 numbers each, found 47 numbers";
    assert_eq!(refused(&model, Some(vec![0.5; 47])), expected);
    assert!(refused(&model, Some([vec![0.5; 47], vec![f32::NAN]].concat())).contains("finite numbers, found NaN"));
    assert!(refused(&model, Some(Vec::new())).contains("found 0 numbers"));
    assert!(refused(&model, None).starts_with("--id-embedding: expected the face"));
    let tokens = made.opened(None, made.path("infuse")).unwrap();
    let expected = "--id-embedding: expected tokens of 256 numbers each, found 48 numbers";
    assert_eq!(refused(&tokens, Some(vec![0.5; 48])), expected);
    // Without what reads it.
    let plain = super::open(&made.path("dev"), vec![made.path("infuse")]).unwrap();
    assert!(refused(&plain, Some(vec![0.5; 48])).contains("opened without what reads a face"));
    let alone = Additions { id_projector: Some(made.path("projector.safetensors")), ..Additions::default() };
    let error = pipeline::open_with(&Source::open(&made.path("dev")).unwrap(), &alone).err().unwrap().to_string();
    assert_eq!(error, "--id-projector: expected a ControlNet that reads the face, found none");
    // A pickle that wants to run something, and a projector of other widths.
    let evil = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/pickles/system.bin");
    let opened = |path: PathBuf| {
        let additions = Additions {
            controls: vec![made.path("infuse")],
            id_projector: Some(path),
            takes_id: true,
            ..Additions::default()
        };
        pipeline::open_with(&Source::open(&made.path("dev")).unwrap(), &additions).err().unwrap().to_string()
    };
    assert!(opened(evil).contains("found `posix.system`"));
    let narrow: Vec<Named> = weights(&made.golden, "projector").iter().map(narrowed).collect();
    write(&made.path("narrow.safetensors"), &narrow);
    let error = opened(made.path("narrow.safetensors"));
    assert!(
        error.contains("proj_out.weight: expected tokens of 256 numbers, as the transformer reads, found 192"),
        "{error}"
    );
}

/// A weight of the projector, with outputs of 192 numbers.
fn narrowed(weight: &Weight) -> Named {
    let (mut shape, mut values) = (weight.shape.clone(), weight.values());
    if weight.name.contains("_out.") && !weight.name.starts_with("layers") {
        shape[0] = 192;
        values.truncate(shape.iter().product());
    }
    (weight.name.clone(), shape, values)
}

#[test]
fn faces_are_read_from_every_kind_of_file() {
    let dir = tempfile::tempdir().unwrap();
    let face = [0.25f32, -1.5, 3.0];
    let path = dir.path().join("face.safetensors");
    write(&path, &[("embedding".into(), vec![1, 3], face.to_vec())]);
    assert_eq!(read_id_embedding(&path).unwrap(), face);
    let array = dir.path().join("face.npy");
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }\n";
    let start = [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(&array, [start, bytes(&face)].concat()).unwrap();
    assert_eq!(read_id_embedding(&array).unwrap(), face);
    let pickled = dir.path().join("face.pt");
    fs::write(&pickled, older(Some("image_proj"), &[("face".into(), vec![1, 3], face.to_vec())])).unwrap();
    assert_eq!(read_id_embedding(&pickled).unwrap(), face);
    write(&path, &[("a".into(), vec![1], vec![1.0]), ("b".into(), vec![1], vec![1.0])]);
    let error = read_id_embedding(&path).unwrap_err().to_string();
    assert!(error.ends_with("face: expected one tensor, found several: a, b"), "{error}");
}
