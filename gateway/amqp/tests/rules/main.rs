//! The endpoint rule by rule, against a peer made by hand.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod connection;
mod deliveries;
mod fuzz;
mod links;
mod peer;
mod sessions;
mod splits;
