//! What a session asks of the connection that owns it: a closed list.

use crate::{
    auth::Login,
    codec::Packet,
    message::{CommandTag, Settlement, Telemetry},
};

/// One thing for the connection to do, in the order given. Borrowed parts live as long as the packet that caused it.
#[derive(Debug)]
pub enum Effect<'a> {
    /// Find out whether this device may connect; answer with `Session::handle_verdict`. No packet is handled before.
    Authenticate(Login<'a>),
    /// Encode this packet into the device's output.
    Write(Packet<'a>),
    /// Hand this message upstream; answer with `Session::handle_outcome(slot, …)`, exactly once.
    Send {
        /// Names the message between session and link.
        slot: Slot,
        /// Borrows the PUBLISH.
        telemetry: Telemetry<'a>,
    },
    /// Attach the command receiver with this credit; answer with `Session::handle_commands_opened`.
    OpenCommands {
        /// Commands that may be unsettled at a time.
        credit: u32,
    },
    /// Detach the command receiver; no answer.
    CloseCommands,
    /// Settle one command and give its credit back.
    Settle(CommandTag, Settlement),
    /// Write out what is queued, then close the device's connection. The last effect.
    Close(CloseCause),
}

/// Names one message in flight from a session to its link. `Slot::WILL` is the Will, whose outcome nobody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// A QoS 0 message: its outcome frees its place in the window, nothing is written.
    pub const WILL: Self = Self(u16::MAX);
}

/// Why a device's connection ends: `gateway_disconnects_total{cause}` and the debug line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCause {
    /// DISCONNECT received.
    Disconnect,
    /// The device closed or its socket failed.
    Gone,
    /// Silence for one and a half keep-alive periods [MQTT-3.1.2-24].
    KeepAlive,
    /// A newer connection of the same device, here or at another gateway.
    TakenOver,
    /// The token expired.
    TokenExpired,
    /// CONNECT was answered with a code other than 0.
    Refused,
    /// A malformed packet or one that breaks the protocol.
    ProtocolViolation,
    /// A packet or message above its limit.
    TooLarge,
    /// A topic, property bag or filter that is not served.
    Topic,
    /// QoS 2.
    QoS2,
    /// The hub refused a message or the device.
    HubRefused,
    /// The hub was away longer than allowed.
    HubUnreachable,
    /// No CONNECT within the time limit.
    HandshakeTimeout,
    /// The device does not read what we write.
    WriteTimeout,
    /// This gateway is stopping or draining.
    Shutdown,
}
