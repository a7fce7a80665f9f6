//! What is asked of the metrics API and which of its bounds were reached, as metrics.

use prometheus::{IntCounterVec, Opts};

use crate::metrics::Metrics;

/// Metrics of this part. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Counters {
    /// Requests by HTTP status.
    pub(super) requests: IntCounterVec,
    /// Questions to the API server by kind (`token`, `access`) and result (`allowed`, `denied`, `failed`).
    pub(super) reviews: IntCounterVec,
    /// Bounds that were reached: `connections`, `handshake`, `age`, `reviews`, `cache`, `accept`.
    pub(super) limited: IntCounterVec,
}

impl Counters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let counters =
            |name: &str, help: &str, labels: &[&str]| metrics.add(IntCounterVec::new(Opts::new(name, help), labels));
        Self {
            requests: counters(
                "operator_metrics_api_requests_total",
                "Requests to the metrics API, by HTTP status.",
                &["code"],
            ),
            reviews: counters(
                "operator_metrics_api_reviews_total",
                "Questions to the API server about who asks and whether they may.",
                &["review", "result"],
            ),
            limited: counters(
                "operator_metrics_api_limited_total",
                "Bounds of the metrics API that were reached, by bound.",
                &["bound"],
            ),
        }
    }

    pub(super) fn limit(&self, bound: &str) {
        self.limited.with_label_values(&[bound]).inc();
    }
}
