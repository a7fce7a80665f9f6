//! One half of a twin: a JSON object with a version and metadata, changed by merge patches (contract §2.9).

use serde_json::{Map, Value, json};

use super::clock::iso8601;
use super::error::{ErrorCode, HubError};

/// What is inside one JSON object.
pub type Object = Map<String, Value>;

const DEPTH_MAX: usize = 10;
const KEY_BYTES_MAX: usize = 1024;
const STRING_BYTES_MAX: usize = 4096;
const INTEGER_MAX: u64 = 1 << 52;

/// A document with its version: `desired`, `reported`, or (without metadata) `tags`.
#[derive(Clone, Debug)]
pub struct Document {
    /// The properties, without `$version` and `$metadata`.
    pub properties: Object,
    /// Rises by one with every change, from 1.
    pub version: u64,
    /// When it changed last, Unix milliseconds.
    updated_ms: u64,
    /// `$metadata` by key, without the document's own stamp: an untouched document allocates nothing.
    metadata: Object,
    bytes_max: usize,
}

impl Document {
    /// An empty document of at most so many bytes, counted as the hub counts ([`size`]).
    pub fn new(bytes_max: usize, now_ms: u64) -> Self {
        Self { properties: Object::new(), version: 1, updated_ms: now_ms, metadata: Object::new(), bytes_max }
    }

    /// Merges a patch: `null` deletes, objects merge, all else replaces. Returns the new version.
    ///
    /// # Errors
    /// `ArgumentInvalid`, `MessageTooLarge`; the document stays as it was.
    pub fn merge(&mut self, patch: &Object, now_ms: u64) -> Result<u64, HubError> {
        check(patch)?;
        let mut properties = self.properties.clone();
        merge(&mut properties, patch);
        check_depth(&properties)?;
        self.check_size(&properties)?;
        touch(&mut self.metadata, patch, now_ms);
        self.updated_ms = now_ms;
        self.properties = properties;
        self.version += 1;
        Ok(self.version)
    }

    /// Replaces all properties. Returns the equivalent patch: the new ones, and `null` for each one removed.
    ///
    /// # Errors
    /// As [`Self::merge`].
    pub fn replace(&mut self, with: &Object, now_ms: u64) -> Result<Object, HubError> {
        check(with)?;
        let mut properties = Object::new();
        merge(&mut properties, with);
        check_depth(&properties)?;
        self.check_size(&properties)?;
        let mut patch = with.clone();
        for key in self.properties.keys().filter(|key| !with.contains_key(*key)) {
            patch.insert(key.clone(), Value::Null);
        }
        self.metadata = Object::new();
        touch(&mut self.metadata, with, now_ms);
        self.updated_ms = now_ms;
        self.properties = properties;
        self.version += 1;
        Ok(patch)
    }

    /// The device's view: properties and `$version`.
    pub fn device_json(&self) -> Value {
        let mut json = self.properties.clone();
        json.insert("$version".to_owned(), json!(self.version));
        Value::Object(json)
    }

    /// The service's view: with `$metadata` too.
    pub fn service_json(&self) -> Value {
        let mut json = self.properties.clone();
        let mut metadata = self.metadata.clone();
        metadata.insert("$lastUpdated".to_owned(), json!(iso8601(self.updated_ms)));
        json.insert("$metadata".to_owned(), Value::Object(metadata));
        json.insert("$version".to_owned(), json!(self.version));
        Value::Object(json)
    }

    fn check_size(&self, properties: &Object) -> Result<(), HubError> {
        let bytes = object_size(properties);
        if bytes <= self.bytes_max {
            return Ok(());
        }
        Err(HubError::new(
            ErrorCode::MessageTooLarge,
            format!("{bytes} bytes are more than {} allowed", self.bytes_max),
        ))
    }
}

/// Takes out `$version` and `$metadata`, which clients send back as they got them.
pub(super) fn without_system_keys(object: &Object) -> Object {
    let system = |key: &str| key == "$version" || key == "$metadata";
    object.iter().filter(|(key, _)| !system(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Bytes as the hub counts them: keys and strings in UTF-8, a number 8, a boolean 4, null none.
pub(super) fn size(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(object) => object_size(object),
    }
}

fn object_size(object: &Object) -> usize {
    object.iter().map(|(key, value)| key.len() + size(value)).sum()
}

fn merge(into: &mut Object, patch: &Object) {
    for (key, value) in patch {
        match (value, into.get_mut(key)) {
            (Value::Null, _) => {
                into.remove(key);
            }
            (Value::Object(patch), Some(Value::Object(present))) => merge(present, patch),
            (Value::Object(patch), _) => {
                // a new object is merged into nothing, so that its nulls do not stay
                let mut fresh = Object::new();
                merge(&mut fresh, patch);
                into.insert(key.clone(), Value::Object(fresh));
            }
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

fn stamped(now_ms: u64) -> Object {
    let mut metadata = Object::new();
    metadata.insert("$lastUpdated".to_owned(), json!(iso8601(now_ms)));
    metadata
}

/// Stamps every key that the patch changes and every level above it; a deleted key loses its entry and leaves its trace one level up.
fn touch(metadata: &mut Object, patch: &Object, now_ms: u64) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                metadata.remove(key);
            }
            Value::Object(patch) => {
                let below = metadata.entry(key.clone()).or_insert_with(|| Value::Object(Object::new()));
                if let Value::Object(below) = below {
                    below.insert("$lastUpdated".to_owned(), json!(iso8601(now_ms)));
                    touch(below, patch, now_ms);
                }
            }
            _ => {
                metadata.insert(key.clone(), Value::Object(stamped(now_ms)));
            }
        }
    }
}

fn check(object: &Object) -> Result<(), HubError> {
    object.iter().try_for_each(|(key, value)| {
        check_key(key)?;
        check_value(value)
    })
}

fn check_key(key: &str) -> Result<(), HubError> {
    let illegal = |c: char| c.is_control() || matches!(c, '.' | ' ' | '$');
    if key.is_empty() || key.len() > KEY_BYTES_MAX || key.contains(illegal) {
        return Err(invalid("a key is too long or holds a control character, '.', ' ' or '$'"));
    }
    Ok(())
}

fn check_value(value: &Value) -> Result<(), HubError> {
    match value {
        Value::String(text) if text.len() > STRING_BYTES_MAX => Err(invalid("a string is longer than 4096 bytes")),
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            let magnitude = number.as_i64().map_or_else(|| number.as_u64().unwrap_or(u64::MAX), i64::unsigned_abs);
            if magnitude > INTEGER_MAX { Err(invalid("an integer is outside ±2^52")) } else { Ok(()) }
        }
        Value::Array(items) => items.iter().try_for_each(check_value),
        Value::Object(object) => check(object),
        _ => Ok(()),
    }
}

