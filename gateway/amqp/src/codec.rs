//! AMQP bytes: reading and writing values, performatives and frames. Never a state.
//!
//! All of it by hand, cold frames too: one reader serves both and trusts no declared size, and the types crate that
//! could decode the cold ones stays what it is in the tests, an independent judge.

#[cfg(test)]
mod differential;
pub(crate) mod performative;
pub(crate) mod value;
pub(crate) mod write;
