//! All cores' [`Metrics`] and those of the process as Prometheus text. Reads only; called by the admin port.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
};

use gateway_core::drain::State;
use prometheus::{
    Encoder, TextEncoder,
    proto::{Bucket, LabelPair, Metric, MetricFamily, MetricType},
};

use super::{BUCKETS_US, Counter, Gauge, Histogram, Label, Labelled, Messages, Metrics, OrderResult, listen_queue};

/// The metrics of every core, and what the process itself counts.
#[derive(Debug)]
pub struct Registry {
    /// One per core.
    pub cores: Vec<Arc<Metrics>>,
    /// What belongs to no core.
    pub process: Process,
}

/// What belongs to no core. Written rarely, never on the message path.
#[derive(Debug, Default)]
pub struct Process {
    secrets: Mutex<BTreeMap<String, SecretState>>,
    /// Files that were taken, and files that were refused.
    config_reloads: [AtomicU64; 2],
    /// Wants no new connections: `gateway_draining`.
    pub draining: AtomicBool,
    drain_state: AtomicU8,
    drain_remaining: AtomicU64,
    /// Orders to drain, by result. Written by the housekeeping thread alone.
    pub drain_orders: Labelled<OrderResult, Counter>,
}

#[derive(Debug, Default, Clone, Copy)]
struct SecretState {
    loaded: u64,
    failed: u64,
    not_after: Option<i64>,
}

impl Process {
    /// How the drain stands, if there is one, and how many connections it has still to let go.
    pub fn note_drain(&self, state: Option<State>, remaining: u64) {
        self.drain_state.store(Self::state_code(state), Relaxed);
        self.drain_remaining.store(remaining, Relaxed);
    }

    fn state_code(state: Option<State>) -> u8 {
        match state {
            None => 0,
            Some(State::Draining) => 1,
            Some(State::Paused) => 2,
            Some(State::Done) => 3,
        }
    }

    /// A secret was read; `not_after` in Unix seconds if it holds a certificate.
    pub fn secret_loaded(&self, name: &str, not_after: Option<i64>) {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        let state = secrets.entry(name.to_owned()).or_default();
        state.loaded += 1;
        state.not_after = not_after;
    }

    /// A secret could not be read or used; the last good one stays in force.
    pub fn secret_failed(&self, name: &str) {
        let mut secrets = self.secrets.lock().unwrap_or_else(PoisonError::into_inner);
        secrets.entry(name.to_owned()).or_default().failed += 1;
    }
}

impl Process {
    /// Forgets every secret but these: nobody names the others any more.
    pub fn keep_secrets(&self, names: &BTreeSet<String>) {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
    }

    /// The configuration file changed; whether it could be used.
    pub fn config_reloaded(&self, used: bool) {
        self.config_reloads[usize::from(!used)].fetch_add(1, Relaxed);
    }
}

impl Registry {
    /// For `cores` cores.
    pub fn new(cores: usize) -> Self {
        Self { cores: (0..cores).map(|_| Arc::default()).collect(), process: Process::default() }
    }

    /// The sum of one counter over all cores.
    pub fn total(&self, of: impl Fn(&Metrics) -> u64) -> u64 {
        self.cores.iter().map(|core| of(core)).sum()
    }

    /// The sum of one labelled counter over all cores and labels.
    pub fn total_of<L: Label>(&self, of: impl Fn(&Metrics) -> &Labelled<L, Counter>) -> u64 {
        self.total(|core| of(core).iter().map(|(_, cell)| cell.get()).sum())
    }

    /// The sum of one labelled counter over all cores, by label; labels that stand at 0 are left out.
    pub fn by_label<L: Label>(&self, of: impl Fn(&Metrics) -> &Labelled<L, Counter>) -> Vec<(&'static str, u64)> {
        let mut sums = BTreeMap::new();
        for core in &self.cores {
            for (text, cell) in of(core).iter() {
                *sums.entry(text).or_insert(0) += cell.get();
            }
        }
        sums.into_iter().filter(|(_, sum)| *sum > 0).collect()
    }

