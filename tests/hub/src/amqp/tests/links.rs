//! ATTACH and DETACH: addresses, roles, permissions, names, handles, credit.

use fe2o3_amqp_types::performatives::{Attach, Flow};

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::amqp::frame::Performative;
use crate::domain::{Identity, IfMatch, Registration, Status};

fn with_device() -> Peer {
    let mut peer = Peer::in_session(AmqpSettings::default());
    peer.register("d");
    peer
}

fn check(peer: &mut Peer, attach: &Attach, expected: Option<&str>) {
    let frames = peer.attach(0, attach);
    assert_eq!(ending(&frames).as_deref(), expected, "{attach:?}");
    let Some(Performative::Attach(answer)) = frames.first() else { panic!("no ATTACH: {frames:?}") };
    let is_refused = if answer.target.is_some() { answer.source.is_none() } else { true };
    assert_eq!(is_refused, expected.is_some(), "a refusal has no terminus of ours");
    peer.put(0, &detach(attach.handle.0));
    peer.frames();
}

#[test]
fn addresses_are_taken_relative_absolute_and_in_mixed_case() {
    let mut peer = with_device();
    peer.register("a+b=");
    for address in [
        "/devices/d/messages/events",
        "devices/d/messages/events",
        "amqps://hub.example.com/devices/d/messages/events",
        "amqps://hub.example.com:5671/Devices/d/Messages/Events/",
        "/devices/a%2Bb%3D/messages/events",
        "/devices/a%252Bb%253D/messages/events",
    ] {
        check(&mut peer, &sender(0, "t", address), None);
    }
    for address in ["/devices/d/messages/deviceBound", "/devices/d/messages/devicebound"] {
        check(&mut peer, &receiver(0, "c", address), None);
    }
}

#[test]
fn what_is_not_there_is_not_found_and_the_wrong_role_is_not_allowed() {
    let mut peer = with_device();
    check(&mut peer, &sender(0, "t", "/devices/D/messages/events"), Some("DETACH amqp:not-found"));
    check(&mut peer, &sender(0, "t", "/devices/d/modules/m/messages/events"), Some("DETACH amqp:not-found"));
    check(&mut peer, &sender(0, "t", "/nowhere"), Some("DETACH amqp:not-found"));
    check(&mut peer, &receiver(0, "t", "/devices/d/messages/events"), Some("DETACH amqp:not-allowed"));
    check(&mut peer, &sender(0, "t", "/devices/d/messages/deviceBound"), Some("DETACH amqp:not-allowed"));
    check(&mut peer, &Attach { target: None, ..sender(0, "t", "") }, Some("DETACH com.microsoft:argument-error"));
}

#[test]
fn a_link_without_a_token_or_with_one_for_another_device_is_unauthorized() {
    let mut peer = Peer::connected(AmqpSettings::default());
    peer.begin(0);
    peer.attach_cbs();
    let ab = peer.register("ab");
    peer.register("a");
    check(&mut peer, &sender(0, "t", "/devices/ab/messages/events"), Some("DETACH amqp:unauthorized-access"));
    let token = peer.device_token(&ab, peer.now.unix_ms / 1000 + 60);
    assert_eq!(peer.put_token(&token, "servicebus.windows.net:sastoken").0, 200);
    check(&mut peer, &sender(0, "t", "/devices/ab/messages/events"), None);
    check(&mut peer, &sender(0, "t", "/devices/a/messages/events"), Some("DETACH amqp:unauthorized-access"));
    check(&mut peer, &sender(0, "s", "/messages/devicebound"), Some("DETACH amqp:unauthorized-access"));
}

#[test]
fn a_disabled_device_is_unauthorized_and_loses_its_links() {
    let mut peer = with_device();
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    let identity = Identity::device("d");
    let registration = Registration { status: Status::Disabled, ..Registration::new(identity) };
    peer.domain.update_identity(registration, &IfMatch::Any).expect("registered");
    let frames = peer.frames();
    assert_eq!(ending(&frames).as_deref(), Some("DETACH amqp:unauthorized-access"));
    let Some(Performative::Detach(detached)) = frames.last() else { panic!("no DETACH") };
    let description = detached.error.as_ref().and_then(|error| error.description.clone()).expect("a description");
    let json: serde_json::Value = serde_json::from_str(&description).expect("JSON");
    assert_eq!(json["errorCode"], 403_012);
    peer.put(0, &detach(0));
    check(&mut peer, &sender(1, "t", "/devices/d/messages/events"), Some("DETACH amqp:unauthorized-access"));
}

#[test]
fn the_same_link_name_serves_in_three_sessions_but_not_twice_in_one() {
    let mut peer = with_device();
    for channel in 1..=3 {
        peer.begin(channel);
        let frames = peer.attach(channel, &sender(0, "TelemetrySenderLink", "/devices/d/messages/events"));
        assert_eq!(ending(&frames), None);
    }
    let frames = peer.attach(1, &sender(1, "TelemetrySenderLink", "/devices/d/messages/events"));
    assert_eq!(ending(&frames).as_deref(), Some("DETACH amqp:resource-locked"));
    peer.put(1, &detach(1));
    peer.put(1, &detach(0));
    peer.frames();
    check(&mut peer, &sender(0, "TelemetrySenderLink", "/devices/d/messages/events"), None);
}

