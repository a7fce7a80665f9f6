//! Cloud-to-device messages.

use fe2o3_amqp_types::definitions::{ReceiverSettleMode, SenderSettleMode};
use fe2o3_amqp_types::messaging::{DeliveryState, Modified, Rejected, Released};
use fe2o3_amqp_types::performatives::{Attach, Open, Transfer};
use serde_amqp::Value;

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::amqp::frame::Performative;
use crate::amqp::message::{Message, Outgoing};
use crate::amqp::twin::key;
use crate::domain::{Identity, Kind, Outcome, Query};

const ADDRESS: &str = "/devices/d/messages/deviceBound";

/// A device with its link and credit, and a back end's link on handle 50.
fn with_receiver(attach: &Attach) -> Peer {
    let mut peer = Peer::in_session(AmqpSettings::default());
    peer.register("d");
    peer.attach(0, &sender(50, "service", "/messages/devicebound"));
    peer.attach(0, attach);
    peer.give_credit(0, attach.handle.0, 1000);
    peer.frames();
    peer
}

fn usual() -> Attach {
    receiver(0, "c", ADDRESS)
}

fn send(peer: &mut Peer, id: &str) {
    let mut sent = message(id, b"command");
    if let Some(properties) = &mut sent.properties {
        properties.to = Some(ADDRESS.into());
    }
    peer.send(0, 50, &sent);
}

/// The deliveries that came: transfer and message.
fn received(peer: &mut Peer) -> Vec<(Transfer, Message)> {
    let take = |performative| match performative {
        Performative::Transfer(transfer, payload) => Some((*transfer, Message::parse(payload).expect("sound"))),
        _ => None,
    };
    peer.frames().into_iter().filter_map(take).collect()
}