    /// Connections whose CONNECT was accepted and that are still there.
    pub fn connections(&self) -> i64 {
        self.cores.iter().map(|core| core.connections.get()).sum()
    }

    /// Prometheus text format 0.0.4.
    pub fn text(&self) -> String {
        let mut families = Vec::with_capacity(32);
        self.devices(&mut families);
        self.messages(&mut families);
        self.upstream(&mut families);
        self.process_families(&mut families);
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&families, &mut text).expect("families have a name and at least one metric");
        String::from_utf8(text).expect("names and labels are UTF-8")
    }

    fn devices(&self, out: &mut Vec<MetricFamily>) {
        out.push(self.gauge("gateway_connections", "Devices connected (CONNECT accepted).", |core| &core.connections));
        out.push(self.gauge(
            "gateway_handshakes",
            "Connections before their CONNECT was decided (TLS, WebSocket, waiting for CONNECT).",
            |core| &core.handshakes,
        ));
        out.push(self.gauge(
            "gateway_distrusted_connections",
            "Devices connected by a certificate of a CA that is not trusted any more.",
            |core| &core.distrusted,
        ));
        out.push(self.counters(
            "gateway_connects_total",
            "Connections by result of their CONNECT.",
            "result",
            |core| &core.connects,
        ));
        out.push(self.counters(
            "gateway_refused_total",
            "Connections that ended before an accepted CONNECT, by reason.",
            "reason",
            |core| &core.refused,
        ));
        out.push(self.counters(
            "gateway_disconnects_total",
            "Connections that ended after an accepted CONNECT, by cause.",
            "cause",
            |core| &core.disconnects,
        ));
        out.push(self.counters(
            "gateway_limit_reached_total",
            "How often a bound of the settings was reached and something waited or was turned away.",
            "limit",
            |core| &core.limits,
        ));
        let errors = self.total(|core| core.accept_errors.get());
        out.push(family(
            "gateway_accept_errors_total",
            "Errors of accept, a full table of files excepted.",
            MetricType::COUNTER,
            vec![counter(&[], errors)],
        ));
        if let Some(overflows) = listen_queue::overflows() {
            let help = "Connections turned away because a listen queue was full, in this network namespace.";
            out.push(family(
                "gateway_listen_overflows_total",
                help,
                MetricType::COUNTER,
                vec![counter(&[], overflows)],
            ));
        }
    }

    fn messages(&self, out: &mut Vec<MetricFamily>) {
        type OfDirection = fn(&Metrics) -> &Messages;
        let (up, down): (OfDirection, OfDirection) = (|core| &core.up, |core| &core.down);
        let directions = [("up", &Messages::UP, up), ("down", &Messages::DOWN, down)];
        let mut counts = Vec::new();
        let (mut bytes, mut inflight, mut settle) = (Vec::new(), Vec::new(), Vec::new());
        for (direction, outcomes, of) in directions {
            let label = [("direction", direction)];
            for (qos, qos_text) in ["0", "1"].into_iter().enumerate() {
                for (column, outcome) in outcomes.iter().enumerate() {
                    let labels = [label[0], ("qos", qos_text), ("outcome", outcome)];
                    counts.push(counter(&labels, self.total(|core| of(core).get(qos, column))));
                }
            }
            bytes.push(counter(&label, self.total(|core| of(core).bytes.get())));
            inflight.push(gauge(&label, self.cores.iter().map(|core| of(core).inflight.get()).sum::<i64>() as f64));
            settle.push(histogram(&label, self.cores.iter().map(|core| &of(core).settle)));
        }
        let help = "Messages by direction (up: device to hub; Wills, too), quality of service and outcome.";
        out.push(family("gateway_messages_total", help, MetricType::COUNTER, counts));
        out.push(family("gateway_message_bytes_total", "Payload bytes of messages.", MetricType::COUNTER, bytes));
        out.push(family("gateway_inflight", "Messages handed over and not settled.", MetricType::GAUGE, inflight));
        let help = "Seconds from handing a message over to its settlement.";
        out.push(family("gateway_settle_seconds", help, MetricType::HISTOGRAM, settle));
    }

    fn upstream(&self, out: &mut Vec<MetricFamily>) {
        out.push(self.gauges("gateway_upstream_connections", "AMQP connections by state.", "state", |core| {
            &core.upstream_connections
        }));
        out.push(self.gauge("gateway_upstream_links", "Links on AMQP connections.", |core| &core.upstream_links));
        out.push(self.gauge("gateway_upstream_credit", "Unused credit given by the hub, in messages.", |core| {
            &core.upstream_credit
        }));
        out.push(self.counters(
            "gateway_upstream_failures_total",
            "Failures on the hub's side by kind.",
            "kind",
            |core| &core.upstream_failures,
        ));
        out.push(self.counters("gateway_upstream_tokens_total", "Put-token requests by result.", "result", |core| {
            &core.upstream_tokens
        }));
        out.push(family(
            "gateway_upstream_resent_total",
            "Messages transferred again after their AMQP connection or link was lost.",
            MetricType::COUNTER,
            vec![counter(&[], self.total(|core| core.upstream_resent.get()))],
        ));
        out.push(family(
            "gateway_upstream_dropped_total",
            "Messages dropped without an outcome, of devices that are gone; of QoS 1 their devices send them again.",
            MetricType::COUNTER,
            vec![counter(&[], self.total(|core| core.upstream_dropped.get()))],
        ));
    }

    fn process_families(&self, out: &mut Vec<MetricFamily>) {
        let secrets = self.process.secrets.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut not_after = Vec::new();
        let mut loads = Vec::new();
        for (name, state) in &secrets {
            if let Some(seconds) = state.not_after {
                not_after.push(gauge(&[("secret", name)], seconds as f64));
            }
            loads.push(counter(&[("secret", name), ("result", "loaded")], state.loaded));
            loads.push(counter(&[("secret", name), ("result", "failed")], state.failed));
        }
        if !not_after.is_empty() {
            let help = "End of the served certificate's life, in Unix seconds.";
            out.push(family("gateway_tls_not_after_seconds", help, MetricType::GAUGE, not_after));
        }
        if !loads.is_empty() {
            let help = "Secrets read, or refused while the last good one stays in force.";
            out.push(family("gateway_secret_loads_total", help, MetricType::COUNTER, loads));
        }
        let reloads = ["loaded", "failed"].into_iter().zip(&self.process.config_reloads);
        let reloads = reloads.map(|(result, count)| counter(&[("result", result)], count.load(Relaxed)));
        let help = "Changes of the configuration file that came into force, or were refused.";
        out.push(family("gateway_config_reloads_total", help, MetricType::COUNTER, reloads.collect()));
        self.drain(out);
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        out.push(family(
            "gateway_build_info",
            "Version of this program.",
            MetricType::GAUGE,
            vec![gauge(&version, 1.0)],
        ));
    }

    fn drain(&self, out: &mut Vec<MetricFamily>) {
        let process = &self.process;
        let draining = f64::from(u8::from(process.draining.load(Relaxed)));
        let help = "1 while this process wants no new connections: it stops or was ordered to be left.";
        out.push(family("gateway_draining", help, MetricType::GAUGE, vec![gauge(&[], draining)]));
        let state = process.drain_state.load(Relaxed);
        let states = State::ALL.iter().map(|(value, text)| {
            gauge(&[("state", text)], f64::from(u8::from(state == Process::state_code(Some(*value)))))
        });
        out.push(family(
            "gateway_drain",
            "1 for the state of the drain, if there is one.",
            MetricType::GAUGE,
            states.collect(),
        ));
        let remaining = process.drain_remaining.load(Relaxed) as f64;
        let help = "Connections that the drain has still to let go.";
        out.push(family("gateway_drain_remaining", help, MetricType::GAUGE, vec![gauge(&[], remaining)]));
        out.push(self.counters("gateway_let_go_total", "Devices let go, by cause.", "cause", |core| &core.let_go));
        let orders = process.drain_orders.iter().map(|(text, cell)| counter(&[("result", text)], cell.get())).collect();
        out.push(family(
            "gateway_drain_orders_total",
            "Orders to drain and to end a drain, by result.",
            MetricType::COUNTER,
            orders,
        ));
    }

    fn gauge(&self, name: &str, help: &str, of: impl Fn(&Metrics) -> &Gauge) -> MetricFamily {
        let sum: i64 = self.cores.iter().map(|core| of(core).get()).sum();
        family(name, help, MetricType::GAUGE, vec![gauge(&[], sum as f64)])
    }

    fn gauges<L: Label>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        of: impl Fn(&Metrics) -> &Labelled<L, Gauge>,
    ) -> MetricFamily {
        let metrics = L::ALL.iter().map(|(value, text)| {
            let sum: i64 = self.cores.iter().map(|core| of(core).at(*value).get()).sum();
            gauge(&[(label, text)], sum as f64)
        });
        family(name, help, MetricType::GAUGE, metrics.collect())
    }

    fn counters<L: Label>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        of: impl Fn(&Metrics) -> &Labelled<L, Counter>,
    ) -> MetricFamily {
        let metrics =
            L::ALL.iter().map(|(value, text)| counter(&[(label, text)], self.total(|core| of(core).at(*value).get())));
        family(name, help, MetricType::COUNTER, metrics.collect())
    }
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut metric = labelled(labels);
    let mut counter = prometheus::proto::Counter::default();
    counter.set_value(value as f64);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: &[(&str, &str)], value: f64) -> Metric {
    let mut metric = labelled(labels);
    let mut gauge = prometheus::proto::Gauge::default();
    gauge.set_value(value);
    metric.set_gauge(gauge);
    metric
}

