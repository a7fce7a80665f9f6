//! The YAML as a tree that knows where each node stands. What a node must be is not known here.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{Location, Spanned, options::DuplicateKeyPolicy};

use super::error::{ConfigError, Place};

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

/// What YAML makes of what was written; plain `yes`, `no`, `on` and `off` are text, as in YAML 1.2.
#[derive(Debug)]
pub(super) enum Value {
    Nothing,
    Bool(bool),
    Integer(i64),
    /// With a fraction or an exponent, or beyond an `i64`.
    Number(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file; a name may stand there twice.
    Fields(Vec<(Name, Node)>),
}

/// The name of a field and where it stands.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) place: Place,
    pub(super) text: String,
}

/// Reads one document.
///
/// # Errors
/// The first thing that is not YAML: nothing after it has a meaning.
pub(super) fn parse(yaml: &str) -> Result<Node, ConfigError> {
    let options = serde_saphyr::options! {
        // both of a pair are handed on: the reader of fields reports the second with all else that is wrong
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options(yaml, options).map_err(|error| ConfigError::from_yaml(&error))
}

impl Value {
    /// What this is, as the end of a sentence. Never the value itself: it may be a secret in the wrong place.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nothing => "is empty",
            Self::Bool(true) => "is true",
            Self::Bool(false) => "is false",
            Self::Integer(_) => "is a number",
            Self::Number(_) => "is a number with a fraction or out of range",
            Self::Text(_) => "is text",
            Self::List(_) => "is a list",
            Self::Fields(_) => "has fields",
        }
    }
}

impl Place {
    fn of(location: Location) -> Self {
        Self { line: location.line(), column: location.column() }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { place: Place::of(referenced), value })
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<String>::deserialize(deserializer)?;
        Ok(Self { place: Place::of(referenced), text: value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("fields, a list, text, a number, true or false")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Nothing)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Integer(number))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Value, E> {
        Ok(i64::try_from(number).map_or(Value::Number(number as f64), Value::Integer))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = entries.next_entry()? {
            fields.push(field);
        }
        Ok(Value::Fields(fields))
    }
}
