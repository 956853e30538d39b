//! A stack of blocks with what it is modulated by: the model's own, or that of a ControlNet beside it.

use super::config::Config;
use super::double::{FeedForward, IMAGE, JointAttention, Stream, TEXT};
use super::ends::Join;
use super::ip::Beside;
use super::modulation::{ModulationOut, VectorIn};
use super::ports::{self, input};
use super::shared::{Inputs, Residual, Shared, Sizes};
use super::single::SingleBlock;
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Cadence, Extent, Model, Port, Symbol};
use crate::weights::Role;

/// The ports of a stack that its stages hand on.
pub(super) struct Stack {
    pub(super) config: Config,
    pub(super) shared: Shared,
    /// `[D, N]`
    pub(super) vector: Port,
    /// `[D, Tt, B]`: the text before the first block.
    pub(super) context: Port,
    /// Of image and text, for each double block.
    double: Vec<[Port; 2]>,
    single: Vec<Port>,
}

/// The ports that are carried through the double blocks.
#[derive(Clone, Copy)]
pub(super) struct Carried {
    pub(super) img: Port,
    pub(super) txt: Port,
}

/// What is added to a block from beside the model.
#[derive(Default)]
pub(super) struct Added {
    /// What an IP-Adapter's pictures are to the block.
    pub(super) ip: Option<Beside>,
    /// What ControlNets add to the image's tokens.
    pub(super) residuals: Vec<Residual>,
}

impl Stack {
    /// Declares what is computed once a request: `vector`, and from it the modulation of every block.
    pub(super) fn declare(model: &mut Model, config: &Config, inputs: &Inputs, shared: Shared) -> Result<Stack> {
        let hidden = config.hidden();
        let conditions = |width: usize| [Extent::from(width), Symbol::CONDITIONS.into()];
        let vector = input(model, "vector", &conditions(hidden));
        let context = input(model, "context", &[hidden.into(), shared.sizes.text.into(), shared.sizes.batch.into()]);
        model.stage("vector", Cadence::Request, |s| VectorIn::declare(s, config, inputs, vector))?;
        let mut double = Vec::new();
        for i in 0..config.num_layers {
            let img = input(model, &format!("modulation.double.{i}.img"), &conditions(6 * hidden));
            let txt = input(model, &format!("modulation.double.{i}.txt"), &conditions(6 * hidden));
            model.stage(format!("modulation.double.{i}"), Cadence::Request, |s| {
                let mut s = s.sub("double_blocks");
                let mut s = s.sub(i);
                let projections = vec![
                    (Linear::declare(&mut s.sub("img_mod.lin"), hidden, 6 * hidden, Role::MatMul)?, img),
                    (Linear::declare(&mut s.sub("txt_mod.lin"), hidden, 6 * hidden, Role::MatMul)?, txt),
                ];
                Ok(ModulationOut { vector, projections })
            })?;
            double.push([img, txt]);
        }
        let mut single = Vec::new();
        for i in 0..config.num_single_layers {
            let out = input(model, &format!("modulation.single.{i}"), &conditions(3 * hidden));
            model.stage(format!("modulation.single.{i}"), Cadence::Request, |s| {
                let mut s = s.sub("single_blocks");
                let lin = Linear::declare(&mut s.sub(i).sub("modulation.lin"), hidden, 3 * hidden, Role::MatMul)?;
                Ok(ModulationOut { vector, projections: vec![(lin, out)] })
            })?;
            single.push(out);
        }
        Ok(Stack { config: config.clone(), shared, vector, context, double, single })
    }

    /// The modulation of the image in the first double block, if there is one.
    pub(super) fn first_modulation(&self) -> Option<Port> {
        self.double.first().map(|&[img, _]| img)
    }

    /// Declares the ports that are carried through the double blocks.
    pub(super) fn carried(&self, model: &mut Model) -> Carried {
        let (hidden, sizes) = (self.config.hidden(), self.shared.sizes);
        let img = ports::carried(model, "img", hidden, Symbol::IMAGE_TOKENS, sizes.batch);
        let txt = ports::carried(model, "txt", hidden, sizes.text, sizes.batch);
        Carried { img, txt }
    }

    /// Declares double block `i`, with `added` to its image.
    pub(super) fn double(&self, model: &mut Model, i: usize, carried: Carried, added: Added) -> Result<()> {
        let Carried { img, txt } = carried;
        let [img_modulation, txt_modulation] = self.double[i];
        let (config, shared) = (&self.config, self.shared);
        let txt_from = if i == 0 { self.context } else { txt };
        let Added { ip, residuals } = added;
        let together = ip.is_some_and(Beside::is_added_to_results);
        let image = (img, img_modulation, shared);
        model.stage(format!("double.{i}.attention"), Cadence::Step, |s| {
            let mut s = s.sub("double_blocks");
            let mut s = s.sub(i);
            Ok(JointAttention {
                img: Stream::declare(&mut s, IMAGE, config, (img, img), img_modulation)?,
                txt: Stream::declare(&mut s, TEXT, config, (txt_from, txt), txt_modulation)?,
                shared,
                ip,
                image_feed_forward: match together {
                    true => Some(FeedForward::declare(&mut s, IMAGE, config, image, residuals.clone())?),
                    false => None,
                },
            })
        })?;
        let mut feed_forward = |names @ [_, name]: [&str; 2], ports, residuals| {
            model.stage(format!("double.{i}.{name}"), Cadence::Step, |s| {
                let mut s = s.sub("double_blocks");
                FeedForward::declare(&mut s.sub(i), names, config, ports, residuals)
            })
        };
        if !together {
            feed_forward(IMAGE, image, residuals)?;
        }
        feed_forward(TEXT, (txt, txt_modulation, shared), Vec::new())
    }

    /// Declares that text and image become one sequence, behind the double blocks, and gives its port.
    pub(super) fn join(&self, model: &mut Model, Carried { img, txt }: Carried) -> Result<Port> {
        let Sizes { batch, text, joint } = self.shared.sizes;
        let joint = ports::carried(model, "joint", self.config.hidden(), joint, batch);
        let txt = if self.double.is_empty() { self.context } else { txt };
        model.stage("join", Cadence::Step, |_| Ok(Join { txt, img, joint, text }))?;
        Ok(joint)
    }

    /// Declares single block `i`, with `added` to it.
    pub(super) fn single(&self, model: &mut Model, i: usize, joint: Port, added: Added) -> Result<()> {
        model.stage(format!("single.{i}"), Cadence::Step, |s| {
            let mut s = s.sub("single_blocks");
            let modulation = self.single[i];
            let block =
                SingleBlock::declare(&mut s.sub(i), &self.config, joint, modulation, self.shared, added.residuals);
            Ok(block?.beside(added.ip))
        })
    }
}
