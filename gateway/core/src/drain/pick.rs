//! Who goes first: devices whose certificate is no longer trusted, whatever they do; then devices with nothing in flight, the longest silent of them; then those with little in flight.
//!
//! One pass over all connections picks the next thousand; it is made at most once a second unless more are needed, so that the
//! cost does not grow with the rate of asking.

use std::{collections::BinaryHeap, time::Duration};

use crate::time::Millis;

/// Devices picked by one pass.
const PICKED_MAX: usize = 1024;
/// How long a pass is worth something: after that others may be the longer silent.
const WORTH: Duration = Duration::from_secs(1);

/// What makes a device leave before another: the lesser goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Standing {
    /// Its certificate is trusted, or it has none.
    pub trusted: bool,
    /// Messages of both directions under way.
    pub in_flight: usize,
    /// When its last message settled, or when it connected.
    pub silent_since: Millis,
}

/// The next to go, named by `K`.
#[derive(Debug)]
pub struct Picks<K> {
    /// The last is the first to go.
    picked: Vec<(Standing, K)>,
    /// Had nothing in flight when picked, but when its turn came.
    busy: Vec<K>,
    made: Option<Millis>,
    /// There were more than were picked.
    more: bool,
}

impl<K> Default for Picks<K> {
    fn default() -> Self {
        Self { picked: Vec::new(), busy: Vec::new(), made: None, more: false }
    }
}

impl<K: Copy + Ord> Picks<K> {
    /// The next to go. `everyone` that may go is asked for when a pass is due; `look` tells how one of them stands now, `None` if
    /// it is gone or on its way.
    pub fn next<I: Iterator<Item = (K, Standing)>>(
        &mut self,
        now: Millis,
        look: impl Fn(K) -> Option<Standing>,
        everyone: impl Fn() -> I,
    ) -> Option<K> {
        let mut is_fresh = false;
        if self.made.is_none_or(|made| now.since(made) >= WORTH) {
            self.pick(everyone(), now);
            is_fresh = true;
        }
        loop {
            while let Some((before, key)) = self.picked.pop() {
                match look(key) {
                    Some(standing) if standing.in_flight > before.in_flight => self.busy.push(key),
                    Some(_) => return Some(key),
                    None => {}
                }
            }
            if is_fresh || !self.more {
                break;
            }
            self.pick(everyone(), now);
            is_fresh = true;
        }
        while let Some(key) = self.busy.pop() {
            if look(key).is_some() {
                return Some(key);
            }
        }
        None
    }

    fn pick(&mut self, everyone: impl Iterator<Item = (K, Standing)>, now: Millis) {
        let mut first = BinaryHeap::with_capacity(PICKED_MAX + 1);
        self.more = false;
        for (key, standing) in everyone {
            if first.len() < PICKED_MAX {
                first.push((standing, key));
            } else {
                self.more = true;
                if let Some(mut last) = first.peek_mut()
                    && (standing, key) < *last
                {
                    *last = (standing, key);
                }
            }
        }
        self.busy.clear();
        self.picked = first.into_sorted_vec();
        self.picked.reverse();
        self.made = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::BTreeMap};

    use super::{PICKED_MAX, Picks, Standing};
    use crate::time::Millis;

    type World = BTreeMap<u32, Standing>;

    fn standing(in_flight: usize, silent_since: u64) -> Standing {
        Standing { trusted: true, in_flight, silent_since: Millis(silent_since) }
    }

    fn next(picks: &mut Picks<u32>, world: &mut World, now: u64) -> Option<u32> {
        let everyone = || world.iter().map(|(key, standing)| (*key, *standing));
        let key = picks.next(Millis(now), |key| world.get(&key).copied(), everyone)?;
        world.remove(&key);
        Some(key)
    }

    #[test]
    fn the_longest_silent_goes_first_and_the_busiest_last() {
        let mut world: World =
            [(1, standing(0, 50)), (2, standing(3, 1)), (3, standing(0, 10)), (4, standing(1, 90))].into();
        let mut picks = Picks::default();
        let order: Vec<_> = std::iter::from_fn(|| next(&mut picks, &mut world, 100)).collect();
        assert_eq!(order, [3, 1, 4, 2]);
    }

    #[test]
    fn who_is_no_longer_trusted_goes_before_all_others() {
        let distrusted = Standing { trusted: false, ..standing(5, 90) };
        let mut world: World = [(1, standing(0, 50)), (2, distrusted), (3, standing(0, 10))].into();
        let mut picks = Picks::default();
        let order: Vec<_> = std::iter::from_fn(|| next(&mut picks, &mut world, 100)).collect();
        assert_eq!(order, [2, 3, 1]);
    }

    #[test]
    fn one_that_got_busy_meanwhile_waits_for_the_idle_ones_and_goes_after_them() {
        let mut world: World = [(1, standing(0, 1)), (2, standing(0, 2)), (3, standing(0, 3))].into();
        let mut picks = Picks::default();
        assert_eq!(next(&mut picks, &mut world, 0), Some(1));
        world.insert(2, standing(1, 5));
        assert_eq!(next(&mut picks, &mut world, 10), Some(3));
        assert_eq!(next(&mut picks, &mut world, 10), Some(2));
        assert_eq!(next(&mut picks, &mut world, 10), None);
    }

    #[test]
    fn all_of_twenty_thousand_go_in_order_and_passes_are_few() {
        let mut world: World = (0..20_000).map(|key| (key, standing(0, u64::from(20_000 - key)))).collect();
        let (mut picks, passes) = (Picks::default(), Cell::new(0));
        for gone in 0..20_000_u32 {
            let everyone = || {
                passes.set(passes.get() + 1);
                world.iter().map(|(key, standing)| (*key, *standing))
            };
            let key = picks.next(Millis(0), |key| world.get(&key).copied(), everyone);
            assert_eq!(key, Some(20_000 - 1 - gone));
            world.remove(&key.unwrap());
        }
        assert!(passes.get() <= 20_000 / PICKED_MAX + 1, "{} passes", passes.get());
        assert_eq!(next(&mut picks, &mut world, 10), None);
    }

    #[test]
    fn while_nobody_may_go_one_pass_a_second_is_made() {
        let (mut picks, passes) = (Picks::<u32>::default(), Cell::new(0));
        for now in 0..3000 {
            let everyone = || {
                passes.set(passes.get() + 1);
                std::iter::empty()
            };
            assert_eq!(picks.next(Millis(now), |_| None, everyone), None);
        }
        assert_eq!(passes.get(), 3);
    }
}
