//! What a family needs on disk: a kind of network in each of its places.

use super::{Component, Networks, Slot};
use crate::Result;
use crate::bind::alias::Kind;

/// A place of a family, and the kind of network that takes it.
pub struct Place {
    /// The place.
    pub slot: &'static Slot,
    /// The kind of network.
    pub kind: &'static Kind,
    /// Whether models of the family cannot do without it.
    pub needed: bool,
    /// The place that makes this one unnecessary, if it is taken.
    pub unless: Option<&'static Slot>,
    /// Whether a file that lies beside others takes it, without being given for it.
    pub found: bool,
    /// Finds its networks in a component, without the rest of a model.
    pub load: fn(&Component) -> Result<Box<dyn Networks>>,
}

impl Place {
    /// A place that has to be taken.
    pub const fn needed(
        slot: &'static Slot,
        kind: &'static Kind,
        load: fn(&Component) -> Result<Box<dyn Networks>>,
    ) -> Place {
        Place { slot, kind, needed: true, unless: None, found: true, load }
    }

    /// A place that need not be taken, and that is taken by what is given for it alone.
    pub const fn given(
        slot: &'static Slot,
        kind: &'static Kind,
        load: fn(&Component) -> Result<Box<dyn Networks>>,
    ) -> Place {
        Place { needed: false, found: false, ..Place::needed(slot, kind, load) }
    }

    /// A place that need not be taken, and that is taken by what is there. What is there and cannot be opened is passed over.
    pub const fn found(
        slot: &'static Slot,
        kind: &'static Kind,
        load: fn(&Component) -> Result<Box<dyn Networks>>,
    ) -> Place {
        Place { needed: false, ..Place::needed(slot, kind, load) }
    }

    /// Whether what is there is passed over if it cannot be opened.
    pub(super) fn can_be_passed_over(&self) -> bool {
        self.found && !self.needed
    }

    /// The same, unnecessary if `other` is taken.
    #[must_use]
    pub const fn unless(self, other: &'static Slot) -> Place {
        Place { unless: Some(other), ..self }
    }
}
