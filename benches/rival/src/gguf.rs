//! As much of GGUF version 3 as it takes to make one file of parts of another: entries and tensors are taken over, left out
//! or called otherwise; their bytes stay what they are.
//!
//! `pinhole-quant` could do it, but brings pinhole's ggml, which cannot be linked beside the other one.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
const DEFAULT_ALIGNMENT: u64 = 32;

/// The id of the type F16 of tensors.
const F16: u32 = 1;

/// Ids of the types of values.
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Names and texts of a file that pinhole wrote are shorter; a damaged file shall not ask for all memory.
const MOST_BYTES: u64 = 64 << 20;

/// A metadata entry.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    kind: u32,
    /// As it stands in the file.
    value: Vec<u8>,
}

/// Where a tensor is.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    dims: Vec<u64>,
    kind: u32,
    /// From the beginning of the file.
    start: u64,
    /// With what pads it.
    bytes: u64,
    /// Its numbers, if they stand nowhere in the file in this order.
    made: Option<Vec<u8>>,
}

/// A file's header.
pub(crate) struct Gguf {
    path: PathBuf,
    pub(crate) entries: Vec<Entry>,
    pub(crate) tensors: Vec<Tensor>,
    alignment: u64,
}

impl Entry {
    /// Its text, if it is one.
    pub(crate) fn text(&self) -> Option<&str> {
        let text = self.value.get(8..).filter(|_| self.kind == STRING)?;
        std::str::from_utf8(text).ok()
    }

    /// The same key with another text.
    pub(crate) fn with_text(&self, text: &str) -> Entry {
        let mut value = (text.len() as u64).to_le_bytes().to_vec();
        value.extend_from_slice(text.as_bytes());
        Entry { key: self.key.clone(), kind: STRING, value }
    }
}

impl Tensor {
    /// The same tensor with another name.
    pub(crate) fn called(&self, name: &str) -> Tensor {
        Tensor { name: name.to_owned(), ..self.clone() }
    }

    /// The same tensor with other dimensions, which hold as many numbers.
    pub(crate) fn shaped(&self, dims: &[u64]) -> Result<Tensor> {
        let [had, has] = [&self.dims[..], dims].map(|dims| dims.iter().product::<u64>());
        ensure!(had == has, "{} has {had} numbers, not {has}", self.name);
        Ok(Tensor { dims: dims.to_vec(), ..self.clone() })
    }

    /// In ggml's order.
    pub(crate) fn dims(&self) -> &[u64] {
        &self.dims
    }
}

impl Gguf {
    /// Reads the header of `path`.
    pub(crate) fn open(path: &Path) -> Result<Gguf> {
        Gguf::read(path).with_context(|| format!("{} cannot be read", path.display()))
    }

    fn read(path: &Path) -> Result<Gguf> {
        let file = File::open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut file = Reader { file: BufReader::new(file) };
        ensure!(&file.bytes(4)?[..] == MAGIC && file.u32()? == VERSION, "not GGUF version {VERSION}");
        let (tensors, entries) = (file.u64()?, file.u64()?);
        let entries: Vec<Entry> = (0..entries).map(|_| file.entry()).collect::<Result<_>>()?;
        let mut tensors: Vec<Tensor> = (0..tensors).map(|_| file.tensor()).collect::<Result<_>>()?;
        let alignment = entries.iter().find(|entry| entry.key == "general.alignment");
        let alignment = alignment.and_then(|entry| Some(u32::from_le_bytes(entry.value[..].try_into().ok()?)));
        let alignment = alignment.map_or(DEFAULT_ALIGNMENT, u64::from);
        let data = file.file.stream_position()?.next_multiple_of(alignment);
        tensors.sort_by_key(|tensor| tensor.start);
        let ends: Vec<u64> = tensors.iter().skip(1).map(|tensor| data + tensor.start).chain([file_bytes]).collect();
        for (tensor, end) in tensors.iter_mut().zip(ends) {
            tensor.start += data;
            tensor.bytes = end.checked_sub(tensor.start).context("a tensor lies behind the end")?;
        }
        Ok(Gguf { path: path.to_owned(), entries, tensors, alignment })
    }

    /// The matrix `tensor` as a convolution of 1x1 in F16, of numbers that stand elsewhere in this file.
    pub(crate) fn convolution(&self, tensor: &Tensor) -> Result<Tensor> {
        ensure!(tensor.dims.len() == 2, "{} is no matrix", tensor.name);
        let dims = vec![1, 1, tensor.dims[0], tensor.dims[1]];
        let bytes = 2 * tensor.dims[0] * tensor.dims[1];
        let numbers = self.tensors.iter().find(|other| other.kind == F16 && other.bytes >= bytes);
        let start = numbers.with_context(|| format!("no numbers for {}", tensor.name))?.start;
        Ok(Tensor { name: tensor.name.clone(), dims, kind: F16, start, bytes, made: None })
    }

