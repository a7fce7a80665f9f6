//! What a connection has put off: delayed answers, detaches, the end of tokens. Bounded.

use std::collections::BTreeMap;

use fe2o3_amqp_types::definitions::Error;
use fe2o3_amqp_types::messaging::DeliveryState;
use fe2o3_amqp_types::performatives::Attach;

use super::link::{Delivery, LinkId};

/// Something that is due at some time.
#[derive(Debug)]
pub(crate) enum Timer {
    /// OPEN did not come in time.
    Handshake,
    /// CLOSE was not answered in time.
    End,
    /// Something of a link.
    Link(LinkId, Due),
    /// Some token may be over.
    Grants,
    /// An ATTACH that a fault held back, and the link that stands for it.
    Attach(LinkId, Box<Attach>),
}

/// What is due on a link.
#[derive(Debug)]
pub(crate) enum Due {
    /// The outcome of a delivery of the peer's.
    Settle { delivery_id: u32, state: DeliveryState, entries: Vec<u64> },
    /// An answer of ours.
    Answer(Delivery),
    /// The end of the link.
    Detach(Error),
    /// A message that a fault held back may go now.
    Unhold,
}

/// Timers in order of their time, then of their making.
#[derive(Debug)]
pub(crate) struct Timers {
    due: BTreeMap<(u64, u64), Timer>,
    made: u64,
    max: usize,
}

impl Timers {
    pub(crate) fn new(max: usize) -> Self {
        Self { due: BTreeMap::new(), made: 0, max }
    }

    /// Puts `timer` off until `at`. With too many waiting it is due at once: late answers are a fault's doing and may
    /// come early, but not pile up.
    pub(crate) fn push(&mut self, at: u64, timer: Timer) {
        let at = if self.due.len() < self.max { at } else { 0 };
        self.made += 1;
        self.due.insert((at, self.made), timer);
    }

    pub(crate) fn next(&self) -> Option<u64> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(crate) fn due(&mut self, now: u64) -> Option<Timer> {
        if self.next()? > now {
            return None;
        }
        self.due.pop_first().map(|(_, timer)| timer)
    }

    pub(crate) fn remove_handshake(&mut self) {
        self.due.retain(|_, timer| !matches!(timer, Timer::Handshake));
    }
}
