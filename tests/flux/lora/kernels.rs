//! LoRAs on convolutions: what branches compute is what merged kernels compute, over whole maps and in strips, for every form.

use std::collections::BTreeMap;

use pinhole::bind::alias::Part;
use pinhole::bind::{Bound, lora};
use pinhole::exec::{DeviceWeights, Session};
use pinhole::ggml::{Backend, CancelFlag, Device, Ledger};
use pinhole::models::layers::Conv2d;
use pinhole::plan::Way;
use pinhole::sample::randn;
use pinhole::stage::{Block, Build, Cadence, Dims, FeatureMap, Lifetime, Model, Port, Reach, Strips, Symbol};
use pinhole_quant::{DType, metrics};

use crate::support::lora::{self as files, Tensor};

const INPUTS: usize = 6;
const OUTPUTS: usize = 8;
const SIDE: usize = 24;

/// One convolution from port to port.
struct Layer {
    conv: Conv2d,
    stride: usize,
    from: Port,
    to: Port,
}

impl Block for Layer {
    fn build(&self, b: &Build<'_>) -> pinhole::Result<()> {
        let x = b.read(self.from)?;
        b.write(self.to, if self.stride == 1 { self.conv.build_rows(b, x)? } else { self.conv.build(b, x)? })
    }

    fn strips(&self) -> Option<&dyn Strips> {
        (self.stride == 1).then_some(self)
    }
}

impl Strips for Layer {
    fn passes(&self) -> usize {
        1
    }

    fn rows_of(&self) -> FeatureMap {
        self.to.into()
    }

    fn build_pass(&self, b: &Build<'_>, _pass: usize) -> pinhole::Result<()> {
        let x = b.read_rows(self.from, Reach::Around(self.conv.halo()))?;
        b.write_rows(self.to, self.conv.build_rows(b, x)?)
    }
}

/// A model of one convolution, and its weights.
struct Net {
    model: Model,
    bound: Bound,
    ports: [Port; 2],
    _dir: tempfile::TempDir,
}

impl Net {
    fn new(size: usize, stride: usize, kernel: &Tensor) -> Net {
        let (mut model, dir) = (Model::new(), tempfile::tempdir().unwrap());
        let map = |model: &mut Model, name: &str, channels: usize, side: pinhole::stage::Extent| {
            model.port(name, &[side, side, channels.into(), 1.into()], DType::F32, Lifetime::Pass)
        };
        let wide = if stride == 1 { Symbol::LATENT_WIDTH.into() } else { Symbol::LATENT_WIDTH * 2 };
        let from = map(&mut model, "x", INPUTS, wide);
        let to = map(&mut model, "y", OUTPUTS, Symbol::LATENT_WIDTH.into());
        let padding = size / 2;
        model
            .stage("conv", Cadence::Step, |s| {
                let conv = Conv2d::declare(&mut s.sub("conv"), INPUTS, OUTPUTS, size)?.with(stride, padding);
                Ok(Layer { conv, stride, from, to })
            })
            .unwrap();
        let tensors: BTreeMap<String, Tensor> =
            [("conv.weight".into(), kernel.clone()), ("conv.bias".into(), numbers("bias", &[OUTPUTS]))].into();
        let path = files::write(dir.path(), "model", &tensors, Vec::new());
        let index = pinhole::safetensors::open(&path).unwrap();
        let bound = Bound::new(model.manifest(), &index, "", &|name: &str| vec![vec![Part::all(name)]], &path).unwrap();
        Net { model, bound, ports: [from, to], _dir: dir }
    }

    fn target(&mut self) -> [lora::Target<'_>; 1] {
        let (model, bound) = (&mut self.model, &mut self.bound);
        [lora::Target { slot: "unet", model, bound, aliases: &|name| vec![vec![Part::all(name)]] }]
    }

    fn run(&self, device: &str, way: Way) -> Vec<f32> {
        let mut backend = Backend::new(Device::by_name(device).unwrap(), 2, CancelFlag::new()).unwrap();
        let ledger = Ledger::new();
        let dims =
            Dims::new().with(Symbol::BATCH, 1).with(Symbol::LATENT_WIDTH, SIDE).with(Symbol::LATENT_HEIGHT, SIDE);
        let weights = DeviceWeights::load(&self.model, &self.bound, backend.device(), &ledger).unwrap();
        let mut session = Session::in_way(way, &self.model, &weights, &dims, &backend, &ledger).unwrap();
        let count = self.model.ports()[self.ports[0].index()].shape(&dims).unwrap().elements();
        session.set(self.ports[0], &randn(3, count).unwrap()).unwrap();
        session.run(&mut backend, Cadence::Step, |_, _| Ok(())).unwrap();
        session.get(self.ports[1]).unwrap()
    }
}

/// Random numbers that differ by name.
fn numbers(name: &str, shape: &[usize]) -> Tensor {
    let seed = name.bytes().fold(7, |seed, byte| seed * 31 % 65_521 + u64::from(byte));
    let count: usize = shape.iter().product();
    let values = randn(seed, count).unwrap().into_iter().map(|x| 0.3 * x).collect();
    Tensor { shape: shape.to_vec(), values }
}

