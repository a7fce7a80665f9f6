//! SUBSCRIBE and UNSUBSCRIBE.

use gateway_core::{
    message::{QoS, Refusal},
    session::effect::CloseCause,
};

use crate::world::{COMMANDS, Seen, WINDOW, check, connected, down, subscribed};

const QOS0: QoS = QoS::AtMostOnce;
const QOS1: QoS = QoS::AtLeastOnce;
const QOS2: QoS = QoS::ExactlyOnce;

fn open() -> Seen {
    Seen::OpenCommands(u32::from(WINDOW))
}

fn suback(packet_id: u16, codes: &[u8]) -> Seen {
    Seen::Suback(packet_id, codes.to_vec())
}

#[test]
fn mqtt_3_8_4_1_and_2_suback_is_written_only_after_the_receiver_is_attached() {
    check(connected().subscribe(9, &[(COMMANDS, QOS1)]), [open()]);
    check(connected().subscribe(9, &[(COMMANDS, QOS1)]).then().opened(Ok(())), [suback(9, &[1])]);
}

#[test]
fn mqtt_3_9_3_2_qos_2_is_granted_as_1() {
    for (requested, granted) in [(QOS0, 0), (QOS1, 1), (QOS2, 1)] {
        let world = connected().subscribe(9, &[(COMMANDS, requested)]).then().opened(Ok(()));
        check(world, [suback(9, &[granted])]);
    }
}

#[test]
fn mqtt_3_8_4_4_and_5_and_3_9_3_1_several_filters_are_as_one_after_the_other_and_get_one_suback() {
    let both = connected().subscribe(9, &[(COMMANDS, QOS1), (COMMANDS, QOS0)]).opened(Ok(()));
    check(both.command(1, QOS1), [open(), suback(9, &[1, 0]), down(None), settled(1)]);
}

fn settled(tag: u64) -> Seen {
    Seen::Settle(tag, gateway_core::message::Settlement::Accepted)
}

#[test]
fn mqtt_3_3_5_1_overlapping_filters_bring_one_copy() {
    // the one filter that is served overlaps only with itself
    let world = connected().subscribe(9, &[(COMMANDS, QOS0), (COMMANDS, QOS1)]).opened(Ok(())).then();
    check(world.command(1, QOS1), [down(Some(1))]);
}

#[test]
fn mqtt_4_1_0_1_and_2_a_subscription_lasts_as_long_as_its_connection() {
    let mut world = subscribed(QOS1);
    for _ in 0..48 {
        world = world.wait_ms(60_000).packet(&gateway_core::codec::Packet::PingReq).then();
    }
    check(world.command(1, QOS1), [down(Some(1))]);
}

#[test]
fn mqtt_3_8_4_3_the_same_filter_again_replaces_it_without_a_gap() {
    let world = subscribed(QOS0).subscribe(2, &[(COMMANDS, QOS1)]);
    check(world.command(1, QOS1), [suback(2, &[1]), down(Some(1))]);
}

#[test]
fn subscribes_that_come_while_the_receiver_is_attached_are_answered_together() {
    let world = connected().subscribe(1, &[(COMMANDS, QOS0)]).subscribe(2, &[(COMMANDS, QOS1)]);
    check(world.opened(Ok(())), [open(), suback(1, &[0]), suback(2, &[1])]);
}

#[test]
fn four_waiting_subacks_stop_the_reading() {
    let mut world = connected();
    for number in 1..=4 {
        assert!(world.session.wants_input());
        world = world.subscribe(number, &[(COMMANDS, QOS1)]);
    }
    assert!(!world.session.wants_input());
    assert!(world.opened(Ok(())).session.wants_input());
}

#[test]
fn mqtt_3_8_3_2_and_4_7_2_1_a_filter_that_is_not_served_closes_without_suback() {
    for filter in [
        "#",
        "+/messages/devicebound/#",
        "devices/e/messages/devicebound/#",
        "devices/d/messages/events/#",
        "$iothub/#",
        "+/twin/res/#",
        "+/methods/POST/#",
    ] {
        let world = connected().subscribe(9, &[(COMMANDS, QOS1), (filter, QOS0)]);
        assert_eq!(world.ended().why, "a filter that is not the device's");
        check(world, [Seen::Close(CloseCause::Topic)]);
    }
}

