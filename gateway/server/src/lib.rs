//! The gateway program: terminates MQTT, checks who a device is, and hands every message to an AMQP 1.0 peer.

mod link;
pub mod metrics;
pub mod presence;
pub mod tls;
pub mod transport;
pub mod upstream;
pub mod websocket;
pub mod wheel;
