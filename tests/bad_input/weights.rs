//! Weights that are cut off, of another kind, or not there.

use std::fs;

use pinhole::pipeline::{Event, Request};
use safetensors::Dtype;

use crate::disk::{Disk, Tensor, pipeline, refused, weights_of};

const COMPONENTS: [&str; 4] = ["transformer", "text_encoder", "text_encoder_2", "vae"];

/// A weight of each component, by its name in the file.
const SOME: [(&str, &str); 4] = [
    ("transformer", "single_transformer_blocks.1.proj_mlp.weight"),
    ("text_encoder", "encoder.layers.1.mlp.fc1.weight"),
    ("text_encoder_2", "encoder.block.1.layer.1.DenseReluDense.wo.weight"),
    ("vae", "decoder.mid_block.resnets.0.conv1.weight"),
];

#[test]
fn a_file_is_cut_off() {
    for component in COMPONENTS {
        let disk = Disk::new();
        let bytes = fs::read(disk.path(&weights_of(component))).unwrap();
        for length in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
            disk.write(&weights_of(component), &bytes[..length]);
            let error = refused!(Malformed, disk.open(), &weights_of(component), "expected", "found");
            assert!(error.hint().unwrap().contains("cut short"), "{:?}", error.hint());
        }
    }
}

#[test]
fn a_tensor_is_missing() {
    for (component, tensor) in SOME {
        let disk = Disk::new();
        disk.edit_tensors(component, |tensors| drop(tensors.remove(tensor).unwrap()));
        let error = refused!(Mismatch, disk.open(), component, "tensors");
        assert!(error.hint().unwrap().contains("missing: "), "{:?}", error.hint());
    }
}

#[test]
fn a_tensor_has_another_shape() {
    for (component, tensor) in SOME {
        let disk = Disk::new();
        disk.edit_tensors(component, |tensors| {
            let Tensor { shape, bytes, .. } = tensors.get_mut(tensor).unwrap();
            bytes.truncate(bytes.len() / shape[0] * (shape[0] - 1));
            shape[0] -= 1;
        });
        refused!(Mismatch, disk.open(), component, tensor, "shape");
    }
    // As many numbers, in another order.
    let disk = Disk::new();
    disk.edit_tensors(SOME[0].0, |tensors| tensors.get_mut(SOME[0].1).unwrap().shape.reverse());
    refused!(Mismatch, disk.open(), SOME[0].1, "shape");
}

#[test]
fn weights_are_whole_numbers() {
    for dtype in [Dtype::I64, Dtype::I32, Dtype::U8, Dtype::BOOL] {
        for (component, tensor) in SOME {
            let disk = Disk::new();
            disk.edit_tensors(component, |tensors| {
                let changed = tensors.get_mut(tensor).unwrap();
                let numbers: usize = changed.shape.iter().product();
                *changed =
                    Tensor { dtype, shape: changed.shape.clone(), bytes: vec![1; numbers * dtype.bitsize() / 8] };
            });
            refused!(Mismatch, disk.open(), component, tensor, &format!("{dtype}").to_lowercase());
        }
    }
}

/// What lies beside the weights in the files of other tools: marks without numbers, formats that pinhole does not know.
const BESIDE: [(&str, Dtype, &[usize], usize); 5] = [
    ("scaled_fp8", Dtype::F8_E4M3, &[0], 0),
    ("beside.scale", Dtype::F8_E8M0, &[3], 3),
    ("beside.packed", Dtype::F4, &[2, 3], 3),
    ("beside.frequencies", Dtype::C64, &[2], 16),
    ("beside.video", Dtype::U8, &[1, 2, 1, 2, 1, 2, 1, 2, 1, 2], 32),
];

#[test]
fn what_no_weight_is_read_from_refuses_no_file() {
    let disk = Disk::new();
    for component in COMPONENTS {
        disk.edit_tensors(component, |tensors| {
            for (name, dtype, shape, bytes) in BESIDE {
                tensors.insert(name.to_owned(), Tensor { dtype, shape: shape.to_vec(), bytes: vec![1; bytes] });
            }
        });
    }
    let model = disk.open().unwrap();
    for network in model.networks() {
        let unused = network.bound.unused();
        assert!(BESIDE.iter().all(|(name, ..)| unused.iter().any(|other| other == name)), "{unused:?}");
    }
    // A weight may not be like that.
    for (component, tensor) in SOME {
        for (_, dtype, shape, bytes) in &BESIDE[..4] {
            let disk = Disk::new();
            disk.edit_tensors(component, |tensors| {
                *tensors.get_mut(tensor).unwrap() =
                    Tensor { dtype: *dtype, shape: shape.to_vec(), bytes: vec![1; *bytes] };
            });
            refused!(Mismatch, disk.open(), component, &format!("tensor `{tensor}`"), "expected", "found");
        }
    }
}

#[test]
fn the_index_of_a_file_lies_about_its_tensors() {
    let disk = Disk::new();
    let name = weights_of("text_encoder");
    let bytes = fs::read(disk.path(&name)).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(bytes[8..8 + header].to_vec()).unwrap();
    let with_header = |text: &str| {
        let mut file = (text.len() as u64).to_le_bytes().to_vec();
        file.extend(text.as_bytes());
        file.extend(&bytes[8 + header..]);
        file
    };
    let first = &text[text.find("\"data_offsets\":[").unwrap()..][..30];
    let number = first.split(['[', ',']).nth(2).unwrap().split(']').next().unwrap();
    for changed in [text.replacen(number, "99999999999999999999", 1), text.replacen(number, "1", 1)] {
        disk.write(&name, with_header(&changed));
        refused!(Malformed, disk.open(), &name);
    }
    let huge = "9".repeat(17);
    disk.write(&name, with_header(&text.replacen("\"shape\":[", &format!("\"shape\":[{huge},{huge},"), 1)));
    refused!(Malformed, disk.open(), &name);
}

/// The first number of `tensor` becomes `bits` in BF16.
fn spoil(disk: &Disk, component: &str, tensor: &str, bits: u16) {
    disk.edit_tensors(component, |tensors| {
        let changed = tensors.get_mut(tensor).unwrap();
        assert_eq!(changed.dtype, Dtype::BF16);
        changed.bytes[..2].copy_from_slice(&bits.to_le_bytes());
    });
}

const NAN: u16 = 0x7FC0;
const INFINITY: u16 = 0x7F80;

#[test]
fn a_conversion_refuses_what_is_not_finite_and_leaves_nothing() {
    for ((component, tensor), bits) in SOME.into_iter().zip([NAN, INFINITY, NAN, INFINITY]) {
        let disk = Disk::new();
        spoil(&disk, component, tensor, bits);
        let outputs = tempfile::tempdir().unwrap();
        let converted = crate::disk::convert_to(disk.root(), &outputs.path().join("out.gguf"));
        let error = refused!(NotFinite, converted, tensor, component);
        assert!(error.hint().is_some());
        assert_eq!(fs::read_dir(outputs.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_picture_of_weights_that_are_not_finite_is_an_error() {
    let request =
        Request { prompt: "a red circle".into(), width: Some(32), height: Some(32), batch: 1, ..Request::default() };
    for (component, tensor) in SOME {
        let disk = Disk::new();
        spoil(&disk, component, tensor, NAN);
        let generated = pipeline(disk.open().unwrap()).generate_watched(&request, &mut |_: Event| Ok(()));
        let error = refused!(NotFinite, generated, "not finite");
        assert!(error.hint().is_some());
    }
}
