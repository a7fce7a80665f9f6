//! Feedback about cloud-to-device messages, in batches, for the service's receivers (contract §4.2).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::json;

use super::c2d::LockLost;
use super::clock::iso8601;
use super::identity::Identity;
use super::lock_queue::{LockQueue, LockToken, Locked};
use super::mailbox::Listener;

/// Batches that wait for a receiver; older ones are dropped and counted.
const BATCHES_MAX: usize = 10_000;
/// A batch given back this often is dropped, as in the real hub.
const DELIVERIES_MAX: u32 = 100;

/// How a cloud-to-device message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedbackStatus {
    /// Completed by the device.
    Success,
    /// Nobody took it in time.
    Expired,
    /// Abandoned too often.
    DeliveryCountExceeded,
    /// Rejected by the device.
    Rejected,
    /// The queue was purged.
    Purged,
}

impl FeedbackStatus {
    fn code(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::Expired => "Expired",
            Self::DeliveryCountExceeded => "DeliveryCountExceeded",
            Self::Rejected => "Rejected",
            Self::Purged => "Purged",
        }
    }
}

/// One message's end.
#[derive(Clone, Debug)]
pub struct FeedbackRecord {
    /// The message's id.
    pub original_message_id: Arc<str>,
    /// Whom it was for.
    pub identity: Identity,
    /// Generation of that identity.
    pub generation_id: Arc<str>,
    /// How it ended.
    pub status: FeedbackStatus,
    /// When, Unix milliseconds.
    pub at_ms: u64,
}

/// Some records, sent as one AMQP message with content-type `application/vnd.microsoft.iothub.feedback.json`.
#[derive(Debug)]
pub struct FeedbackBatch {
    /// The JSON array.
    pub body: String,
    /// When the batch was closed, Unix milliseconds.
    pub enqueued_ms: u64,
    /// How many records.
    pub records: usize,
}

/// The bounds of feedback.
#[derive(Clone, Debug)]
pub struct FeedbackSettings {
    /// A batch is closed with this many records …
    pub batch_records_max: usize,
    /// … or when its first record is this old, in milliseconds.
    pub batch_ms_max: u64,
    /// How long a receiver may keep a batch, in milliseconds.
    pub lock_ms: u64,
    /// How long a batch waits for a receiver, in milliseconds.
    pub ttl_ms: u64,
}

impl Default for FeedbackSettings {
    fn default() -> Self {
        Self { batch_records_max: 64, batch_ms_max: 15_000, lock_ms: 60_000, ttl_ms: 3_600_000 }
    }
}

/// The hub's one feedback queue; several receivers compete for its batches.
#[derive(Debug)]
pub struct Feedback {
    settings: FeedbackSettings,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<FeedbackRecord>,
    batches: LockQueue<FeedbackBatch>,
    receivers: Vec<Listener>,
    dropped: u64,
}

impl Feedback {
    /// An empty queue.
    pub fn new(settings: FeedbackSettings) -> Self {
        Self { settings, state: Mutex::default() }
    }

    /// Adds a record to the open batch.
    pub fn record(&self, record: FeedbackRecord) {
        let mut state = self.lock();
        let now_ms = record.at_ms;
        state.open.push(record);
        if state.open.len() >= self.settings.batch_records_max {
            self.close_batch(&mut state, now_ms);
        }
    }

    /// A service link wants batches.
    pub fn attach(&self, receiver: Listener) {
        let mut state = self.lock();
        if state.batches.has_ready() {
            receiver.wake();
        }
        state.receivers.push(receiver);
    }

    /// A service link is gone.
    pub fn detach(&self, receiver: &Listener) {
        self.lock().receivers.retain(|present| present != receiver);
    }

    /// Locks the oldest free batch.
    pub fn next(&self, now_ms: u64) -> Option<Locked<FeedbackBatch>> {
        let mut state = self.lock();
        state.batches.expire(now_ms);
        state.batches.next(now_ms, self.settings.lock_ms)
    }

    /// The service has the batch, or refuses it for good.
    ///
    /// # Errors
    /// [`LockLost`]
    pub fn complete(&self, token: &LockToken, now_ms: u64) -> Result<(), LockLost> {
        let mut state = self.lock();
        state.batches.expire(now_ms);
        state.batches.remove(token).map(|_| ()).ok_or(LockLost)
    }

