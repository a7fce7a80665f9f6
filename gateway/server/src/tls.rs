//! TLS towards devices: what is served and to whom (`config`), and records ⇄ plaintext without buffers of its own (`filter`).
//!
//! It never touches a socket and never reads a file.

pub mod config;
pub mod filter;

pub use config::{TlsError, server_config};
pub use filter::TlsFilter;
