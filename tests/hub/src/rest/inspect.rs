//! What the hub saw, for people and tests: `/telemetry`, `/ledger`, `/connections`, `/counters`. Not part of IoT Hub, and
//! without authorization: the hub listens on loopback unless told otherwise.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fe2o3_amqp_types::messaging::annotations::OwnedKey;
use fe2o3_amqp_types::primitives::{SimpleValue, Symbol};
use hyper::Method;
use serde_amqp::Value as AmqpValue;
use serde_json::{Map, Value, json};

use super::reply::{self, Reply, invalid};
use super::{Call, unknown, wrong_method};
use crate::domain::{
    Cursor, DeviceCounts, Domain, HubError, Identity, LedgerEntry, Outcome, Query, Sequence, StoredEvent, id_text,
    iso8601,
};

/// Events read from one partition at a time.
const READ_MAX: usize = 100;
/// Ledger entries of one answer, unless `limit` says less.
const ENTRIES_MAX: usize = 100_000;

pub(super) fn route(call: &Call<'_>) -> Result<Reply, HubError> {
    let words: Vec<String> = call.segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match (&call.method, words.as_slice()) {
        (&Method::GET, ["telemetry"]) => telemetry(call),
        (&Method::GET, ["ledger"]) => ledger(call),
        (&Method::DELETE, ["ledger"]) => {
            call.domain.ledger.clear();
            Ok(reply::no_content())
        }
        (&Method::GET, ["ledger", "summary"]) => Ok(reply::ok(&json!(call.domain.ledger.summary()))),
        (&Method::GET, ["ledger", "devices"]) => Ok(devices(call)),
        (&Method::GET, ["connections"]) => Ok(connections(call.domain)),
        (&Method::GET, ["counters"]) => Ok(counters(call.domain)),
        (_, ["telemetry" | "ledger" | "connections" | "counters"] | ["ledger", "summary" | "devices"]) => {
            Err(wrong_method())
        }
        _ => Err(unknown()),
    }
}

/// `?device=`, `?from=latest` (default: what is kept), `?follow` to stay and get what comes. Newline-delimited JSON.
fn telemetry(call: &Call<'_>) -> Result<Reply, HubError> {
    let from = match call.query("from") {
        None | Some("earliest") => Cursor::Earliest,
        Some("latest") => Cursor::Latest,
        Some(_) => return Err(invalid("from must be earliest or latest")),
    };
    let log = &call.domain.telemetry;
    let follower = Follower {
        domain: call.domain.clone(),
        positions: (0..log.partitions()).map(|partition| log.position(partition, from).unwrap_or(0)).collect(),
        device: call.query("device").map(str::to_owned),
        follows: call.query("follow").is_some_and(|follow| follow != "false"),
        ready: VecDeque::new(),
    };
    let lines = futures_util::stream::unfold(follower, |mut follower| async {
        let line = follower.next().await?;
        Some((Ok::<_, std::convert::Infallible>(line), follower))
    });
    Ok(reply::with_type("application/x-ndjson", Body::from_stream(lines)))
}

struct Follower {
    domain: Arc<Domain>,
    /// Next sequence number by partition.
    positions: Vec<u64>,
    device: Option<String>,
    follows: bool,
    ready: VecDeque<Bytes>,
}

impl Follower {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            let domain = self.domain.clone();
            let appended = domain.telemetry.appended();
            if !self.read() {
                if !self.follows {
                    return None;
                }
                appended.await;
            }
        }
    }

    /// False if there was nothing new.
    fn read(&mut self) -> bool {
        let mut any = false;
        for (partition, position) in self.positions.iter_mut().enumerate() {
            for stored in self.domain.telemetry.read(partition as u16, *position, READ_MAX) {
                any = true;
                *position = stored.sequence_number + 1;
                if self.device.as_deref().is_none_or(|device| *stored.event.identity.device == *device) {
                    self.ready.push_back(format!("{}\n", event_json(&stored)).into());
                }
            }
        }
        any
    }
}

/// One event as JSON; the body as text if it is UTF-8, else in base64.
fn event_json(stored: &StoredEvent) -> Value {
    let event = &stored.event;
    let properties = &event.properties;
    let mut json = json!({
        "partition": stored.partition,
        "sequenceNumber": stored.sequence_number,
        "offset": stored.offset.to_string(),
        "enqueuedTimeUtc": iso8601(stored.enqueued_ms),
        "deviceId": &*event.identity.device,
        "moduleId": event.identity.module.as_deref(),
        "generationId": &*event.generation_id,
        "authMethod": &*event.auth_method,
        "source": event.source,
        "messageId": properties.message_id.as_ref().map(id_text),
        "correlationId": properties.correlation_id.as_ref().map(id_text),
        "userId": properties.user_id.as_ref().map(|id| String::from_utf8_lossy(id).into_owned()),
        "to": properties.to,
        "contentType": properties.content_type.as_ref().map(Symbol::as_str),
        "contentEncoding": properties.content_encoding.as_ref().map(Symbol::as_str),
        "properties": event.application_properties.iter().map(|(key, value)| (key.clone(), simple_json(value))).collect::<Map<_, _>>(),
        "annotations": event.annotations.iter().map(|(key, value)| (key_text(key), value_json(value))).collect::<Map<_, _>>(),
        "bodyBytes": stored.body_bytes,
    });
    match std::str::from_utf8(&event.body) {
        Ok(text) => json["body"] = json!(text),
        Err(_) => json["bodyBase64"] = json!(STANDARD.encode(&event.body)),
    }
    json
}

fn key_text(key: &OwnedKey) -> String {
    match key {
        OwnedKey::Symbol(symbol) => symbol.as_str().to_owned(),
        OwnedKey::Ulong(number) => number.to_string(),
    }
}

