//! Files without configurations, each given for its place: what they are, and what they lack, is seen by what they have.

use std::path::{Path, PathBuf};

use pinhole::Result;
use pinhole::pipeline::{Event, Opened};
use pinhole::source::{Files, Source};
use pinhole_quant::recipe::FileType;
use safetensors::Dtype;

use crate::disk::{Disk, Tensor, Tensors, edit_file, refused, weights_of};
use crate::requests::small;
use crate::support::{Golden, golden, sd1};

const COMPONENTS: [&str; 4] = ["transformer", "text_encoder", "text_encoder_2", "vae"];

/// The files of `disk` without its configurations, some of them in the place of a part of the whole model on `base`.
fn open_with(base: Option<&Disk>, disk: &Disk, components: &[&str]) -> Result<Opened> {
    let mut files = Files::default();
    for component in components {
        files.add(component, disk.path(&weights_of(component)));
    }
    for tokenizer in ["tokenizer", "tokenizer_2"] {
        files.add(tokenizer, disk.path(tokenizer));
    }
    let base = base.map(|base| Source::open(base.root())).transpose()?;
    pinhole::pipeline::open(&Source::assemble(base, &files)?)
}

fn open(disk: &Disk) -> Result<Opened> {
    open_with(None, disk, &COMPONENTS)
}

/// A model with changed tensors of `component`.
fn changed(component: &str, change: impl FnOnce(&mut Tensors)) -> Disk {
    let disk = Disk::new();
    disk.edit_tensors(component, change);
    disk
}

#[test]
fn the_files_themselves_are_good() {
    open(&Disk::new()).unwrap();
}

#[test]
fn an_autoencoder_may_lack_its_encoder() {
    let disk = changed("vae", |tensors| tensors.retain(|name, _| !name.starts_with("encoder.")));
    assert_eq!(open(&disk).unwrap().autoencoder.networks().len(), 1);
}

#[test]
fn a_block_is_missing_in_the_middle() {
    for (component, block, named) in [
        ("transformer", "single_transformer_blocks.1.", "single_transformer_blocks.1."),
        ("transformer", "single_transformer_blocks.0.", "single_transformer_blocks.0."),
        ("transformer", "transformer_blocks.0.", "transformer_blocks.0."),
        ("text_encoder", "encoder.layers.0.", "encoder.layers.0."),
        ("text_encoder_2", "encoder.block.1.", "encoder.block.1."),
        ("vae", "decoder.up_blocks.2.", "decoder.up_blocks.2."),
        ("vae", "encoder.down_blocks.1.", "encoder.down_blocks.1."),
        ("vae", "encoder.down_blocks.0.resnets.0.", "encoder.down_blocks.0.resnets.0."),
    ] {
        let disk = changed(component, |tensors| tensors.retain(|name, _| !name.starts_with(block)));
        let error = refused!(Mismatch, open(&disk), component);
        let said = format!("{error} {}", error.hint().unwrap());
        assert!(said.contains(named), "{named}: {said}");
    }
}

/// The weight that blocks are counted by is missing in the last one, which would shorten the network.
#[test]
fn a_weight_of_the_last_block_is_missing() {
    for (component, weight, left) in [
        ("transformer", "single_transformer_blocks.2.proj_mlp.weight", "single_transformer_blocks.2."),
        ("text_encoder", "encoder.layers.1.layer_norm1.weight", "encoder.layers.1."),
        ("text_encoder_2", "encoder.block.2.layer.0.layer_norm.weight", "encoder.block.2."),
        ("vae", "encoder.down_blocks.3.resnets.0.conv1.weight", "_blocks."),
    ] {
        let disk = changed(component, |tensors| drop(tensors.remove(weight).unwrap()));
        let error = refused!(Mismatch, open(&disk), component, left);
        assert!(error.hint().unwrap().contains("incomplete") || error.hint().unwrap().contains("missing"));
    }
}

