//! Many small queues in one slab: an empty queue costs eight bytes, a full one no allocation of its own.
//!
//! A device that is idle holds nothing, and a message in steady state allocates nothing. Not thread-safe, not aware of
//! what it holds.

use slab::Slab;

const NONE: u32 = u32::MAX;

/// The storage of many [`List`]s.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    nodes: Slab<Node<T>>,
}

#[derive(Debug)]
struct Node<T> {
    value: T,
    before: u32,
    after: u32,
}

/// One queue. It belongs to the arena that it was first used with; dropping it without [`Arena::clear`] leaks its nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct List {
    head: u32,
    tail: u32,
}

/// Names one value of an [`Arena`] until it is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) u32);

impl List {
    /// A queue without values.
    pub(crate) const EMPTY: Self = Self { head: NONE, tail: NONE };

    /// Whether nothing is queued.
    pub(crate) fn is_empty(self) -> bool {
        self.head == NONE
    }

    /// The oldest value.
    pub(crate) fn first(self) -> Option<Key> {
        some(self.head)
    }
}

impl<T> Arena<T> {
    pub(crate) fn new() -> Self {
        Self { nodes: Slab::new() }
    }

    /// Values in all queues together.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether every queue is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(crate) fn push_back(&mut self, list: &mut List, value: T) -> Key {
        let key = self.nodes.insert(Node { value, before: list.tail, after: NONE }) as u32;
        match self.nodes.get_mut(list.tail as usize) {
            Some(tail) => tail.after = key,
            None => list.head = key,
        }
        list.tail = key;
        Key(key)
    }

    pub(crate) fn pop_front(&mut self, list: &mut List) -> Option<T> {
        let head = list.first()?;
        self.remove(list, head)
    }

    /// Takes a value out of the middle of its queue; `None` if the arena does not know `key`.
    pub(crate) fn remove(&mut self, list: &mut List, key: Key) -> Option<T> {
        let node = self.nodes.try_remove(key.0 as usize)?;
        match self.nodes.get_mut(node.before as usize) {
            Some(before) => before.after = node.after,
            None => list.head = node.after,
        }
        match self.nodes.get_mut(node.after as usize) {
            Some(after) => after.before = node.before,
            None => list.tail = node.before,
        }
        Some(node.value)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        self.nodes.get(key.0 as usize).map(|node| &node.value)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.nodes.get_mut(key.0 as usize).map(|node| &mut node.value)
    }

    /// The value queued after `key`.
    pub(crate) fn after(&self, key: Key) -> Option<Key> {
        some(self.nodes.get(key.0 as usize)?.after)
    }

    /// Drops every value of `list`.
    pub(crate) fn clear(&mut self, list: &mut List) {
        while self.pop_front(list).is_some() {}
    }

    /// Gives room back after a storm: called when everything is empty.
    pub(crate) fn shrink(&mut self) {
        if self.nodes.is_empty() {
            self.nodes.shrink_to_fit();
        }
    }
}

fn some(key: u32) -> Option<Key> {
    (key != NONE).then_some(Key(key))
}

#[cfg(test)]
mod tests {
    use super::{Arena, List};

    fn collect(arena: &mut Arena<u8>, list: &mut List) -> Vec<u8> {
        std::iter::from_fn(|| arena.pop_front(list)).collect()
    }

    #[test]
    fn lists_of_one_arena_keep_their_own_order() {
        let mut arena = Arena::new();
        let (mut a, mut b) = (List::EMPTY, List::EMPTY);
        for n in 0..3 {
            arena.push_back(&mut a, n);
            arena.push_back(&mut b, 10 + n);
        }
        assert_eq!(collect(&mut arena, &mut a), [0, 1, 2]);
        assert_eq!(collect(&mut arena, &mut b), [10, 11, 12]);
        assert!(a.is_empty() && b.is_empty());
        assert_eq!(arena.len(), 0);
    }

    #[test]
    fn a_value_leaves_from_any_place() {
        for gone in 0..3_u8 {
            let (mut arena, mut list) = (Arena::new(), List::EMPTY);
            let keys: Vec<_> = (0..3).map(|n| arena.push_back(&mut list, n)).collect();
            assert_eq!(arena.remove(&mut list, keys[usize::from(gone)]), Some(gone));
            arena.push_back(&mut list, 9);
            let left: Vec<u8> = (0..3).filter(|n| *n != gone).chain([9]).collect();
            assert_eq!(collect(&mut arena, &mut list), left, "without {gone}");
        }
    }

    #[test]
    fn walking_forward_visits_the_queue_in_order() {
        let (mut arena, mut list) = (Arena::new(), List::EMPTY);
        for n in 0..4 {
            arena.push_back(&mut list, n);
        }
        let walk: Vec<u8> =
            std::iter::successors(list.first(), |key| arena.after(*key)).map(|key| *arena.get(key).unwrap()).collect();
        assert_eq!(walk, [0, 1, 2, 3]);
    }
}
