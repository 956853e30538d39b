//! The models' lists of weights hold exactly what real files hold: every weight is found under one of its names, with its
//! shape, and nothing in a file is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::support::Golden;
use pinhole::bind::alias::{self, Aliases, Rows};
use pinhole::models::autoencoder_kl::{self, Decoder, Encoder};
use pinhole::models::clip::{self, Clip};
use pinhole::models::flux::flux2::{self, Flux2};
use pinhole::models::flux::flux3::{self, Flux3};
use pinhole::models::language_model::{self, LanguageModel, Taps};
use pinhole::models::t5::{self, T5};
use pinhole::models::z_image::{self, ZImage};
use pinhole::stage::Model;
use pinhole::tensor::Shape;
use pinhole::weights::{Manifest, Weight};

/// The tensors of a component's file, as diffusers and transformers write it: extents in ggml order.
type Tensors = BTreeMap<String, Vec<usize>>;

fn tensors(golden: &Golden, component: &str) -> Tensors {
    let list = golden.list(&format!("/components/{component}/tensors")).iter();
    list.map(|tensor| {
        let extents = tensor["shape"].as_array().unwrap().iter().rev().map(|n| n.as_u64().unwrap() as usize);
        (tensor["name"].as_str().unwrap().to_owned(), extents.collect())
    })
    .collect()
}

/// The name and shape of the tensor that `name` is found as. The models here have no weight that is made of parts.
fn find<'a>(tensors: &'a Tensors, aliases: Aliases<'_>, name: &str) -> Option<(&'a str, Shape)> {
    aliases(name).iter().find_map(|parts| {
        let [part] = parts.as_slice() else { panic!("{name} is made of parts") };
        let (found, extents) = tensors.get_key_value(&part.name)?;
        assert_eq!(part.rows, Rows::All, "{name}");
        Some((found.as_str(), Shape::new(extents).unwrap()))
    })
}

/// The extents without those of 1: a convolution of one pixel is a matrix.
fn squeezed(shape: Shape) -> Vec<usize> {
    shape.dims().into_iter().filter(|&extent| extent != 1).collect()
}

/// Asserts that the weights of `models` are the tensors of the file, each once.
fn assert_covered(what: &str, tensors: &Tensors, aliases: Aliases<'_>, models: &[&Model]) {
    let mut left: Vec<&str> = tensors.keys().map(String::as_str).collect();
    for (_, weight) in models.iter().flat_map(|model| model.manifest().iter()) {
        let found = find(tensors, aliases, &weight.name);
        let (name, shape) = found.unwrap_or_else(|| panic!("{what}: no {}", weight.name));
        assert_eq!(squeezed(shape), squeezed(weight.shape), "{what}: {name}");
        let place = left.iter().position(|left| *left == name);
        left.remove(place.unwrap_or_else(|| panic!("{what}: {name} is used twice")));
    }
    assert!(left.is_empty(), "{what}: nothing wants {left:?}");
}

/// The settings of a component, as text.
fn config(golden: &Golden, component: &str) -> String {
    golden.at(&format!("/components/{component}/config")).to_string()
}

fn weights(manifest: &Manifest) -> Vec<Weight> {
    manifest.iter().map(|(_, weight)| weight.clone()).collect()
}

#[test]
fn clip_text_encoders_are_covered() {
    for case in ["dev", "schnell", "loose"] {
        let (golden, origin) = (Golden::load(case), Path::new(case));
        let tensors = tensors(&golden, "text_encoder");
        let config = clip::Config::from_json(&config(&golden, "text_encoder"), origin).unwrap();
        let clip = Clip::new(&config).unwrap();
        assert_covered(case, &tensors, &alias::clip, &[&clip.model]);
        let config = clip::Config::from_shapes(|name| Some(find(&tensors, &alias::clip, name)?.1), origin).unwrap();
        let detected = Clip::new(&config).unwrap();
        assert_eq!(weights(detected.model.manifest()), weights(clip.model.manifest()), "{case}");
    }
}

#[test]
fn t5_encoders_are_covered() {
    for case in ["dev", "schnell", "loose"] {
        let (golden, origin) = (Golden::load(case), Path::new(case));
        let tensors = tensors(&golden, "text_encoder_2");
        let config = t5::Config::from_json(&config(&golden, "text_encoder_2"), origin).unwrap();
        let t5 = T5::new(&config).unwrap();
        assert_covered(case, &tensors, &alias::t5, &[&t5.model]);
        let config = t5::Config::from_shapes(|name| Some(find(&tensors, &alias::t5, name)?.1), origin).unwrap();
        let detected = T5::new(&config).unwrap();
        assert_eq!(weights(detected.model.manifest()), weights(t5.model.manifest()), "{case}");
    }
}

