//! Claims-based security as IoT Hub speaks it: `put-token` requests to `$cbs`, answers matched by correlation-id,
//! many in flight. It writes and reads messages only; links and time are the caller's.
//!
//! Never matched by order: after a lost or late answer that would hand one device the verdict on another one's token.

use std::collections::HashMap;
use std::fmt;

use crate::message::{self, Encoder, Malformed, Properties, Value};

/// The requests in flight on one `$cbs` link pair.
#[derive(Debug)]
pub struct Cbs {
    /// message-id → who asked.
    in_flight: HashMap<u64, u64>,
    in_flight_max: usize,
    next_id: u64,
}

/// One `put-token`.
#[derive(Clone, Copy)]
pub struct PutToken<'a> {
    /// What the token is for, e.g. `{hub}/devices/{d}` (application property `name`).
    pub audience: &'a str,
    /// The token, never printed.
    pub token: &'a str,
    /// Application property `type`; IoT Hub: [`SAS_TOKEN`].
    pub kind: &'a str,
    /// Application property `expiration`, ms since 1970.
    pub expires_at_ms: Option<i64>,
}

impl fmt::Debug for PutToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutToken").field("audience", &self.audience).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// The token type IoT Hub and Service Bus know.
pub const SAS_TOKEN: &str = "servicebus.windows.net:sastoken";

/// What the peer said about one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// As given at `put_token`.
    pub user: u64,
    /// 200 and 202 mean taken; 400, 401, 404, 500 as in HTTP.
    pub status: i32,
    /// `status-description`, empty if absent.
    pub description: String,
}

impl Reply {
    /// The token was taken.
    pub fn is_ok(&self) -> bool {
        matches!(self.status, 200 | 202)
    }
}

/// `in_flight_max` tokens wait for their answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many tokens in flight")]
pub struct InFlightMax;

impl Cbs {
    /// Nothing in flight yet; at most `in_flight_max` at a time (IoT Hub over WebSocket drops the connection at 31).
    pub fn new(in_flight_max: usize) -> Self {
        Self { in_flight: HashMap::new(), in_flight_max, next_id: 1 }
    }

    /// Appends the request message to `out`, to be sent on the `$cbs` sender; its answer carries `user`.
    /// If it cannot be sent after all: [`Cbs::forget`].
    pub fn put_token(&mut self, out: &mut Vec<u8>, request: &PutToken<'_>, user: u64) -> Result<(), InFlightMax> {
        if self.in_flight.len() >= self.in_flight_max {
            return Err(InFlightMax);
        }
        let id = self.next_id;
        self.next_id += 1;
        self.in_flight.insert(id, user);
        // a string: the one type that every peer gives back as it came
        let text = id.to_string();
        let properties = Properties {
            message_id: Value::Str(&text),
            to: Some("$cbs"),
            reply_to: Some("cbs"),
            ..Properties::default()
        };
        Encoder::new(out)
            .properties(&properties)
            .application_properties(|map| {
                map.string("operation", "put-token");
                map.string("type", request.kind);
                map.string("name", request.audience);
                if let Some(at) = request.expires_at_ms {
                    map.pair(Value::Str("expiration"), Value::Timestamp(at));
                }
            })
            .value(Value::Str(request.token));
        Ok(())
    }

    /// Reads a message of the `$cbs` receiver. `Ok(None)`: an answer nobody waits for (late, or after [`Cbs::forget`]).
    pub fn handle_response(&mut self, message: &[u8]) -> Result<Option<Reply>, Malformed> {
        let message = message::decode(message)?;
        let id = match message.properties.correlation_id {
            Value::Str(text) => text.parse().ok(),
            Value::Ulong(id) => Some(id),
            _ => None,
        };
        let Some(id) = id.filter(|id| self.in_flight.contains_key(id)) else { return Ok(None) };
        let status = match message.application_properties.get("status-code") {
            Some(Value::Int(status)) => status,
            Some(Value::Uint(status)) => i32::try_from(status).unwrap_or(i32::MAX),
            Some(Value::Long(status)) => i32::try_from(status).unwrap_or(i32::MAX),
            _ => return Err(Malformed("answer without status-code")),
        };
        let description = match message.application_properties.get("status-description") {
            Some(Value::Str(text)) => text.to_owned(),
            _ => String::new(),
        };
        Ok(self.in_flight.remove(&id).map(|user| Reply { user, status, description }))
    }

