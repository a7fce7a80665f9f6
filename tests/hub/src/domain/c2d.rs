//! Cloud-to-device messages: a queue per identity with locks, delivery counts, expiry and feedback (contract §2.8, §3.6).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fe2o3_amqp_types::messaging::{ApplicationProperties, Properties};

use super::feedback::{Feedback, FeedbackRecord, FeedbackStatus};
use super::identity::Identity;
use super::lock_queue::{Abandoned, LockQueue, LockToken, Locked};
use super::mailbox::Listener;

/// A message on its way to a device.
#[derive(Clone, Debug)]
pub struct C2dMessage {
    /// As sent by the service; `to` is set by the hub when it delivers.
    pub properties: Properties,
    /// As sent by the service, `iothub-ack` included.
    pub application_properties: ApplicationProperties,
    /// The one Data section.
    pub body: Bytes,
    /// Which ends of it the service wants to hear of.
    pub ack: Ack,
    /// Text of the message-id; the hub makes one up if the service gave none.
    pub message_id: Arc<str>,
    /// `registry` generation of the addressee, for feedback.
    pub generation_id: Arc<str>,
    /// When the hub took it (set by [`C2d::enqueue`]).
    pub enqueued_ms: u64,
    /// When it is dead-lettered (absolute-expiry-time, or the hub's default).
    pub expires_ms: u64,
    /// Rises by one with every message of the hub (set by [`C2d::enqueue`]).
    pub sequence_number: u64,
}

/// `iothub-ack`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ack {
    /// No feedback.
    #[default]
    None,
    /// When completed.
    Positive,
    /// When expired, rejected, purged or delivered too often.
    Negative,
    /// Either.
    Full,
}

impl Ack {
    /// The value of the application property; `None` if it is not one of the four words.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text.to_ascii_lowercase().as_str() {
            "none" => Self::None,
            "positive" => Self::Positive,
            "negative" => Self::Negative,
            "full" => Self::Full,
            _ => return None,
        })
    }

    fn wants(self, status: FeedbackStatus) -> bool {
        match self {
            Self::None => false,
            Self::Positive => status == FeedbackStatus::Success,
            Self::Negative => status != FeedbackStatus::Success,
            Self::Full => true,
        }
    }
}

/// The bounds of the queues.
#[derive(Clone, Debug)]
pub struct C2dSettings {
    /// Messages waiting per identity, those under lock included.
    pub queue_max: usize,
    /// A message abandoned this often is dead-lettered.
    pub deliveries_max: u32,
    /// How long a receiver may keep a message without answering, in milliseconds.
    pub lock_ms: u64,
    /// Time to live of a message that names none, in milliseconds.
    pub default_ttl_ms: u64,
    /// The longest time to live, in milliseconds.
    pub ttl_ms_max: u64,
}

impl Default for C2dSettings {
    fn default() -> Self {
        Self { queue_max: 50, deliveries_max: 10, lock_ms: 60_000, default_ttl_ms: 3_600_000, ttl_ms_max: 172_800_000 }
    }
}

/// The queue of this identity is full: `amqp:resource-limit-exceeded`, 403004.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// The lock lapsed before the answer came: 412002, on the device's link `amqp:not-found`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockLost;

/// All queues.
#[derive(Debug)]
pub struct C2d {
    settings: C2dSettings,
    feedback: Arc<Feedback>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    boxes: HashMap<Identity, Inbox>,
    locks: HashMap<LockToken, Identity>,
    /// When to look at which inbox: one entry per inbox that has a deadline, its `armed_ms`.
    deadlines: BTreeSet<(u64, Identity)>,
    sequence_number: u64,
}

#[derive(Debug, Default)]
struct Inbox {
    queue: LockQueue<C2dMessage>,
    receiver: Option<Listener>,
    /// The deadline that stands in `deadlines`.
    armed_ms: Option<u64>,
}

impl C2d {
    /// Empty queues with these bounds; ends of messages go to `feedback`.
    pub fn new(settings: C2dSettings, feedback: Arc<Feedback>) -> Self {
        Self { settings, feedback, state: Mutex::default() }
    }

