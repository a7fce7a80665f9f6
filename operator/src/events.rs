//! Events: what a user of `kubectl describe` should know, once for each change of a condition.

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client,
    core::response::StatusDetails,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::warn;

use crate::{kinds::POD, names, pods::Lost};

/// An Event's note has at most 1024 bytes.
const NOTE_BYTES_MAX: usize = 1000;

/// Something worth telling.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    /// Whether somebody should look.
    pub warning: bool,
    /// That of the condition.
    pub reason: String,
    /// What is, and what to do.
    pub note: String,
    /// A pod that it is about, too.
    pub pod: Option<String>,
}

/// What a condition means for users.
enum Meaning {
    /// `True` is good.
    Good,
    /// `True` is bad.
    Bad,
    /// It says what is under way.
    Neutral,
}

fn meaning(type_: &str) -> Meaning {
    match type_ {
        "Ready" | "CertificateServed" | "UpstreamConnected" | "MetricsApiAvailable" => Meaning::Good,
        "Progressing" | "Draining" | "Rebalancing" => Meaning::Neutral,
        _ => Meaning::Bad,
    }
}

/// What changed between two sets of conditions that is worth telling. What was not there before was neither good nor bad.
pub fn news(before: &[Condition], after: &[Condition]) -> Vec<News> {
    after.iter().filter_map(|now| tell(before.iter().find(|before| before.type_ == now.type_), now)).collect()
}

fn tell(before: Option<&Condition>, now: &Condition) -> Option<News> {
    let is = |condition: &Condition, status: &str| condition.status == status;
    let same = before.is_some_and(|before| is(before, &now.status) && before.reason == now.reason);
    let bad_before = |bad: &str| before.is_some_and(|before| is(before, bad));
    let warning = match meaning(&now.type_) {
        // what is wrong may change and stay wrong
        Meaning::Bad if is(now, "True") => (!same || before?.message != now.message).then_some(true),
        Meaning::Bad => (is(now, "False") && bad_before("True")).then_some(false),
        // a fleet that has just been made is not ready yet, and one that was told to have no pods is as it should be
        Meaning::Good if is(now, "False") => (!same && before.is_some() && now.reason != "Paused").then_some(true),
        Meaning::Good => (is(now, "True") && (bad_before("False") || now.type_ == "Ready") && !same).then_some(false),
        Meaning::Neutral if now.reason == "RolloutStuck" => (!same).then_some(true),
        Meaning::Neutral => (is(now, "True") && !same).then_some(false),
    };
    let (warning, note) = (warning?, clip(&now.message).to_owned());
    Some(News { warning, reason: now.reason.clone(), note, pod: None })
}

/// What is to be told of pods that went with devices.
pub fn lost(lost: &[Lost]) -> Option<News> {
    let pods: Vec<String> = lost.iter().map(|lost| format!("pod {} with {}", lost.pod, lost.connections)).collect();
    let note = format!(
        "connections went with their pods: {}; these devices reconnect outside spec.reconnects.perSecond",
        pods.join(", ")
    );
    let pod = Some(lost.first()?.pod.clone());
    Some(News { warning: true, reason: "ConnectionsLost".to_owned(), note: clip(&note).to_owned(), pod })
}