    /// The F16 convolution in three dimensions whose kernels of pictures, one for each frame, are `taps`: [across, down, frames,
    /// channels in x channels out].
    pub(crate) fn volume(&self, taps: [&Tensor; 3]) -> Result<Tensor> {
        let last = taps[2];
        let [across, down, channels_in, channels_out] = last.dims[..] else { bail!("{} is no kernel", last.name) };
        let (plane, planes) = (2 * (across * down) as usize, (channels_in * channels_out) as usize);
        let mut numbers = Vec::new();
        for tap in taps {
            ensure!(tap.kind == F16 && tap.dims == last.dims, "{} is no tap of {}", tap.name, last.name);
            let mut bytes = vec![0; plane * planes];
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(tap.start))?;
            file.read_exact(&mut bytes)?;
            numbers.push(bytes);
        }
        let mut made = Vec::with_capacity(3 * plane * planes);
        for at in (0..plane * planes).step_by(plane) {
            for tap in &numbers {
                made.extend_from_slice(&tap[at..at + plane]);
            }
        }
        let (dims, bytes) = (vec![across, down, 3, channels_in * channels_out], made.len() as u64);
        Ok(Tensor { name: last.name.clone(), dims, kind: F16, start: 0, bytes, made: Some(made) })
    }

    /// Writes `path`, with the bytes of this file's `tensors` under the names that they have there.
    pub(crate) fn write(&self, path: &Path, entries: &[Entry], tensors: &[Tensor]) -> Result<()> {
        let written = self.write_to(&mut BufWriter::new(File::create(path)?), entries, tensors);
        written.with_context(|| format!("{} cannot be written", path.display()))
    }

    fn write_to(&self, to: &mut (impl Write + Seek), entries: &[Entry], tensors: &[Tensor]) -> Result<()> {
        to.write_all(MAGIC)?;
        to.write_all(&VERSION.to_le_bytes())?;
        for count in [tensors.len(), entries.len()] {
            to.write_all(&(count as u64).to_le_bytes())?;
        }
        for Entry { key, kind, value } in entries {
            write_text(to, key)?;
            to.write_all(&kind.to_le_bytes())?;
            to.write_all(value)?;
        }
        let mut offset = 0u64;
        for Tensor { name, dims, kind, bytes, .. } in tensors {
            write_text(to, name)?;
            to.write_all(&(dims.len() as u32).to_le_bytes())?;
            dims.iter().try_for_each(|dim| to.write_all(&dim.to_le_bytes()))?;
            to.write_all(&kind.to_le_bytes())?;
            to.write_all(&offset.to_le_bytes())?;
            offset += bytes.next_multiple_of(self.alignment);
        }
        let mut from = File::open(&self.path)?;
        for tensor in tensors {
            self.pad(to)?;
            if let Some(numbers) = &tensor.made {
                to.write_all(numbers)?;
                continue;
            }
            from.seek(SeekFrom::Start(tensor.start))?;
            let copied = std::io::copy(&mut (&mut from).take(tensor.bytes), to)?;
            ensure!(copied == tensor.bytes, "{} ends too early", self.path.display());
        }
        self.pad(to)?;
        Ok(to.flush()?)
    }

    fn pad(&self, to: &mut (impl Write + Seek)) -> Result<()> {
        let at = to.stream_position()?;
        let zeros = vec![0; (at.next_multiple_of(self.alignment) - at) as usize];
        Ok(to.write_all(&zeros)?)
    }
}

fn write_text(to: &mut impl Write, text: &str) -> Result<()> {
    to.write_all(&(text.len() as u64).to_le_bytes())?;
    Ok(to.write_all(text.as_bytes())?)
}

/// Reads numbers and texts.
struct Reader {
    file: BufReader<File>,
}

