//! Whether an object stands as it was applied. Pure.
//!
//! Two things tell: the annotation with the hash of what was applied last, which finds what is not wanted any more, and every
//! wanted field's value, which finds what somebody changed. Fields that others added are theirs. Where the API server writes a
//! value in another form (`0.5` as `500m`) the two differ for ever: what came of an apply is remembered, and is right then.

use aws_lc_rs::digest;
use kube::core::DynamicObject;
use serde_json::{Map, Value, json};

use crate::{names, secrets};

/// How a live object stands to the wanted one.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// Every wanted field has its value.
    Same,
    /// Some have another: what they have, as a hash together with what was wanted.
    Differs(String),
}

impl Standing {
    /// What to remember if this is what an apply came to; nothing if it is the same.
    pub fn differs(&self) -> Option<&String> {
        match self {
            Self::Same => None,
            Self::Differs(hash) => Some(hash),
        }
    }
}

/// The object with the annotation of its hash, and the hash.
pub fn stamped(mut object: DynamicObject) -> (DynamicObject, String) {
    let hash = hash(&json!(object).to_string());
    object.metadata.annotations.get_or_insert_default().insert(names::APPLIED.to_owned(), hash.clone());
    (object, hash)
}

/// How `live` stands to `wanted`, which is [`stamped`].
pub fn settled(wanted: &DynamicObject, live: &Value) -> Standing {
    let mut wanted = json!(wanted);
    if let Value::Object(fields) = &mut wanted {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    let seen = seen(&wanted, live);
    if seen == wanted { Standing::Same } else { Standing::Differs(hash(&format!("{wanted}{seen}"))) }
}

/// An answer in the form in which objects are compared.
pub fn comparable(object: &DynamicObject) -> Value {
    let mut value = object.data.clone();
    value["metadata"] = json!(object.metadata);
    value
}

/// As much of `live` as `wanted` speaks of.
fn seen(wanted: &Value, live: &Value) -> Value {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            let fields = wanted.iter().filter_map(|(key, wanted)| Some((key.clone(), seen(wanted, live.get(key)?))));
            Value::Object(fields.collect::<Map<_, _>>())
        }
        (Value::Array(wanted), Value::Array(live)) => Value::Array(elements(wanted, live)),
        _ => live.clone(),
    }
}

/// Elements one by one, where there are as many; others are found by name, if all have one: somebody may have added some.
fn elements(wanted: &[Value], live: &[Value]) -> Vec<Value> {
    if wanted.len() == live.len() {
        return wanted.iter().zip(live).map(|(wanted, live)| seen(wanted, live)).collect();
    }
    let keys = ["name", "uid"];
    let Some(key) = keys.into_iter().find(|key| wanted.iter().all(|element| element[key].is_string())) else {
        return live.to_vec();
    };
    let same = |wanted: &Value| live.iter().find(|live| live[key] == wanted[key]);
    wanted.iter().filter_map(|wanted| Some(seen(wanted, same(wanted)?))).collect()
}

fn hash(text: &str) -> String {
    secrets::hex(&digest::digest(&digest::SHA256, text.as_bytes()).as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(spec: &Value) -> DynamicObject {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec});
        serde_json::from_value(object).expect("it is an object")
    }

    fn check(wanted: &Value, change: impl FnOnce(&mut Value), same: bool) {
        let (wanted, _) = stamped(object(wanted));
        let mut live = comparable(&wanted);
        change(&mut live);
        assert_eq!(settled(&wanted, &live) == Standing::Same, same, "{live}");
    }

    #[test]
    fn what_others_add_is_theirs_and_what_they_change_is_not() {
        let wanted = json!({"ports": [{"name": "a", "port": 1}], "selector": {"x": "y"}, "type": "NodePort"});
        check(&wanted, |_| {}, true);
        check(&wanted, |live| live["spec"]["clusterIP"] = json!("10.0.0.1"), true);
        check(&wanted, |live| live["spec"]["ports"][0]["nodePort"] = json!(30000), true);
        check(&wanted, |live| live["metadata"]["annotations"]["theirs"] = json!("z"), true);
        check(&wanted, |live| live["spec"]["selector"]["x"] = json!("z"), false);
        check(&wanted, |live| drop(live["spec"].as_object_mut().expect("a spec").remove("type")), false);
        check(&wanted, |live| live["spec"]["ports"] = json!([]), false);
        check(
            &wanted,
            |live| live["spec"]["ports"] = json!([{"name": "b", "port": 2}, {"name": "a", "port": 1}]),
            true,
        );
        check(
            &wanted,
            |live| live["spec"]["ports"] = json!([{"name": "b", "port": 2}, {"name": "a", "port": 3}]),
            false,
        );
        check(&json!({"list": ["a"]}), |live| live["spec"]["list"] = json!(["a", "b"]), false);
    }

    #[test]
    fn what_is_not_wanted_any_more_is_found_by_the_hash_of_what_was_applied() {
        let (before, _) = stamped(object(&json!({"type": "NodePort", "externalTrafficPolicy": "Local"})));
        let (now, _) = stamped(object(&json!({"type": "NodePort"})));
        assert_ne!(settled(&now, &comparable(&before)), Standing::Same);
    }

    #[test]
    fn a_value_that_the_api_server_writes_otherwise_is_remembered() {
        let (wanted, _) = stamped(object(&json!({"cpu": "0.5"})));
        let mut live = comparable(&wanted);
        live["spec"]["cpu"] = json!("500m");
        let came_of_it = settled(&wanted, &live);
        assert_ne!(came_of_it, Standing::Same);
        live["metadata"]["resourceVersion"] = json!("7");
        assert_eq!(settled(&wanted, &live), came_of_it, "it is the same again");
        live["spec"]["cpu"] = json!("2");
        assert_ne!(settled(&wanted, &live), came_of_it, "somebody changed it");
    }
}
