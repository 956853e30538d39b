//! Which rows a band of a film needs: of each map, and of what each pass computes. Found backwards from the rows that the host fetches.

use std::ops::Range;

use crate::stage::{Cadence, Lifetime, Model, Reach};

/// What a pass does with maps, which are numbered by their positions.
pub(super) struct PassMaps {
    pub(super) reads: Vec<(usize, Reach)>,
    pub(super) writes: Vec<usize>,
    /// Rows of what it writes.
    pub(super) height: usize,
}

/// The rows of one band.
#[derive(Clone)]
pub(crate) struct Band {
    /// By stage and pass: those that are computed.
    pub(super) passes: Vec<Vec<Range<usize>>>,
    /// By map: those that are there.
    pub(crate) maps: Vec<Range<usize>>,
}

/// What is looked at to find them.
pub(super) struct Film<'a> {
    pub(super) model: &'a Model,
    /// By stage.
    pub(super) passes: &'a [Vec<PassMaps>],
    /// By map.
    pub(super) heights: &'a [usize],
}

impl Film<'_> {
    /// `count` bands, from the top to the bottom. Of a single one, all rows.
    pub(super) fn bands(&self, count: usize) -> Vec<Band> {
        if count > 1 {
            return (0..count).map(|number| self.band(number, count)).collect();
        }
        let mut passes = Vec::with_capacity(self.passes.len());
        for of_stage in self.passes {
            passes.push(of_stage.iter().map(|pass| 0..pass.height).collect());
        }
        vec![Band { passes, maps: self.heights.iter().map(|&height| 0..height).collect() }]
    }

    fn band(&self, number: usize, count: usize) -> Band {
        let mut band = Band {
            passes: self.passes.iter().map(|passes| vec![0..0; passes.len()]).collect(),
            maps: vec![0..0; self.heights.len()],
        };
        // What a step leaves to the next has to be what the next one finds: looked for until it is.
        let mut kept = vec![0..0; self.heights.len()];
        loop {
            let found = self.backwards(Cadence::Step, self.fetched(Cadence::Step, number, count, &kept), &mut band);
            let mut all = kept.clone();
            for (map, port) in self.model.ports().iter().enumerate() {
                if port.lifetime == Lifetime::Request {
                    all[map] = hull(&all[map], &found[map]);
                }
            }
            if all == kept {
                break;
            }
            kept = all;
        }
        self.backwards(Cadence::Request, self.fetched(Cadence::Request, number, count, &kept), &mut band);
        band
    }

    /// The rows that are needed of each map when the stages of `cadence` have run: those of the band in what the host fetches then, and
    /// what is `kept`.
    fn fetched(&self, cadence: Cadence, number: usize, count: usize, kept: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut rows = kept.to_vec();
        let passes: Vec<&PassMaps> = self.passes[self.model.at(cadence)].iter().flatten().collect();
        for (map, port) in self.model.ports().iter().enumerate() {
            let mut is_last_written = false;
            for pass in &passes {
                let writes = pass.writes.contains(&map);
                if writes || pass.reads.iter().any(|(read, _)| *read == map) {
                    is_last_written = writes;
                }
            }
            if port.lifetime == Lifetime::Pass && is_last_written {
                rows[map] = own_rows(self.heights[map], number, count);
            }
        }
        rows
    }

    /// The rows that are needed of each map before the stages of `cadence`, if `needed` are after them. Notes in `band` what is computed
    /// and what is there meanwhile.
    fn backwards(&self, cadence: Cadence, mut needed: Vec<Range<usize>>, band: &mut Band) -> Vec<Range<usize>> {
        for stage in self.model.at(cadence).rev() {
            for (number, pass) in self.passes[stage].iter().enumerate().rev() {
                let mut rows = 0..0;
                for &map in &pass.writes {
                    rows = hull(&rows, &std::mem::replace(&mut needed[map], 0..0));
                }
                for &map in &pass.writes {
                    band.maps[map] = hull(&band.maps[map], &rows);
                }
                for &(map, reach) in if rows.is_empty() { &[][..] } else { &pass.reads } {
                    let read = reach.rows(&rows, self.heights[map]);
                    needed[map] = hull(&needed[map], &read);
                    band.maps[map] = hull(&band.maps[map], &read);
                }
                let computed = &mut band.passes[stage][number];
                *computed = hull(computed, &rows);
            }
        }
        needed
    }
}

/// The rows of band `number` of `count`, of a map of `height` rows. Convolutions compute rows in pairs.
fn own_rows(height: usize, number: usize, count: usize) -> Range<usize> {
    let start = |number: usize| if number == count { height } else { (height * number / count) & !1 };
    start(number)..start(number + 1)
}

/// The smallest range that has all of both.
fn hull(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.clone(),
        (_, true) => a.clone(),
        _ => a.start.min(b.start)..a.end.max(b.end),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use pinhole_quant::DType;

    use super::*;
    use crate::Result;
    use crate::stage::{Block, Build};

    struct Nothing;

    impl Block for Nothing {
        fn build(&self, _: &Build<'_>) -> Result<()> {
            Ok(())
        }
    }

    /// A map, its double as high, and what is kept of the first: a convolution in place that looks back, and one of doubled rows.
    #[test]
    fn rows_are_what_the_next_layers_reach() {
        let mut model = Model::new();
        let mut port = |name: &str, lifetime| model.port(name, &[1.into(), 1.into()], DType::F32, lifetime).index();
        let (map, kept, double) =
            (port("map", Lifetime::Pass), port("kept", Lifetime::Request), port("double", Lifetime::Pass));
        for stage in ["convolution", "double"] {
            model.stage(stage, Cadence::Step, |_| Ok(Nothing)).unwrap();
        }
        let hidden = 3;
        let pass = |reads: &[(usize, Reach)], writes: &[usize], height| PassMaps {
            reads: reads.to_vec(),
            writes: writes.to_vec(),
            height,
        };
        let (halo, own) = (Reach::Around(1), Reach::Around(0));
        let convolution = vec![
            pass(&[(map, halo), (kept, halo)], &[hidden], 20),
            pass(&[(map, own)], &[kept], 20),
            pass(&[(hidden, own)], &[map], 20),
        ];
        let passes = [convolution, vec![pass(&[(map, Reach::Half(1))], &[double], 40)]];
        let convolved = |band: &Band| band.passes[0].clone();
        let doubled = |band: &Band| band.passes[1][0].clone();
        let film = Film { model: &model, passes: &passes, heights: &[20, 20, 40, 20] };
        let bands = film.bands(2);
        // Rows 0..21 of the double come from 0..11, which see one more.
        assert_eq!((convolved(&bands[0]), doubled(&bands[0])), (vec![0..11, 0..12, 0..11], 0..20));
        assert_eq!(bands[0].maps, [0..12, 0..12, 0..20, 0..11]);
        assert_eq!((convolved(&bands[1]), doubled(&bands[1])), (vec![9..20, 8..20, 9..20], 20..40));
        let [whole] = &film.bands(1)[..] else { panic!("one band") };
        assert_eq!(whole.maps, [0..20, 0..20, 0..40, 0..20]);
        assert_eq!(convolved(whole), [0..20, 0..20, 0..20]);
    }

    #[test]
    fn bands_are_all_rows() {
        for (height, count) in [(480, 4), (30, 8), (7, 3), (2, 6)] {
            let bands: Vec<_> = (0..count).map(|number| own_rows(height, number, count)).collect();
            assert!(bands[0].start == 0 && bands[count - 1].end == height);
            assert!(bands.windows(2).all(|two| two[0].end == two[1].start && two[1].start % 2 == 0));
        }
    }
}
