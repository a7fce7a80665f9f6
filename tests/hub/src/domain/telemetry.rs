//! The log of device-to-cloud messages: partitions, readable from any position, bounded.

use std::collections::VecDeque;
use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fe2o3_amqp_types::messaging::annotations::Annotations;
use fe2o3_amqp_types::messaging::{ApplicationProperties, MessageId, Properties};
use tokio::sync::Notify;

use super::hex;
use super::identity::Identity;
use super::mailbox::Listener;

/// What is kept of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// All of it, up to the bounds.
    #[default]
    Bodies,
    /// Counts: bodies are dropped at once, and only the last few events stay. Memory is flat over time.
    Counts,
}

/// The bounds of the log.
#[derive(Clone, Debug)]
pub struct TelemetrySettings {
    /// Number of partitions, at least 1.
    pub partitions: u16,
    /// Bodies or counts.
    pub keep: Keep,
    /// Events kept per partition; the oldest go first.
    pub events_max: usize,
    /// Bytes of bodies kept per partition; the oldest go first.
    pub bytes_max: usize,
}

impl TelemetrySettings {
    /// Events per partition that stay for followers when only counts are kept.
    pub const EVENTS_WITH_COUNTS: usize = 1024;
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { partitions: 4, keep: Keep::Bodies, events_max: 250_000, bytes_max: 64 << 20 }
    }
}

/// A device-to-cloud message as it came, with what the hub knows about its sender.
#[derive(Clone, Debug)]
pub struct Event {
    /// The sender, from the link, never from the message.
    pub identity: Identity,
    /// `iothub-connection-auth-generation-id`
    pub generation_id: Arc<str>,
    /// `iothub-connection-auth-method`
    pub auth_method: Arc<str>,
    /// `iothub-message-source`: `Telemetry` or one of the hub's own.
    pub source: &'static str,
    /// `dt-dataschema`, for a device that named its model.
    pub model_id: Option<Arc<str>>,
    /// As sent; the hub has set `to`.
    pub properties: Properties,
    /// As sent.
    pub application_properties: ApplicationProperties,
    /// As sent; the hub's own annotations are made when the event is read.
    pub annotations: Annotations,
    /// The one Data section.
    pub body: Bytes,
}

/// An event in its partition.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// The event; its body is empty if only counts are kept.
    pub event: Event,
    /// Its partition.
    pub partition: u16,
    /// From 0, without gaps, per partition (`x-opt-sequence-number`).
    pub sequence_number: u64,
    /// Bytes before it in the partition (`x-opt-offset`, as a string).
    pub offset: u64,
    /// Unix milliseconds (`x-opt-enqueued-time`, `iothub-enqueuedtime`).
    pub enqueued_ms: u64,
    /// Length of the body as sent.
    pub body_bytes: usize,
}

/// Where to begin reading a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// The oldest event kept.
    Earliest,
    /// After the newest.
    Latest,
    /// From this sequence number on; add one for "after".
    SequenceNumber(u64),
    /// From the first event with this offset or a greater one.
    Offset(u64),
    /// From the first event enqueued then or later.
    EnqueuedMs(u64),
}

/// Where an event was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The partition.
    pub partition: u16,
    /// The sequence number in it.
    pub sequence_number: u64,
}

/// All partitions.
#[derive(Debug)]
pub struct TelemetryLog {
    settings: TelemetrySettings,
    partitions: Vec<Mutex<Partition>>,
    appended: Notify,
    evicted: AtomicU64,
}

#[derive(Debug, Default)]
struct Partition {
    events: VecDeque<Arc<StoredEvent>>,
    bytes: usize,
    next_sequence_number: u64,
    next_offset: u64,
    watchers: Vec<Listener>,
}

impl TelemetryLog {
    /// An empty log.
    pub fn new(settings: TelemetrySettings) -> Self {
        let partitions = (0..settings.partitions.max(1)).map(|_| Mutex::default()).collect();
        Self { settings, partitions, appended: Notify::new(), evicted: AtomicU64::new(0) }
    }

