//! What a plan has to keep to, and the refusal where it cannot.

use super::place::least_weights;
use super::{Component, Offload, Variant};

/// What a plan has to keep to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes on the device at once; `None` without a limit.
    pub bytes: Option<usize>,
    /// Whether the device computes in host memory, where weights that stay in the map cost nothing.
    pub host: bool,
    /// What the backend takes before anything is allocated: its context, staging on the device.
    pub overhead: usize,
    /// Bounds of the host's memory, where there are any.
    pub of_host: [Option<HostLimit>; 2],
}

/// What bounds the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostBound {
    /// What is free, or what somebody allows: of the process's own memory and of pages of files that are resident.
    Memory,
    /// A limit of the process's address space. Files that are mapped are in it already.
    Addresses,
}

/// A bound of the host's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostLimit {
    /// What bounds it.
    pub bound: HostBound,
    /// The most bytes at once.
    pub bytes: usize,
    /// Bytes that the process holds already, or will hold whatever the plan is.
    pub process: usize,
    /// Bytes that a graph takes.
    pub graph: usize,
    /// Whether the device's memory is host memory too.
    pub shared: bool,
}

impl HostLimit {
    /// What `component`, computed as `variant`, takes of it at least, except for weights that are copied.
    fn taken(&self, component: &Component, variant: &Variant) -> usize {
        let device = if self.shared { variant.bytes().saturating_add(component.company) } else { 0 };
        let pages = match self.bound {
            HostBound::Memory => component.least_pages(),
            HostBound::Addresses => 0,
        };
        let graphs = self.graph.saturating_mul(variant.graphs);
        [component.beside, variant.host, device, pages, graphs].into_iter().fold(self.process, usize::saturating_add)
    }

    /// The same with `weights` bytes of copies on the device.
    fn needed(&self, component: &Component, variant: &Variant, weights: usize) -> usize {
        let weights = if self.shared { weights } else { 0 };
        self.taken(component, variant).saturating_add(weights)
    }
}

/// No placement fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The component that needs most.
    pub component: &'static str,
    /// What is too little; `None` for the device.
    pub bound: Option<HostBound>,
    /// The least budget that works.
    pub least: usize,
    /// The budget that was given.
    pub given: usize,
}

impl Limits {
    /// What is left for copies of weights beside `component`, computed as `variant`; `None` where not even that fits.
    pub(super) fn left(&self, component: &Component, variant: &Variant) -> Option<usize> {
        let most = self.bytes.unwrap_or(usize::MAX);
        let mut left = most.checked_sub(self.beside_weights(component, variant))?;
        for limit in self.of_host.iter().flatten() {
            let rest = limit.bytes.checked_sub(limit.taken(component, variant))?;
            if limit.shared {
                left = left.min(rest);
            }
        }
        Some(left)
    }

    /// What is on the device while `component` is computed as `variant`, except for copies of weights.
    fn beside_weights(&self, component: &Component, variant: &Variant) -> usize {
        variant.bytes().saturating_add(component.company).saturating_add(self.overhead)
    }

    /// The refusal if nothing fits. Of the first bound that is too little, the component that needs most decides; ways to compute
    /// a component that another bound has ruled out before do not count.
    pub(super) fn refusal(&self, components: &[Component], offload: Offload) -> Refusal {
        let mut open: Vec<Vec<&Variant>> = Vec::new();
        for component in components {
            open.push(component.variants.iter().collect());
        }
        let device = self.most_needed(components, &open, offload, None);
        if self.bytes.is_some_and(|bytes| device.least > bytes) {
            return device;
        }
        self.retain(components, &mut open, offload, None);
        for limit in self.of_host.iter().flatten() {
            let refusal = self.most_needed(components, &open, offload, Some(limit));
            if refusal.least > limit.bytes {
                return refusal;
            }
            self.retain(components, &mut open, offload, Some(limit));
        }
        device
    }

    /// The least budget of the device, in bytes, whatever the limits allow now.
    pub(super) fn least(&self, components: &[Component], offload: Offload) -> usize {
        let open: Vec<Vec<&Variant>> = components.iter().map(|component| component.variants.iter().collect()).collect();
        self.most_needed(components, &open, offload, None).least
    }

    /// What `limit`, or the device, has to be for all components in one of their `open` ways.
    fn most_needed(
        &self,
        components: &[Component],
        open: &[Vec<&Variant>],
        offload: Offload,
        limit: Option<&HostLimit>,
    ) -> Refusal {
        let given = limit.map_or(self.bytes, |limit| Some(limit.bytes)).unwrap_or(usize::MAX);
        let mut refusal = Refusal { component: "", bound: limit.map(|limit| limit.bound), least: 0, given };
        for (component, open) in components.iter().zip(open) {
            let weights = weights(components, component, offload);
            let each = open.iter().map(|variant| self.needed(component, variant, weights, limit));
            let least = each.min().unwrap_or(0);
            if least >= refusal.least {
                refusal = Refusal { component: component.name, least, ..refusal };
            }
        }
        refusal
    }

    /// Leaves only the ways that `limit`, or the device, has room for.
    fn retain(
        &self,
        components: &[Component],
        open: &mut [Vec<&Variant>],
        offload: Offload,
        limit: Option<&HostLimit>,
    ) {
        let most = limit.map_or(self.bytes, |limit| Some(limit.bytes)).unwrap_or(usize::MAX);
        for (component, open) in components.iter().zip(open) {
            let weights = weights(components, component, offload);
            open.retain(|variant| self.needed(component, variant, weights, limit) <= most);
        }
    }

    /// What `component` takes of `limit`, or of the device, computed as `variant` with `weights` bytes of copies.
    fn needed(&self, component: &Component, variant: &Variant, weights: usize, limit: Option<&HostLimit>) -> usize {
        match limit {
            Some(limit) => limit.needed(component, variant, weights),
            None => self.beside_weights(component, variant).saturating_add(weights),
        }
    }
}

/// Bytes of copies that are on the device at least while `component` runs.
fn weights(components: &[Component], component: &Component, offload: Offload) -> usize {
    match offload {
        Offload::None => components.iter().map(Component::weights).fold(0, usize::saturating_add),
        _ => least_weights(component, offload),
    }
}