    /// The bounds.
    pub fn settings(&self) -> &C2dSettings {
        &self.settings
    }

    /// Appends a message to the identity's queue and wakes its receiver. Returns its sequence number. The caller has
    /// checked that the identity is registered.
    ///
    /// # Errors
    /// [`QueueFull`]
    pub fn enqueue(&self, identity: &Identity, mut message: C2dMessage, now_ms: u64) -> Result<u64, QueueFull> {
        let mut state = self.lock();
        self.expire(&mut state, identity, now_ms);
        let sequence_number = state.sequence_number + 1;
        let inbox = state.boxes.entry(identity.clone()).or_default();
        if inbox.queue.len() >= self.settings.queue_max {
            return Err(QueueFull);
        }
        message.sequence_number = sequence_number;
        message.enqueued_ms = now_ms;
        message.expires_ms = message.expires_ms.min(now_ms + self.settings.ttl_ms_max);
        let expires_ms = message.expires_ms;
        inbox.queue.push(Arc::new(message), expires_ms);
        inbox.wake();
        state.sequence_number = sequence_number;
        arm(&mut state, identity);
        Ok(sequence_number)
    }

    /// Makes this link the identity's receiver, and wakes it if messages wait. Returns the link it took that from, which
    /// must be detached as stolen.
    pub fn attach(&self, identity: &Identity, receiver: Listener) -> Option<Listener> {
        let mut state = self.lock();
        let inbox = state.boxes.entry(identity.clone()).or_default();
        let previous = inbox.receiver.replace(receiver);
        inbox.wake();
        previous
    }

    /// This link is no receiver any more, if it was. What it has under lock stays locked until that lapses.
    pub fn detach(&self, identity: &Identity, receiver: &Listener) {
        let mut state = self.lock();
        if let Some(inbox) = state.boxes.get_mut(identity) {
            inbox.receiver.take_if(|present| present == receiver);
            arm(&mut state, identity);
        }
    }

    /// Locks the oldest free message for this link; `None` if there is none or the link is not the receiver.
    pub fn next(&self, identity: &Identity, receiver: &Listener, now_ms: u64) -> Option<Locked<C2dMessage>> {
        let mut state = self.lock();
        self.expire(&mut state, identity, now_ms);
        let inbox = state.boxes.get_mut(identity)?;
        if inbox.receiver.as_ref() != Some(receiver) {
            return None;
        }
        let locked = inbox.queue.next(now_ms, self.settings.lock_ms)?;
        state.locks.insert(locked.token, identity.clone());
        arm(&mut state, identity);
        Some(locked)
    }

    /// The device has the message.
    ///
    /// # Errors
    /// [`LockLost`]
    pub fn complete(&self, token: &LockToken, now_ms: u64) -> Result<(), LockLost> {
        self.end(token, FeedbackStatus::Success, now_ms)
    }

    /// The device refuses the message: it is dead-lettered.
    ///
    /// # Errors
    /// [`LockLost`]
    pub fn reject(&self, token: &LockToken, now_ms: u64) -> Result<(), LockLost> {
        self.end(token, FeedbackStatus::Rejected, now_ms)
    }

    /// The device gives the message back: delivery count + 1, delivered again at once, dead-lettered at the limit.
    ///
    /// # Errors
    /// [`LockLost`]
    pub fn abandon(&self, token: &LockToken, now_ms: u64) -> Result<(), LockLost> {
        let mut state = self.lock();
        let identity = self.holder(&mut state, token, now_ms)?;
        let inbox = state.boxes.get_mut(&identity).ok_or(LockLost)?;
        let abandoned = inbox.queue.abandon(token, self.settings.deliveries_max).ok_or(LockLost)?;
        inbox.wake();
        arm(&mut state, &identity);
        drop(state);
        if let Abandoned::Exceeded(message) = abandoned {
            self.report(&identity, &message, FeedbackStatus::DeliveryCountExceeded, now_ms);
        }
        Ok(())
    }

