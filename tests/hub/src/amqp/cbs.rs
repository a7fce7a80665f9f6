//! `$cbs` (contract §3.2): tokens come as messages, verdicts go back as messages on the peer's receiver of the session.

use fe2o3_amqp_types::messaging::{ApplicationProperties, MessageId, Properties};
use fe2o3_amqp_types::primitives::SimpleValue;
use serde_amqp::Value;
use serde_amqp::primitives::OrderedMap;

use super::connection::{Connection, Now};
use super::incoming::Verdict;
use super::judge::Seen;
use super::link::{Delivery, LinkId, Lock};
use super::message::{Body, Message, Outgoing};
use super::telemetry::struck;
use super::timer::{Due, Timer};
use crate::domain::{self, Action, Claims, ErrorCode, HubError, Kind as Matter, Point, Scope};

/// The two names under which clients send SAS tokens.
const TOKEN_TYPES: [&str; 2] = ["servicebus.windows.net:sastoken", "azure-devices.net:sastoken"];

/// `status-code` and `status-description`.
type Status = (i32, String);

impl Connection {
    pub(super) fn judge_cbs(&mut self, id: LinkId, seen: &Seen, message: &Message, now: Now) -> Verdict {
        let token = self.check_token(message, now);
        let identity = token.as_ref().ok().and_then(|claims| match &claims.scope {
            Scope::Device { identity, .. } => Some(identity.clone()),
            Scope::Hub { .. } => None,
        });
        let entry = self.record(id, (Matter::Cbs, identity.as_ref()), seen, message, now);
        let mut verdict = Verdict::accepted();
        let action = self.domain.faults.decide(Point::Cbs, identity.as_ref());
        let status = match (&action, token) {
            // what is answered with a fault is worth nothing
            (Some(Action::Cbs { status, .. }), _) if *status != 0 => {
                let code = if *status == 403 { ErrorCode::IotHubMaxCbsTokenExceeded } else { ErrorCode::ServerError };
                (i32::from(*status), HubError::new(code, "fault on request").description_json(now.unix_ms))
            }
            (_, Ok(claims)) => self.put_token(claims, now),
            (_, Err(refusal)) => refusal,
        };
        let (status, delay_ms) = match action {
            Some(Action::Cbs { ms, .. } | Action::Delay { ms }) => (Some(status), ms),
            Some(Action::NeverSettle) => (None, 0),
            Some(action) => {
                verdict = struck(Some(action), now);
                (verdict.state.as_ref().filter(|state| state.is_accepted()).map(|_| status), 0)
            }
            None => (Some(status), 0),
        };
        self.conclude(entry, seen, &mut verdict);
        if let Some(status) = status {
            self.answer_cbs(id, message, status, delay_ms, now);
        }
        verdict
    }

    /// Judges the request; the identity is the token's, whatever `name` says.
    fn check_token(&self, message: &Message, now: Now) -> Result<Claims, Status> {
        let malformed = |text: &'static str| Err((400, HubError::new(ErrorCode::ArgumentInvalid, text).to_string()));
        let property = |name: &str| text(message.application_properties.as_ref(), name);
        if property("operation") != Some("put-token") {
            return malformed("operation is not put-token");
        }
        if !property("type").is_some_and(|kind| TOKEN_TYPES.contains(&kind)) {
            return malformed("type is no SAS token type");
        }
        let Body::Value(Value::String(token)) = &message.body else { return malformed("body is no amqp-value string") };
        domain::verify(&self.domain, token, now.unix_ms / 1000)
            .map_err(|error| (error.cbs_status(), HubError::from(error).description_json(now.unix_ms)))
    }

    fn put_token(&mut self, claims: Claims, now: Now) -> Status {
        let expires = claims.expires;
        if !self.grants.put_token(claims, self.settings.cbs_tokens_max) {
            let text = format!("the maximum of {} tokens per connection was reached", self.settings.cbs_tokens_max);
            let refusal = HubError::new(ErrorCode::IotHubMaxCbsTokenExceeded, text);
            return (500, refusal.description_json(now.unix_ms));
        }
        self.arm_expiry(expires, now);
        (200, "OK".to_owned())
    }

    fn answer_cbs(&mut self, request: LinkId, message: &Message, (code, description): Status, delay_ms: u64, now: Now) {
        let Some(answers) = self.link(request).and_then(|link| self.sessions[link.session].cbs_answers) else { return };
        let mut properties = OrderedMap::new();
        properties.insert("status-code".to_owned(), SimpleValue::Int(code));
        properties.insert("status-description".to_owned(), SimpleValue::String(description));
        let outgoing = Outgoing {
            properties: Some(correlated(message_id(message))),
            application_properties: Some(ApplicationProperties(properties)),
            ..Outgoing::default()
        };
        self.answer_later(answers, &outgoing, delay_ms, now);
    }

    /// Sends an answer, now or by a fault's wish later.
    pub(super) fn answer_later(&mut self, id: LinkId, outgoing: &Outgoing, delay_ms: u64, now: Now) {
        let tag = self.next_tag().to_be_bytes().to_vec();
        let delivery = Delivery::new(tag, outgoing, Lock::None);
        if delay_ms == 0 {
            self.answer(id, delivery);
        } else {
            self.timers.push(now.tick + delay_ms, Timer::Link(id, Due::Answer(delivery)));
        }
    }
}

/// Properties with nothing but a correlation-id, of the type it came with.
pub(super) fn correlated(id: Option<MessageId>) -> Properties {
    Properties { correlation_id: id, ..Properties::default() }
}

fn message_id(message: &Message) -> Option<MessageId> {
    message.properties.as_ref()?.message_id.clone()
}

/// An application property as text.
pub(super) fn text<'p>(properties: Option<&'p ApplicationProperties>, name: &str) -> Option<&'p str> {
    match properties?.0.get(name)? {
        SimpleValue::String(text) => Some(text),
        SimpleValue::Symbol(text) => Some(text.as_str()),
        _ => None,
    }
}
