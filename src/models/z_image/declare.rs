//! What the model and its ControlNet declare alike: ports.

use pinhole_quant::DType;

use super::config::Config;
use super::ports::{Ports, TIME_WIDTH};
use crate::stage::{Extent, Lifetime, Model, Port, Symbol};

/// A port that a request sets, or that is computed once for it.
pub(super) fn input(model: &mut Model, name: &str, extents: &[Extent]) -> Port {
    model.port(name, extents, DType::F32, Lifetime::Request)
}

/// A port of `[width, tokens, B]` that is carried through a step.
pub(super) fn carried(model: &mut Model, name: &str, width: usize, tokens: Symbol) -> Port {
    model.port(name, &[width.into(), tokens.into(), Symbol::BATCH.into()], DType::F32, Lifetime::Pass)
}

/// Declares where a request is put.
pub(super) fn declare_ports(model: &mut Model, config: &Config) -> Ports {
    let batch = Extent::from(Symbol::BATCH);
    let table = [config.head_width().into(), 1.into(), Symbol::JOINT_TOKENS.into(), Symbol::TABLES.into()];
    Ports {
        time: input(model, "time", &[TIME_WIDTH.into(), Symbol::CONDITIONS.into()]),
        text: input(model, "text", &[config.cap_feat_dim.into(), Symbol::TEXT_TOKENS.into(), batch]),
        text_kept: input(model, "text_kept", &[1.into(), Symbol::TEXT_TOKENS.into(), batch]),
        image_kept: input(model, "image_kept", &[1.into(), Symbol::IMAGE_TOKENS.into()]),
        cos: input(model, "cos", &table),
        sin: input(model, "sin", &table),
        condition: model.port("condition", &[batch], DType::I32, Lifetime::Pass),
        latents: carried(model, "latents", config.token_width(), Symbol::IMAGE_TOKENS),
        prediction: carried(model, "prediction", config.token_width(), Symbol::IMAGE_TOKENS),
    }
}

/// What is carried from stage to stage.
#[derive(Clone, Copy)]
pub(super) struct Carried {
    pub(super) vector: Port,
    pub(super) context: Port,
    pub(super) img: Port,
    pub(super) joint: Port,
}

impl Carried {
    pub(super) fn declare(model: &mut Model, config: &Config) -> Carried {
        let hidden = config.dim;
        Carried {
            vector: input(model, "vector", &[config.time_width().into(), Symbol::CONDITIONS.into()]),
            context: input(model, "context", &[hidden.into(), Symbol::TEXT_TOKENS.into(), Symbol::BATCH.into()]),
            img: carried(model, "img", hidden, Symbol::IMAGE_TOKENS),
            joint: carried(model, "joint", hidden, Symbol::JOINT_TOKENS),
        }
    }
}
