//! Pictures of jobs that have ended, on a server without `--state`: in a file without a name, so that they take no memory, and are gone
//! with the process however that ends.
//!
//! The file is a ring: new pictures overwrite the oldest. Jobs are forgotten in the order in which they ended. So, if the ring is as large
//! as all pictures that may be kept, it has those of every job that is known.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use axum::body::Bytes;

/// Where a picture lies: bytes of all that were ever written. Modulo the ring's size, it is a place in the file.
pub type Span = Range<u64>;

/// The ring.
#[derive(Debug)]
pub struct Spool {
    file: File,
    size: u64,
    /// Bytes of all that were ever written.
    written: Mutex<u64>,
}

impl Spool {
    /// A ring of so many bytes, in the system's folder for temporary files. It takes room on the disk as it is filled.
    ///
    /// # Errors
    /// What the system says if there can be no such file.
    pub fn new(size: usize) -> io::Result<Spool> {
        Ok(Spool { file: tempfile::tempfile()?, size: size as u64, written: Mutex::default() })
    }

    /// Writes `pictures`, and says where each of them lies.
    ///
    /// # Errors
    /// That they are more than the ring has room for, or the disk.
    pub fn write(&self, pictures: &[Bytes]) -> io::Result<Vec<Span>> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: u64 = pictures.iter().map(|picture| picture.len() as u64).sum();
        if bytes > self.size {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (mut at, mut spans) = (*written, Vec::with_capacity(pictures.len()));
        // Also where the disk is full in the middle: what lay there is not whole any more.
        *written += bytes;
        for picture in pictures {
            let span = at..at + picture.len() as u64;
            let before_the_seam = self.before_the_seam(&span);
            self.file.write_all_at(&picture[..before_the_seam], at % self.size)?;
            self.file.write_all_at(&picture[before_the_seam..], 0)?;
            at = span.end;
            spans.push(span);
        }
        Ok(spans)
    }

    /// The picture at `span`; `None` if others lie there now.
    ///
    /// # Errors
    /// What the disk says.
    pub fn read(&self, span: &Span) -> io::Result<Option<Bytes>> {
        // Held, so that nothing is written over it meanwhile.
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.saturating_sub(span.start) > self.size {
            return Ok(None);
        }
        let mut picture = vec![0; (span.end - span.start) as usize];
        let (first, second) = picture.split_at_mut(self.before_the_seam(span));
        self.file.read_exact_at(first, span.start % self.size)?;
        self.file.read_exact_at(second, 0)?;
        Ok(Some(picture.into()))
    }

    /// How many bytes of `span` lie before the end of the file; the others are at its beginning.
    fn before_the_seam(&self, span: &Span) -> usize {
        (span.end - span.start).min(self.size - span.start % self.size) as usize
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_lies_over_what_is_oldest() {
        let spool = Spool::new(100).unwrap();
        let picture = |number: u8| Bytes::from(vec![number; 30 + usize::from(number % 7)]);
        let mut all: Vec<Span> = Vec::new();
        for number in 0..50 {
            let [span] = <[Span; 1]>::try_from(spool.write(&[picture(number)]).unwrap()).unwrap();
            all.push(span);
            // Two always have room, and three hardly ever.
            for kept in number.saturating_sub(1)..=number {
                assert_eq!(spool.read(&all[usize::from(kept)]).unwrap(), Some(picture(kept)), "{number} {kept}");
            }
            if number >= 3 {
                assert_eq!(spool.read(&all[usize::from(number) - 3]).unwrap(), None);
            }
        }
        assert!(spool.write(&[Bytes::from(vec![0; 60]), Bytes::from(vec![0; 41])]).is_err());
        assert_eq!(spool.read(&all[49]).unwrap(), Some(picture(49)));
    }
}
