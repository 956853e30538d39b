//! The pages of the file that hold weights: read before they are needed, given back where host memory is short.

use std::ops::Range;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use crate::Result;
use crate::bind::Bound;
use crate::index::Map;
use crate::stage::Stage;

/// Where the weights of one stage lie in their files.
#[derive(Clone, Default)]
pub(crate) struct Pages(Vec<(Arc<Map>, Range<usize>)>);

impl Pages {
    /// Of `stage`; neighbours are joined, so that a stage of a bundle is one range.
    pub(crate) fn of(stage: &Stage, bound: &Bound) -> Pages {
        let pieces = stage.weights.iter().flat_map(|&id| bound.pieces(id));
        let mut spans: Vec<(Arc<Map>, Range<usize>)> =
            pieces.map(|piece| piece.span()).map(|(map, range)| (Arc::clone(map), range)).collect();
        spans.sort_by_key(|(map, range)| (Arc::as_ptr(map).addr(), range.start));
        let mut joined: Vec<(Arc<Map>, Range<usize>)> = Vec::new();
        for (map, range) in spans {
            match joined.last_mut() {
                Some((last, before)) if Arc::ptr_eq(last, &map) && range.start <= before.end + GAP => {
                    before.end = before.end.max(range.end);
                }
                _ => joined.push((map, range)),
            }
        }
        Pages(joined)
    }

    /// Has them read, before somebody touches them.
    pub(crate) fn will_read(&self) {
        self.0.iter().for_each(|(map, range)| map.will_read(range.clone()));
    }

    /// Has them read now, if they are not in memory: what cannot be read is an error here, and a signal where it is touched.
    ///
    /// # Errors
    /// As [`Map::populate`].
    pub(crate) fn populate(&self) -> Result<()> {
        self.0.iter().try_for_each(|(map, range)| map.populate(range.clone()))
    }

    /// Lets go of them: the system keeps them as long as it has room.
    pub(crate) fn let_go(&self) {
        self.0.iter().for_each(|(map, range)| map.let_go(range.clone()));
    }

    /// Gives their memory back to the system.
    pub(crate) fn give_back(&self) {
        self.0.iter().for_each(|(map, range)| map.give_back(range.clone()));
    }
}

/// What alignment leaves between neighbours at most: as much as a bundle's.
const GAP: usize = 4096;

/// Reads pages ahead of a computation in the file's own memory, and gives them back behind it, on a thread of its own: both
/// may wait for the disk.
pub(crate) struct Pager {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    WillRead(usize),
    GiveBack(usize),
}

impl Pager {
    /// For stages of `pages`; those that are `dropped` are given back after each use. `None` where there is no thread to be
    /// had: then the computation itself waits for the disk.
    pub(crate) fn start(pages: Arc<[Pages]>, dropped: Vec<bool>) -> Option<Pager> {
        let (orders, queue) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("pages".into())
            .spawn(move || {
                for order in queue {
                    match order {
                        Order::WillRead(stage) => pages.get(stage).into_iter().for_each(Pages::will_read),
                        Order::GiveBack(stage) if dropped.get(stage) == Some(&true) => pages[stage].give_back(),
                        Order::GiveBack(_) => {}
                    }
                }
            })
            .ok()?;
        Some(Pager { orders: Some(orders), thread: Some(thread) })
    }

    /// The computation of a stage begins, and that of `next` follows.
    pub(crate) fn before(&self, next: usize) {
        self.order(Order::WillRead(next));
    }

    /// The computation of `stage` is over.
    pub(crate) fn after(&self, stage: usize) {
        self.order(Order::GiveBack(stage));
    }

    fn order(&self, order: Order) {
        // If the thread that serves orders has ended, no result changes.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // It only advises the system.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::builtin;
    use crate::convert::{self, WriteOptions};
    use crate::pipeline;
    use crate::source::Source;
    use crate::source::networks;
    use crate::source::slot::TRANSFORMER;
    use pinhole_quant::recipe::FileType;

    #[test]
    fn a_stage_of_a_bundle_is_one_range_and_all_its_bytes() {
        // A bundle that is made now: when the built-in one was made, stages followed each other in another order.
        let (dir, model) = (tempfile::tempdir().unwrap(), pipeline::open(&builtin::mini().unwrap()).unwrap());
        let path = dir.path().join("mini.gguf");
        let plan = convert::plan(&model.source, &model.networks(), FileType::Q8_0).unwrap();
        plan.write(&path, WriteOptions::default(), &mut |_| Ok(())).unwrap();
        let source = Source::open(&path).unwrap();
        let transformer = networks::flux(source.component(&TRANSFORMER).unwrap()).unwrap();
        let (net, bound) = (&transformer.net.model, &transformer.bound);
        for stage in net.stages() {
            let pages = Pages::of(stage, bound);
            let bytes: usize = stage.weights.iter().flat_map(|&id| bound.pieces(id)).map(|p| p.bytes().len()).sum();
            let covered: usize = pages.0.iter().map(|(_, range)| range.len()).sum();
            assert!(pages.0.len() <= 1, "{}: {} ranges", stage.name, pages.0.len());
            assert!(covered >= bytes, "{}: {covered} of {bytes}", stage.name);
        }
    }

    #[test]
    fn a_pager_ends_with_its_orders_done() {
        let transformer = networks::flux(builtin::mini().unwrap().component(&TRANSFORMER).unwrap()).unwrap();
        let stages = transformer.net.model.stages();
        let pages: Arc<[Pages]> = stages.iter().map(|stage| Pages::of(stage, &transformer.bound)).collect();
        let pager = Pager::start(Arc::clone(&pages), vec![true; pages.len()]).unwrap();
        for stage in 0..pages.len() {
            pager.before(stage + 1);
            pager.after(stage);
        }
        drop(pager);
        assert_eq!(Arc::strong_count(&pages), 1);
    }
}
