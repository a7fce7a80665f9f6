//! CONNECT and its answer.

use gateway_core::{
    auth::{Refused, RefusedReason},
    codec::{
        DecodeError, Malformed, Packet,
        packet::{Connect, ConnectCode, Will},
    },
    message::{QoS, Settlement},
    session::effect::CloseCause,
};

use crate::world::{
    COMMANDS, DIAL, Dial, EVENTS, Seen, WILL, World, accepted, check, connack, connected, connected_with_will, down,
    id, will,
};

fn refused(code: ConnectCode) -> [Seen; 2] {
    [connack(code), Seen::Close(CloseCause::Refused)]
}

fn violation() -> [Seen; 1] {
    [Seen::Close(CloseCause::ProtocolViolation)]
}

fn authenticate() -> Seen {
    Seen::Authenticate("d".to_owned())
}

#[test]
fn mqtt_3_2_0_1_and_3_1_4_4_connack_is_our_first_packet_and_comes_with_the_verdict() {
    check(accepted().connect(&DIAL), [authenticate()]);
    check(accepted().connect(&DIAL).then().allow(None), [connack(ConnectCode::Accepted)]);
}

#[test]
fn mqtt_3_1_0_1_a_first_packet_that_is_not_connect_closes_without_an_answer() {
    check(accepted().packet(&Packet::PingReq), violation());
    check(accepted().packet(&Packet::Disconnect), violation());
    check(accepted().packet(&Packet::PubAck(id(1))), violation());
    check(accepted().publish(1, "t"), violation());
    check(accepted().subscribe(1, &[(COMMANDS, QoS::AtMostOnce)]), violation());
    check(accepted().unsubscribe(1, &[COMMANDS]), violation());
}

#[test]
fn mqtt_3_1_0_2_a_second_connect_closes() {
    check(connected().connect(&DIAL), violation());
}

#[test]
fn mqtt_3_1_2_2_another_protocol_level_is_answered_with_1() {
    let world = accepted().malformed(&DecodeError::UnsupportedLevel(5));
    assert_eq!(world.ended().refused, Some(RefusedReason::ProtocolLevel));
    check(world, refused(ConnectCode::UnacceptableProtocolVersion));
    check(connected().malformed(&DecodeError::UnsupportedLevel(5)), violation());
}

#[test]
fn mqtt_3_1_4_1_a_malformed_connect_closes_without_connack() {
    check(accepted().malformed(&DecodeError::Malformed(Malformed::ProtocolName)), violation());
}

#[test]
fn mqtt_3_2_2_1_and_2_and_3_session_present_is_0_with_and_without_clean_session() {
    for clean_session in [false, true] {
        let world = accepted().connect(&Dial { clean_session, ..DIAL }).then().allow(None);
        // `World` insists on session present 0 in every CONNACK
        check(world, [connack(ConnectCode::Accepted)]);
    }
}

#[test]
fn mqtt_3_1_3_8_an_empty_client_id_without_clean_session_is_answered_with_2() {
    let world = accepted().connect(&Dial { client_id: "", clean_session: false, ..DIAL });
    check(world, refused(ConnectCode::IdentifierRejected));
}

#[test]
fn mqtt_3_1_3_6_an_empty_client_id_is_never_accepted() {
    let world = accepted().connect(&Dial { client_id: "", clean_session: true, ..DIAL });
    check(world, refused(ConnectCode::NotAuthorized));
}

#[test]
fn mqtt_3_1_3_9_and_7_0_0_2_a_login_that_can_not_be_read_is_refused_and_nobody_is_asked() {
    let check = |client_id, user_name, code, reason| {
        let world = accepted().connect(&Dial { client_id, user_name, ..DIAL });
        assert_eq!(world.ended().refused, Some(reason));
        check(world, refused(code));
    };
    check("d", None, ConnectCode::BadUserNameOrPassword, RefusedReason::UserName);
    check("d", Some("nonsense"), ConnectCode::BadUserNameOrPassword, RefusedReason::UserName);
    check("e", Some("hub.example.com/d/"), ConnectCode::NotAuthorized, RefusedReason::ClientId);
    check("d", Some("other.example.com/d/"), ConnectCode::NotAuthorized, RefusedReason::HubHost);
}

#[test]
fn mqtt_3_2_2_5_a_refused_verdict_is_written_and_the_connection_ends() {
    for (code, reason) in [
        (ConnectCode::NotAuthorized, RefusedReason::TokenSignature),
        (ConnectCode::ServerUnavailable, RefusedReason::HubUnavailable),
    ] {
        let world = accepted().connect(&DIAL).then().refuse(Refused { code, reason });
        assert_eq!(world.ended().refused, Some(reason));
        check(world, refused(code));
    }
}

#[test]
fn mqtt_3_1_4_5_nothing_is_read_until_the_verdict_is_there() {
    let asked = accepted().connect(&DIAL);
    assert!(!asked.session.wants_input());
    assert!(asked.allow(None).session.wants_input());
    let refused = Refused { code: ConnectCode::NotAuthorized, reason: RefusedReason::TokenExpired };
    assert!(!accepted().connect(&DIAL).refuse(refused).session.wants_input());
}

