//! How sessions end: DISCONNECT, take-over, drain, and what each leaves behind.

use std::time::Duration;

use gateway_core::{
    auth::RefusedReason,
    codec::{
        DecodeError, Malformed, Packet,
        packet::{ConnectCode, Publish},
    },
    message::{Outcome, QoS, Refusal},
    session::effect::CloseCause,
};

use crate::world::{
    COMMANDS, DIAL, Seen, World, accepted, at_least_once, check, connack, connected, connected_with_will, send,
    subscribed, will,
};

const BOUND: Duration = Duration::from_secs(5);

fn closed(cause: CloseCause) -> Seen {
    Seen::Close(cause)
}

#[test]
fn mqtt_3_14_4_3_disconnect_drops_the_will() {
    check(connected_with_will().packet(&Packet::Disconnect), [closed(CloseCause::Disconnect)]);
}

#[test]
fn mqtt_3_1_2_8_the_will_is_sent_on_every_other_end() {
    type End = fn(World) -> World;
    let ends: [(End, CloseCause); 9] = [
        (|world| world.close(CloseCause::Gone), CloseCause::Gone),
        (|world| world.close(CloseCause::TakenOver), CloseCause::TakenOver),
        (|world| world.close(CloseCause::WriteTimeout), CloseCause::WriteTimeout),
        (|world| world.close(CloseCause::HubUnreachable), CloseCause::HubUnreachable),
        (|world| world.wait(Duration::from_secs(90)), CloseCause::KeepAlive),
        (|world| world.malformed(&DecodeError::Malformed(Malformed::Flags)), CloseCause::ProtocolViolation),
        (|world| world.subscribe(1, &[("#", QoS::AtMostOnce)]), CloseCause::Topic),
        (|world| world.publish_as(&Publish { qos: QoS::ExactlyOnce, ..at_least_once(1, "t") }), CloseCause::QoS2),
        (|world| world.drain(BOUND), CloseCause::Shutdown),
    ];
    for (end, cause) in ends {
        check(end(connected_with_will()), [will(), closed(cause)]);
    }
    let refused = Outcome::Refused(Refusal::Invalid);
    let world = connected_with_will().publish(1, "t").then().outcome(0, &refused);
    check(world, [will(), closed(CloseCause::HubRefused)]);
}

#[test]
fn mqtt_3_1_2_12_without_a_will_none_is_sent() {
    check(connected().close(CloseCause::Gone), [closed(CloseCause::Gone)]);
}

#[test]
fn mqtt_3_1_2_10_the_will_is_sent_once() {
    check(
        connected_with_will().close(CloseCause::TakenOver).close(CloseCause::Gone),
        [will(), closed(CloseCause::TakenOver)],
    );
}

#[test]
fn mqtt_3_1_4_2_a_newer_connection_ends_this_one() {
    check(connected().close(CloseCause::TakenOver), [closed(CloseCause::TakenOver)]);
    check(accepted().connect(&DIAL).then().close(CloseCause::TakenOver), [closed(CloseCause::TakenOver)]);
}

#[test]
fn no_effect_follows_close() {
    let ended =
        || subscribed(QoS::AtLeastOnce).publish(1, "t").command(1, QoS::AtLeastOnce).close(CloseCause::Gone).then();
    check(ended().hub_accepts(0), []);
    check(ended().outcome(0, &Outcome::Unreachable), []);
    check(ended().command(2, QoS::AtLeastOnce), []);
    check(ended().opened(Ok(())), []);
    check(ended().opened(Err(Refusal::NotFound)), []);
    check(ended().allow(None), []);
    check(ended().close(CloseCause::TakenOver), []);
    check(ended().drain(BOUND), []);
    check(ended().malformed(&DecodeError::UnsupportedLevel(3)), []);
    check(ended().wait(Duration::from_hours(24)), []);
    assert!(!ended().session.wants_input());
    assert_eq!(ended().session.poll_timeout(), None);
    assert_eq!(ended().ended().cause, CloseCause::Gone);
}

#[test]
fn a_drain_with_nothing_in_flight_closes_at_once() {
    check(connected().drain(BOUND), [closed(CloseCause::Shutdown)]);
    check(accepted().drain(BOUND), [closed(CloseCause::Shutdown)]);
}

#[test]
fn a_drain_stops_reading_and_lets_what_is_in_flight_be_acknowledged() {
    let draining = || connected().publish(1, "a").publish(2, "b").drain(BOUND).then();
    assert!(!draining().session.wants_input());
    check(draining().hub_accepts(0), [Seen::Puback(1)]);
    check(draining().hub_accepts(0).hub_accepts(1), [Seen::Puback(1), Seen::Puback(2), closed(CloseCause::Shutdown)]);
}

#[test]
fn a_drain_ends_at_its_bound() {
    let draining = || connected().publish(1, "a").drain(BOUND).then();
    check(draining().wait_ms(4_999), []);
    check(draining().wait(BOUND), [closed(CloseCause::Shutdown)]);
    check(draining().drain(Duration::from_secs(1)).wait(Duration::from_secs(1)), [closed(CloseCause::Shutdown)]);
}

#[test]
fn a_drain_that_meets_a_refusal_ends_for_it() {
    let world = connected().publish(1, "a").drain(BOUND).then();
    check(world.outcome(0, &Outcome::Unreachable), [closed(CloseCause::HubUnreachable)]);
}

#[test]
fn a_drain_answers_a_waiting_connect_with_3() {
    let world = accepted().connect(&DIAL).then().drain(BOUND);
    assert_eq!(world.ended().refused, Some(RefusedReason::Draining));
    check(world, [connack(ConnectCode::ServerUnavailable), closed(CloseCause::Refused)]);
}

#[test]
fn while_draining_a_subscribe_is_still_answered() {
    let world = connected().subscribe(2, &[(COMMANDS, QoS::AtLeastOnce)]).publish(1, "a").drain(BOUND).then();
    check(world.opened(Ok(())), [Seen::Suback(2, vec![1])]);
}

#[test]
fn while_draining_commands_go_back() {
    let world = subscribed(QoS::AtLeastOnce).publish(1, "a").drain(BOUND).then();
    check(world.command(4, QoS::AtLeastOnce), [Seen::Settle(4, gateway_core::message::Settlement::Released)]);
}

#[test]
fn the_end_leaves_what_is_in_flight_to_the_hub_link() {
    let world = connected_with_will().publish(1, "a").publish_qos_0("b").close(CloseCause::Gone);
    check(world, [send(0, "a"), send(1, "b"), will(), closed(CloseCause::Gone)]);
    let world = connected().publish_qos_0("b").packet(&Packet::Disconnect);
    check(world, [send(0, "b"), closed(CloseCause::Disconnect)]);
}

#[test]
fn a_subscription_that_is_not_attached_yet_is_given_up() {
    let world = connected().subscribe(1, &[(COMMANDS, QoS::AtLeastOnce)]).then().close(CloseCause::Gone);
    check(world, [Seen::CloseCommands, closed(CloseCause::Gone)]);
}
