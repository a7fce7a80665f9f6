//! The workloads, by the keys of the performance notes.

use std::fmt;

/// Devices of CONNECT, each with one connection at a time.
pub(crate) const CONNECTS_AT_A_TIME: usize = 64;
/// Rounds of a measurement by the rules of the performance notes.
pub(crate) const ROUNDS: usize = 5;
/// Rounds of a variant in the run of everything, which has to end in 35 minutes.
const ROUNDS_OF_VARIANT: usize = 3;

/// One workload: what the devices do, and by which transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) kind: Kind,
    pub(crate) devices_by: DevicesBy,
    /// The AMQP side: to a sink that speaks TLS.
    pub(crate) upstream_tls: bool,
    /// Rounds that are wanted, if nobody says otherwise.
    pub(crate) rounds: usize,
}

/// How devices connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DevicesBy {
    Tcp,
    /// Full handshakes, a token in CONNECT.
    Tls,
    /// Full handshakes in which the device shows a certificate; no token.
    TlsCertificate,
    /// Each connection resumes the device's last session by its ticket; a token in CONNECT.
    TlsResumed,
}

/// What the devices do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 100 clients, closed loop, this many unacknowledged each.
    Window(usize),
    /// 100 clients, this many messages per second in total, window 1.
    Load(u32),
    /// This many devices, subscribed, no traffic but PINGREQ.
    Idle(usize),
    /// 64 connections at a time.
    Connect,
}

/// Upper bounds: ratios to the floor (or null server), and KiB a device; `None` where there is no goal.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Goals {
    pub(crate) cpu: Option<f64>,
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    pub(crate) private_kib: Option<f64>,
}

impl Workload {
    /// All of them, in the order of the table.
    pub(crate) fn all() -> Vec<Self> {
        let kinds =
            [Kind::Window(1), Kind::Window(8), Kind::Load(1000), Kind::Idle(1_000), Kind::Idle(10_000), Kind::Connect];
        kinds.into_iter().flat_map(Self::of).collect()
    }

    /// What devices do, by every transport: the plain ways first, then the variants.
    fn of(kind: Kind) -> Vec<Self> {
        use DevicesBy::{Tcp, Tls, TlsCertificate, TlsResumed};
        let variants = match kind {
            Kind::Window(_) | Kind::Load(_) => vec![(Tcp, true), (Tls, true)],
            Kind::Idle(_) => Vec::new(),
            Kind::Connect => vec![(TlsCertificate, false), (TlsResumed, false)],
        };
        let row = |rounds| move |(devices_by, upstream_tls)| Self { kind, devices_by, upstream_tls, rounds };
        let plain = [(Tcp, false), (Tls, false)].into_iter().map(row(ROUNDS));
        plain.chain(variants.into_iter().map(row(ROUNDS_OF_VARIANT))).collect()
    }

    /// Those whose key is one of `names`, whole or without its transports; an unknown name is an error that lists the
    /// known. Who is named gets all the rounds of the rules.
    pub(crate) fn named(names: &[String]) -> anyhow::Result<Vec<Self>> {
        let all = Self::all();
        if names.is_empty() {
            return Ok(all);
        }
        let mut chosen = Vec::new();
        for name in names {
            let found = all.iter().filter(|each| {
                each.to_string().eq_ignore_ascii_case(name) || each.kind.to_string().eq_ignore_ascii_case(name)
            });
            let before = chosen.len();
            chosen.extend(found.map(|&each| Self { rounds: ROUNDS, ..each }));
            if chosen.len() == before {
                let known = all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                anyhow::bail!("no workload is named {name}; there are: {known}");
            }
        }
        Ok(chosen)
    }

    /// The transports in words.
    pub(crate) fn transports(self) -> String {
        let devices = match self.devices_by {
            DevicesBy::Tcp => "plain TCP",
            DevicesBy::Tls => "TLS 1.3",
            DevicesBy::TlsCertificate => "TLS 1.3 with client certificates",
            DevicesBy::TlsResumed => "TLS 1.3, sessions resumed",
        };
        match self.kind {
            Kind::Idle(_) | Kind::Connect => format!("devices by {devices}"),
            _ => format!("devices by {devices}, AMQP by {}", if self.upstream_tls { "TLS 1.3" } else { "plain TCP" }),
        }
    }

