//! The tiny autoencoder: canonical names are diffusers'. The first publisher's files have the numbers of the layers alone.

use super::{Alternative, Follows, Kind, Part, Sign};

/// The tiny autoencoder, as files know it.
pub static KIND: Kind = Kind {
    words: "tiny autoencoder",
    what: "tiny autoencoder",
    signs: &[
        Sign::named("decoder.layers.2.conv.0.", "diffusers names"),
        // The last block: encoders have fewer layers.
        Sign::named("18.conv.0.", "original names"),
    ],
    // The encoder's.
    also: &["11.conv.0."],
    beside: &["encoder."],
    highlights: &["latent_channels", "num_decoder_blocks", "decoder_block_out_channels"],
    // Its colours are sensitive, and it is small.
    follows: Follows::Half,
    label: "",
    reads: None,
};

/// What canonical names begin with.
const DECODER: &str = "decoder.layers.";
const ENCODER: &str = "encoder.layers.";

/// The [`Aliases`](super::Aliases) of it. Original files have the decoder, or the encoder, alone. In the decoder's, the softening of the
/// latents is a layer, so that all numbers are one higher.
pub fn aliases(canonical: &str) -> Vec<Alternative> {
    let mut names = vec![canonical.to_owned()];
    let numbered = canonical.strip_prefix(DECODER).and_then(|rest| rest.split_once('.'));
    if let Some((Ok(number), leaf)) = numbered.map(|(number, leaf)| (number.parse::<usize>(), leaf)) {
        names.push(format!("{}.{leaf}", number + 1));
    }
    names.extend(canonical.strip_prefix(ENCODER).map(str::to_owned));
    names.into_iter().map(|name| vec![Part::all(name)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_alone_are_one_higher() {
        let names = |canonical| aliases(canonical).into_iter().flatten().map(|part| part.name).collect::<Vec<_>>();
        let expected = ["decoder.layers.17.conv.4.bias", "18.conv.4.bias"];
        assert_eq!(names("decoder.layers.17.conv.4.bias"), expected);
        assert_eq!(names("decoder.layers.0.weight"), ["decoder.layers.0.weight", "1.weight"]);
        assert_eq!(names("encoder.layers.0.weight"), ["encoder.layers.0.weight", "0.weight"]);
    }
}
