//! Blocks: attention of all tokens to each other, attention to the prompt and to what is seen of pictures, and a feed-forward layer.

use super::config::Config;
use super::modulation::{At, Modulation, Table};
use super::ports::{GIVEN_TOKENS, Ports};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{LayerNorm, Linear, RmsNorm};
use crate::stage::{Build, Port, Symbol};
use crate::weights::{Role, Scope};

/// Queries, keys and values, and norms over their whole width.
struct Heads {
    q: Linear,
    k: Linear,
    v: Linear,
    norm_q: RmsNorm,
    norm_k: RmsNorm,
    out: Linear,
    heads: usize,
}

impl Heads {
    fn declare(s: &mut Scope<'_>, config: &Config) -> Result<Heads> {
        let (hidden, eps) = (config.hidden(), config.eps);
        let mut linear = |name, role| Linear::declare(&mut s.sub(name), hidden, hidden, role);
        let (q, k, v) = (linear("q", Role::MatMul)?, linear("k", Role::MatMul)?, linear("v", Role::MatMul)?);
        let out = linear("o", Role::WideMatMul)?;
        let norm_q = RmsNorm::declare(&mut s.sub("norm_q"), "weight", hidden, eps)?;
        let norm_k = RmsNorm::declare(&mut s.sub("norm_k"), "weight", hidden, eps)?;
        Ok(Heads { q, k, v, norm_q, norm_k, out, heads: config.num_attention_heads })
    }

    /// The queries, `[d, H, n, B]`, of `x [D, n, B]`.
    fn queries(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        b.g.split_rows(self.norm_q.build(b, self.q.build(b, x)?)?, self.heads)
    }

    /// The keys and values, `[d, H, n, B]` each, of `x [D, n, B]`.
    fn keys_and_values(&self, b: &Build<'_>, x: Tensor) -> Result<(Tensor, Tensor)> {
        let k = b.g.split_rows(self.norm_k.build(b, self.k.build(b, x)?)?, self.heads)?;
        Ok((k, b.g.split_rows(self.v.build(b, x)?, self.heads)?))
    }
}

/// Keys and values of what is seen of pictures, in models that look at them.
struct Seen {
    k: Linear,
    v: Linear,
    norm_k: RmsNorm,
    port: Port,
}

impl Seen {
    fn declare(s: &mut Scope<'_>, config: &Config, port: Port) -> Result<Seen> {
        let hidden = config.hidden();
        let k = Linear::declare(&mut s.sub("k_img"), hidden, hidden, Role::MatMul)?;
        let v = Linear::declare(&mut s.sub("v_img"), hidden, hidden, Role::MatMul)?;
        let norm_k = RmsNorm::declare(&mut s.sub("norm_k_img"), "weight", hidden, config.eps)?;
        Ok(Seen { k, v, norm_k, port })
    }

    fn attention(&self, b: &Build<'_>, heads: usize) -> Result<Attention> {
        let seen = b.read(self.port)?; // [D, Ts, B]
        let k = b.g.split_rows(self.norm_k.build(b, self.k.build(b, seen)?)?, heads)?;
        Ok(Attention::of(k, b.g.split_rows(self.v.build(b, seen)?, heads)?))
    }
}

/// What the blocks share.
#[derive(Clone, Copy)]
pub(super) struct Carried {
    pub(super) hidden: Port,
    pub(super) context: Port,
    pub(super) seen: Option<Port>,
    pub(super) projected: Port,
}

/// One block.
pub(super) struct Block {
    table: Table,
    own: Heads,
    norm: LayerNorm,
    cross: Heads,
    seen: Option<Seen>,
    ffn_0: Linear,
    ffn_2: Linear,
    carried: Carried,
    ports: Ports,
    width: usize,
    eps: f32,
}

/// Where shift and scale, and the gate, of attention and of the feed-forward layer stand in a modulation.
const ATTENTION: ([usize; 2], usize) = ([0, 1], 2);
const FEED_FORWARD: ([usize; 2], usize) = ([3, 4], 5);

/// Some tokens that are modulated alike.
struct Tokens<'b, 'a> {
    modulation: Modulation<'b, 'a>,
    first: usize,
    count: usize,
}

