//! What the specification demands of deliveries (2.6.12, 2.6.14, 2.7.5, 2.7.6, 3.4), one row per rule.

use amqp_endpoint::{Attach as Wish, Config, DeliveryId, Error, NotSent, Settle};
use fe2o3_amqp_types::definitions::{ReceiverSettleMode, Role};
use fe2o3_amqp_types::messaging::{Accepted, DeliveryState, Modified, Outcome, Received, Rejected, Released, Source};
use fe2o3_amqp_types::performatives::{Attach, Close, Disposition, End, Open, Transfer};

use crate::peer::{
    CHANNEL, Room, attach, begin, config, credit, detach, disposition, error, frame, open, raw_frame, transfer,
};

const NOTHING: [&str; 0] = [];

const ACCEPTED: Option<DeliveryState> = Some(DeliveryState::Accepted(Accepted {}));

/// Three deliveries are out, tokens 10 11 12 with ids 0 1 2; the peer's frame makes us write `sent` and tell `told`.
fn check(input: &[u8], sent: &[&str], told: &[&str]) {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    for token in 10..13 {
        room.endpoint.send(link, token, false, 0, &[b"x"]).unwrap();
    }
    assert_eq!(room.endpoint.unsettled(link), 3);
    room.sent();
    room.feed(input);
    assert_eq!(room.sent(), sent, "{input:02x?}");
    assert_eq!(room.told(), told, "{input:02x?}");
    let open = told.iter().filter(|line| line.starts_with("settled")).count() as u32;
    assert_eq!(room.endpoint.unsettled(link), 3 - open);
}

fn check_disposition(disposition: Disposition, sent: &[&str], told: &[&str]) {
    check(&frame(CHANNEL, disposition, &[]), sent, told);
}

#[test]
fn amqp_2_7_6_ranges_settle_what_is_in_them_and_nothing_else() {
    let all = ["settled 0/10 accepted", "settled 0/11 accepted", "settled 0/12 accepted"];
    check_disposition(disposition(0, 2, ACCEPTED), &[], &all);
    check_disposition(disposition(1, 1, ACCEPTED), &[], &all[1..2]);
    check_disposition(Disposition { last: None, ..disposition(2, 0, ACCEPTED) }, &[], &all[2..]);
    check_disposition(disposition(3, 9, ACCEPTED), &[], &[]);
    check_disposition(disposition(u32::MAX - 5, 1, ACCEPTED), &[], &all[..2]);
    // the range attack: two thousand million ids, three of them ours
    check_disposition(disposition(0, u32::MAX >> 1, ACCEPTED), &[], &all);
}

#[test]
fn amqp_2_7_6_a_range_that_runs_backwards_ends_the_session() {
    let (mut room, session) = Room::begun(config());
    room.sender(session, 0);
    room.hear(CHANNEL, disposition(1, 0, ACCEPTED));
    assert_eq!(room.sent(), ["end 0 amqp:invalid-field"]);
}

#[test]
fn amqp_3_4_every_outcome_is_told() {
    let one = |state: DeliveryState, told: &str| check_disposition(disposition(0, 0, Some(state)), &[], &[told]);
    one(Accepted {}.into(), "settled 0/10 accepted");
    one(Released {}.into(), "settled 0/10 released");
    let modified = Modified { delivery_failed: Some(true), undeliverable_here: None, message_annotations: None };
    one(modified.into(), "settled 0/10 modified");
    one(Rejected { error: None }.into(), "settled 0/10 rejected");
    let throttled = "com.microsoft:device-container-throttled";
    let told = format!("settled 0/10 rejected {throttled}");
    one(Rejected { error: Some(error(throttled)) }.into(), &told);
    // symbol descriptors, wide forms
    let wide = b"\x00\xa3\x15amqp:disposition:list\xd0\x00\x00\x00\x28\x00\x00\x00\x05\x56\x01\x70\x00\x00\x00\x00\
        \x70\x00\x00\x00\x01\x56\x01\x00\xa3\x12amqp:accepted:list\x45";
    let mut wide = wide.to_vec();
    wide[28] = (wide.len() - 29) as u8;
    check(&raw_frame(0, CHANNEL, &wide), &[], &["settled 0/10 accepted", "settled 0/11 accepted"]);
}