    /// Stops waiting for the answers of `user`.
    pub fn forget(&mut self, user: u64) {
        self.in_flight.retain(|_, waiting| *waiting != user);
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The links are gone: gives back who waited, in no order.
    pub fn clear(&mut self) -> Vec<u64> {
        self.in_flight.drain().map(|(_, user)| user).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Body;

    fn request(audience: &str) -> PutToken<'_> {
        PutToken { audience, token: "SharedAccessSignature sr=…", kind: SAS_TOKEN, expires_at_ms: Some(5) }
    }

    fn answer(id: Value<'_>, status: Option<Value<'_>>) -> Vec<u8> {
        let mut out = Vec::new();
        Encoder::new(&mut out)
            .properties(&Properties { correlation_id: id, ..Properties::default() })
            .application_properties(|map| {
                if let Some(status) = status {
                    map.pair(Value::Str("status-code"), status);
                }
                map.string("status-description", "text");
            });
        out
    }

    #[test]
    fn a_request_has_the_fields_of_the_contract() {
        let mut out = Vec::new();
        Cbs::new(1).put_token(&mut out, &request("hub/devices/d"), 9).unwrap();
        let message = message::decode(&out).unwrap();
        assert_eq!(message.properties.message_id, Value::Str("1"));
        assert_eq!(message.properties.to, Some("$cbs"));
        let property = |key| message.application_properties.get(key);
        assert_eq!(property("operation"), Some(Value::Str("put-token")));
        assert_eq!(property("type"), Some(Value::Str("servicebus.windows.net:sastoken")));
        assert_eq!(property("name"), Some(Value::Str("hub/devices/d")));
        assert_eq!(property("expiration"), Some(Value::Timestamp(5)));
        assert_eq!(message.body, Body::Value(Value::Str("SharedAccessSignature sr=…")));
    }

    #[test]
    fn answers_find_their_request_in_any_order_and_only_once() {
        let mut cbs = Cbs::new(2);
        let mut out = Vec::new();
        cbs.put_token(&mut out, &request("a"), 10).unwrap();
        cbs.put_token(&mut out, &request("b"), 20).unwrap();
        assert_eq!(cbs.put_token(&mut out, &request("c"), 30), Err(InFlightMax));
        let reply = |user, status| Ok(Some(Reply { user, status, description: "text".into() }));
        assert_eq!(cbs.handle_response(&answer(Value::Str("2"), Some(Value::Int(401)))), reply(20, 401));
        assert_eq!(cbs.handle_response(&answer(Value::Str("2"), Some(Value::Int(200)))), Ok(None));
        assert_eq!(cbs.handle_response(&answer(Value::Str("7"), Some(Value::Int(200)))), Ok(None));
        assert_eq!(cbs.handle_response(&answer(Value::Null, Some(Value::Int(200)))), Ok(None));
        let no_status = Err(Malformed("answer without status-code"));
        assert_eq!(cbs.handle_response(&answer(Value::Str("1"), None)), no_status);
        assert_eq!(cbs.handle_response(&answer(Value::Ulong(1), Some(Value::Int(202)))), reply(10, 202));
        assert_eq!(cbs.in_flight(), 0);
    }

    #[test]
    fn a_forgotten_request_lets_its_late_answer_pass() {
        let mut cbs = Cbs::new(2);
        cbs.put_token(&mut Vec::new(), &request("a"), 10).unwrap();
        cbs.put_token(&mut Vec::new(), &request("b"), 20).unwrap();
        cbs.forget(10);
        assert_eq!(cbs.handle_response(&answer(Value::Str("1"), Some(Value::Int(200)))), Ok(None));
        assert_eq!(cbs.clear(), [20]);
    }

    #[test]
    fn a_token_is_never_printed() {
        let printed = format!("{:?}", request("a"));
        assert!(!printed.contains("SharedAccessSignature"), "{printed}");
    }
}
