//! Who a message is from or for: a device, or a module of a device.

use std::fmt;
use std::sync::Arc;

/// Ids are case-sensitive; path keywords around them are not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The device id.
    pub device: Arc<str>,
    /// The module id, for a module identity.
    pub module: Option<Arc<str>>,
}

impl Identity {
    /// The device of this id.
    pub fn device(id: &str) -> Self {
        Self { device: id.into(), module: None }
    }

    /// The module `module` of the device `device`.
    pub fn module(device: &str, module: &str) -> Self {
        Self { device: device.into(), module: Some(module.into()) }
    }

    /// The device this identity is or belongs to.
    #[must_use]
    pub fn parent(&self) -> Self {
        Self { device: self.device.clone(), module: None }
    }

    /// `/devices/{d}` or `/devices/{d}/modules/{m}`, ids as they are.
    pub fn path(&self) -> String {
        match &self.module {
            None => format!("/devices/{}", self.device),
            Some(module) => format!("/devices/{}/modules/{module}", self.device),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            None => f.write_str(&self.device),
            Some(module) => write!(f, "{}/{module}", self.device),
        }
    }
}

/// At most 128 characters, ASCII letters and digits and `- . + % _ # * ? ! ( ) , : = @ $ '` (contract §2.2).
pub fn is_legal_id(id: &str) -> bool {
    let legal = |c: u8| c.is_ascii_alphanumeric() || b"-.+%_#*?!(),:=@$'".contains(&c);
    (1..=128).contains(&id.len()) && id.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_limited_to_the_documented_characters() {
        for (id, legal) in [
            ("dev-1.+%_#*?!(),:=@$'", true),
            ("", false),
            ("a b", false),
            ("a/b", false),
            ("ä", false),
            (&*"x".repeat(128), true),
            (&*"x".repeat(129), false),
        ] {
            assert_eq!(is_legal_id(id), legal, "{id}");
        }
    }
}
