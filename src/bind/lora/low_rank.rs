//! Low-rank changes of a UNet that belong to a network beside it. Control LoRAs are ControlNets whose files have, of the matrices that they share with a UNet, low-rank changes alone.
//!
//! Stability AI's `control-lora-*` for Stable Diffusion XL. ComfyUI defines them (`comfy/controlnet.py`): what the file has is taken as it
//! is, a weight that it does not have is the UNet's, and `NAME.up` times `NAME.down` is added to that. All tensors have the UNet's
//! original names, without `.weight` for these two. IP-Adapters for faces change attentions of the UNet itself.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::attach::attach;
use super::delta::{Delta, Factor, Form, Merged};
use super::target::Target;
use crate::bind::Piece;
use crate::index::{FileTensor, Index, tensor_at};
use crate::weights::{Manifest, Role, Weight};
use crate::{Error, Result};

/// What a file says that has such changes.
pub const CONTROL_MARK: &str = "lora_controlnet";

/// The low-rank changes of a file.
pub struct LowRank {
    path: PathBuf,
    changes: Vec<Change>,
}

/// The change of one weight.
struct Change {
    /// The weight's canonical name.
    name: String,
    down: Factor,
    up: Factor,
    /// Pixels of a kernel; 1 of a matrix.
    pixels: usize,
}

/// What files call the matrices of a change.
pub struct Spelling<'a> {
    /// For a canonical name, the names that `down` and `up` may have.
    pub names: &'a dyn Fn(&str) -> Vec<[String; 2]>,
    /// How the names of all such matrices end.
    pub ends: [&'a str; 2],
    /// What to say of changes that fit nothing.
    pub hint: &'a str,
}

impl Spelling<'_> {
    /// How the names of a control LoRA's matrices end, in the place of `.weight`.
    pub const CONTROL: [&'static str; 2] = [".down", ".up"];
}

impl LowRank {
    /// Finds the changes of all weights of `manifest` in `index`, under `prefix`. `origin` is the file.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming a tensor of another shape, without its counterpart, or that belongs to no weight.
    pub fn find(
        manifest: &Manifest,
        (index, prefix): (&Index, &str),
        spelling: &Spelling<'_>,
        origin: &Path,
    ) -> Result<LowRank> {
        let Spelling { names, ends, hint } = *spelling;
        let (mut changes, mut used) = (Vec::new(), HashSet::new());
        for (_, weight) in manifest.iter() {
            for names in names(&weight.name) {
                let names = names.map(|name| format!("{prefix}{name}"));
                let [down, up] = match [index.get(&names[0]), index.get(&names[1])] {
                    [Some(down), Some(up)] => [down, up],
                    [None, None] => continue,
                    [None, _] => return Err(Error::mismatch(origin, tensor_at(&names[0]), "a tensor", "none")),
                    [_, None] => return Err(Error::mismatch(origin, tensor_at(&names[1]), "a tensor", "none")),
                };
                let change = change(weight, (&names[0], down), (&names[1], up), origin);
                changes.push(change.map_err(|error| error.with_hint(hint))?);
                used.extend(names);
                break;
            }
        }
        let mut named =
            index.names().filter(|name| name.starts_with(prefix) && ends.iter().any(|end| name.ends_with(end)));
        if let Some(stray) = named.find(|name| !used.contains(*name)) {
            let error =
                Error::mismatch(origin, tensor_at(stray), "the change of a weight that the UNet has", "another");
            return Err(error.with_hint(hint));
        }
        Ok(LowRank { path: origin.to_owned(), changes })
    }

    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Declares and binds the changes in `target`. There, the names of what they change begin with `prefix`.
    ///
    /// # Errors
    /// [`Error::Graph`] if it does not have one of these weights.
    pub fn attach(&self, prefix: &str, target: &mut Target<'_>) -> Result<()> {
        let mut merged = Merged::default();
        for Change { name, down, up, pixels } in &self.changes {
            let name = format!("{prefix}{name}");
            let found = target.model.manifest().find(&name);
            let (id, _) = found.ok_or_else(|| Error::graph("control lora", format!("no weight {name}")))?;
            merged.deltas.push(Delta {
                id,
                module: name,
                path: self.path.clone(),
                rows: 0..up.rows,
                from: 0,
                columns: down.columns,
                pixels: *pixels,
                form: Form::LowRank { down: down.clone(), mid: None, up: up.clone() },
                scale: 1.0,
                strength: 1.0,
                magnitude: None,
            });
        }
        attach(target, merged)
    }
}

/// The extents that are not 1.
fn squeezed(extents: &[usize]) -> Vec<usize> {
    extents.iter().copied().filter(|&extent| extent != 1).collect()
}

/// The change of `weight`, whose matrices `down` and `up` have these names.
fn change(weight: &Weight, down: (&str, &FileTensor), up: (&str, &FileTensor), origin: &Path) -> Result<Change> {
    let extents = weight.shape.dims();
    let [w, h, inputs, outputs] = match weight.role {
        Role::ConvKernel => extents,
        _ => [1, 1, extents[0], extents[1]],
    };
    let (columns, rank) = (w * h * inputs, up.1.shape.elements() / outputs.max(1));
    for ((name, tensor), extents) in [(up, [rank, outputs, 1, 1]), (down, [w, h, inputs, rank])] {
        if rank == 0 || squeezed(&tensor.shape.dims()) != squeezed(&extents) {
            let [a, b, c, d] = extents;
            let expected = format!("shape {a}x{b}x{c}x{d}, for {}", weight.name);
            return Err(Error::mismatch(origin, tensor_at(name), expected, tensor.shape.to_string()));
        }
    }
    let down = Factor { piece: Piece::whole(down.0, down.1)?, rows: rank, columns };
    let up = Factor { piece: Piece::whole(up.0, up.1)?, rows: outputs, columns: rank };
    Ok(Change { name: weight.name.clone(), down, up, pixels: w * h })
}
