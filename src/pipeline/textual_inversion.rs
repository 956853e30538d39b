//! Words that text encoders were taught: textual inversion (Gal et al., arXiv:2208.01618).
//!
//! A file has one or more vectors, which stand in the prompt in the place of a word's own.
//!
//! | file | tensors | the word, unless the user names one |
//! |---|---|---|
//! | diffusers | `WORD`: `[D]` or `[D, n]` | its name |
//! | AUTOMATIC1111's web UI, PyTorch's format | `string_to_param.*`: `[D, n]` | the file's |
//! | AUTOMATIC1111's web UI, safetensors | `emb_params`: `[D, n]` | the file's |
//! | for Stable Diffusion XL | `clip_l` and `clip_g`, one for each text encoder | the file's |
//!
//! As in diffusers, a word is found whatever its case, and `WORD_1`, `WORD_2`, ... are the vectors behind the first alone. Unlike there,
//! a word that begins or ends with a letter is not found inside of a longer one.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::index::{FileTensor, Index, Storage, quoted, tensor_at};
use crate::text::Span;
use crate::{Error, Result, file, reserve, safetensors};

/// Ids of taught words begin here, above those of any vocabulary, and each word has so many: as many vectors may a file have.
pub(super) const FIRST_ID: u32 = 1 << 25;
const MOST_VECTORS: usize = 512;

/// How many files a folder may have.
const MOST_FILES: usize = 1 << 12;

/// The longest word, in bytes.
const MOST_WORD: usize = 256;

/// What tensors are called that do not say the word, in the order in which they are looked for.
const UNNAMED: [&str; 5] = ["string_to_param.*", "emb_params", "clip_l", "clip_g", "tensor"];

/// What the vectors for each text encoder are called in files for two.
pub(super) const BY_ENCODER: [&str; 2] = ["clip_l", "clip_g"];

/// What files of vectors end in.
const ENDINGS: [&str; 5] = ["safetensors", "pt", "bin", "pth", "ckpt"];

/// The options that give files, and a folder with some.
const FILE: &str = "--embedding";
const FOLDER: &str = "--embeddings";

/// The words that a model was opened with.
pub struct Words {
    /// The longest first.
    words: Vec<Word>,
    /// How many numbers a vector has, for each text encoder, and what its vectors are called in files for two.
    readers: Vec<Reader>,
}

