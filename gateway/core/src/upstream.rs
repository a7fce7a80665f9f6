//! Decisions about the hub side, without any I/O: which AMQP connection takes a device, when to try again, what an AMQP answer
//! means for a message, a link or a device.
//!
//! The link drives sockets and asks here; nothing here knows how an AMQP frame looks.

mod backoff;
mod condition;
mod outage;
mod placement;

pub use self::{
    backoff::Backoff,
    condition::{AfterLoss, Disposition, TokenAnswer, link_lost, outcome, refusal, token_answer},
    outage::Outage,
    placement::{ConnectionKey, LINKS_PER_DEVICE, NoRoom, PeerLimits, Placed, Placement, TOKENS_PER_CONNECTION_MAX},
};
