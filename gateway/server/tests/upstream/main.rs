//! The hub's side of one gateway core against a real hub on real sockets; devices without MQTT.

#![expect(clippy::unwrap_used, reason = "what is missing here ends the test, and says where")]

mod broker;
mod chaos;
mod commands;
mod connection;
mod places;
mod support;
mod telemetry;
