//! What the model and its ControlNets declare alike: ports, modulation, and blocks.

use pinhole_quant::DType;

use super::block::{FeedForward, IMAGE, JointAttention, Residual, Shared, Stream, TEXT};
use super::config::Config;
use super::modulation::{ModulationOut, TimeIn};
use super::ports::{Extents, Ports, TIME_WIDTH, TIMES};
use crate::Result;
use crate::models::layers::Linear;
use crate::stage::{Cadence, Extent, Lifetime, Model, Port, Symbol};
use crate::weights::Role;

/// A port that a request sets, or that is computed once for it.
pub(super) fn input(model: &mut Model, name: &str, extents: &[Extent]) -> Port {
    model.port(name, extents, DType::F32, Lifetime::Request)
}

/// A port of `[width, tokens, B]` that is carried through a step.
pub(super) fn carried(model: &mut Model, name: &str, width: usize, tokens: Symbol) -> Port {
    carried_for(model, name, width, (tokens, Symbol::BATCH))
}

/// The same for some `items` of the batch.
pub(super) fn carried_for(model: &mut Model, name: &str, width: usize, (tokens, items): (Symbol, Symbol)) -> Port {
    model.port(name, &[width.into(), tokens.into(), items.into()], DType::F32, Lifetime::Pass)
}

/// Declares where a request is put.
pub(super) fn declare_ports(model: &mut Model, config: &Config) -> Ports {
    let batch = Extent::from(Symbol::BATCH);
    let table = [config.attention_head_dim.into(), 1.into(), Symbol::JOINT_TOKENS.into()];
    Ports {
        time: input(model, "time", &[TIME_WIDTH.into(), TIMES.into()]),
        text: input(model, "text", &[config.joint_attention_dim.into(), Symbol::TEXT_TOKENS.into(), batch]),
        cos: input(model, "cos", &table),
        sin: input(model, "sin", &table),
        condition: model.port("condition", &[batch], DType::I32, Lifetime::Pass),
        latents: carried(model, "latents", config.in_channels, Symbol::IMAGE_TOKENS),
        prediction: carried(model, "prediction", config.in_channels, Symbol::IMAGE_TOKENS),
    }
}

/// Declares what becomes of `time`: what all modulation depends on, and the modulation of both streams of every block.
pub(super) fn declare_modulation(model: &mut Model, config: &Config, time: Port) -> Result<(Port, Vec<[Port; 2]>)> {
    let hidden = config.hidden();
    let vector = input(model, "vector", &[hidden.into(), TIMES.into()]);
    model.stage("time", Cadence::Request, |s| TimeIn::declare(s, hidden, time, vector))?;
    let mut modulations = Vec::with_capacity(config.num_layers);
    for i in 0..config.num_layers {
        let [img, txt] = ["img", "txt"]
            .map(|of| input(model, &format!("modulation.{i}.{of}"), &[(6 * hidden).into(), TIMES.into()]));
        model.stage(format!("modulation.{i}"), Cadence::Request, |s| {
            let mut s = s.sub("transformer_blocks");
            let mut s = s.sub(i);
            let img_mod = Linear::declare(&mut s.sub("img_mod.1"), hidden, 6 * hidden, Role::MatMul)?;
            let txt_mod = Linear::declare(&mut s.sub("txt_mod.1"), hidden, 6 * hidden, Role::MatMul)?;
            Ok(ModulationOut { vector, projections: vec![(img_mod, img), (txt_mod, txt)] })
        })?;
        modulations.push([img, txt]);
    }
    Ok((vector, modulations))
}

/// Declares block number `i`, which works on the image and the text in two ports.
pub(super) fn declare_block(
    model: &mut Model,
    config: &Config,
    (i, extents): (usize, Extents),
    ports: &Ports,
    ([img, txt], [img_mod, txt_mod]): ([Port; 2], [Port; 2]),
    residuals: Vec<Residual>,
) -> Result<()> {
    let (width, zero_cond_t) = (config.attention_head_dim, config.zero_cond_t);
    let shared = Shared { ports: *ports, width, zero_cond_t, extents };
    model.stage(format!("block.{i}.attention"), Cadence::Step, |s| {
        let mut s = s.sub("transformer_blocks");
        let mut s = s.sub(i);
        let image = Stream::declare(&mut s, config, &IMAGE, (img, img_mod))?;
        let text = Stream::declare(&mut s, config, &TEXT, (txt, txt_mod))?;
        Ok(JointAttention { img: image, txt: text, shared })
    })?;
    for (names, residuals, port, modulation) in [(&IMAGE, Some(residuals), img, img_mod), (&TEXT, None, txt, txt_mod)] {
        model.stage(format!("block.{i}.{}", names.stage), Cadence::Step, |s| {
            let mut s = s.sub("transformer_blocks");
            FeedForward::declare(&mut s.sub(i), config, (names, residuals), (port, modulation, shared))
        })?;
    }
    Ok(())
}
