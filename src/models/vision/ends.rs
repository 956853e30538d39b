//! Where pictures come into a vision tower, and where its result comes out.

use super::Config;
use super::config::Family;
use super::layer::Mlp;
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{LayerNorm, Linear};
use crate::stage::{Block, Build, Port};
use crate::weights::{Role, Scope, WeightId};

/// A token for each patch. The convolution takes each pixel once, so it is a product of a matrix and patches.
pub(super) struct Embed {
    patch_embedding: WeightId,
    bias: Option<WeightId>,
    class_embedding: Option<WeightId>,
    position_embedding: WeightId,
    pre_norm: Option<LayerNorm>,
    patch: usize,
    width: usize,
    pixels: Port,
    hidden: Port,
}

impl Embed {
    pub(super) fn declare(scope: &mut Scope<'_>, config: &Config, (pixels, hidden): (Port, Port)) -> Result<Embed> {
        let (side, width, is_clip) = (config.patch_size, config.hidden_size, config.model_type == Family::Clip);
        let mut embeddings = scope.sub("embeddings");
        let class_embedding = match is_clip {
            true => Some(embeddings.weight("class_embedding", &[width], Role::Vector)?),
            false => None,
        };
        let kernel = [side, side, config.num_channels, width];
        let patch_embedding = embeddings.weight("patch_embedding.weight", &kernel, Role::ConvKernel)?;
        let bias = match is_clip {
            true => None,
            false => Some(embeddings.weight("patch_embedding.bias", &[width], Role::Vector)?),
        };
        let table = [width, config.tokens()];
        let position_embedding = embeddings.weight("position_embedding.weight", &table, Role::Vector)?;
        let pre_norm = match is_clip {
            // As the files spell it.
            true => Some(LayerNorm::declare(&mut scope.sub("pre_layrnorm"), width, config.layer_norm_eps)?),
            false => None,
        };
        let patch = config.patch_numbers();
        Ok(Embed { patch_embedding, bias, class_embedding, position_embedding, pre_norm, patch, width, pixels, hidden })
    }
}

impl Block for Embed {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let kernel = b.g.reshape(b.weight(self.patch_embedding)?, &[self.patch, self.width])?;
        let mut x = b.g.mul_mat(kernel, b.read(self.pixels)?)?; // [D, N]
        if let Some(bias) = self.bias {
            x = b.g.add(x, b.weight(bias)?)?;
        }
        if let Some(class) = self.class_embedding {
            x = b.g.concat(b.g.reshape(b.weight(class)?, &[self.width, 1])?, x, 1)?; // [D, T]
        }
        x = b.g.add(x, b.weight(self.position_embedding)?)?;
        if let Some(norm) = &self.pre_norm {
            x = norm.build(b, x)?;
        }
        b.write(self.hidden, x)
    }
}

/// The norm after the last layer.
pub(super) struct FinalNorm {
    norm: LayerNorm,
    hidden: Port,
}

impl FinalNorm {
    pub(super) fn declare(scope: &mut Scope<'_>, config: &Config, hidden: Port) -> Result<FinalNorm> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        Ok(FinalNorm { norm: LayerNorm::declare(&mut scope.sub("post_layernorm"), width, eps)?, hidden })
    }
}

impl Block for FinalNorm {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        b.write(self.hidden, self.norm.build(b, b.read(self.hidden)?)?)
    }
}

/// SigLIP's head: a query of its own looks at all tokens.
struct Head {
    probe: WeightId,
    in_proj: Linear,
    out_proj: Linear,
    layernorm: LayerNorm,
    mlp: Mlp,
    width: usize,
    heads: usize,
}

impl Head {
    fn declare(scope: &mut Scope<'_>, config: &Config) -> Result<Head> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let probe = scope.weight("probe", &[width], Role::Vector)?;
        let mut attention = scope.sub("attention");
        let in_proj = Linear::declare(&mut attention.sub("in_proj"), width, 3 * width, Role::MatMul)?;
        let out_proj = Linear::declare(&mut attention.sub("out_proj"), width, width, Role::MatMul)?;
        let layernorm = LayerNorm::declare(&mut scope.sub("layernorm"), width, eps)?;
        let mlp = Mlp::declare(&mut scope.sub("mlp"), config)?;
        Ok(Head { probe, in_proj, out_proj, layernorm, mlp, width, heads: config.num_attention_heads })
    }

    /// `x [D, T]` gives `[D]`.
    fn build(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        let (width, heads) = (self.width, |x| b.g.split_rows(x, self.heads));
        let probe = b.g.reshape(b.weight(self.probe)?, &[width, 1])?;
        let q = heads(self.in_proj.build_outputs(b, probe, 0..width)?)?; // [d, H, 1]
        let k = heads(self.in_proj.build_outputs(b, x, width..2 * width)?)?; // [d, H, T]
        let v = heads(self.in_proj.build_outputs(b, x, 2 * width..3 * width)?)?;
        let x = self.out_proj.build(b, Attention::of(k, v).attend(b, q)?)?; // [D, 1]
        b.g.add(x, self.mlp.build(b, self.layernorm.build(b, x)?)?)
    }
}

/// One vector of all tokens.
pub(super) struct Pool {
    norm: LayerNorm,
    head: Option<Head>,
    visual_projection: Option<Linear>,
    hidden: Port,
    pooled: Port,
    width: usize,
}

impl Pool {
    pub(super) fn declare(
        scope: &mut Scope<'_>,
        config: &Config,
        projected: Option<usize>,
        (hidden, pooled): (Port, Port),
    ) -> Result<Pool> {
        let (inputs, eps) = (config.hidden_size, config.layer_norm_eps);
        let mut inside = scope.sub("vision_model");
        let norm = LayerNorm::declare(&mut inside.sub("post_layernorm"), inputs, eps)?;
        let head = match config.model_type {
            Family::Clip => None,
            Family::Siglip => Some(Head::declare(&mut inside.sub("head"), config)?),
        };
        let visual_projection = match projected {
            Some(width) => {
                let mut scope = scope.sub("visual_projection");
                Some(Linear::declare_unbiased(&mut scope, inputs, width, Role::MatMul)?)
            }
            None => None,
        };
        Ok(Pool { norm, head, visual_projection, hidden, pooled, width: projected.unwrap_or(inputs) })
    }
}

impl Block for Pool {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let hidden = b.read(self.hidden)?;
        let x = match &self.head {
            Some(head) => head.build(b, self.norm.build(b, hidden)?)?,
            None => self.norm.build(b, b.g.slice(hidden, 1, 0, 1)?)?, // [D, 1]
        };
        let x = match &self.visual_projection {
            Some(projection) => projection.build(b, x)?,
            None => x,
        };
        b.write(self.pooled, b.g.reshape(x, &[self.width])?)
    }
}
