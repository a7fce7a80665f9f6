//! `POST /drain` and `POST /undrain`: orders from whoever looks after the fleet.

use std::sync::Arc;

use axum::{Json, body::Bytes, extract::State, http::StatusCode};
use gateway_core::drain::{self, Cause, Order, Refused, Report};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Refusal, load::Load};
use crate::{metrics::OrderResult, server::Shared};

/// The body of `POST /drain`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DrainOrder {
    cause: Cause,
    epoch: i64,
    per_second: f64,
    lease_seconds: f64,
    down_to: u64,
    leave: bool,
}

/// The body of `POST /undrain`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UndrainOrder {
    epoch: i64,
}

/// The drain, as `/load` tells it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DrainEntry {
    cause: Cause,
    epoch: i64,
    state: &'static str,
    per_second: f64,
    down_to: u64,
    remaining: u64,
    let_go: u64,
}

/// Lets devices go, as [`Order`] says.
pub(super) async fn drain(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<Load>, Refusal> {
    let taken = read::<DrainOrder>(&body).and_then(|given| {
        let lease = Order::lease(given.lease_seconds).map_err(|nonsense| Refused::Nonsense(nonsense).to_string());
        let DrainOrder { cause, epoch, per_second, down_to, leave, .. } = given;
        lease.map(|lease| Order { cause, epoch, per_second, lease, down_to, leave })
    });
    answer(&shared, taken.map(|order| shared.drains.order(&shared, order)))
}

/// Ends the order in force.
pub(super) async fn undrain(State(shared): State<Arc<Shared>>, body: Bytes) -> Result<Json<Load>, Refusal> {
    answer(&shared, read::<UndrainOrder>(&body).map(|given| shared.drains.undrain(&shared, given.epoch)))
}

/// The drain as it stands.
pub(super) fn entry(shared: &Shared) -> Option<DrainEntry> {
    shared.drains.report(shared).map(|report| {
        let Report { cause, epoch, state, per_second, down_to, remaining, let_go } = report;
        let state = match state {
            drain::State::Draining => "Draining",
            drain::State::Paused => "Paused",
            drain::State::Done => "Done",
        };
        // whoever looks after the fleet knows no cause that it could not have ordered
        let cause = if cause == Cause::Termination { Cause::Eviction } else { cause };
        DrainEntry { cause, epoch, state, per_second, down_to, remaining, let_go }
    })
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn answer(shared: &Shared, taken: Result<Result<(), Refused>, String>) -> Result<Json<Load>, Refusal> {
    let (result, refusal) = match taken {
        Ok(Ok(())) => (OrderResult::Taken, None),
        Ok(Err(refused @ Refused::Epoch { .. })) => {
            (OrderResult::Epoch, Some((StatusCode::CONFLICT, format!("{refused}\n"))))
        }
        Ok(Err(refused)) => (OrderResult::Nonsense, Some((StatusCode::BAD_REQUEST, format!("{refused}\n")))),
        Err(text) => (OrderResult::Nonsense, Some((StatusCode::BAD_REQUEST, format!("{text}\n")))),
    };
    shared.registry.process.drain_orders.at(result).inc();
    refusal.map_or_else(|| Ok(Json(Load::of(shared))), Err)
}
