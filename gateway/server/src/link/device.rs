//! What an AMQP connection knows of one device, and the names of what it holds for it.

use std::{rc::Rc, time::Duration};

use amqp_endpoint::LinkId;
use gateway_core::{
    auth::{Client, Refused, Verdict},
    message::{DeviceId, Outcome, QoS},
    session::effect::{CloseCause, Slot},
    time::{Millis, UnixSeconds},
};

use crate::upstream::{
    UpstreamEvent,
    arena::{Key, List},
    inbox::Inbox,
    pool::Pool,
};

/// One device on one AMQP connection. A few hundred bytes while idle.
pub(super) struct Device {
    pub(super) identity: DeviceId,
    pub(super) inbox: Rc<Inbox>,
    /// The device's own token, if the hub judges it by that.
    pub(super) proof: Option<Box<Proof>>,
    /// What the hub is told of it with every link.
    pub(super) client: Option<Box<Client>>,
    /// The telemetry sender.
    pub(super) sender: Tie,
    pub(super) commands: Commands,
    /// Messages without an outcome, in the order of the device.
    pub(super) queue: List,
    /// The first of them that is not transferred on the link of now.
    pub(super) next: Option<Key>,
    /// The device's connection is gone; what it handed over is still settled.
    pub(super) leaving: bool,
    /// The hub did not take one of its messages, which ends its connection.
    pub(super) refused: bool,
    /// Since when the hub has not let it work, and how often it refused since then.
    pub(super) trouble: Option<Trouble>,
}

/// A device's token on the way to the hub.
pub(super) struct Proof {
    pub(super) token: Box<str>,
    pub(super) expires: UnixSeconds,
    pub(super) stage: Stage,
    /// The device waits for the verdict (and not only for its links after a reconnect).
    pub(super) asked: bool,
    pub(super) since: Millis,
    /// Since when the hub has not taken a token that it had taken before.
    pub(super) trouble: Option<Trouble>,
}

/// How far a token is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// To be sent.
    Waiting,
    /// Sent under this request number.
    InFlight(u64),
    /// The hub is too busy for it, or did not answer: to be sent again then.
    Held(Millis),
    /// The hub took it on this AMQP connection.
    Proven,
    /// The hub did not take it, or did not answer the device's first question.
    Failed,
}

/// How far one link of a device is.
//
//  None ──wanted──► Wanted ──ATTACH──► Attaching ──ATTACH──► Open ──detach──► Detaching ──DETACH──► None or Wanted
//                     ▲                    │ refused             │ lost
//                     └────── wait ────── Held ◄─────────────────┘
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tie {
    /// Not needed.
    None,
    /// To be attached; stands in the queue of those.
    Wanted,
    /// ATTACH written.
    Attaching(LinkId),
    /// Both attached.
    Open(LinkId),
    /// DETACH written by us.
    Detaching(LinkId),
    /// Refused or lost: attach again then.
    Held(Millis),
}

impl Tie {
    /// The link, if there is one.
    pub(super) fn link(self) -> Option<LinkId> {
        match self {
            Self::Attaching(link) | Self::Open(link) | Self::Detaching(link) => Some(link),
            Self::None | Self::Wanted | Self::Held(_) => None,
        }
    }
}

/// The command receiver of a device.
pub(super) struct Commands {
    pub(super) tie: Tie,
    /// Commands unsettled at a time; 0: the device wants none.
    pub(super) window: u32,
    /// Commands the device has and has not settled.
    pub(super) unsettled: u32,
    /// The device waits to hear that the receiver is attached.
    pub(super) asked: bool,
    /// Names the receiver of now in the tags of its commands.
    pub(super) generation: u32,
}

/// A device that the hub refuses for the moment.
#[derive(Clone, Copy)]
pub(super) struct Trouble {
    pub(super) since: Millis,
    /// When it was refused the last time.
    pub(super) last: Millis,
    pub(super) times: u32,
}

/// One message handed over and without an outcome.
pub(super) struct Message {
    /// Whose it is.
    pub(super) device: u32,
    pub(super) slot: Slot,
    pub(super) qos: QoS,
    /// The encoded message, kept so that it can be sent again.
    pub(super) bytes: Vec<u8>,
    /// When it was handed over, microseconds.
    pub(super) given_us: u64,
    /// The link it was transferred on, and when (microseconds).
    pub(super) sent: Option<(LinkId, u64)>,
    /// It was transferred on a link that is gone: whether the hub has it, nobody knows.
    pub(super) in_doubt: bool,
}

/// Which of a device's two links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Telemetry,
    Commands,
}