#[test]
fn amqp_2_6_12_an_unsettled_outcome_is_answered_settled_with_the_same_state() {
    let unsettled = |state| Disposition { settled: false, ..disposition(0, 7, state) };
    let told = ["settled 0/10 accepted", "settled 0/11 accepted", "settled 0/12 accepted"];
    check_disposition(unsettled(ACCEPTED), &["disposition 0 Sender 0..2 accepted settled"], &told);
    let rejected = Disposition { last: None, ..unsettled(Some(Rejected { error: Some(error("x:y")) }.into())) };
    check_disposition(rejected, &["disposition 0 Sender 0..0 rejected x:y settled"], &["settled 0/10 rejected x:y"]);
}

#[test]
fn amqp_3_4_1_received_is_no_outcome() {
    let received = || Some(Received { section_number: 0, section_offset: 0 }.into());
    check_disposition(Disposition { settled: false, ..disposition(0, 2, received()) }, &[], &[]);
    check_disposition(Disposition { settled: false, ..disposition(0, 2, None) }, &[], &[]);
    check_disposition(Disposition { role: Role::Sender, ..disposition(0, 2, ACCEPTED) }, &[], &[]);
}

#[test]
fn amqp_3_4_settled_without_a_state_is_the_default_outcome_or_released() {
    check_disposition(disposition(0, 0, None), &[], &["settled 0/10 released"]);
    let (mut room, session) = Room::begun(config());
    let link = room.endpoint.attach_sender(session, Wish::new("s", "node"), 5).unwrap();
    let default_outcome = Some(Outcome::Rejected(Rejected { error: None }));
    let source = Source { default_outcome, ..Source::default() };
    room.hear(CHANNEL, Attach { source: Some(Box::new(source)), ..attach("s", 0, Role::Receiver, "node") });
    room.hear(CHANNEL, credit(0, 0, 1));
    room.endpoint.send(link, 1, false, 0, &[b"x"]).unwrap();
    room.told();
    room.hear(CHANNEL, disposition(0, 0, None));
    assert_eq!(room.told(), ["settled 5/1 rejected"]);
}

#[test]
fn amqp_2_6_12_one_disposition_may_cover_many_links() {
    let (mut room, session) = Room::begun(config());
    let links: Vec<_> = (0..3).map(|n| room.sender(session, n)).collect();
    for token in 0..6 {
        room.endpoint.send(links[token as usize % 3], token, token == 4, 0, &[b"x"]).unwrap_or_else(|why| {
            assert_eq!(why, NotSent::SettleMode, "unsettled links take no settled message");
        });
    }
    room.hear(CHANNEL, disposition(0, 9, ACCEPTED));
    let told = room.told();
    assert_eq!(told[..3], ["settled 0/0 accepted", "settled 1/1 accepted", "settled 2/2 accepted"]);
    assert_eq!(told[3..], ["settled 0/3 accepted", "settled 2/5 accepted"]);
}