fn simple_json(value: &SimpleValue) -> Value {
    match value {
        SimpleValue::Null => Value::Null,
        SimpleValue::Bool(value) => json!(value),
        SimpleValue::String(text) => json!(text),
        SimpleValue::Symbol(symbol) => json!(symbol.as_str()),
        SimpleValue::Ubyte(number) => json!(number),
        SimpleValue::Ushort(number) => json!(number),
        SimpleValue::Uint(number) => json!(number),
        SimpleValue::Ulong(number) => json!(number),
        SimpleValue::Byte(number) => json!(number),
        SimpleValue::Short(number) => json!(number),
        SimpleValue::Int(number) => json!(number),
        SimpleValue::Long(number) => json!(number),
        other => json!(format!("{other:?}")),
    }
}

fn value_json(value: &AmqpValue) -> Value {
    match value {
        AmqpValue::Null => Value::Null,
        AmqpValue::Bool(value) => json!(value),
        AmqpValue::String(text) => json!(text),
        AmqpValue::Symbol(symbol) => json!(symbol.as_str()),
        AmqpValue::Uint(number) => json!(number),
        AmqpValue::Ulong(number) => json!(number),
        AmqpValue::Int(number) => json!(number),
        AmqpValue::Long(number) => json!(number),
        other => json!(format!("{other:?}")),
    }
}

/// `?device=`, `?messageId=`, `?kind=`, `?from=n`, `?limit=n`.
fn ledger(call: &Call<'_>) -> Result<Reply, HubError> {
    let number = |name: &str| {
        call.query(name).map(str::parse).transpose().map_err(|_| invalid(format!("{name} must be a number")))
    };
    let kind = call.query("kind").map(|kind| serde_json::from_value(json!(kind))).transpose();
    let limit = number("limit")?.map_or(ENTRIES_MAX, |limit: u64| limit as usize);
    let query = Query {
        device: call.query("device"),
        message_id: call.query("messageId"),
        kind: kind.map_err(|_| invalid("kind is not known"))?,
        from: number("from")?.unwrap_or(0),
        limit: limit.clamp(1, ENTRIES_MAX),
    };
    let ledger = &call.domain.ledger;
    let entries: Value = ledger.entries(&query).iter().map(entry_json).collect();
    Ok(reply::ok(&json!({"summary": ledger.summary(), "entries": entries})))
}

fn entry_json(entry: &LedgerEntry) -> Value {
    let (outcome, condition) = match &entry.outcome {
        None => (None, None),
        Some(Outcome::Accepted) => (Some("accepted"), None),
        Some(Outcome::Rejected(condition)) => (Some("rejected"), Some(&**condition)),
        Some(Outcome::Released) => (Some("released"), None),
        Some(Outcome::Modified) => (Some("modified"), None),
        Some(Outcome::Presettled) => (Some("presettled"), None),
    };
    json!({
        "n": entry.n,
        "at": iso8601(entry.at_ms),
        "deviceId": entry.device_id.as_deref(),
        "moduleId": entry.module_id.as_deref(),
        "kind": entry.kind,
        "messageId": entry.message_id.as_deref(),
        "connection": entry.connection,
        "link": &*entry.link,
        "deliveryId": entry.delivery_id,
        "bodyBytes": entry.body_bytes,
        "outcome": outcome,
        "condition": condition,
        "written": entry.written,
    })
}

/// Telemetry counts by identity, or of `?device=` (and `?module=`) alone.
fn devices(call: &Call<'_>) -> Reply {
    let ledger = &call.domain.ledger;
    let all = match (call.query("device"), call.query("module")) {
        (None, _) => ledger.all_counts(),
        (Some(device), module) => {
            let identity = module.map_or_else(|| Identity::device(device), |module| Identity::module(device, module));
            let counts = ledger.counts(&identity);
            vec![(identity, counts)]
        }
    };
    reply::ok(&all.iter().map(|(identity, counts)| counts_json(identity, counts)).collect())
}

fn counts_json(identity: &Identity, counts: &DeviceCounts) -> Value {
    let mut json = json!(counts);
    json["deviceId"] = json!(&*identity.device);
    json["moduleId"] = json!(identity.module.as_deref());
    json["duplicates"] = json!(counts.duplicates());
    json["outOfOrder"] = json!(counts.out_of_order());
    json["missing"] = json!(counts.missing());
    let sequence = |sequence: &Sequence| {
        json!({
            "prefix": sequence.prefix,
            "ranges": sequence.ranges,
            "duplicates": sequence.duplicates,
            "outOfOrder": sequence.out_of_order,
            "forgottenGaps": sequence.forgotten_gaps,
        })
    };
    json["sequences"] = counts.sequences.iter().map(sequence).collect();
    json
}

fn connections(domain: &Domain) -> Reply {
    let json = |(number, info): &(u64, crate::domain::ConnectionInfo)| {
        json!({
            "connection": number,
            "containerId": info.container_id,
            "hostname": info.hostname,
            "transport": info.transport,
        })
    };
    reply::ok(&domain.connections.list().iter().map(json).collect())
}

/// How often a bound was reached, and sums.
fn counters(domain: &Domain) -> Reply {
    reply::ok(&json!({
        "telemetry": domain.telemetry.total(),
        "telemetryEvicted": domain.telemetry.evicted(),
        "ledgerForgotten": domain.ledger.summary().forgotten,
        "twinNotificationsDropped": domain.twins.dropped(),
        "feedbackBatchesDropped": domain.feedback.dropped(),
        "connectionsRefused": domain.connections.refused(),
        "ordersDropped": domain.connections.orders_dropped(),
    }))
}