/// How many numbers a vector of a text encoder has, and what its vectors are called in files for two, if it is one of two.
pub(super) type Reader = (usize, Option<&'static str>);

/// A taught word.
struct Word {
    name: String,
    path: PathBuf,
    /// Whether it was given, and not found in a folder.
    is_given: bool,
    /// The first of its ids.
    first: u32,
    /// For each text encoder, its vectors one behind the other, once they were read.
    vectors: OnceLock<Vec<Vec<f32>>>,
}

impl Words {
    /// Those of `files`, each with its word if it is named, and of `folder`, for the text encoders `readers`.
    /// Files of a folder are opened when their word is in a prompt.
    ///
    /// # Errors
    /// What opening a file returns; [`Error::Mismatch`] for one that is no textual inversion, or is one for another model;
    /// [`Error::Option`] for a word that is none or that is given twice.
    pub(super) fn open(
        files: &[(PathBuf, Option<String>)],
        folder: Option<&Path>,
        readers: Vec<Reader>,
    ) -> Result<Words> {
        let mut words = Words { words: Vec::new(), readers };
        for (path, name) in files {
            let index = safetensors::open(path)?;
            let vectors = vectors(path, &index, &words.readers)?;
            let name = match name {
                Some(name) => name.clone(),
                None => own_word(&index).map_or_else(|| stem(path), str::to_owned),
            };
            if name.trim().is_empty() || name.len() > MOST_WORD {
                let expected = format!("a word of 1 to {MOST_WORD} bytes for {}", path.display());
                return Err(Error::option(FILE, expected, quoted(&name)).with_hint("name one: --embedding FILE:WORD"));
            }
            words.add(name, path, Some(vectors))?;
        }
        for path in folder.map(listed).transpose()?.unwrap_or_default() {
            let name = stem(&path);
            // Files that were given go before, and of one word in a folder the first.
            if !name.trim().is_empty() && !words.words.iter().any(|word| is_same(&word.name, &name)) {
                words.add(name, &path, None)?;
            }
        }
        words.words.sort_by_key(|word| std::cmp::Reverse(word.name.len()));
        Ok(words)
    }

    fn add(&mut self, name: String, path: &Path, vectors: Option<Vec<Vec<f32>>>) -> Result<()> {
        if let Some(other) = self.words.iter().find(|word| is_same(&word.name, &name)) {
            let found = format!("{} for {} and for {}", quoted(&name), other.path.display(), path.display());
            return Err(Error::option(FILE, "a word of its own for each file", found));
        }
        // Not more than `MOST_FILES` of a folder and those on a command line.
        let first = FIRST_ID + (self.words.len() * MOST_VECTORS) as u32;
        let (is_given, path) = (vectors.is_some(), path.to_owned());
        let vectors = vectors.map_or_else(OnceLock::new, OnceLock::from);
        self.words.push(Word { name, path, is_given, first, vectors });
        Ok(())
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The words that were given, not those of a folder.
    pub(super) fn given(&self) -> impl Iterator<Item = &str> {
        self.words.iter().filter(|word| word.is_given).map(|word| word.name.as_str())
    }

    /// `text` in parts: taught words, and what is between.
    ///
    /// # Errors
    /// What reading the file of a word in it returns.
    pub(super) fn spans<'t>(&self, text: &'t str) -> Result<Vec<Span<'t>>> {
        let (mut spans, mut start, mut at) = (Vec::new(), 0, 0);
        while let Some(letter) = text[at..].chars().next() {
            let Some((bytes, ids, _)) = self.found(text, at)? else {
                at += letter.len_utf8();
                continue;
            };
            if start < at {
                spans.push(Span::Text(&text[start..at]));
            }
            spans.push(Span::Taught(ids));
            at += bytes;
            start = at;
        }
        if start < text.len() {
            spans.push(Span::Text(&text[start..]));
        }
        Ok(spans)
    }

    /// The taught words in `text`, each once.
    ///
    /// # Errors
    /// As [`spans`](Words::spans).
    pub(super) fn of(&self, text: &str) -> Result<Vec<&str>> {
        let mut names: Vec<&str> = Vec::new();
        let mut at = 0;
        while let Some(letter) = text[at..].chars().next() {
            let Some((bytes, _, name)) = self.found(text, at)? else {
                at += letter.len_utf8();
                continue;
            };
            if !names.contains(&name) {
                names.push(name);
            }
            at += bytes;
        }
        Ok(names)
    }

    /// The word that begins at byte `at` of `text`, if one does: how many bytes it has, its ids, and its name.
    fn found(&self, text: &str, at: usize) -> Result<Option<(usize, Range<u32>, &str)>> {
        let (before, rest) = (text[..at].chars().next_back(), &text[at..]);
        for word in &self.words {
            let Some(bytes) = begins_with(rest, &word.name) else { continue };
            if begins_with_letter(&word.name) && before.is_some_and(is_letter) {
                continue;
            }
            let behind = &rest[bytes..];
            if let Some((number, more)) = numbered(behind) {
                let (first, count) = (word.first, self.count(word)?);
                if (1..count).contains(&number) {
                    let id = first + number as u32;
                    return Ok(Some((bytes + more, id..id + 1, &word.name)));
                }
            }
            if word.name.ends_with(is_letter) && behind.starts_with(is_letter) {
                continue;
            }
            let ids = word.first..word.first + self.count(word)? as u32;
            return Ok(Some((bytes, ids, &word.name)));
        }
        Ok(None)
    }

    /// How many vectors `word` has.
    fn count(&self, word: &Word) -> Result<usize> {
        let vectors = self.vectors(word)?;
        Ok(vectors.first().zip(self.readers.first()).map_or(0, |(vectors, (width, _))| vectors.len() / width.max(&1)))
    }

    /// The vectors of `word`, which are read if they were not before.
    fn vectors<'w>(&self, word: &'w Word) -> Result<&'w [Vec<f32>]> {
        if let Some(vectors) = word.vectors.get() {
            return Ok(vectors);
        }
        let read = vectors(&word.path, &safetensors::open(&word.path)?, &self.readers)?;
        Ok(word.vectors.get_or_init(|| read))
    }

    /// The vector of the taught `id` for text encoder number `encoder`.
    ///
    /// # Errors
    /// [`Error::Graph`] if there is none; what reading its file returns.
    pub(super) fn vector(&self, id: u32, encoder: usize) -> Result<&[f32]> {
        let missing = || Error::graph("encode", format!("no vector has the id {id}"));
        let word = self.words.iter().find(|word| (word.first..word.first + MOST_VECTORS as u32).contains(&id));
        let word = word.ok_or_else(missing)?;
        let (width, _) = *self.readers.get(encoder).ok_or_else(missing)?;
        let start = (id - word.first) as usize * width;
        let vectors = self.vectors(word)?.get(encoder).ok_or_else(missing)?;
        vectors.get(start..start + width).ok_or_else(missing)
    }
}

