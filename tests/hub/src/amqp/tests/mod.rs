//! Conversations with the state machine, frame by frame and in virtual time.

mod c2d;
mod cbs;
mod connection;
mod faults;
mod links;
mod methods;
mod peer;
mod service;
mod telemetry;
mod twin;
