//! Writing a file front to back.

use std::io::Write;

use super::WriteError;
use super::layout::{Layout, Placed};

/// Writes a file into `W`, tensor by tensor in the layout's order, and keeps none of the bytes.
///
/// ```
/// use pinhole_quant::DType;
/// use pinhole_quant::gguf::{Layout, TensorSpec, Writer};
///
/// let bias = TensorSpec { name: "bias".into(), dims: vec![2], dtype: DType::F32 };
/// let layout = Layout::new(&[], &[bias], 32)?;
/// let mut writer = Writer::new(Vec::new(), layout)?;
/// writer.begin("bias")?;
/// writer.write(&1f32.to_le_bytes())?;
/// writer.write(&2f32.to_le_bytes())?;
/// writer.end()?;
/// let file = writer.finish()?;
/// # assert_eq!(file.len() % 32, 0);
/// # Ok::<(), pinhole_quant::gguf::WriteError>(())
/// ```
#[derive(Debug)]
pub struct Writer<W> {
    sink: W,
    layout: Layout,
    /// How many tensors are complete.
    done: usize,
    /// Bytes of the begun tensor that have come, or `None` between tensors.
    begun: Option<u64>,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    ///
    /// [`WriteError::Io`] where the sink refuses it.
    pub fn new(mut sink: W, layout: Layout) -> Result<Writer<W>, WriteError> {
        sink.write_all(layout.header())?;
        Ok(Writer { sink, layout, done: 0, begun: None })
    }

    /// The layout that is being written.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Begins the next tensor, which must be `name`.
    ///
    /// # Errors
    ///
    /// [`WriteError::Order`] where the layout has another tensor next, or one is begun and not ended.
    pub fn begin(&mut self, name: &str) -> Result<(), WriteError> {
        let next = self.layout.tensors().get(self.done);
        if self.begun.is_some() || next.is_none_or(|tensor| tensor.name != name) {
            return Err(WriteError::Order { expected: self.expected(), found: format!("the start of `{name:.80}`") });
        }
        self.begun = Some(0);
        Ok(())
    }

