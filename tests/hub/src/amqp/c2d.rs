//! Cloud-to-device messages on their way to the device: taken under a lock, sent with its token as tag, settled by the
//! device's outcome (contract §3.6).

use fe2o3_amqp_types::messaging::{
    Annotations, ApplicationProperties, DeliveryState, MessageAnnotations, MessageId, Rejected,
};
use fe2o3_amqp_types::primitives::SimpleValue;
use serde_amqp::Value;
use serde_amqp::primitives::{OrderedMap, Timestamp, Uuid};

use super::connection::{Connection, Now};
use super::error::{self, NOT_FOUND};
use super::incoming::accepted;
use super::link::{Delivery, LinkId, Lock};
use super::message::Outgoing;
use super::twin::key;
use crate::domain::{C2dMessage, ErrorCode, HubError, Identity, Listener, LockLost, Locked};

impl Connection {
    /// Locks and takes the next message of the device.
    pub(super) fn next_c2d(&mut self, id: LinkId, identity: &Identity, now: Now) -> Option<Delivery> {
        let listener = Listener::new(&self.mailbox, id.key());
        let locked = self.domain.c2d.next(identity, &listener, now.unix_ms)?;
        let message = c2d_message(identity, &locked);
        let delivery = Delivery::new(locked.token.to_vec(), &message, Lock::C2d(locked.token));
        Some(Delivery { message_id: Some(locked.item.message_id.clone()), ..delivery })
    }

    /// Applies the peer's outcome to what it holds; returns the state for the last word in the second settle mode.
    pub(super) fn settle_own(&self, lock: &Lock, state: &DeliveryState, now: Now) -> DeliveryState {
        let settled = match (lock, state) {
            (Lock::None | Lock::Event, _) => return state.clone(),
            (Lock::C2d(token), DeliveryState::Accepted(_)) => self.domain.c2d.complete(token, now.unix_ms),
            (Lock::C2d(token), DeliveryState::Rejected(_)) => self.domain.c2d.reject(token, now.unix_ms),
            (Lock::C2d(token), _) => self.domain.c2d.abandon(token, now.unix_ms),
            (Lock::Feedback(token), DeliveryState::Accepted(_) | DeliveryState::Rejected(_)) => {
                self.domain.feedback.complete(token, now.unix_ms)
            }
            (Lock::Feedback(token), _) => self.domain.feedback.abandon(token, now.unix_ms),
        };
        if settled == Err(LockLost) {
            let refusal = HubError::new(ErrorCode::DeviceMessageLockLost, "the lock of the message lapsed");
            let error = error::hub_as(NOT_FOUND, &refusal, now.unix_ms);
            return DeliveryState::Rejected(Rejected { error: Some(error) });
        }
        accepted()
    }
}

fn c2d_message(identity: &Identity, locked: &Locked<C2dMessage>) -> Outgoing {
    let message = &locked.item;
    let mut annotations = Annotations::new();
    annotations.insert(key("x-opt-lock-token"), Value::Uuid(Uuid::from(locked.token)));
    annotations.insert(key("x-opt-sequence-number"), Value::Ulong(message.sequence_number));
    let enqueued = Timestamp::from_milliseconds(i64::try_from(message.enqueued_ms).unwrap_or(i64::MAX));
    annotations.insert(key("iothub-enqueuedtime"), Value::Timestamp(enqueued));
    annotations.insert(key("iothub-deliverycount"), Value::Uint(locked.delivery_count));
    let mut properties = message.properties.clone();
    properties.to = Some(format!("{}/messages/deviceBound", identity.path()));
    properties.message_id.get_or_insert_with(|| MessageId::String(message.message_id.to_string()));
    Outgoing {
        header: None,
        annotations: Some(MessageAnnotations(annotations)),
        properties: Some(properties),
        application_properties: Some(string_like(&message.application_properties)),
        data: Some(message.body.clone()),
    }
}

/// Devices get only string-like properties (contract §3.5).
fn string_like(properties: &ApplicationProperties) -> ApplicationProperties {
    let is_string = |value: &SimpleValue| matches!(value, SimpleValue::String(_) | SimpleValue::Symbol(_));
    let kept: OrderedMap<_, _> = properties
        .0
        .iter()
        .filter(|(_, value)| is_string(value))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    ApplicationProperties(kept)
}
