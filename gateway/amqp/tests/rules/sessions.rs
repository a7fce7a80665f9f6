//! What the specification demands of a session (2.5, 2.7.2, 2.7.4, 2.7.8), one row per rule.

use amqp_endpoint::{Attach, Config, NotSent, Refused, Settle};
use fe2o3_amqp_types::definitions::{Handle, Role};
use fe2o3_amqp_types::performatives::{Begin, End, Flow};

use crate::peer::{CHANNEL, Room, attach, begin, config, credit, error, flow, frame, open, raw_frame, transfer};

const NOTHING: [&str; 0] = [];

#[test]
fn amqp_2_5_1_begin_waits_for_open_and_is_answered_by_our_channel() {
    let mut room = Room::new(config());
    let session = room.endpoint.begin().unwrap();
    room.endpoint.attach_sender(session, Attach::new("early", "node"), 9).unwrap();
    assert_eq!(room.sent(), ["header 0", "open us 65536"]);
    room.feed(crate::peer::HEADER);
    room.hear(0, open());
    assert_eq!(room.sent(), ["begin 0 for None"]);
    room.hear(7, begin(Some(0)));
    assert_eq!(room.sent(), ["attach 0/0 Sender early Some(\"node\")"]);
    assert_eq!(room.told(), ["opened peer 65536 10 0", "begun 100"]);
    room.hear(7, attach("early", 0, Role::Receiver, "node"));
    assert_eq!(room.told(), ["attached 9"]);
}

/// What one more frame does to a connection with one session and a sender on it that has one delivery out.
fn check(input: &[u8], sent: &[&str], told: &[&str]) {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    room.endpoint.send(link, 1, false, 0, &[b"x"]).unwrap();
    room.sent();
    room.feed(input);
    assert_eq!(room.sent(), sent, "{input:02x?}");
    assert_eq!(room.told(), told, "{input:02x?}");
}

#[test]
fn amqp_2_5_a_broken_rule_of_the_session_ends_the_session_only() {
    let body = |bytes: &[u8]| raw_frame(0, CHANNEL, bytes);
    let check_ended = |input: &[u8], condition: &str| {
        let ended = format!("ended by us {condition}");
        check(input, &[&format!("end 0 {condition}")], &["settled 0/1 lost", "detached 0 carrier", &ended]);
    };
    check_ended(&frame(CHANNEL, transfer(7, 0), &[]), "amqp:session:unattached-handle");
    check_ended(&frame(CHANNEL, credit(7, 0, 1), &[]), "amqp:session:unattached-handle");
    check_ended(&frame(CHANNEL, attach("other", 0, Role::Sender, "node"), &[]), "amqp:session:handle-in-use");
    let ahead = Flow { next_incoming_id: Some(2), ..flow() };
    check_ended(&frame(CHANNEL, ahead, &[]), "amqp:session:window-violation");
    check_ended(&body(b"\x00\x53\x14\x45"), "amqp:decode-error");
    check_ended(&body(b"\x00\x53\x15\xc0\x02\x01\x43"), "amqp:decode-error");
    check_ended(&body(b"\x00\x53\x13\xc0\x01\x09"), "amqp:decode-error");
    check_ended(&body(b"\x00\x53\x19\x45"), "amqp:decode-error");
    check_ended(&body(b"\x45"), "amqp:decode-error");
    check_ended(&body(b"\x00"), "amqp:decode-error");
}

#[test]
fn amqp_2_5_a_broken_rule_above_the_session_closes_the_connection() {
    let check_closed = |input: &[u8], condition: &str| {
        let closed = format!("closed by us {condition}");
        let told = ["settled 0/1 lost", "detached 0 carrier", "ended carrier", &closed];
        check(input, &[&format!("close {condition}")], &told);
    };
    check_closed(&frame(5, begin(Some(1)), &[]), "amqp:not-allowed");
    check_closed(&frame(5, begin(Some(0)), &[]), "amqp:not-allowed");
    check_closed(&frame(CHANNEL, begin(Some(0)), &[]), "amqp:not-allowed");
    check_closed(&frame(5, End { error: None }, &[]), "amqp:not-allowed");
    check_closed(&raw_frame(0, 5, b"\x00\x53\x11\x45"), "amqp:decode-error");
    let framing = "amqp:connection:framing-error";
    check_closed(&frame(CHANNEL, attach("x", 100, Role::Sender, "node"), &[]), framing);
    check_closed(&frame(CHANNEL, transfer(100, 0), &[]), framing);
}