#[test]
fn autoencoders_are_covered() {
    for case in ["dev", "schnell", "loose", "odd_vae"] {
        let (golden, origin) = (Golden::load(case), Path::new(case));
        let tensors = tensors(&golden, "vae");
        let config = autoencoder_kl::Config::from_json(&config(&golden, "vae"), origin).unwrap();
        let aliases = alias::autoencoder_kl(config.levels());
        let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
        assert_covered(case, &tensors, &aliases, &[&decoder.model, &encoder.model]);
        // Before the settings are known, so is not the number of levels.
        let detected = autoencoder_kl::Config::from_shapes(
            |name: &str| find(&tensors, &alias::autoencoder_kl(1), name).map(|(_, shape)| shape),
            origin,
        )
        .unwrap();
        let (decoder2, encoder2) = (Decoder::new(&detected).unwrap(), Encoder::new(&detected).unwrap());
        assert_eq!(weights(decoder2.model.manifest()), weights(decoder.model.manifest()), "{case}");
        assert_eq!(weights(encoder2.model.manifest()), weights(encoder.model.manifest()), "{case}");
    }
}

/// ggml's 63 characters, less a bundle's prefix (`vae.`, `te2.`), are enough for models of 100 layers.
#[test]
fn names_fit_into_gguf() {
    let golden = Golden::load("dev");
    let config = autoencoder_kl::Config::from_json(&config(&golden, "vae"), Path::new("dev")).unwrap();
    let clip = Clip::new(&clip::Config { num_hidden_layers: 100, ..clip::Config::default() }).unwrap();
    let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
    for (_, weight) in [&clip.model, &decoder.model, &encoder.model].iter().flat_map(|model| model.manifest().iter()) {
        assert!(weight.name.len() <= 59, "{}", weight.name);
    }
}

/// Asserts that the weights of `model` are the tensors of the file, each once: whole, or part for part.
fn assert_made_of(what: &str, tensors: &Tensors, aliases: Aliases<'_>, model: &Model) {
    let mut left: BTreeSet<&str> = tensors.keys().map(String::as_str).collect();
    for (_, weight) in model.manifest().iter() {
        let all = aliases(&weight.name);
        let parts = all.iter().find(|parts| parts.iter().all(|part| tensors.contains_key(&part.name)));
        let parts = parts.unwrap_or_else(|| panic!("{what}: no {}", weight.name));
        let (mut rows, mut row) = (0, 0);
        for part in parts {
            let (at, of) = match part.rows {
                Rows::Part { at, of } => (at, usize::from(of)),
                _ => (0, 1),
            };
            let extents = &tensors[&part.name];
            row = extents[0];
            rows += extents.get(1).copied().unwrap_or(1) / of;
            // Of a tensor that is read in parts, the first stands for all.
            if at == 0 {
                assert!(left.remove(part.name.as_str()), "{what}: {} is used twice", part.name);
            }
        }
        let [width, height, ..] = weight.shape.dims();
        assert_eq!([row, rows], [width, height], "{what}: {}", weight.name);
    }
    assert!(left.is_empty(), "{what}: nothing wants {left:?}");
}

#[test]
fn transformers_that_read_with_a_language_model_are_covered() {
    for case in ["flux2_klein", "flux2_dev"] {
        let golden = Golden::load(case);
        let config = flux2::Config::from_json(&config(&golden, "transformer"), Path::new(case)).unwrap();
        let net = Flux2::new(&config).unwrap();
        assert_made_of(case, &tensors(&golden, "transformer"), &alias::flux2, &net.model);
    }
    let golden = Golden::load("flux3");
    for component in ["transformer", "transformer_base"] {
        let config = flux3::Config::from_json(&config(&golden, component), Path::new(component)).unwrap();
        let net = Flux3::new(&config).unwrap();
        assert_made_of(component, &tensors(&golden, component), &alias::flux3, &net.model);
    }
    let golden = Golden::load("z_image");
    let config = z_image::Config::from_json(&config(&golden, "transformer"), Path::new("z_image")).unwrap();
    let net = ZImage::new(&config).unwrap();
    assert_made_of("z_image", &tensors(&golden, "transformer"), &alias::z_image, &net.model);
}

#[test]
fn language_models_are_covered() {
    for case in ["z_image", "flux2_klein", "flux2_dev", "flux3"] {
        let golden = Golden::load(case);
        let config = language_model::Config::from_json(&config(&golden, "text_encoder"), Path::new(case)).unwrap();
        let whole = Taps { after: vec![config.num_hidden_layers], normalised: true };
        let net = LanguageModel::new(&config, &whole).unwrap();
        assert_made_of(case, &tensors(&golden, "text_encoder"), &alias::language_model, &net.model);
    }
}

#[test]
fn autoencoders_with_statistics_are_covered() {
    for component in ["vae", "vae_small"] {
        let (golden, origin) = (Golden::load("flux2_klein"), Path::new(component));
        let tensors = tensors(&golden, component);
        let config = autoencoder_kl::Config::from_json(&config(&golden, component), origin).unwrap();
        let aliases = alias::autoencoder_kl(config.levels());
        let (decoder, encoder) = (Decoder::new(&config).unwrap(), Encoder::new(&config).unwrap());
        assert_covered(component, &tensors, &aliases, &[&decoder.model, &encoder.model]);
        let detected = autoencoder_kl::Config::from_shapes(
            |name: &str| find(&tensors, &aliases, name).map(|(_, shape)| shape),
            origin,
        )
        .unwrap();
        let detected = Decoder::new(&detected).unwrap();
        assert_eq!(weights(detected.model.manifest()), weights(decoder.model.manifest()), "{component}");
    }
}
