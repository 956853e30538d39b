//! Feature maps in host memory, by rows, and the statistics of those that are normalised.

use std::ops::Range;

use pinhole_quant::workers;

use crate::ggml::Ledger;
use crate::kernels::Moments;
use crate::stage::GroupStatistics;
use crate::{Error, Result};

/// How many channels a thread looks at together.
const CHANNELS: usize = 8;

/// The maps of one model, in one block.
pub(super) struct Maps {
    block: Vec<u8>,
    maps: Vec<Map>,
    /// Where host memory is the device's.
    account: Option<Ledger>,
}

/// One map `[w, h, c, B]` of F32.
struct Map {
    offset: usize,
    dims: [usize; 4],
    /// Those of its rows that are there.
    rows: Range<usize>,
    /// By channel, those of each picture after the other; none where nothing asks for them.
    moments: Vec<Moments>,
}

impl Maps {
    /// Maps of `dims` at `offsets` in a block of `total` bytes, which `account` hears of; statistics of those that are
    /// `normed`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn new(
        total: usize,
        offsets: &[usize],
        dims: &[[usize; 4]],
        normed: impl Fn(usize) -> bool,
        account: Option<&Ledger>,
    ) -> Result<Maps> {
        let maps = offsets
            .iter()
            .zip(dims)
            .enumerate()
            .map(|(i, (&offset, &dims))| {
                let channels = if normed(i) { dims[2] * dims[3] } else { 0 };
                Map { offset, dims, rows: 0..dims[1], moments: vec![Moments::default(); channels] }
            })
            .collect();
        if let Some(ledger) = account {
            ledger.enter("ports", total)?;
        }
        let mut made = Maps { block: Vec::new(), maps, account: account.cloned() };
        if made.block.try_reserve_exact(total).is_err() {
            made.leave(total);
            return Err(Error::OutOfMemory {
                what: "maps in host memory".into(),
                bytes: total,
                hint: Some("choose a smaller picture".into()),
            });
        }
        made.block.resize(total, 0);
        Ok(made)
    }

    fn leave(&mut self, bytes: usize) {
        if let Some(ledger) = self.account.take() {
            ledger.leave("ports", bytes);
        }
    }

    /// From now on, only the `rows` of each map are there. What is in them is undefined.
    pub(super) fn hold(&mut self, rows: &[Range<usize>]) {
        for (map, rows) in self.maps.iter_mut().zip(rows) {
            map.rows = rows.clone();
        }
    }

    /// The rows of the map at `position` that are there.
    pub(super) fn rows(&self, position: usize) -> Range<usize> {
        self.maps[position].rows.clone()
    }

    /// The bytes of the map at `position`: of the rows that are there.
    pub(super) fn whole(&self, position: usize) -> &[u8] {
        &self.block[self.maps[position].place()]
    }

    pub(super) fn whole_mut(&mut self, position: usize) -> &mut [u8] {
        &mut self.block[self.maps[position].place()]
    }

    /// Some rows of the map at `position`, into `out`: of its last pictures, if there is not room for more.
    pub(super) fn read(&self, position: usize, rows: &Range<usize>, out: &mut [u8]) {
        let (plane, part) = self.maps[position].part(rows);
        let (planes, wanted) = (self.whole(position).chunks_exact(plane), out.len() / part.len());
        let before = planes.len() - wanted;
        for (plane, out) in planes.skip(before).zip(out.chunks_exact_mut(part.len())) {
            out.copy_from_slice(&plane[part.clone()]);
        }
    }

    /// What [`write`](Maps::write) is about to overwrite all of the map at `position`.
    pub(super) fn begin(&mut self, position: usize) {
        self.maps[position].moments.fill(Moments::default());
    }

    /// Writes some rows of the map at `position`, and counts them in.
    pub(super) fn write(&mut self, position: usize, rows: &Range<usize>, new: &[u8]) {
        let [w, ..] = self.maps[position].dims;
        let (plane, part) = self.maps[position].part(rows);
        for (plane, new) in self.whole_mut(position).chunks_exact_mut(plane).zip(new.chunks_exact(part.len())) {
            plane[part.clone()].copy_from_slice(new);
        }
        let moments = &mut self.maps[position].moments;
        let parts = moments.chunks_mut(CHANNELS).zip(new.chunks(CHANNELS * part.len())).collect();
        workers::for_each(parts, |(moments, channels): (&mut [Moments], &[u8])| {
            for (moments, channel) in moments.iter_mut().zip(channels.chunks_exact(part.len())) {
                let rows = channel.as_chunks::<4>().0;
                *moments = moments.with_rows(rows, w, |number| f32::from_ne_bytes(*number));
            }
        });
    }

    /// The mean of each channel's group, and one over its standard deviation, as the bytes of F32.
    pub(super) fn statistics(&self, position: usize, norm: GroupStatistics) -> (Vec<u8>, Vec<u8>) {
        let Map { dims, moments, .. } = &self.maps[position];
        let each = (dims[2] / norm.groups.max(1)).max(1);
        let (mut means, mut scales) = (Vec::new(), Vec::new());
        for group in moments.chunks(each) {
            let all = group.iter().fold(Moments::default(), |all, channel| all.with(*channel));
            let (mean, scale) = all.mean_and_scale(norm.eps);
            means.extend(mean.to_ne_bytes().repeat(group.len()));
            scales.extend(scale.to_ne_bytes().repeat(group.len()));
        }
        (means, scales)
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        self.leave(self.block.len());
    }
}

