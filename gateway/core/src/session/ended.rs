//! Why a session ended, in words for the debug line and with the metric's label.

use super::effect::CloseCause;
use crate::{auth::RefusedReason, message::Refusal, pipeline};

/// The end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// `gateway_disconnects_total{cause}`.
    pub cause: CloseCause,
    /// `gateway_refused_total{reason}`: present if a CONNACK other than 0 was written.
    pub refused: Option<RefusedReason>,
    /// One phrase for the debug line. Never what the device or the hub sent.
    pub why: &'static str,
}

impl Ended {
    pub(super) fn new(cause: CloseCause, why: &'static str) -> Self {
        Self { cause, refused: None, why }
    }

    pub(super) fn violation(why: &'static str) -> Self {
        Self::new(CloseCause::ProtocolViolation, why)
    }

    pub(super) fn too_large(why: &'static str) -> Self {
        Self::new(CloseCause::TooLarge, why)
    }

    pub(super) fn refused(reason: RefusedReason) -> Self {
        Self { cause: CloseCause::Refused, refused: Some(reason), why: "the CONNECT was refused" }
    }

    /// Contract §2.13: the hub closes for each of these, without a PUBACK.
    pub(super) fn by_pipeline(refused: pipeline::Refused) -> Self {
        match refused {
            pipeline::Refused::TooLarge { .. } => Self::too_large("message over the limit"),
            pipeline::Refused::Topic => Self::new(CloseCause::Topic, "a topic that is not served"),
            pipeline::Refused::ForeignTopic => Self::new(CloseCause::Topic, "the topic of another device"),
            pipeline::Refused::Bag(_) => Self::new(CloseCause::Topic, "a malformed property bag"),
        }
    }

    pub(super) fn by_hub(refusal: Refusal) -> Self {
        Self::new(CloseCause::HubRefused, hub_words(refusal))
    }
}

fn hub_words(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Released => "the hub released it",
        Refusal::NotFound => "the hub knows no such device or address",
        Refusal::Unauthorized => "the hub does not let this device in",
        Refusal::Throttled => "the hub throttles",
        Refusal::Quota => "a quota of the hub is used up",
        Refusal::TooLarge => "the message is too large for the hub",
        Refusal::Invalid => "the message is wrong in the hub's eyes",
        Refusal::Internal => "the hub failed inside",
    }
}
