//! Device-to-cloud messages, single and in batches: stored first, accepted then.

use std::sync::Arc;

use bytes::Bytes;
use fe2o3_amqp_types::messaging::DeliveryState;

use super::connection::{Connection, Now};
use super::error::{self, DECODE_ERROR, INVALID_FIELD};
use super::incoming::Verdict;
use super::judge::{Seen, modified, released};
use super::kind::Kind;
use super::link::{LinkId, Received};
use super::message::{Body, Message};
use crate::domain::{Action, ErrorCode, Event, HubError, Identity, Kind as Matter, Point};

/// A transfer whose data sections are whole messages (contract §3.5).
const BATCH_FORMAT: u32 = 0x8001_3700;

impl Connection {
    pub(super) fn judge_telemetry(&mut self, id: LinkId, identity: &Identity, delivery: Received, now: Now) -> Verdict {
        let seen = Seen { delivery_id: delivery.delivery_id, is_settled: delivery.is_settled };
        let messages = match messages_of(delivery, self.settings.content_bytes_max, now) {
            Ok(messages) => messages,
            Err(state) => {
                let mut verdict = Verdict::from(state);
                let entry = self.record(id, (Matter::Telemetry, Some(identity)), &seen, &Message::default(), now);
                self.conclude(entry, &seen, &mut verdict);
                return verdict;
            }
        };
        let action = self.domain.faults.decide(Point::Telemetry, Some(identity));
        let mut verdict = struck(action, now);
        let entries: Vec<u64> = messages
            .iter()
            .map(|message| self.record(id, (Matter::Telemetry, Some(identity)), &seen, message, now))
            .collect();
        if verdict.state.as_ref().is_none_or(DeliveryState::is_accepted) {
            for message in messages {
                if let Err(refusal) = self.store(id, identity, message, now) {
                    verdict = Verdict::rejected(error::hub(&refusal, now.unix_ms));
                }
            }
        }
        for entry in entries {
            self.conclude(entry, &seen, &mut verdict);
        }
        verdict
    }

    fn store(&self, id: LinkId, identity: &Identity, message: Message, now: Now) -> Result<(), HubError> {
        // the identity may have been deleted or disabled since the attach
        let stamp = self.domain.registry.admit(identity)?;
        let link = self.link(id);
        let grant = link.and_then(|link| link.grant);
        let model_id = link.and_then(|link| match &link.kind {
            Kind::Telemetry(_, model_id) => model_id.clone(),
            _ => None,
        });
        let body = message.body_bytes();
        let mut properties = message.properties.unwrap_or_default();
        properties.to = Some(format!("{}/messages/events", identity.path()));
        let event = Event {
            identity: identity.clone(),
            generation_id: stamp.generation_id,
            auth_method: grant.map_or_else(|| Arc::from(""), |grant| self.grants.auth_method(grant)),
            source: "Telemetry",
            model_id,
            properties,
            application_properties: message.application_properties.unwrap_or_default(),
            annotations: message.annotations.map(|annotations| annotations.0).unwrap_or_default(),
            body,
        };
        self.domain.telemetry.append(event, now.unix_ms);
        Ok(())
    }
}

/// What a fault makes of a delivery of the peer's.
pub(super) fn struck(action: Option<Action>, now: Now) -> Verdict {
    let Some(action) = action else { return Verdict::accepted() };
    match action {
        Action::Delay { ms } => Verdict { delay_ms: ms, ..Verdict::accepted() },
        Action::Reject { condition } => Verdict::rejected(error::faulty(&condition, None, now.unix_ms)),
        Action::Release => released().into(),
        Action::Modify => modified().into(),
        Action::NeverSettle => Verdict { state: None, ..Verdict::accepted() },
        Action::Throttle { ms } => {
            let refusal = HubError::new(ErrorCode::ThrottlingException, "too many requests");
            let verdict = Verdict::rejected(error::hub(&refusal, now.unix_ms));
            Verdict { delay_ms: ms, detach: Some(error::hub(&refusal, now.unix_ms)), ..verdict }
        }
        Action::NoCredit => Verdict { strike: Some(Action::NoCredit), ..Verdict::accepted() },
        // the message is in doubt: stored, and its sender never hears of it
        action => Verdict { state: None, strike: Some(action), ..Verdict::accepted() },
    }
}

/// The messages of a delivery: one, or those of a batch. All of it counts against the limit.
fn messages_of(delivery: Received, content_bytes_max: usize, now: Now) -> Result<Vec<Message>, DeliveryState> {
    let outer = parse(delivery.payload)?;
    if outer.content_bytes > content_bytes_max {
        let text = format!("message is over {content_bytes_max} bytes");
        return Err(error::rejected(error::hub(&HubError::new(ErrorCode::MessageTooLarge, text), now.unix_ms)));
    }
    match (delivery.format, outer.body) {
        (BATCH_FORMAT, Body::Data(sections)) => sections.into_iter().map(parse).collect(),
        (0, body) => Ok(vec![Message { body, ..outer }]),
        (format, _) => {
            let error = error::protocol(INVALID_FIELD, format!("message-format {format:#x} is not known"));
            Err(error::rejected(error))
        }
    }
}

fn parse(payload: Bytes) -> Result<Message, DeliveryState> {
    Message::parse(payload).map_err(|error| error::rejected(error::protocol(DECODE_ERROR, error.to_string())))
}
