//! An API server's judgement of an object without an API server: structural schema and CEL rules of the definition.
//!
//! What only a real one proves: that it takes the definition (structural, within the CEL cost budget), that its CEL reads the
//! rules as the library here does, and the exact wording of messages about forms.

pub(crate) mod table;

use std::collections::BTreeSet;

use kube::core::cel::Validator;
use serde_json::{Map, Value};

/// The definition's schema, ready to judge.
pub(crate) struct ApiServer {
    schema: Value,
}

impl ApiServer {
    pub(crate) fn new() -> Self {
        let definition = serde_json::to_value(crds::definition()).expect("a definition is JSON");
        Self { schema: definition.pointer("/spec/versions/0/schema/openAPIV3Schema").expect("it has a schema").clone() }
    }

    pub(crate) fn schema(&self) -> &Value {
        &self.schema
    }

    /// What a create would be answered with; nothing if the object is taken. Rules are asked only of what has the right form.
    pub(crate) fn create(&self, object: &Value) -> Vec<String> {
        judge(&self.schema, &kube::core::cel::apply_defaults(&self.schema, object))
    }

    /// The object as it would be stored.
    pub(crate) fn stored(&self, object: &Value) -> Value {
        kube::core::cel::apply_defaults(&self.schema, object)
    }
}

/// What is said to a value, given the schema of where it stands.
pub(crate) fn judge(schema: &Value, value: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    structural(schema, value, "", &mut errors);
    if errors.is_empty()
        && let Err(broken) = Validator::new().validate(schema, value, None)
    {
        errors.extend(broken.as_slice().iter().map(|error| format!("{}: {}", error.field_path, error.message)));
    }
    errors
}

fn structural(schema: &Value, value: &Value, path: &str, errors: &mut Vec<String>) {
    let int_or_string = schema.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    match (schema.get("type").and_then(Value::as_str), value) {
        (Some("object"), Value::Object(object)) => members(schema, object, path, errors),
        (Some("array"), Value::Array(list)) => elements(schema, list, path, errors),
        (Some("string"), Value::String(text)) => string(schema, text, path, errors),
        (Some("integer"), Value::Number(number)) if number.is_i64() => range(schema, value, path, errors),
        (Some("number"), Value::Number(_)) => range(schema, value, path, errors),
        (Some("boolean"), Value::Bool(_)) => {}
        (None, Value::String(_) | Value::Number(_)) if int_or_string => {}
        (kind, _) => errors.push(format!("{path}: Invalid value: must be of type {}", kind.unwrap_or("int-or-string"))),
    }
}

fn members(schema: &Value, object: &Map<String, Value>, path: &str, errors: &mut Vec<String>) {
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if !object.contains_key(name) {
            errors.push(format!("{}: Required value", join(path, name)));
        }
    }
    count(schema, "Properties", object.len(), path, errors);
    let open = path.is_empty() || schema.get("x-kubernetes-preserve-unknown-fields").is_some();
    for (name, value) in object {
        let known = schema.get("properties").and_then(|properties| properties.get(name));
        match known.or_else(|| schema.get("additionalProperties")) {
            Some(schema) => structural(schema, value, &join(path, name), errors),
            None if open => {}
            None => errors.push(format!("unknown field \"{}\"", join(path, name))),
        }
    }
}

fn elements(schema: &Value, list: &[Value], path: &str, errors: &mut Vec<String>) {
    count(schema, "Items", list.len(), path, errors);
    for (index, value) in list.iter().enumerate() {
        structural(&schema["items"], value, &format!("{path}[{index}]"), errors);
    }
    let key = |value: &Value| match schema.get("x-kubernetes-list-type").and_then(Value::as_str) {
        Some("set") => Some(value.to_string()),
        Some("map") => {
            let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
            Some(keys.map(|key| value[key].to_string()).collect())
        }
        _ => None,
    };
    let mut seen = BTreeSet::new();
    for (index, value) in list.iter().enumerate() {
        if key(value).is_some_and(|key| !seen.insert(key)) {
            errors.push(format!("{path}[{index}]: Duplicate value"));
        }
    }
}

fn string(schema: &Value, text: &str, path: &str, errors: &mut Vec<String>) {
    if schema.get("pattern").is_some() {
        errors.push(format!("{path}: this judge reads no patterns: write a CEL rule"));
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array)
        && !values.iter().any(|value| value == text)
    {
        errors.push(format!("{path}: Unsupported value: \"{text}\""));
    }
    let bound = |key: &str| schema.get(key).and_then(Value::as_u64).map(|bound| bound as usize);
    if let Some(min) = bound("minLength").filter(|min| text.chars().count() < *min) {
        errors.push(format!("{path}: Invalid value: should be at least {min} chars long"));
    }
    if let Some(max) = bound("maxLength").filter(|max| text.chars().count() > *max) {
        errors.push(format!("{path}: Too long: may not be more than {max} bytes"));
    }
}

fn range(schema: &Value, value: &Value, path: &str, errors: &mut Vec<String>) {
    let number = value.as_f64().expect("it is a number");
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let Some(min) = bound("minimum").filter(|min| number < *min) {
        errors.push(format!("{path}: Invalid value: should be greater than or equal to {min}"));
    }
    if let Some(max) = bound("maximum").filter(|max| number > *max) {
        errors.push(format!("{path}: Invalid value: should be less than or equal to {max}"));
    }
}

fn count(schema: &Value, noun: &str, count: usize, path: &str, errors: &mut Vec<String>) {
    let bound = |key: String| schema.get(key).and_then(Value::as_u64).map(|bound| bound as usize);
    if let Some(min) = bound(format!("min{noun}")).filter(|min| count < *min) {
        errors.push(format!("{path}: Invalid value: should have at least {min} {}", noun.to_lowercase()));
    }
    if let Some(max) = bound(format!("max{noun}")).filter(|max| count > *max) {
        errors.push(format!("{path}: Too many: must have at most {max} {}", noun.to_lowercase()));
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
