//! Log lines as text or JSON, to standard error.

use std::io::IsTerminal as _;

use tracing_subscriber::{EnvFilter, fmt};

/// Shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. `RUST_LOG`, unless it is empty, wins over `level`, a filter such as `info` or `gateway=debug`.
///
/// # Errors
/// The filter that is wrong, in words.
pub fn init(format: Format, level: &str) -> Result<(), String> {
    let directives = directives(std::env::var(EnvFilter::DEFAULT_ENV).ok(), level);
    check(&directives)?;
    let filter = EnvFilter::try_new(&directives)
        .map_err(|error| format!("log level `{directives}`: {error}; expected e.g. `info` or `gateway=debug`"))?;
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match format {
        Format::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => lines.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| error.to_string())
}

/// An empty variable is one that somebody did not fill in, and not the wish to hear nothing.
fn directives(from_environment: Option<String>, level: &str) -> String {
    from_environment.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| level.to_owned())
}

/// A word that is no level would be taken for a target, and silence all others.
fn check(directives: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |text: &str| LEVELS.iter().any(|level| text.trim().eq_ignore_ascii_case(level));
    // `[span]` is another grammar: the filter itself judges it
    let wrong =
        directives.split(',').find(|each| !each.contains('[') && !is_level(each.rsplit('=').next().unwrap_or("")));
    wrong.map_or(Ok(()), |wrong| {
        Err(format!(
            "log level `{directives}`: `{wrong}` names none of {}; expected e.g. `info` or `gateway=debug`",
            LEVELS.join(", ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::{check, directives};

    #[test]
    fn the_environment_wins_unless_it_is_empty() {
        let check = |environment: Option<&str>, expected| {
            assert_eq!(directives(environment.map(str::to_owned), "info"), expected, "{environment:?}");
        };
        check(Some("gateway=debug"), "gateway=debug");
        check(Some("off"), "off");
        check(Some(""), "info");
        check(Some(" "), "info");
        check(None, "info");
    }

    #[test]
    fn what_names_no_level_is_refused() {
        for (directives, taken) in [
            ("info", true),
            ("warn,gateway=debug", true),
            ("OFF", true),
            ("inof", false),
            ("a b", false),
            ("warn,x=inof", false),
            ("", false),
        ] {
            assert_eq!(check(directives).is_ok(), taken, "{directives}");
        }
    }
}
