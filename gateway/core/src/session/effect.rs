//! What a session asks of the connection that owns it: a closed list.

use crate::{
    auth::Login,
    codec::Packet,
    message::{CommandTag, QoS, Settlement, Telemetry},
};

/// Where a session puts its effects: called once per effect, in order. One event may bring as many as the window has places, so
/// they are handed over one by one instead of being gathered in a container.
pub type Effects<'s> = dyn FnMut(Effect<'_>) + 's;

/// One thing for the connection to do, in the order given. Borrowed parts live as long as the packet that caused it.
#[derive(Debug)]
pub enum Effect<'a> {
    /// Find out whether this device may connect; answer with `Session::handle_verdict`. No packet is handled before.
    Authenticate(Login<'a>),
    /// Encode this packet into the device's output.
    Write(Packet<'a>),
    /// Hand this message upstream; answer with `Session::handle_outcome(slot, …)`, exactly once while
    /// the session lives. If the session ends first it goes out all the same, but for QoS 1 after a message that was not
    /// taken, and for what is in doubt when the way to the hub breaks (a Will goes again).
    Send {
        /// Names the message between session and link.
        slot: Slot,
        /// As the device published it: whether it would send it again.
        qos: QoS,
        /// Borrows the PUBLISH.
        telemetry: Telemetry<'a>,
    },
    /// Attach the command receiver with this credit; answer with `Session::handle_commands_opened`. Never asked twice before the
    /// answer came.
    OpenCommands {
        /// Commands that may be unsettled at a time.
        credit: u32,
    },
    /// Take the receiver's credit back and detach it, at once or after the commands under way are settled; no answer.
    CloseCommands,
    /// Settle one command and give its credit back. A tag whose link is gone is to be ignored.
    Settle(CommandTag, Settlement),
    /// Write out what is queued, then close the device's connection. The last effect: session and hub link go with
    /// it.
    Close(CloseCause),
}

/// Names one message in flight from a session to its link: a sequence number modulo 65535, at most a window of them at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// The Will, once per session and its last message.
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
    /// What all connections have sent before they are let in is too much.
    UnauthenticatedBytes,
    /// The device does not read what we write.
    WriteTimeout,
    /// This gateway is stopping or draining.
    Shutdown,
}
