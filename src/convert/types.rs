//! Which type each component of a bundle gets.

use std::fmt;
use std::str::FromStr;

use pinhole_quant::recipe::FileType;

use crate::bind::alias::{Follows, Kind};
use crate::source::slot::{self, SLOTS, TRANSFORMER, UNET};
use crate::source::{Network, Slot};
use crate::{Error, Result};

/// The file type of every component.
///
/// Parsed from what `--type` takes: one type for the denoiser, which the others follow, or a list such as
/// `q4_k_s,text_encoder_2=q8_0` or `transformer=q4_k_s,vae=f32`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Types {
    /// What the denoiser gets, and others follow, unless they are in `others`.
    all: FileType,
    /// The last one first.
    others: Vec<(&'static Slot, FileType)>,
}

impl Types {
    /// The type of the component at `slot`, a network of `kind`.
    pub fn of(&self, slot: &Slot, kind: &Kind) -> FileType {
        let own = self.others.iter().find(|(other, _)| *other == slot);
        own.map_or_else(|| follow(self.all, kind.follows), |(_, file_type)| *file_type)
    }

    /// The type of the denoiser, by which a bundle is named.
    pub fn denoiser(&self) -> FileType {
        own_of_denoiser(&self.others).unwrap_or(self.all)
    }

    /// The type of each component of `networks`.
    ///
    /// # Errors
    /// [`Error::Option`] if a type was given for a component that is none of these.
    pub(super) fn of_all(&self, networks: &[Network<'_>]) -> Result<Vec<(&'static Slot, FileType)>> {
        let mut types: Vec<(&'static Slot, FileType)> = Vec::new();
        for Network { slot, kind, .. } in networks {
            if !types.iter().any(|(other, _)| other == slot) {
                types.push((*slot, self.of(slot, kind)));
            }
        }
        for (slot, _) in &self.others {
            if types.len() > 1 && !types.iter().any(|(other, _)| other == slot) {
                let names: Vec<&str> = types.iter().map(|(slot, _)| slot.name).collect();
                return Err(Error::option(
                    "--type",
                    format!("a component of this model: {}", names.join(", ")),
                    slot.name,
                ));
            }
        }
        Ok(types)
    }
}

impl From<FileType> for Types {
    fn from(all: FileType) -> Types {
        Types { all, others: Vec::new() }
    }
}

/// The type of a component beside a denoiser of `file_type`.
fn follow(file_type: FileType, follows: Follows) -> FileType {
    if !file_type.dtype().is_quantized() {
        return file_type;
    }
    match follows {
        Follows::Same => file_type,
        Follows::Text if file_type.dtype().bits_per_weight() < 5.5 => FileType::Q4_K_S,
        Follows::Text => FileType::Q8_0,
        Follows::Half => FileType::F16,
    }
}

impl FromStr for Types {
    type Err = Error;

    fn from_str(text: &str) -> Result<Types> {
        let (mut main, mut others) = (None, Vec::new());
        for entry in text.split(',') {
            match entry.split_once('=') {
                Some((name, file_type)) => others.push((component(name)?, file_type_of(file_type)?)),
                None if main.is_none() => main = Some(file_type_of(entry)?),
                None => return Err(Error::option("--type", "one type, and COMPONENT=TYPE for others", text)),
            }
        }
        others.reverse();
        match main.or_else(|| own_of_denoiser(&others)) {
            Some(all) => Ok(Types { all, others }),
            None => Err(Error::option("--type", "a type for the denoiser", text)),
        }
    }
}

/// The type that is given for the denoiser alone.
fn own_of_denoiser(others: &[(&'static Slot, FileType)]) -> Option<FileType> {
    let denoiser = others.iter().find(|(slot, _)| *slot == &TRANSFORMER || *slot == &UNET);
    denoiser.map(|(_, file_type)| *file_type)
}

fn component(name: &str) -> Result<&'static Slot> {
    slot::slot(name.trim()).ok_or_else(|| {
        let names = SLOTS.map(|slot| slot.name).join(", ");
        Error::option("--type", format!("a component: {names}"), format!("`{name}`"))
    })
}

fn file_type_of(name: &str) -> Result<FileType> {
    name.trim().parse().map_err(|_| {
        let names: Vec<&str> = FileType::all().map(FileType::name).collect();
        Error::option("--type", format!("one of {}", names.join(", ")), format!("`{name}`"))
    })
}

impl fmt::Display for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.all.to_string();
        for (slot, file_type) in self.others.iter().rev() {
            text += &format!(",{}={file_type}", slot.name);
        }
        f.pad(&text)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bind::alias::{AUTOENCODER_KL, CLIP, FLUX, T5};
    use crate::source::slot::{TEXT_ENCODER, TEXT_ENCODER_2, VAE};

    fn of(types: &Types) -> [FileType; 4] {
        let pairs = [(&TRANSFORMER, &FLUX), (&TEXT_ENCODER, &CLIP), (&TEXT_ENCODER_2, &T5), (&VAE, &AUTOENCODER_KL)];
        pairs.map(|(slot, kind)| types.of(slot, kind))
    }

    #[test]
    fn others_follow_the_denoiser() {
        use FileType::{BF16, F16, Q4_1, Q4_K_S, Q6_K, Q8_0};
        assert_eq!(of(&"q4_1".parse().unwrap()), [Q4_1, F16, Q4_K_S, F16]);
        assert_eq!(of(&"q6_k".parse().unwrap()), [Q6_K, F16, Q8_0, F16]);
        assert_eq!(of(&"bf16".parse().unwrap()), [BF16; 4]);
    }

    #[test]
    fn components_can_be_set_one_by_one() {
        use FileType::{BF16, F16, F32, Q4_K_S, Q8_0};
        assert_eq!(of(&"transformer=q4_k_s, text_encoder_2=q8_0,vae=f32".parse().unwrap()), [Q4_K_S, F16, Q8_0, F32]);
        assert_eq!(of(&"q8_0,vae=bf16".parse().unwrap()), [Q8_0, F16, Q8_0, BF16]);
        // The last one counts.
        assert_eq!(of(&"q8_0,vae=bf16,vae=f32".parse().unwrap()), [Q8_0, F16, Q8_0, F32]);
        assert_eq!("q8_0,vae=bf16".parse::<Types>().unwrap().to_string(), "q8_0,vae=bf16");
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("q9", "`q9`"),
            ("", "``"),
            ("q8_0,q4_0", "one type"),
            ("adapter=q8_0", "`adapter`"),
            ("vae=f16", "for the denoiser"),
            ("q8_0,vae=", "``"),
        ] {
            let error = text.parse::<Types>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
