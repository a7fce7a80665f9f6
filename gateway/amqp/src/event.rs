//! What an endpoint reports, and the words it is reported in.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;

/// A session of one endpoint. Stays unique after the session ended (a later session on the same channel differs).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A link of one endpoint. Stays unique after the link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// An incoming delivery; means something together with its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeliveryId(pub u32);

/// What happened, in order. `user` is the number given at attach.
///
/// Whatever ends, it ends in this order: one `Settled { outcome: Lost }` for every delivery still pending, one
/// `AttachRefused` or `Detached` for every link, one `SessionEnded` for every session, one `Closed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer's OPEN came.
    Opened(Box<Peer>),
    /// The peer answered our BEGIN.
    SessionBegun {
        /// Which.
        session: SessionId,
        /// Links we may have on it at a time, the smaller of ours and the peer's bound.
        links_max: u32,
    },
    /// A session is over, all its links before it.
    SessionEnded {
        /// Which.
        session: SessionId,
        /// Why.
        cause: Cause,
    },
    /// The peer took the link.
    Attached {
        /// Which.
        link: LinkId,
        /// As given at attach.
        user: u64,
        /// Largest message the peer takes, bytes; `u64::MAX` = no limit.
        message_bytes_max: u64,
    },
    /// The link ended before it was ever attached.
    AttachRefused {
        /// Which.
        link: LinkId,
        /// As given at attach.
        user: u64,
        /// Why.
        cause: Cause,
    },
    /// An attached link ended.
    Detached {
        /// Which.
        link: LinkId,
        /// As given at attach.
        user: u64,
        /// Why.
        cause: Cause,
    },
    /// A sender has credit again after it had none, or what refused the last `send` is over. A hint: `send` may refuse again.
    Sendable {
        /// Which.
        link: LinkId,
        /// As given at attach.
        user: u64,
    },
    /// The one and only end of a delivery that `send` took unsettled.
    Settled {
        /// Which.
        link: LinkId,
        /// As given at attach.
        user: u64,
        /// As given at `send`.
        token: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// A complete message came in.
    Delivery(Box<Delivery>),
    /// Receiver settle mode `Second` only: the sender settled a delivery for which we had given an outcome.
    Confirmed {
        /// Which.
        link: LinkId,
        /// As given at attach.
        user: u64,
        /// Which delivery.
        id: DeliveryId,
        /// The sender's last word; `Rejected` when its lock had run out.
        outcome: Outcome,
    },
    /// The connection is over; nothing follows. Write what is in `output`, then drop the socket.
    Closed {
        /// Why.
        cause: Cause,
    },
}

/// The peer's OPEN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its container-id.
    pub container_id: String,
    /// Largest frame it takes, bytes.
    pub frame_bytes_max: u32,
    /// Sessions we may have at a time, the smaller of ours and the peer's bound.
    pub sessions_max: u32,
    /// Its idle-time-out, ms; 0 = none.
    pub idle_timeout_ms: u64,
}

/// A message from the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The receiver it came on.
    pub link: LinkId,
    /// As given at attach.
    pub user: u64,
    /// For [`crate::Endpoint::settle`].
    pub id: DeliveryId,
    /// The sender's delivery-tag, at most 32 bytes (IoT Hub: the lock token).
    pub tag: Bytes,
    /// 0 = the sections of part 3.
    pub message_format: u32,
    /// The encoded message, all frames joined; see [`crate::message::decode`].
    pub message: Bytes,
    /// True: the sender wants no outcome.
    pub settled: bool,
}

/// How a delivery that we sent ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The peer has it.
    Accepted,
    /// The peer will never take it.
    Rejected(Option<Box<Error>>),
    /// The peer did not act on it: send it again.
    Released,
    /// The peer did not act on it: send it again, changed as said.
    Modified {
        /// The attempt counts as a failed one.
        delivery_failed: bool,
        /// Not to this link again.
        undeliverable_here: bool,
    },
    /// In doubt: link, session or connection ended before an outcome came. Sending again may duplicate.
    Lost,
}

