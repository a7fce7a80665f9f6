//! What the hub saw: every transfer in order, the outcome given, and whether that outcome reached the wire. Tests decide
//! "lost", "duplicated" and "out of order" from it alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::sequence::Sequence;
use super::telemetry::Keep;

/// Prefixes of numbered ids followed per identity; messages of further ones count as `unnumbered`.
const PREFIXES_MAX: usize = 8;

/// Entries whose outcome or write is outstanding, with counts only; older ones are forgotten and do not count as settled.
const OUTSTANDING_MAX: usize = 262_144;

/// What kind of link a transfer went over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Device to cloud.
    Telemetry,
    /// Cloud to device.
    C2d,
    /// A twin request of the device.
    TwinRequest,
    /// A twin response or notification of the hub.
    TwinReply,
    /// A method call of the hub.
    MethodCall,
    /// A method answer of the device.
    MethodAnswer,
    /// A token of the client.
    Cbs,
    /// A message of the service for a device.
    ServiceSend,
    /// Feedback or telemetry read by the service.
    ServiceRead,
}

/// The outcome of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// `accepted`
    Accepted,
    /// `rejected` with this condition.
    Rejected(Arc<str>),
    /// `released`
    Released,
    /// `modified`
    Modified,
    /// The sender had settled it: nobody expects an outcome.
    Presettled,
}

/// A transfer, as the connection reports it.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Whose link.
    pub identity: Option<Identity>,
    /// What kind of link.
    pub kind: Kind,
    /// Text of its message-id, if it has one.
    pub message_id: Option<Arc<str>>,
    /// Number of the connection.
    pub connection: u64,
    /// Name of the link.
    pub link: Arc<str>,
    /// AMQP delivery-id.
    pub delivery_id: u32,
    /// Length of its body.
    pub body_bytes: usize,
}

/// A transfer in the ledger.
#[derive(Clone, Debug)]
pub struct Entry {
    /// From 1, in the order in which the hub saw or sent them.
    pub n: u64,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// The device.
    pub device_id: Option<Arc<str>>,
    /// The module.
    pub module_id: Option<Arc<str>>,
    /// What kind of link.
    pub kind: Kind,
    /// Its message-id.
    pub message_id: Option<Arc<str>>,
    /// Number of the connection.
    pub connection: u64,
    /// Name of the link.
    pub link: Arc<str>,
    /// AMQP delivery-id.
    pub delivery_id: u32,
    /// Length of its body.
    pub body_bytes: usize,
    /// The outcome decided: by the hub for what it received, by the peer for what the hub sent.
    pub outcome: Option<Outcome>,
    /// Whether the disposition with that outcome was written to the socket without error. For what the hub sent: whether
    /// the transfer was.
    pub written: bool,
}

/// Counts of one identity's telemetry, kept in every mode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceCounts {
    /// Transfers received.
    pub received: u64,
    /// Stored and accepted (settled by the sender beforehand counts too).
    pub accepted: u64,
    /// Rejected.
    pub rejected: u64,
    /// Released or modified.
    pub returned: u64,
    /// Accepted, and the disposition was written to the wire.
    pub accepted_written: u64,
    /// Accepted ones whose message-id is no number, or of too many prefixes.
    pub unnumbered: u64,
    /// Accepted ones by number.
    #[serde(skip)]
    pub sequences: Vec<Sequence>,
}

impl DeviceCounts {
    /// Accepted ids that had been accepted before.
    pub fn duplicates(&self) -> u64 {
        self.sequences.iter().map(|sequence| sequence.duplicates).sum()
    }

    /// Accepted ids that came after a higher one of the same prefix.
    pub fn out_of_order(&self) -> u64 {
        self.sequences.iter().map(|sequence| sequence.out_of_order).sum()
    }

    /// Ids between the lowest and the highest accepted that were never accepted.
    pub fn missing(&self) -> u64 {
        self.sequences.iter().map(Sequence::missing).sum()
    }