fn histogram<'a>(labels: &[(&str, &str)], of: impl Iterator<Item = &'a Histogram>) -> Metric {
    let (mut counts, mut sum_us) = ([0; BUCKETS_US.len() + 1], 0);
    for histogram in of {
        sum_us += histogram.sum_us();
        counts.iter_mut().zip(histogram.counts()).for_each(|(sum, count)| *sum += count);
    }
    let mut below = 0;
    let buckets = BUCKETS_US.iter().zip(&counts).map(|(bound_us, count)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound_us as f64 / 1e6);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut value = prometheus::proto::Histogram::default();
    value.set_bucket(buckets.collect());
    value.set_sample_count(counts.iter().sum());
    value.set_sample_sum(sum_us as f64 / 1e6);
    let mut metric = labelled(labels);
    metric.set_histogram(value);
    metric
}

#[cfg(test)]
mod tests {
    use gateway_core::message::{Outcome, QoS};

    use super::*;
    use crate::metrics::{ConnectResult, UpstreamState};

    #[test]
    fn a_scrape_adds_up_all_cores() {
        let registry = Registry::new(2);
        for core in &registry.cores {
            core.connections.add(3);
            core.connects.at(ConnectResult::Accepted).add(4);
            core.up.up(QoS::AtLeastOnce, &Outcome::Accepted).add(5);
            core.up.settle.observe_us(700);
            core.upstream_connections.at(UpstreamState::Open).add(1);
        }
        registry.process.secret_loaded("tls", Some(1_900_000_000));
        let text = registry.text();
        for line in [
            "gateway_connections 6",
            "gateway_connects_total{result=\"accepted\"} 8",
            "gateway_messages_total{direction=\"up\",qos=\"1\",outcome=\"accepted\"} 10",
            "gateway_settle_seconds_bucket{direction=\"up\",le=\"0.001\"} 2",
            "gateway_settle_seconds_count{direction=\"up\"} 2",
            "gateway_upstream_connections{state=\"open\"} 2",
            "gateway_tls_not_after_seconds{secret=\"tls\"} 1900000000",
            "# TYPE gateway_settle_seconds histogram",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is not in\n{text}");
        }
    }
}