/// Whether a file with the tensors of `index` seems to be a textual inversion.
pub fn is_textual_inversion(index: &Index) -> bool {
    let names: Vec<&str> = index.names().collect();
    let is_known = names.iter().any(|name| UNNAMED[..4].contains(name));
    let is_one = names.len() == 1 && names.iter().any(|name| name.starts_with('<') && name.ends_with('>'));
    let has_vector = names.iter().any(|name| index.shape(name).is_some_and(|shape| shape.dims()[2..] == [1, 1]));
    (is_known || is_one) && has_vector
}

/// The word that a file names.
pub fn own_word(index: &Index) -> Option<&str> {
    let mut names = index.names();
    let first = names.next().filter(|name| !UNNAMED.contains(name));
    first.filter(|_| names.next().is_none())
}

/// The name of a file without its ending.
fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files of vectors in `folder`, by name, safetensors first.
fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    file::is_directory(folder)?;
    let entries = std::fs::read_dir(folder).map_err(|source| Error::io("open", folder, source))?;
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        if let Some(order) = ENDINGS.iter().position(|known| *known == ending) {
            found.push((order, path));
        }
    }
    found.sort();
    if found.len() > MOST_FILES {
        return Err(Error::option(FOLDER, format!("at most {MOST_FILES} files"), format!("{} files", found.len())));
    }
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

/// The vectors in the file at `path`, for each of `readers`.
fn vectors(path: &Path, index: &Index, readers: &[Reader]) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::with_capacity(readers.len());
    for &(width, name) in readers {
        let reader = called(name);
        let name = name_for(path, index, name)?;
        let Some(tensor) = index.get(name) else {
            return Err(match index.other(name) {
                Some(other) => other.refusal(),
                None => Error::mismatch(path, tensor_at(name), "a tensor", "none"),
            });
        };
        let [row, count, rest @ ..] = tensor.shape.dims();
        if row != width || rest != [1, 1] || count > MOST_VECTORS {
            let expected = format!("1 to {MOST_VECTORS} vectors of {width} numbers, as {reader} reads");
            let error = Error::mismatch(path, tensor_at(name), expected, format!("{:?}", tensor.file_shape));
            return Err(error.with_hint(OTHER));
        }
        all.push(numbers(path, name, tensor)?);
    }
    if let ([first, second], [(width, _), (other, _)]) = (&all[..], readers)
        && first.len() / width != second.len() / other
    {
        let (expected, found) = (format!("{} vectors, as clip_l", first.len() / width), second.len() / other);
        return Err(Error::mismatch(path, tensor_at(BY_ENCODER[1]), expected, found.to_string()));
    }
    Ok(all)
}

/// What to do about a file for another model.
const OTHER: &str = "the embedding was made for another model: take one that was made for this";

/// What the text encoder whose vectors have `name` is called in messages.
fn called(name: Option<&str>) -> &'static str {
    match name {
        None => "the text encoder",
        Some(name) if name == BY_ENCODER[0] => "the first text encoder",
        Some(_) => "the second text encoder",
    }
}

/// The name of the tensor for the text encoder whose vectors are called `wanted` in files for two.
fn name_for<'i>(path: &Path, index: &'i Index, wanted: Option<&str>) -> Result<&'i str> {
    let names: Vec<&str> = index.names().collect();
    let named = |wanted: &str| names.iter().copied().find(|name| *name == wanted);
    if let Some(wanted) = wanted {
        return named(wanted).ok_or_else(|| {
            let expected = format!("vectors for {}, as files for Stable Diffusion XL have", called(Some(wanted)));
            Error::mismatch(path, tensor_at(wanted), expected, some(&names)).with_hint(OTHER)
        });
    }
    if names.iter().any(|name| BY_ENCODER.contains(name)) {
        let expected = "vectors for one text encoder";
        return Err(Error::mismatch(path, "embedding", expected, some(&names)).with_hint(OTHER));
    }
    let known = UNNAMED.iter().find_map(|wanted| named(wanted));
    match (known, &names[..]) {
        (Some(known), _) => Ok(known),
        (None, [only]) => Ok(only),
        (None, _) => {
            let expected = "one tensor, or `string_to_param.*` or `emb_params`";
            let error = Error::mismatch(path, "embedding", expected, some(&names));
            Err(error.with_hint("give the file of a textual inversion"))
        }
    }
}

