//! From the tensors of one module to the change that they make, with every shape checked.

use pinhole_quant::DType;

use super::delta::{Delta, Factor, Form, Magnitude, Merged, Pair, Side};
use super::file::Lora;
use super::keys::Part;
use super::places::{Placed, Rows, first_extent, matrix, other_extents, with_family};
use super::target::Base;
use crate::bind::{Bound, Piece};
use crate::index::{Storage, tensor_at};
use crate::weights::{Role, Weight};
use crate::{Error, Result, reserve};

/// How many numbers are looked at at a time.
const CHUNK: usize = 1 << 20;

/// Adds what `placed` changes to `fitted`, one for each target.
pub(super) fn read(
    lora: &Lora,
    strength: f32,
    placed: &Placed<'_>,
    bases: &[Base<'_>],
    fitted: &mut [Merged],
) -> Result<()> {
    let reader = Reader { lora, placed };
    reader.check_parts()?;
    for tensor in placed.module.parts.values() {
        reader.check_finite(tensor)?;
    }
    for rows in &placed.weights {
        let weight = bases[rows.target].manifest.get(rows.id);
        let [_, columns, pixels] = matrix(weight);
        let merged = &mut fitted[rows.target];
        if weight.role == Role::Vector {
            if placed.module.parts.keys().all(|part| *part == Part::DiffBias) {
                continue;
            }
            let differences = reader.differences(rows, bases[rows.target].bound)?;
            let factor = if reader.has(Part::Scales) { 1.0 } else { strength };
            let scaled = differences.into_iter().map(|number| factor * number).collect();
            merged.vectors.push((rows.id, rows.rows.start, scaled));
            continue;
        }
        let Some((form, scale)) = reader.form(weight, columns, pixels)? else { continue };
        merged.deltas.push(Delta {
            id: rows.id,
            module: placed.module.key.name.clone(),
            path: lora.path.clone(),
            rows: rows.rows.clone(),
            from: rows.from,
            columns,
            pixels,
            form,
            scale,
            strength,
            magnitude: reader.magnitude(columns / pixels)?,
        });
    }
    reader.biases(strength, fitted)
}

/// The alpha that `lora` has as its tensor `name`.
pub(super) fn alpha(lora: &Lora, name: &str) -> Result<f32> {
    let tensor = lora.tensor(name)?;
    if tensor.shape.elements() != 1 {
        let error = Error::mismatch(&lora.path, tensor_at(name), "one number", tensor.shape.elements().to_string());
        return Err(with_family(error, lora));
    }
    let mut alpha = [0.0];
    match (tensor.storage, tensor.bytes()) {
        // What PyTorch makes of a whole number.
        (Storage::Number(DType::I64), bytes) => {
            alpha[0] = bytes.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes)) as f32;
        }
        _ => Piece::whole(name, tensor)?.read_f32(&mut alpha)?,
    }
    Ok(alpha[0])
}

/// Reads the parts of one module.
struct Reader<'a> {
    lora: &'a Lora,
    placed: &'a Placed<'a>,
}