fn one(peer: &mut Peer) -> (Transfer, Message) {
    let mut all = received(peer);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn depth(peer: &Peer) -> usize {
    peer.domain.c2d.depth(&Identity::device("d"))
}

#[test]
fn a_message_has_its_lock_token_as_tag_and_the_hubs_annotations() {
    let mut peer = with_receiver(&usual());
    send(&mut peer, "m-1");
    let (transfer, message) = one(&mut peer);
    let tag = transfer.delivery_tag.expect("a tag");
    assert_eq!((tag.len(), transfer.settled), (16, Some(false)));
    let annotations = message.annotations.expect("annotations").0;
    let tag: [u8; 16] = tag.to_vec().try_into().expect("16 bytes");
    assert_eq!(annotations.get(&key("x-opt-lock-token")), Some(&Value::Uuid(tag.into())));
    assert_eq!(annotations.get(&key("iothub-deliverycount")), Some(&Value::Uint(0)));
    assert!(matches!(annotations.get(&key("iothub-enqueuedtime")), Some(Value::Timestamp(_))));
    assert_eq!(message.properties.and_then(|properties| properties.to).as_deref(), Some(ADDRESS));
    assert_eq!(message.body, crate::amqp::message::Body::Data(vec![b"command".as_slice().into()]));
}

#[test]
fn accepted_completes_rejected_drops_released_and_modified_bring_it_again() {
    let mut peer = with_receiver(&usual());
    let again = [
        DeliveryState::Released(Released {}),
        DeliveryState::Modified(Modified {
            delivery_failed: None,
            undeliverable_here: None,
            message_annotations: None,
        }),
    ];
    send(&mut peer, "m-1");
    for (count, state) in again.into_iter().enumerate() {
        let (transfer, message) = one(&mut peer);
        let annotations = message.annotations.expect("annotations").0;
        assert_eq!(annotations.get(&key("iothub-deliverycount")), Some(&Value::Uint(count as u32)));
        peer.put(0, &disposition(transfer.delivery_id.expect("an id"), true, state));
    }
    let (transfer, _) = one(&mut peer);
    peer.put(0, &accept(transfer.delivery_id.expect("an id"), true));
    assert_eq!(depth(&peer), 0);
    let query = Query { message_id: Some("m-1"), kind: Some(Kind::C2d), ..Query::default() };
    let told: Vec<_> = peer.domain.ledger.entries(&query).into_iter().map(|e| (e.outcome, e.written)).collect();
    let expected = [Outcome::Released, Outcome::Modified, Outcome::Accepted].map(|outcome| (Some(outcome), true));
    assert_eq!(told, expected);
    send(&mut peer, "m-2");
    let (transfer, _) = one(&mut peer);
    peer.put(
        0,
        &disposition(transfer.delivery_id.expect("an id"), true, DeliveryState::Rejected(Rejected { error: None })),
    );
    assert_eq!((depth(&peer), received(&mut peer).len()), (0, 0));
}

#[test]
fn a_message_abandoned_ten_times_is_dead_lettered() {
    let mut peer = with_receiver(&usual());
    send(&mut peer, "m-1");
    for n in 0..10 {
        assert_eq!(depth(&peer), 1, "{n}");
        let (transfer, _) = one(&mut peer);
        peer.put(0, &disposition(transfer.delivery_id.expect("an id"), true, DeliveryState::Released(Released {})));
    }
    assert_eq!((depth(&peer), received(&mut peer).len()), (0, 0));
}

#[test]
fn a_lock_lapses_after_a_minute_and_the_late_answer_is_told_so() {
    let second = Attach { rcv_settle_mode: ReceiverSettleMode::Second, ..usual() };
    let mut peer = with_receiver(&second);
    send(&mut peer, "m-1");
    let (first, _) = one(&mut peer);
    peer.wait(60_001);
    let (again, _) = one(&mut peer);
    assert_ne!(first.delivery_tag, again.delivery_tag);
    peer.put(0, &accept(first.delivery_id.expect("an id"), false));
    let (_, _, settled, state) = outcomes(&peer.frames()).remove(0);
    assert_eq!((settled, rejection(&state).as_deref()), (true, Some("amqp:not-found")));
    peer.put(0, &accept(again.delivery_id.expect("an id"), false));
    let (_, _, settled, state) = outcomes(&peer.frames()).remove(0);
    assert!(settled && state.is_accepted());
    assert_eq!(depth(&peer), 0);
}

#[test]
fn a_receiver_in_settled_mode_has_its_messages_completed_as_they_go() {
    let mut peer = with_receiver(&Attach { snd_settle_mode: SenderSettleMode::Settled, ..usual() });
    send(&mut peer, "m-1");
    assert_eq!(one(&mut peer).0.settled, Some(true));
    assert_eq!(depth(&peer), 0);
}

#[test]
fn nothing_is_locked_before_there_is_credit() {
    let mut peer = with_receiver(&usual());
    peer.put(0, &detach(0));
    peer.attach(0, &usual());
    send(&mut peer, "m-1");
    assert!(received(&mut peer).is_empty());
    peer.wait(3_000);
    peer.give_credit(0, 0, 1);
    assert_eq!(received(&mut peer).len(), 1);
    send(&mut peer, "m-2");
    assert!(received(&mut peer).is_empty(), "credit is used up");
}

#[test]
fn a_second_receiver_takes_over_from_the_first() {
    let mut peer = with_receiver(&usual());
    peer.begin(1);
    let frames = peer.attach(1, &receiver(0, "c", ADDRESS));
    peer.give_credit(1, 0, 10);
    assert_eq!(ending(&frames).as_deref(), Some("DETACH amqp:link:stolen"));
    peer.put(0, &detach(0));
    send(&mut peer, "m-1");
    assert_eq!(received(&mut peer).len(), 1);
}

#[test]
fn drain_uses_the_credit_up_and_says_so() {
    let mut peer = with_receiver(&usual());
    send(&mut peer, "m-1");
    one(&mut peer);
    let drain = fe2o3_amqp_types::performatives::Flow { drain: true, ..flow(0, 1, 9) };
    peer.put(0, &drain);
    let answer =
        peer.frames().into_iter().find_map(|p| if let Performative::Flow(flow) = p { Some(flow) } else { None });
    let answer = answer.expect("a FLOW");
    assert_eq!((answer.delivery_count, answer.link_credit, answer.drain), (Some(10), Some(0), true));
}

#[test]
fn a_large_message_is_split_to_the_peers_frame_size_and_joined_by_it() {
    let mut peer = Peer::on(
        crate::domain::Domain::new(HUB, crate::domain::Settings::default()).expect("sound"),
        AmqpSettings::default(),
    );
    peer.write(b"AMQP\x00\x01\x00\x00");
    peer.put(0, &Open { max_frame_size: 512.into(), ..open() });
    peer.take_bytes(8);
    peer.begin(0);
    peer.attach_cbs();
    let token = peer.policy_token("iothubowner");
    peer.put_token(&token, "azure-devices.net:sastoken");
    peer.register("d");
    peer.attach(0, &sender(50, "service", "/messages/devicebound"));
    peer.attach(0, &usual());
    peer.give_credit(0, 0, 10);
    let mut sent = Outgoing { data: Some(vec![7; 5000].into()), ..message("m", b"") };
    if let Some(properties) = &mut sent.properties {
        properties.to = Some(ADDRESS.into());
    }
    peer.send(0, 50, &sent);
    let bodies: Vec<_> = peer.messages().iter().map(Message::body_bytes).collect();
    assert_eq!(bodies, [bytes::Bytes::from(vec![7; 5000])]);
}

#[test]
fn ten_thousand_messages_reach_a_peer_whose_session_window_is_2048() {
    let settings = crate::domain::C2dSettings { queue_max: 20_000, ..crate::domain::C2dSettings::default() };
    let domain_settings = crate::domain::Settings { c2d: settings, ..crate::domain::Settings::default() };
    let mut peer = Peer::on(crate::domain::Domain::new(HUB, domain_settings).expect("sound"), AmqpSettings::default());
    peer.write(b"AMQP\x00\x01\x00\x00");
    peer.put(0, &open());
    peer.take_bytes(8);
    peer.begin(0);
    peer.attach_cbs();
    let token = peer.policy_token("iothubowner");
    peer.put_token(&token, "azure-devices.net:sastoken");
    peer.register("d");
    peer.attach(0, &sender(50, "service", "/messages/devicebound"));
    for n in 0..10_000 {
        send(&mut peer, &format!("m-{n}"));
        peer.frames();
    }
    peer.attach(0, &usual());
    // as rhea does: a window of 2048 transfers, opened again with every flow of credit
    let window = |count: u32, incoming: u32| fe2o3_amqp_types::performatives::Flow {
        next_incoming_id: Some(incoming),
        incoming_window: 2048,
        ..flow(0, count, 500)
    };
    // one transfer went before: the answer to the token
    let (mut got, mut ids) = (0, Vec::new());
    while got < 10_000 {
        peer.put(0, &window(got, got + 1));
        let batch = received(&mut peer);
        assert!(!batch.is_empty() && batch.len() <= 500, "stalled after {got}");
        got += batch.len() as u32;
        for (transfer, _) in batch {
            let id = transfer.delivery_id.expect("an id");
            ids.push(id);
            peer.put(0, &accept(id, true));
        }
    }
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1));
    assert_eq!(depth(&peer), 0);
}

