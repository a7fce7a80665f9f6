//! What back ends do over AMQP (contract §4.2): send to devices, and read feedback.

use std::sync::Arc;

use bytes::Bytes;
use fe2o3_amqp_types::messaging::Properties;
use serde_amqp::primitives::Symbol;

use super::address::{self, Endpoint, Node};
use super::cbs::text;
use super::connection::{Connection, Now};
use super::error;
use super::incoming::Verdict;
use super::judge::Seen;
use super::link::{Delivery, LinkId, Lock};
use super::message::{Message, Outgoing};
use crate::domain::{Ack, AuthError, C2dMessage, ErrorCode, HubError, Identity, Kind as Matter, QueueFull, id_text};

/// A cloud-to-device message holds at most this much (contract §2.11).
const C2D_BYTES_MAX: usize = 64 * 1024;
const FEEDBACK_CONTENT_TYPE: &str = "application/vnd.microsoft.iothub.feedback.json";

impl Connection {
    pub(super) fn judge_service_send(&mut self, id: LinkId, seen: &Seen, message: Message, now: Now) -> Verdict {
        let addressee = self.addressee_of(&message);
        let entry = self.record(id, (Matter::ServiceSend, addressee.as_ref().ok()), seen, &message, now);
        let sent = addressee.and_then(|identity| self.send_to_device(&identity, message, now));
        let mut verdict = match sent {
            Ok(()) => Verdict::accepted(),
            Err(refusal) => Verdict::rejected(error::hub(&refusal, now.unix_ms)),
        };
        self.conclude(entry, seen, &mut verdict);
        verdict
    }

    fn addressee_of(&self, message: &Message) -> Result<Identity, HubError> {
        let to = message.properties.as_ref().and_then(|properties| properties.to.as_deref());
        match to.and_then(address::parse) {
            Some(Node::Device { device, module, endpoint: Endpoint::DeviceBound }) => {
                Ok(self.domain.registry.resolve(&device, module.as_deref()))
            }
            _ => Err(HubError::new(ErrorCode::ArgumentInvalid, "message has no deviceBound address in `to`")),
        }
    }

    fn send_to_device(&self, identity: &Identity, message: Message, now: Now) -> Result<(), HubError> {
        let generation_id = match self.domain.registry.admit(identity) {
            Ok(stamp) => stamp.generation_id,
            // a disabled device has its queue all the same
            Err(AuthError::Disabled) => {
                self.domain.registry.get(identity).map_or_else(|| Arc::from(""), |record| record.generation_id)
            }
            Err(error) => return Err(error.into()),
        };
        if message.content_bytes > C2D_BYTES_MAX {
            return Err(HubError::new(ErrorCode::MessageTooLarge, format!("message is over {C2D_BYTES_MAX} bytes")));
        }
        let ack = match text(message.application_properties.as_ref(), "iothub-ack") {
            None => Ack::None,
            Some(word) => Ack::parse(word)
                .ok_or_else(|| HubError::new(ErrorCode::ArgumentInvalid, "iothub-ack is none of its four words"))?,
        };
        let body = message.body_bytes();
        let properties = message.properties.unwrap_or_default();
        let ttl_ms = self.domain.c2d.settings().default_ttl_ms;
        let expires_ms =
            properties.absolute_expiry_time.as_ref().map(|time| u64::try_from(time.milliseconds()).unwrap_or(0));
        let message_id = properties.message_id.as_ref().map_or_else(|| uuid::Uuid::new_v4().to_string(), id_text);
        let message = C2dMessage {
            application_properties: message.application_properties.unwrap_or_default(),
            body,
            ack,
            message_id: message_id.into(),
            generation_id,
            enqueued_ms: now.unix_ms,
            expires_ms: expires_ms.unwrap_or(now.unix_ms + ttl_ms),
            sequence_number: 0,
            properties,
        };
        let full = |QueueFull| HubError::new(ErrorCode::DeviceMaximumQueueDepthExceeded, "the device's queue is full");
        self.domain.c2d.enqueue(identity, message, now.unix_ms).map(|_| ()).map_err(full)
    }

    /// Locks and takes the next batch of feedback.
    pub(super) fn next_feedback(&mut self, now: Now) -> Option<Delivery> {
        let locked = self.domain.feedback.next(now.unix_ms)?;
        let properties = Properties {
            user_id: Some(self.domain.host_name.clone().into_bytes().into()),
            content_type: Some(Symbol::from(FEEDBACK_CONTENT_TYPE)),
            ..Properties::default()
        };
        let outgoing = Outgoing {
            properties: Some(properties),
            data: Some(Bytes::copy_from_slice(locked.item.body.as_bytes())),
            ..Outgoing::default()
        };
        Some(Delivery::new(locked.token.to_vec(), &outgoing, Lock::Feedback(locked.token)))
    }
}
