//! What back ends do over AMQP.

use fe2o3_amqp_types::messaging::{ApplicationProperties, FilterSet, Source};
use fe2o3_amqp_types::performatives::Attach;
use fe2o3_amqp_types::primitives::SimpleValue;
use serde_amqp::Value;
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;
use serde_amqp::primitives::{OrderedMap, Symbol};

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::amqp::frame::Performative;
use crate::amqp::message::{Message, Outgoing};
use crate::amqp::twin::key;
use crate::domain::Identity;

fn with_service() -> Peer {
    let mut peer = Peer::in_session(AmqpSettings::default());
    peer.attach(0, &sender(50, "service", "/messages/deviceBound"));
    peer
}

fn for_device(to: &str, ack: Option<&str>) -> Outgoing {
    let mut sent = message("m-1", b"command");
    if let Some(properties) = &mut sent.properties {
        properties.to = Some(to.into());
    }
    let mut properties = OrderedMap::new();
    if let Some(ack) = ack {
        properties.insert("iothub-ack".to_owned(), SimpleValue::String(ack.into()));
    }
    properties.insert("number".to_owned(), SimpleValue::Int(1));
    Outgoing { application_properties: Some(ApplicationProperties(properties)), ..sent }
}

fn check(peer: &mut Peer, message: &Outgoing, expected: Option<&str>) {
    peer.send(0, 50, message);
    let outcomes = outcomes(&peer.frames());
    assert_eq!(rejection(&outcomes[0].3).as_deref(), expected, "{message:?}");
}

#[test]
fn messages_for_unknown_devices_full_queues_or_nobody_are_rejected() {
    let mut peer = with_service();
    peer.register("d");
    let to = "/devices/d/messages/deviceBound";
    check(&mut peer, &for_device(to, None), None);
    check(&mut peer, &for_device("/devices/x/messages/deviceBound", None), Some("amqp:not-found"));
    check(&mut peer, &for_device("/devices/d/modules/m/messages/deviceBound", None), Some("amqp:not-found"));
    check(&mut peer, &for_device("/devices/d/messages/events", None), Some("com.microsoft:argument-error"));
    check(&mut peer, &for_device(to, Some("perhaps")), Some("com.microsoft:argument-error"));
    let large = Outgoing { data: Some(vec![0; 64 * 1024 + 1].into()), ..for_device(to, None) };
    peer.send_payload_in_frames(0, 50, &large.encode(), 60_000);
    let rejected = outcomes(&peer.frames());
    assert_eq!(rejection(&rejected[0].3).as_deref(), Some("amqp:link:message-size-exceeded"));
    for _ in 1..50 {
        check(&mut peer, &for_device(to, None), None);
    }
    check(&mut peer, &for_device(to, None), Some("amqp:resource-limit-exceeded"));
}

#[test]
fn feedback_comes_in_batches_under_a_lock() {
    let mut peer = with_service();
    peer.register("d");
    peer.attach(0, &receiver(51, "feedback", "/messages/serviceBound/feedback"));
    peer.give_credit(0, 51, 10);
    peer.attach(0, &receiver(0, "c", "/devices/d/messages/deviceBound"));
    peer.give_credit(0, 0, 10);
    check(&mut peer, &for_device("/devices/d/messages/deviceBound", Some("full")), None);
    let command = peer.domain.c2d.depth(&Identity::device("d"));
    assert_eq!(command, 1);
    // the token's answer was transfer 0, the command is 1
    peer.put(0, &accept(1, true));
    peer.wait(15_001);
    let frames = peer.frames();
    let (transfer, batch) = frames
        .into_iter()
        .find_map(|p| match p {
            Performative::Transfer(transfer, payload) => Some((transfer, Message::parse(payload).expect("sound"))),
            _ => None,
        })
        .expect("a batch");
    let records: serde_json::Value = serde_json::from_slice(&batch.body_bytes()).expect("JSON");
    assert_eq!((&records[0]["originalMessageId"], &records[0]["statusCode"]), (&"m-1".into(), &"Success".into()));
    let content_type = batch.properties.and_then(|properties| properties.content_type);
    assert_eq!(content_type, Some(Symbol::from("application/vnd.microsoft.iothub.feedback.json")));
    peer.put(0, &accept(transfer.delivery_id.expect("an id"), false));
    let answer = outcomes(&peer.frames());
    assert!(answer[0].2 && answer[0].3.is_accepted(), "the second settle mode has its last word");
}

