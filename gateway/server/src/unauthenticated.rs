//! Bytes that one core keeps for connections that nobody has let in yet. Anybody may send them, so they are bounded for all together.
//!
//! A first packet of ordinary length is not counted: whoever fills the bound with long ones keeps no ordinary device out, and
//! `connectionsMax` bounds how many of those there are.

use std::cell::Cell;

use gateway_core::settings::Limits;

/// What one connection may send before anybody knows it, and is not counted: a CONNECT with a token and a short Will.
pub const FREE_BYTES: usize = 4096;

/// What all connections of one core have kept.
#[derive(Debug, Default)]
pub struct Unauthenticated(Cell<usize>);

impl Unauthenticated {
    /// A connection keeps `bytes` now; `counted` is its part so far, 0 at first. False: that is more than before, and too much for
    /// all together. It has to give up everything, by another call with 0.
    pub fn keep(&self, counted: &mut usize, bytes: usize, bytes_max: usize) -> bool {
        let bytes = bytes.saturating_sub(FREE_BYTES);
        let before = std::mem::replace(counted, bytes);
        let all = self.0.get() - before + bytes;
        self.0.set(all);
        bytes <= before || all <= bytes_max
    }
}

/// The share of one of `cores`, and never less than one packet.
pub fn bytes_max(limits: &Limits, cores: usize) -> usize {
    (limits.unauthenticated_bytes_max / cores.max(1)).max(limits.packet_bytes_max)
}

#[cfg(test)]
mod tests {
    use gateway_core::config::GatewayConfig;

    use super::{FREE_BYTES, Unauthenticated, bytes_max};

    #[test]
    fn the_connection_that_comes_above_the_bound_is_told_and_no_other() {
        const MAX: usize = 10_000;
        let (all, mut parts) = (Unauthenticated::default(), [0; 3]);
        let mut check = |connection: usize, bytes: usize, fits: bool, counted: usize| {
            assert_eq!(all.keep(&mut parts[connection], bytes, MAX), fits, "{connection} keeps {bytes}");
            assert_eq!(all.0.get(), counted, "{connection} keeps {bytes}");
        };
        check(0, FREE_BYTES, true, 0);
        check(0, FREE_BYTES + 6_000, true, 6_000);
        check(1, FREE_BYTES + 4_000, true, 10_000);
        check(2, FREE_BYTES, true, 10_000);
        check(2, FREE_BYTES + 1, false, 10_001);
        // others keep what they have, or less, whatever there is
        check(0, FREE_BYTES + 6_000, true, 10_001);
        check(1, FREE_BYTES + 3_999, true, 10_000);
        check(2, 0, true, 9_999);
        check(0, 0, true, 3_999);
        check(1, 0, true, 0);
    }

    #[test]
    fn each_core_has_its_share_and_room_for_one_packet() {
        let limits = |yaml: &str| {
            let yaml = format!("{{tls: {{secretName: s}}, upstream: {{iotHub: {{hostName: h}}}}, limits: {yaml}}}");
            GatewayConfig::parse(&yaml).unwrap().check().unwrap().limits
        };
        assert_eq!(bytes_max(&limits("{unauthenticatedBytesMax: 8MiB}"), 4), 2 << 20);
        assert_eq!(bytes_max(&limits("{unauthenticatedBytesMax: 1MiB, packetBytesMax: 300KiB}"), 4), 300 << 10);
    }
}