#[test]
fn an_attach_is_answered_with_its_own_fields_and_with_credit() {
    let mut peer = with_device();
    let attach = paired(sender(9, "t", "/devices/d/messages/events"), "any");
    let frames = peer.attach(0, &attach);
    let [Performative::Attach(answer), Performative::Flow(flow)] = frames.as_slice() else { panic!("{frames:?}") };
    assert_eq!((&answer.name, &answer.target, &answer.properties), (&attach.name, &attach.target, &attach.properties));
    assert_eq!(answer.max_message_size, Some(1_048_576));
    assert_ne!(answer.handle, attach.handle, "our handles are our own");
    assert_eq!((flow.handle.as_ref(), flow.link_credit), (Some(&answer.handle), Some(1000)));
}

#[test]
fn credit_is_given_anew_at_half_and_overdrawn_credit_detaches() {
    let settings = AmqpSettings { link_credit: 4, ..AmqpSettings::default() };
    let mut peer = Peer::in_session(settings);
    peer.register("d");
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    peer.send(0, 0, &message("1", b"x"));
    let flow_of = |frames: &[Performative]| {
        frames.iter().find_map(|p| {
            if let Performative::Flow(Flow { link_credit, delivery_count, .. }) = p {
                Some((*delivery_count, *link_credit))
            } else {
                None
            }
        })
    };
    assert_eq!(flow_of(&peer.frames()), None);
    peer.send(0, 0, &message("2", b"x"));
    assert_eq!(flow_of(&peer.frames()), Some((Some(2), Some(4))));
    peer.domain.faults.add(crate::domain::Fault::new(crate::domain::Action::NoCredit));
    for n in 0..4 {
        assert_eq!(ending(&peer.frames()), None, "{n}");
        peer.send(0, 0, &message("n", b"x"));
    }
    peer.send(0, 0, &message("over", b"x"));
    assert_eq!(ending(&peer.frames()).as_deref(), Some("DETACH amqp:link:transfer-limit-exceeded"));
}

#[test]
fn handles_in_use_and_handles_unknown_end_the_session() {
    let mut peer = with_device();
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    let frames = peer.attach(0, &sender(0, "u", "/devices/d/messages/events"));
    assert_eq!(ending(&frames).as_deref(), Some("END amqp:session:handle-in-use"));
    peer.begin(1);
    peer.send(1, 5, &message("m", b"x"));
    assert_eq!(ending(&peer.frames()).as_deref(), Some("END amqp:session:unattached-handle"));
}

#[test]
fn detach_is_answered_once_and_the_handle_is_free_again() {
    let mut peer = with_device();
    for _ in 0..3 {
        peer.attach(0, &receiver(0, "c", "/devices/d/messages/deviceBound"));
        peer.put(0, &detach(0));
        assert_eq!(ending(&peer.frames()).as_deref(), Some("DETACH"));
    }
    assert_eq!(peer.domain.registry.get(&Identity::device("d")).expect("registered").links, 0);
}

#[test]
fn every_link_of_an_identity_is_told_to_the_registry_and_taken_back_with_the_connection() {
    let mut peer = with_device();
    let identity = Identity::device("d");
    let links = |peer: &Peer| peer.domain.registry.get(&identity).expect("registered").links;
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    peer.attach(0, &receiver(1, "c", "/devices/d/messages/deviceBound"));
    assert_eq!(links(&peer), 2);
    let domain = peer.domain.clone();
    drop(peer);
    assert_eq!(domain.registry.get(&identity).expect("registered").links, 0);
    assert!(domain.connections.list().is_empty());
}

#[test]
fn a_module_has_links_of_its_own_and_a_token_of_its_own() {
    let mut peer = Peer::connected(AmqpSettings::default());
    peer.begin(0);
    peer.attach_cbs();
    peer.register("d");
    let module = Identity::module("d", "m");
    peer.domain.create_identity(Registration::new(module.clone())).expect("the device is there");
    let token = peer.device_token(&module, peer.now.unix_ms / 1000 + 60);
    assert_eq!(peer.put_token(&token, "azure-devices.net:sastoken").0, 200);
    check(&mut peer, &sender(0, "t", "/devices/d/modules/m/messages/events"), None);
    check(&mut peer, &receiver(0, "c", "/devices/d/modules/m/messages/deviceBound"), None);
    check(&mut peer, &paired(sender(0, "w", "/devices/d/modules/m/twin"), "1"), None);
    check(&mut peer, &paired(receiver(0, "x", "/devices/d/modules/m/methods/deviceBound"), "1"), None);
    check(&mut peer, &sender(0, "t", "/devices/d/messages/events"), Some("DETACH amqp:unauthorized-access"));
    peer.attach(0, &sender(1, "t", "/devices/d/modules/m/messages/events"));
    peer.send(0, 1, &message("m-1", b"x"));
    let stored = peer.domain.telemetry.read(peer.domain.telemetry.partition_of(&module), 0, 1);
    assert_eq!(stored[0].event.identity, module);
    assert_eq!(&*stored[0].event.auth_method, r#"{"scope":"module","type":"sas","issuer":"iothub"}"#);
}
