//! Blocks: attention of all tokens to each other, attention to the prompt and to what is seen of pictures, and a feed-forward layer. Each
//! is a stage of its own: of a film, keys and values of all tokens are large, and so is the inside of the feed-forward layer.

use std::ops::Range;

use super::config::Config;
use super::modulation::{At, Modulation, PARTS, Table};
use super::ports::{ALL_TOKENS, GIVEN_TOKENS, Ports};
use crate::Result;
use crate::ggml::Tensor;
use crate::models::attention::Attention;
use crate::models::layers::{LayerNorm, Linear, RmsNorm};
use crate::stage::{Block, Build, Cadence, Model, Port, Symbol};
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

    /// The keys, `[d, H, n, B]`, of `x [D, n, B]`.
    fn keys(&self, b: &Build<'_>, x: Tensor) -> Result<Tensor> {
        b.g.split_rows(self.norm_k.build(b, self.k.build(b, x)?)?, self.heads)
    }

    /// The keys and values, `[d, H, n, B]` each, of `x [D, n, B]`.
    fn keys_and_values(&self, b: &Build<'_>, x: Tensor) -> Result<(Tensor, Tensor)> {
        Ok((self.keys(b, x)?, b.g.split_rows(self.v.build(b, x)?, self.heads)?))
    }

    /// The values of some heads.
    fn values(&self, b: &Build<'_>, x: Tensor, heads: Range<usize>) -> Result<Tensor> {
        let [width, ..] = b.g.shape(x)?.dims();
        let own = width / self.heads;
        b.g.split_rows(self.v.build_outputs(b, x, own * heads.start..own * heads.end)?, heads.len())
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
    /// `[D, 6, B]` and `[D, 6, 1]`: the modulation of a block at the step's time, and at that of a given frame, as its first stage leaves
    /// it to its last.
    pub(super) modulated: [Port; 2],
}

/// How many stages a block is. One after the other is on the device with its weights, and none has the intermediate results of another.
pub(super) const STAGES: usize = 3;

