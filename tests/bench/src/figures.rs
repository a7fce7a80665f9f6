//! What was measured: one sample a server and round, and all that belongs to one workload.

use serde::{Deserialize, Serialize};

use crate::{measure::Cpu, workload::Workload};

/// One server in one round.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sample {
    /// CPU microseconds per acknowledged message (per connection in CONNECT, per second in IDLE).
    pub(crate) cpu: Cpu,
    /// What `cpu` was divided by.
    pub(crate) count: u64,
    /// From due to PUBACK, where messages are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<Latency>,
    /// In CONNECT by TLS: how many of its sessions were resumed ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) resumed_share: Option<f64>,
    /// In IDLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Memory>,
    /// Share of sends that the load itself made late.
    pub(crate) late_share: f64,
}

/// Quantiles, in microseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the unit stands last in every name, here and in the JSON")]
pub(crate) struct Latency {
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

/// What devices cost, in KiB each.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(clippy::struct_field_names, reason = "the unit stands last in every name, here and in the JSON")]
pub(crate) struct Memory {
    /// Private memory of the server.
    pub(crate) private_kib: f64,
    /// `Slab` of the whole machine: both ends of every connection, and whatever else happened.
    pub(crate) slab_kib: f64,
    /// TCP memory of the whole machine: both ends.
    pub(crate) tcp_kib: f64,
}

/// One server's samples in the order of measuring.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Servers {
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<Sample>,
}

/// A round that does not count, because the load itself was late.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Discarded {
    pub(crate) server: &'static str,
    pub(crate) late_share: f64,
}

/// All of one workload.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outcome {
    pub(crate) workload: String,
    /// How devices and the sink are reached.
    pub(crate) transports: String,
    #[serde(skip)]
    pub(crate) key: Workload,
    /// The gateway first, then what it is compared with first of all.
    pub(crate) servers: Vec<Servers>,
    /// Rounds that were repeated.
    pub(crate) discarded: Vec<Discarded>,
    /// A send that began this many microseconds after it was due counts as late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) late_after_us: Option<f64>,
    /// Versions of the peers that ran.
    pub(crate) peers: Vec<String>,
    /// Peers that could not be measured, and why.
    pub(crate) missing: Vec<String>,
    /// Why this outcome is not what the rules want: the run fails.
    pub(crate) problems: Vec<String>,
}

impl Outcome {
    pub(crate) fn new(workload: Workload) -> Self {
        Self {
            workload: workload.to_string(),
            transports: workload.transports(),
            key: workload,
            servers: Vec::new(),
            discarded: Vec::new(),
            late_after_us: None,
            peers: Vec::new(),
            missing: Vec::new(),
            problems: Vec::new(),
        }
    }
}