impl Map {
    /// Where the bytes of its rows are in the block.
    fn place(&self) -> Range<usize> {
        let [w, _, channels, batch] = self.dims;
        self.offset..self.offset + 4 * w * self.rows.len() * channels * batch
    }

    /// Bytes of a plane, and where some `rows` of it are.
    fn part(&self, rows: &Range<usize>) -> (usize, Range<usize>) {
        let (row, first) = (4 * self.dims[0], self.rows.start);
        (row * self.rows.len(), row * (rows.start - first)..row * (rows.end - first))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bytes(numbers: &[f32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|&number| f32::from_ne_bytes(number)).collect()
    }

    #[test]
    fn rows_of_every_plane() {
        let dims = [2, 3, 2, 1];
        let mut maps = Maps::new(48 + 64, &[64], &[dims], |_| false, None).unwrap();
        maps.whole_mut(0).copy_from_slice(&bytes(&(0..12).map(|i| i as f32).collect::<Vec<_>>()));
        let mut out = vec![0; 2 * 4 * 4];
        maps.read(0, &(1..3), &mut out);
        assert_eq!(floats(&out), [2.0, 3.0, 4.0, 5.0, 8.0, 9.0, 10.0, 11.0]);
        maps.write(0, &(0..1), &bytes(&[-1.0, -2.0, -3.0, -4.0]));
        assert_eq!(floats(maps.whole(0)), [-1.0, -2.0, 2.0, 3.0, 4.0, 5.0, -3.0, -4.0, 8.0, 9.0, 10.0, 11.0]);
    }

    #[test]
    fn a_band_has_some_rows() {
        let mut maps = Maps::new(2 * 4 * 8 * 3, &[0], &[[2, 9, 3, 1]], |_| false, None).unwrap();
        maps.hold(std::slice::from_ref(&(4..8)));
        maps.whole_mut(0).fill(0);
        let numbers: Vec<f32> = (0..12).map(|i| i as f32).collect();
        maps.write(0, &(5..7), &bytes(&numbers));
        let mut out = vec![0; 2 * 4 * 2 * 3];
        maps.read(0, &(6..8), &mut out);
        assert_eq!(floats(&out), [2.0, 3.0, 0.0, 0.0, 6.0, 7.0, 0.0, 0.0, 10.0, 11.0, 0.0, 0.0]);
        assert_eq!((maps.rows(0), maps.whole(0).len()), (4..8, 2 * 4 * 4 * 3));
    }

    #[test]
    fn statistics_are_of_all_rows_and_of_the_group() {
        let dims = [5, 7, 4, 2];
        // Far from zero, where sums of squares in single precision have no digits left.
        let numbers: Vec<f32> = (0..5 * 7 * 4 * 2).map(|i| 1000.0 + (i as f32 * 0.7).sin()).collect();
        let mut maps = Maps::new(4 * numbers.len(), &[0], &[dims], |_| true, None).unwrap();
        let plane = 5 * 7;
        for _ in 0..2 {
            // A second time: what was counted before is forgotten.
            maps.begin(0);
            for rows in [0..3, 3..4, 4..7] {
                let strip: Vec<f32> =
                    numbers.chunks(plane).flat_map(|p| p[5 * rows.start..5 * rows.end].to_vec()).collect();
                maps.write(0, &rows, &bytes(&strip));
            }
        }
        assert_eq!(floats(maps.whole(0)), numbers);
        let (means, scales) = maps.statistics(0, GroupStatistics { groups: 2, eps: 1e-6 });
        let (means, scales) = (floats(&means), floats(&scales));
        assert_eq!((means.len(), scales.len()), (8, 8));
        for (i, group) in numbers.chunks(2 * plane).enumerate() {
            let mean = group.iter().map(|&x| f64::from(x)).sum::<f64>() / group.len() as f64;
            let variance = group.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / group.len() as f64;
            let scale = (variance + 1e-6).sqrt().recip();
            for channel in 2 * i..2 * i + 2 {
                assert!((f64::from(means[channel]) / mean - 1.0).abs() < 1e-7);
                assert!((f64::from(scales[channel]) / scale - 1.0).abs() < 2e-7);
            }
        }
    }
}
