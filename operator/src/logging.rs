//! Log lines as text or JSON, to standard error.

use std::io::IsTerminal as _;

use gateway_core::log_filter;
use tracing_subscriber::{EnvFilter, fmt};

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `RUST_LOG`, unless it is empty, wins over `level`, a filter such as `info` or `operator=debug`.
///
/// # Errors
/// The filter that is wrong, in words.
pub fn init(format: Format, level: &str) -> Result<(), String> {
    let filter = log_filter::chosen(std::env::var(EnvFilter::DEFAULT_ENV).ok(), level, "operator")?;
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| format!("log level `{filter}`: {error}; expected e.g. `info` or `operator=debug`"))?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        Format::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| error.to_string())
}