    /// Messages of this identity that wait or are under lock.
    pub fn depth(&self, identity: &Identity) -> usize {
        self.lock().boxes.get(identity).map_or(0, |inbox| inbox.queue.len())
    }

    /// Drops all messages of the identity, with feedback. Returns how many.
    pub fn purge(&self, identity: &Identity, now_ms: u64) -> usize {
        let mut state = self.lock();
        let Some(inbox) = state.boxes.get_mut(identity) else { return 0 };
        let (messages, tokens) = inbox.queue.purge();
        for token in tokens {
            state.locks.remove(&token);
        }
        arm(&mut state, identity);
        drop(state);
        for message in &messages {
            self.report(identity, message, FeedbackStatus::Purged, now_ms);
        }
        messages.len()
    }

    /// Lapses locks and expires messages whose time has come, and wakes receivers. To be called a few times a second.
    pub fn tick(&self, now_ms: u64) {
        let mut state = self.lock();
        while let Some((_, identity)) = state.deadlines.first().filter(|(due_ms, _)| *due_ms <= now_ms).cloned() {
            self.expire(&mut state, &identity, now_ms);
            arm(&mut state, &identity);
        }
    }

    fn end(&self, token: &LockToken, status: FeedbackStatus, now_ms: u64) -> Result<(), LockLost> {
        let mut state = self.lock();
        let identity = self.holder(&mut state, token, now_ms)?;
        let message = state.boxes.get_mut(&identity).and_then(|inbox| inbox.queue.remove(token)).ok_or(LockLost)?;
        arm(&mut state, &identity);
        drop(state);
        self.report(&identity, &message, status, now_ms);
        Ok(())
    }

    /// Whose message this lock holds; the lock is over after this.
    fn holder(&self, state: &mut State, token: &LockToken, now_ms: u64) -> Result<Identity, LockLost> {
        let identity = state.locks.get(token).cloned().ok_or(LockLost)?;
        self.expire(state, &identity, now_ms);
        state.locks.remove(token).ok_or(LockLost)
    }

    fn expire(&self, state: &mut State, identity: &Identity, now_ms: u64) {
        let Some(inbox) = state.boxes.get_mut(identity) else { return };
        let (expired, lapsed) = inbox.queue.expire(now_ms);
        if !lapsed.is_empty() {
            inbox.wake();
        }
        for token in lapsed {
            state.locks.remove(&token);
        }
        for message in expired {
            self.report(identity, &message, FeedbackStatus::Expired, now_ms);
        }
    }

