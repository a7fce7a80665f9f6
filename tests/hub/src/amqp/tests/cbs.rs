//! Tokens on `$cbs`.

use std::time::Duration;

use fe2o3_amqp_types::messaging::MessageId;
use serde_amqp::primitives::Uuid;

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::domain::Identity;

const SERVICEBUS: &str = "servicebus.windows.net:sastoken";
const AZURE_DEVICES: &str = "azure-devices.net:sastoken";

fn with_cbs(settings: AmqpSettings) -> Peer {
    let mut peer = Peer::connected(settings);
    peer.begin(0);
    peer.attach_cbs();
    peer
}

fn in_an_hour(peer: &Peer) -> u64 {
    peer.now.unix_ms / 1000 + 3600
}

#[test]
fn both_names_of_the_token_type_are_understood_and_no_third() {
    let mut peer = with_cbs(AmqpSettings::default());
    let device = peer.register("d");
    let token = peer.device_token(&device, in_an_hour(&peer));
    assert_eq!(peer.put_token(&token, SERVICEBUS), (200, "OK".into()));
    assert_eq!(peer.put_token(&token, AZURE_DEVICES), (200, "OK".into()));
    assert_eq!(peer.put_token(&token, "jwt").0, 400);
}

#[test]
fn the_correlation_id_has_the_type_of_the_message_id() {
    let mut peer = with_cbs(AmqpSettings::default());
    let device = peer.register("d");
    let token = peer.device_token(&device, in_an_hour(&peer));
    let ids = [MessageId::String("s".into()), MessageId::Uuid(Uuid::from([7; 16])), MessageId::Ulong(7)];
    for id in ids {
        let answer = peer.put_token_as(id.clone(), &token, SERVICEBUS);
        assert_eq!(answer.properties.and_then(|properties| properties.correlation_id), Some(id));
    }
}

#[test]
fn bad_tokens_are_told_apart_by_their_status() {
    let mut peer = with_cbs(AmqpSettings::default());
    let device = peer.register("d");
    let good = peer.device_token(&device, in_an_hour(&peer));
    let expired = peer.device_token(&device, peer.now.unix_ms / 1000 - 301);
    let stranger = good.replace("devices%2Fd", "devices%2Fx");
    let forged = good.replace("se=", "se=1");
    for (token, status) in [(&*expired, 401), (&forged, 401), (&stranger, 404), ("nonsense", 400)] {
        let (code, description) = peer.put_token(token, SERVICEBUS);
        assert_eq!(code, status, "{description}");
        assert!(!description.contains("SharedAccessSignature"), "no part of a token is told");
    }
}

#[test]
fn the_token_after_the_thousandth_is_answered_with_500() {
    let mut peer = with_cbs(AmqpSettings::default());
    let mut tokens = Vec::new();
    for n in 0..1001 {
        let device = peer.register(&format!("d{n}"));
        tokens.push(peer.device_token(&device, in_an_hour(&peer)));
    }
    for token in &tokens[..1000] {
        assert_eq!(peer.put_token(token, AZURE_DEVICES).0, 200);
        peer.give_credit_of_cbs();
    }
    let (status, text) = peer.put_token(&tokens[1000], AZURE_DEVICES);
    assert_eq!(status, 500);
    assert!(text.contains("1000 tokens") && text.contains("403005"), "{text}");
    assert_eq!(peer.put_token(&tokens[0], AZURE_DEVICES).0, 200, "renewal is not one more");
}

#[test]
fn a_renewed_token_keeps_links_and_an_expired_one_detaches_them() {
    let mut peer = with_cbs(AmqpSettings { idle_timeout: Duration::ZERO, ..AmqpSettings::default() });
    let skew_s = peer.domain.settings.sas_skew.as_secs();
    let (kept, lost) = (peer.register("kept"), peer.register("lost"));
    let soon = peer.now.unix_ms / 1000 + 60;
    for device in [&kept, &lost] {
        let token = peer.device_token(device, soon);
        assert_eq!(peer.put_token(&token, AZURE_DEVICES).0, 200);
    }
    peer.attach(0, &sender(0, "t", "/devices/kept/messages/events"));
    peer.attach(0, &sender(1, "t2", "/devices/lost/messages/events"));
    peer.wait(30_000);
    let token = peer.device_token(&kept, in_an_hour(&peer));
    assert_eq!(peer.put_token(&token, AZURE_DEVICES).0, 200);
    peer.wait(29_000);
    assert_eq!(ending(&peer.frames()), None);
    peer.wait((skew_s + 2) * 1000);
    let frames = peer.frames();
    assert_eq!(ending(&frames).as_deref(), Some("DETACH amqp:unauthorized-access"));
    assert_eq!(frames.len(), 1, "{frames:?}");
    peer.send(0, 0, &message("m", b"still here"));
    assert_eq!(outcomes(&peer.frames()).len(), 1);
}

#[test]
fn one_policy_token_covers_all_devices_of_the_connection() {
    let mut peer = with_cbs(AmqpSettings::default());
    let token = peer.policy_token("device");
    assert_eq!(peer.put_token(&token, AZURE_DEVICES).0, 200);
    for n in 0..3 {
        peer.register(&format!("d{n}"));
        let frames = peer.attach(0, &sender(n, &format!("t{n}"), &format!("/devices/d{n}/messages/events")));
        assert_eq!(ending(&frames), None);
    }
    let frames = peer.attach(0, &receiver(9, "f", "/messages/serviceBound/feedback"));
    assert_eq!(ending(&frames).as_deref(), Some("DETACH amqp:unauthorized-access"), "the device policy is no service");
}

#[test]
fn requests_of_one_session_are_answered_in_that_session() {
    let mut peer = with_cbs(AmqpSettings::default());
    peer.begin(1);
    peer.attach(1, &sender(0, "cbs", "/$cbs"));
    let identity = Identity::device("d");
    peer.register("d");
    let token = peer.device_token(&identity, in_an_hour(&peer));
    peer.send_token(1, 0, &token);
    assert!(peer.messages().is_empty(), "no receiver, no answer");
    peer.attach(1, &receiver(1, "cbs", "amqps://hub.example.com/$cbs"));
    peer.give_credit(1, 1, 1);
    peer.send_token(1, 0, &token);
    assert_eq!(peer.messages().len(), 1);
}
