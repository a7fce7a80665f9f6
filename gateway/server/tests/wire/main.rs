//! The gateway on real sockets, judged by clients that share no code with it.

#![expect(clippy::unwrap_used, reason = "what is missing here ends the test, and says where")]

mod admin;
mod bridge;
mod drain;
mod refusals;
mod reload;
mod storm;
mod support;
mod takeover;
mod transports;
mod unauthenticated;
