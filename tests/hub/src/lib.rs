//! A local IoT Hub: AMQP 1.0 and REST, strict, in memory, with faults on request and a ledger of all it saw.
//!
//! It shares no code with the gateway: it is the independent judge of it.

pub mod amqp;
pub mod domain;
