//! The admin port: health, readiness, load, metrics, who is connected. Plain HTTP on loopback; mutual TLS elsewhere.
//! Beside it, if it is asked for, a port that tells health and readiness to everybody.
//!
//! Lives on the housekeeping thread; it asks the cores and never touches what is theirs.

mod accept;
mod drain;
mod load;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use gateway_core::settings::Protocol;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::error;

use crate::{
    core::{ConnectionInfo, ConnectionsQuery, Order},
    server::{Shared, protocol_name},
};

/// How long a core may take to answer before it counts as stuck.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections on one page, if the question does not say, and at most.
const PAGE: (usize, usize) = (100, 1000);

/// Serves until its runtime ends.
pub async fn serve(shared: Arc<Shared>, listener: std::net::TcpListener, tls: Option<Arc<ArcSwap<ServerConfig>>>) {
    let listener = match accept::AdminListener::new(listener, tls) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "admin port cannot be served"),
    };
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/load", get(load::load))
        .route("/metrics", get(metrics))
        .route("/connections", get(connections))
        .route("/drain", post(drain::drain))
        .route("/undrain", post(drain::undrain))
        .with_state(shared);
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "admin port ended");
    }
}

/// Serves health and readiness, without TLS, until its runtime ends: for those who have no certificate to ask with.
pub async fn serve_health(shared: Arc<Shared>, listener: std::net::TcpListener) {
    let listener = match accept::AdminListener::new(listener, None) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "health port cannot be served"),
    };
    let router = Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(shared);
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "health port ended");
    }
}

/// 200 if every core answers in time.
async fn healthz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    let nothing = ConnectionsQuery { limit: 0, device: Some(String::new()), ..ConnectionsQuery::default() };
    for (index, answer) in ask_all(&shared, &nothing).await.into_iter().enumerate() {
        if answer.is_none() {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("core {index} does not answer\n"));
        }
    }
    (StatusCode::OK, "ok\n".to_owned())
}

/// 200 while new connections are taken. Whether the hub is there is no question: an outage would take all gateways out of their
/// load balancer at once, and devices that could wait for the hub connected to nothing.
async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    if shared.registry.process.draining.load(Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], shared.registry.text())
}

/// `GET /connections?device=&protocol=&limit=&after=`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConnectionsParameters {
    /// A device (`d`, `d/m`), or a prefix with `*` behind it.
    device: Option<String>,
    /// `MQTT`, `MQTTWebSocket` or `MQTTPlain`.
    protocol: Option<String>,
    /// 1 to 1000.
    limit: Option<usize>,
    /// `next` of the page before.
    after: Option<String>,
}

#[derive(Debug, Serialize)]
struct ConnectionsPage {
    connections: Vec<ConnectionEntry>,
    /// For `after`, if there are more.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionEntry {
    device: String,
    since: String,
    protocol: &'static str,
    address: String,
    in_flight: InFlightEntry,
}

#[derive(Debug, Serialize)]
struct InFlightEntry {
    telemetry: usize,
    commands: usize,
}

type Refusal = (StatusCode, String);

async fn connections(
    State(shared): State<Arc<Shared>>,
    Query(parameters): Query<ConnectionsParameters>,
) -> Result<Json<ConnectionsPage>, Refusal> {
    let mut query = parameters.check()?;
    let limit = query.limit;
    // one more than asked for tells whether there is a next page
    query.limit += 1;
    let mut found = Vec::new();
    for answer in ask_all(&shared, &query).await {
        let stuck = || (StatusCode::SERVICE_UNAVAILABLE, "a core does not answer\n".to_owned());
        found.extend(answer.ok_or_else(stuck)?);
    }
    found.sort_unstable_by(|a, b| a.device.cmp(&b.device));
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| last.device.to_string());
    Ok(Json(ConnectionsPage { connections: found.iter().map(entry).collect(), next }))
}

impl ConnectionsParameters {
    fn check(self) -> Result<ConnectionsQuery, Refusal> {
        let protocol = match self.protocol.as_deref() {
            None => None,
            Some(name) => Some(protocol_of(name).ok_or_else(|| {
                let text = format!("protocol `{name}`: expected MQTT, MQTTWebSocket or MQTTPlain\n");
                (StatusCode::BAD_REQUEST, text)
            })?),
        };
        let limit = self.limit.unwrap_or(PAGE.0);
        if !(1..=PAGE.1).contains(&limit) {
            return Err((StatusCode::BAD_REQUEST, format!("limit {limit}: expected 1 to {}\n", PAGE.1)));
        }
        Ok(ConnectionsQuery { device: self.device, protocol, after: self.after, limit })
    }
}

fn protocol_of(name: &str) -> Option<Protocol> {
    let all = [Protocol::Mqtt, Protocol::MqttWebSocket, Protocol::MqttPlain];
    all.into_iter().find(|protocol| protocol_name(*protocol) == name)
}

fn entry(info: &ConnectionInfo) -> ConnectionEntry {
    let since = jiff::Timestamp::from_second(info.since.0.cast_signed()).unwrap_or_default();
    ConnectionEntry {
        device: info.device.to_string(),
        since: since.to_string(),
        protocol: protocol_name(info.protocol),
        address: info.address.to_string(),
        in_flight: InFlightEntry { telemetry: info.in_flight.telemetry, commands: info.in_flight.commands },
    }
}

/// Every core's answer; `None` for one that does not answer in time.
async fn ask_all(shared: &Shared, query: &ConnectionsQuery) -> Vec<Option<Vec<ConnectionInfo>>> {
    let mut answers = Vec::with_capacity(shared.cores.len());
    for core in &shared.cores {
        let (answer, receiver) = oneshot::channel();
        let asked = core.try_send(Order::Connections(query.clone(), answer)).is_ok();
        answers.push(asked.then_some(receiver));
    }
    let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
    let mut known = Vec::with_capacity(answers.len());
    for answer in answers {
        known.push(match answer {
            Some(answer) => tokio::time::timeout_at(deadline, answer).await.ok().and_then(Result::ok),
            None => None,
        });
    }
    known
}
