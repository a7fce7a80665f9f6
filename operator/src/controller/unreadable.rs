//! A ProtocolGateway that the API server took and this program cannot read: one of an older or a newer definition. It is left as
//! it is, pods and all, and its condition says so.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time},
};
use serde_json::{Value, json};

use super::{Next, REST, World};
use crate::{error::ReconcileError, events, observe::mirror::Name};

impl World {
    /// Says it in the status, and leaves the rest of it as it is.
    pub(super) async fn unreadable(
        &self,
        name: &Name,
        (body, version): (&Value, String),
        why: &serde_json::Error,
        now: Timestamp,
    ) -> Result<Next, ReconcileError> {
        if self.writer.leadership.epoch().is_none() {
            return Ok(Next::After(REST));
        }
        let before = body.get("status").cloned().unwrap_or_else(|| json!({}));
        let after = status(&before, &body["metadata"]["generation"], why, now);
        if after != before {
            let uid = body["metadata"]["uid"].as_str();
            let written_over = ObjectMeta {
                name: Some(name.name.clone()),
                namespace: Some(name.namespace.clone()),
                uid: uid.map(str::to_owned),
                resource_version: Some(version),
                ..ObjectMeta::default()
            };
            self.writer.raw_status(&written_over, &after).await?;
            let about = ObjectReference {
                api_version: Some(crds::API_VERSION.to_owned()),
                kind: Some(crds::KIND.to_owned()),
                name: Some(name.name.clone()),
                namespace: Some(name.namespace.clone()),
                uid: uid.map(str::to_owned),
                ..ObjectReference::default()
            };
            self.events.publish(&about, events::news(&conditions(&before), &conditions(&after))).await;
        }
        Ok(Next::After(REST))
    }
}

fn conditions(status: &Value) -> Vec<Condition> {
    serde_json::from_value(status["conditions"].clone()).unwrap_or_default()
}

/// The status as it was, but for what it says about being as desired.
fn status(before: &Value, generation: &Value, why: &serde_json::Error, now: Timestamp) -> Value {
    let message =
        format!("the spec cannot be read: {why}; upgrade the operator or correct the spec; what runs is left as it is");
    let mut conditions = conditions(before);
    let same = conditions.iter().find(|each| each.type_ == "Degraded" && each.status == "True");
    let degraded = Condition {
        type_: "Degraded".to_owned(),
        status: "True".to_owned(),
        reason: "Unreadable".to_owned(),
        message,
        observed_generation: generation.as_i64(),
        last_transition_time: same.map_or(Time(now), |same| same.last_transition_time.clone()),
    };
    conditions.retain(|each| each.type_ != "Degraded");
    conditions.push(degraded);
    let mut after = before.clone();
    after["conditions"] = json!(conditions);
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_and_all_else_stays() {
        let why = serde_json::from_str::<u8>("{}").expect_err("it is no number");
        let before = json!({"replicas": 2, "future": {"x": 1}, "conditions": [
            {"type": "Ready", "status": "True", "reason": "PodsReady", "message": "2", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Degraded", "status": "False", "reason": "AsDesired", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]});
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("it is a time");
        let after = status(&before, &json!(3), &why, now);
        assert_eq!((&after["replicas"], &after["future"]), (&json!(2), &json!({"x": 1})));
        assert_eq!(after["conditions"][0], before["conditions"][0]);
        assert_eq!(
            (&after["conditions"][1]["status"], &after["conditions"][1]["reason"]),
            (&json!("True"), &json!("Unreadable"))
        );
        let later = now + jiff::SignedDuration::from_secs(60);
        assert_eq!(status(&after, &json!(3), &why, later), after, "said twice the same, it is the same");
    }
}