impl Reader<'_> {
    fn has(&self, part: Part) -> bool {
        self.placed.module.parts.contains_key(&part)
    }

    fn wrong(&self, part: Part, expected: impl Into<String>, found: impl Into<String>) -> Error {
        let tensor = self.placed.module.parts.get(&part).map_or("", String::as_str);
        with_family(Error::mismatch(&self.lora.path, tensor_at(tensor), expected, found), self.lora)
    }

    /// Refuses parts that lack another, or that are of no form that is known.
    fn check_parts(&self) -> Result<()> {
        let both = [
            (&[Part::Down, Part::Mid][..], Part::Up, "lora_up or lora_B"),
            (&[Part::Up, Part::Mid], Part::Down, "lora_down or lora_A"),
            (&[Part::HadaW1A, Part::HadaW2A, Part::HadaW2B, Part::HadaT1, Part::HadaT2], Part::HadaW1B, "hada_w1_b"),
            (&[Part::HadaW1B, Part::HadaW2A, Part::HadaW2B], Part::HadaW1A, "hada_w1_a"),
            (&[Part::HadaW1A, Part::HadaW1B, Part::HadaW2B], Part::HadaW2A, "hada_w2_a"),
            (&[Part::HadaW1A, Part::HadaW1B, Part::HadaW2A], Part::HadaW2B, "hada_w2_b"),
            (&[Part::HadaT1], Part::HadaT2, "hada_t2"),
            (&[Part::HadaT2], Part::HadaT1, "hada_t1"),
            (&[Part::LokrW1A], Part::LokrW1B, "lokr_w1_b"),
            (&[Part::LokrW1B], Part::LokrW1A, "lokr_w1_a"),
            (&[Part::LokrW2A, Part::LokrT2], Part::LokrW2B, "lokr_w2_b"),
            (&[Part::LokrW2B, Part::LokrT2], Part::LokrW2A, "lokr_w2_a"),
            (&[Part::UpBias], Part::Up, "lora_up or lora_B"),
        ];
        for (of, needed, name) in both {
            if let Some(part) = of.iter().find(|part| self.has(**part) && !self.has(needed)) {
                return Err(self.wrong(*part, format!("its {name} beside it"), "none"));
            }
        }
        for (of, needed) in [
            ([Part::LokrW1, Part::LokrW1A], [Part::LokrW2, Part::LokrW2A]),
            ([Part::LokrW2, Part::LokrW2A], [Part::LokrW1, Part::LokrW1A]),
        ] {
            if let Some(part) = of.iter().find(|part| self.has(**part) && !needed.iter().any(|part| self.has(*part))) {
                return Err(self.wrong(*part, "the other factor of the Kronecker product beside it", "none"));
            }
        }
        let forms = [Part::Down, Part::HadaW1A, Part::Diff, Part::Set, Part::Scales];
        let lokr = self.has(Part::LokrW1) || self.has(Part::LokrW1A);
        let count = forms.iter().filter(|part| self.has(**part)).count() + usize::from(lokr);
        if count > 1 {
            let part = forms.into_iter().find(|part| self.has(*part)).unwrap_or(Part::LokrW1);
            return Err(self.wrong(part, "one change of a weight", format!("{count} of them")));
        }
        Ok(())
    }

    fn check_finite(&self, tensor: &str) -> Result<()> {
        let found = self.lora.tensor(tensor)?;
        if found.storage == DType::I64 && found.shape.elements() == 1 {
            return Ok(());
        }
        let piece = Piece::whole(tensor, found)?;
        let mut numbers = Vec::new();
        for start in (0..piece.len()).step_by(CHUNK) {
            let len = CHUNK.min(piece.len() - start);
            reserve::resize("a LoRA", &mut numbers, len)?;
            piece.part(start, len).read_f32(&mut numbers)?;
            if !numbers.iter().all(|number| number.is_finite()) {
                let hint = "the file is damaged, or its training diverged: get it again, or another";
                let at = format!("{} of {}", tensor_at(tensor), self.lora.path.display());
                return Err(Error::NotFinite { at, hint: Some(hint.into()) });
            }
        }
        Ok(())
    }

    /// The part as a matrix.
    fn factor(&self, part: Part) -> Result<Option<Factor>> {
        let Some(name) = self.placed.module.parts.get(&part) else { return Ok(None) };
        let tensor = self.lora.tensor(name)?;
        let (rows, columns) = (first_extent(&tensor.file_shape), other_extents(tensor.shape, &tensor.file_shape));
        Ok(Some(Factor { piece: Piece::whole(name, tensor)?, rows, columns }))
    }

    /// The part, which [`check_parts`](Self::check_parts) has found.
    fn needed(&self, part: Part) -> Result<Factor> {
        self.factor(part)?.ok_or_else(|| self.wrong(part, "a part of the change", "none"))
    }

    /// Refuses a factor of other columns.
    fn expect_columns(&self, part: Part, factor: &Factor, columns: usize, of: &str) -> Result<()> {
        match factor.columns == columns {
            true => Ok(()),
            false => Err(self.wrong(part, format!("{columns} columns, {of}"), factor.columns.to_string())),
        }
    }

    /// What the change of `weight` is made of, and what it is multiplied with.
    fn form(&self, weight: &Weight, columns: usize, pixels: usize) -> Result<Option<(Form, f32)>> {
        let of = format!("as {} has", weight.name);
        if self.has(Part::Down) {
            return self.low_rank(columns, pixels, &of).map(Some);
        }
        if self.has(Part::HadaW1A) {
            let pairs = [
                self.pair([Part::HadaW1A, Part::HadaW1B, Part::HadaT1], true)?,
                self.pair([Part::HadaW2A, Part::HadaW2B, Part::HadaT2], true)?,
            ];
            let [outputs, _] = pairs[0].extents();
            for (pair, part) in pairs.iter().zip([Part::HadaW1B, Part::HadaW2B]) {
                let [rows, found] = pair.extents();
                if found != columns || rows != outputs {
                    return Err(self.wrong(part, format!("{columns} columns, {of}"), found.to_string()));
                }
            }
            let rank = pairs[0].b.rows;
            return Ok(Some((Form::Hadamard(Box::new(pairs)), self.scale(rank)?)));
        }
        if self.has(Part::LokrW1) || self.has(Part::LokrW1A) {
            return self.kronecker(columns, &of).map(Some);
        }
        if self.has(Part::Set) {
            return Err(self.wrong(Part::Set, "differences of matrices", "a matrix to put in another's place"));
        }
        let Some(dense) = self.factor(Part::Diff)? else { return Ok(None) };
        self.expect_columns(Part::Diff, &dense, columns, &of)?;
        Ok(Some((Form::Dense(dense), 1.0)))
    }

    fn low_rank(&self, columns: usize, pixels: usize, of: &str) -> Result<(Form, f32)> {
        let (down, up, mid) = (self.needed(Part::Down)?, self.needed(Part::Up)?, self.factor(Part::Mid)?);
        let Some(mid) = mid else {
            self.expect_columns(Part::Down, &down, columns, of)?;
            if up.columns != down.rows {
                return Err(self.wrong(
                    Part::Up,
                    format!("the rank of its down, {}", down.rows),
                    up.columns.to_string(),
                ));
            }
            let scale = self.scale(down.rows)?;
            return Ok((Form::LowRank { down, mid: None, up }, scale));
        };
        self.expect_columns(Part::Down, &down, columns / pixels, of)?;
        self.expect_columns(Part::Mid, &mid, down.rows * pixels, "its down's rank times the kernel's pixels")?;
        if up.columns != mid.rows {
            return Err(self.wrong(Part::Up, format!("the rank of its mid, {}", mid.rows), up.columns.to_string()));
        }
        let scale = self.scale(down.rows)?;
        Ok((Form::LowRank { down, mid: Some(mid), up }, scale))
    }

    /// Two factors and the core between them, whose ranks agree. `by_rank` says whether the first has a row for each rank where
    /// there is a core.
    fn pair(&self, [a, b, core]: [Part; 3], by_rank: bool) -> Result<Pair> {
        let pair = Pair { a: self.needed(a)?, b: self.needed(b)?, core: self.factor(core)?, a_by_rank: false };
        let Some(factor) = &pair.core else {
            self.expect_columns(a, &pair.a, pair.b.rows, "the rank of the other factor")?;
            return Ok(pair);
        };
        if factor.rows != pair.a.rows || !factor.columns.is_multiple_of(pair.b.rows.max(1)) {
            let expected = format!("a core of the ranks {} and {}", pair.a.rows, pair.b.rows);
            return Err(self.wrong(core, expected, format!("{} x {}", factor.rows, factor.columns)));
        }
        Ok(Pair { a_by_rank: by_rank, ..pair })
    }

    fn kronecker(&self, columns: usize, of: &str) -> Result<(Form, f32)> {
        let side = |whole: Part, parts: [Part; 3]| -> Result<(Side, Option<usize>)> {
            if let Some(factor) = self.factor(whole)? {
                return Ok((Side::Whole(factor), None));
            }
            let pair = self.pair(parts, true)?;
            let rank = pair.b.rows;
            Ok((Side::Pair(Box::new(pair)), Some(rank)))
        };
        // Of the left matrix there is no core, and its part is no one's.
        let (left, left_rank) = side(Part::LokrW1, [Part::LokrW1A, Part::LokrW1B, Part::Mid])?;
        let (right, right_rank) = side(Part::LokrW2, [Part::LokrW2A, Part::LokrW2B, Part::LokrT2])?;
        let found = left.extents()[1].saturating_mul(right.extents()[1]);
        if found != columns {
            let part = if self.has(Part::LokrW2) { Part::LokrW2 } else { Part::LokrW2B };
            return Err(self.wrong(
                part,
                format!("{columns} columns together with the left factor, {of}"),
                found.to_string(),
            ));
        }
        // Alpha counts only where a factor has a rank.
        let scale = right_rank.or(left_rank).map_or(Ok(1.0), |rank| self.scale(rank))?;
        Ok((Form::Kronecker { left, right }, scale))
    }

    /// What a change of rank `rank` is multiplied with.
    fn scale(&self, rank: usize) -> Result<f32> {
        let Some(name) = self.placed.module.parts.get(&Part::Alpha) else {
            return Ok(self.lora.adapter.scale(self.placed.component, &self.placed.stem, rank));
        };
        Ok(alpha(self.lora, name)? / rank as f32)
    }

    /// DoRA's norms, for a module of so many inputs.
    fn magnitude(&self, inputs: usize) -> Result<Option<Magnitude>> {
        let Some(factor) = self.factor(Part::Magnitude)? else { return Ok(None) };
        let norms = factor.read()?.numbers;
        let of_inputs = factor.rows == 1 && norms.len() > 1;
        let places = self.placed.weights.len();
        let expected = if of_inputs { inputs } else { self.placed.outputs };
        if norms.len() != expected || (of_inputs && places > 1) {
            let found = format!("{} for {places} weights", norms.len());
            return Err(self.wrong(Part::Magnitude, format!("{expected} norms, of one weight"), found));
        }
        Ok(Some(Magnitude { norms, of_inputs, gains: Vec::new() }))
    }

    /// The numbers of a part that are for `rows`.
    fn vector(&self, part: Part, rows: &Rows) -> Result<Option<Vec<f32>>> {
        let Some(factor) = self.factor(part)? else { return Ok(None) };
        let mut numbers = factor.read()?.numbers;
        let expected = rows.from + rows.rows.len();
        let all = self.placed.outputs.max(expected);
        if numbers.len() != all {
            return Err(self.wrong(part, format!("{all} numbers"), numbers.len().to_string()));
        }
        numbers.truncate(expected);
        Ok(Some(numbers.split_off(rows.from)))
    }

    /// What is added to the numbers `rows` of a vector.
    fn differences(&self, rows: &Rows, bound: &Bound) -> Result<Vec<f32>> {
        if let Some(differences) = self.vector(Part::Diff, rows)? {
            return Ok(differences);
        }
        let set = if self.has(Part::Scales) { Part::Scales } else { Part::Set };
        let Some(mut numbers) = self.vector(set, rows)? else {
            let part = self.placed.module.parts.keys().next().copied().unwrap_or(Part::Down);
            return Err(self.wrong(part, "a difference of a vector", "the change of a matrix"));
        };
        let mut was = reserve::zeros("a weight", numbers.len())?;
        bound.read_numbers(rows.id, rows.rows.start, &mut was)?;
        numbers.iter_mut().zip(was).for_each(|(number, was)| *number -= was);
        Ok(numbers)
    }

    /// Differences of biases.
    fn biases(&self, strength: f32, fitted: &mut [Merged]) -> Result<()> {
        for (part, is_scaled) in [(Part::DiffBias, false), (Part::UpBias, true)] {
            if !self.has(part) {
                continue;
            }
            let rank = self.factor(Part::Down)?.map_or(1, |down| down.rows);
            let scale = strength * if is_scaled { self.scale(rank)? } else { 1.0 };
            if self.placed.biases.is_empty() {
                return Err(self.wrong(part, "a change of a layer with a bias", "a layer without one in this model"));
            }
            for rows in &self.placed.biases {
                if let Some(difference) = self.vector(part, rows)? {
                    let scaled = difference.into_iter().map(|number| scale * number).collect();
                    fitted[rows.target].vectors.push((rows.id, rows.rows.start, scaled));
                }
            }
        }
        Ok(())
    }
}