fn reader(handle: u32, partition: u16, selector: Option<&str>) -> Attach {
    let address = format!("/messages/events/ConsumerGroups/$Default/Partitions/{partition}");
    let mut filter = FilterSet::new();
    if let Some(selector) = selector {
        let descriptor = Descriptor::Name(Symbol::from("apache.org:selector-filter:string"));
        let described = Described { descriptor, value: Value::String(selector.into()) };
        filter.insert(Symbol::from("apache.org:selector-filter:string"), Value::Described(Box::new(described)));
    }
    let source = Source { filter: Some(filter), ..Source::from(address.as_str()) };
    Attach { source: Some(Box::new(source)), ..receiver(handle, &format!("r{handle}"), &address) }
}

#[test]
fn telemetry_is_readable_by_partition_from_the_place_a_selector_names() {
    let mut peer = with_service();
    let device = peer.register("d");
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    for n in 0..5 {
        peer.send(0, 0, &message(&format!("m-{n}"), b"x"));
    }
    peer.frames();
    let partition = peer.domain.telemetry.partition_of(&device);
    let ids = |messages: &[Message]| -> Vec<String> {
        let id = |m: &Message| crate::domain::id_text(m.properties.as_ref()?.message_id.as_ref()?).into();
        messages.iter().filter_map(id).collect()
    };
    peer.attach(0, &reader(60, partition, None));
    peer.give_credit(0, 60, 100);
    let all = peer.messages();
    assert_eq!(ids(&all), ["m-0", "m-1", "m-2", "m-3", "m-4"]);
    let annotation = |name: &str| all[2].annotations.as_ref().and_then(|a| a.0.get(&key(name)).cloned());
    assert_eq!(annotation("x-opt-sequence-number"), Some(Value::Long(2)));
    assert_eq!(annotation("iothub-connection-device-id"), Some(Value::String("d".into())));
    assert_eq!(annotation("iothub-message-source"), Some(Value::String("Telemetry".into())));
    assert!(matches!(annotation("iothub-enqueuedtime"), Some(Value::Timestamp(_))));
    for (handle, selector, expected) in [
        (61, "amqp.annotation.x-opt-sequence-number > '2'", vec!["m-3", "m-4"]),
        (62, "amqp.annotation.x-opt-sequence-number >= '2'", vec!["m-2", "m-3", "m-4"]),
        (63, "amqp.annotation.x-opt-offset > '@latest'", vec![]),
        (64, "amqp.annotation.x-opt-enqueued-time > '1'", vec!["m-0", "m-1", "m-2", "m-3", "m-4"]),
    ] {
        peer.attach(0, &reader(handle, partition, Some(selector)));
        peer.give_credit(0, handle, 100);
        assert_eq!(ids(&peer.messages()), expected, "{selector}");
    }
    peer.put(0, &detach(60));
    peer.frames();
    peer.send(0, 0, &message("m-5", b"x"));
    assert_eq!(ids(&peer.messages()).len(), 4, "those that are at the end are told of the new one");
}

#[test]
fn unknown_partitions_and_selectors_are_refused() {
    let mut peer = with_service();
    assert_eq!(ending(&peer.attach(0, &reader(0, 99, None))).as_deref(), Some("DETACH amqp:not-found"));
    let frames = peer.attach(0, &reader(1, 0, Some("price > 3")));
    assert_eq!(ending(&frames).as_deref(), Some("DETACH com.microsoft:argument-error"));
}

#[test]
fn a_reader_that_never_settles_is_held_at_a_bound() {
    let mut peer = Peer::in_session(AmqpSettings { unsettled_max: 3, ..AmqpSettings::default() });
    let device = peer.register("d");
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    for _ in 0..5 {
        peer.send(0, 0, &message("m", b"x"));
    }
    peer.frames();
    peer.attach(0, &reader(60, peer.domain.telemetry.partition_of(&device), None));
    peer.give_credit(0, 60, 100);
    assert_eq!(peer.messages().len(), 3);
    peer.put(0, &accept(1, true));
    assert_eq!(peer.messages().len(), 1);
}