#[test]
fn amqp_2_5_1_a_session_of_the_peer_is_answered_and_ended() {
    let refused = ["begin 1 for Some(5)", "end 1 amqp:not-allowed"];
    check(&frame(5, begin(None), &[]), &refused, &[]);
    // what comes on it until its END is thrown away; then its channels are free again
    let (mut room, _) = Room::begun(config());
    for _ in 0..20 {
        room.hear(5, begin(None));
        room.hear(5, attach("x", 0, Role::Sender, "node"));
        room.hear(5, transfer(0, 0));
        assert_eq!(room.sent(), refused);
        room.hear(5, End { error: None });
    }
    assert_eq!((room.sent(), room.told()), (vec![], vec![]));
}

#[test]
fn amqp_2_7_8_the_peers_end_is_answered_once_and_takes_its_links_along() {
    let told = ["settled 0/1 lost", "detached 0 carrier", "ended by peer"];
    check(&frame(CHANNEL, End { error: None }, &[]), &["end 0"], &told);
    let told = ["settled 0/1 lost", "detached 0 carrier", "ended by peer amqp:internal-error"];
    check(&frame(CHANNEL, End { error: Some(error("amqp:internal-error")) }, &[]), &["end 0"], &told);
}

#[test]
fn amqp_2_5_5_crossing_ends_are_each_others_answer_and_the_channel_is_free_again() {
    let (mut room, session) = Room::begun(config());
    room.endpoint.end(session);
    room.endpoint.end(session);
    assert_eq!(room.endpoint.attach_sender(session, Attach::new("a", "b"), 0), Err(Refused::Gone));
    assert_eq!(room.sent(), ["end 0"]);
    room.hear(CHANNEL, flow());
    room.hear(CHANNEL, transfer(0, 0));
    room.hear(CHANNEL, End { error: None });
    assert_eq!((room.sent(), room.told()), (vec![], vec!["ended local".to_owned()]));
    let again = room.endpoint.begin().unwrap();
    assert_ne!(again, session);
    assert_eq!(room.sent(), ["begin 0 for None"]);
    room.hear(CHANNEL, begin(Some(0)));
    assert_eq!(room.told(), ["begun 100"]);
    room.endpoint.end(session); // the old name means nothing now
    assert_eq!(room.sent(), NOTHING);
}

#[test]
fn amqp_2_5_5_after_our_end_with_error_all_is_discarded_and_the_channel_stays_taken() {
    let (mut room, session) = Room::begun(config());
    room.hear(CHANNEL, transfer(7, 0));
    room.hear(CHANNEL, transfer(7, 0));
    room.hear(CHANNEL, attach("x", 0, Role::Sender, "node"));
    assert_eq!(room.sent(), ["end 0 amqp:session:unattached-handle"]);
    assert_eq!(room.told(), ["ended by us amqp:session:unattached-handle"]);
    room.endpoint.begin().unwrap();
    assert_eq!(room.sent(), ["begin 1 for None"]);
    room.hear(CHANNEL, End { error: None });
    room.endpoint.begin().unwrap();
    assert_eq!(room.sent(), ["begin 0 for None"]);
    assert_eq!(room.endpoint.attach_sender(session, Attach::new("a", "b"), 0), Err(Refused::Gone));
}

#[test]
fn an_end_that_crosses_an_unanswered_begin_is_sorted_out() {
    let (mut room, _) = Room::begun(config());
    let second = room.endpoint.begin().unwrap();
    room.endpoint.attach_sender(second, Attach::new("a", "b"), 4).unwrap();
    room.endpoint.end(second);
    assert_eq!(room.sent(), ["begin 1 for None", "end 1"]);
    room.hear(8, begin(Some(1)));
    room.hear(8, End { error: None });
    assert_eq!(room.sent(), NOTHING);
    assert_eq!(room.told(), ["refused 4 carrier", "ended local"]);
}