impl Block {
    pub(super) fn declare(s: &mut Scope<'_>, config: &Config, ports: &Ports, carried: Carried) -> Result<Block> {
        let (hidden, inner) = (config.hidden(), config.ffn_dim);
        let table = Table::declare(s, hidden, 6)?;
        let own = Heads::declare(&mut s.sub("self_attn"), config)?;
        let norm = LayerNorm::declare(&mut s.sub("norm3"), hidden, config.eps)?;
        let cross = Heads::declare(&mut s.sub("cross_attn"), config)?;
        let seen = carried.seen.map(|port| Seen::declare(&mut s.sub("cross_attn"), config, port)).transpose()?;
        let ffn_0 = Linear::declare(&mut s.sub("ffn.0"), hidden, inner, Role::MatMul)?;
        let ffn_2 = Linear::declare(&mut s.sub("ffn.2"), inner, hidden, Role::WideMatMul)?;
        let (width, eps) = (config.attention_head_dim, config.eps);
        Ok(Block { table, own, norm, cross, seen, ffn_0, ffn_2, carried, ports: *ports, width, eps })
    }

    /// All tokens, by how they are modulated: those of the given frame come first.
    fn tokens<'b, 'a>(&self, b: &'b Build<'a>) -> Result<Vec<Tokens<'b, 'a>>> {
        let (all, given) = (b.dim(Symbol::IMAGE_TOKENS)?, b.dim(GIVEN_TOKENS)?);
        let mut found = Vec::new();
        for (at, first, end) in [(At::Last, 0, given), (At::Step(self.ports.condition), given, all)] {
            if first < end {
                let modulation = self.table.read(b, self.carried.projected, at)?;
                found.push(Tokens { modulation, first, count: end - first });
            }
        }
        Ok(found)
    }

    /// Queries or keys `x [d, H, n, B]` of the tokens from `start` on, turned to their positions.
    fn turn(&self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, tokens, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, tokens);
        b.g.rotate_pairs(x, of(self.ports.cos)?, of(self.ports.sin)?)
    }

    /// What `x [D, n, B]` takes from the prompt and from what is seen.
    fn told(&self, b: &Build<'_>, x: Tensor, text: &Attention, seen: Option<&Attention>) -> Result<Tensor> {
        let q = self.cross.queries(b, self.norm.build(b, x)?)?;
        let mut told = text.attend(b, q)?;
        if let Some(seen) = seen {
            told = b.g.add(told, seen.attend(b, q)?)?;
        }
        self.cross.out.build(b, told)
    }
}

impl Tokens<'_, '_> {
    /// Calls `compute` for a piece of them at a time, with where it begins among all tokens of `port`.
    fn pieces(&self, b: &Build<'_>, port: Port, mut compute: impl FnMut(Tensor, usize) -> Result<()>) -> Result<()> {
        let all = b.read(port)?;
        let [_, tokens, ..] = b.g.shape(all)?.dims();
        for piece in b.token_ranges(self.count) {
            let start = self.first + piece.start;
            let x = if piece.len() == tokens { all } else { b.g.slice(all, 1, start, piece.len())? };
            compute(x, start)?;
        }
        Ok(())
    }
}

impl crate::stage::Block for Block {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let (tokens, hidden, eps) = (self.tokens(b)?, self.carried.hidden, self.eps);
        let dims = [self.width, self.own.heads, b.dim(Symbol::IMAGE_TOKENS)?, b.dim(Symbol::BATCH)?];
        let attention = Attention::new(b, dims)?;
        for tokens in &tokens {
            tokens.pieces(b, hidden, |x, at| {
                let x = tokens.modulation.modulate(x, ATTENTION.0, eps)?;
                let (k, v) = self.own.keys_and_values(b, x)?;
                attention.set(b, at, (self.turn(b, k, at)?, v))
            })?;
        }
        let (k, v) = self.cross.keys_and_values(b, b.read(self.carried.context)?)?;
        let text = Attention::of(k, v);
        let seen = self.seen.as_ref().map(|seen| seen.attention(b, self.cross.heads)).transpose()?;
        for tokens in &tokens {
            let m = &tokens.modulation;
            tokens.pieces(b, hidden, |x, at| {
                let q = self.own.queries(b, m.modulate(x, ATTENTION.0, eps)?)?;
                let attended = attention.attend(b, self.turn(b, q, at)?)?;
                let x = m.gated(x, self.own.out.build(b, attended)?, ATTENTION.1)?;
                let x = b.g.add(x, self.told(b, x, &text, seen.as_ref())?)?;
                let inner = self.ffn_0.build(b, m.modulate(x, FEED_FORWARD.0, eps)?)?; // [F, n, B]
                let y = self.ffn_2.build(b, b.g.gelu_tanh(inner)?)?;
                b.write_tokens(hidden, at, m.gated(x, y, FEED_FORWARD.1)?)
            })?;
        }
        Ok(())
    }
}
