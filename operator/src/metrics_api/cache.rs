//! Answers that are true for a while, no more of them than fit.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// How long an answer is true.
const LIFE: Duration = Duration::from_secs(10);

/// Answers by question.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    entries: HashMap<K, (Instant, V)>,
    entries_max: usize,
}

impl<K: Hash + Eq, V: Clone> Cache<K, V> {
    pub(super) fn new(entries_max: usize) -> Self {
        Self { entries: HashMap::new(), entries_max }
    }

    pub(super) fn get(&self, key: &K, now: Instant) -> Option<V> {
        let (at, value) = self.entries.get(key)?;
        is_true(*at, now).then(|| value.clone())
    }

    /// Keeps an answer, if there is room; whether there was.
    pub(super) fn put(&mut self, key: K, value: V, now: Instant) -> bool {
        if self.entries.len() >= self.entries_max {
            self.entries.retain(|_, (at, _)| is_true(*at, now));
        }
        let room = self.entries.len() < self.entries_max || self.entries.contains_key(&key);
        if room {
            self.entries.insert(key, (now, value));
        }
        room
    }
}

fn is_true(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) < LIFE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_true_for_a_while() {
        let begin = Instant::now();
        let mut cache = Cache::new(2);
        cache.put("a", true, begin);
        assert_eq!(cache.get(&"a", begin + Duration::from_secs(9)), Some(true));
        assert_eq!(cache.get(&"a", begin + LIFE), None);
        assert_eq!(cache.get(&"b", begin), None);
    }

    #[test]
    fn no_more_are_kept_than_fit_and_old_ones_make_room() {
        let begin = Instant::now();
        let mut cache = Cache::new(2);
        assert!(cache.put(1, 'a', begin) && cache.put(2, 'b', begin));
        assert!(!cache.put(3, 'c', begin) && cache.put(1, 'd', begin));
        assert_eq!((cache.get(&1, begin), cache.get(&3, begin)), (Some('d'), None));
        assert!(cache.put(3, 'c', begin + LIFE));
        assert_eq!(cache.entries.len(), 1);
    }
}