/// What we tell a sender about a delivery that came in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Settle {
    /// It is ours now.
    Accepted,
    /// Give it to somebody else or again.
    Released,
    /// It will never be taken.
    Rejected(Box<Error>),
    /// As `Released`, with a note.
    Modified {
        /// The attempt counts as a failed one.
        delivery_failed: bool,
        /// Not to this link again.
        undeliverable_here: bool,
    },
}

/// Why something ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// We asked for it.
    Local,
    /// The peer ended it.
    Remote(Option<Box<Error>>),
    /// The peer broke a rule; this is what we told it.
    Violation(Box<Error>),
    /// The peer did not answer, or was silent, for too long.
    Timeout,
    /// What it stood on (session, connection) ended; that event follows.
    Carrier,
    /// It waited for the peer's OPEN or BEGIN, and the peer's channel-max, handle-max or max-frame-size leaves no room.
    Limit,
    /// The stream ended without CLOSE.
    Eof,
    /// The peer's answer to our protocol header was this one.
    Header([u8; 8]),
    /// SASL failed: the outcome's code (1 auth, 2 sys, 3 sys-perm, 4 sys-temp), or `None` when our mechanism is not
    /// offered. Codes 2 and 4 are worth another try.
    Sasl(Option<u8>),
}

/// The error of a DETACH, END, CLOSE or `rejected` (2.8.14).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Error {
    /// The condition symbol, e.g. `amqp:link:stolen`.
    pub condition: Cow<'static, str>,
    /// Free text.
    pub description: String,
    /// The simple values of the info map as text, e.g. `com.microsoft:tracking-id`, `hostname`, `network-host`, `port`.
    pub info: Vec<(String, String)>,
}

impl Error {
    /// An error without info.
    pub fn new(condition: &'static str, description: impl Into<String>) -> Self {
        Self { condition: Cow::Borrowed(condition), description: description.into(), info: Vec::new() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.condition, self.description)
    }
}

impl std::error::Error for Error {}

/// Why `send` did not take a message. The caller keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSent {
    /// The receiver gave no credit. `Sendable` follows.
    #[error("no link credit")]
    NoCredit,
    /// The session's window is used up. `Sendable` follows.
    #[error("session window closed")]
    WindowClosed,
    /// `output_bytes_max` waits to be written. `Sendable` follows.
    #[error("output full")]
    OutputFull,
    /// `unsettled_max` deliveries of the session wait for their outcome. `Sendable` follows.
    #[error("too many unsettled deliveries")]
    UnsettledFull,
    /// Not an attached sender (any more).
    #[error("link not attached")]
    NotAttached,
    /// Longer than the peer's max-message-size: will never go.
    #[error("message larger than the peer takes")]
    TooLarge,
    /// The link's settle mode forbids what was asked: will never go.
    #[error("settle mode of the link forbids it")]
    SettleMode,
}

/// Why `begin` or an attach was refused on the spot. Nothing was sent, no event follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// All sessions the two sides allow are in use.
    #[error("no free channel")]
    SessionsMax,
    /// All links the two sides allow are in use.
    #[error("no free handle")]
    LinksMax,
    /// `output_bytes_max` waits to be written: try again after writing.
    #[error("output full")]
    OutputFull,
    /// The session or connection is over or on its way out.
    #[error("session gone")]
    Gone,
    /// A link of that name and direction is still attaching on this session.
    #[error("link name in use")]
    NameInUse,
}

/// How often a bound was reached or a peer's slip forgiven, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames read, heartbeats too.
    pub frames_in: u64,
    /// Messages sent.
    pub deliveries_out: u64,
    /// Messages received.
    pub deliveries_in: u64,
    /// `send` refused: no credit.
    pub no_credit: u64,
    /// `send` refused: session window.
    pub window_closed: u64,
    /// `send` or attach refused: output full.
    pub output_full: u64,
    /// `send` refused: too many unsettled.
    pub unsettled_full: u64,
    /// Waits that ran out.
    pub timeouts: u64,
    /// Links detached by us for a broken rule or an exceeded size.
    pub links_failed: u64,
    /// Sessions ended by us for a broken rule.
    pub sessions_failed: u64,
    /// Slips of the peer passed over.
    pub tolerated: u64,
}