    fn accept(&mut self, message_id: Option<&str>) {
        self.accepted += 1;
        let Some((prefix, number)) = message_id.and_then(Sequence::split) else {
            self.unnumbered += 1;
            return;
        };
        if let Some(sequence) = self.sequences.iter_mut().find(|sequence| *sequence.prefix == *prefix) {
            sequence.add(number);
        } else if self.sequences.len() < PREFIXES_MAX {
            let mut sequence = Sequence::new(prefix);
            sequence.add(number);
            self.sequences.push(sequence);
        } else {
            self.unnumbered += 1;
        }
    }
}

/// Sums over all identities and kinds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Entries made.
    pub transfers: u64,
    /// Entries no longer kept (all of them if only counts are kept).
    pub forgotten: u64,
    /// Telemetry of all identities.
    pub telemetry: DeviceCounts,
    /// Identities that sent telemetry.
    pub identities: usize,
    /// Telemetry accepted twice.
    pub duplicates: u64,
    /// Telemetry accepted late.
    pub out_of_order: u64,
    /// Telemetry missing in between.
    pub missing: u64,
}

/// What to look for.
#[derive(Clone, Debug, Default)]
pub struct Query<'a> {
    /// Only this device, its modules included.
    pub device: Option<&'a str>,
    /// Only this message-id.
    pub message_id: Option<&'a str>,
    /// Only this kind.
    pub kind: Option<Kind>,
    /// Only entries with this number or a greater one.
    pub from: u64,
    /// At most so many; 0 = all.
    pub limit: usize,
}

/// The ledger. Bounded: the oldest entries go first and are counted; counts by identity stay.
#[derive(Debug)]
pub struct Ledger {
    keep: Keep,
    entries_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// With counts only: just those whose outcome or write is outstanding.
    entries: VecDeque<Entry>,
    next: u64,
    forgotten: u64,
    counts: HashMap<Identity, DeviceCounts>,
}

impl Ledger {
    /// An empty ledger of at most so many entries.
    pub fn new(keep: Keep, entries_max: usize) -> Self {
        let state = State { next: 1, ..State::default() };
        Self { keep, entries_max: entries_max.max(1), state: Mutex::new(state) }
    }

    /// Enters a transfer. Returns its number, by which [`Self::settle`] and [`Self::written`] know it.
    pub fn record(&self, transfer: Transfer, outcome: Option<Outcome>, now_ms: u64) -> u64 {
        let mut state = self.lock();
        let n = state.next;
        state.next += 1;
        if let Some(identity) = transfer.identity.as_ref().filter(|_| transfer.kind == Kind::Telemetry) {
            state.counts_of(identity).received += 1;
        }
        let (device_id, module_id) = transfer.identity.map(|id| (Some(id.device), id.module)).unwrap_or_default();
        state.entries.push_back(Entry {
            n,
            at_ms: now_ms,
            device_id,
            module_id,
            kind: transfer.kind,
            message_id: transfer.message_id,
            connection: transfer.connection,
            link: transfer.link,
            delivery_id: transfer.delivery_id,
            body_bytes: transfer.body_bytes,
            outcome: None,
            written: false,
        });
        if let Some(outcome) = outcome {
            state.settle(n, outcome);
        }
        self.forget(&mut state);
        n
    }

    /// The outcome of an entry is decided. The first decision stands.
    pub fn settle(&self, n: u64, outcome: Outcome) {
        self.lock().settle(n, outcome);
    }

    /// The frames of these entries were written to the socket without error: the dispositions of what the hub received,
    /// the transfers of what it sent.
    pub fn written(&self, numbers: impl IntoIterator<Item = u64>) {
        let mut state = self.lock();
        for n in numbers {
            state.written(n);
        }
        self.forget(&mut state);
    }

    /// The entries kept that fit, in order. Empty if only counts are kept.
    pub fn entries(&self, query: &Query<'_>) -> Vec<Entry> {
        if self.keep == Keep::Counts {
            return Vec::new();
        }
        let fits = |entry: &&Entry| {
            entry.n >= query.from
                && query.device.is_none_or(|device| entry.device_id.as_deref() == Some(device))
                && query.message_id.is_none_or(|id| entry.message_id.as_deref() == Some(id))
                && query.kind.is_none_or(|kind| entry.kind == kind)
        };
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        self.lock().entries.iter().filter(fits).take(limit).cloned().collect()
    }