    /// The service gives the batch back.
    ///
    /// # Errors
    /// [`LockLost`]
    pub fn abandon(&self, token: &LockToken, now_ms: u64) -> Result<(), LockLost> {
        let mut state = self.lock();
        state.batches.expire(now_ms);
        state.batches.abandon(token, DELIVERIES_MAX).ok_or(LockLost)?;
        state.wake();
        Ok(())
    }

    /// Closes an old batch, lapses locks, drops what is over its time. To be called a few times a second.
    pub fn tick(&self, now_ms: u64) {
        let mut state = self.lock();
        let age_ms = state.open.first().map(|record| now_ms.saturating_sub(record.at_ms));
        if age_ms.is_some_and(|age_ms| age_ms >= self.settings.batch_ms_max) {
            self.close_batch(&mut state, now_ms);
        }
        if state.batches.next_deadline_ms().is_some_and(|due_ms| due_ms <= now_ms) {
            let (expired, lapsed) = state.batches.expire(now_ms);
            state.dropped += expired.len() as u64;
            if !lapsed.is_empty() {
                state.wake();
            }
        }
    }

    /// Batches dropped because nobody took them in time or too many waited.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn close_batch(&self, state: &mut State, now_ms: u64) {
        let records = std::mem::take(&mut state.open);
        if state.batches.len() >= BATCHES_MAX {
            state.dropped += 1;
            return;
        }
        let body = serde_json::Value::Array(records.iter().map(record_json).collect()).to_string();
        let batch = FeedbackBatch { body, enqueued_ms: now_ms, records: records.len() };
        state.batches.push(Arc::new(batch), now_ms + self.settings.ttl_ms);
        state.wake();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&self) {
        for receiver in &self.receivers {
            receiver.wake();
        }
    }
}

fn record_json(record: &FeedbackRecord) -> serde_json::Value {
    let mut json = json!({
        "originalMessageId": &*record.original_message_id,
        "deviceId": &*record.identity.device,
        "deviceGenerationId": &*record.generation_id,
        "description": record.status.code(),
        "statusCode": record.status.code(),
        "enqueuedTimeUtc": iso8601(record.at_ms),
    });
    if let Some(module) = &record.identity.module {
        json["moduleId"] = json!(&**module);
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::mailbox::{LinkKey, Mailbox};

    fn record(at_ms: u64) -> FeedbackRecord {
        FeedbackRecord {
            original_message_id: "m".into(),
            identity: Identity::device("a"),
            generation_id: "1".into(),
            status: FeedbackStatus::Success,
            at_ms,
        }
    }

    #[test]
    fn a_batch_closes_with_64_records_or_after_15_seconds() {
        let feedback = Feedback::new(FeedbackSettings::default());
        for _ in 0..65 {
            feedback.record(record(1_000));
        }
        assert_eq!(feedback.next(1_000).map(|batch| batch.item.records), Some(64));
        feedback.tick(15_999);
        assert!(feedback.next(15_999).is_none());
        feedback.tick(16_000);
        assert_eq!(feedback.next(16_000).map(|batch| batch.item.records), Some(1));
    }

    #[test]
    fn a_batch_given_back_or_held_too_long_comes_again() {
        let feedback = Feedback::new(FeedbackSettings { batch_records_max: 1, ..FeedbackSettings::default() });
        let mailbox = Mailbox::new();
        feedback.attach(Listener::new(&mailbox, LinkKey(9)));
        feedback.record(record(0));
        assert_eq!(mailbox.take(), [LinkKey(9)]);
        let batch = feedback.next(0).expect("waits");
        feedback.abandon(&batch.token, 1).expect("locked");
        assert_eq!(mailbox.take(), [LinkKey(9)]);
        let batch = feedback.next(1).expect("again");
        feedback.tick(60_001);
        assert_eq!(mailbox.take(), [LinkKey(9)]);
        assert_eq!(feedback.complete(&batch.token, 60_001), Err(LockLost));
        let batch = feedback.next(60_001).expect("again");
        assert_eq!(feedback.complete(&batch.token, 60_002), Ok(()));
        assert!(feedback.next(60_002).is_none());
    }

    #[test]
    fn a_batch_that_nobody_takes_is_dropped_after_its_hour() {
        let feedback = Feedback::new(FeedbackSettings { batch_records_max: 1, ..FeedbackSettings::default() });
        feedback.record(record(0));
        feedback.tick(3_600_000);
        assert!(feedback.next(3_600_000).is_none());
        assert_eq!(feedback.dropped(), 1);
    }
}
