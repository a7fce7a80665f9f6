//! Device-to-cloud messages.

use bytes::Bytes;
use fe2o3_amqp_types::messaging::{MessageAnnotations, MessageId};
use fe2o3_amqp_types::performatives::Transfer;
use serde_amqp::Value;

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::amqp::message::Outgoing;
use crate::amqp::twin::key;
use crate::domain::{Identity, Kind, Outcome, Query, StoredEvent};

fn with_sender(settings: AmqpSettings) -> Peer {
    let mut peer = Peer::in_session(settings);
    peer.register("d");
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    peer
}

fn stored(peer: &Peer) -> Vec<StoredEvent> {
    let partition = peer.domain.telemetry.partition_of(&Identity::device("d"));
    peer.domain.telemetry.read(partition, 0, usize::MAX).iter().map(|event| StoredEvent::clone(event)).collect()
}

fn batch_section(message: &Outgoing, out: &mut Vec<u8>) {
    let encoded = message.encode();
    out.extend([0x00, 0x53, 0x75, 0xb0]);
    out.extend((encoded.len() as u32).to_be_bytes());
    out.extend(encoded);
}

#[test]
fn a_message_is_accepted_once_it_is_stored_with_what_the_hub_knows_of_its_sender() {
    let mut peer = with_sender(AmqpSettings::default());
    let mut annotations = fe2o3_amqp_types::messaging::Annotations::new();
    annotations.insert(key("iothub-interface-id"), Value::String("i".into()));
    let sent = Outgoing { annotations: Some(MessageAnnotations(annotations)), ..message("m-1", b"hello") };
    let id = peer.send(0, 0, &sent);
    let outcomes = outcomes(&peer.frames());
    assert_eq!(outcomes.len(), 1);
    assert!(outcomes[0].0 == id && outcomes[0].2 && outcomes[0].3.is_accepted());
    let events = stored(&peer);
    let event = &events[0].event;
    assert_eq!((&event.identity.device[..], &event.body[..]), ("d", &b"hello"[..]));
    assert_eq!(&*event.auth_method, r#"{"scope":"hub","type":"sas","issuer":"iothub"}"#);
    assert_eq!(event.properties.to.as_deref(), Some("/devices/d/messages/events"));
    assert_eq!(event.properties.message_id, Some(MessageId::String("m-1".into())));
    assert!(event.annotations.contains_key(&key("iothub-interface-id")));
}

#[test]
fn accepted_deliveries_in_a_row_are_told_in_one_range_or_one_by_one() {
    for (disposition_ranges, expected) in [(true, 1), (false, 3)] {
        let mut peer = with_sender(AmqpSettings { disposition_ranges, ..AmqpSettings::default() });
        let mut bytes = bytes::BytesMut::new();
        for id in 0..3 {
            let payload = message("m", b"x").encode();
            crate::amqp::frame::put(
                &mut bytes,
                crate::amqp::frame::FrameType::Amqp,
                0,
                &transfer(0, 10 + id),
                &payload,
            );
        }
        peer.write(&bytes);
        let outcomes = outcomes(&peer.frames());
        assert_eq!(outcomes.len(), expected);
        assert_eq!((outcomes[0].0, outcomes[expected - 1].1), (10, 12));
    }
}

#[test]
fn the_batch_format_is_unpacked_message_by_message() {
    let mut peer = with_sender(AmqpSettings::default());
    let mut payload = Vec::new();
    batch_section(&message("b-1", b"one"), &mut payload);
    batch_section(&message("b-2", b"two"), &mut payload);
    peer.put_with(0, &Transfer { message_format: Some(0x8001_3700), ..transfer(0, 1) }, &payload);
    assert_eq!(outcomes(&peer.frames()).len(), 1);
    let bodies: Vec<_> = stored(&peer).iter().map(|stored| stored.event.body.clone()).collect();
    assert_eq!(bodies, [Bytes::from_static(b"one"), Bytes::from_static(b"two")]);
}

#[test]
fn a_message_over_256_kb_is_rejected_and_the_link_goes_on() {
    let mut peer = with_sender(AmqpSettings::default());
    let large = Outgoing { data: Some(vec![0; 256 * 1024 + 1].into()), ..Outgoing::default() }.encode();
    let chunks: Vec<&[u8]> = large.chunks(60_000).collect();
    for (n, chunk) in chunks.iter().enumerate() {
        let first = transfer(0, 1);
        let frame = if n == 0 { first } else { Transfer { delivery_id: None, delivery_tag: None, ..first } };
        peer.put_with(0, &Transfer { more: n + 1 < chunks.len(), ..frame }, chunk);
    }
    let frames = peer.frames();
    assert_eq!(
        outcomes(&frames).first().and_then(|o| rejection(&o.3)).as_deref(),
        Some("amqp:link:message-size-exceeded")
    );
    assert_eq!(ending(&frames), None);
    peer.put_with(0, &transfer(0, 2), &message("m", b"small").encode());
    assert!(outcomes(&peer.frames())[0].3.is_accepted());
}

#[test]
fn a_message_over_max_message_size_detaches_the_link_while_it_comes_in() {
    let mut peer = with_sender(AmqpSettings { message_bytes_max: 1000, ..AmqpSettings::default() });
    peer.put_with(0, &Transfer { more: true, ..transfer(0, 1) }, &[0; 600]);
    assert_eq!(ending(&peer.frames()), None);
    peer.put_with(0, &Transfer { delivery_id: None, more: true, ..transfer(0, 1) }, &[0; 600]);
    assert_eq!(ending(&peer.frames()).as_deref(), Some("DETACH amqp:link:message-size-exceeded"));
}

#[test]
fn an_aborted_delivery_leaves_nothing_behind() {
    let mut peer = with_sender(AmqpSettings::default());
    peer.put_with(0, &Transfer { more: true, ..transfer(0, 1) }, b"half");
    peer.put(0, &Transfer { aborted: true, ..transfer(0, 1) });
    assert!(outcomes(&peer.frames()).is_empty());
    peer.put_with(0, &transfer(0, 2), &message("m", b"whole").encode());
    assert_eq!(outcomes(&peer.frames())[0].0, 2);
    assert_eq!(stored(&peer).len(), 1);
}

#[test]
fn what_is_no_message_is_rejected_and_not_stored() {
    let mut peer = with_sender(AmqpSettings::default());
    for payload in [&b"\xff\xff"[..], b"\x00\x53\x75\xb0\xff\xff\xff\xff", b"\x00\x53\x75\xa0\x01x\x00\x53\x73\x45"] {
        peer.send_payload(0, 0, payload);
        let outcomes = outcomes(&peer.frames());
        assert_eq!(rejection(&outcomes[0].3).as_deref(), Some("amqp:decode-error"));
    }
    assert!(stored(&peer).is_empty());
}

#[test]
fn transfers_that_break_the_rules_end_link_or_session() {
    let check = |transfer: Transfer, expected: &str| {
        let mut peer = with_sender(AmqpSettings::default());
        peer.put_with(0, &self::transfer(0, 5), &message("m", b"x").encode());
        peer.frames();
        peer.put_with(0, &transfer, &message("m", b"x").encode());
        assert_eq!(ending(&peer.frames()).as_deref(), Some(expected), "{transfer:?}");
    };
    check(Transfer { delivery_id: None, ..transfer(0, 6) }, "DETACH amqp:invalid-field");
    check(Transfer { delivery_tag: None, ..transfer(0, 6) }, "DETACH amqp:invalid-field");
    check(Transfer { delivery_tag: Some(vec![0; 33].into()), ..transfer(0, 6) }, "DETACH amqp:invalid-field");
    check(transfer(0, 5), "END amqp:invalid-field");
    let second = fe2o3_amqp_types::definitions::ReceiverSettleMode::Second;
    check(Transfer { rcv_settle_mode: Some(second), ..transfer(0, 6) }, "DETACH amqp:invalid-field");
}

#[test]
fn the_ledger_tells_received_outcome_and_whether_it_was_written() {
    let mut peer = with_sender(AmqpSettings::default());
    peer.send(0, 0, &message("m-1", b"x"));
    let entries = |peer: &Peer| peer.domain.ledger.entries(&Query { kind: Some(Kind::Telemetry), ..Query::default() });
    let entry = &entries(&peer)[0];
    assert_eq!(
        (entry.message_id.as_deref(), &entry.outcome, entry.written),
        (Some("m-1"), &Some(Outcome::Accepted), false)
    );
    peer.frames();
    assert!(entries(&peer)[0].written);
    peer.put_with(0, &Transfer { settled: Some(true), ..transfer(0, 9) }, &message("m-2", b"x").encode());
    assert!(outcomes(&peer.frames()).is_empty());
    let entry = &entries(&peer)[1];
    assert_eq!((&entry.outcome, entry.written), (&Some(Outcome::Presettled), true));
}