    /// The telemetry counts of one identity.
    pub fn counts(&self, identity: &Identity) -> DeviceCounts {
        self.lock().counts.get(identity).cloned().unwrap_or_default()
    }

    /// The telemetry counts of all identities, by id.
    pub fn all_counts(&self) -> Vec<(Identity, DeviceCounts)> {
        let mut all: Vec<_> = self.lock().counts.iter().map(|(id, counts)| (id.clone(), counts.clone())).collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Sums.
    pub fn summary(&self) -> Summary {
        let state = self.lock();
        let forgotten = if self.keep == Keep::Counts { state.next - 1 } else { state.forgotten };
        let mut summary =
            Summary { transfers: state.next - 1, forgotten, identities: state.counts.len(), ..Summary::default() };
        for counts in state.counts.values() {
            summary.telemetry.received += counts.received;
            summary.telemetry.accepted += counts.accepted;
            summary.telemetry.rejected += counts.rejected;
            summary.telemetry.returned += counts.returned;
            summary.telemetry.accepted_written += counts.accepted_written;
            summary.telemetry.unnumbered += counts.unnumbered;
            summary.duplicates += counts.duplicates();
            summary.out_of_order += counts.out_of_order();
            summary.missing += counts.missing();
        }
        summary
    }

    /// Forgets everything but the numbering: a test begins anew.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.forgotten += state.entries.len() as u64;
        state.entries.clear();
        state.counts.clear();
    }

