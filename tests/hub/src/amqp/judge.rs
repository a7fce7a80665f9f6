//! What becomes of a delivery of the peer's: the message is understood, the fault that stands for it strikes, and the
//! link's kind decides.

use fe2o3_amqp_types::messaging::{DeliveryState, Modified, Released};

use super::connection::{Connection, Now};
use super::error::{self, DECODE_ERROR};
use super::incoming::Verdict;
use super::kind::Kind;
use super::link::{LinkId, Received};
use super::message::Message;
use crate::domain::{Identity, Kind as Matter, Outcome, Transfer};

impl Connection {
    pub(super) fn judge(&mut self, id: LinkId, delivery: Received, now: Now) -> Verdict {
        let Some(link) = self.link(id) else { return Verdict::accepted() };
        if let Kind::Telemetry(identity, _) = &link.kind {
            let identity = identity.clone();
            return self.judge_telemetry(id, &identity, delivery, now);
        }
        let is_settled = delivery.is_settled;
        let message = match Message::parse(delivery.payload) {
            Ok(message) => message,
            Err(error) => return Verdict::rejected(error::protocol(DECODE_ERROR, error.to_string())),
        };
        let seen = Seen { delivery_id: delivery.delivery_id, is_settled };
        match &link.kind {
            Kind::CbsRequests => self.judge_cbs(id, &seen, &message, now),
            Kind::TwinRequests(pair) => {
                let pair = pair.clone();
                self.judge_twin_request(id, &pair, &seen, &message, now)
            }
            Kind::MethodAnswers(pair) => {
                let pair = pair.clone();
                self.judge_method_answer(id, &pair, &seen, &message, now)
            }
            Kind::ServiceC2d => self.judge_service_send(id, &seen, message, now),
            _ => Verdict::accepted(),
        }
    }

    /// Enters a delivery of the peer's into the ledger.
    pub(super) fn record(
        &self,
        id: LinkId,
        matter: (Matter, Option<&Identity>),
        seen: &Seen,
        message: &Message,
        now: Now,
    ) -> u64 {
        let message_id = message.properties.as_ref().and_then(|properties| properties.message_id.as_ref());
        let transfer = Transfer {
            identity: matter.1.cloned(),
            kind: matter.0,
            message_id: message_id.map(|id| crate::domain::id_text(id).into()),
            connection: self.number,
            link: self.link(id).map_or_else(|| "".into(), |link| link.name.clone()),
            delivery_id: seen.delivery_id,
            body_bytes: message.body_len(),
        };
        self.domain.ledger.record(transfer, None, now.unix_ms)
    }

    /// Enters the outcome; what the sender had settled is never told.
    pub(super) fn conclude(&self, entry: u64, seen: &Seen, verdict: &mut Verdict) {
        let outcome = match &verdict.state {
            Some(state) if !seen.is_settled || !state.is_accepted() => outcome_of(state),
            Some(_) => Outcome::Presettled,
            None => Outcome::Accepted,
        };
        self.domain.ledger.settle(entry, outcome);
        if seen.is_settled {
            self.domain.ledger.written([entry]);
        } else {
            verdict.entries.push(entry);
        }
    }
}

/// A delivery, as far as the ledger asks.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) delivery_id: u32,
    pub(crate) is_settled: bool,
}

/// The ledger's word for a terminal state.
pub(crate) fn outcome_of(state: &DeliveryState) -> Outcome {
    match state {
        DeliveryState::Accepted(_) | DeliveryState::Received(_) => Outcome::Accepted,
        DeliveryState::Released(_) => Outcome::Released,
        DeliveryState::Modified(_) => Outcome::Modified,
        DeliveryState::Rejected(rejected) => Outcome::Rejected(
            rejected.error.as_ref().map_or_else(|| "".into(), |error| error::condition_text(error).into()),
        ),
    }
}

pub(crate) fn released() -> DeliveryState {
    DeliveryState::Released(Released {})
}

pub(crate) fn modified() -> DeliveryState {
    DeliveryState::Modified(Modified {
        delivery_failed: Some(true),
        undeliverable_here: None,
        message_annotations: None,
    })
}
