//! Twin links (contract §3.7): requests on one, responses and notifications on the other of the pair.

use std::sync::Arc;

use bytes::Bytes;
use fe2o3_amqp_types::messaging::annotations::OwnedKey;
use fe2o3_amqp_types::messaging::{Annotations, DeliveryState, MessageAnnotations, MessageId};
use serde_amqp::Value;
use serde_amqp::primitives::Symbol;

use super::attach::steal;
use super::cbs::correlated;
use super::connection::{Connection, Now};
use super::incoming::Verdict;
use super::judge::Seen;
use super::kind::PairKey;
use super::link::{Delivery, LinkId, Lock};
use super::message::{Message, Outgoing};
use super::telemetry::struck;
use crate::domain::{Action, ErrorCode, HubError, Identity, Kind as Matter, Listener, Notification, Point};

const REPORTED: &str = "/properties/reported";
const DESIRED: &str = "/properties/desired";
const DESIRED_NOTIFICATIONS: &str = "/notifications/twin/properties/desired";

/// What a request comes to.
struct Answer {
    status: u16,
    version: Option<u64>,
    body: String,
}

impl Connection {
    pub(super) fn judge_twin_request(
        &mut self,
        id: LinkId,
        pair: &Arc<PairKey>,
        seen: &Seen,
        message: &Message,
        now: Now,
    ) -> Verdict {
        let entry = self.record(id, (Matter::TwinRequest, Some(&pair.identity)), seen, message, now);
        let action = self.domain.faults.decide(Point::Twin, Some(&pair.identity));
        let throttled = matches!(action, Some(Action::Throttle { .. }));
        let mut verdict = struck(action, now);
        let delay_ms = std::mem::take(&mut verdict.delay_ms);
        let is_served = verdict.state.as_ref().is_some_and(DeliveryState::is_accepted);
        // the answer goes to the other half; without it nobody hears of it
        let answers = self.pairs.get(pair).to_peer;
        let answer = if is_served {
            self.serve_twin_request(&pair.identity, answers, message, now)
        } else {
            refused(&HubError::new(ErrorCode::ThrottlingException, "too many requests"), now)
        };
        if throttled {
            // twins are throttled by their status; the link stays
            verdict = Verdict::accepted();
        }
        if let (Some(answers), true) = (answers, is_served || throttled) {
            self.answer_twin(answers, message, &answer, delay_ms, now);
        }
        self.conclude(entry, seen, &mut verdict);
        verdict
    }

    fn serve_twin_request(&self, identity: &Identity, answers: Option<LinkId>, message: &Message, now: Now) -> Answer {
        let operation = message.annotation("operation").unwrap_or_default();
        let resource = message.annotation("resource").unwrap_or_default();
        let listener = answers.map(|id| Listener::new(&self.mailbox, id.key()));
        let twins = &self.domain.twins;
        let served = match (operation, resource, listener) {
            ("GET", "", _) => twins.device_json(identity).map(|body| Answer { status: 200, version: None, body }),
            ("PATCH", REPORTED, _) => twins
                .patch_reported(identity, &message.body_bytes(), version_of(message), now.unix_ms)
                .map(|version| Answer { status: 204, version: Some(version), body: String::new() }),
            ("PUT", DESIRED_NOTIFICATIONS, Some(listener)) => twins.subscribe(identity, listener).map(|previous| {
                steal(previous);
                empty(200)
            }),
            ("DELETE", DESIRED_NOTIFICATIONS, Some(listener)) => {
                twins.unsubscribe(identity, &listener);
                Ok(empty(204))
            }
            _ => Err(HubError::new(ErrorCode::ArgumentInvalid, format!("no twin operation {operation} {resource}"))),
        };
        served.unwrap_or_else(|refusal| refused(&refusal, now))
    }

    fn answer_twin(&mut self, answers: LinkId, request: &Message, answer: &Answer, delay_ms: u64, now: Now) {
        let mut annotations = Annotations::new();
        annotations.insert(key("status"), Value::Int(i32::from(answer.status)));
        if let Some(version) = answer.version {
            annotations.insert(key("version"), Value::Long(i64::try_from(version).unwrap_or(i64::MAX)));
        }
        let outgoing = Outgoing {
            annotations: Some(MessageAnnotations(annotations)),
            properties: Some(correlated(correlation_id(request))),
            data: Some(Bytes::copy_from_slice(answer.body.as_bytes())),
            ..Outgoing::default()
        };
        self.answer_later(answers, &outgoing, delay_ms, now);
    }

    /// Takes the notifications that wait for this link; the first is returned, the others follow it.
    pub(super) fn next_notification(&mut self, id: LinkId, pair: &PairKey) -> Option<Delivery> {
        let listener = Listener::new(&self.mailbox, id.key());
        let waiting = self.domain.twins.take_notifications(&pair.identity, &listener);
        let deliveries = waiting.iter().map(|notification| self.notification(notification)).collect();
        self.first_of(id, deliveries)
    }

    fn notification(&mut self, notification: &Notification) -> Delivery {
        let mut annotations = Annotations::new();
        annotations.insert(key("resource"), Value::String(DESIRED.to_owned()));
        annotations.insert(key("version"), Value::Long(i64::try_from(notification.version).unwrap_or(i64::MAX)));
        let outgoing = Outgoing {
            annotations: Some(MessageAnnotations(annotations)),
            data: Some(Bytes::copy_from_slice(notification.body.as_bytes())),
            ..Outgoing::default()
        };
        Delivery::new(self.next_tag().to_be_bytes().to_vec(), &outgoing, Lock::None)
    }
}

fn refused(refusal: &HubError, now: Now) -> Answer {
    Answer { status: refusal.code.http_status(), version: None, body: refusal.description_json(now.unix_ms) }
}

fn empty(status: u16) -> Answer {
    Answer { status, version: None, body: String::new() }
}

fn correlation_id(message: &Message) -> Option<MessageId> {
    message.properties.as_ref()?.correlation_id.clone()
}

/// The version that a PATCH builds on, whatever integer type the client uses; null or absent: none.
fn version_of(message: &Message) -> Option<u64> {
    match message.annotations.as_ref()?.0.get(&key("version"))? {
        Value::Long(version) => u64::try_from(*version).ok(),
        Value::Int(version) => u64::try_from(*version).ok(),
        Value::Ulong(version) => Some(*version),
        Value::Uint(version) => Some(u64::from(*version)),
        _ => None,
    }
}

/// An annotation's key.
pub(super) fn key(name: &str) -> OwnedKey {
    OwnedKey::Symbol(Symbol::from(name))
}