/// Some of the names of a file, for a message.
fn some(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(4).map(|name| quoted(name)).collect();
    match names.len() {
        0 => "none".to_owned(),
        count @ 5.. => format!("{count} tensors: {}, ...", shown.join(", ")),
        _ => shown.join(", "),
    }
}

/// The numbers of `tensor`, which is called `name` in the file at `path`.
fn numbers(path: &Path, name: &str, tensor: &FileTensor) -> Result<Vec<f32>> {
    let unreadable = |found: String| Error::mismatch(path, tensor_at(name), "floats", found);
    let Storage::Number(dtype) = tensor.storage else { return Err(unreadable(tensor.storage.to_string())) };
    let mut numbers = reserve::zeros("an embedding", tensor.shape.elements())?;
    pinhole_quant::rows::dequantize_parallel(dtype, tensor.bytes(), &mut numbers)
        .map_err(|error| unreadable(error.to_string()))?;
    match numbers.iter().all(|number| number.is_finite()) {
        true => Ok(numbers),
        false => Err(Error::mismatch(path, tensor_at(name), "finite numbers", "NaN or infinity")),
    }
}

/// Whether `c` may be inside of a word.
fn is_letter(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn begins_with_letter(word: &str) -> bool {
    word.starts_with(is_letter)
}

/// Whether two words are the same, whatever their case.
fn is_same(one: &str, other: &str) -> bool {
    begins_with(one, other) == Some(one.len())
}

/// How many bytes of `text` are `word`, whatever the case, if it begins so.
fn begins_with(text: &str, word: &str) -> Option<usize> {
    let mut letters = text.char_indices();
    for wanted in word.chars() {
        let (_, found) = letters.next()?;
        if found != wanted && !found.to_lowercase().eq(wanted.to_lowercase()) {
            return None;
        }
    }
    Some(letters.next().map_or(text.len(), |(at, _)| at))
}

/// The number of a `_12` that begins `text` and is followed by no letter, and how many bytes that has.
fn numbered(text: &str) -> Option<(usize, usize)> {
    let digits = text.strip_prefix('_')?;
    let length = digits.len() - digits.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    if digits[length..].starts_with(is_letter) {
        return None;
    }
    Some((digits[..length].parse().ok()?, 1 + length))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Words of so many vectors of one number each, without files.
    fn words(named: &[(&str, usize)]) -> Words {
        let mut words = Words { words: Vec::new(), readers: vec![(1, None)] };
        for (name, count) in named {
            words.add((*name).to_owned(), Path::new("file"), Some(vec![vec![0.0; *count]])).unwrap();
        }
        words.words.sort_by_key(|word| std::cmp::Reverse(word.name.len()));
        words
    }

    #[test]
    fn words_are_found_whatever_their_case() {
        let words = words(&[("<cat-toy>", 1), ("Easy", 3), ("easynegative", 2), ("\u{e4}pfel", 1)]);
        let [cat, easy, negative, apples] = [0, 1, 2, 3].map(|at| FIRST_ID + at * MOST_VECTORS as u32);
        let text = Span::Text;
        let spans = |text| words.spans(text).unwrap();
        assert_eq!(spans("a <Cat-Toy>, x"), [text("a "), Span::Taught(cat..cat + 1), text(", x")]);
        assert_eq!(spans("x<cat-toy>y")[1], Span::Taught(cat..cat + 1));
        assert_eq!(spans("EASYNEGATIVE"), [Span::Taught(negative..negative + 2)]);
        assert_eq!(spans("(easy:1.2)")[1], Span::Taught(easy..easy + 3));
        assert_eq!(spans("easy_2, easy_3"), [Span::Taught(easy + 2..easy + 3), text(", easy_3")]);
        for plain in ["uneasy", "easygoing", "easy_chair", "easy_", "", "\u{df}"] {
            assert!(!spans(plain).iter().any(|span| matches!(span, Span::Taught(_))), "{plain}");
        }
        assert_eq!(
            spans("\u{c4}pfel \u{e4}PFEL"),
            [Span::Taught(apples..apples + 1), text(" "), Span::Taught(apples..apples + 1)]
        );
        assert_eq!(words.of("easy EASY <cat-toy>").unwrap(), ["Easy", "<cat-toy>"]);
    }

    #[test]
    fn a_word_is_given_once() {
        let mut words = words(&[("a", 1)]);
        let error = words.add("A".into(), Path::new("other"), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--embedding: expected a word of its own for each file, found `A` for file and for other"
        );
    }
}
