//! Which log lines are wanted: a filter such as `info` or `warn,gateway=debug`, checked before it is taken.

/// The levels, the quietest first.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The filter in force: that of the environment, unless it is empty, before the `level` of the program. `program` stands in what
/// is said of a wrong one.
///
/// # Errors
/// What is wrong and what would be right.
pub fn chosen(environment: Option<String>, level: &str, program: &str) -> Result<String, String> {
    // an empty variable is one that somebody did not fill in, and not the wish to hear nothing
    let filter = environment.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| level.to_owned());
    match misnamed(&filter) {
        None => Ok(filter),
        Some(wrong) => Err(format!(
            "log level `{filter}`: `{wrong}` names none of {}; expected e.g. `info` or `{program}=debug`",
            LEVELS.join(", ")
        )),
    }
}

/// A word that is no level would be taken for a target, and silence all others.
fn misnamed(filter: &str) -> Option<&str> {
    let is_level = |text: &str| LEVELS.iter().any(|level| text.trim().eq_ignore_ascii_case(level));
    // `[span]` is another grammar: the filter itself judges it
    filter.split(',').find(|each| !each.contains('[') && !is_level(each.rsplit('=').next().unwrap_or("")))
}

#[cfg(test)]
mod tests {
    use super::chosen;

    #[test]
    fn the_environment_wins_unless_it_is_empty() {
        let check = |environment: Option<&str>, expected: &str| {
            let chosen = chosen(environment.map(str::to_owned), "info", "gateway");
            assert_eq!(chosen.as_deref(), Ok(expected), "{environment:?}");
        };
        check(Some("gateway=debug"), "gateway=debug");
        check(Some("off"), "off");
        check(Some(""), "info");
        check(Some(" "), "info");
        check(None, "info");
    }

    #[test]
    fn what_names_no_level_is_refused() {
        let check = |filter: &str, taken: bool| {
            let chosen = chosen(None, filter, "gateway");
            assert_eq!(chosen.is_ok(), taken, "{filter}");
            assert!(chosen.err().is_none_or(|why| why.contains("gateway=debug")), "{filter}");
        };
        check("info", true);
        check("warn,gateway=debug", true);
        check("OFF", true);
        check("inof", false);
        check("a b", false);
        check("warn,x=inof", false);
        check("", false);
    }
}
