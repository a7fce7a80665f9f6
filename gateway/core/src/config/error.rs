//! What is wrong with a configuration, said so that it can be put right.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use super::{
    quantity::{Quantity, show_bytes, show_duration},
    rate::Rate,
};

/// One thing that is wrong: where, what, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}; {remedy}", self.spot())]
pub struct ConfigError {
    /// Path in the file (`listeners[1].port`); empty for the file as a whole.
    pub path: String,
    /// Where in the text, if there is a text and it says anything there.
    pub place: Option<Place>,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub remedy: String,
}

/// A place in the text of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl ConfigError {
    fn spot(&self) -> String {
        match (self.path.as_str(), self.place) {
            ("", None) => "file".to_owned(),
            ("", Some(place)) => place.to_string(),
            (path, None) => path.to_owned(),
            (path, Some(place)) => format!("{path} ({place})"),
        }
    }

    /// From what the YAML reader said.
    pub(super) fn from_yaml(error: &serde_saphyr::Error) -> Self {
        use serde_saphyr::Error as Yaml;

        let place = error.location().filter(|at| at.line() > 0);
        let place = place.map(|at| Place { line: at.line(), column: at.column() });
        let (problem, remedy) = match error.without_snippet() {
            Yaml::MultipleDocuments { .. } => {
                ("a second document begins".to_owned(), "write one document, without a line of ---")
            }
            Yaml::Eof { .. } => ("the file ends too early".to_owned(), SHAPE),
            other => (without_place(&other.to_string()).to_owned(), SHAPE),
        };
        Self { path: String::new(), place, problem, remedy: remedy.to_owned() }
    }
}

const SHAPE: &str = "write YAML as in gateway.example.yaml";

/// A message without the ` at line …` that is told apart from it; one line.
fn without_place(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.rsplit_once(" at line ").map_or(line, |(message, _)| message)
}

/// More than anyone reads at once.
const ERRORS_MAX: usize = 100;

/// Collects what is wrong. Its readers return a usable value in any case, so that checking goes on.
///
/// Knows which paths hold a stand-in for something that could not be read: what is wrong with those is said already.
#[derive(Debug, Default)]
pub(super) struct Errors {
    list: Vec<ConfigError>,
    /// Errors beyond [`ERRORS_MAX`].
    more: usize,
    replaced: BTreeSet<String>,
    places: BTreeMap<String, Place>,
}

impl Errors {
    /// Adds an error of the value at `path`, unless it is a stand-in.
    pub(super) fn add(&mut self, path: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) {
        let path = path.into();
        if self.was_read(&path) {
            let place = self.place_of(&path);
            self.push(ConfigError { path, place, problem: problem.into(), remedy: remedy.into() });
        }
    }

    /// Adds an error that lies in how `path` and `others` go together, unless one of those is wrong by itself.
    pub(super) fn add_across(
        &mut self,
        path: impl Into<String>,
        others: &[&str],
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        if others.iter().all(|other| self.is_sound(other)) {
            self.add(path, problem, remedy);
        }
    }

    /// Adds an error of what is written at `path`, which holds a stand-in from now on.
    pub(super) fn unreadable(
        &mut self,
        path: &str,
        place: Option<Place>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let place = place.or_else(|| self.place_of(path));
        self.push(ConfigError { path: path.to_owned(), place, problem: problem.into(), remedy: remedy.into() });
        self.replaced(path.to_owned());
    }

    /// Adds an error of a name that stands a second time; the first counts.
    pub(super) fn twice(&mut self, path: &str, place: Place) {
        let (problem, remedy) = ("stands twice".to_owned(), "keep one of them".to_owned());
        self.push(ConfigError { path: path.to_owned(), place: Some(place), problem, remedy });
    }

    /// Notes that `path` holds, or lacks, something for a reason that is said elsewhere.
    pub(super) fn replaced(&mut self, path: String) {
        self.replaced.insert(path);
    }

    /// Notes where `path` stands in the text.
    pub(super) fn place(&mut self, path: &str, place: Place) {
        self.places.insert(path.to_owned(), place);
    }

    /// Whether `path` is what the file says, and not within a stand-in.
    pub(super) fn was_read(&self, path: &str) -> bool {
        !upwards(path).any(|path| self.replaced.contains(path))
    }

    /// Whether the value at `path` is what the file says, and nothing is wrong with it.
    pub(super) fn is_sound(&self, path: &str) -> bool {
        self.was_read(path) && self.list.iter().all(|error| error.path != path)
    }

