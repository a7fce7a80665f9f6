//! Connections that the system turned away because a listen queue was full: it tells nobody but those who look.

use std::fs;

/// Counters of this network namespace: in a container its own, else the whole machine's.
const FILE: &str = "/proc/self/net/netstat";
const COUNTER: &str = "ListenOverflows";

/// The count since the namespace was made; `None` where the system does not tell.
pub(super) fn overflows() -> Option<u64> {
    parse(&fs::read_to_string(FILE).ok()?)
}

/// Pairs of lines: the names of a protocol's counters, then their values.
fn parse(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let position = names.split_ascii_whitespace().position(|name| name == COUNTER);
        if let Some(position) = position {
            return values.split_ascii_whitespace().nth(position)?.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_counter_stands_below_its_name() {
        let check = |text: &str, expected| assert_eq!(parse(text), expected, "{text}");
        check("TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 42 43\n", Some(42));
        check("IpExt: InNoRoutes\nIpExt: 0\nTcpExt: ListenOverflows\nTcpExt: 7\n", Some(7));
        check("TcpExt: ListenOverflows\nTcpExt:\n", None);
        check("TcpExt: ListenOverflows\n", None);
        check("IpExt: InNoRoutes\nIpExt: 0\n", None);
        check("", None);
    }
}
