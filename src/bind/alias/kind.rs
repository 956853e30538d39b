//! A kind of network, and how files show that they have one.

/// A tensor by which a kind of network is known.
#[derive(Clone, Copy, Debug)]
pub struct Sign {
    /// Its name, or how all names of such tensors go on: what stands before it in a file is a prefix.
    pub name: &'static str,
    /// In whose words the names of the file are, if that has to be said.
    pub naming: &'static str,
    /// What the file has to have as well behind the same prefix, if the sign alone does not say it.
    pub with: Option<&'static str>,
}

impl Sign {
    /// The sign `name`, in the only naming there is.
    pub const fn new(name: &'static str) -> Sign {
        Sign { name, naming: "", with: None }
    }

    /// The sign `name`, which stands for the names of `naming`.
    pub const fn named(name: &'static str, naming: &'static str) -> Sign {
        Sign { name, naming, with: None }
    }

    /// The same sign, which says something beside the tensor `name` alone.
    pub const fn beside(self, name: &'static str) -> Sign {
        Sign { with: Some(name), ..self }
    }

    /// What stands before the sign in `name`, if `name` begins with a prefix and goes on with the sign, and `has` says that what has to be
    /// beside it is there.
    pub fn shown_in<'a>(&self, name: &'a str, has: impl Fn(&str) -> bool) -> Option<&'a str> {
        let prefix = self.prefix_in(name)?;
        self.with.is_none_or(|other| has(&format!("{prefix}{other}"))).then_some(prefix)
    }

    /// What stands before the sign in `name`, if `name` begins with a prefix and goes on with the sign.
    pub fn prefix_in<'a>(&self, name: &'a str) -> Option<&'a str> {
        let prefix = &name[..name.find(self.name)?];
        (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
    }
}

/// How the type of a component follows from that of a quantized denoiser, unless the user gives its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// It is the same.
    Same,
    /// Q8_0, and Q4_K_S beside a denoiser of less than 5.5 bits: text encoders of billions of parameters.
    Text,
    /// F16: networks that are small beside the denoiser, and whose errors show.
    Half,
}

/// How a text encoder's tokens are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    /// CLIP's byte-level BPE.
    Clip,
    /// T5's unigram pieces.
    T5,
    /// A language model's byte-level BPE.
    Words,
}

/// A kind of network, as files know it.
#[derive(Debug)]
pub struct Kind {
    /// What it is called in a sentence: `CLIP text encoder`.
    pub words: &'static str,
    /// What it is called in a list of what a file holds.
    pub what: &'static str,
    /// Tensors that files with such a network have, of each naming; the first that a file has decides.
    pub signs: &'static [Sign],
    /// Signs of other networks that this kind has as well, and that therefore say nothing beside its own.
    pub also: &'static [&'static str],
    /// How names of tensors begin, behind the prefix, that whole models of its kind have besides: a vision tower, a decoder. What begins
    /// with a dot stands anywhere in them.
    pub beside: &'static [&'static str],
    /// The settings that `inspect` shows.
    pub highlights: &'static [&'static str],
    /// Its type beside a quantized denoiser.
    pub follows: Follows,
    /// The architecture that other tools name in a GGUF of it, if that is not the family's name.
    pub label: &'static str,
    /// How its tokens are made, if it reads text.
    pub reads: Option<Reads>,
}

impl PartialEq for Kind {
    fn eq(&self, other: &Kind) -> bool {
        self.words == other.words
    }
}

impl Eq for Kind {}

/// Marks that tools leave in files of any kind.
const MARKS: [&str; 3] = ["scaled_fp8", "__x0__", "__index_timestep_zero__"];

impl Kind {
    /// Whether files of this kind rightly have a tensor that is called `own` behind its prefix, though no weight is read from it.
    pub fn has_beside(&self, own: &str) -> bool {
        MARKS.contains(&own)
            || self
                .beside
                .iter()
                .any(|part| if part.starts_with('.') { own.contains(*part) } else { own.starts_with(*part) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_stands_behind_a_dot() {
        let sign = Sign::new("encoder.x");
        assert_eq!(sign.prefix_in("a.b.encoder.x"), Some("a.b."));
        assert_eq!(sign.prefix_in("encoder.x"), Some(""));
        assert_eq!(sign.prefix_in("text_encoder.x"), None);
        assert_eq!(sign.prefix_in("a.encoder.x.y"), Some("a."));
        let sign = sign.beside("y");
        assert_eq!(sign.shown_in("a.encoder.x", |name| name == "a.y"), Some("a."));
        assert_eq!(sign.shown_in("a.encoder.x", |name| name == "y"), None);
    }
}
