//! What an endpoint and its links are told once. Every bound of the crate stands here; nothing is read from anywhere else.

use std::fmt;

/// How one connection behaves. Start from [`Config::new`] and change fields.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our container-id, at most 255 bytes; unique among the clients of a peer.
    pub container_id: String,
    /// The host the peer is asked for (OPEN and SASL INIT), without port.
    pub hostname: String,
    /// The SASL layer, or none.
    pub sasl: Sasl,
    /// OPEN.properties, symbol → string (`product`, `version`, …).
    pub properties: Vec<(String, String)>,
    /// Largest frame we accept, bytes, 512 or more. What we send obeys the peer's value.
    pub frame_bytes_max: u32,
    /// Sessions at a time, 1..=65536; advertised as channel-max = value − 1.
    pub sessions_max: u32,
    /// Links at a time on one session; advertised as handle-max = value − 1.
    pub links_per_session_max: u32,
    /// Links at a time on the connection.
    pub links_max: u32,
    /// Deliveries sent and not settled, per session.
    pub unsettled_max: u32,
    /// Silence of the peer after which the connection is given up, ms; half of it is advertised. 0 = never.
    pub idle_timeout_ms: u64,
    /// Smallest idle-time-out of the peer that we promise to serve, ms.
    pub peer_idle_min_ms: u64,
    /// Longest wait for the answer to a header, SASL frame, OPEN, BEGIN, ATTACH, DETACH, END or CLOSE, ms.
    pub answer_timeout_ms: u64,
    /// TRANSFER frames the peer may send on a session before we answer with a new window.
    pub incoming_window: u32,
    /// Bytes waiting in [`crate::Endpoint::output`] above which `send` and attaches refuse. Answers to the peer do not
    /// count into that; when as many bytes of answers wait, the connection is given up.
    pub output_bytes_max: usize,
    /// Bytes of incomplete incoming deliveries over all links.
    pub partial_delivery_bytes_max: usize,
}

impl Config {
    /// Settings that suit a gateway in front of IoT Hub: 64 KiB frames, 1 000 sessions, 5 000 transfers of window.
    pub fn new(container_id: impl Into<String>, hostname: impl Into<String>) -> Self {
        Self {
            container_id: container_id.into(),
            hostname: hostname.into(),
            sasl: Sasl::None,
            properties: Vec::new(),
            frame_bytes_max: 65_536,
            sessions_max: 1_000,
            links_per_session_max: 10_000,
            links_max: 20_000,
            unsettled_max: 20_000,
            idle_timeout_ms: 240_000,
            peer_idle_min_ms: 200,
            answer_timeout_ms: 30_000,
            incoming_window: 5_000,
            output_bytes_max: 1 << 20,
            partial_delivery_bytes_max: 4 << 20,
        }
    }

    /// The highest channel number, what OPEN says.
    pub(crate) fn channel_max(&self) -> u16 {
        (self.sessions_max.clamp(1, 65_536) - 1) as u16
    }
}

/// The SASL layer before OPEN (5.3). Only a mechanism the peer offers is ever used.
#[derive(Clone, PartialEq, Eq)]
pub enum Sasl {
    /// No SASL layer at all: the AMQP header comes first.
    None,
    /// `ANONYMOUS`: who we are is said later, for instance by a token.
    Anonymous,
    /// `EXTERNAL`: who we are is in the TLS client certificate.
    External,
    /// `PLAIN`.
    Plain {
        /// The authentication identity.
        user: String,
        /// Never printed.
        password: String,
    },
}

impl fmt::Debug for Sasl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sasl::None => f.write_str("None"),
            Sasl::Anonymous => f.write_str("Anonymous"),
            Sasl::External => f.write_str("External"),
            Sasl::Plain { user, .. } => f.debug_struct("Plain").field("user", user).finish_non_exhaustive(),
        }
    }
}

/// What an ATTACH asks for (2.7.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Link name, unique per pair of containers and direction. After an error use a fresh one.
    pub name: String,
    /// The node at the peer: a sender's target, a receiver's source.
    pub address: String,
    /// Our own terminus: a sender's source, a receiver's target. `None` = no address.
    pub local_address: Option<String>,
    /// What we ask for; the peer's answer rules.
    pub sender_settle_mode: SenderSettleMode,
    /// What we ask for; the peer's answer rules.
    pub receiver_settle_mode: ReceiverSettleMode,
    /// Largest message a receiver takes, bytes; longer ones detach the link. Not used by senders.
    pub message_bytes_max: u64,
    /// ATTACH.properties, symbol → string.
    pub properties: Vec<(String, String)>,
}

impl Attach {
    /// Unsettled deliveries, settled by the receiver first, 1 MiB messages, no properties.
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            address: address.into(),
            local_address: None,
            sender_settle_mode: SenderSettleMode::Unsettled,
            receiver_settle_mode: ReceiverSettleMode::First,
            message_bytes_max: 1 << 20,
            properties: Vec::new(),
        }
    }
}

/// 2.8.2: which deliveries a sender sends settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenderSettleMode {
    /// None of them.
    Unsettled = 0,
    /// All of them: no outcome ever comes back.
    Settled = 1,
    /// As each `send` says.
    Mixed = 2,
}

/// 2.8.3: who settles first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiverSettleMode {
    /// The receiver settles when it sends the outcome.
    First = 0,
    /// The receiver sends the outcome, the sender settles, then the receiver.
    Second = 1,
}