fn clip(text: &str) -> &str {
    let end = (0..=NOTE_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// Publishes Events.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// In the name of this replica.
    pub fn new(client: Client, pod: Option<String>) -> Self {
        Self(Recorder::new(client, Reporter { controller: names::OPERATOR_APP.to_owned(), instance: pod }))
    }

    /// Publishes `news` about an object. One that cannot be published is logged: Events are no promise.
    pub async fn publish(&self, about: &ObjectReference, news: Vec<News>) {
        for News { warning, reason, note, pod } in news {
            // Events that differ in nothing else are one, which keeps its first note
            let secondary = pod.map(|pod| ObjectReference {
                api_version: Some(POD.api_version()),
                kind: Some(POD.name.to_owned()),
                namespace: about.namespace.clone(),
                name: Some(pod),
                ..ObjectReference::default()
            });
            let event = Event {
                type_: if warning { EventType::Warning } else { EventType::Normal },
                reason,
                note: Some(note),
                action: "Reconcile".to_owned(),
                secondary,
            };
            if let Err(error) = self.0.publish(&event, about).await
                && !is_about_the_gone(&error)
            {
                warn!(object = about.name, event = event.reason, %error, "an Event cannot be published");
            }
        }
    }
}

/// A namespace that ends, or has ended, takes no Events.
fn is_about_the_gone(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let ends = |details: &StatusDetails| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating");
    status.code == 404 || status.details.as_ref().is_some_and(ends)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use serde_json::json;

    use super::*;

    type Row = (&'static str, &'static str, &'static str, &'static str);

    fn condition((type_, status, reason, message): Row) -> Condition {
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(Timestamp::UNIX_EPOCH),
            observed_generation: None,
        }
    }

    fn check(before: Option<Row>, now: Row, expected: Option<bool>) {
        let before: Vec<_> = before.into_iter().map(condition).collect();
        let told: Vec<_> = news(&before, &[condition(now)]).into_iter().map(|news| news.warning).collect();
        assert_eq!(told, expected.into_iter().collect::<Vec<_>>(), "{before:?} {now:?}");
    }

    #[test]
    fn a_change_is_told_once_and_what_stays_is_not() {
        let missing = ("Degraded", "True", "SecretMissing", "keys");
        let fine = ("Degraded", "False", "AsDesired", "nothing");
        check(None, fine, None);
        check(None, missing, Some(true));
        check(Some(fine), missing, Some(true));
        check(Some(missing), missing, None);
        check(Some(missing), ("Degraded", "True", "SecretMissing", "other keys"), Some(true));
        check(Some(missing), fine, Some(false));
    }

    #[test]
    fn events_of_what_is_gone_are_not_missed() {
        let answer = |code: u16, causes: &[&str]| {
            let cause = |reason: &&str| json!({"reason": reason, "message": "", "field": ""});
            let causes: Vec<_> = causes.iter().map(cause).collect();
            let status = json!({"code": code, "details": {"name": "default", "causes": causes}});
            kube::Error::Api(serde_json::from_value(status).expect("it is a Status"))
        };
        let check = |code, causes: &[&str], expected| {
            assert_eq!(is_about_the_gone(&answer(code, causes)), expected, "{code} {causes:?}");
        };
        check(403, &["NamespaceTerminating"], true);
        check(404, &[], true);
        check(403, &[], false);
        check(500, &["Other"], false);
    }

    #[test]
    fn becoming_ready_is_told_and_not_having_been_is_not() {
        let (ready, not) = (("Ready", "True", "PodsReady", "2"), ("Ready", "False", "PodsNotReady", "0"));
        check(None, not, None);
        check(Some(not), ready, Some(false));
        check(Some(ready), not, Some(true));
        check(Some(ready), ("Ready", "True", "PodsReady", "3"), None);
        check(Some(ready), ("Ready", "False", "Paused", "0"), None);
        check(Some(not), ("Ready", "False", "UpstreamFailing", "away"), Some(true));
        let unseen = ("UpstreamConnected", "Unknown", "NotSeen", "");
        check(Some(unseen), ("UpstreamConnected", "True", "Connected", ""), None);
        check(Some(unseen), ("UpstreamConnected", "False", "UpstreamFailing", ""), Some(true));
    }

    #[test]
    fn what_is_under_way_is_told_when_it_begins() {
        let (rest, rolls) = (("Progressing", "False", "Settled", ""), ("Progressing", "True", "RollingOut", "1 of 2"));
        check(Some(rest), rolls, Some(false));
        check(Some(rolls), ("Progressing", "True", "RollingOut", "2 of 2"), None);
        check(Some(rolls), rest, None);
        check(Some(rolls), ("Progressing", "False", "RolloutStuck", ""), Some(true));
    }

    #[test]
    fn pods_that_went_with_devices_are_told_together() {
        let one = |pod: &str, connections| Lost { pod: pod.to_owned(), connections };
        assert_eq!(lost(&[]), None);
        let news = lost(&[one("gw-1", 50), one("gw-2", 3)]).expect("it is told");
        assert!(news.warning && news.reason == "ConnectionsLost" && news.pod.as_deref() == Some("gw-1"), "{news:?}");
        let expected = "connections went with their pods: pod gw-1 with 50, pod gw-2 with 3; these devices reconnect outside \
                        spec.reconnects.perSecond";
        assert_eq!(news.note, expected);
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let told =
            news(&[], &[condition(("Degraded", "True", "InvalidSpec", Box::leak("ä".repeat(2000).into_boxed_str())))]);
        assert_eq!(told[0].note.len(), 1000);
    }
}
