//! AMQP bytes: reading and writing values, performatives and frames. Never a state.

pub(crate) mod value;
pub(crate) mod write;
