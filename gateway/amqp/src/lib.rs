//! The client half of AMQP 1.0 (ISO/IEC 19464) as a state machine for thousands of links on one connection: bytes in,
//! bytes and events out, time is an argument (milliseconds from any start). It never touches a clock or a socket.
//!
//! A driver's turn: read once → [`Endpoint::handle_input`] → [`Endpoint::next_event`] until `None` → calls of its own
//! ([`Endpoint::send`], [`Endpoint::settle`], …) → write [`Endpoint::output`] once → sleep until
//! [`Endpoint::poll_timeout`] or more input.
//!
//! Reading order: [`Config`] and [`Event`] are the border; `endpoint` is the machine; `codec` the bytes; [`message`] and
//! [`cbs`] stand beside it.

mod config;
mod event;

mod endpoint;
mod unsettled;

pub mod cbs;
pub mod message;

mod codec;

pub use config::{Attach, Config, ReceiverSettleMode, Sasl, SenderSettleMode};
pub use endpoint::Endpoint;
pub use event::{
    Cause, Counters, Delivery, DeliveryId, Error, Event, LinkId, NotSent, Outcome, Peer, Refused, SessionId, Settle,
};