#[test]
fn unanswered_begins_and_ends_run_out() {
    let (mut room, first) = Room::begun(config());
    room.endpoint.handle_timeout(1_000);
    room.endpoint.end(first);
    room.endpoint.handle_timeout(2_000);
    room.endpoint.begin().unwrap();
    room.sent();
    room.endpoint.handle_timeout(30_000);
    assert_eq!((room.told(), room.endpoint.poll_timeout()), (vec![], Some(31_000)));
    room.endpoint.handle_timeout(31_000);
    assert_eq!((room.sent(), room.told()), (vec![], vec!["ended timeout".to_owned()]));
    room.endpoint.handle_timeout(32_000);
    assert_eq!((room.sent(), room.told()), (vec!["end 1".to_owned()], vec!["ended timeout".to_owned()]));
    assert_eq!(room.endpoint.counters().timeouts, 2);
}

#[test]
fn amqp_2_7_2_handle_max_of_either_side_bounds_the_links() {
    for (ours, theirs, expected) in [(3, u32::MAX, 3), (100, 1, 2), (2, 2, 2)] {
        let config = Config { links_per_session_max: ours, ..config() };
        let begin = Begin { handle_max: Handle(theirs), ..begin(Some(0)) };
        let (mut room, session) = Room::begun_with(config, open(), begin);
        for n in 0..expected {
            room.endpoint.attach_sender(session, Attach::new(format!("l{n}"), "node"), 0).unwrap();
        }
        let more = room.endpoint.attach_sender(session, Attach::new("more", "node"), 0);
        assert_eq!(more, Err(Refused::LinksMax), "{ours} {theirs}");
    }
    // those that waited for BEGIN learn it by event
    let mut room = Room::new(config());
    let session = room.endpoint.begin().unwrap();
    for n in 0..3 {
        room.endpoint.attach_sender(session, Attach::new(format!("l{n}"), "node"), n).unwrap();
    }
    room.sent();
    let begin = Begin { handle_max: Handle(1), ..begin(Some(0)) };
    room.feed(&[crate::peer::HEADER, &frame(0, open(), &[]), &frame(CHANNEL, begin, &[])].concat());
    assert_eq!(room.sent().len(), 3);
    assert_eq!(room.told(), ["opened peer 65536 10 0", "begun 2", "refused 2 limit"]);
}

/// A session whose peer gave a window of 3 frames; after `sent` transfers a FLOW comes: how many more go out?
fn window_after(sent: usize, flow: Flow) -> usize {
    let begin = Begin { incoming_window: 3, ..begin(Some(0)) };
    let (mut room, session) = Room::begun_with(config(), open(), begin);
    let link = room.endpoint.attach_sender(session, Attach::new("s", "node"), 0).unwrap();
    room.hear(CHANNEL, attach("s", 0, Role::Receiver, "node"));
    room.hear(CHANNEL, Flow { incoming_window: 3, ..credit(0, 0, 100) });
    for n in 0..sent {
        room.endpoint.send(link, n as u64, false, 0, &[b"x"]).unwrap();
    }
    room.hear(CHANNEL, flow);
    room.told();
    room.sent();
    let mut more = 0;
    while more < 50 {
        match room.endpoint.send(link, 99, false, 0, &[b"x"]) {
            Ok(()) => more += 1,
            Err(why) => {
                assert_eq!(why, NotSent::WindowClosed);
                break;
            }
        }
    }
    more
}

#[test]
fn amqp_2_5_6_the_window_is_theirs_plus_their_next_id_minus_our_next_id() {
    let flow = |id: Option<u32>, window| Flow { next_incoming_id: id, incoming_window: window, ..flow() };
    assert_eq!(window_after(0, flow(Some(0), 5)), 5);
    assert_eq!(window_after(2, flow(Some(0), 3)), 1);
    assert_eq!(window_after(2, flow(Some(2), 3)), 3);
    assert_eq!(window_after(3, flow(Some(1), 0)), 0);
    assert_eq!(window_after(3, flow(Some(0), 1)), 0, "shrunk below what is out: nothing, not four thousand million");
    assert_eq!(window_after(3, flow(Some(u32::MAX), 1)), 0);
    // IoT Hub leaves next-incoming-id out: then what waits for its outcome counts against the window
    assert_eq!(window_after(0, flow(None, 5)), 5);
    assert_eq!(window_after(3, flow(None, 5)), 2);
}

