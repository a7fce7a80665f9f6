//! What is wrong with a configuration, said so that it can be put right.

use std::{net::IpAddr, time::Duration};

use super::quantity::{Quantity, show_bytes, show_duration};

/// One thing that is wrong: where, what, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}; {remedy}")]
pub struct ConfigError {
    /// Path in the file (`listeners[1].port`), or `line 3, column 5` for what could not be read.
    pub path: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub remedy: String,
}

impl ConfigError {
    /// From what the YAML reader said.
    pub(super) fn from_yaml(error: &serde_saphyr::Error) -> Self {
        use serde_saphyr::Error as Yaml;

        let path = match error.location() {
            Some(at) if at.line() > 0 => format!("line {}, column {}", at.line(), at.column()),
            _ => "file".to_owned(),
        };
        let (problem, remedy) = match error.without_snippet() {
            Yaml::SerdeUnknownField { field, expected, .. } => {
                (format!("unknown field \"{field}\""), known(field, expected))
            }
            Yaml::SerdeUnknownVariant { variant, expected, .. } => {
                (format!("unknown value \"{variant}\""), known(variant, expected))
            }
            Yaml::SerdeMissingField { field, .. } => (format!("field \"{field}\" is missing"), format!("add {field}")),
            Yaml::SerdeInvalidType { unexpected, expected, .. }
            | Yaml::SerdeInvalidValue { unexpected, expected, .. } => {
                (format!("{unexpected} does not fit here"), format!("write {expected}"))
            }
            Yaml::InvalidScalar { ty: "i64", .. } => {
                ("not a whole number".to_owned(), "write one without unit and fraction".to_owned())
            }
            Yaml::DuplicateMappingKey { key, .. } => {
                (format!("\"{}\" stands twice", key.as_deref().unwrap_or("a name")), "keep one of them".to_owned())
            }
            Yaml::MultipleDocuments { .. } => {
                ("a second document begins".to_owned(), "write one document, without a line of ---".to_owned())
            }
            Yaml::Eof { .. } => ("the file ends too early".to_owned(), SHAPE.to_owned()),
            other => (without_place(&other.to_string()).to_owned(), SHAPE.to_owned()),
        };
        Self { path, problem, remedy }
    }
}

const SHAPE: &str = "write YAML as in gateway.example.yaml";

/// A message without the ` at line …` that stands in the path already; one line.
fn without_place(message: &str) -> &str {
    let line = message.lines().next().unwrap_or_default();
    line.rsplit_once(" at line ").map_or(line, |(message, _)| message)
}

/// The names that could have been meant, the nearest first.
fn known(given: &str, expected: &[&'static str]) -> String {
    if expected.is_empty() {
        return "nothing can stand here".to_owned();
    }
    let nearest = expected.iter().min_by_key(|name| distance(given, name)).expect("it is not empty");
    if distance(given, nearest) <= 2 + given.len() / 4 {
        format!("did you mean \"{nearest}\"? known here: {}", expected.join(", "))
    } else {
        format!("known here: {}", expected.join(", "))
    }
}

/// Levenshtein distance, letters compared without case.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().flat_map(char::to_lowercase).collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.chars().flat_map(char::to_lowercase).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], index + 1);
        for (column, other) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

/// Collects what is wrong. Its readers return a usable value in any case, so that checking goes on.
#[derive(Debug, Default)]
pub(super) struct Errors {
    list: Vec<ConfigError>,
}

impl Errors {
    pub(super) fn add(&mut self, path: impl Into<String>, problem: impl Into<String>, remedy: impl Into<String>) {
        self.list.push(ConfigError { path: path.into(), problem: problem.into(), remedy: remedy.into() });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(super) fn into_list(self) -> Vec<ConfigError> {
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