#[test]
fn twin_and_method_filters_close_and_say_that_they_are_not_served_yet() {
    for filter in ["$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"] {
        let world = connected().subscribe(9, &[(filter, QOS0)]);
        assert_eq!(world.ended().why, "twin, method and input filters are not served yet");
        check(world, [Seen::Close(CloseCause::Topic)]);
    }
}

#[test]
fn more_than_five_filters_close() {
    check(connected().subscribe(9, &[(COMMANDS, QOS1); 5]), [open()]);
    check(connected().subscribe(9, &[(COMMANDS, QOS1); 6]), [Seen::Close(CloseCause::Topic)]);
}

#[test]
fn a_receiver_that_the_hub_refuses_closes_without_suback() {
    let world = connected().subscribe(9, &[(COMMANDS, QOS1)]).then().opened(Err(Refusal::Unauthorized));
    check(world, [Seen::CloseCommands, Seen::Close(CloseCause::HubRefused)]);
}

#[test]
fn mqtt_3_10_4_4_and_5_unsuback_is_written_even_if_nothing_matched() {
    check(connected().unsubscribe(5, &["never/subscribed"]), [Seen::Unsuback(5)]);
    check(connected().unsubscribe(5, &[COMMANDS]), [Seen::Unsuback(5)]);
    check(subscribed(QOS1).unsubscribe(5, &["$iothub/twin/res/#"]), [Seen::Unsuback(5)]);
}

#[test]
fn mqtt_3_10_4_2_after_unsubscribe_the_receiver_is_detached_and_nothing_new_is_sent() {
    let world = subscribed(QOS1).unsubscribe(5, &[COMMANDS]);
    let released = Seen::Settle(1, gateway_core::message::Settlement::Released);
    check(world.command(1, QOS1), [Seen::CloseCommands, Seen::Unsuback(5), released]);
}

#[test]
fn mqtt_3_10_4_1_a_filter_is_compared_to_the_letter() {
    check(subscribed(QOS1).unsubscribe(5, &["devices/%64/messages/devicebound/#"]), [Seen::Unsuback(5)]);
}

#[test]
fn mqtt_3_10_4_3_commands_under_way_are_finished_after_unsubscribe() {
    let world = subscribed(QOS1).command(1, QOS1).unsubscribe(5, &[COMMANDS]).then();
    check(world.packet(&gateway_core::codec::Packet::PubAck(crate::world::id(1))), [settled(1)]);
}

#[test]
fn mqtt_3_10_4_6_several_filters_get_one_unsuback() {
    let world = subscribed(QOS1).unsubscribe(5, &["a", COMMANDS, "b", COMMANDS]);
    check(world, [Seen::CloseCommands, Seen::Unsuback(5)]);
}

#[test]
fn unsubscribe_before_the_receiver_is_attached_detaches_it_once_it_is() {
    let world = connected().subscribe(1, &[(COMMANDS, QOS1)]).unsubscribe(2, &[COMMANDS]);
    check(world.opened(Ok(())), [open(), Seen::Unsuback(2), suback(1, &[1]), Seen::CloseCommands]);
}

#[test]
fn subscribe_after_such_an_unsubscribe_keeps_the_receiver() {
    let world =
        connected().subscribe(1, &[(COMMANDS, QOS0)]).unsubscribe(2, &[COMMANDS]).subscribe(3, &[(COMMANDS, QOS1)]);
    check(world.opened(Ok(())), [open(), Seen::Unsuback(2), suback(1, &[0]), suback(3, &[1])]);
}

#[test]
fn subscribe_after_unsubscribe_attaches_anew() {
    let world = subscribed(QOS1).unsubscribe(2, &[COMMANDS]).then().subscribe(3, &[(COMMANDS, QOS1)]);
    check(world.opened(Ok(())), [open(), suback(3, &[1])]);
}
