//! The pure core of the gateway: bytes and time in, effects out. It reaches no clock, socket, file or environment.
//!
//! In reading order: [`session`] is where a device's conversation is decided; everything else serves it.

pub mod auth;
pub mod codec;
pub mod config;
pub mod delivery;
pub mod drain;
pub mod log_filter;
pub mod message;
pub mod pipeline;
pub mod session;
pub mod settings;
pub mod time;
pub mod topic;
pub mod upstream;