#[test]
fn every_end_gives_each_pending_delivery_back_once_before_its_own_event() {
    type Ending = (&'static str, fn(&mut Room));
    let endings: [Ending; 8] = [
        ("detach", |room| room.hear(CHANNEL, detach(0, None))),
        ("detach with error", |room| room.hear(CHANNEL, detach(0, Some(error("amqp:link:stolen"))))),
        ("link fault", |room| room.hear(CHANNEL, transfer(0, 0))),
        ("end", |room| room.hear(CHANNEL, End { error: None })),
        ("session fault", |room| room.hear(CHANNEL, transfer(9, 0))),
        ("close", |room| room.hear(0, Close { error: None })),
        ("connection fault", |room| room.feed(&[0, 0, 0, 1])),
        ("eof", |room| room.endpoint.handle_eof(0)),
    ];
    for (name, end) in endings {
        let (mut room, session) = Room::begun(config());
        let link = room.sender(session, 0);
        for token in 10..15 {
            room.endpoint.send(link, token, false, 0, &[b"x"]).unwrap();
        }
        room.hear(CHANNEL, disposition(1, 2, ACCEPTED));
        room.told();
        end(&mut room);
        let told = room.told();
        assert_eq!(told[..3], ["settled 0/10 lost", "settled 0/13 lost", "settled 0/14 lost"], "{name}");
        assert!(told[3].starts_with("detached 0"), "{name}: {told:?}");
        room.hear(CHANNEL, disposition(0, 9, ACCEPTED));
        room.endpoint.handle_eof(0);
        assert!(room.told().iter().all(|line| !line.starts_with("settled") && !line.starts_with("detached")), "{name}");
    }
}

#[test]
fn outcomes_that_come_after_our_close_or_end_still_count() {
    for close in [true, false] {
        let (mut room, session) = Room::begun(config());
        let link = room.sender(session, 0);
        room.endpoint.send(link, 1, false, 0, &[b"x"]).unwrap();
        if close {
            room.endpoint.close(None);
        } else {
            room.endpoint.end(session);
        }
        room.sent();
        room.hear(CHANNEL, Disposition { settled: false, ..disposition(0, 0, ACCEPTED) });
        assert_eq!((room.sent(), room.told()), (vec![], vec!["settled 0/1 accepted".to_owned()]));
        assert_eq!(room.endpoint.send(link, 2, false, 0, &[b"x"]), Err(NotSent::NotAttached));
    }
}

#[test]
fn amqp_2_6_14_a_message_is_split_at_the_peers_frame_size_and_joined_again() {
    let small = Open { max_frame_size: 512.into(), ..open() };
    for (bytes, frames) in [(0, 1), (472, 1), (473, 2), (944, 2), (945, 3)] {
        let (mut room, session) = Room::begun_with(config(), small.clone(), begin(Some(0)));
        let link = room.sender(session, 0);
        let message: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
        let (front, back) = message.split_at(bytes / 3);
        room.endpoint.send(link, 1, false, 0, &[front, b"", back]).unwrap();
        let output = std::mem::take(room.endpoint.output());
        let lines = crate::peer::lines(&output);
        assert_eq!(lines.len(), frames, "{bytes} bytes: {lines:?}");
        let mut rest = &output[..];
        let mut joined = Vec::new();
        while !rest.is_empty() {
            let size = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            assert!(size <= 512);
            joined.extend_from_slice(crate::peer::read(&rest[8..size]).1);
            rest = &rest[size..];
        }
        assert_eq!(joined, message);
        assert_eq!(room.endpoint.credit(link), 99, "credit is per delivery, not per frame");
        for (n, line) in lines.iter().enumerate() {
            assert_eq!(line.contains(" more"), n + 1 < frames, "{line}");
            assert_eq!(line.contains("Some(0)"), n == 0, "{line}");
        }
    }
}

#[test]
fn what_cannot_be_sent_now_is_refused_for_its_own_reason() {
    let config = Config { unsettled_max: 2, output_bytes_max: 500, ..config() };
    let (mut room, session) = Room::begun(config);
    let link = room.endpoint.attach_sender(session, Wish::new("s", "node"), 5).unwrap();
    let send = |room: &mut Room, bytes: usize| room.endpoint.send(link, 1, false, 0, &[&vec![0; bytes]]);
    assert_eq!(send(&mut room, 1), Err(NotSent::NotAttached));
    room.hear(CHANNEL, Attach { max_message_size: Some(600), ..attach("s", 0, Role::Receiver, "node") });
    assert_eq!(send(&mut room, 601), Err(NotSent::TooLarge));
    assert_eq!(send(&mut room, 600), Err(NotSent::NoCredit));
    room.hear(CHANNEL, credit(0, 0, 100));
    room.sent();
    room.told();
    assert_eq!(send(&mut room, 600), Ok(()));
    assert_eq!(send(&mut room, 1), Err(NotSent::OutputFull));
    assert_eq!(room.told(), NOTHING, "nothing has been written yet");
    room.sent();
    assert_eq!(room.told(), ["sendable 5"]);
    assert_eq!(send(&mut room, 1), Ok(()));
    assert_eq!(send(&mut room, 1), Err(NotSent::UnsettledFull));
    room.hear(CHANNEL, disposition(0, 0, ACCEPTED));
    assert_eq!(room.told(), ["settled 5/1 accepted", "sendable 5"]);
    assert_eq!(send(&mut room, 1), Ok(()));
    let counters = room.endpoint.counters();
    assert_eq!((counters.no_credit, counters.output_full, counters.unsettled_full), (1, 1, 1));
}

/// On a receiver with credit 10 for messages up to 100 bytes.
fn check_incoming(frames: &[Vec<u8>], sent: &[&str], told: &[&str]) {
    let (mut room, session) = Room::begun(config());
    room.receiver(session, 0, Wish { message_bytes_max: 100, ..Wish::new("r", "node") });
    room.feed(&frames.concat());
    assert_eq!(room.sent(), sent);
    assert_eq!(room.told(), told);
}

fn part(transfer: Transfer, bytes: usize) -> Vec<u8> {
    frame(CHANNEL, transfer, &vec![1; bytes])
}

fn more(id: Option<u32>) -> Transfer {
    Transfer { delivery_id: id, more: true, ..transfer(0, 4) }
}

fn last(id: Option<u32>) -> Transfer {
    Transfer { delivery_id: id, delivery_tag: None, message_format: None, settled: None, ..transfer(0, 4) }
}

#[test]
fn amqp_2_7_5_frames_join_to_one_delivery() {
    check_incoming(&[part(transfer(0, 4), 9)], &[], &["delivery 0/4 [4] 9B"]);
    let joined = ["delivery 0/4 [4] 60B"];
    check_incoming(&[part(more(Some(4)), 20), part(more(None), 20), part(last(None), 20)], &[], &joined);
    check_incoming(&[part(more(Some(4)), 20), part(more(Some(4)), 20), part(last(Some(4)), 20)], &[], &joined);
    let settled = |t| Transfer { settled: Some(true), ..t };
    let told = ["delivery 0/4 [4] 2B settled"];
    check_incoming(&[part(settled(more(Some(4))), 1), part(last(None), 1)], &[], &told);
    check_incoming(&[part(more(Some(4)), 1), part(settled(last(None)), 1)], &[], &told);
    let no_tag = Transfer { delivery_tag: None, ..settled(transfer(0, 4)) };
    check_incoming(&[part(no_tag, 1)], &[], &["delivery 0/4 [] 1B settled"]);
}

#[test]
fn amqp_2_7_5_deliveries_of_other_links_may_come_between() {
    let (mut room, session) = Room::begun(config());
    room.receiver(session, 0, Wish::new("a", "node"));
    room.receiver(session, 1, Wish::new("b", "node"));
    let on_b = Transfer { handle: 1.into(), ..transfer(0, 5) };
    room.feed(&[part(more(Some(4)), 10), part(on_b, 3), part(last(None), 10)].concat());
    assert_eq!(room.told(), ["delivery 1/5 [5] 3B", "delivery 0/4 [4] 20B"]);
}

#[test]
fn amqp_2_7_5_an_aborted_delivery_leaves_nothing() {
    let abort = Transfer { aborted: true, more: true, ..last(None) };
    let next = part(transfer(0, 5), 3);
    check_incoming(&[part(more(Some(4)), 20), part(abort, 9), next], &[], &["delivery 0/5 [5] 3B"]);
}

#[test]
fn amqp_2_7_5_a_broken_delivery_costs_its_link_only() {
    let check = |frames: &[Vec<u8>], condition: &str| {
        let (sent, told) = (format!("detach 0/0 {condition}"), format!("detached 0 by us {condition}"));
        check_incoming(frames, &[&sent], &[&told]);
    };
    let invalid = "amqp:invalid-field";
    check(&[part(last(None), 1)], invalid);
    check(&[part(more(Some(4)), 1), part(last(Some(5)), 1)], invalid);
    check(&[part(Transfer { delivery_tag: Some(vec![0; 33].into()), ..transfer(0, 4) }, 1)], invalid);
    let second = Transfer { rcv_settle_mode: Some(ReceiverSettleMode::Second), ..transfer(0, 4) };
    check(&[part(second, 1)], invalid);
    // counted while it comes in: the last frame never has to come
    let exceeded = "amqp:link:message-size-exceeded";
    check(&[part(transfer(0, 4), 101)], exceeded);
    check(&[part(more(Some(4)), 60), part(more(None), 41)], exceeded);
    let (mut room, session) = Room::begun(config());
    room.receiver(session, 0, Wish::new("a", "node"));
    room.feed(&[part(transfer(0, 4), 1), part(transfer(0, 4), 1)].concat());
    assert_eq!(room.told()[1..], ["detached 0 by us amqp:invalid-field"], "an id that is still unsettled");
}

#[test]
fn incomplete_deliveries_share_one_bound() {
    let (mut room, session) = Room::begun(Config { partial_delivery_bytes_max: 100, ..config() });
    room.receiver(session, 0, Wish::new("a", "node"));
    room.receiver(session, 1, Wish::new("b", "node"));
    let on_b = |t: Transfer| Transfer { handle: 1.into(), ..t };
    room.feed(&part(more(Some(4)), 60));
    room.feed(&part(on_b(more(Some(5))), 60));
    assert_eq!(room.told(), ["detached 1 by us amqp:resource-limit-exceeded"]);
    room.feed(&part(last(None), 60)); // the last frame waits for nothing
    assert_eq!(room.told(), ["delivery 0/4 [4] 120B"]);
    room.feed(&part(more(Some(6)), 90));
    assert_eq!(room.told(), NOTHING, "what was given out or dropped no longer counts");
}

#[test]
fn amqp_2_7_6_outcomes_of_one_turn_become_ranges() {
    let (mut room, session) = Room::begun(config());
    let link = room.receiver(session, 0, Wish::new("r", "node"));
    for id in [u32::MAX - 1, u32::MAX, 0, 1, 2, 3, 4, 6] {
        room.hear(CHANNEL, transfer(0, id));
    }
    room.sent();
    for id in [1, 0, 6, u32::MAX, 2, u32::MAX - 1] {
        room.endpoint.settle(link, DeliveryId(id), Settle::Accepted);
    }
    room.endpoint.settle(link, DeliveryId(4), Settle::Released);
    room.endpoint.settle(link, DeliveryId(3), Settle::Rejected(Box::new(Error::new("amqp:decode-error", "bad"))));
    room.endpoint.settle(link, DeliveryId(3), Settle::Accepted);
    room.endpoint.settle(link, DeliveryId(77), Settle::Accepted);
    assert_eq!(
        room.sent(),
        [
            "disposition 0 Receiver 4294967294..2 accepted settled",
            "disposition 0 Receiver 3..3 rejected amqp:decode-error settled",
            "disposition 0 Receiver 4..4 released settled",
            "disposition 0 Receiver 6..6 accepted settled",
        ]
    );
    assert_eq!(room.sent(), NOTHING);
}

#[test]
fn amqp_2_6_12_second_mode_waits_for_the_senders_word() {
    let (mut room, session) = Room::begun(config());
    let second = Wish { receiver_settle_mode: amqp_endpoint::ReceiverSettleMode::Second, ..Wish::new("r", "node") };
    let link = room.endpoint.attach_receiver(session, second, 5).unwrap();
    room.hear(CHANNEL, Attach { rcv_settle_mode: ReceiverSettleMode::Second, ..attach("r", 0, Role::Sender, "node") });
    room.endpoint.grant(link, 10);
    room.sent();
    for id in 0..3 {
        room.hear(CHANNEL, transfer(0, id));
        room.endpoint.settle(link, DeliveryId(id), Settle::Accepted);
    }
    room.told();
    assert_eq!(room.sent(), ["disposition 0 Receiver 0..2 accepted"]);
    let theirs = |first, last, state| Disposition { role: Role::Sender, ..disposition(first, last, state) };
    room.hear(CHANNEL, theirs(0, 1, ACCEPTED));
    room.hear(CHANNEL, theirs(2, 2, Some(Rejected { error: Some(error("amqp:not-found")) }.into())));
    assert_eq!(
        room.told(),
        ["confirmed 5/0 accepted", "confirmed 5/1 accepted", "confirmed 5/2 rejected amqp:not-found"]
    );
    room.hear(CHANNEL, theirs(0, u32::MAX >> 1, ACCEPTED));
    assert_eq!((room.sent(), room.told()), (vec![], vec![]));
}

#[test]
fn a_delivery_the_sender_settles_itself_takes_no_outcome_any_more() {
    let (mut room, session) = Room::begun(config());
    let link = room.receiver(session, 0, Wish::new("r", "node"));
    room.hear(CHANNEL, transfer(0, 0));
    room.hear(CHANNEL, Disposition { role: Role::Sender, ..disposition(0, 0, None) });
    room.told();
    room.endpoint.settle(link, DeliveryId(0), Settle::Accepted);
    assert_eq!((room.sent(), room.told()), (vec![], vec![]));
}
