//! What the specification demands of a link (2.6, 2.7.3, 2.7.4, 2.7.7), one row per rule.

use amqp_endpoint::{Attach as Wish, Config, LinkId, NotSent, Refused, SenderSettleMode as Mode, SessionId};
use fe2o3_amqp_types::definitions::{ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp_types::messaging::{Target, TargetArchetype};
use fe2o3_amqp_types::performatives::{Attach, Detach, Flow};

use crate::peer::{CHANNEL, Room, attach, config, credit, detach, error, frame, transfer};

const NOTHING: [&str; 0] = [];

fn asked(role: &Role, wish: Wish) -> (Room, SessionId, LinkId) {
    let (mut room, session) = Room::begun(config());
    let link = match role {
        Role::Sender => room.endpoint.attach_sender(session, wish, 5),
        Role::Receiver => room.endpoint.attach_receiver(session, wish, 5),
    };
    room.sent();
    (room, session, link.unwrap())
}

/// We ask for a sender to `node`; the peer's frames make us write `sent` and tell `told`.
fn check_sender(answer: &[Vec<u8>], sent: &[&str], told: &[&str]) {
    let (mut room, ..) = asked(&Role::Sender, Wish::new("s", "node"));
    room.feed(&answer.concat());
    assert_eq!((room.sent(), room.told()), (owned(sent), owned(told)));
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn answer(attach: Attach) -> Vec<u8> {
    frame(CHANNEL, attach, &[])
}

fn gone(handle: u32, condition: &str) -> Vec<u8> {
    frame(CHANNEL, detach(handle, Some(error(condition))), &[])
}

fn receiver_side(handle: u32) -> Attach {
    attach("s", handle, Role::Receiver, "node")
}

#[test]
fn amqp_2_6_3_the_answer_is_found_by_name_and_opposite_role() {
    let (mut room, session, _) = asked(&Role::Sender, Wish::new("same", "node"));
    room.endpoint.attach_receiver(session, Wish::new("same", "node"), 6).unwrap();
    room.endpoint.attach_sender(session, Wish::new("other", "node"), 7).unwrap();
    assert_eq!(room.sent(), ["attach 0/1 Receiver same Some(\"node\")", "attach 0/2 Sender other Some(\"node\")"]);
    // in another order, with other handles
    room.hear(CHANNEL, attach("other", 50, Role::Receiver, "node"));
    room.hear(CHANNEL, attach("same", 51, Role::Sender, "node"));
    room.hear(CHANNEL, attach("same", 0, Role::Receiver, "node"));
    assert_eq!(room.told(), ["attached 7", "attached 6", "attached 5"]);
    room.hear(CHANNEL, credit(50, 0, 1));
    assert_eq!(room.told(), ["sendable 7"]);
}

#[test]
fn amqp_2_6_3_without_the_terminus_we_wanted_it_is_a_refusal_and_the_detach_says_why() {
    let no_target = Attach { target: None, ..receiver_side(0) };
    check_sender(&[answer(no_target.clone())], &[], &[]);
    let refused = &["refused 5 by peer amqp:not-found"];
    check_sender(&[answer(no_target), gone(0, "amqp:not-found")], &["detach 0/0"], refused);
    let (mut room, ..) = asked(&Role::Receiver, Wish::new("r", "node"));
    room.hear(CHANNEL, Attach { source: None, ..attach("r", 0, Role::Sender, "node") });
    room.hear(CHANNEL, transfer(0, 0)); // not attached: thrown away
    room.feed(&gone(0, "amqp:unauthorized-access"));
    assert_eq!(
        (room.sent(), room.told()),
        (owned(&["detach 0/0"]), owned(&["refused 5 by peer amqp:unauthorized-access"]))
    );
}

#[test]
fn a_refusal_by_detach_alone_or_after_a_full_attach_is_understood() {
    let refused = &["refused 5 by peer amqp:not-found"];
    check_sender(&[gone(0, "amqp:not-found")], &["detach 0/0"], refused);
    // IoT Hub echoes the ATTACH, then detaches
    let told = &["attached 5", "detached 5 by peer amqp:unauthorized-access"];
    check_sender(&[answer(receiver_side(9)), gone(9, "amqp:unauthorized-access")], &["detach 0/0"], told);
}

#[test]
fn amqp_2_6_3_the_peers_terminus_and_modes_rule_and_what_we_cannot_live_with_detaches() {
    let target = |address: &str| {
        let target = Target { address: Some(address.into()), ..Target::default() };
        answer(Attach { target: Some(Box::new(TargetArchetype::Target(target))), ..receiver_side(0) })
    };
    for same in ["node", "/node", "NODE", "amqps://host/node", "amqps://host:5671/Node"] {
        check_sender(&[target(same)], &[], &["attached 5"]);
    }
    let refused = (&["detach 0/0 amqp:not-allowed"][..], &["refused 5 by us amqp:not-allowed"][..]);
    for other in ["node2", "amqps://node", "", "host/node"] {
        check_sender(&[target(other)], refused.0, refused.1);
    }
    let settled = Attach { snd_settle_mode: SenderSettleMode::Settled, ..receiver_side(0) };
    check_sender(&[answer(settled)], refused.0, refused.1);
    let mixed = Attach { snd_settle_mode: SenderSettleMode::Mixed, ..receiver_side(0) };
    check_sender(&[answer(mixed)], &[], &["attached 5"]);
}

/// We wish for a settle mode, the peer answers with one: may we send unsettled, settled?
fn check_modes(wish: Mode, theirs: &SenderSettleMode, unsettled: Result<(), NotSent>, settled: Result<(), NotSent>) {
    let wish = Wish { sender_settle_mode: wish, ..Wish::new("s", "node") };
    let (mut room, _, link) = asked(&Role::Sender, wish);
    room.hear(CHANNEL, Attach { snd_settle_mode: theirs.clone(), ..receiver_side(0) });
    room.hear(CHANNEL, credit(0, 0, 10));
    assert_eq!(room.endpoint.send(link, 1, false, 0, &[b"x"]), unsettled, "{theirs:?}");
    assert_eq!(room.endpoint.send(link, 2, true, 0, &[b"x"]), settled, "{theirs:?}");
}

#[test]
fn amqp_2_6_12_settled_and_unsettled_go_only_where_the_answered_mode_allows() {
    let no = Err(NotSent::SettleMode);
    check_modes(Mode::Mixed, &SenderSettleMode::Mixed, Ok(()), Ok(()));
    check_modes(Mode::Mixed, &SenderSettleMode::Settled, no, Ok(()));
    check_modes(Mode::Mixed, &SenderSettleMode::Unsettled, Ok(()), no);
    check_modes(Mode::Settled, &SenderSettleMode::Settled, no, Ok(()));
    check_modes(Mode::Unsettled, &SenderSettleMode::Mixed, Ok(()), Ok(()));
}

#[test]
fn a_name_is_in_use_until_its_attach_is_answered() {
    let (mut room, session, _) = asked(&Role::Sender, Wish::new("s", "node"));
    let again = room.endpoint.attach_sender(session, Wish::new("s", "node"), 6);
    assert_eq!(again, Err(Refused::NameInUse));
    room.feed(&gone(0, "amqp:not-found"));
    room.endpoint.attach_sender(session, Wish::new("s", "node"), 6).unwrap();
}

#[test]
fn amqp_2_6_7_credit_counts_from_the_receivers_delivery_count() {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    let after = |room: &mut Room, flow: Flow| {
        room.hear(CHANNEL, flow);
        room.endpoint.credit(link)
    };
    let sent = |room: &mut Room, n: u32| {
        for _ in 0..n {
            room.endpoint.send(link, 0, false, 0, &[b"x"]).unwrap();
        }
    };
    assert_eq!(after(&mut room, credit(0, 0, 5)), 5);
    sent(&mut room, 3);
    assert_eq!(room.endpoint.credit(link), 2);
    assert_eq!(after(&mut room, credit(0, 0, 5)), 2, "the receiver has not seen the three");
    assert_eq!(after(&mut room, credit(0, 3, 5)), 5);
    assert_eq!(after(&mut room, credit(0, 2, 0)), 0, "lowered below what is out");
    assert_eq!(room.endpoint.send(link, 0, false, 0, &[b"x"]), Err(NotSent::NoCredit));
    assert_eq!(after(&mut room, Flow { delivery_count: None, ..credit(0, 0, 10) }), 7, "absent: from the start");
    room.told();
    assert_eq!(after(&mut room, Flow { link_credit: None, ..credit(0, 3, 0) }), 0);
    assert_eq!(room.told(), NOTHING);
    assert_eq!(after(&mut room, credit(0, 3, 1)), 1);
    assert_eq!(room.told(), ["sendable 0"]);
}

#[test]
fn amqp_2_6_7_drain_uses_the_credit_up_and_says_so() {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    room.endpoint.send(link, 0, false, 0, &[b"x"]).unwrap();
    room.sent();
    room.hear(CHANNEL, Flow { drain: true, ..credit(0, 1, 10) });
    assert_eq!(room.sent(), ["flow 0 in Some(100)+5000 out 1 link 0 Some(11)+Some(0)"]);
    assert_eq!(room.endpoint.credit(link), 0);
    room.hear(CHANNEL, credit(0, 11, 2));
    assert_eq!(room.endpoint.credit(link), 2);
}

#[test]
fn amqp_2_6_7_credit_is_absolute_and_one_flow_per_turn() {
    let (mut room, _, link) = asked(&Role::Receiver, Wish::new("r", "node"));
    room.endpoint.grant(link, 4);
    assert_eq!(room.sent(), NOTHING, "not attached yet");
    room.hear(CHANNEL, Attach { initial_delivery_count: Some(u32::MAX), ..attach("r", 0, Role::Sender, "node") });
    assert_eq!(room.sent(), ["flow 0 in Some(100)+5000 out 0 link 0 Some(4294967295)+Some(4)"]);
    room.hear(CHANNEL, transfer(0, 0));
    room.hear(CHANNEL, transfer(0, 1));
    assert_eq!(room.endpoint.credit(link), 2);
    room.endpoint.grant(link, 9);
    room.endpoint.grant(link, 7);
    assert_eq!(room.sent(), ["flow 0 in Some(102)+5000 out 0 link 0 Some(1)+Some(7)"]);
    // a sender that gives up its credit counts it
    room.hear(CHANNEL, Flow { next_outgoing_id: 102, ..credit(0, 8, 0) });
    assert_eq!(room.endpoint.credit(link), 0);
}

#[test]
fn amqp_2_6_7_a_delivery_without_credit_detaches_but_what_was_in_flight_is_taken() {
    let (mut room, session) = Room::begun(config());
    let link = room.receiver(session, 0, Wish::new("r", "node")); // credit 10
    room.hear(CHANNEL, transfer(0, 0));
    room.endpoint.grant(link, 0);
    for id in 1..10 {
        room.hear(CHANNEL, transfer(0, id));
    }
    assert_eq!(room.told().len(), 10);
    room.sent();
    room.hear(CHANNEL, transfer(0, 10));
    assert_eq!(room.sent(), ["detach 0/0 amqp:link:transfer-limit-exceeded"]);
    assert_eq!(room.told(), ["detached 0 by us amqp:link:transfer-limit-exceeded"]);
    room.hear(CHANNEL, transfer(0, 11)); // it has not seen our DETACH
    room.hear(CHANNEL, credit(0, 11, 0));
    room.hear(CHANNEL, detach(0, None));
    assert_eq!((room.sent(), room.told()), (vec![], vec![]));
}

#[test]
fn amqp_2_6_6_detach_is_answered_once_and_frees_the_handle() {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    room.endpoint.send(link, 3, false, 0, &[b"x"]).unwrap();
    room.sent();
    room.hear(CHANNEL, Detach { closed: false, ..detach(0, Some(error("amqp:link:stolen"))) });
    assert_eq!(room.sent(), ["detach 0/0"]);
    assert_eq!(room.told(), ["settled 0/3 lost", "detached 0 by peer amqp:link:stolen"]);
    assert_eq!(room.endpoint.send(link, 4, false, 0, &[b"x"]), Err(NotSent::NotAttached));
    room.endpoint.detach(link);
    room.endpoint.grant(link, 4);
    assert_eq!(room.sent(), NOTHING);
    room.endpoint.attach_sender(session, Wish::new("next", "node"), 1).unwrap();
    assert_eq!(room.sent(), ["attach 0/0 Sender next Some(\"node\")"]);
}

#[test]
fn amqp_2_6_6_our_detach_waits_for_theirs_and_outcomes_still_count() {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    for token in 1..4 {
        room.endpoint.send(link, token, false, 0, &[b"x"]).unwrap();
    }
    room.endpoint.detach(link);
    room.endpoint.detach(link);
    room.sent();
    let accepted = fe2o3_amqp_types::messaging::Accepted {};
    room.hear(CHANNEL, crate::peer::disposition(1, 1, Some(accepted.into())));
    room.hear(CHANNEL, credit(0, 3, 5));
    assert_eq!(room.told(), ["settled 0/2 accepted"]);
    room.hear(CHANNEL, detach(0, None));
    assert_eq!(room.told(), ["settled 0/1 lost", "settled 0/3 lost", "detached 0 local"]);
    assert_eq!(room.sent(), NOTHING);
}

#[test]
fn a_detach_before_the_attach_was_answered_is_sorted_out() {
    let (mut room, session, link) = asked(&Role::Sender, Wish::new("s", "node"));
    room.endpoint.detach(link);
    assert_eq!(room.sent(), ["detach 0/0"]);
    room.hear(CHANNEL, receiver_side(4));
    room.hear(CHANNEL, credit(4, 0, 5));
    room.hear(CHANNEL, detach(4, None));
    assert_eq!((room.sent(), room.told()), (vec![], owned(&["refused 5 local"])));
    room.endpoint.attach_sender(session, Wish::new("s", "node"), 6).unwrap();
    room.hear(CHANNEL, receiver_side(4));
    assert_eq!(room.told(), ["attached 6"]);
}

#[test]
fn an_unanswered_attach_is_detached_and_its_late_answer_harmless() {
    let (mut room, session, _) = asked(&Role::Sender, Wish::new("s", "node"));
    room.endpoint.handle_timeout(30_000);
    assert_eq!((room.sent(), room.told()), (owned(&["detach 0/0"]), owned(&["refused 5 timeout"])));
    room.hear(CHANNEL, receiver_side(4));
    room.hear(CHANNEL, credit(4, 0, 5));
    assert_eq!((room.sent(), room.told()), (vec![], vec![]));
    room.endpoint.attach_sender(session, Wish::new("t", "node"), 6).unwrap();
    assert_eq!(room.sent(), ["attach 0/1 Sender t Some(\"node\")"], "handle 0 still waits for its DETACH");
    room.hear(CHANNEL, detach(4, None));
    room.endpoint.attach_sender(session, Wish::new("s", "node"), 7).unwrap();
    assert_eq!(room.sent(), ["attach 0/0 Sender s Some(\"node\")"]);
}

#[test]
fn amqp_2_5_5_an_attach_that_runs_out_after_end_is_not_detached() {
    let (mut room, session, _) = asked(&Role::Sender, Wish::new("s", "node"));
    room.endpoint.handle_timeout(1_000);
    room.endpoint.end(session);
    room.endpoint.handle_timeout(30_500);
    assert_eq!((room.sent(), room.told()), (owned(&["end 0"]), owned(&["refused 5 timeout"])));
}

#[test]
fn an_unanswered_detach_runs_out() {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    room.endpoint.send(link, 3, false, 0, &[b"x"]).unwrap();
    room.endpoint.detach(link);
    room.endpoint.handle_timeout(30_000);
    assert_eq!(room.told(), ["settled 0/3 lost", "detached 0 timeout"]);
    room.hear(CHANNEL, detach(0, None));
    assert_eq!(room.told(), NOTHING);
}

#[test]
fn amqp_2_6_3_a_link_of_the_peer_is_refused_and_the_others_go_on() {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    room.hear(CHANNEL, attach("theirs", 8, Role::Sender, "node"));
    assert_eq!(room.sent(), ["attach 0/1 Receiver theirs None", "detach 0/1 amqp:not-allowed"]);
    room.hear(CHANNEL, transfer(8, 0));
    room.hear(CHANNEL, detach(8, None));
    assert_eq!((room.sent(), room.told()), (vec![], vec![]));
    assert!(room.endpoint.sendable(link));
}

#[test]
fn a_transfer_on_our_sender_costs_that_link_only() {
    let (mut room, session) = Room::begun(config());
    let good = room.sender(session, 0);
    room.sender(session, 1);
    room.hear(CHANNEL, transfer(1, 0));
    assert_eq!(room.sent(), ["detach 0/1 amqp:not-allowed"]);
    assert_eq!(room.told(), ["detached 1 by us amqp:not-allowed"]);
    assert!(room.endpoint.sendable(good));
    assert_eq!(room.endpoint.counters().links_failed, 1);
}

#[test]
fn attaches_are_refused_while_the_output_is_full_or_the_links_are_many() {
    let (mut room, session) = Room::begun(Config { output_bytes_max: 130, links_max: 4, ..config() });
    let mut attached = 0;
    while room.endpoint.attach_sender(session, Wish::new(format!("l{attached}"), "node"), 0).is_ok() {
        attached += 1;
    }
    assert!((2..4).contains(&attached), "{attached}");
    assert_eq!(room.endpoint.attach_sender(session, Wish::new("x", "node"), 0), Err(Refused::OutputFull));
    room.sent();
    while attached < 4 {
        room.endpoint.attach_sender(session, Wish::new(format!("l{attached}"), "node"), 0).unwrap();
        attached += 1;
    }
    room.sent();
    assert_eq!(room.endpoint.attach_sender(session, Wish::new("x", "node"), 0), Err(Refused::LinksMax));
}

#[test]
fn an_attach_larger_than_the_peers_frames_is_not_written() {
    let small = fe2o3_amqp_types::performatives::Open { max_frame_size: 512.into(), ..crate::peer::open() };
    let (mut room, session) = Room::begun_with(config(), small, crate::peer::begin(Some(0)));
    room.endpoint.attach_sender(session, Wish::new("x".repeat(600), "node"), 3).unwrap();
    assert_eq!((room.sent(), room.told()), (vec![], owned(&["refused 3 limit"])));
    room.endpoint.attach_sender(session, Wish::new("x", "node"), 4).unwrap();
    assert_eq!(room.sent(), ["attach 0/0 Sender x Some(\"node\")"]);
}

#[test]
fn a_receiver_settle_mode_is_what_the_answer_says() {
    let second = Wish { receiver_settle_mode: amqp_endpoint::ReceiverSettleMode::Second, ..Wish::new("r", "node") };
    for (theirs, settled) in [(ReceiverSettleMode::Second, ""), (ReceiverSettleMode::First, " settled")] {
        let (mut room, _, link) = asked(&Role::Receiver, second.clone());
        room.hear(CHANNEL, Attach { rcv_settle_mode: theirs, ..attach("r", 0, Role::Sender, "node") });
        room.endpoint.grant(link, 1);
        room.hear(CHANNEL, transfer(0, 0));
        room.sent();
        room.endpoint.settle(link, amqp_endpoint::DeliveryId(0), amqp_endpoint::Settle::Accepted);
        assert_eq!(room.sent(), [format!("disposition 0 Receiver 0..0 accepted{settled}")]);
    }
}