    /// Of what is nearest above if there is nothing at `path`.
    fn place_of(&self, path: &str) -> Option<Place> {
        upwards(path)
            .filter(|above| !above.is_empty() || path.is_empty())
            .find_map(|path| self.places.get(path))
            .copied()
    }

    fn push(&mut self, error: ConfigError) {
        if self.list.len() < ERRORS_MAX {
            self.list.push(error);
        } else {
            self.more += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// In the order of the text, then what is nowhere in it, as it was found.
    pub(super) fn into_list(mut self) -> Vec<ConfigError> {
        self.list.sort_by_key(|error| (error.place.is_none(), error.place));
        if self.more > 0 {
            let problem = format!("{} more errors were found", self.more);
            let remedy = "put the others right first".to_owned();
            self.list.push(ConfigError { path: String::new(), place: None, problem, remedy });
        }
        self.list
    }

    /// A whole number from `min` to `max`.
    pub(super) fn number(&mut self, path: &str, given: Option<i64>, default: u32, min: u32, max: u32) -> u32 {
        let Some(given) = given else { return default };
        match u32::try_from(given) {
            Ok(value) if (min..=max).contains(&value) => value,
            _ => {
                self.add(path, format!("{given} is out of range"), format!("give {min} to {max}"));
                default
            }
        }
    }

    /// A pace from `min` to `max`.
    pub(super) fn rate(&mut self, path: &str, given: Option<Rate>, default: Rate, min: Rate, max: Rate) -> Rate {
        let Some(given) = given else { return default };
        if (min.0..=max.0).contains(&given.0) {
            return given;
        }
        self.add(path, format!("{} is out of range", given.0), format!("give {} to {}", min.0, max.0));
        default
    }

    /// A size from `min` to `max` bytes.
    pub(super) fn bytes(&mut self, path: &str, given: Option<&Quantity>, default: u64, min: u64, max: u64) -> u64 {
        let Some(given) = given else { return default };
        self.in_range(path, given, given.bytes(), (min, max), show_bytes).unwrap_or(default)
    }

    /// A time from `min` to `max`.
    pub(super) fn duration(
        &mut self,
        path: &str,
        given: Option<&Quantity>,
        default: Duration,
        min: Duration,
        max: Duration,
    ) -> Duration {
        let Some(given) = given else { return default };
        self.in_range(path, given, given.duration(), (min, max), show_duration).unwrap_or(default)
    }

    fn in_range<T: PartialOrd + Copy>(
        &mut self,
        path: &str,
        given: &Quantity,
        value: Option<T>,
        (min, max): (T, T),
        show: impl Fn(T) -> String,
    ) -> Option<T> {
        let problem = match value {
            Some(value) if min <= value && value <= max => return Some(value),
            Some(_) => format!("{given} is out of range"),
            None => format!("\"{given}\" cannot be read"),
        };
        self.add(path, problem, format!("give {} to {}", show(min), show(max)));
        None
    }

    /// An IP address.
    pub(super) fn address(&mut self, path: impl Into<String>, given: Option<&str>, default: IpAddr) -> IpAddr {
        let Some(given) = given else { return default };
        given.parse().unwrap_or_else(|_| {
            self.add(path, format!("\"{given}\" is not an IP address"), format!("write one such as {default}"));
            default
        })
    }

    /// The name of a directory below the directory of secrets, which it cannot leave.
    pub(super) fn secret_name(&mut self, path: impl Into<String>, given: &str) {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if given.is_empty() || given.len() > 253 || given.starts_with('.') || !given.bytes().all(allowed) {
            self.add(
                path,
                format!("\"{given}\" is not the name of a Secret"),
                "use 1 to 253 letters, digits, '-', '.' and '_', not beginning with '.'",
            );
        }
    }

    /// A DNS name, without scheme and port.
    pub(super) fn host_name(&mut self, path: impl Into<String>, given: &str) {
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if given.len() > 253 || !given.split('.').all(is_label) {
            self.add(
                path,
                format!("\"{given}\" is not a host name"),
                "write it as in contoso.azure-devices.net, without scheme or port",
            );
        }
    }
}

/// `path` and all that it is within: `a.b[1]`, `a.b`, `a` and the file as a whole.
fn upwards(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| match path.rfind(['.', '[']) {
        Some(end) => Some(&path[..end]),
        None => (!path.is_empty()).then_some(""),
    })
}
