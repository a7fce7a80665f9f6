//! The gateway program: terminates MQTT, checks who a device is, and hands every message to an AMQP 1.0 peer.
//!
//! In reading order: `server` puts everything together; `listener` takes a connection; `connection` is the loop of one
//! device; `upstream` is the hub's side of one core.

pub mod server;

pub mod core;
pub mod listener;

pub mod connection;
pub mod tls;
pub mod transport;
pub mod websocket;

mod link;
pub mod upstream;

pub mod presence;
pub mod wheel;

pub mod admin;
pub mod config_file;
pub mod drain;
pub mod logging;
pub mod metrics;
pub mod reload;
pub mod secrets;
pub mod standing;
pub mod summary;
pub mod unauthenticated;