    /// Number of partitions.
    pub fn partitions(&self) -> u16 {
        self.partitions.len() as u16
    }

    /// The partition of a device: all its messages go there, in order.
    pub fn partition_of(&self, identity: &Identity) -> u16 {
        let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
        hash.write(identity.device.as_bytes());
        (hash.finish() % u64::from(self.partitions())) as u16
    }

    /// Stores an event. Once this returns, it may be acknowledged.
    pub fn append(&self, mut event: Event, now_ms: u64) -> Appended {
        let number = self.partition_of(&event.identity);
        let body_bytes = event.body.len();
        if self.settings.keep == Keep::Counts {
            event.body = Bytes::new();
        }
        let mut partition = self.lock(number);
        let sequence_number = partition.next_sequence_number;
        let offset = partition.next_offset;
        partition.next_sequence_number += 1;
        partition.next_offset += body_bytes as u64 + 1;
        partition.bytes += event.body.len();
        let stored = StoredEvent { event, partition: number, sequence_number, offset, enqueued_ms: now_ms, body_bytes };
        partition.events.push_back(Arc::new(stored));
        self.evict(&mut partition);
        for watcher in &partition.watchers {
            watcher.wake();
        }
        drop(partition);
        self.appended.notify_waiters();
        Appended { partition: number, sequence_number }
    }

    /// The sequence number at which reading from this cursor begins; `None` for an unknown partition.
    pub fn position(&self, partition: u16, cursor: Cursor) -> Option<u64> {
        self.partitions.get(usize::from(partition))?;
        let partition = self.lock(partition);
        let first_kept = partition.next_sequence_number - partition.events.len() as u64;
        let first_where = |before: &dyn Fn(&StoredEvent) -> bool| {
            first_kept + partition.events.partition_point(|event| before(event)) as u64
        };
        Some(match cursor {
            Cursor::Earliest => first_kept,
            Cursor::Latest => partition.next_sequence_number,
            Cursor::SequenceNumber(number) => number.max(first_kept),
            Cursor::Offset(offset) => first_where(&|event| event.offset < offset),
            Cursor::EnqueuedMs(time_ms) => first_where(&|event| event.enqueued_ms < time_ms),
        })
    }

    /// Up to `count` events from this sequence number on; events no longer kept are skipped.
    pub fn read(&self, partition: u16, from_sequence_number: u64, count: usize) -> Vec<Arc<StoredEvent>> {
        if partition >= self.partitions() {
            return Vec::new();
        }
        let partition = self.lock(partition);
        let first_kept = partition.next_sequence_number - partition.events.len() as u64;
        let skip = from_sequence_number.saturating_sub(first_kept) as usize;
        partition.events.iter().skip(skip).take(count).cloned().collect()
    }

    /// Wakes this link at every event appended to the partition, until [`Self::unwatch`].
    pub fn watch(&self, partition: u16, watcher: Listener) {
        if partition < self.partitions() {
            self.lock(partition).watchers.push(watcher);
        }
    }

    /// This link is gone.
    pub fn unwatch(&self, partition: u16, watcher: &Listener) {
        if partition < self.partitions() {
            self.lock(partition).watchers.retain(|present| present != watcher);
        }
    }