#[test]
fn a_verdict_that_nobody_awaits_changes_nothing() {
    check(accepted().allow(None), []);
    check(connected().allow(None), []);
    check(accepted().connect(&DIAL).close(CloseCause::Gone).then().allow(None), []);
}

#[test]
fn mqtt_3_2_2_6_a_will_that_is_not_the_devices_telemetry_closes_without_connack() {
    let with = |topic| accepted().connect(&Dial { will: Some(Will { topic, ..WILL }), ..DIAL });
    check(with("devices/e/messages/events/"), [Seen::Close(CloseCause::Topic)]);
    check(with("somewhere/else"), [Seen::Close(CloseCause::Topic)]);
    check(with("devices/d/messages/events/a=b=c"), [Seen::Close(CloseCause::Topic)]);
    check(with("devices/d/messages/events/k=v"), [authenticate()]);
}

#[test]
fn a_will_that_is_larger_than_a_message_may_be_closes() {
    let mut world = accepted();
    let mut settings = (*world.cx.settings).clone();
    settings.limits.message_bytes_max = 10;
    world.cx = crate::world::context(settings);
    check(world.connect(&Dial { will: Some(WILL), ..DIAL }), [Seen::Close(CloseCause::TooLarge)]);
}

#[test]
fn mqtt_3_1_2_8_a_connection_that_was_never_let_in_leaves_no_will() {
    let asked = || accepted().connect(&Dial { will: Some(WILL), ..DIAL }).then();
    check(asked().close(CloseCause::Gone), [Seen::Close(CloseCause::Gone)]);
    let no = Refused { code: ConnectCode::NotAuthorized, reason: RefusedReason::TokenSignature };
    check(asked().refuse(no), refused(ConnectCode::NotAuthorized));
}

#[test]
fn mqtt_3_1_2_14_a_will_of_qos_2_is_sent_like_any_other() {
    let dial = Dial { will: Some(Will { qos: QoS::ExactlyOnce, ..WILL }), ..DIAL };
    let world: World = accepted().connect(&dial).allow(None).then();
    check(world.close(CloseCause::Gone), [will(), Seen::Close(CloseCause::Gone)]);
}

#[test]
fn mqtt_3_1_3_5_ids_of_1_to_23_letters_and_digits_are_accepted() {
    for id in ["0", "Zz9", "0123456789ABCDEFGHIJKLM", "NOPQRSTUVWXYZabcdefghij", "klmnopqrstuvwxyz"] {
        let user_name = format!("hub.example.com/{id}/?api-version=2021-04-12");
        let connect = Connect {
            clean_session: true,
            keep_alive_s: 60,
            client_id: id,
            will: None,
            user_name: Some(&user_name),
            password: None,
        };
        let world = accepted().packet(&Packet::Connect(connect)).allow(None);
        check(world, [Seen::Authenticate(id.to_owned()), connack(ConnectCode::Accepted)]);
    }
}

#[test]
fn mqtt_3_1_3_2_the_client_id_is_who_the_session_belongs_to() {
    let identity = |dial: &Dial| accepted().connect(dial).allow(None).session.identity().map(ToString::to_string);
    assert_eq!(identity(&DIAL).as_deref(), Some("d"));
    let module = Dial { client_id: "d/m", user_name: Some("hub.example.com/d/m/?api-version=2021-04-12"), ..DIAL };
    assert_eq!(identity(&module).as_deref(), Some("d/m"));
}

#[test]
fn mqtt_3_1_4_3_and_3_1_2_6_a_new_connection_starts_without_the_subscriptions_of_the_last() {
    for clean_session in [true, false] {
        let again = || accepted().connect(&Dial { clean_session, ..DIAL }).allow(None).then();
        check(again().command(1, QoS::AtLeastOnce), [Seen::Settle(1, Settlement::Released)]);
        let subscribed = again().subscribe(1, &[(COMMANDS, QoS::AtLeastOnce)]).opened(Ok(())).then();
        check(subscribed.command(1, QoS::AtLeastOnce), [down(Some(1))]);
    }
}

#[test]
fn mqtt_3_1_2_16_a_will_that_is_not_retained_says_nothing_of_it() {
    // `will()` has no property but the type of the message
    let world = connected_with_will().close(CloseCause::Gone);
    check(world, [will(), Seen::Close(CloseCause::Gone)]);
}

#[test]
fn mqtt_3_1_2_17_a_retained_will_says_so_in_a_property() {
    let dial = Dial { will: Some(Will { retain: true, topic: EVENTS, ..WILL }), ..DIAL };
    let world = accepted().connect(&dial).allow(None).then().close(CloseCause::Gone);
    let Seen::Send { properties, .. } = &world.seen[0] else { panic!("no will: {:?}", world.seen) };
    assert_eq!(properties, &["mqtt-retain=true", "iothub-MessageType=Will"]);
}

#[test]
fn a_session_that_is_idle_holds_little() {
    // 20 000 of them belong to one gateway: identity and Will are behind pointers, windows hold nothing while they are empty
    let bytes = size_of::<gateway_core::session::Session>();
    assert!(bytes <= 256, "{bytes} bytes");
}