#[test]
fn a_block_of_a_unet_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sd.safetensors");
    for (lost, named) in [
        ("model.diffusion_model.input_blocks.4.", "input_blocks.4.0."),
        ("model.diffusion_model.input_blocks.8.0.in_layers.2.", "input_blocks.8.0."),
        ("model.diffusion_model.output_blocks.8.", "output_blocks.8."),
        ("model.diffusion_model.output_blocks.5.", "output_blocks.5."),
        ("model.diffusion_model.middle_block.1.", "middle_block.1."),
    ] {
        sd1::write_checkpoint(&path, &Golden::load("sd1"));
        edit_file(&path, |tensors| tensors.retain(|name, _| !name.starts_with(lost)));
        let mut files = Files::default();
        files.add("tokenizer", golden::directory().join("tokenizers/clip"));
        let source = Source::open(&path).and_then(|source| Source::assemble(Some(source), &files));
        let opened = source.and_then(|source| pinhole::pipeline::open(&source));
        let error = refused!(Mismatch, opened, "sd.safetensors");
        let said = format!("{error} {}", error.hint().unwrap_or_default());
        assert!(said.contains(named), "{named}: {said}");
    }
}

#[test]
fn unets_of_other_models_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sd.safetensors");
    let named = |what: &str, change: &dyn Fn(&mut Tensors)| {
        sd1::write_checkpoint(&path, &Golden::load("sd1"));
        edit_file(&path, |tensors| change(tensors));
        let opened = Source::open(&path).and_then(|source| pinhole::pipeline::open(&source));
        refused!(NotAModel, opened, "sd.safetensors", what);
    };
    named("ControlNet", &|tensors| {
        let tensor = Tensor { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] };
        tensors.insert("model.diffusion_model.input_hint_block.0.weight".into(), tensor);
    });
    named("a map of depth", &|tensors| {
        let Tensor { shape, bytes, .. } = tensors.get_mut("model.diffusion_model.input_blocks.0.0.weight").unwrap();
        bytes.resize(bytes.len() / shape[1] * 5, 0);
        shape[1] = 5;
    });
}

#[test]
fn a_layer_that_is_missing_has_the_name_of_its_file() {
    for (component, weight) in [
        ("transformer", "x_embedder.weight"),
        ("transformer", "time_text_embed.text_embedder.linear_1.weight"),
        ("transformer", "norm_out.linear.weight"),
        ("transformer", "single_transformer_blocks.0.attn.norm_q.weight"),
        ("text_encoder", "embeddings.position_embedding.weight"),
        ("text_encoder_2", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        ("text_encoder_2", "encoder.final_layer_norm.weight"),
        ("vae", "decoder.conv_out.weight"),
        ("vae", "decoder.conv_norm_out.bias"),
    ] {
        let disk = changed(component, |tensors| drop(tensors.remove(weight).unwrap()));
        let error = refused!(Mismatch, open(&disk), component);
        let said = format!("{error} {}", error.hint().unwrap());
        assert!(said.contains(weight), "{weight}: {said}");
    }
    // One that is there and empty is not missing.
    let disk = changed("transformer", |tensors| {
        let empty = Tensor { dtype: Dtype::BF16, shape: vec![0, 64], bytes: Vec::new() };
        tensors.insert("x_embedder.weight".into(), empty);
    });
    refused!(Mismatch, open(&disk), "transformer", "tensor `x_embedder.weight`", "extents of at least 1");
}

/// A whole CLIP and a whole T5 have more than their text encoders, and no one is warned of that.
#[test]
fn what_whole_models_have_beside_is_no_cause_for_a_warning() {
    let disk = Disk::new();
    let beside = |component: &str, names: &[&str]| {
        disk.edit_tensors(component, |tensors| {
            for name in names {
                let tensor = Tensor { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] };
                tensors.insert((*name).to_owned(), tensor);
            }
        });
    };
    let clip = ["vision_model.encoder.layers.0.mlp.fc1.weight", "logit_scale", "visual_projection.weight"];
    beside("text_encoder", &clip);
    beside(
        "text_encoder",
        &["embeddings.position_ids", "vision_model.post_layernorm.weight", "text_projection.weight"],
    );
    beside("text_encoder_2", &["decoder.block.0.layer.0.SelfAttention.q.weight", "decoder.embed_tokens.weight"]);
    beside("text_encoder_2", &["decoder.block.23.layer.2.DenseReluDense.wo.weight", "lm_head.weight", "scaled_fp8"]);
    let model = disk.open().unwrap();
    let networks = model.networks();
    let plan = pinhole::convert::plan(&model.source, &networks, FileType::F16).unwrap();
    assert_eq!(plan.left_out, [""; 0]);
    for model in [disk.open(), open(&disk)] {
        let mut warnings = Vec::new();
        crate::disk::pipeline(model.unwrap())
            .generate_watched(&small(), &mut |event: Event| {
                warnings.extend(match event {
                    Event::Warning(text) => Some(text),
                    _ => None,
                });
                Ok(())
            })
            .unwrap();
        assert_eq!(warnings, [""; 0]);
    }
}

