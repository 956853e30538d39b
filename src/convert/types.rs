//! Which type each component of a bundle gets.

use std::fmt;
use std::str::FromStr;

use pinhole_quant::recipe::FileType;

use crate::source::ComponentKind;
use crate::{Error, Result};

/// The file type of every component.
///
/// Parsed from what `--type` takes: one type for the transformer, which the others follow, or a list such as
/// `q4_k_s,text_encoder_2=q8_0` or `transformer=q4_k_s,vae=f32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types([(ComponentKind, FileType); 4]);

impl Types {
    /// The type of `kind`.
    pub fn of(&self, kind: ComponentKind) -> FileType {
        // Every kind has its entry: the array is made from `ComponentKind::ALL` only.
        self.0.iter().find(|(other, _)| *other == kind).map_or(FileType::F32, |(_, file_type)| *file_type)
    }

    /// The type of the transformer, by which a bundle is named.
    pub fn transformer(&self) -> FileType {
        self.of(ComponentKind::Transformer)
    }
}

impl From<FileType> for Types {
    fn from(file_type: FileType) -> Types {
        Types(ComponentKind::ALL.map(|kind| (kind, follow(file_type, kind))))
    }
}

/// The type of a component beside a transformer of `file_type`.
fn follow(file_type: FileType, kind: ComponentKind) -> FileType {
    if !file_type.dtype().is_quantized() {
        return file_type;
    }
    match kind {
        ComponentKind::Transformer => file_type,
        ComponentKind::TextEncoder2 if file_type.dtype().bits_per_weight() < 5.5 => FileType::Q4_K_S,
        ComponentKind::TextEncoder2 => FileType::Q8_0,
        // Small beside the transformer; CLIP's pooled vector and the decoder's colours are sensitive.
        ComponentKind::TextEncoder | ComponentKind::Vae => FileType::F16,
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
        let transformer = others.iter().find(|(kind, _)| *kind == ComponentKind::Transformer);
        let Some(main) = main.or(transformer.map(|(_, file_type)| *file_type)) else {
            return Err(Error::option("--type", "a type for the transformer", text));
        };
        let mut types = Types::from(main);
        for (kind, file_type) in others {
            types.0.iter_mut().filter(|(other, _)| *other == kind).for_each(|entry| entry.1 = file_type);
        }
        Ok(types)
    }
}

fn component(name: &str) -> Result<ComponentKind> {
    ComponentKind::ALL.into_iter().find(|kind| kind.name() == name.trim()).ok_or_else(|| {
        let names = ComponentKind::ALL.map(ComponentKind::name).join(", ");
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
        let entries = self.0.map(|(kind, file_type)| format!("{}={file_type}", kind.name()));
        f.pad(&entries.join(","))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn others_follow_the_transformer() {
        let types: Types = "q4_1".parse().unwrap();
        assert_eq!(types.to_string(), "transformer=q4_1,text_encoder=f16,text_encoder_2=q4_k_s,vae=f16");
        assert_eq!("q6_k".parse::<Types>().unwrap().of(ComponentKind::TextEncoder2), FileType::Q8_0);
        assert_eq!("bf16".parse::<Types>().unwrap(), Types::from(FileType::BF16));
    }

    #[test]
    fn components_can_be_set_one_by_one() {
        let types: Types = "transformer=q4_k_s, text_encoder_2=q8_0,vae=f32".parse().unwrap();
        assert_eq!(types.to_string(), "transformer=q4_k_s,text_encoder=f16,text_encoder_2=q8_0,vae=f32");
        assert_eq!("q8_0,vae=bf16".parse::<Types>().unwrap().of(ComponentKind::Vae), FileType::BF16);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("q9", "`q9`"),
            ("", "``"),
            ("q8_0,q4_0", "one type"),
            ("unet=q8_0", "`unet`"),
            ("vae=f16", "for the transformer"),
            ("q8_0,vae=", "``"),
        ] {
            let error = text.parse::<Types>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