/// Parts of a change of the only layer, with its norms where they are given.
fn change(parts: &[(&str, &[usize])], norms: Option<&[usize]>) -> BTreeMap<String, Tensor> {
    let mut tensors: BTreeMap<String, Tensor> =
        parts.iter().map(|(part, shape)| (format!("lora_unet_conv.{part}"), numbers(part, shape))).collect();
    tensors.insert("lora_unet_conv.alpha".into(), Tensor { shape: vec![], values: vec![2.0] });
    if let Some(shape) = norms {
        let values = numbers("norms", shape).values.into_iter().map(|x| 2.0 + x).collect();
        tensors.insert("lora_unet_conv.dora_scale".into(), Tensor { shape: shape.to_vec(), values });
    }
    tensors
}

#[test]
fn branches_of_kernels_are_merged_kernels() {
    let (o, i) = (OUTPUTS, INPUTS);
    let low: &[(&str, &[usize])] = &[("lora_down.weight", &[3, i, 3, 3]), ("lora_up.weight", &[o, 3, 1, 1])];
    let cases = [
        ("locon", 3, change(low, None)),
        ("one pixel", 1, change(&[("lora_down.weight", &[3, i, 1, 1]), ("lora_up.weight", &[o, 3])], None)),
        (
            "tucker",
            3,
            change(
                &[
                    ("lora_down.weight", &[3, i, 1, 1]),
                    ("lora_mid.weight", &[2, 3, 3, 3]),
                    ("lora_up.weight", &[o, 2, 1, 1]),
                ],
                None,
            ),
        ),
        ("diff", 3, change(&[("diff", &[o, i, 3, 3]), ("diff_b", &[o])], None)),
        (
            "loha",
            3,
            change(
                &[
                    ("hada_w1_a", &[o, 2]),
                    ("hada_w1_b", &[2, i * 9]),
                    ("hada_w2_a", &[o, 2]),
                    ("hada_w2_b", &[2, i * 9]),
                ],
                None,
            ),
        ),
        (
            "loha with cores",
            3,
            change(
                &[
                    ("hada_t1", &[2, 3, 3, 3]),
                    ("hada_w1_a", &[2, o]),
                    ("hada_w1_b", &[3, i]),
                    ("hada_t2", &[2, 3, 3, 3]),
                    ("hada_w2_a", &[2, o]),
                    ("hada_w2_b", &[3, i]),
                ],
                None,
            ),
        ),
        ("lokr", 3, change(&[("lokr_w1", &[4, 2]), ("lokr_w2", &[2, 3, 3, 3])], None)),
        (
            "lokr in factors",
            3,
            change(
                &[("lokr_w1_a", &[4, 1]), ("lokr_w1_b", &[1, 2]), ("lokr_w2_a", &[2, 2]), ("lokr_w2_b", &[2, 27])],
                None,
            ),
        ),
        (
            "lokr with a core",
            3,
            change(
                &[("lokr_w1", &[4, 2]), ("lokr_t2", &[2, 2, 3, 3]), ("lokr_w2_a", &[2, 2]), ("lokr_w2_b", &[2, 3])],
                None,
            ),
        ),
        ("dora", 3, change(low, Some(&[o, 1, 1, 1]))),
        ("dora of inputs", 3, change(low, Some(&[1, i, 1, 1]))),
    ];
    for (what, size, tensors) in cases {
        for stride in [1, 2] {
            let dir = tempfile::tempdir().unwrap();
            let path = files::write(dir.path(), "lora", &tensors, Vec::new());
            let kernel = numbers("kernel", &[o, i, size, size]);
            let mut branched = Net::new(size, stride, &kernel);
            let (merged, _) =
                lora::merged(&[(path.clone(), 0.7)], &branched.target().each_ref().map(lora::Target::base)).unwrap();
            let mut values = Vec::new();
            for (id, _) in branched.model.manifest().iter() {
                values.push(merged[0].read_f32(branched.model.manifest(), &branched.bound, id).unwrap());
            }
            let plain = branched.run("cpu", Way::Whole);
            lora::add(&path, 0.7, &mut branched.target()).unwrap();
            let mut whole = Net::new(size, stride, &Tensor { values: values.remove(0), ..kernel });
            if what == "diff" {
                // The bias changes as well: taken from the branched model, whose vectors are merged.
                let more = change(&[("diff_b", &[o])], None);
                lora::add(&files::write(dir.path(), "bias", &more, Vec::new()), 0.7, &mut whole.target()).unwrap();
            }
            let expected = whole.run("cpu", Way::Whole);
            let moved = metrics::nmse(&expected, &plain).unwrap();
            for device in ["cpu", "cpu:discrete"] {
                let nmse = metrics::nmse(&expected, &branched.run(device, Way::Whole)).unwrap();
                println!("{what}, stride {stride}, {device}: nmse {nmse:.1e}, without {moved:.1e}");
                assert!(nmse < 1e-11 && moved > 1e-5, "{what}, stride {stride}: {nmse:e}, {moved:e}");
            }
            if stride == 1 {
                let strips = branched.run("cpu", Way::Strips(1 << 10));
                let nmse = metrics::nmse(&expected, &strips).unwrap();
                assert!(nmse < 1e-11, "{what} in strips: {nmse:e}");
            }
        }
    }
}
