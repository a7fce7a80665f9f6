//! Bounds towards devices: defaults and ranges.

use std::time::Duration;

use super::{Limits, Quantity, Rate, error::Errors};
use crate::settings;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Room for a topic of 65 535 bytes and the headers around it.
const TOPIC_ROOM: u64 = 64 * KIB + 16;

pub(super) fn check(given: &Limits, errors: &mut Errors) -> settings::Limits {
    let message_bytes_max =
        errors.bytes("limits.messageBytesMax", given.message_bytes_max.as_ref(), 256 * KIB, KIB, 16 * MIB);
    let packet_bytes_max = packet_bytes_max(given.packet_bytes_max.as_ref(), message_bytes_max, errors);
    let mut number =
        |name: &str, given, default, min, max| errors.number(&format!("limits.{name}"), given, default, min, max);
    let connections_max = number("connectionsMax", given.connections_max, 18_000, 1, 1_000_000);
    let connects_per_second = number("connectsPerSecond", given.connects_per_second, 500, 1, 100_000);
    // as many as come within the handshake timeout at this rate: fewer, and that many silent connections keep everybody out
    let handshakes_max = number("handshakesMax", given.handshakes_max, 5000, 1, 10_000);
    let properties_max = number("propertiesMax", given.properties_max, 256, 1, 1024) as usize;
    let inflight_max = number("inflightMax", given.inflight_max, 16, 1, 1000) as u16;
    let drain_per_second =
        errors.rate("limits.drainPerSecond", given.drain_per_second, Rate(10.0), Rate(0.001), Rate(100_000.0));
    let output_bytes_max =
        errors.bytes("limits.outputBytesMax", given.output_bytes_max.as_ref(), 256 * KIB, 4 * KIB, 16 * MIB) as usize;
    // as much as a thousand Wills take that are as long as a CONNECT can carry them
    let unauthenticated_bytes_max = errors.bytes(
        "limits.unauthenticatedBytesMax",
        given.unauthenticated_bytes_max.as_ref(),
        64 * MIB,
        64 * KIB,
        1024 * MIB,
    ) as usize;
    let mut duration = |name: &str, given: &Option<Quantity>, default_s, min_ms, max_s| {
        let (default, max) = (Duration::from_secs(default_s), Duration::from_secs(max_s));
        errors.duration(&format!("limits.{name}"), given.as_ref(), default, Duration::from_millis(min_ms), max)
    };
    settings::Limits {
        connections_max,
        connects_per_second,
        handshakes_max,
        packet_bytes_max: packet_bytes_max as usize,
        unauthenticated_bytes_max,
        message_bytes_max: message_bytes_max as usize,
        properties_max,
        inflight_max,
        handshake_timeout: duration("handshakeTimeout", &given.handshake_timeout, 10, 100, 300),
        // contract §2.4: IoT Hub lets no connection be silent for longer than 1767 s
        keep_alive_max: duration("keepAliveMax", &given.keep_alive_max, 1767, 1000, 86_400),
        // contract §2.12: IoT Hub was seen to close 5 to 10 minutes after the token's end
        token_expiry_grace: duration("tokenExpiryGrace", &given.token_expiry_grace, 300, 0, 86_400),
        clock_skew_max: duration("clockSkewMax", &given.clock_skew_max, 300, 0, 3600),
        output_bytes_max,
        write_timeout: duration("writeTimeout", &given.write_timeout, 30, 100, 600),
        drain_per_second,
        drain_alone_after: duration("drainAloneAfter", &given.drain_alone_after, 5, 0, 3600),
        drain_timeout: duration("drainTimeout", &given.drain_timeout, 30, 0, 86_400),
        shutdown_timeout: duration("shutdownTimeout", &given.shutdown_timeout, 25, 0, 3600),
    }
}

/// A packet is a message and its topic; a limit below that of the message would make the latter mean nothing.
fn packet_bytes_max(given: Option<&Quantity>, message_bytes_max: u64, errors: &mut Errors) -> u64 {
    let default = message_bytes_max + TOPIC_ROOM;
    let min = if errors.is_sound("limits.messageBytesMax") { message_bytes_max } else { KIB };
    errors.bytes("limits.packetBytesMax", given, default, min, 32 * MIB)
}
