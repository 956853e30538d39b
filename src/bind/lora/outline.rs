//! What a LoRA's file holds, for people who choose one.

use std::collections::{BTreeMap, BTreeSet};

use super::file::{Lora, Module};
use super::keys::{Meant, Part};
use super::module::alpha;
use super::seems;
use super::settings::About;
use crate::Result;

/// What a LoRA's file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outline {
    /// The family of models that it seems to be for.
    pub family: Option<&'static str>,
    /// What it makes of a model, in words.
    pub purpose: Vec<String>,
    /// What its metadata say.
    pub about: About,
    /// How many modules it changes.
    pub modules: usize,
    /// How many of them are of the denoiser and of each text encoder, by the names of their places.
    pub parts: BTreeMap<&'static str, usize>,
    /// How many of them are written in which way.
    pub forms: BTreeMap<&'static str, usize>,
    /// The ranks of low-rank changes, from the smallest.
    pub ranks: Vec<usize>,
    /// The alphas that it gives, from the smallest; none if changes are used as they are.
    pub alphas: Vec<f32>,
}

impl Lora {
    /// What the file holds, by its header and its alphas.
    ///
    /// # Errors
    /// [`Error::Mismatch`](crate::Error::Mismatch) for an alpha that is not one number.
    pub fn outline(&self) -> Result<Outline> {
        let mut outline =
            Outline { family: self.family(), about: self.about(), modules: self.modules.len(), ..Outline::default() };
        let title = outline.about.title.clone().unwrap_or_default();
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        outline
            .purpose
            .extend(outline.family.and_then(|family| seems::pictures(family, self.inputs(&seems::FIRST_LAYERS))));
        outline.purpose.extend(seems::few_steps(&stem).or_else(|| seems::few_steps(&title)));
        outline.purpose.extend(
            outline
                .family
                .and_then(|family| seems::schedule(family, &stem).or_else(|| seems::schedule(family, &title))),
        );
        let (mut ranks, mut alphas) = (BTreeSet::new(), Vec::new());
        for module in &self.modules {
            *outline.parts.entry(part(module)).or_default() += 1;
            *outline.forms.entry(form(module)).or_default() += 1;
            ranks.extend(self.rank(module));
            alphas.extend(self.alpha(module)?);
        }
        alphas.sort_by(f32::total_cmp);
        alphas.dedup();
        outline.ranks.extend(ranks);
        outline.alphas = alphas;
        Ok(outline)
    }

    /// Whether most of its tensors are parts of changes: a model may have one that is called like one.
    pub fn is_lora(&self) -> bool {
        let tensors: usize = self.modules.iter().map(|module| module.parts.len()).sum();
        tensors > self.others.len()
    }

    fn rank(&self, module: &Module) -> Option<usize> {
        let rows = [Part::Down, Part::HadaW1B, Part::LokrW2B, Part::LokrW1B];
        let name = rows.into_iter().find_map(|part| module.parts.get(&part))?;
        self.file.index.get(name)?.file_shape.last().copied()
    }

    fn alpha(&self, module: &Module) -> Result<Option<f32>> {
        if let Some(name) = module.parts.get(&Part::Alpha) {
            return alpha(self, name).map(Some);
        }
        let reading = module.key.readings.last();
        Ok(reading.and_then(|reading| self.adapter.alpha(reading.component, &reading.stem)).map(|alpha| alpha as f32))
    }
}

/// Which model a module is of. Names that do not say are the denoiser's, unless only text encoders have such.
fn part(module: &Module) -> &'static str {
    match module.key.readings.last().map_or(Meant::Any, |reading| reading.meant) {
        Meant::Text(1) => "text_encoder",
        Meant::Text(2) => "text_encoder_2",
        Meant::Text(_) => "text_encoder_3",
        Meant::Any if seems::is_of_text(&module.key.name.replace('.', "_")) => "text_encoder",
        Meant::Any | Meant::Denoiser => "denoiser",
    }
}

fn form(module: &Module) -> &'static str {
    let has = |part| module.parts.contains_key(&part);
    match () {
        () if has(Part::Magnitude) => "DoRA",
        () if has(Part::Down) || has(Part::Up) => "low rank",
        () if has(Part::HadaW1A) => "LoHa",
        () if has(Part::LokrW1) || has(Part::LokrW1A) => "LoKr",
        () => "difference",
    }
}
