//! What the numbers of a change come from, for a digest of them.

use super::delta::{Delta, Factor, Form, Pair, Side};
use crate::bind::Content;

impl Delta {
    /// Adds everything that decides what the change makes of `table`.
    pub(crate) fn add_contents<'a>(&'a self, table: &str, contents: &mut Vec<Content<'a>>) {
        let Delta { rows, from, columns, pixels, scale, strength, magnitude, .. } = self;
        let kind = match &self.form {
            Form::LowRank { .. } => "low rank",
            Form::Dense(_) => "dense",
            Form::Hadamard(_) => "hadamard",
            Form::Kronecker { .. } => "kronecker",
        };
        let change = format!(
            "{kind} on {table}, rows {rows:?} from {from} on, of {columns} in {pixels}, \
             times {scale:?} and {strength:?}, {magnitude:?}"
        );
        for (name, factor) in self.form.factors() {
            let what = format!("{change}, {name} {} x {}", factor.rows, factor.columns);
            contents.push(Content::new(&what, &factor.piece));
        }
    }
}

impl Form {
    /// Its matrices, each with a name.
    fn factors(&self) -> Vec<(&'static str, &Factor)> {
        let mut factors = Vec::new();
        match self {
            Form::LowRank { down, mid, up } => {
                factors.extend([("down", down), ("up", up)]);
                factors.extend(mid.as_ref().map(|mid| ("mid", mid)));
            }
            Form::Dense(factor) => factors.push(("diff", factor)),
            Form::Hadamard(pairs) => {
                for pair in pairs.as_ref() {
                    pair.add_factors(&mut factors);
                }
            }
            Form::Kronecker { left, right } => {
                for side in [left, right] {
                    match side {
                        Side::Whole(factor) => factors.push(("whole", factor)),
                        Side::Pair(pair) => pair.add_factors(&mut factors),
                    }
                }
            }
        }
        factors
    }
}

impl Pair {
    fn add_factors<'a>(&'a self, factors: &mut Vec<(&'static str, &'a Factor)>) {
        let [a, b] = if self.a_by_rank { ["a by rank", "b by rank"] } else { ["a", "b"] };
        factors.extend([(a, &self.a), (b, &self.b)]);
        factors.extend(self.core.as_ref().map(|core| ("core", core)));
    }
}
