//! The gateway program: terminates MQTT, checks who a device is, and hands every message to an AMQP 1.0 peer.

mod link;
pub mod metrics;
pub mod upstream;
