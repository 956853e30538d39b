//! Sets of tokens, as ranges.

use std::ops::Range;

/// Tokens: ranges in order that do not touch each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spans(Vec<Range<usize>>);

impl Spans {
    /// All tokens, however many there are.
    pub(crate) fn all() -> Spans {
        Spans::one(0..usize::MAX)
    }

    /// Those of `range`.
    pub(crate) fn one(range: Range<usize>) -> Spans {
        if range.is_empty() { Spans::default() } else { Spans(vec![range]) }
    }

    /// The ranges.
    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        &self.0
    }

    /// Adds those of `range`.
    pub(crate) fn add(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let mut joined = range;
        self.0.retain(|own| {
            let apart = own.end < joined.start || joined.end < own.start;
            if !apart {
                joined = own.start.min(joined.start)..own.end.max(joined.end);
            }
            apart
        });
        let place = self.0.partition_point(|own| own.start < joined.start);
        self.0.insert(place, joined);
    }

    /// Those of both.
    pub(crate) fn and(&self, other: &Spans) -> Spans {
        let mut both = Spans::default();
        for own in &self.0 {
            for range in &other.0 {
                both.add(own.start.max(range.start)..own.end.min(range.end));
            }
        }
        both
    }

    /// Those of this one alone.
    pub(crate) fn without(&self, other: &Spans) -> Spans {
        let mut left = self.0.clone();
        for taken in &other.0 {
            let mut rest = Vec::with_capacity(left.len() + 1);
            for own in left {
                rest.push(own.start..own.end.min(taken.start));
                rest.push(own.start.max(taken.end)..own.end);
            }
            left = rest.into_iter().filter(|range| !range.is_empty()).collect();
        }
        Spans(left)
    }
}

impl FromIterator<Range<usize>> for Spans {
    fn from_iter<I: IntoIterator<Item = Range<usize>>>(ranges: I) -> Spans {
        let mut spans = Spans::default();
        for range in ranges {
            spans.add(range);
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKENS: usize = 40;

    fn spans() -> impl Strategy<Value = Spans> {
        prop::collection::vec((0..TOKENS, 0usize..12), 0..6)
            .prop_map(|ranges| ranges.into_iter().map(|(start, len)| start..TOKENS.min(start + len)).collect())
    }

    fn has(spans: &Spans, token: usize) -> bool {
        spans.ranges().iter().any(|range| range.contains(&token))
    }

    proptest! {
        #[test]
        fn sets_are_as_their_tokens_are(one in spans(), other in spans()) {
            let (both, left) = (one.and(&other), one.without(&other));
            for token in 0..TOKENS {
                prop_assert_eq!(has(&both, token), has(&one, token) && has(&other, token));
                prop_assert_eq!(has(&left, token), has(&one, token) && !has(&other, token));
            }
            for spans in [&one, &both, &left] {
                prop_assert!(spans.ranges().windows(2).all(|two| two[0].end < two[1].start));
            }
            prop_assert_eq!(one.and(&Spans::all()), one.clone());
            prop_assert_eq!(one.without(&Spans::all()), Spans::default());
        }
    }
}
