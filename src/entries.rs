//! Named values in the order in which they were put in.

use serde::ser::{Serialize, Serializer};

/// An object in JSON, whose members keep their order.
#[derive(Default)]
pub struct Entries<V>(Vec<(String, V)>);

impl<V> Entries<V> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl<N: Into<String>, V> FromIterator<(N, V)> for Entries<V> {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> Entries<V> {
        Entries(entries.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}

impl<V: Serialize> Serialize for Entries<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}
