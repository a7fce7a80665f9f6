//! The gateway on real sockets, judged by clients that share no code with it.

mod admin;
mod bridge;
mod refusals;
mod support;
mod takeover;
mod transports;
