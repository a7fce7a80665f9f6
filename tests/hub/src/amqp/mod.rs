//! The AMQP 1.0 side of the hub: a small server engine of its own, one task per TCP connection, links as slab entries.
//!
//! Reading order: `serve` (the task) → `connection` (the state machine) → `mapping`, `attach` (sessions and links) →
//! `incoming`, `judge` (deliveries of the peer) → `outgoing` (deliveries of ours) → one file per kind of link.
//! Types and encoding are those of `fe2o3-amqp-types`; the engine is not, because it must see all, refuse what it wants
//! and misbehave on request.

mod address;
mod attach;
mod auth;
mod c2d;
mod cbs;
mod connection;
mod error;
mod events;
mod faults;
mod frame;
mod incoming;
mod judge;
mod kind;
mod link;
mod mapping;
mod message;
mod methods;
mod outgoing;
mod sasl;
mod serve;
mod service;
mod session;
mod settings;
mod telemetry;
mod timer;
mod twin;
mod wire;

#[cfg(test)]
mod tests;

pub use serve::{Transport, serve};
pub use settings::AmqpSettings;
