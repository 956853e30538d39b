//! Files without configurations, each given for its place: what they are, and what they lack, is seen by what they have.

use pinhole::Result;
use pinhole::pipeline::Opened;
use pinhole::source::{Files, Source};
use safetensors::Dtype;

use crate::disk::{Disk, Tensor, Tensors, edit_file, refused, weights_of};
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

/// A model of which the tensors of `component` are changed.
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
