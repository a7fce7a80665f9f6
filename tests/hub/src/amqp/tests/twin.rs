//! Twin links.

use bytes::Bytes;
use fe2o3_amqp_types::messaging::{Annotations, MessageAnnotations, MessageId, Properties};
use serde_amqp::Value;
use serde_amqp::primitives::Uuid;

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::amqp::message::{Body, Message, Outgoing};
use crate::amqp::twin::key;
use crate::domain::{Identity, IfMatch, TwinChange};

const TWIN: &str = "/devices/d/twin";
const NOTIFICATIONS: &str = "/notifications/twin/properties/desired";

fn with_twin() -> Peer {
    let mut peer = Peer::in_session(AmqpSettings::default());
    peer.register("d");
    peer.attach(0, &paired(sender(0, "TwinSenderLink", TWIN), "twin:1"));
    peer.attach(0, &paired(receiver(1, "TwinReceiverLink", TWIN), "twin:1"));
    peer.give_credit(0, 1, 100);
    peer
}

fn request(id: MessageId, operation: &str, resource: Option<&str>, body: &'static str) -> Outgoing {
    let mut annotations = Annotations::new();
    annotations.insert(key("operation"), Value::String(operation.into()));
    if let Some(resource) = resource {
        annotations.insert(key("resource"), Value::String(resource.into()));
    }
    Outgoing {
        annotations: Some(MessageAnnotations(annotations)),
        properties: Some(Properties { correlation_id: Some(id), ..Properties::default() }),
        data: Some(Bytes::from_static(body.as_bytes())),
        ..Outgoing::default()
    }
}

fn ask(peer: &mut Peer, operation: &str, resource: Option<&str>, body: &'static str) -> Message {
    peer.send(0, 0, &request(MessageId::String("Get1".into()), operation, resource, body));
    peer.messages().pop().expect("an answer")
}

fn annotation(message: &Message, name: &str) -> Option<Value> {
    message.annotations.as_ref()?.0.get(&key(name)).cloned()
}

fn json(message: &Message) -> serde_json::Value {
    serde_json::from_slice(&message.body_bytes()).expect("JSON")
}

fn desire(peer: &Peer, patch: &serde_json::Value) {
    let change = TwinChange { tags: None, desired: patch.as_object().cloned() };
    let identity = Identity::device("d");
    peer.domain.twins.patch(&identity, &change, &IfMatch::Any, peer.now.unix_ms).expect("a twin");
}

#[test]
fn get_answers_200_as_int_with_both_documents_in_one_data_section() {
    let mut peer = with_twin();
    let answer = ask(&mut peer, "GET", None, " ");
    assert_eq!(annotation(&answer, "status"), Some(Value::Int(200)));
    assert_eq!(json(&answer), serde_json::json!({"desired": {"$version": 1}, "reported": {"$version": 1}}));
    assert!(matches!(&answer.body, Body::Data(sections) if sections.len() == 1));
}

#[test]
fn the_correlation_id_comes_back_with_its_type() {
    let mut peer = with_twin();
    for id in [MessageId::String("Get1".into()), MessageId::Uuid(Uuid::from([9; 16])), MessageId::Ulong(3)] {
        peer.send(0, 0, &request(id.clone(), "GET", None, ""));
        let answer = peer.messages().pop().expect("an answer");
        assert_eq!(answer.properties.and_then(|properties| properties.correlation_id), Some(id));
    }
}

