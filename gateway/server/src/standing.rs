//! How the gateway stands to its configuration and its secrets: what is in force, what is wrong with what came after it.
//!
//! Written by the one that reloads, read by the admin port.

use std::collections::BTreeMap;

/// How it stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Names the text of the configuration in force; empty if it came from no file.
    pub in_force: String,
    /// What is wrong with the file as it is now, if that is not in force.
    pub problem: Option<String>,
    /// Fields of the file in force that wait for a restart.
    pub needs_restart: Vec<&'static str>,
    /// What is wrong with secrets that are not in force, by their names.
    pub secrets: BTreeMap<String, String>,
}

impl Standing {
    /// What is wrong with secrets, in one text.
    pub fn secrets_problem(&self) -> Option<String> {
        let problems: Vec<&str> = self.secrets.values().map(String::as_str).collect();
        (!problems.is_empty()).then(|| problems.join("; "))
    }
}