/// A transformer with `columns` in its first layer.
fn widened(columns: usize) -> Disk {
    changed("transformer", |tensors| {
        let Tensor { shape, bytes, .. } = tensors.get_mut("x_embedder.weight").unwrap();
        bytes.resize(bytes.len() / shape[1] * columns, 0);
        shape[1] = columns;
    })
}

#[test]
fn the_file_that_does_not_fit_is_blamed() {
    let base = Disk::new();
    // The transformer is given to a model that is good.
    let (disk, file) = (widened(72), weights_of("transformer"));
    let given = refused!(Mismatch, open_with(Some(&base), &disk, &["transformer"]), &file, "in_channels", "64", "72");
    assert!(!given.to_string().starts_with(base.root().to_str().unwrap()), "{given}");
    assert!(given.to_string().contains(base.path("vae").to_str().unwrap()), "{given}");
    // The autoencoder is, to a model whose transformer is another.
    disk.edit("transformer/config.json", |config| {
        config["in_channels"] = 72.into();
        config["out_channels"] = 64.into();
    });
    let given = refused!(Mismatch, open_with(Some(&disk), &base, &["vae"]), &weights_of("vae"), "64", "72");
    assert!(given.to_string().starts_with(base.root().to_str().unwrap()), "{given}");
    // Nothing is given.
    refused!(Mismatch, disk.open(), "/transformer: in_channels of the transformer", "/vae", "64", "72");
}

#[test]
fn all_parts_that_are_missing_are_named() {
    let disk = Disk::new();
    let error =
        refused!(NotAModel, open_with(None, &disk, &["vae"]), "vae and no transformer, text_encoder, text_encoder_2");
    let hint = error.hint().unwrap();
    assert!(
        ["--transformer FILE", "--text-encoder FILE", "--text-encoder-2 FILE"]
            .iter()
            .all(|option| hint.contains(option))
    );
    disk.remove("text_encoder");
    disk.remove("vae");
    refused!(NotAModel, disk.open(), "it has transformer, text_encoder_2 and no text_encoder, vae");
}

#[test]
fn models_like_flux_are_named() {
    let named = |change: fn(&mut Tensors), what: &str| {
        let disk = changed("transformer", change);
        for opened in [open(&disk), disk.open(), open_with(Some(&Disk::new()), &disk, &["transformer"])] {
            let error = refused!(NotAModel, opened, "transformer", what);
            assert!(error.hint().unwrap().contains("FLUX.1") || error.hint().unwrap().contains("alone"));
        }
    };
    fn add(tensors: &mut Tensors, name: &str) {
        tensors.insert(name.to_owned(), Tensor { dtype: Dtype::F32, shape: vec![1], bytes: vec![0; 4] });
    }
    named(|tensors| add(tensors, "distilled_guidance_layer.in_proj.weight"), "Chroma");
    named(|tensors| add(tensors, "double_blocks.0.img_mlp.gate_proj.weight"), "Ovis");
    named(|tensors| add(tensors, "controlnet_x_embedder.weight"), "ControlNet");
    let (columns, what) = (196, "Flex.2");
    let disk = widened(columns);
    refused!(NotAModel, open(&disk), &weights_of("transformer"), what);
    disk.edit("transformer/config.json", |config| {
        config["in_channels"] = columns.into();
        config["out_channels"] = 64.into();
    });
    refused!(NotAModel, disk.open(), "transformer", what);
    refused!(NotAModel, open_with(Some(&Disk::new()), &disk, &["transformer"]), &weights_of("transformer"), what);
    let disk = Disk::new();
    disk.edit("model_index.json", |index| index["_class_name"] = "FluxPriorReduxPipeline".into());
    let error = refused!(NotAModel, disk.open(), "FluxPriorReduxPipeline, FLUX.1 Redux");
    assert!(error.hint().unwrap().contains("FLUX.1-dev"));
}

