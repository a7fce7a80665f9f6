//! The deliveries of one session that wait for an outcome, by delivery-id.
//!
//! Ids are given out in order, so a ring from the lowest waiting id holds them; a look-up is an index and a range costs
//! what it finds, never its width. A few that wait much longer than the rest move out of the ring's way into a tree.

use std::collections::{BTreeMap, VecDeque};

/// Who waits: the link (slab index) and the caller's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    pub token: u64,
    pub link: u32,
}

const VACANT: Pending = Pending { token: 0, link: u32::MAX };

/// The ring may hold this many places, plus four for each delivery that waits, before its lowest entry moves to the tree.
const RING_MIN: usize = 1024;

#[derive(Debug)]
pub(crate) struct Unsettled {
    /// The id after the last given out. Counted on without wrapping; the low half is the id of the wire.
    next: u64,
    ring: VecDeque<Pending>,
    stragglers: BTreeMap<u64, Pending>,
    live: usize,
}

impl Unsettled {
    pub(crate) fn starting_at(id: u32) -> Self {
        let next = (1 << 32) + u64::from(id);
        Self { next, ring: VecDeque::new(), stragglers: BTreeMap::new(), live: 0 }
    }

    /// The id the next delivery will have.
    pub(crate) fn next_id(&self) -> u32 {
        self.next as u32
    }

    /// Deliveries that wait.
    pub(crate) fn len(&self) -> usize {
        self.live
    }

    /// Gives the next id to a delivery; `None`: it was sent settled and waits for nothing.
    pub(crate) fn push(&mut self, pending: Option<Pending>) {
        if pending.is_some() || !self.ring.is_empty() {
            self.ring.push_back(pending.unwrap_or(VACANT));
        }
        self.live += usize::from(pending.is_some());
        self.next += 1;
        while self.ring.len() > RING_MIN + 4 * self.live {
            let id = self.ring_start();
            match self.ring.pop_front() {
                Some(VACANT) | None => {}
                Some(straggler) => {
                    self.stragglers.insert(id, straggler);
                }
            }
        }
    }

    /// No id may be given out again while it waits: false when 2³¹ ids lie between the oldest that waits and the next.
    pub(crate) fn has_room(&self) -> bool {
        self.stragglers.first_key_value().is_none_or(|(oldest, _)| self.next - oldest < 1 << 31)
    }

    fn ring_start(&self) -> u64 {
        self.next - self.ring.len() as u64
    }

    /// The id of the wire, seen from the next one: ids lie within 2³¹ of each other (RFC 1982).
    fn position(&self, id: u32) -> u64 {
        let distance = id.wrapping_sub(self.next as u32).cast_signed();
        self.next.wrapping_add_signed(i64::from(distance))
    }

    /// Takes out those with `first <= id <= last`, lowest first, and shows each with its id. Ids that wait for nothing are passed over.
    pub(crate) fn take_range(&mut self, first: u32, last: u32, mut take: impl FnMut(u32, Pending)) {
        let low = self.position(first);
        let high = low + u64::from(last.wrapping_sub(first));
        while let Some((&id, &pending)) = self.stragglers.range(low..=high).next() {
            self.stragglers.remove(&id);
            self.live -= 1;
            take(id as u32, pending);
        }
        let start = self.ring_start();
        let from = low.max(start);
        let to = (high + 1).min(self.next);
        for id in from..to {
            let place = &mut self.ring[(id - start) as usize];
            if *place != VACANT {
                self.live -= 1;
                take(id as u32, std::mem::replace(place, VACANT));
            }
        }
        self.trim();
    }