impl Reader {
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        ensure!(count <= MOST_BYTES, "{count} bytes in one value");
        let mut bytes = vec![0; count as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        let mut bytes = [0; 4];
        self.file.read_exact(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.file.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(&mut self) -> Result<String> {
        let count = self.u64()?;
        Ok(String::from_utf8(self.bytes(count)?)?)
    }

    fn entry(&mut self) -> Result<Entry> {
        let (key, kind) = (self.text()?, self.u32()?);
        let value = self.value(kind).with_context(|| format!("the value of {key}"))?;
        Ok(Entry { key, kind, value })
    }

    fn value(&mut self, kind: u32) -> Result<Vec<u8>> {
        if kind == STRING {
            let count = self.u64()?;
            return Ok([&count.to_le_bytes()[..], &self.bytes(count)?].concat());
        }
        if kind != ARRAY {
            return self.bytes(scalar_bytes(kind)?);
        }
        let (inner, count) = (self.u32()?, self.u64()?);
        let mut value = [&inner.to_le_bytes()[..], &count.to_le_bytes()].concat();
        for _ in 0..count {
            value.extend(self.value(inner)?);
        }
        Ok(value)
    }

    fn tensor(&mut self) -> Result<Tensor> {
        let (name, rank) = (self.text()?, self.u32()?);
        ensure!(rank <= 4, "{name} has {rank} dimensions");
        let dims = (0..rank).map(|_| self.u64()).collect::<Result<_>>()?;
        Ok(Tensor { name, dims, kind: self.u32()?, start: self.u64()?, bytes: 0, made: None })
    }
}

fn scalar_bytes(kind: u32) -> Result<u64> {
    Ok(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => bail!("a value of type {kind}"),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Two tensors of F32 numbers, one after the other, and an array of texts before them.
    fn sample(path: &Path) -> Gguf {
        let array = [&STRING.to_le_bytes()[..], &2u64.to_le_bytes()].concat();
        let texts = ["one", "three"].map(|text| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat());
        let entries = [
            Entry { key: "general.alignment".into(), kind: 4, value: 64u32.to_le_bytes().into() },
            Entry { key: "texts".into(), kind: ARRAY, value: [array, texts.concat()].concat() },
            Entry { key: "config".into(), kind: STRING, value: Vec::new() }.with_text("{\"layers\": 24}"),
        ];
        let data = path.with_extension("data");
        std::fs::write(&data, (0..=255).collect::<Vec<u8>>()).unwrap();
        let tensor =
            |name: &str, start| Tensor { name: name.into(), dims: vec![5, 3], kind: 0, start, bytes: 60, made: None };
        let whole = Gguf { path: data, entries: Vec::new(), tensors: Vec::new(), alignment: 64 };
        whole.write(path, &entries, &[tensor("a.first", 3), tensor("b.second", 100)]).unwrap();
        Gguf::open(path).unwrap()
    }

    #[test]
    fn what_is_cut_out_keeps_its_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let whole = sample(&directory.path().join("whole.gguf"));
        assert_eq!(whole.entries[2].text(), Some("{\"layers\": 24}"));
        assert_eq!(whole.entries[1].text(), None);
        let part = directory.path().join("part.gguf");
        let entries = [whole.entries[0].clone(), whole.entries[1].clone()];
        whole.write(&part, &entries, &[whole.tensors[1].called("second")]).unwrap();

        let part = Gguf::open(&part).unwrap();
        assert_eq!(
            part.entries.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(),
            ["general.alignment", "texts"]
        );
        assert_eq!(part.entries[1].value, whole.entries[1].value);
        let [second] = &part.tensors[..] else { panic!("one tensor") };
        assert_eq!((second.name.as_str(), &second.dims[..], second.start % 64), ("second", &[5, 3][..], 0));
        let bytes = std::fs::read(&part.path).unwrap();
        assert_eq!(bytes[second.start as usize..][..60], (100..160).collect::<Vec<u8>>()[..]);
    }

    #[test]
    fn taps_become_a_volume() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::write(&data, (0..48).collect::<Vec<u8>>()).unwrap();
        let tap = |start| Tensor { name: "w".into(), dims: vec![2, 1, 2, 2], kind: F16, start, bytes: 16, made: None };
        let whole = Gguf { path: data, entries: Vec::new(), tensors: Vec::new(), alignment: 32 };
        let volume = whole.volume([&tap(0), &tap(16), &tap(32)]).unwrap();
        assert_eq!(volume.dims, [2, 1, 3, 4]);
        let expected =
            (0..4).flat_map(|plane| (0..3).flat_map(move |tap| (0..4).map(move |i| 16 * tap + 4 * plane + i)));
        assert_eq!(volume.made.unwrap(), expected.collect::<Vec<u8>>());
    }

    #[test]
    fn a_file_that_ends_too_early_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("whole.gguf");
        let whole = sample(&path);
        let last = whole.tensors[1].start;
        for length in [0, 3, 30, 100, last - 1] {
            File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
            assert!(Gguf::open(&path).is_err(), "{length} bytes");
            sample(&path);
        }
    }
}