#[test]
fn patch_answers_204_with_the_new_version_as_long_and_an_empty_section() {
    let mut peer = with_twin();
    let answer = ask(&mut peer, "PATCH", Some("/properties/reported"), r#"{"a":1}"#);
    assert_eq!(annotation(&answer, "status"), Some(Value::Int(204)));
    assert_eq!(annotation(&answer, "version"), Some(Value::Long(2)));
    assert_eq!(answer.body, Body::Data(vec![Bytes::new()]));
    let twin = json(&ask(&mut peer, "GET", None, ""));
    assert_eq!(twin["reported"], serde_json::json!({"a": 1, "$version": 2}));
}

#[test]
fn bad_patches_and_unknown_operations_answer_an_error_body() {
    let mut peer = with_twin();
    for (operation, resource, body) in [
        ("PATCH", Some("/properties/reported"), "{"),
        ("PATCH", Some("/properties/reported"), r#"{"$x":1}"#),
        ("PATCH", Some("/properties/desired"), "{}"),
        ("POST", None, ""),
        ("GET", Some("/elsewhere"), ""),
    ] {
        let answer = ask(&mut peer, operation, resource, body);
        assert_eq!(annotation(&answer, "status"), Some(Value::Int(400)), "{operation} {resource:?} {body}");
        assert_eq!(json(&answer)["errorCode"], 400_004);
    }
}

#[test]
fn put_subscribes_to_desired_changes_and_delete_ends_that() {
    let mut peer = with_twin();
    desire(&peer, &serde_json::json!({"early": 1}));
    assert!(peer.messages().is_empty());
    assert_eq!(annotation(&ask(&mut peer, "PUT", Some(NOTIFICATIONS), ""), "status"), Some(Value::Int(200)));
    desire(&peer, &serde_json::json!({"k": 1}));
    desire(&peer, &serde_json::json!({"k": null}));
    let notifications = peer.messages();
    assert_eq!(json(&notifications[0]), serde_json::json!({"k": 1, "$version": 3}));
    assert_eq!(json(&notifications[1]), serde_json::json!({"k": null, "$version": 4}));
    let first = &notifications[0];
    assert_eq!(annotation(first, "version"), Some(Value::Long(3)));
    assert_eq!(annotation(first, "resource"), Some(Value::String("/properties/desired".into())));
    assert!(first.properties.as_ref().is_none_or(|properties| properties.correlation_id.is_none()));
    let answer = ask(&mut peer, "DELETE", Some(NOTIFICATIONS), "");
    assert!(matches!(annotation(&answer, "status"), Some(Value::Int(200..=204))));
    desire(&peer, &serde_json::json!({"k": 2}));
    assert!(peer.messages().is_empty());
}

#[test]
fn answers_and_notifications_are_settled_and_requests_are_accepted_when_unsettled() {
    let mut peer = with_twin();
    peer.send(0, 0, &request(MessageId::Ulong(1), "GET", None, ""));
    let frames = peer.frames();
    assert!(outcomes(&frames)[0].3.is_accepted());
    let settled = frames.iter().find_map(|p| match p {
        crate::amqp::frame::Performative::Transfer(transfer, _) => transfer.settled,
        _ => None,
    });
    assert_eq!(settled, Some(true));
}

#[test]
fn links_pair_by_their_correlation_and_need_it() {
    let mut peer = Peer::in_session(AmqpSettings::default());
    peer.register("d");
    let frames = peer.attach(0, &sender(0, "t", TWIN));
    assert_eq!(ending(&frames).as_deref(), Some("DETACH com.microsoft:argument-error"));
    peer.put(0, &detach(0));
    peer.attach(0, &paired(sender(0, "a", TWIN), "twin:1"));
    peer.attach(0, &paired(receiver(1, "b", TWIN), "twin:2"));
    peer.give_credit(0, 1, 10);
    peer.send(0, 0, &request(MessageId::Ulong(1), "GET", None, ""));
    assert!(peer.messages().is_empty(), "another pair's receiver is no answer link");
    peer.attach(0, &paired(receiver(2, "c", TWIN), "twin:1"));
    peer.give_credit(0, 2, 10);
    peer.send(0, 0, &request(MessageId::Ulong(1), "GET", None, ""));
    assert_eq!(peer.messages().len(), 1);
    peer.put(0, &detach(2));
    peer.send(0, 0, &request(MessageId::Ulong(1), "GET", None, ""));
    assert!(peer.messages().is_empty(), "the pair is broken");
}

#[test]
fn answers_wait_for_credit_and_too_many_of_them_end_the_link() {
    let mut peer = Peer::in_session(AmqpSettings { answers_max: 3, ..AmqpSettings::default() });
    peer.register("d");
    peer.attach(0, &paired(sender(0, "a", TWIN), "1"));
    peer.attach(0, &paired(receiver(1, "b", TWIN), "1"));
    for n in 0..3 {
        peer.send(0, 0, &request(MessageId::Ulong(n), "GET", None, ""));
    }
    assert!(peer.messages().is_empty());
    peer.give_credit(0, 1, 2);
    assert_eq!(peer.messages().len(), 2);
    for n in 0..3 {
        peer.send(0, 0, &request(MessageId::Ulong(n), "GET", None, ""));
    }
    assert_eq!(ending(&peer.frames()).as_deref(), Some("DETACH amqp:resource-limit-exceeded"));
}
