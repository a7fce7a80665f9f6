//! Which lists are not whole yet. Nothing is decided about a namespace of which something was never listed.
//!
//! Where namespaces are named, one that is gone, or in which the operator has no rights, keeps back no other: after some
//! refusals in a row its list is given up for now, and asked for again for as long as the program runs.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus::IntGauge;
use tokio::sync::watch;

/// So many refusals in a row, a few seconds with the waits between them, are no matter of roles that are about to come.
const REFUSALS_MAX: u32 = 3;

/// Counts them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Lists(Arc<Inner>);

struct Inner {
    /// How many are awaited.
    awaited: watch::Sender<usize>,
    /// How many are not whole, awaited or not, by the namespace that they are of; `None` for all namespaces.
    missing: Mutex<BTreeMap<Option<String>, usize>>,
    given_up: IntGauge,
    /// Namespaces that are whole; all namespaces are one.
    served: IntGauge,
}

impl Lists {
    pub(super) fn new(given_up: IntGauge, served: IntGauge) -> Self {
        Self(Arc::new(Inner { awaited: watch::Sender::new(0), missing: Mutex::default(), given_up, served }))
    }

    /// One more.
    pub(super) fn expect(&self, namespace: Option<&str>) -> Expected {
        self.0.miss(namespace, 1);
        self.0.awaited.send_modify(|awaited| *awaited += 1);
        Expected { lists: self.clone(), namespace: namespace.map(str::to_owned), refusals: 0 }
    }

    /// How many are awaited.
    pub(super) fn awaited(&self) -> watch::Receiver<usize> {
        self.0.awaited.subscribe()
    }

    /// Whether everything of a namespace was listed.
    pub(super) fn are_whole(&self, namespace: &str) -> bool {
        let missing = self.0.missing();
        let none = |scope: &Option<String>| missing.get(scope).is_none_or(|missing| *missing == 0);
        none(&None) && none(&Some(namespace.to_owned()))
    }
}

impl Inner {
    fn missing(&self) -> MutexGuard<'_, BTreeMap<Option<String>, usize>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many more lists of a namespace are not whole.
    fn miss(&self, namespace: Option<&str>, more: isize) {
        let mut missing = self.missing();
        let lists = missing.entry(namespace.map(str::to_owned)).or_default();
        *lists = lists.saturating_add_signed(more);
        let served = missing.values().filter(|lists| **lists == 0).count();
        self.served.set(i64::try_from(served).unwrap_or(i64::MAX));
    }
}

/// A list that is not whole yet; it is when this is dropped.
pub(super) struct Expected {
    lists: Lists,
    namespace: Option<String>,
    /// In a row.
    refusals: u32,
}

impl Expected {
    /// It was refused for want of rights. Whether it is given up for now, by this very refusal.
    pub(super) fn refused(&mut self) -> bool {
        // without a namespace there is nothing else to do
        if self.namespace.is_none() || self.is_given_up() {
            return false;
        }
        self.refusals += 1;
        if self.is_given_up() {
            self.lists.0.given_up.inc();
            self.lists.0.awaited.send_modify(|awaited| *awaited -= 1);
        }
        self.is_given_up()
    }

    /// It failed for another reason, which gives nothing up.
    pub(super) fn failed(&mut self) -> bool {
        if !self.is_given_up() {
            self.refusals = 0;
        }
        false
    }

    /// It is whole; whether it was given up before.
    pub(super) fn was_given_up(self) -> bool {
        self.is_given_up()
    }

    fn is_given_up(&self) -> bool {
        self.refusals >= REFUSALS_MAX
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.lists.0.miss(self.namespace.as_deref(), -1);
        if self.is_given_up() {
            self.lists.0.given_up.dec();
        } else {
            self.lists.0.awaited.send_modify(|awaited| *awaited -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists() -> Lists {
        let [given_up, served] =
            ["given_up", "served"].map(|name| IntGauge::new(name, "a test's").expect("it is a name"));
        Lists::new(given_up, served)
    }

    /// Awaited, given up, and whether `a` and `b` are whole. Those that were expected and are, are served.
    fn check(lists: &Lists, awaited: usize, given_up: i64, whole: (bool, bool)) {
        let found = (*lists.awaited().borrow(), lists.0.given_up.get(), (lists.are_whole("a"), lists.are_whole("b")));
        assert_eq!(found, (awaited, given_up, whole));
    }

    #[test]
    fn a_namespace_without_rights_is_given_up_and_keeps_back_no_other() {
        let lists = lists();
        let (mut refused, taken) = (lists.expect(Some("a")), lists.expect(Some("b")));
        check(&lists, 2, 0, (false, false));
        drop(taken);
        check(&lists, 1, 0, (false, true));
        let given_up: Vec<bool> = (0..=REFUSALS_MAX).map(|_| refused.refused()).collect();
        assert_eq!(given_up, [false, false, true, false], "it is said once");
        check(&lists, 0, 1, (false, true));
        drop(refused);
        check(&lists, 0, 0, (true, true));
    }

    #[test]
    fn namespaces_that_are_whole_are_counted() {
        let (lists, all) = (lists(), self::lists());
        let served = |lists: &Lists, expected: i64| assert_eq!(lists.0.served.get(), expected);
        let (mut refused, pods, secrets) = (lists.expect(Some("a")), lists.expect(Some("b")), lists.expect(Some("b")));
        served(&lists, 0);
        drop(pods);
        served(&lists, 0);
        drop(secrets);
        served(&lists, 1);
        assert!((0..REFUSALS_MAX).any(|_| refused.refused()));
        served(&lists, 1);
        drop(refused);
        served(&lists, 2);
        let list = all.expect(None);
        served(&all, 0);
        drop(list);
        served(&all, 1);
    }

    #[test]
    fn it_is_whole_when_all_of_its_lists_are() {
        let lists = lists();
        let (mut pods, secrets) = (lists.expect(Some("a")), lists.expect(Some("a")));
        let given_up: Vec<bool> = (0..REFUSALS_MAX).map(|_| pods.refused()).collect();
        assert_eq!(given_up, [false, false, true]);
        drop(secrets);
        check(&lists, 0, 1, (false, true));
        drop(pods);
        check(&lists, 0, 0, (true, true));
    }

    #[test]
    fn only_refusals_in_a_row_count() {
        let lists = lists();
        let mut list = lists.expect(Some("a"));
        for _ in 0..10 {
            (1..REFUSALS_MAX).for_each(|_| assert!(!list.refused()));
            assert!(!list.failed());
        }
        check(&lists, 1, 0, (false, true));
    }

    #[test]
    fn without_named_namespaces_rights_are_waited_for() {
        let lists = lists();
        let mut all = lists.expect(None);
        (0..100).for_each(|_| assert!(!all.refused()));
        check(&lists, 1, 0, (false, false));
        drop(all);
        check(&lists, 0, 0, (true, true));
    }
}