    /// Completes at the next append after the call (not after the first poll).
    pub fn appended(&self) -> impl Future<Output = ()> + '_ {
        self.appended.notified()
    }

    /// Events appended since the hub started.
    pub fn total(&self) -> u64 {
        (0..self.partitions()).map(|number| self.lock(number).next_sequence_number).sum()
    }

    /// Events that the bounds pushed out.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    fn evict(&self, partition: &mut Partition) {
        let events_max = match self.settings.keep {
            Keep::Bodies => self.settings.events_max,
            Keep::Counts => TelemetrySettings::EVENTS_WITH_COUNTS,
        };
        while partition.events.len() > events_max || partition.bytes > self.settings.bytes_max {
            let Some(oldest) = partition.events.pop_front() else { return };
            partition.bytes -= oldest.event.body.len();
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn lock(&self, partition: u16) -> MutexGuard<'_, Partition> {
        self.partitions[usize::from(partition)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text of a message-id or correlation-id, whatever its AMQP type; binary as hex digits.
pub fn id_text(id: &MessageId) -> String {
    match id {
        MessageId::Ulong(number) => number.to_string(),
        MessageId::Uuid(id) => uuid::Uuid::from_bytes(*id.as_inner()).to_string(),
        MessageId::Binary(bytes) => hex::lower(bytes),
        MessageId::String(text) => text.clone(),
    }
}

/// FNV-1a: the same partition for a device in every run.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
pub(crate) fn event(device: &str, body: &str) -> Event {
    Event {
        identity: Identity::device(device),
        generation_id: "1".into(),
        auth_method: "{}".into(),
        source: "Telemetry",
        model_id: None,
        properties: Properties::default(),
        application_properties: ApplicationProperties::default(),
        annotations: Annotations::default(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(settings: &TelemetrySettings) -> TelemetryLog {
        let log = TelemetryLog::new(TelemetrySettings { partitions: 1, ..settings.clone() });
        for n in 0..5 {
            log.append(event("a", &format!("{n}")), 100 + n);
        }
        log
    }

    fn bodies(log: &TelemetryLog, cursor: Cursor) -> Vec<Bytes> {
        let from = log.position(0, cursor).expect("partition 0 exists");
        log.read(0, from, 10).iter().map(|stored| stored.event.body.clone()).collect()
    }

    #[test]
    fn a_reader_begins_where_its_cursor_says() {
        let log = log(&TelemetrySettings::default());
        for (cursor, first) in [
            (Cursor::Earliest, Some("0")),
            (Cursor::Latest, None),
            (Cursor::SequenceNumber(3), Some("3")),
            (Cursor::Offset(4), Some("2")),
            (Cursor::Offset(5), Some("3")),
            (Cursor::EnqueuedMs(104), Some("4")),
            (Cursor::EnqueuedMs(105), None),
        ] {
            assert_eq!(bodies(&log, cursor).first().map(|body| &body[..]), first.map(str::as_bytes), "{cursor:?}");
        }
        assert_eq!(log.position(1, Cursor::Earliest), None);
    }

    #[test]
    fn the_bounds_push_out_the_oldest_and_count_them() {
        let log = log(&TelemetrySettings { events_max: 10, bytes_max: 3, ..TelemetrySettings::default() });
        assert_eq!(bodies(&log, Cursor::SequenceNumber(0)), ["2", "3", "4"]);
        assert_eq!((log.evicted(), log.total()), (2, 5));
    }

    #[test]
    fn with_counts_only_no_body_is_kept() {
        let log = log(&TelemetrySettings { keep: Keep::Counts, ..TelemetrySettings::default() });
        let events = log.read(0, 0, 10);
        assert_eq!(events.len(), 5);
        assert!(events.iter().all(|stored| stored.event.body.is_empty() && stored.body_bytes == 1));
    }

    #[test]
    fn a_devices_messages_go_to_one_partition_and_devices_spread() {
        let log = TelemetryLog::new(TelemetrySettings { partitions: 4, ..TelemetrySettings::default() });
        let mut used = [0; 4];
        for n in 0..400 {
            let device = Identity::device(&format!("device-{n:04}"));
            let module = Identity::module(&device.device, "m");
            assert_eq!(log.partition_of(&device), log.partition_of(&module));
            used[usize::from(log.partition_of(&device))] += 1;
        }
        assert!(used.iter().all(|count| *count > 50), "{used:?}");
    }
}
