//! Method links (contract §3.8): calls go out on one, answers come back on the other of the pair.

use std::sync::Arc;

use fe2o3_amqp_types::messaging::{ApplicationProperties, MessageId};
use fe2o3_amqp_types::primitives::SimpleValue;
use serde_amqp::primitives::OrderedMap;

use super::cbs::correlated;
use super::connection::{Connection, Now};
use super::error::{self, INVALID_FIELD};
use super::incoming::Verdict;
use super::judge::Seen;
use super::kind::PairKey;
use super::link::{Delivery, LinkId, Lock};
use super::message::{Message, Outgoing};
use crate::domain::{Kind as Matter, Listener, MethodCall, MethodResult};

impl Connection {
    /// Takes the calls that wait for this link; the first is returned, the others follow it.
    pub(super) fn next_call(&mut self, id: LinkId, pair: &PairKey) -> Option<Delivery> {
        let listener = Listener::new(&self.mailbox, id.key());
        let waiting = self.domain.methods.take_calls(&pair.identity, &listener);
        let deliveries = waiting.into_iter().map(|call| self.call(call)).collect();
        self.first_of(id, deliveries)
    }

    fn call(&mut self, call: MethodCall) -> Delivery {
        let mut properties = OrderedMap::new();
        properties.insert("IoThub-methodname".to_owned(), SimpleValue::String(call.name));
        let id = serde_amqp::primitives::Uuid::from(*call.id.as_bytes());
        let outgoing = Outgoing {
            properties: Some(correlated(Some(MessageId::Uuid(id)))),
            application_properties: Some(ApplicationProperties(properties)),
            data: Some(call.payload),
            ..Outgoing::default()
        };
        Delivery::new(self.next_tag().to_be_bytes().to_vec(), &outgoing, Lock::None)
    }

    pub(super) fn judge_method_answer(
        &mut self,
        id: LinkId,
        pair: &Arc<PairKey>,
        seen: &Seen,
        message: &Message,
        now: Now,
    ) -> Verdict {
        let entry = self.record(id, (Matter::MethodAnswer, Some(&pair.identity)), seen, message, now);
        let mut verdict = match (call_id(message), status(message)) {
            (Some(call), Some(status)) => {
                let result = MethodResult { status, payload: message.body_bytes() };
                // a late answer is dropped: nobody waits for it any more
                self.domain.methods.respond(&pair.identity, call, result);
                Verdict::accepted()
            }
            (None, _) => Verdict::rejected(error::protocol(INVALID_FIELD, "correlation-id is no uuid")),
            (_, None) => Verdict::rejected(error::protocol(INVALID_FIELD, "IoThub-status is no int")),
        };
        self.conclude(entry, seen, &mut verdict);
        verdict
    }
}

fn call_id(message: &Message) -> Option<uuid::Uuid> {
    match message.properties.as_ref()?.correlation_id.as_ref()? {
        MessageId::Uuid(id) => Some(uuid::Uuid::from_bytes(*id.as_inner())),
        _ => None,
    }
}

fn status(message: &Message) -> Option<i32> {
    match message.application_properties.as_ref()?.0.get("IoThub-status")? {
        SimpleValue::Int(status) => Some(*status),
        _ => None,
    }
}
