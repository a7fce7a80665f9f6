//! Says in a status what kept a reconcile from coming to one: the condition Degraded alone, and leaves the rest as it is.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::ObjectReference,
    apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time},
};
use serde_json::{Value, json};
use tracing::warn;

use super::World;
use crate::{error::ReconcileError, events, kinds::GATEWAY, observe::mirror::Name};

impl World {
    /// Tells the user of a reconcile that did not come to its end, if it is for the user to know. A status that cannot be
    /// written either is logged: it is tried again with the reconcile.
    pub(super) async fn failed(&self, name: &Name, failure: &ReconcileError, now: Timestamp) {
        let failures = self.work.queue().failures(name);
        if !failure.kind.is_told(failures) || self.writer.leadership.epoch().is_none() {
            return;
        }
        let Some((mirrored, version)) = self.mirror.versioned(&GATEWAY, name) else { return };
        if mirrored.ends {
            return;
        }
        let told = self.degrade(name, (&mirrored.body(), version), verdict(failure), now).await;
        if let Err(error) = told {
            warn!(gateway = %name, %error, "why a reconcile failed is not in the status");
        }
    }

    /// Writes it where it differs, and publishes what changed.
    pub(super) async fn degrade(
        &self,
        name: &Name,
        (body, version): (&Value, String),
        (reason, message): (&str, String),
        now: Timestamp,
    ) -> Result<(), ReconcileError> {
        let before = body.get("status").cloned().unwrap_or_else(|| json!({}));
        let after = status(&before, &body["metadata"]["generation"], (reason, message), now);
        if after == before {
            return Ok(());
        }
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
        Ok(())
    }
}

/// Reason and message: what failed, and what to do.
fn verdict(failure: &ReconcileError) -> (&'static str, String) {
    let advice =
        failure.kind.advice().unwrap_or("correct the spec, or what is in the way; it is tried again by itself");
    (failure.kind.reason(), format!("{}: {}; {advice}; what runs is left as it is", failure.object, failure.message))
}

fn conditions(status: &Value) -> Vec<Condition> {
    serde_json::from_value(status["conditions"].clone()).unwrap_or_default()
}

/// The status as it was, but for what it says about being as desired.
fn status(before: &Value, generation: &Value, (reason, message): (&str, String), now: Timestamp) -> Value {
    let mut conditions = conditions(before);
    let same = conditions.iter().find(|each| each.type_ == "Degraded" && each.status == "True");
    let degraded = Condition {
        type_: "Degraded".to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation.as_i64(),
        last_transition_time: same.map_or(Time(now), |same| same.last_transition_time.clone()),
    };
    match conditions.iter_mut().find(|each| each.type_ == "Degraded") {
        Some(before) => *before = degraded,
        None => conditions.push(degraded),
    }
    let mut after = before.clone();
    after["conditions"] = json!(conditions);
    after
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Kind, Step};

    fn failure(kind: Kind) -> ReconcileError {
        let (object, message) = ("Secret gw-tls".to_owned(), "no answer".to_owned());
        ReconcileError { step: Step::Observe, kind, object, message }
    }

    #[test]
    fn it_is_said_once_and_all_else_stays() {
        let before = json!({"replicas": 2, "future": {"x": 1}, "conditions": [
            {"type": "Degraded", "status": "False", "reason": "AsDesired", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Ready", "status": "True", "reason": "PodsReady", "message": "2", "lastTransitionTime": "2026-01-01T00:00:00Z"},
        ]});
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().expect("it is a time");
        let said = || ("Unreadable", "the spec cannot be read".to_owned());
        let after = status(&before, &json!(3), said(), now);
        assert_eq!((&after["replicas"], &after["future"]), (&json!(2), &json!({"x": 1})));
        assert_eq!(after["conditions"][1], before["conditions"][1]);
        assert_eq!(
            (&after["conditions"][0]["status"], &after["conditions"][0]["reason"]),
            (&json!("True"), &json!("Unreadable"))
        );
        let later = now + jiff::SignedDuration::from_secs(60);
        assert_eq!(status(&after, &json!(3), said(), later), after, "said twice the same, it is the same");
        let first = status(&json!({}), &json!(1), said(), now);
        assert_eq!(conditions(&first).len(), 1, "one that had no status yet has one");
    }

    #[test]
    fn the_reason_follows_the_kind_and_the_message_says_what_to_do() {
        for (kind, reason, says) in [
            (Kind::Forbidden, "Forbidden", "upgrade its chart"),
            (Kind::Failing, "ApiFailing", "admission webhooks"),
            (Kind::Unavailable, "ApiUnavailable", "not overloaded"),
            (Kind::Refused, "Refused", "correct the spec"),
        ] {
            let (said, message) = verdict(&failure(kind));
            assert_eq!(said, reason);
            assert!(message.starts_with("Secret gw-tls: no answer; ") && message.contains(says), "{message}");
        }
    }
}
