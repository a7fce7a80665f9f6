//! The hub's side of one gateway core against a real hub on real sockets; devices without MQTT.

mod commands;
mod connection;
mod support;
mod telemetry;