/// A packing, and the tensors that take the place of a matrix in it: how their names end, their type, their bytes.
type Packing = (&'static str, &'static [(&'static str, Dtype, usize)]);

const PACKINGS: [Packing; 6] = [
    (
        "bitsandbytes NF4",
        &[
            (".weight", Dtype::U8, 64),
            (".weight.absmax", Dtype::U8, 8),
            (".weight.quant_map", Dtype::F32, 64),
            (".weight.quant_state.bitsandbytes__nf4", Dtype::U8, 32),
        ],
    ),
    ("bitsandbytes int8", &[(".weight", Dtype::I8, 64), (".SCB", Dtype::F32, 8)]),
    ("NVFP4", &[(".weight", Dtype::U8, 64), (".weight_scale", Dtype::F8_E4M3, 8), (".weight_scale_2", Dtype::F32, 4)]),
    ("SVDQuant", &[(".qweight", Dtype::I8, 64), (".wscales", Dtype::BF16, 8), (".smooth", Dtype::BF16, 8)]),
    ("GPTQ", &[(".qweight", Dtype::I32, 64), (".qzeros", Dtype::I32, 8), (".g_idx", Dtype::I32, 8)]),
    ("quanto", &[(".weight._data", Dtype::I8, 64), (".weight._scale", Dtype::BF16, 8)]),
];

#[test]
fn packed_weights_are_named() {
    let matrices = [
        ("transformer", "single_transformer_blocks.1.proj_mlp"),
        ("text_encoder", "encoder.layers.1.mlp.fc1"),
        ("text_encoder_2", "encoder.block.1.layer.1.DenseReluDense.wo"),
    ];
    for (packing, parts) in PACKINGS {
        for (component, stem) in matrices {
            let disk = changed(component, |tensors| {
                tensors.remove(&format!("{stem}.weight")).unwrap();
                for (end, dtype, bytes) in parts {
                    let shape = vec![bytes * 8 / dtype.bitsize()];
                    tensors.insert(format!("{stem}{end}"), Tensor { dtype: *dtype, shape, bytes: vec![1; *bytes] });
                }
            });
            for opened in [open(&disk), disk.open()] {
                let error = refused!(NotAModel, opened, component, packing, stem);
                assert!(error.hint().unwrap().contains("GGUF"));
            }
        }
    }
}

/// A scale in a format that is not read is no scale of 1.
#[test]
fn scales_that_cannot_be_read_are_not_passed_over() {
    let stem = "single_transformer_blocks.1.proj_mlp";
    let scaled = |name: &str, dtype: Dtype, bytes: usize| {
        changed("transformer", |tensors| {
            let weight = tensors.get_mut(&format!("{stem}.weight")).unwrap();
            let numbers = weight.bytes.len() / 2;
            *weight = Tensor { dtype: Dtype::F8_E4M3, shape: weight.shape.clone(), bytes: vec![0x38; numbers] };
            let shape = vec![bytes * 8 / dtype.bitsize()];
            tensors.insert(format!("{stem}.{name}"), Tensor { dtype, shape, bytes: vec![1; bytes] });
        })
    };
    refused!(NotAModel, scaled("weight_scale", Dtype::F8_E8M0, 8).open(), "transformer", "MXFP8", stem);
    let at = format!("tensor `{stem}.scale_weight`");
    refused!(Mismatch, scaled("scale_weight", Dtype::C64, 8).open(), "transformer", &at, "C64");
    refused!(Mismatch, scaled("scale_weight", Dtype::F32, 0).open(), "transformer", &at, "extents of at least 1");
}

/// Other networks are called what they are, in files by themselves.
#[test]
fn files_of_other_networks() {
    let directory = tempfile::tempdir().unwrap();
    let write = |tensors: &[&str]| -> PathBuf {
        let path = directory.path().join("file.safetensors");
        let bytes = [0; 4];
        let views = tensors
            .iter()
            .map(|name| (*name, safetensors::tensor::TensorView::new(Dtype::F32, vec![1], &bytes).unwrap()));
        safetensors::serialize_to_file(views, None, &path).unwrap();
        path
    };
    for (name, what) in [
        ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", "Stable Diffusion 3"),
        ("blocks.0.cross_attn.k.weight", "Wan"),
        ("cap_embedder.0.weight", "Lumina"),
    ] {
        let path: &Path = &write(&[name]);
        let error = refused!(NotAModel, Source::open(path), "file.safetensors", what, "does not run");
        assert!(error.hint().unwrap().contains("FLUX.1"));
    }
    // Packed so that no matrix has its name.
    let path = write(&["transformer_blocks.0.qkv_proj.qweight", "transformer_blocks.0.qkv_proj.wscales"]);
    refused!(NotAModel, Source::open(&path), "file.safetensors", "SVDQuant");
}