    /// Takes out those of one link, lowest first; `count` of them are there.
    pub(crate) fn take_link(&mut self, link: u32, count: u32, mut take: impl FnMut(Pending)) {
        let mut left = count;
        let ids: Vec<u64> = self.stragglers.iter().filter(|(_, p)| p.link == link).map(|(id, _)| *id).collect();
        for pending in ids.into_iter().filter_map(|id| self.stragglers.remove(&id)) {
            left -= 1;
            take(pending);
        }
        for place in &mut self.ring {
            if left == 0 {
                break;
            }
            if place.link == link {
                left -= 1;
                take(std::mem::replace(place, VACANT));
            }
        }
        self.live -= (count - left) as usize;
        self.trim();
    }

    /// Takes out all of them, lowest first.
    pub(crate) fn take_all(&mut self, mut take: impl FnMut(Pending)) {
        self.live = 0;
        std::mem::take(&mut self.stragglers).into_values().for_each(&mut take);
        std::mem::take(&mut self.ring).into_iter().filter(|place| *place != VACANT).for_each(take);
    }

    fn trim(&mut self) {
        while self.ring.front() == Some(&VACANT) {
            self.ring.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(token: u64) -> Pending {
        Pending { token, link: (token % 3) as u32 }
    }

    fn take(unsettled: &mut Unsettled, first: u32, last: u32) -> Vec<(u32, u64)> {
        let mut taken = Vec::new();
        unsettled.take_range(first, last, |id, p| taken.push((id, p.token)));
        taken
    }

    #[test]
    fn ranges_take_what_waits_once_across_the_wrap_of_the_ids() {
        let mut unsettled = Unsettled::starting_at(u32::MAX - 1);
        for token in 0..5 {
            unsettled.push(Some(pending(token)));
        }
        assert_eq!(take(&mut unsettled, u32::MAX, 0), [(u32::MAX, 1), (0, 2)]);
        assert_eq!(take(&mut unsettled, u32::MAX, 0), []);
        assert_eq!(take(&mut unsettled, u32::MAX - 5, 100), [(u32::MAX - 1, 0), (1, 3), (2, 4)]);
        assert_eq!(unsettled.len(), 0);
        assert!(unsettled.ring.is_empty());
    }

    #[test]
    fn a_range_of_two_thousand_million_ids_costs_what_it_finds() {
        let mut unsettled = Unsettled::starting_at(0);
        unsettled.push(Some(pending(7)));
        assert_eq!(take(&mut unsettled, 5, 5 + (u32::MAX >> 1)), []);
        assert_eq!(take(&mut unsettled, 0, u32::MAX >> 1), [(0, 7)]);
    }

    #[test]
    fn a_straggler_does_not_hold_the_ring_and_is_still_found() {
        let mut unsettled = Unsettled::starting_at(0);
        for token in 0..100_000 {
            unsettled.push(Some(pending(token)));
            if token > 0 {
                assert_eq!(take(&mut unsettled, token as u32, token as u32), [(token as u32, token)]);
            }
        }
        assert!(unsettled.ring.len() <= RING_MIN + 4, "{}", unsettled.ring.len());
        assert_eq!(unsettled.len(), 1);
        assert_eq!(take(&mut unsettled, 0, 99_999), [(0, 0)]);
        assert_eq!(unsettled.len(), 0);
    }

    #[test]
    fn settled_sends_count_ids_but_hold_no_place_alone() {
        let mut unsettled = Unsettled::starting_at(0);
        unsettled.push(None);
        assert!(unsettled.ring.is_empty());
        unsettled.push(Some(pending(1)));
        unsettled.push(None);
        assert_eq!(unsettled.next_id(), 3);
        assert_eq!(take(&mut unsettled, 0, 9), [(1, 1)]);
    }

    #[test]
    fn a_link_takes_its_own_and_leaves_the_rest() {
        let mut unsettled = Unsettled::starting_at(10);
        for token in 0..9 {
            unsettled.push(Some(pending(token)));
        }
        let mut taken = Vec::new();
        unsettled.take_link(1, 3, |p| taken.push(p.token));
        assert_eq!(taken, [1, 4, 7]);
        assert_eq!(unsettled.len(), 6);
        assert_eq!(take(&mut unsettled, 10, 18).len(), 6);
    }
}
