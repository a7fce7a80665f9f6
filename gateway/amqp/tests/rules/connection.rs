//! What the specification demands of a connection (2.2 to 2.4, 2.7.1, 2.7.9, 5.3), one row per rule.

use crate::peer::{CHANNEL, HEADER, Room, SASL_HEADER, begin, config, error, flow, frame, open, raw_frame, transfer};
use amqp_endpoint::{Attach, Config, DeliveryId, Refused, Sasl, Settle};
use fe2o3_amqp_types::performatives::{Close, Open};

/// On a fresh connection without SASL, `input` makes the endpoint write `sent` and tell `told` (after its own header and OPEN).
fn check_fresh(input: &[u8], sent: &[&str], told: &[&str]) {
    let mut room = Room::new(config());
    assert_eq!(room.sent(), ["header 0", "open us 65536"]);
    room.feed(input);
    assert_eq!((room.sent(), room.told()), (owned(sent), owned(told)), "{input:02x?}");
}

/// The same on a connection with one session.
fn check_begun(input: &[u8], sent: &[&str], told: &[&str]) {
    let (mut room, _) = Room::begun(config());
    room.feed(input);
    assert_eq!((room.sent(), room.told()), (owned(sent), owned(told)), "{input:02x?}");
}

fn owned(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

fn after_header(frame: &[u8]) -> Vec<u8> {
    [HEADER, frame].concat()
}

const FRAMING: &[&str] = &["close amqp:connection:framing-error"];
const FRAMING_CLOSED: &[&str] = &["closed by us amqp:connection:framing-error"];
const FRAMING_ENDED: &[&str] = &["ended carrier", "closed by us amqp:connection:framing-error"];

#[test]
fn amqp_2_2_another_header_ends_it_and_nothing_more_is_written() {
    check_fresh(b"AMQP\x03\x01\x00\x00", &[], &["closed header 3"]);
    check_fresh(b"AMQP\x00\x01\x00\x01", &[], &["closed header 0"]);
    check_fresh(b"HTTP/1.1", &[], &["closed header 47"]);
    check_fresh(HEADER, &[], &[]);
}

#[test]
fn amqp_2_3_1_a_frame_of_impossible_size_or_offset_is_a_framing_error() {
    for bytes in [
        &[0, 0, 0, 0, 2, 0, 0, 0][..],
        &[0, 0, 0, 7, 2, 0, 0, 0],
        &[0, 1, 0, 1, 2, 0, 0, 0],
        &[255, 255, 255, 255, 2, 0, 0, 0],
        &[0, 0, 0, 8, 1, 0, 0, 0],
        &[0, 0, 0, 8, 3, 0, 0, 0],
        &[0, 0, 0, 8, 2, 1, 0, 0],
    ] {
        check_begun(bytes, FRAMING, FRAMING_ENDED);
        check_fresh(&after_header(bytes), FRAMING, FRAMING_CLOSED);
    }
    // four bytes are enough to see it
    check_begun(&[0, 0, 0, 7], FRAMING, FRAMING_ENDED);
}

#[test]
fn amqp_2_3_1_an_extended_header_is_passed_over() {
    let plain = frame(0, open(), &[]);
    let mut extended = (plain.len() as u32 + 4).to_be_bytes().to_vec();
    extended.extend_from_slice(&[3, 0, 0, 0, 9, 9, 9, 9]);
    extended.extend_from_slice(&plain[8..]);
    check_fresh(&after_header(&extended), &[], &["opened peer 65536 10 0"]);
}

#[test]
fn amqp_2_4_1_a_channel_above_ours_is_a_framing_error() {
    check_begun(&frame(10, flow(), &[]), FRAMING, FRAMING_ENDED);
    check_begun(
        &frame(9, flow(), &[]),
        &["close amqp:not-allowed"],
        &["ended carrier", "closed by us amqp:not-allowed"],
    );
}

#[test]
fn amqp_2_4_1_open_comes_first_once_on_channel_0() {
    let not_allowed = &["close amqp:not-allowed"];
    check_fresh(&after_header(&frame(0, begin(Some(0)), &[])), not_allowed, &["closed by us amqp:not-allowed"]);
    check_fresh(&after_header(&frame(1, open(), &[])), not_allowed, &["closed by us amqp:not-allowed"]);
    check_begun(&frame(0, open(), &[]), not_allowed, &["ended carrier", "closed by us amqp:not-allowed"]);
}

#[test]
fn amqp_2_7_1_open_must_make_sense() {
    let check = |open: Open, condition: &str| {
        let (sent, told) = (format!("close {condition}"), format!("closed by us {condition}"));
        check_fresh(&after_header(&frame(0, open, &[])), &[&sent], &[&told]);
    };
    check(Open { max_frame_size: 511.into(), ..open() }, "amqp:invalid-field");
    check(Open { idle_time_out: Some(10), ..open() }, "amqp:not-allowed");
    // a container-id is mandatory; so is a list
    for body in
        [&b"\x00\x53\x10\x45"[..], b"\x00\x53\x10\xc0\x02\x01\x40", b"\x00\x53\x10\xa1\x00", b"\x00\x53\x10\xc0"]
    {
        let told = &["closed by us amqp:decode-error"];
        check_fresh(&after_header(&raw_frame(0, 0, body)), &["close amqp:decode-error"], told);
    }
    check_fresh(
        &after_header(&raw_frame(0, 0, b"\x45")),
        &["close amqp:decode-error"],
        &["closed by us amqp:decode-error"],
    );
}

#[test]
fn amqp_2_7_1_absent_fields_mean_their_defaults() {
    let bare = b"\x00\xa3\x0eamqp:open:list\xd0\x00\x00\x00\x06\x00\x00\x00\x01\xa1\x00";
    check_fresh(&after_header(&raw_frame(0, 0, bare)), &[], &["opened  4294967295 10 0"]);
}

#[test]
fn amqp_2_4_1_the_smaller_channel_max_bounds_our_sessions() {
    let mut room = Room::new(config());
    for _ in 0..3 {
        room.endpoint.begin().unwrap();
    }
    room.sent();
    room.feed(&after_header(&frame(0, Open { channel_max: 1.into(), ..open() }, &[])));
    assert_eq!(room.sent(), ["begin 0 for None", "begin 1 for None"]);
    assert_eq!(room.told(), ["opened peer 65536 2 0", "ended limit"]);
    assert_eq!(room.endpoint.begin(), Err(Refused::SessionsMax));
}

#[test]
fn amqp_2_7_9_the_peers_close_is_answered_and_reported() {
    let close = |condition: Option<&str>| frame(0, Close { error: condition.map(error) }, &[]);
    check_begun(&close(None), &["close"], &["ended carrier", "closed by peer"]);
    let forced = Some("amqp:connection:forced");
    check_begun(&close(forced), &["close"], &["ended carrier", "closed by peer amqp:connection:forced"]);
}

#[test]
fn amqp_2_4_3_our_close_waits_for_theirs_and_outlives_nothing_else() {
    let (mut room, _) = Room::begun(config());
    room.endpoint.close(None);
    assert_eq!(room.sent(), ["close"]);
    room.hear(CHANNEL, flow());
    room.hear(9, flow());
    room.hear(0, open());
    assert_eq!((room.sent(), room.told()), (vec![], vec![]), "discarded");
    assert_eq!(room.endpoint.begin(), Err(Refused::Gone));
    room.hear(0, Close { error: None });
    assert_eq!((room.sent(), room.told()), (vec![], owned(&["ended carrier", "closed local"])));
    room.hear(0, Close { error: None });
    assert_eq!((room.sent(), room.told()), (vec![], vec![]), "nothing follows");
    assert_eq!(room.endpoint.poll_timeout(), None);
}

#[test]
fn amqp_2_4_3_close_is_the_last_thing_written() {
    let (mut room, session) = Room::begun(config());
    let link = room.sender(session, 0);
    let receiver = room.receiver(session, 1, Attach::new("r", "node"));
    room.hear(CHANNEL, transfer(1, 0));
    room.endpoint.attach_sender(session, Attach::new("unanswered", "node"), 7).unwrap();
    room.sent();
    room.endpoint.close(None);
    room.endpoint.settle(receiver, DeliveryId(0), Settle::Accepted);
    room.endpoint.grant(receiver, 5);
    room.endpoint.detach(link);
    room.endpoint.end(session);
    room.endpoint.close(None);
    room.endpoint.handle_timeout(29_000);
    assert_eq!(room.sent(), ["close"]);
}

#[test]
fn amqp_2_4_3_close_before_their_open_still_reads_their_header() {
    let mut room = Room::new(config());
    room.endpoint.close(None);
    assert_eq!(room.sent(), ["header 0", "open us 65536", "close"]);
    room.feed(&[HEADER, &frame(0, open(), &[]), &frame(0, Close { error: None }, &[])].concat());
    assert_eq!(room.told(), ["closed local"]);
}

#[test]
fn an_unanswered_close_ends_with_the_wait() {
    let (mut room, _) = Room::begun(config());
    room.endpoint.close(None);
    room.sent();
    assert_eq!(room.endpoint.poll_timeout(), Some(30_000));
    room.endpoint.handle_timeout(29_999);
    assert_eq!(room.told(), Vec::<String>::new());
    room.endpoint.handle_timeout(30_000);
    assert_eq!(room.told(), ["ended carrier", "closed timeout"]);
}

#[test]
fn an_unanswered_header_or_open_ends_with_the_wait() {
    for input in [&b""[..], HEADER] {
        let mut room = Room::new(config());
        room.feed(input);
        assert_eq!(room.endpoint.poll_timeout(), Some(30_000));
        room.endpoint.handle_timeout(30_000);
        assert_eq!(room.told(), ["closed timeout"]);
    }
}

#[test]
fn amqp_2_4_5_we_are_heard_at_half_of_the_peers_idle_time_out() {
    let open = Open { idle_time_out: Some(10_000), ..open() };
    let (mut room, session) = Room::begun_with(config(), open, begin(Some(0)));
    assert_eq!(room.endpoint.poll_timeout(), Some(5_000));
    room.endpoint.handle_timeout(4_999);
    assert_eq!(room.sent(), Vec::<String>::new());
    room.endpoint.handle_timeout(5_000);
    assert_eq!(room.sent(), ["heartbeat"]);
    assert_eq!(room.endpoint.poll_timeout(), Some(10_000));
    // any frame counts
    room.now = 8_000;
    room.feed(&raw_frame(0, 7, &[]));
    room.endpoint.end(session);
    assert_eq!(room.sent(), ["end 0"]);
    assert_eq!(room.endpoint.poll_timeout(), Some(13_000));
}

#[test]
fn amqp_2_4_5_silence_beyond_our_limit_closes_and_any_frame_breaks_it() {
    let limit = Config { idle_timeout_ms: 20_000, answer_timeout_ms: 1_000_000, ..config() };
    let (mut room, _) = Room::begun(limit.clone());
    room.now = 15_000;
    room.feed(&raw_frame(0, 7, &[])); // heartbeat, on any valid channel
    assert_eq!((room.sent(), room.told()), (vec![], vec![]));
    room.endpoint.handle_timeout(34_999);
    assert_eq!(room.told(), Vec::<String>::new());
    room.endpoint.handle_timeout(35_000);
    assert_eq!(room.sent(), ["close amqp:resource-limit-exceeded"]);
    assert_eq!(room.told(), ["ended carrier", "closed timeout"]);
    // half of the limit is what we advertise
    let output = Room::new(limit).endpoint.output().clone();
    let (performative, _) = crate::peer::read(&output[16..]);
    let fe2o3_amqp_types::performatives::Performative::Open(open) = performative else { panic!() };
    assert_eq!(open.idle_time_out, Some(10_000));
}

#[test]
fn amqp_2_4_1_open_stays_within_512_bytes_by_leaving_out_properties() {
    let properties = vec![("product".to_owned(), "x".repeat(400)), ("version".to_owned(), "y".repeat(100))];
    let mut room = Room::new(Config { properties, ..config() });
    let output = room.endpoint.output().len();
    assert!(output < 8 + 100, "{output}");
}

#[test]
fn an_eof_without_close_is_a_loss() {
    let (mut room, _) = Room::begun(config());
    room.endpoint.handle_eof(0);
    assert_eq!(room.told(), ["ended carrier", "closed eof"]);
    let (mut room, _) = Room::begun(config());
    room.endpoint.close(None);
    room.endpoint.handle_eof(0);
    assert_eq!(room.told(), ["ended carrier", "closed local"]);
}

#[test]
fn a_peer_that_makes_us_answer_and_never_reads_is_given_up() {
    let (mut room, _) = Room::begun(Config { output_bytes_max: 10_000, ..config() });
    let begin = frame(4, begin(None), &[]);
    let end = frame(4, fe2o3_amqp_types::performatives::End { error: None }, &[]);
    for _ in 0..1000 {
        room.feed(&[&begin[..], &end].concat());
    }
    assert_eq!(room.told(), ["ended carrier", "closed by us amqp:resource-limit-exceeded"]);
    assert!(room.endpoint.output().len() < 11_000);
}

fn sasl(sasl: Sasl) -> Room {
    let mut room = Room::new(Config { sasl, ..config() });
    assert_eq!(room.sent(), ["header 3"]);
    room.feed(SASL_HEADER);
    room
}

fn plain() -> Sasl {
    Sasl::Plain { user: "u".into(), password: "p".into() }
}

fn mechanisms(body: &[u8]) -> Vec<u8> {
    raw_frame(1, 0, &[b"\x00\x53\x40", body].concat())
}

fn outcome(code: u8) -> Vec<u8> {
    raw_frame(1, 0, &[0, 0x53, 0x44, 0xc0, 3, 1, 0x50, code])
}

#[test]
fn amqp_5_3_3_init_names_an_offered_mechanism_only() {
    let offer = b"\xc0\x22\x01\xe0\x1f\x04\xa3\x05PLAIN\x09ANONYMOUS\x08EXTERNAL\x03XYZ";
    for (wish, expected) in [
        (plain(), r#"init PLAIN Some("\0u\0p") host"#),
        (Sasl::Anonymous, "init ANONYMOUS None host"),
        (Sasl::External, r#"init EXTERNAL Some("") host"#),
    ] {
        let mut room = sasl(wish);
        room.feed(&mechanisms(offer));
        assert_eq!((room.sent(), room.told()), (owned(&[expected]), vec![]));
    }
    // one bare symbol is as good as an array of one (1.4)
    let mut room = sasl(plain());
    room.feed(&mechanisms(b"\xc0\x08\x01\xa3\x05PLAIN"));
    assert_eq!(room.sent().len(), 1);
    let mut room = sasl(Sasl::External);
    room.feed(&mechanisms(b"\xc0\x08\x01\xa3\x05PLAIN"));
    assert_eq!((room.sent(), room.told()), (vec![], owned(&["closed sasl(none)"])));
}

#[test]
fn a_password_is_written_once_and_never_printed() {
    let secret = || Sasl::Plain { user: "u".into(), password: "zq".into() };
    let mut room = sasl(secret());
    room.feed(&mechanisms(b"\xc0\x08\x01\xa3\x05PLAIN"));
    let printed = format!("{:?} {:?} {:?}", room.endpoint, room.endpoint.config(), secret());
    assert!(!printed.contains("zq") && !printed.contains("122, 113"), "{printed}");
    assert!(room.endpoint.output().windows(2).any(|bytes| bytes == b"zq"));
}

#[test]
fn amqp_5_3_3_6_after_outcome_ok_header_and_open_follow_even_in_the_same_read() {
    let mut room = sasl(plain());
    let ok = [mechanisms(b"\xc0\x08\x01\xa3\x05PLAIN"), outcome(0), HEADER.to_vec(), frame(0, open(), &[])].concat();
    room.feed(&ok);
    assert_eq!(room.sent(), ["init PLAIN Some(\"\\0u\\0p\") host", "header 0", "open us 65536"]);
    assert_eq!(room.told(), ["opened peer 65536 10 0"]);
    for code in 1..5 {
        let mut room = sasl(plain());
        room.feed(&[mechanisms(b"\xc0\x08\x01\xa3\x05PLAIN"), outcome(code)].concat());
        assert_eq!(room.told(), [format!("closed sasl(some({code}))")]);
    }
}

#[test]
fn amqp_5_3_1_a_wrong_sasl_frame_ends_it_without_a_word() {
    let decode = "closed by us amqp:decode-error";
    let framing = "closed by us amqp:connection:framing-error";
    for (input, told) in [
        (raw_frame(1, 0, &[]), decode),
        (outcome(0), decode),
        (raw_frame(0, 0, &mechanisms(b"\x45")[8..]), framing),
        (mechanisms(&[0; 600]), framing),
        (mechanisms(b"\xc0\x08\x01\xa3\x05PLAIN\x00"), decode),
        (mechanisms(b"\xf0\xff\xff\xff\xff"), decode),
    ] {
        let mut room = sasl(plain());
        room.feed(&input);
        assert_eq!((room.sent(), room.told()), (vec![], owned(&[told])), "{input:02x?}");
    }
    let mut room = sasl(plain());
    room.feed(&mechanisms(b"\xc0\x08\x01\xa3\x05PLAIN"));
    room.sent();
    let challenge = raw_frame(1, 0, b"\x00\x53\x42\xc0\x03\x01\xa0\x00");
    for _ in 0..4 {
        room.feed(&challenge);
        assert_eq!(room.sent(), ["response"]);
    }
    room.feed(&challenge);
    assert_eq!((room.sent(), room.told()), (vec![], owned(&[decode])));
}
