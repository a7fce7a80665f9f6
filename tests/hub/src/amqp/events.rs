//! Telemetry as back ends read it (contract §3.5, §4.2): a position in a partition, and events with the hub's
//! annotations.

use std::collections::VecDeque;
use std::sync::Arc;

use fe2o3_amqp_types::messaging::{FilterSet, MessageAnnotations};
use serde_amqp::Value;
use serde_amqp::primitives::Timestamp;

use super::connection::Connection;
use super::kind::Kind;
use super::link::{Delivery, LinkId, Lock};
use super::message::Outgoing;
use super::twin::key;
use crate::domain::{Cursor, Domain, ErrorCode, HubError, StoredEvent};

const SELECTOR: &str = "apache.org:selector-filter:string";
/// Events taken from the log at once.
const READ_AHEAD: usize = 64;

/// A reader's place in its partition.
#[derive(Debug)]
pub(crate) struct Reader {
    pub(crate) partition: u16,
    next: u64,
    ahead: VecDeque<Arc<StoredEvent>>,
}

impl Reader {
    /// Finds the place that the filter names; without one it is the oldest event.
    pub(crate) fn open(
        domain: &Domain,
        group: &str,
        partition: &str,
        filter: Option<&FilterSet>,
    ) -> Result<Self, HubError> {
        if group.is_empty() {
            return Err(HubError::new(ErrorCode::ArgumentInvalid, "consumer group is empty"));
        }
        let cursor = match filter.and_then(|filter| filter.get(SELECTOR)) {
            None | Some(Value::Null) => Cursor::Earliest,
            Some(value) => selector_text(value)
                .and_then(parse_selector)
                .ok_or_else(|| HubError::new(ErrorCode::ArgumentInvalid, "selector filter is not understood"))?,
        };
        let not_found = || HubError::new(ErrorCode::AmqpAddressNotFound, "no such partition");
        let partition = partition.parse().map_err(|_| not_found())?;
        let next = domain.telemetry.position(partition, cursor).ok_or_else(not_found)?;
        Ok(Self { partition, next, ahead: VecDeque::new() })
    }

    fn next(&mut self, domain: &Domain) -> Option<Arc<StoredEvent>> {
        if self.ahead.is_empty() {
            self.ahead = domain.telemetry.read(self.partition, self.next, READ_AHEAD).into();
        }
        let event = self.ahead.pop_front()?;
        self.next = event.sequence_number + 1;
        Some(event)
    }
}

impl Connection {
    /// The next event of the reader's partition, unless too many sent before are not settled.
    pub(super) fn next_event(&mut self, id: LinkId) -> Option<Delivery> {
        let unsettled_max = self.settings.unsettled_max;
        let domain = self.domain.clone();
        let link = self.link_mut(id).filter(|link| link.unsettled < unsettled_max)?;
        let Kind::Events(reader) = &mut link.kind else { return None };
        let event = reader.next(&domain)?;
        let tag = self.next_tag().to_be_bytes().to_vec();
        Some(Delivery::new(tag, &event_message(&event), Lock::Event))
    }
}

fn event_message(stored: &StoredEvent) -> Outgoing {
    let event = &stored.event;
    let text = |text: &str| Value::String(text.to_owned());
    let enqueued = Timestamp::from_milliseconds(i64::try_from(stored.enqueued_ms).unwrap_or(i64::MAX));
    let mut annotations = event.annotations.clone();
    annotations.insert(key("iothub-connection-device-id"), text(&event.identity.device));
    if let Some(module) = &event.identity.module {
        annotations.insert(key("iothub-connection-module-id"), text(module));
    }
    annotations.insert(key("iothub-connection-auth-generation-id"), text(&event.generation_id));
    annotations.insert(key("iothub-connection-auth-method"), text(&event.auth_method));
    annotations.insert(key("iothub-enqueuedtime"), Value::Timestamp(enqueued.clone()));
    annotations.insert(key("iothub-message-source"), text(event.source));
    if let Some(model_id) = &event.model_id {
        annotations.insert(key("dt-dataschema"), text(model_id));
    }
    let sequence_number = i64::try_from(stored.sequence_number).unwrap_or(i64::MAX);
    annotations.insert(key("x-opt-sequence-number"), Value::Long(sequence_number));
    annotations.insert(key("x-opt-offset"), Value::String(stored.offset.to_string()));
    annotations.insert(key("x-opt-enqueued-time"), Value::Timestamp(enqueued));
    Outgoing {
        header: None,
        annotations: Some(MessageAnnotations(annotations)),
        properties: Some(event.properties.clone()),
        application_properties: Some(event.application_properties.clone()),
        data: Some(event.body.clone()),
    }
}

/// The selector is a described string; some clients leave the descriptor out.
fn selector_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Described(described) => selector_text(&described.value),
        _ => None,
    }
}

/// `amqp.annotation.x-opt-sequence-number > 'N'`, likewise `x-opt-offset` and `x-opt-enqueued-time`; `>=` includes.
fn parse_selector(text: &str) -> Option<Cursor> {
    let (name, comparison) = text.trim().strip_prefix("amqp.annotation.")?.split_once('>')?;
    let (is_inclusive, operand) = match comparison.strip_prefix('=') {
        Some(operand) => (true, operand),
        None => (false, comparison),
    };
    let operand = operand.trim().trim_matches('\'');
    if operand == "@latest" {
        return Some(Cursor::Latest);
    }
    if operand == "-1" {
        return Some(Cursor::Earliest);
    }
    let number: u64 = operand.parse().ok()?;
    let from = if is_inclusive { number } else { number.checked_add(1)? };
    match name.trim() {
        "x-opt-sequence-number" => Some(Cursor::SequenceNumber(from)),
        "x-opt-offset" => Some(Cursor::Offset(from)),
        "x-opt-enqueued-time" | "x-opt-enqueuedtimeutc" => Some(Cursor::EnqueuedMs(from)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, expected: Option<Cursor>) {
        assert_eq!(parse_selector(selector), expected, "{selector}");
    }

    #[test]
    fn selectors_name_a_place_before_or_after_a_value() {
        check("amqp.annotation.x-opt-sequence-number > '41'", Some(Cursor::SequenceNumber(42)));
        check("amqp.annotation.x-opt-sequence-number >= 41", Some(Cursor::SequenceNumber(41)));
        check("amqp.annotation.x-opt-offset > '-1'", Some(Cursor::Earliest));
        check("amqp.annotation.x-opt-offset > '@latest'", Some(Cursor::Latest));
        check("amqp.annotation.x-opt-offset > '7'", Some(Cursor::Offset(8)));
        check("amqp.annotation.x-opt-enqueued-time > '1700000000000'", Some(Cursor::EnqueuedMs(1_700_000_000_001)));
        check("amqp.annotation.x-opt-enqueued-time < '1'", None);
        check("x-opt-offset > '7'", None);
        check("amqp.annotation.x-opt-offset > 'x'", None);
    }
}
