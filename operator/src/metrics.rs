//! The operator's metrics. Names and labels are API.

use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, core::Collector,
};

/// Upper bounds of `operator_reconcile_seconds`: a reconcile is a few answers of the API server.
const RECONCILE_BUCKETS_S: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0];

/// Every metric that parts of the operator share. Cheap to clone; further ones are [`Metrics::add`]ed by who has them.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// How long reconciles took, by `result`: `ok` or `error`.
    pub reconcile_seconds: HistogramVec,
    /// Reconciles that did not come to their end, by `step`.
    pub reconcile_errors: IntCounterVec,
    /// ProtocolGateways that wait for their reconcile.
    pub queue_depth: IntGauge,
    /// Objects written, by `kind`.
    pub writes: IntCounterVec,
    /// 1 on the replica that leads.
    pub leader: IntGauge,
    /// Requests about the Lease, by `request` (`read`, `write`, `release`) and `result` (`ok`, `conflict`, `failed`, `timeout`).
    pub lease_requests: IntCounterVec,
    /// Drains under way, by `namespace`, `gateway`, `cause`.
    pub drains: IntGaugeVec,
    /// Disconnects a second that the fleet may still be asked for, by `namespace`, `gateway`.
    pub reconnect_budget: GaugeVec,
    /// Connections that went with their pods, by `namespace`, `gateway`.
    pub connections_lost: IntCounterVec,
    /// Connections to the metrics and health port that found no place.
    pub http_refused: IntCounterVec,
}

impl Metrics {
    /// All of them, at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let metrics = Self {
            reconcile_seconds: histograms(
                &registry,
                "operator_reconcile_seconds",
                "How long reconciles took.",
                &RECONCILE_BUCKETS_S,
                &["result"],
            ),
            reconcile_errors: counters(
                &registry,
                "operator_reconcile_errors_total",
                "Reconciles that did not come to their end, by the step that failed.",
                &["step"],
            ),
            queue_depth: gauge(&registry, "operator_queue_depth", "ProtocolGateways that wait for their reconcile."),
            writes: counters(
                &registry,
                "operator_writes_total",
                "Objects written to the API server, by kind.",
                &["kind"],
            ),
            leader: gauge(&registry, "operator_leader", "1 on the replica that leads, 0 on the others."),
            lease_requests: counters(
                &registry,
                "operator_lease_requests_total",
                "Requests about the Lease of the replicas, by kind and result.",
                &["request", "result"],
            ),
            drains: add(
                &registry,
                IntGaugeVec::new(
                    Opts::new("operator_drains", "Drains under way, by their cause."),
                    &["namespace", "gateway", "cause"],
                ),
            ),
            reconnect_budget: add(
                &registry,
                GaugeVec::new(
                    Opts::new(
                        "operator_reconnect_budget",
                        "Disconnects a second of the fleet's reconnect budget that no drain has taken.",
                    ),
                    &["namespace", "gateway"],
                ),
            ),
            connections_lost: counters(
                &registry,
                "operator_connections_lost_total",
                "Connections that went with their pods: no drain let them go, the reconnect budget did not hold them.",
                &["namespace", "gateway"],
            ),
            http_refused: counters(
                &registry,
                "operator_http_limited_total",
                "Connections to the health and metrics port that reached a bound, by bound.",
                &["bound"],
            ),
            registry,
        };
        let info = Opts::new("operator_build_info", "1; the version is a label.")
            .const_label("version", env!("CARGO_PKG_VERSION"));
        add(&metrics.registry, Gauge::with_opts(info)).set(1.0);
        metrics
    }

    /// Where parts with metrics of their own put them.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Adds a metric of a part's own.
    pub fn add<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        add(&self.registry, metric)
    }

    /// Forgets all of a fleet that is gone.
    pub fn forget(&self, namespace: &str, gateway: &str) {
        self.forget_drains(namespace, gateway);
        let _ = self.connections_lost.remove_label_values(&[namespace, gateway]);
    }

    /// Forgets what is said of a fleet's drains.
    pub fn forget_drains(&self, namespace: &str, gateway: &str) {
        use prometheus::core::Collector as _;
        // an error: there was nothing
        let _ = self.reconnect_budget.remove_label_values(&[namespace, gateway]);
        for family in self.drains.collect() {
            for metric in family.get_metric() {
                let label = |name: &str| metric.get_label().iter().find(|label| label.name() == name);
                let is = |name: &str, value: &str| label(name).is_some_and(|label| label.value() == value);
                if is("namespace", namespace) && is("gateway", gateway) {
                    let cause = label("cause").map_or("", |label| label.value());
                    let _ = self.drains.remove_label_values(&[namespace, gateway, cause]);
                }
            }
        }
    }

    /// All of them in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        let encoded = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        encoded.expect("families have a name and at least one metric");
        String::from_utf8(text).expect("names, labels and numbers are text")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    add(registry, IntGauge::new(name, help))
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels))
}

fn histograms(registry: &Registry, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
    add(registry, HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels))
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<C>) -> C {
    let metric = metric.expect("names, labels and buckets stand in the source");
    registry.register(Box::new(metric.clone())).expect("no name is given twice");
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_a_name_of_the_operator_and_a_help_text() {
        let metrics = Metrics::new();
        metrics.reconcile_seconds.with_label_values(&["ok"]).observe(0.01);
        metrics.writes.with_label_values(&["Deployment"]).inc();
        let text = metrics.text();
        for line in text.lines().filter(|line| line.starts_with("# HELP")) {
            let (name, help) = line["# HELP ".len()..].split_once(' ').expect("a name and a text");
            assert!(name.starts_with("operator_") && help.ends_with('.') || name.ends_with("_info"), "{line}");
        }
        assert!(text.contains("operator_leader 0"), "{text}");
        assert!(text.contains("operator_writes_total{kind=\"Deployment\"} 1"), "{text}");
    }

    #[test]
    fn a_fleet_that_is_gone_leaves_nothing() {
        let metrics = Metrics::new();
        for gateway in ["a", "b"] {
            metrics.drains.with_label_values(&["n", gateway, "ScaleIn"]).set(1);
            metrics.drains.with_label_values(&["n", gateway, "Upgrade"]).set(2);
            metrics.reconnect_budget.with_label_values(&["n", gateway]).set(100.0);
            metrics.connections_lost.with_label_values(&["n", gateway]).inc_by(5);
        }
        metrics.forget("n", "a");
        metrics.forget("n", "unknown");
        let text = metrics.text();
        assert!(!text.contains("gateway=\"a\""), "{text}");
        assert_eq!(text.matches("gateway=\"b\"").count(), 4, "{text}");
    }
}
