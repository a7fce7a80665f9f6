//! The operator: makes what a `ProtocolGateway` asks for, and keeps it so.
//!
//! A reconcile is four steps, each a file: [`observe`] gathers everything a decision needs, time included; [`desired`] decides
//! what there should be; applying writes the difference; [`status`] says how things stand. `desired` and `status` are
//! functions: no client, no clock, no chance. Same inputs, same outputs.

pub mod api;
pub mod certificates;
pub mod cli;
pub mod desired;
pub mod error;
pub mod http;
pub mod lease;
pub mod logging;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod orders;
pub mod plan;
pub mod pods;
pub mod program;
pub mod scaling;
pub mod secrets;
pub mod shutdown;
pub mod status;