/// A device between two AMQP connections, with all that it waits for.
pub(crate) struct Passenger {
    pub(super) identity: DeviceId,
    pub(crate) inbox: Rc<Inbox>,
    pub(super) proof: Option<Box<Proof>>,
    pub(super) client: Option<Box<Client>>,
    /// Window of the command receiver that it wants, and whether it waits to hear of it.
    pub(super) commands: (u32, bool),
    pub(super) messages: Vec<Message>,
    /// As in [`Device`].
    pub(super) refused: bool,
}

impl Trouble {
    /// Refused once more at `now`: when to try again, after a wait that grows from the first to the second of `backoff` and that
    /// `chance`, from 0 to 1, shortens by up to a half.
    pub(super) fn again(
        trouble: &mut Option<Self>,
        now: Millis,
        (first, longest): (Duration, Duration),
        chance: f64,
    ) -> Millis {
        let trouble = trouble.get_or_insert(Self { since: now, last: now, times: 0 });
        let ceiling = first.saturating_mul(1 << trouble.times.min(16)).min(longest);
        trouble.times += 1;
        trouble.last = now;
        now.after(ceiling / 2 + (ceiling / 2).mul_f64(chance))
    }
}

impl Passenger {
    pub(crate) fn new(identity: DeviceId, inbox: Rc<Inbox>) -> Self {
        Self { identity, inbox, proof: None, client: None, commands: (0, false), messages: Vec::new(), refused: false }
    }

    /// There is no place for it: answers everything that it waits for.
    pub(crate) fn refuse(self, pool: &Pool, refused: Refused, cause: CloseCause) {
        self.inbox.route.take();
        if self.proof.is_some_and(|proof| proof.asked) {
            self.inbox.post(UpstreamEvent::Authorized(Verdict::Refused(refused)));
        }
        for message in self.messages {
            message.end(pool, &self.inbox, Outcome::Unreachable);
        }
        self.inbox.post(UpstreamEvent::Lost(cause));
    }
}

impl Message {
    /// Nobody sends it again if it does not go from here, and it owes nothing to a message before it: a Will, or QoS 0 that has
    /// never been transferred. QoS 0 that may have arrived is done with.
    pub(super) fn is_only_here(&self) -> bool {
        self.slot == Slot::WILL || (self.qos == QoS::AtMostOnce && !self.in_doubt)
    }

    /// Counts what became of it, tells its device, and gives its buffer back.
    pub(super) fn end(self, pool: &Pool, inbox: &Inbox, outcome: Outcome) {
        pool.metrics.up.up(self.qos, &outcome).inc();
        if self.slot != Slot::WILL {
            inbox.post(UpstreamEvent::Outcome(self.slot, outcome));
        }
        self.give_back(pool);
    }

    /// Counts it as dropped and gives its buffer back; its device hears nothing, or hears that it was let go.
    pub(super) fn drop_unsettled(self, pool: &Pool) {
        pool.metrics.upstream_dropped.inc();
        self.give_back(pool);
    }

    fn give_back(self, pool: &Pool) {
        pool.metrics.up.inflight.add(-1);
        pool.held.give(self.bytes.len());
        pool.buffers.give(self.bytes);
    }
}

impl Device {
    pub(super) fn new(identity: DeviceId, inbox: Rc<Inbox>) -> Self {
        let commands = Commands { tie: Tie::None, window: 0, unsettled: 0, asked: false, generation: 0 };
        Self {
            identity,
            inbox,
            proof: None,
            client: None,
            sender: Tie::None,
            commands,
            queue: List::EMPTY,
            next: None,
            leaving: false,
            refused: false,
            trouble: None,
        }
    }

    pub(super) fn tie(&mut self, role: Role) -> &mut Tie {
        match role {
            Role::Telemetry => &mut self.sender,
            Role::Commands => &mut self.commands.tie,
        }
    }

    /// Whether the hub lets this device have links.
    pub(super) fn is_proven(&self) -> bool {
        self.proof.as_ref().is_none_or(|proof| proof.stage == Stage::Proven)
    }

    /// Whether there is a use for this link.
    pub(super) fn needs(&self, role: Role) -> bool {
        match role {
            Role::Telemetry => !self.queue.is_empty(),
            Role::Commands => self.commands.window > 0 && !self.leaving,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use gateway_core::time::Millis;

    use super::Trouble;

    #[test]
    fn a_wait_grows_from_refusal_to_refusal() {
        let backoff = (Duration::from_secs(1), Duration::from_secs(5));
        let mut trouble = None;
        let mut check = |now: u64, chance: f64, expected: u64| {
            assert_eq!(Trouble::again(&mut trouble, Millis(now), backoff, chance), Millis(expected), "at {now}");
        };
        check(1_000, 1.0, 2_000);
        check(2_000, 0.0, 3_000);
        check(3_000, 1.0, 7_000);
        check(7_000, 1.0, 12_000);
        check(60_999, 0.5, 64_749);
        assert_eq!(trouble.map(|trouble| trouble.since), Some(Millis(1_000)));
    }
}
