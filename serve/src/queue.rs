//! Who is next: each key has a line of its own, and the lines take turns.

use std::collections::VecDeque;
use std::sync::Arc;

/// Jobs that wait, in a line for each key.
#[derive(Debug)]
pub struct Queue<T> {
    /// Lines that are not empty; the first has the next turn.
    lines: VecDeque<(Arc<str>, VecDeque<T>)>,
    length: usize,
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue { lines: VecDeque::new(), length: 0 }
    }
}

impl<T> Queue<T> {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many of `key` wait.
    pub fn len_of(&self, key: &str) -> usize {
        self.lines.iter().find(|(of, _)| &**of == key).map_or(0, |(_, line)| line.len())
    }

    /// Puts `item` at the end of the line of `key`.
    pub fn push(&mut self, key: &Arc<str>, item: T) {
        self.length += 1;
        match self.lines.iter_mut().find(|(of, _)| of == key) {
            Some((_, line)) => line.push_back(item),
            None => self.lines.push_back((Arc::clone(key), VecDeque::from([item]))),
        }
    }

    /// Takes the first of the line whose turn it is.
    pub fn pop(&mut self) -> Option<T> {
        let (key, mut line) = self.lines.pop_front()?;
        let item = line.pop_front();
        if !line.is_empty() {
            self.lines.push_back((key, line));
        }
        self.length -= usize::from(item.is_some());
        item
    }

    /// Takes all that `chosen` chooses, at most `most`, without a change of turns.
    pub fn take(&mut self, most: usize, mut chosen: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for (_, line) in &mut self.lines {
            let mut left = VecDeque::with_capacity(line.len());
            for item in line.drain(..) {
                match taken.len() < most && chosen(&item) {
                    true => taken.push(item),
                    false => left.push_back(item),
                }
            }
            *line = left;
        }
        self.lines.retain(|(_, line)| !line.is_empty());
        self.length -= taken.len();
        taken
    }

    /// How many are taken before the first that `chosen` chooses.
    pub fn ahead_of(&self, chosen: impl Fn(&T) -> bool) -> Option<usize> {
        let (turn, at) = self.lines.iter().enumerate().find_map(|(turn, (_, line))| {
            let at = line.iter().position(&chosen)?;
            Some((turn, at))
        })?;
        let mut ahead = 0;
        for (other, (_, line)) in self.lines.iter().enumerate() {
            // A line before it has had one turn more.
            ahead += if other < turn { line.len().min(at + 1) } else { line.len().min(at) };
        }
        Some(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(items: &[(&str, u32)]) -> Queue<u32> {
        let mut queue = Queue::default();
        for (key, item) in items {
            queue.push(&Arc::from(*key), *item);
        }
        queue
    }

    fn all(queue: &mut Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn a_key_with_many_jobs_does_not_keep_others_waiting() {
        let mut queue = queue(&[("a", 1), ("a", 2), ("a", 3), ("b", 10), ("c", 20), ("b", 11)]);
        assert_eq!((queue.len(), queue.len_of("a"), queue.len_of("b"), queue.len_of("x")), (6, 3, 2, 0));
        assert_eq!(all(&mut queue), [1, 10, 20, 2, 11, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn who_is_ahead_is_who_is_taken_before() {
        let items = [("a", 1), ("a", 2), ("a", 3), ("b", 10), ("c", 20), ("b", 11), ("b", 12), ("b", 13)];
        for (_, item) in items {
            let queued = queue(&items);
            let ahead = queued.ahead_of(|other| *other == item);
            let order = all(&mut queue(&items));
            assert_eq!(ahead, order.iter().position(|other| *other == item), "{item}");
        }
        assert_eq!(queue(&items).ahead_of(|_| false), None);
    }

    #[test]
    fn what_is_taken_is_no_longer_there() {
        let mut queue = queue(&[("a", 1), ("a", 2), ("b", 3), ("b", 4), ("c", 6)]);
        assert_eq!(queue.take(2, |item| item % 2 == 0), [2, 4]);
        assert_eq!(queue.len(), 3);
        assert_eq!(all(&mut queue), [1, 3, 6]);
    }
}