    /// Whether devices connect by TLS.
    pub(crate) fn device_tls(self) -> bool {
        self.devices_by != DevicesBy::Tcp
    }

    /// What its CPU time is divided by.
    pub(crate) fn unit(self) -> &'static str {
        match self.kind {
            Kind::Window(_) | Kind::Load(_) => "acknowledged message",
            Kind::Idle(_) => "second",
            Kind::Connect => "connection",
        }
    }

    /// Whether sends have a time at which they are due.
    pub(crate) fn is_paced(self) -> bool {
        matches!(self.kind, Kind::Load(_))
    }

    /// What the gateway shall reach.
    pub(crate) fn goals(self) -> Goals {
        let cpu = |ratio| Goals { cpu: Some(ratio), ..Goals::default() };
        match (self.kind, self.devices_by) {
            (Kind::Window(1), _) => cpu(1.25),
            (Kind::Window(_), _) => cpu(2.0),
            (Kind::Load(_), _) => Goals { p50: Some(1.25), p99: Some(1.5), ..cpu(1.25) },
            (Kind::Idle(_), DevicesBy::Tcp) => Goals { private_kib: Some(3.0), ..Goals::default() },
            (Kind::Idle(_), _) => Goals { private_kib: Some(6.0), ..Goals::default() },
            (Kind::Connect, DevicesBy::Tcp) => cpu(1.5),
            (Kind::Connect, DevicesBy::Tls | DevicesBy::TlsCertificate) => cpu(1.1),
            // the goal is for full handshakes
            (Kind::Connect, DevicesBy::TlsResumed) => Goals::default(),
        }
    }

    /// Devices in it.
    pub(crate) fn devices(self) -> usize {
        match self.kind {
            Kind::Window(_) | Kind::Load(_) => 100,
            Kind::Idle(devices) => devices,
            Kind::Connect => CONNECTS_AT_A_TIME,
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices = match self.devices_by {
            DevicesBy::Tcp => "",
            DevicesBy::Tls => "-tls",
            DevicesBy::TlsCertificate => "-tls-certificate",
            DevicesBy::TlsResumed => "-tls-resumed",
        };
        write!(f, "{}{devices}{}", self.kind, if self.upstream_tls { "-amqps" } else { "" })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window(window) => write!(f, "W{window}"),
            Self::Load(per_second) if per_second % 1000 == 0 => write!(f, "L{}k", per_second / 1000),
            Self::Load(per_second) => write!(f, "L{per_second}"),
            Self::Idle(devices) => write!(f, "IDLE-{devices}"),
            Self::Connect => write!(f, "CONNECT"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, keys: &[&str]) {
        let found = Workload::named(&[name.to_owned()]).unwrap();
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), keys, "{name}");
        assert!(found.iter().all(|each| each.rounds == ROUNDS), "{name}");
    }

    #[test]
    fn a_key_names_all_transports_or_one() {
        check("w8", &["W8", "W8-tls", "W8-amqps", "W8-tls-amqps"]);
        check("L1k-tls", &["L1k-tls"]);
        check("l1k-amqps", &["L1k-amqps"]);
        check("CONNECT", &["CONNECT", "CONNECT-tls", "CONNECT-tls-certificate", "CONNECT-tls-resumed"]);
        check("IDLE-1000", &["IDLE-1000", "IDLE-1000-tls"]);
    }

    #[test]
    fn every_workload_has_a_key_of_its_own() {
        let mut keys = Workload::all().iter().map(ToString::to_string).collect::<Vec<_>>();
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count, "{keys:?}");
    }

    #[test]
    fn the_run_of_everything_measures_variants_in_fewer_rounds() {
        let rounds = |key: &str| Workload::all().iter().find(|each| each.to_string() == key).unwrap().rounds;
        assert_eq!((rounds("W1-tls"), rounds("W1-tls-amqps")), (5, 3));
        assert_eq!((rounds("CONNECT-tls"), rounds("CONNECT-tls-resumed")), (5, 3));
    }

    #[test]
    fn an_unknown_key_is_answered_with_the_known() {
        let error = Workload::named(&["W9".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("IDLE-10000-tls"), "{error}");
    }
}