#[test]
fn the_peers_window_holds_transfers_back_until_it_opens() {
    let mut peer = with_receiver(&usual());
    let window = |next, size| fe2o3_amqp_types::performatives::Flow {
        handle: None,
        delivery_count: None,
        link_credit: None,
        next_incoming_id: Some(next),
        incoming_window: size,
        ..flow(0, 0, 0)
    };
    peer.put(0, &window(1, 2));
    for n in 0..5 {
        send(&mut peer, &format!("m-{n}"));
    }
    assert_eq!(received(&mut peer).len(), 2);
    assert_eq!(peer.connection.sessions[0].blocked.len(), 1, "a link waits once, however often it is woken");
    peer.put(0, &window(3, 1));
    assert_eq!(received(&mut peer).len(), 1);
    peer.put(0, &window(4, 100));
    assert_eq!(received(&mut peer).len(), 2);
}

#[test]
fn delivery_ids_wrap_and_one_disposition_settles_across_the_wrap() {
    let settings = AmqpSettings { first_transfer_id: u32::MAX - 1, ..AmqpSettings::default() };
    let mut peer = Peer::in_session(settings);
    peer.register("d");
    peer.attach(0, &sender(50, "service", "/messages/devicebound"));
    peer.attach(0, &usual());
    peer.give_credit(0, 0, 10);
    for n in 0..4 {
        send(&mut peer, &format!("m-{n}"));
    }
    let ids: Vec<_> = received(&mut peer).iter().filter_map(|(transfer, _)| transfer.delivery_id).collect();
    assert_eq!(ids, [u32::MAX, 0, 1, 2]);
    let all = fe2o3_amqp_types::performatives::Disposition { last: Some(2), ..accept(u32::MAX, true) };
    peer.put(0, &all);
    assert_eq!(depth(&peer), 0);
}

#[test]
fn a_disposition_of_the_whole_number_space_costs_no_more_than_what_is_unsettled() {
    let mut peer = with_receiver(&usual());
    send(&mut peer, "m-1");
    one(&mut peer);
    let vast = fe2o3_amqp_types::performatives::Disposition { last: Some(u32::MAX / 2), ..accept(0, true) };
    peer.put(0, &vast);
    assert_eq!(depth(&peer), 0);
    let reversed = fe2o3_amqp_types::performatives::Disposition { last: Some(1), ..accept(5, true) };
    peer.put(0, &reversed);
    assert_eq!(ending(&peer.frames()).as_deref(), Some("END amqp:invalid-field"));
}
