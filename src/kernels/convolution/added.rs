//! What is added to a result.

use super::geometry::Geometry;

/// What is added to the result.
#[derive(Clone, Copy, Debug, Default)]
pub struct Added<'a> {
    /// To every output, if there is a bias.
    pub bias: Option<&'a [f32]>,
    /// Maps of the result's shape, one picture after the other.
    pub map: Option<&'a [f32]>,
}

impl Added<'_> {
    /// Writes the first sums of some pixels of `output`, which is number `plane` of all pictures' outputs, with all that is added to them.
    #[inline(always)]
    pub(super) fn first(
        &self,
        row: &mut [f32],
        sums: &[f32],
        geometry: &Geometry,
        (plane, output): (usize, usize),
        [x, y]: [usize; 2],
    ) {
        let bias = self.bias.map_or(0.0, |bias| bias[output]);
        match self.map {
            None => row.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum + bias),
            Some(map) => {
                let [w, h] = geometry.result;
                let start = (plane * h + y) * w + x;
                let map = &map[start..start + row.len()];
                row.iter_mut().zip(sums).zip(map).for_each(|((out, sum), map)| *out = sum + bias + map);
            }
        }
    }
}