fn check_depth(object: &Object) -> Result<(), HubError> {
    fn depth(value: &Value) -> usize {
        match value {
            Value::Object(object) => 1 + object.values().map(depth).max().unwrap_or(0),
            Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
            _ => 0,
        }
    }
    let deepest = object.values().map(depth).max().unwrap_or(0);
    if deepest < DEPTH_MAX { Ok(()) } else { Err(invalid("the document is nested deeper than 10 levels")) }
}

fn invalid(message: &'static str) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: Value) -> Object {
        match json {
            Value::Object(object) => object,
            other => panic!("not an object: {other}"),
        }
    }

    fn check_patch(patch: Value, expected: Option<ErrorCode>) {
        let mut document = Document::new(32 * 1024, 1_000);
        let before = document.device_json();
        let result = document.merge(&object(patch), 2_000);
        assert_eq!(result.as_ref().err().map(|error| error.code), expected);
        if expected.is_some() {
            assert_eq!(document.device_json(), before);
        }
    }

    #[test]
    fn a_patch_merges_and_null_deletes() {
        let mut document = Document::new(32 * 1024, 1_000);
        document.merge(&object(json!({"a": {"b": 1, "c": 2}, "d": 3})), 2_000).expect("legal");
        document.merge(&object(json!({"a": {"b": null, "e": {"f": null}}, "d": [1]})), 3_000).expect("legal");
        assert_eq!(document.device_json(), json!({"a": {"c": 2, "e": {}}, "d": [1], "$version": 3}));
    }

    #[test]
    fn metadata_is_stamped_at_every_level_that_changed() {
        let mut document = Document::new(32 * 1024, 1_000);
        document.merge(&object(json!({"a": {"b": 1}, "c": 2})), 2_000).expect("legal");
        document.merge(&object(json!({"a": {"b": null}})), 3_000).expect("legal");
        let json = document.service_json();
        assert_eq!(json["$metadata"]["$lastUpdated"], iso8601(3_000));
        assert_eq!(json["$metadata"]["a"], json!({"$lastUpdated": iso8601(3_000)}));
        assert_eq!(json["$metadata"]["c"]["$lastUpdated"], iso8601(2_000));
    }

    #[test]
    fn a_replace_names_what_it_removed() {
        let mut document = Document::new(32 * 1024, 1_000);
        document.merge(&object(json!({"a": 1, "b": 2})), 2_000).expect("legal");
        let patch = document.replace(&object(json!({"b": 3, "c": 4})), 3_000).expect("legal");
        assert_eq!(Value::Object(patch), json!({"a": null, "b": 3, "c": 4}));
        assert_eq!(document.device_json(), json!({"b": 3, "c": 4, "$version": 3}));
    }

    #[test]
    fn what_the_hub_refuses_leaves_the_document_as_it_was() {
        let deep = (0..10).fold(json!(1), |inner, _| json!({ "k": inner }));
        let too_deep = json!({ "k": deep });
        check_patch(deep, None);
        check_patch(too_deep, Some(ErrorCode::ArgumentInvalid));
        check_patch(json!({"a.b": 1}), Some(ErrorCode::ArgumentInvalid));
        check_patch(json!({"a": {"$b": 1}}), Some(ErrorCode::ArgumentInvalid));
        check_patch(json!({"a b": 1}), Some(ErrorCode::ArgumentInvalid));
        check_patch(json!({"a": "x".repeat(4096)}), None);
        check_patch(json!({"a": "x".repeat(4097)}), Some(ErrorCode::ArgumentInvalid));
        check_patch(json!({"a": 1_u64 << 52}), None);
        check_patch(json!({"a": (1_u64 << 52) + 1}), Some(ErrorCode::ArgumentInvalid));
        let strings: Object = (0..9).map(|n| (format!("k{n}"), json!("x".repeat(4000)))).collect();
        check_patch(Value::Object(strings), Some(ErrorCode::MessageTooLarge));
    }
}