/// Adds the block `name`, whose weights are `number` in the list `list`.
pub(super) fn declare(
    model: &mut Model,
    (name, list, number): (&str, &str, usize),
    config: &Config,
    (ports, carried): (&Ports, Carried),
) -> Result<()> {
    let [looks, told, feeds] = ["attention", "prompt", "feed_forward"].map(|part| format!("{name}.{part}"));
    model.stage(looks, Cadence::Step, |s| Looks::declare(&mut s.sub(list).sub(number), config, (*ports, carried)))?;
    model.stage(told, Cadence::Step, |s| Told::declare(&mut s.sub(list).sub(number), config, carried))?;
    model.stage(feeds, Cadence::Step, |s| Feeds::declare(&mut s.sub(list).sub(number), config, carried))
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

/// All tokens, by how they are modulated, as `read` says: those of the given frame come first.
fn tokens<'b, 'a>(b: &Build<'a>, read: impl Fn(usize) -> Result<Modulation<'b, 'a>>) -> Result<Vec<Tokens<'b, 'a>>> {
    let (all, given) = (b.dim(ALL_TOKENS)?, b.dim(GIVEN_TOKENS)?);
    let mut found = Vec::new();
    for (which, first, end) in [(GIVEN, 0, given), (OTHERS, given, all)] {
        if first < end {
            found.push(Tokens { modulation: read(which)?, first, count: end - first });
        }
    }
    Ok(found)
}

/// The place of a modulation among [`Carried::modulated`].
const OTHERS: usize = 0;
const GIVEN: usize = 1;

impl Tokens<'_, '_> {
    /// Calls `compute` for a piece of them at a time, with where it begins among all tokens of `port`.
    fn pieces(&self, b: &Build<'_>, port: Port, mut compute: impl FnMut(Tensor, usize) -> Result<()>) -> Result<()> {
        for piece in b.token_ranges(self.count) {
            let start = self.first + piece.start;
            compute(b.piece(port, start..start + piece.len())?, start)?;
        }
        Ok(())
    }
}

/// The first stage of a block: all tokens look at each other.
struct Looks {
    table: Table,
    own: Heads,
    carried: Carried,
    ports: Ports,
    width: usize,
    eps: f32,
}

impl Looks {
    fn declare(s: &mut Scope<'_>, config: &Config, (ports, carried): (Ports, Carried)) -> Result<Looks> {
        let table = Table::declare(s, config.hidden(), PARTS)?;
        let own = Heads::declare(&mut s.sub("self_attn"), config)?;
        Ok(Looks { table, own, carried, ports, width: config.attention_head_dim, eps: config.eps })
    }

    /// Queries or keys `x [d, H, n, B]` of the tokens from `start` on, turned to their positions.
    fn turn(&self, b: &Build<'_>, x: Tensor, start: usize) -> Result<Tensor> {
        let [_, _, tokens, _] = b.g.shape(x)?.dims();
        let of = |table| b.g.slice(b.read(table)?, 2, start, tokens);
        b.g.rotate_pairs(x, of(self.ports.cos)?, of(self.ports.sin)?)
    }

    /// Extents of the keys of so many `heads`.
    fn dims(&self, b: &Build<'_>, heads: usize) -> Result<[usize; 4]> {
        Ok([self.width, heads, b.dim(ALL_TOKENS)?, b.dim(Symbol::BATCH)?])
    }

    /// The stage, some heads after the others. Norms are over the width of all heads, which is computed for each part. Keys and values of
    /// a part are written over those of the part before.
    fn in_parts_of_heads(&self, b: &Build<'_>, tokens: &[Tokens<'_, '_>], ranges: &[Range<usize>]) -> Result<()> {
        let (hidden, each) = (self.carried.hidden, ranges.first().map_or(0, Range::len));
        let dims @ [_, _, all, batch] = self.dims(b, each)?;
        let attention = Attention::new(b, dims)?;
        let mut attended = Vec::with_capacity(ranges.len());
        for heads in ranges {
            let own = |x| b.g.slice(x, 1, heads.start, each);
            for part in tokens {
                part.pieces(b, hidden, |x, at| {
                    let x = part.modulation.modulate(x, ATTENTION.0, self.eps)?;
                    let k = self.turn(b, own(self.own.keys(b, x)?)?, at)?;
                    attention.set(b, at, (k, self.own.values(b, x, heads.clone())?))
                })?;
            }
            let found = b.g.unfilled(&[self.width * each, all, batch])?;
            for part in tokens {
                part.pieces(b, hidden, |x, at| {
                    let q = self.own.queries(b, part.modulation.modulate(x, ATTENTION.0, self.eps)?)?;
                    b.g.fill(found, 1, at, attention.attend(b, self.turn(b, own(q)?, at)?)?)
                })?;
            }
            attended.push(found);
        }
        for part in tokens {
            part.pieces(b, hidden, |x, at| {
                let [_, count, ..] = b.g.shape(x)?.dims();
                let mut joined = b.g.slice(attended[0], 1, at, count)?;
                for &next in &attended[1..] {
                    joined = b.g.concat(joined, b.g.slice(next, 1, at, count)?, 0)?;
                }
                b.write_tokens(hidden, at, part.modulation.gated(x, self.own.out.build(b, joined)?, ATTENTION.1)?)
            })?;
        }
        Ok(())
    }
}

impl Block for Looks {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Carried { hidden, projected, modulated, .. } = self.carried;
        let tokens = tokens(b, |which| {
            let at = if which == GIVEN { At::Last } else { At::Step(self.ports.condition) };
            let modulation = self.table.read(b, projected, at)?.summed()?;
            b.write(modulated[which], modulation.rows())?;
            Ok(modulation)
        })?;
        let ranges = b.head_ranges(self.own.heads);
        if ranges.len() > 1 {
            return self.in_parts_of_heads(b, &tokens, &ranges);
        }
        let attention = Attention::new(b, self.dims(b, self.own.heads)?)?;
        for tokens in &tokens {
            tokens.pieces(b, hidden, |x, at| {
                let x = tokens.modulation.modulate(x, ATTENTION.0, self.eps)?;
                let (k, v) = self.own.keys_and_values(b, x)?;
                attention.set(b, at, (self.turn(b, k, at)?, v))
            })?;
        }
        for tokens in &tokens {
            let m = &tokens.modulation;
            tokens.pieces(b, hidden, |x, at| {
                let q = self.own.queries(b, m.modulate(x, ATTENTION.0, self.eps)?)?;
                let attended = attention.attend(b, self.turn(b, q, at)?)?;
                b.write_tokens(hidden, at, m.gated(x, self.own.out.build(b, attended)?, ATTENTION.1)?)
            })?;
        }
        Ok(())
    }
}

