//! What asking pods costs and what comes of it, as metrics.

use prometheus::{IntCounterVec, IntGauge, Opts};

use crate::metrics::Metrics;

/// Metrics of this part. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Counters {
    /// Pods that are asked.
    pub(super) watched: IntGauge,
    /// `/load` by result: `answered`, `unreachable`, `late`, `refused`, `nonsense`.
    pub(super) asks: IntCounterVec,
    /// Orders by result: `taken`, `fenced`, `refused`, `unreachable`, `busy`, `unknown`.
    pub(super) orders: IntCounterVec,
    /// Looks at listeners' certificates by result: `seen`, `failed`.
    pub(super) probes: IntCounterVec,
}

impl Counters {
    /// At zero, among `metrics`.
    ///
    /// # Panics
    /// If they are there already.
    pub fn new(metrics: &Metrics) -> Self {
        let counters = |name: &str, help: &str| metrics.add(IntCounterVec::new(Opts::new(name, help), &["result"]));
        Self {
            watched: metrics.add(IntGauge::new("operator_pods_watched", "Pods whose admin port is asked.")),
            asks: counters("operator_pod_asks_total", "Questions to pods' admin ports, by result."),
            orders: counters("operator_pod_orders_total", "Orders to pods, by result."),
            probes: counters("operator_pod_probes_total", "Looks at the certificates of pods' listeners, by result."),
        }
    }
}