    /// Appends bytes to the begun tensor, in chunks of any size.
    ///
    /// # Errors
    ///
    /// [`WriteError::Order`] where no tensor is begun, [`WriteError::Size`] where the tensor would get more bytes than
    /// it takes (nothing is written then), [`WriteError::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let (come, tensor) = self.begun("data")?;
        let found = come + bytes.len() as u64;
        if found > tensor.bytes {
            return Err(WriteError::Size { tensor: tensor.name.clone(), expected: tensor.bytes, found });
        }
        self.sink.write_all(bytes)?;
        self.begun = Some(found);
        Ok(())
    }

    /// Ends the begun tensor and pads up to the next.
    ///
    /// # Errors
    ///
    /// [`WriteError::Order`] where no tensor is begun, [`WriteError::Size`] where bytes are missing,
    /// [`WriteError::Io`].
    pub fn end(&mut self) -> Result<(), WriteError> {
        let (found, tensor) = self.begun("an end")?;
        if found != tensor.bytes {
            return Err(WriteError::Size { tensor: tensor.name.clone(), expected: tensor.bytes, found });
        }
        let mut padding = found.next_multiple_of(self.layout.alignment().into()) - found;
        const ZEROS: [u8; 4096] = [0; 4096];
        while padding > 0 {
            let chunk = padding.min(ZEROS.len() as u64);
            self.sink.write_all(&ZEROS[..chunk as usize])?;
            padding -= chunk;
        }
        self.begun = None;
        self.done += 1;
        Ok(())
    }

    /// Writes the next tensor whole: [`begin`](Writer::begin), [`write`](Writer::write), [`end`](Writer::end).
    ///
    /// # Errors
    ///
    /// Theirs.
    pub fn write_tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), WriteError> {
        self.begin(name)?;
        self.write(bytes)?;
        self.end()
    }

    /// Hands the sink back once every tensor is written.
    ///
    /// # Errors
    ///
    /// [`WriteError::Order`] where tensors are missing, [`WriteError::Io`] where the sink cannot be flushed.
    pub fn finish(mut self) -> Result<W, WriteError> {
        if self.begun.is_some() || self.done < self.layout.tensors().len() {
            return Err(WriteError::Order { expected: self.expected(), found: "the end of the file".into() });
        }
        self.sink.flush()?;
        Ok(self.sink)
    }

    /// The begun tensor with the bytes that it has got.
    fn begun(&self, found: &str) -> Result<(u64, &Placed), WriteError> {
        let tensor = self.layout.tensors().get(self.done);
        self.begun
            .zip(tensor)
            .ok_or_else(|| WriteError::Order { expected: self.expected(), found: format!("{found} outside a tensor") })
    }

    /// What has to come next, in words.
    fn expected(&self) -> String {
        match (self.layout.tensors().get(self.done), self.begun) {
            (None, _) => "the end of the file".into(),
            (Some(tensor), None) => format!("the start of `{}`", tensor.name),
            (Some(tensor), Some(_)) => format!("the end of `{}`", tensor.name),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;

    use super::*;
    use crate::dtype::DType;
    use crate::gguf::{ALIGNMENT_KEY, Array, TensorSpec, Value};

    fn spec(name: &str, dims: &[usize], dtype: DType) -> TensorSpec {
        TensorSpec { name: name.into(), dims: dims.into(), dtype }
    }

    fn two_tensors(alignment: u32) -> Layout {
        let tensors = [spec("a", &[3], DType::F32), spec("b", &[32, 2], DType::Q8_0)];
        Layout::new(&[("general.architecture".into(), "flux".into())], &tensors, alignment).unwrap()
    }

    fn invalid(metadata: &[(String, Value)], tensors: &[TensorSpec], alignment: u32) -> String {
        let error = Layout::new(metadata, tensors, alignment).unwrap_err();
        assert!(matches!(error, WriteError::Invalid { .. }), "{error}");
        error.to_string()
    }

    #[test]
    fn what_is_written_is_what_was_laid_out() {
        for alignment in [8, 32, 64, 4096, 65536] {
            let layout = two_tensors(alignment);
            let [a, b] = layout.tensors() else { panic!("two tensors") };
            let (at_a, at_b) = (a.offset as usize, b.offset as usize);
            assert_eq!((a.bytes, b.bytes), (12, 68));
            assert!(at_a.is_multiple_of(alignment as usize) && at_b.is_multiple_of(alignment as usize));

            let mut writer = Writer::new(Vec::new(), layout.clone()).unwrap();
            writer.write_tensor("a", &[1; 12]).unwrap();
            writer.begin("b").unwrap();
            [30, 0, 30, 8].iter().for_each(|&n| writer.write(&vec![2; n]).unwrap());
            writer.end().unwrap();
            let file = writer.finish().unwrap();
            assert_eq!(file.len() as u64, layout.total_bytes());
            assert_eq!(file[at_a..at_a + 12], [1; 12]);
            assert_eq!(file[at_b..at_b + 68], [2; 68]);
            assert!(file[at_a + 12..at_b].iter().chain(&file[at_b + 68..]).all(|&byte| byte == 0));
        }
    }

    #[test]
    fn header_bytes_are_the_formats() {
        let file = Writer::new(Vec::new(), two_tensors(32)).unwrap().sink;
        let mut expected = b"GGUF\x03\0\0\0\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        expected.extend(b"\x14\0\0\0\0\0\0\0general.architecture\x08\0\0\0\x04\0\0\0\0\0\0\0flux");
        expected.extend(b"\x01\0\0\0\0\0\0\0a\x01\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        expected
            .extend(b"\x01\0\0\0\0\0\0\0b\x02\0\0\0\x20\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x08\0\0\0\x20\0\0\0\0\0\0\0");
        assert_eq!(&file[..expected.len()], expected);
        assert_eq!(file.len(), expected.len().next_multiple_of(32));
    }

    #[test]
    fn alignment_is_told_only_where_it_is_unusual() {
        let key = ALIGNMENT_KEY.as_bytes();
        let tells = |layout: &Layout| layout.header().windows(key.len()).any(|window| window == key);
        assert!(!tells(&two_tensors(32)));
        assert!(tells(&two_tensors(4096)));
    }

    #[test]
    fn sizes_and_order_are_checked() {
        let mut writer = Writer::new(Vec::new(), two_tensors(32)).unwrap();
        assert!(matches!(writer.write(&[0]), Err(WriteError::Order { .. })));
        assert!(matches!(writer.end(), Err(WriteError::Order { .. })));
        assert!(matches!(writer.begin("b"), Err(WriteError::Order { .. })));
        writer.begin("a").unwrap();
        assert!(matches!(writer.begin("a"), Err(WriteError::Order { .. })));
        writer.write(&[0; 11]).unwrap();
        assert!(matches!(writer.end(), Err(WriteError::Size { expected: 12, found: 11, .. })));
        assert!(matches!(writer.write(&[0; 2]), Err(WriteError::Size { expected: 12, found: 13, .. })));
        writer.write(&[0]).unwrap();
        writer.end().unwrap();
        let error = writer.finish().unwrap_err();
        assert_eq!(error.to_string(), "tensors out of order: expected the start of `b`, found the end of the file");
    }

    #[test]
    fn bad_tensors_are_refused() {
        let one = |spec| invalid(&[], &[spec], 32);
        assert!(one(spec("", &[1], DType::F32)).contains("1 to 63 bytes"));
        assert!(one(spec(&"n".repeat(64), &[1], DType::F32)).contains("64 bytes"));
        assert!(one(spec("a\nb", &[1], DType::F32)).contains("control"));
        assert!(one(spec("a", &[], DType::F32)).contains("1 to 4 extents"));
        assert!(one(spec("a", &[1, 1, 1, 1, 1], DType::F32)).contains("1 to 4 extents"));
        assert!(one(spec("a", &[4, 0], DType::F32)).contains("none zero"));
        assert!(one(spec("a", &[100], DType::Q4_K)).contains("multiple of 256"));
        assert!(one(spec("a", &[1 << 62, 2], DType::F32)).contains("a file can hold"));
        assert!(one(spec("a", &[1 << 60], DType::F32)).contains("a file can hold"));
        let twice = [spec("a", &[1], DType::F32), spec("a", &[2], DType::F32)];
        assert!(invalid(&[], &twice, 32).contains("a second one"));
        assert!(Layout::new(&[], &[spec(&"n".repeat(63), &[1], DType::F32)], 32).is_ok());
    }

    #[test]
    fn bad_metadata_is_refused() {
        let one = |key: &str, value: Value| invalid(&[(key.into(), value)], &[], 32);
        assert!(one("", 1.into()).contains("without control characters"));
        assert!(one(&"k".repeat(65536), 1.into()).contains("65536 bytes"));
        assert!(one(ALIGNMENT_KEY, 64.into()).contains("a second one"));
        let deep = (0..4).fold(Array::U8(vec![]), |inner, _| Array::Array(vec![inner]));
        assert!(one("deep", Value::Array(deep)).contains("at most 4 deep"));
        assert!(invalid(&[("k".into(), 1.into()), ("k".into(), 2.into())], &[], 32).contains("a second one"));
        assert!([0, 4, 48, 1 << 17].iter().all(|&alignment| invalid(&[], &[], alignment).contains("power of two")));
    }

    #[test]
    fn a_failing_sink_is_an_error() {
        #[derive(Debug)]
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = Writer::new(Full, two_tensors(32)).unwrap_err();
        assert!(matches!(error, WriteError::Io(source) if source.kind() == io::ErrorKind::StorageFull));
    }
}
