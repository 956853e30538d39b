//! IP-Adapters of Stable Diffusion 1 and XL, plain, Plus and for faces. The expected latents were recorded by `tests/reference/sd_image_prompts.py`.

use pinhole::convert::Target;
use pinhole::image::Picture;
use pinhole::source::slot;

use super::*;

/// The model of a golden, and what goes beside it.
struct Files {
    golden: Golden,
    dir: TempDir,
}

impl Files {
    fn of(name: &str) -> Files {
        let (golden, dir) = (Golden::load(name), tempfile::tempdir().unwrap());
        let base = Golden::load(golden.text("/model"));
        sd1::write_directory(&dir.path().join("model"), &base, base.at("/scheduler"));
        for component in golden.at("/components").as_object().unwrap().keys() {
            support::write_component(&dir.path().join(component), &golden, component, &Layout::default());
        }
        Files { golden, dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn additions(&self) -> Additions {
        let ip_adapter = Some(self.at("ip_adapter/ip_adapter.safetensors"));
        match self.golden.name.ends_with("_face") {
            true => Additions { ip_adapter, takes_id: true, ..Additions::default() },
            false => Additions { ip_adapter, image_encoders: vec![self.at("image_encoder")], ..Additions::default() },
        }
    }

    fn open(&self, additions: &Additions) -> pinhole::Result<Opened> {
        pipeline::open_with(&Source::open(&self.at("model"))?, additions)
    }

    /// The request of a case.
    fn request(&self, case: &str) -> Request {
        let at = |key: &str| self.golden.at(&format!("/cases/{case}/{key}"));
        let whole = |key: &str| at(key).as_u64().map(|number| number as usize);
        let number = |key: &str| at(key).as_f64().map(|number| number as f32);
        let picture = |size: &Value| -> Arc<Picture> {
            let side = |i: usize| size[i].as_u64().unwrap() as usize;
            given::picture(side(0), side(1))
        };
        Request {
            prompt: at("prompt").as_str().unwrap().to_owned(),
            negative_prompt: at("negative_prompt").as_str().map(str::to_owned),
            width: whole("width"),
            height: whole("height"),
            steps: whole("steps"),
            seed: at("seed").as_u64().unwrap(),
            cfg_scale: number("cfg_scale"),
            batch: whole("batch").unwrap(),
            ip_scale: number("ip_scale"),
            ip_images: at("pictures").as_array().unwrap().iter().map(picture).collect(),
            id_embedding: faces(whole("faces").unwrap()),
            ..Request::default()
        }
    }
}

/// What a program that recognises faces is meant to say of so many.
fn faces(count: usize) -> Option<Vec<f32>> {
    const NUMBERS: usize = 48;
    let mut faces = Vec::new();
    for number in 0..count {
        let one = support::synth::Weight {
            component: "face".into(),
            name: number.to_string(),
            shape: vec![NUMBERS],
            scale: 1.0,
            offset: 0.0,
            first: Vec::new(),
            checksum: 0,
        };
        faces.extend(one.values());
    }
    (count > 0).then_some(faces)
}

#[test]
fn latents_equal_diffusers() {
    let mut wrong = Vec::new();
    for name in ["sd1_ip", "sd1_ip_plus", "sdxl_ip", "sd1_face", "sdxl_face"] {
        let files = Files::of(name);
        let mut pipeline = on(files.open(&files.additions()).unwrap(), "cpu");
        for case in files.golden.at("/cases").as_object().unwrap().keys() {
            let generated = generate(&mut pipeline, &files.request(case));
            let nmse = metrics::nmse(&files.golden.f32(&format!("{case}.latents")), &generated.latents).unwrap();
            println!("{name} {case}: nmse {nmse:.2e}");
            if nmse > MOST {
                wrong.push(format!("{name} {case}: {nmse:.2e}"));
            }
        }
        if name.ends_with("_face") {
            continue;
        }
        // Without pictures, the adapter changes nothing.
        let request = Request { ip_images: Vec::new(), ip_scale: None, steps: Some(1), ..files.request("ip") };
        let without = bits(&generate(&mut on(files.open(&Additions::default()).unwrap(), "cpu"), &request));
        assert!(without == bits(&generate(&mut pipeline, &request)), "{name}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Writes the network at `slot` in `path` as a file of `file_type`.
fn converted_part(path: &Path, slot: &'static slot::Slot, file_type: &str, to: &Path) {
    let files = pinhole::source::Files { parts: vec![(slot, path.to_owned())], ..pinhole::source::Files::default() };
    let (source, networks) = pipeline::component(&Source::assemble(None, &files).unwrap(), slot).unwrap();
    let file_type = file_type.parse::<FileType>().unwrap();
    let options = convert::Options { target: Target::Component(slot), ..convert::Options::from(file_type) };
    let plan = convert::plan(&source, &networks.networks(), options).unwrap();
    plan.write(to, WriteOptions { overwrite: true, ..WriteOptions::default() }, &mut |_| Ok(())).unwrap();
}

#[test]
fn streamed_equals_resident() {
    for (name, case) in [("sd1_ip", "several"), ("sd1_ip_plus", "ip"), ("sdxl_ip", "without_negative")] {
        let files = Files::of(name);
        let request = Request { steps: Some(2), ..files.request(case) };
        for file_type in [None, Some("q8_0"), Some("q4_k_s")] {
            let mut additions = files.additions();
            if let Some(file_type) = file_type {
                let to = files.at(&format!("ip.{file_type}.gguf"));
                converted_part(&files.at("ip_adapter/ip_adapter.safetensors"), &slot::IP_ADAPTER, file_type, &to);
                additions.ip_adapter = Some(to);
                let to = files.at(&format!("tower.{file_type}.gguf"));
                converted_part(&files.at("image_encoder"), &slot::IMAGE_ENCODER, file_type, &to);
                additions.image_encoders = vec![to];
            }
            let mut pipeline = on(files.open(&additions).unwrap(), "cpu:discrete");
            let mut draw = |offload| {
                pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
                generate(&mut pipeline, &request)
            };
            let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
            assert!(resident.plan.all_resident && !streamed.plan.all_resident);
            assert!(bits(&resident) == bits(&streamed), "{name} {case} {file_type:?}: other latents");
        }
    }
}

/// An adapter for faces changes weights of every type.
#[test]
fn faces_stream_as_they_stay() {
    let files = Files::of("sd1_face");
    let request = Request { steps: Some(2), ..files.request("several") };
    let directory = pipeline::open(&Source::open(&files.at("model")).unwrap()).unwrap();
    for file_type in ["f32", "q8_0", "q4_k_s"] {
        let path = files.at(&format!("{file_type}.gguf"));
        let plan = convert::plan(&directory.source, &directory.networks(), file_type.parse::<FileType>().unwrap());
        plan.unwrap().write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
        let model = pipeline::open_with(&Source::open(&path).unwrap(), &files.additions()).unwrap();
        let mut pipeline = on(model, "cpu:discrete");
        let mut draw = |offload| {
            pipeline.set_memory(MemoryOptions { vram: None, offload, host: None });
            generate(&mut pipeline, &request)
        };
        let (resident, streamed) = (draw(Offload::None), draw(Offload::Sequential));
        assert!(resident.plan.all_resident && !streamed.plan.all_resident);
        assert!(bits(&resident) == bits(&streamed), "{file_type}: other latents");
    }
}

#[test]
fn faces_that_cannot_be_read() {
    let (files, xl, plain) = (Files::of("sd1_face"), Files::of("sdxl_face"), Files::of("sd1_ip"));
    let model = files.open(&files.additions()).unwrap();
    let said = |change: fn(&mut Request)| {
        let mut request = files.request("face");
        change(&mut request);
        pipeline::settings(&model, &request).unwrap_err().to_string()
    };
    assert_eq!(
        said(|request| request.id_embedding = None),
        "--id-embedding: expected the face that the IP-Adapter reads, found none"
    );
    assert_eq!(
        said(|request| request.id_embedding = Some(vec![0.5; 50])),
        "--id-embedding: expected 48 numbers for each of 1 to 16 faces, found 50 numbers"
    );
    assert_eq!(
        said(|request| request.id_embedding = Some(vec![f32::NAN; 48])),
        "--id-embedding: expected finite numbers, found NaN"
    );
    let error = said(|request| request.ip_images = vec![given::picture(8, 8)]);
    assert!(error.starts_with("--ip-image: expected nothing, since this IP-Adapter reads the embedding of a face"));
    let refused = |files: &Files, additions: Additions| files.open(&additions).err().unwrap().to_string();
    let error = refused(&files, Additions { ip_adapter: xl.additions().ip_adapter, ..files.additions() });
    assert!(error.contains("width of a token: expected 128, as the UNet has, found 320"), "{error}");
    let error = refused(&files, Additions { image_encoders: vec!["tower".into()], ..files.additions() });
    assert!(error.starts_with("--image-encoder: expected nothing"), "{error}");
    let error = refused(&plain, Additions { takes_id: true, ..plain.additions() });
    assert!(error.starts_with("--id-embedding: expected an IP-Adapter that reads faces"), "{error}");
    let error = refused(&plain, Additions { takes_id: true, ..Additions::default() });
    assert!(error.starts_with("--id-embedding: expected an IP-Adapter that reads the face, found none"), "{error}");
    // Its changes belong to the UNet, so that a file of the adapter alone would lack them.
    let path = files.at("ip_adapter/ip_adapter.safetensors");
    let parts = vec![(&slot::IP_ADAPTER, path)];
    let parts = pinhole::source::Files { parts, ..pinhole::source::Files::default() };
    let alone = pipeline::component(&Source::assemble(None, &parts).unwrap(), &slot::IP_ADAPTER);
    let error = alone.err().unwrap().to_string();
    assert!(error.contains("holds an IP-Adapter with low-rank changes of its UNet"), "{error}");
}

#[test]
fn a_control_and_an_adapter_go_together() {
    let (files, made) = (Files::of("sd1_ip"), Made::new("sd1_controls"));
    let additions = Additions { controls: made.folders("plain"), ..files.additions() };
    let controls = made.request("plain").controls;
    let request = Request { controls, steps: Some(2), ..files.request("ip") };
    let both = bits(&generate(&mut on(files.open(&additions).unwrap(), "cpu"), &request));
    let alone = Request { controls: Vec::new(), ..request.clone() };
    let adapter = bits(&generate(&mut on(files.open(&files.additions()).unwrap(), "cpu"), &alone));
    let mut control = on(made.open(made.folders("plain")).unwrap(), "cpu");
    let control = bits(&generate(&mut control, &Request { ip_images: Vec::new(), ip_scale: None, ..request }));
    assert!(both != adapter && both != control);
}

#[test]
fn adapters_that_do_not_fit() {
    let (files, plus, xl) = (Files::of("sd1_ip"), Files::of("sd1_ip_plus"), Files::of("sdxl_ip"));
    let said = |files: &Files, additions: Additions| {
        let error = files.open(&additions).err().unwrap();
        format!("{error} ({})", error.hint().unwrap_or_default())
    };
    let other = said(&files, Additions { ip_adapter: xl.additions().ip_adapter, ..files.additions() });
    assert!(other.contains("width of a token: expected 128, as the UNet has, found 320"), "{other}");
    assert!(other.ends_with("(the IP-Adapter is of another model)"), "{other}");
    let alone = said(&files, Additions { image_encoders: Vec::new(), ..files.additions() });
    assert!(alone.contains("there is no CLIP vision tower in it"), "{alone}");
    assert!(alone.ends_with("(give one with --image-encoder FILE)"), "{alone}");
    let encoder = said(&files, Additions { ip_adapter: None, ..files.additions() });
    assert!(encoder.contains("--image-encoder"), "{encoder}");
    let redux = said(&files, Additions { redux: Some("redux".into()), ..Additions::default() });
    assert!(redux.contains("--redux"), "{redux}");
    // A request without an adapter.
    let error = pipeline::settings(&files.open(&Additions::default()).unwrap(), &files.request("ip")).unwrap_err();
    assert!(error.to_string().contains("the model was opened without an IP-Adapter"), "{error}");
    // One of Plus is not read by a projection.
    assert!(plus.open(&plus.additions()).is_ok());
}
