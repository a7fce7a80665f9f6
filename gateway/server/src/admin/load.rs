//! `GET /load`: how much there is to do, and how the gateway stands to its configuration, its secrets and its upstream.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use axum::{Json, extract::State};
use serde::Serialize;

use super::drain::DrainEntry;
use crate::{
    metrics::{ConnectResult, Messages, UpstreamState},
    server::Shared,
};

/// A hub that throttled so recently counts as throttling.
const THROTTLED_MS: i64 = 60_000;

/// The answer. Counters are since the start of the process.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Load {
    /// Devices connected.
    connections: u64,
    /// Connections whose CONNECT is not decided.
    handshaking: u64,
    /// CONNECTs accepted.
    connects_total: u64,
    /// Messages that the hub or a device accepted.
    messages_total: u64,
    /// Devices disconnected because this gateway drains.
    let_go_total: u64,
    /// Devices connected by a certificate of a CA that is not trusted any more.
    distrusted: u64,
    /// New connections are taken.
    ready: bool,
    upstream: UpstreamLoad,
    config: ConfigLoad,
    /// What is wrong with secrets that are not in force.
    secrets_problem: Option<String>,
    /// The drain under way.
    drain: Option<DrainEntry>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UpstreamLoad {
    /// An AMQP connection is open. One that is neither open nor failing is not wanted, or is tried for the first time: nothing
    /// is known of the hub.
    connected: bool,
    /// Why no AMQP connection is open although devices want one.
    failing: Option<String>,
    /// The hub asked for less within the last minute.
    throttled: bool,
    /// Devices that go per second now, or after `drainAloneAfter`, because the hub did nothing for them for `outageMax`; absent
    /// while none do.
    #[serde(skip_serializing_if = "Option::is_none")]
    let_go_per_second: Option<f64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConfigLoad {
    in_force: String,
    problem: Option<String>,
    needs_restart: Vec<&'static str>,
}

pub(super) async fn load(State(shared): State<Arc<Shared>>) -> Json<Load> {
    Json(Load::of(&shared))
}

impl Load {
    pub(super) fn of(shared: &Shared) -> Self {
        let registry = &shared.registry;
        let accepted = |of: &Messages| of.get(0, 0) + of.get(1, 0);
        let gauge = |of: fn(&crate::metrics::Metrics) -> i64| {
            u64::try_from(registry.cores.iter().map(|core| of(core)).sum::<i64>()).unwrap_or(0)
        };
        let standing = shared.standing.load();
        Self {
            connections: gauge(|core| core.connections.get()),
            handshaking: gauge(|core| core.handshakes.get()),
            connects_total: registry.total(|core| core.connects.at(ConnectResult::Accepted).get()),
            messages_total: registry.total(|core| accepted(&core.up) + accepted(&core.down)),
            let_go_total: registry.total_of(|core| &core.let_go),
            distrusted: gauge(|core| core.distrusted.get()),
            ready: !registry.process.draining.load(Relaxed),
            upstream: UpstreamLoad::of(shared),
            config: ConfigLoad {
                in_force: standing.in_force.clone(),
                problem: standing.problem.clone(),
                needs_restart: standing.needs_restart.clone(),
            },
            secrets_problem: standing.secrets_problem(),
            drain: super::drain::entry(shared),
        }
    }
}

impl UpstreamLoad {
    fn of(shared: &Shared) -> Self {
        let cores = &shared.registry.cores;
        let count = |state| cores.iter().map(|core| core.upstream_connections.at(state).get()).sum::<i64>();
        let away = count(UpstreamState::Connecting) + count(UpstreamState::Waiting);
        let connected = count(UpstreamState::Open) > 0;
        let is_failing = away > 0 && !connected;
        let problem = || cores.iter().find_map(|core| core.upstream_problem.get());
        let now_ms = i64::try_from(shared.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        let throttled = cores.iter().map(|core| core.upstream_throttled_ms.get()).max().unwrap_or(0);
        Self {
            connected,
            failing: is_failing.then(problem).flatten(),
            throttled: throttled > 0 && now_ms - throttled < THROTTLED_MS,
            let_go_per_second: shared
                .outage_pace
                .is_waited_for()
                .then(|| shared.settings.load().limits.drain_per_second.0),
        }
    }
}