    fn report(&self, identity: &Identity, message: &C2dMessage, status: FeedbackStatus, now_ms: u64) {
        if message.ack.wants(status) {
            self.feedback.record(FeedbackRecord {
                original_message_id: message.message_id.clone(),
                identity: identity.clone(),
                generation_id: message.generation_id.clone(),
                status,
                at_ms: now_ms,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn wake(&self) {
        if let Some(receiver) = self.receiver.as_ref().filter(|_| self.queue.has_ready()) {
            receiver.wake();
        }
    }
}

/// Brings `deadlines` in line with the inbox, and forgets an inbox that nobody uses.
fn arm(state: &mut State, identity: &Identity) {
    let Some(inbox) = state.boxes.get_mut(identity) else { return };
    let deadline_ms = inbox.queue.next_deadline_ms();
    let unused = inbox.queue.is_empty() && inbox.receiver.is_none();
    if deadline_ms != inbox.armed_ms {
        if let Some(armed_ms) = std::mem::replace(&mut inbox.armed_ms, deadline_ms) {
            state.deadlines.remove(&(armed_ms, identity.clone()));
        }
        state.deadlines.extend(deadline_ms.map(|due_ms| (due_ms, identity.clone())));
    }
    if unused {
        state.boxes.remove(identity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::feedback::FeedbackSettings;
    use crate::domain::mailbox::{LinkKey, Mailbox};

    struct World {
        c2d: C2d,
        feedback: Arc<Feedback>,
        device: Identity,
        mailbox: Arc<Mailbox>,
        link: Listener,
    }

    fn world(queue_max: usize) -> World {
        let feedback =
            Arc::new(Feedback::new(FeedbackSettings { batch_records_max: 1, ..FeedbackSettings::default() }));
        let settings = C2dSettings { queue_max, deliveries_max: 3, lock_ms: 60_000, ..C2dSettings::default() };
        let mailbox = Mailbox::new();
        let link = Listener::new(&mailbox, LinkKey(1));
        let (c2d, device) = (C2d::new(settings, feedback.clone()), Identity::device("a"));
        World { c2d, feedback, device, mailbox, link }
    }

    impl World {
        fn send(&self, id: &str, expires_ms: u64, now_ms: u64) -> Result<u64, QueueFull> {
            let message = C2dMessage {
                properties: Properties::default(),
                application_properties: ApplicationProperties::default(),
                body: Bytes::new(),
                ack: Ack::Full,
                message_id: id.into(),
                generation_id: "1".into(),
                enqueued_ms: 0,
                expires_ms,
                sequence_number: 0,
            };
            self.c2d.enqueue(&self.device, message, now_ms)
        }

        fn next(&self, now_ms: u64) -> Option<Locked<C2dMessage>> {
            self.c2d.next(&self.device, &self.link, now_ms)
        }

        fn next_id(&self, now_ms: u64) -> Option<String> {
            self.next(now_ms).map(|locked| locked.item.message_id.to_string())
        }

        /// `message:status` of the next feedback batch.
        fn feedback(&self) -> Option<String> {
            let batch = self.feedback.next(0)?;
            let json: serde_json::Value = serde_json::from_str(&batch.item.body).expect("JSON");
            let text = |key: &str| json[0][key].as_str().unwrap_or_default().to_owned();
            self.feedback.complete(&batch.token, 0).expect("just locked");
            Some(format!("{}:{}", text("originalMessageId"), text("statusCode")))
        }
    }

    const NEVER: u64 = u64::MAX;

    #[test]
    fn messages_come_in_order_and_complete_once() {
        let world = world(50);
        world.c2d.attach(&world.device, world.link.clone());
        world.send("1", NEVER, 0).expect("room");
        world.send("2", NEVER, 0).expect("room");
        assert_eq!(world.mailbox.take(), [LinkKey(1)]);
        let first = world.next(0).expect("waits");
        assert_eq!(&*first.item.message_id, "1");
        assert_eq!(world.next_id(0).as_deref(), Some("2"));
        assert_eq!(world.c2d.complete(&first.token, 1), Ok(()));
        assert_eq!(world.c2d.complete(&first.token, 1), Err(LockLost));
        assert_eq!(world.feedback().as_deref(), Some("1:Success"));
        assert_eq!(world.feedback(), None);
    }

    #[test]
    fn the_queue_is_full_at_its_bound_locked_messages_included() {
        let world = world(2);
        world.c2d.attach(&world.device, world.link.clone());
        world.send("1", NEVER, 0).expect("room");
        world.send("2", NEVER, 0).expect("room");
        let first = world.next(0).expect("waits");
        assert_eq!(world.send("3", NEVER, 0), Err(QueueFull));
        world.c2d.complete(&first.token, 0).expect("locked");
        assert_eq!(world.send("3", NEVER, 0), Ok(3));
    }

    #[test]
    fn a_lapsed_lock_returns_the_message_without_raising_its_delivery_count() {
        let world = world(50);
        world.c2d.attach(&world.device, world.link.clone());
        world.send("1", NEVER, 0).expect("room");
        let lost = world.next(0).expect("waits");
        world.mailbox.take();
        world.c2d.tick(59_999);
        assert!(world.mailbox.take().is_empty());
        world.c2d.tick(60_000);
        assert_eq!(world.mailbox.take(), [LinkKey(1)]);
        assert_eq!(world.c2d.complete(&lost.token, 60_000), Err(LockLost));
        assert_eq!(world.next(60_000).map(|locked| locked.delivery_count), Some(0));
    }

    #[test]
    fn a_message_abandoned_max_delivery_count_times_is_dead_lettered() {
        let world = world(50);
        world.c2d.attach(&world.device, world.link.clone());
        world.send("1", NEVER, 0).expect("room");
        for count in 0..3 {
            let locked = world.next(0).expect("waits");
            assert_eq!(locked.delivery_count, count);
            world.c2d.abandon(&locked.token, 0).expect("locked");
        }
        assert!(world.next(0).is_none());
        assert_eq!(world.feedback().as_deref(), Some("1:DeliveryCountExceeded"));
    }

    #[test]
    fn an_expired_message_is_dead_lettered_though_nobody_asks() {
        let world = world(50);
        world.send("1", 1_000, 0).expect("room");
        world.c2d.tick(999);
        assert_eq!((world.c2d.depth(&world.device), world.feedback()), (1, None));
        world.c2d.tick(1_000);
        assert_eq!(world.c2d.depth(&world.device), 0);
        assert_eq!(world.feedback().as_deref(), Some("1:Expired"));
    }

    #[test]
    fn rejected_and_purged_messages_are_reported_as_such() {
        let world = world(50);
        world.c2d.attach(&world.device, world.link.clone());
        world.send("1", NEVER, 0).expect("room");
        world.send("2", NEVER, 0).expect("room");
        let first = world.next(0).expect("waits");
        world.c2d.reject(&first.token, 0).expect("locked");
        assert_eq!(world.feedback().as_deref(), Some("1:Rejected"));
        let second = world.next(0).expect("waits");
        assert_eq!(world.c2d.purge(&world.device, 0), 1);
        assert_eq!(world.feedback().as_deref(), Some("2:Purged"));
        assert_eq!(world.c2d.complete(&second.token, 0), Err(LockLost));
    }

    #[test]
    fn a_second_receiver_evicts_the_first_and_gets_what_is_free() {
        let world = world(50);
        assert_eq!(world.c2d.attach(&world.device, world.link.clone()), None);
        world.send("1", NEVER, 0).expect("room");
        world.send("2", NEVER, 0).expect("room");
        let held = world.next(0).expect("waits");
        let other = Listener::new(&Mailbox::new(), LinkKey(1));
        assert_eq!(world.c2d.attach(&world.device, other.clone()), Some(world.link.clone()));
        assert!(world.next(0).is_none());
        let next = world.c2d.next(&world.device, &other, 0).expect("waits");
        assert_eq!(&*next.item.message_id, "2");
        // late news of the evicted one does not take the receiver away
        world.c2d.detach(&world.device, &world.link);
        assert_eq!(world.c2d.complete(&held.token, 0), Ok(()));
        world.send("3", NEVER, 0).expect("room");
        assert!(world.c2d.next(&world.device, &other, 0).is_some());
    }

    #[test]
    fn nothing_is_left_behind_by_devices_that_came_and_went() {
        let world = world(50);
        for _ in 0..100 {
            world.c2d.attach(&world.device, world.link.clone());
            world.send("1", NEVER, 0).expect("room");
            let locked = world.next(0).expect("waits");
            world.c2d.complete(&locked.token, 0).expect("locked");
            world.c2d.detach(&world.device, &world.link);
        }
        let state = world.c2d.lock();
        assert_eq!((state.boxes.len(), state.locks.len(), state.deadlines.len()), (0, 0, 0));
    }

    #[test]
    fn feedback_goes_only_where_it_is_wanted() {
        use FeedbackStatus::{Expired, Success};
        for (text, ack, success, failure) in [
            ("none", Some(Ack::None), false, false),
            ("positive", Some(Ack::Positive), true, false),
            ("Negative", Some(Ack::Negative), false, true),
            ("full", Some(Ack::Full), true, true),
            ("all", None, false, false),
        ] {
            assert_eq!(Ack::parse(text), ack);
            let ack = ack.unwrap_or_default();
            assert_eq!((ack.wants(Success), ack.wants(Expired)), (success, failure), "{text}");
        }
    }
}