#[test]
fn iot_hub_without_next_incoming_id_never_shuts_the_window_for_good() {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    for n in 0..20_000_u32 {
        if n % 100 == 0 {
            room.hear(CHANNEL, credit(0, n, 100));
            room.hear(CHANNEL, Flow { next_incoming_id: None, ..flow() });
        }
        room.endpoint.send(link, u64::from(n), false, 0, &[b"x"]).unwrap();
        let accepted = fe2o3_amqp_types::messaging::Accepted {};
        room.hear(CHANNEL, crate::peer::disposition(n, n, Some(accepted.into())));
        room.endpoint.output().clear();
    }
}

#[test]
fn amqp_2_5_6_transfers_wait_for_the_window_and_the_callers_are_told_when_it_opens() {
    let begin = Begin { incoming_window: 1, ..begin(Some(0)) };
    let (mut room, session) = Room::begun_with(config(), open(), begin);
    let one = |id, window| Flow { next_incoming_id: Some(id), incoming_window: window, ..flow() };
    let links: Vec<_> = (0..3).map(|n| room.sender(session, n)).collect();
    room.hear(CHANNEL, one(0, 1));
    room.endpoint.send(links[0], 1, false, 0, &[b"x"]).unwrap();
    for link in &links {
        assert!(!room.endpoint.sendable(*link));
        assert_eq!(room.endpoint.send(*link, 2, false, 0, &[b"x"]), Err(NotSent::WindowClosed));
        assert_eq!(room.endpoint.send(*link, 2, false, 0, &[b"x"]), Err(NotSent::WindowClosed));
    }
    room.hear(CHANNEL, one(0, 1));
    assert_eq!(room.told(), NOTHING, "still shut");
    // everything but transfers passes a shut window
    room.endpoint.detach(links[2]);
    assert_eq!(room.sent(), ["transfer 0/0 Some(0) 1B", "detach 0/2"]);
    room.hear(CHANNEL, one(1, 1));
    assert_eq!(room.told(), ["sendable 0", "sendable 1"]);
    assert!(room.endpoint.sendable(links[1]));
}

#[test]
fn amqp_2_5_6_we_renew_our_window_at_half() {
    let (mut room, session) = Room::begun(Config { incoming_window: 8, ..config() });
    let link = room.receiver(session, 0, Attach::new("r", "node"));
    for id in 0..3 {
        room.hear(CHANNEL, transfer(0, id));
    }
    assert_eq!(room.sent(), NOTHING);
    room.hear(CHANNEL, transfer(0, 3));
    assert_eq!(room.sent(), ["flow 0 in Some(104)+8 out 0"], "the peer's first id was 100");
    // a FLOW for a link renews it as well
    room.hear(CHANNEL, transfer(0, 4));
    room.endpoint.grant(link, 50);
    assert_eq!(room.sent(), ["flow 0 in Some(105)+8 out 0 link 0 Some(5)+Some(50)"]);
}

#[test]
fn amqp_2_5_6_a_transfer_beyond_our_window_ends_the_session() {
    let (mut room, session) = Room::begun(Config { incoming_window: 2, ..config() });
    let link = room.receiver(session, 0, Attach::new("r", "node"));
    for id in 0..3 {
        room.hear(CHANNEL, transfer(0, id));
    }
    let told = room.told();
    assert_eq!(told[..2], ["delivery 0/0 [0] 0B", "delivery 0/1 [1] 0B"]);
    assert_eq!(told[2..], ["detached 0 carrier", "ended by us amqp:session:window-violation"]);
    assert_eq!(room.sent(), ["end 0 amqp:session:window-violation"]);
    room.endpoint.settle(link, amqp_endpoint::DeliveryId(0), Settle::Accepted);
    assert_eq!(room.sent(), NOTHING);
}

#[test]
fn amqp_2_7_4_echo_is_answered_without_echo() {
    check(&frame(CHANNEL, Flow { echo: true, ..flow() }, &[]), &["flow 0 in Some(100)+5000 out 1"], &[]);
    let echo = Flow { echo: true, ..credit(0, 0, 100) };
    check(&frame(CHANNEL, echo, &[]), &["flow 0 in Some(100)+5000 out 1 link 0 Some(1)+Some(99)"], &[]);
}