/// The second stage of a block: tokens look at the prompt, and at what is seen of pictures.
struct Told {
    norm: LayerNorm,
    cross: Heads,
    seen: Option<Seen>,
    carried: Carried,
}

impl Told {
    fn declare(s: &mut Scope<'_>, config: &Config, carried: Carried) -> Result<Told> {
        let norm = LayerNorm::declare(&mut s.sub("norm3"), config.hidden(), config.eps)?;
        let cross = Heads::declare(&mut s.sub("cross_attn"), config)?;
        let seen = carried.seen.map(|port| Seen::declare(&mut s.sub("cross_attn"), config, port)).transpose()?;
        Ok(Told { norm, cross, seen, carried })
    }
}

impl Block for Told {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Carried { hidden, context, .. } = self.carried;
        let (k, v) = self.cross.keys_and_values(b, b.read(context)?)?;
        let text = Attention::of(k, v);
        let seen = self.seen.as_ref().map(|seen| seen.attention(b, self.cross.heads)).transpose()?;
        b.tokens(hidden, |x, at| {
            let q = self.cross.queries(b, self.norm.build(b, x)?)?;
            let mut told = text.attend(b, q)?;
            if let Some(seen) = &seen {
                told = b.g.add(told, seen.attend(b, q)?)?;
            }
            b.write_tokens(hidden, at.start, b.g.add(x, self.cross.out.build(b, told)?)?)
        })
    }
}

/// The last stage of a block.
struct Feeds {
    ffn_0: Linear,
    ffn_2: Linear,
    carried: Carried,
    eps: f32,
}

impl Feeds {
    fn declare(s: &mut Scope<'_>, config: &Config, carried: Carried) -> Result<Feeds> {
        let (hidden, inner) = (config.hidden(), config.ffn_dim);
        let ffn_0 = Linear::declare(&mut s.sub("ffn.0"), hidden, inner, Role::MatMul)?;
        let ffn_2 = Linear::declare(&mut s.sub("ffn.2"), inner, hidden, Role::WideMatMul)?;
        Ok(Feeds { ffn_0, ffn_2, carried, eps: config.eps })
    }
}

impl Block for Feeds {
    fn build(&self, b: &Build<'_>) -> Result<()> {
        let Carried { hidden, modulated, .. } = self.carried;
        for tokens in &tokens(b, |which| Modulation::of(b, b.read(modulated[which])?))? {
            let m = &tokens.modulation;
            tokens.pieces(b, hidden, |x, at| {
                let inner = self.ffn_0.build(b, m.modulate(x, FEED_FORWARD.0, self.eps)?)?; // [F, n, B]
                let y = self.ffn_2.build(b, b.g.gelu_tanh(inner)?)?;
                b.write_tokens(hidden, at, m.gated(x, y, FEED_FORWARD.1)?)
            })?;
        }
        Ok(())
    }
}