    fn forget(&self, state: &mut State) {
        let done = |entry: &Entry| match entry.outcome {
            None => false,
            Some(Outcome::Presettled) => true,
            Some(_) => entry.written,
        };
        let counts_only = self.keep == Keep::Counts;
        let entries_max = if counts_only { self.entries_max.min(OUTSTANDING_MAX) } else { self.entries_max };
        while state.entries.len() > entries_max || (counts_only && state.entries.front().is_some_and(done)) {
            state.entries.pop_front();
            state.forgotten += 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn counts_of(&mut self, identity: &Identity) -> &mut DeviceCounts {
        // not the entry API: it would clone the identity for every message
        if !self.counts.contains_key(identity) {
            self.counts.insert(identity.clone(), DeviceCounts::default());
        }
        self.counts.get_mut(identity).expect("inserted above")
    }

    fn index(&self, n: u64) -> Option<usize> {
        // numbers rise by one from front to back: entries leave only at the front
        let first = self.entries.front()?.n;
        n.checked_sub(first).map(|at| at as usize).filter(|at| *at < self.entries.len())
    }

    fn settle(&mut self, n: u64, outcome: Outcome) {
        let Some(at) = self.index(n) else { return };
        let entry = &mut self.entries[at];
        if entry.outcome.is_some() {
            return;
        }
        let outcome = entry.outcome.insert(outcome).clone();
        let Some(identity) = telemetry_identity(entry) else { return };
        let message_id = entry.message_id.clone();
        let counts = self.counts_of(&identity);
        match outcome {
            Outcome::Accepted | Outcome::Presettled => counts.accept(message_id.as_deref()),
            Outcome::Rejected(_) => counts.rejected += 1,
            Outcome::Released | Outcome::Modified => counts.returned += 1,
        }
    }

    fn written(&mut self, n: u64) {
        let Some(at) = self.index(n) else { return };
        let entry = &mut self.entries[at];
        let first = !std::mem::replace(&mut entry.written, true);
        if first
            && entry.outcome == Some(Outcome::Accepted)
            && let Some(identity) = telemetry_identity(entry)
        {
            self.counts_of(&identity).accepted_written += 1;
        }
    }
}

fn telemetry_identity(entry: &Entry) -> Option<Identity> {
    let device = entry.device_id.clone().filter(|_| entry.kind == Kind::Telemetry)?;
    Some(Identity { device, module: entry.module_id.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(device: &str, id: &str) -> Transfer {
        Transfer {
            identity: Some(Identity::device(device)),
            kind: Kind::Telemetry,
            message_id: Some(id.into()),
            connection: 1,
            link: "link".into(),
            delivery_id: 0,
            body_bytes: 1,
        }
    }

    fn accept(ledger: &Ledger, device: &str, id: &str) {
        let n = ledger.record(transfer(device, id), Some(Outcome::Accepted), 0);
        ledger.written([n]);
    }

    #[test]
    fn entries_stand_in_order_with_outcome_and_whether_it_was_written() {
        let ledger = Ledger::new(Keep::Bodies, 100);
        let first = ledger.record(transfer("a", "1"), None, 5);
        let second = ledger.record(transfer("a", "2"), Some(Outcome::Accepted), 6);
        ledger.settle(first, Outcome::Released);
        ledger.settle(first, Outcome::Accepted);
        ledger.written([second]);
        let entries = ledger.entries(&Query::default());
        let seen: Vec<_> = entries.iter().map(|entry| (entry.n, entry.outcome.clone(), entry.written)).collect();
        assert_eq!(seen, [(1, Some(Outcome::Released), false), (2, Some(Outcome::Accepted), true)]);
    }

    #[test]
    fn a_query_finds_by_device_id_kind_and_number() {
        let ledger = Ledger::new(Keep::Bodies, 100);
        for (device, id) in [("a", "1"), ("b", "1"), ("a", "2")] {
            accept(&ledger, device, id);
        }
        ledger.record(Transfer { kind: Kind::C2d, ..transfer("a", "1") }, None, 0);
        for (query, expected) in [
            (Query { device: Some("a"), ..Query::default() }, vec![1, 3, 4]),
            (Query { message_id: Some("1"), ..Query::default() }, vec![1, 2, 4]),
            (Query { kind: Some(Kind::C2d), ..Query::default() }, vec![4]),
            (Query { from: 2, limit: 2, ..Query::default() }, vec![2, 3]),
        ] {
            let numbers: Vec<u64> = ledger.entries(&query).iter().map(|entry| entry.n).collect();
            assert_eq!(numbers, expected, "{query:?}");
        }
    }

    #[test]
    fn lost_duplicated_and_late_telemetry_is_told_in_every_mode() {
        for keep in [Keep::Bodies, Keep::Counts] {
            let ledger = Ledger::new(keep, 100);
            for id in ["x-1", "x-2", "x-2", "x-5", "x-4", "odd"] {
                accept(&ledger, "a", id);
            }
            ledger.record(transfer("a", "x-6"), Some(Outcome::Rejected("amqp:x".into())), 0);
            let counts = ledger.counts(&Identity::device("a"));
            assert_eq!((counts.received, counts.accepted, counts.accepted_written, counts.rejected), (7, 6, 6, 1));
            assert_eq!((counts.duplicates(), counts.missing(), counts.out_of_order()), (1, 1, 1));
            assert_eq!(counts.unnumbered, 1);
            assert_eq!(ledger.summary().duplicates, 1);
        }
    }

    #[test]
    fn an_accepted_message_whose_disposition_was_not_written_is_told_apart() {
        let ledger = Ledger::new(Keep::Counts, 100);
        accept(&ledger, "a", "1");
        ledger.record(transfer("a", "2"), Some(Outcome::Accepted), 0);
        let counts = ledger.counts(&Identity::device("a"));
        assert_eq!((counts.accepted, counts.accepted_written), (2, 1));
    }

    #[test]
    fn with_counts_only_finished_entries_take_no_memory() {
        let ledger = Ledger::new(Keep::Counts, 1_000_000);
        for n in 0..10_000 {
            accept(&ledger, "a", &format!("x-{n}"));
        }
        assert_eq!(ledger.lock().entries.len(), 0);
        assert_eq!(ledger.counts(&Identity::device("a")).sequences[0].ranges, [(0, 9_999)]);
    }

    #[test]
    fn the_bound_forgets_the_oldest_entries_and_counts_them() {
        let ledger = Ledger::new(Keep::Bodies, 3);
        for n in 0..5 {
            accept(&ledger, "a", &n.to_string());
        }
        let numbers: Vec<u64> = ledger.entries(&Query::default()).iter().map(|entry| entry.n).collect();
        assert_eq!((numbers, ledger.summary().forgotten), (vec![3, 4, 5], 2));
        ledger.settle(1, Outcome::Released);
        ledger.written([1, 2]);
    }
}
