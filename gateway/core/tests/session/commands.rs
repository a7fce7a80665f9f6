//! Commands: cloud to device.

use bytes::Bytes;
use gateway_core::{
    codec::{Packet, packet::Publish},
    message::{Command, CommandTag, QoS, Settlement},
    session::effect::CloseCause,
};

use crate::world::{COMMANDS, Seen, WINDOW, World, at_least_once, check, connected, down, id, send, subscribed};

const QOS0: QoS = QoS::AtMostOnce;
const QOS1: QoS = QoS::AtLeastOnce;

fn accepted(tag: u64) -> Seen {
    Seen::Settle(tag, Settlement::Accepted)
}

fn released(tag: u64) -> Seen {
    Seen::Settle(tag, Settlement::Released)
}

fn puback(world: World, packet_id: u16) -> World {
    world.packet(&Packet::PubAck(id(packet_id)))
}

#[test]
fn a_command_is_settled_only_after_the_devices_puback() {
    check(subscribed(QOS1).command(8, QOS1), [down(Some(1))]);
    check(puback(subscribed(QOS1).command(8, QOS1).then(), 1), [accepted(8)]);
}

#[test]
fn mqtt_3_8_4_6_delivery_qos_is_the_lower_of_asked_and_granted() {
    for (asked, granted) in [(QOS0, QOS0), (QOS0, QOS1), (QOS1, QOS0)] {
        check(subscribed(granted).command(8, asked), [down(None), accepted(8)]);
    }
}

#[test]
fn mqtt_4_3_2_1_each_command_has_a_packet_id_of_its_own_until_its_puback() {
    let world = subscribed(QOS1).command(1, QOS1).command(2, QOS1);
    let world = puback(world, 1).command(3, QOS1);
    check(world, [down(Some(1)), down(Some(2)), accepted(1), down(Some(3))]);
}

#[test]
fn pubacks_of_commands_settle_in_whatever_order_they_come() {
    let world = subscribed(QOS1).command(1, QOS1).command(2, QOS1).then();
    check(puback(puback(world, 2), 1), [accepted(2), accepted(1)]);
}

#[test]
fn a_puback_of_an_unknown_id_is_ignored() {
    check(puback(connected(), 9), []);
    check(puback(puback(subscribed(QOS1).command(1, QOS1), 1).then(), 1), []);
}

#[test]
fn mqtt_3_3_1_1_and_4_3_1_1_what_the_hub_delivered_before_has_dup_at_qos_1_only() {
    let again = |granted| {
        subscribed(granted).command_as(&Command {
            tag: CommandTag(1),
            bag: "".into(),
            payload: Bytes::from_static(b"c"),
            qos: QOS1,
            redelivered: true,
        })
    };
    let publish = |qos, dup, id| {
        let topic = "devices/d/messages/devicebound/".to_owned();
        Seen::Publish { qos, dup, id, topic, payload: "c".to_owned() }
    };
    check(again(QOS1), [publish(1, true, Some(1))]);
    check(again(QOS0), [publish(0, false, None), accepted(1)]);
}

#[test]
fn mqtt_3_3_1_3_dup_of_the_devices_own_publish_changes_nothing_of_a_command() {
    let dup = Publish { dup: true, ..at_least_once(7, "t") };
    // `down` is without DUP, `send` without a property
    check(subscribed(QOS1).publish_as(&dup).command(1, QOS1), [send(0, "t"), down(Some(1))]);
}

#[test]
fn mqtt_3_3_1_9_and_4_3_3_1_a_command_is_neither_retained_nor_of_qos_2() {
    // `see` accepts no RETAIN
    check(subscribed(QoS::ExactlyOnce).command(1, QoS::ExactlyOnce), [down(Some(1))]);
}

#[test]
fn mqtt_3_3_2_3_the_topic_of_a_command_matches_the_filter() {
    let world = subscribed(QOS1).command(1, QOS1);
    let [Seen::Publish { topic, .. }] = &world.seen[..] else { panic!("no command: {:?}", world.seen) };
    assert!(topic.starts_with(COMMANDS.strip_suffix('#').unwrap()), "{topic}");
}

#[test]
fn a_command_beyond_the_credit_goes_back() {
    let mut world = subscribed(QOS1);
    for tag in 1..=u64::from(WINDOW) {
        world = world.command(tag, QOS1);
    }
    assert_eq!(world.session.in_flight().commands, usize::from(WINDOW));
    check(world.then().command(99, QOS1), [released(99)]);
}

#[test]
fn a_command_that_nobody_subscribed_goes_back() {
    check(connected().command(1, QOS1), [released(1)]);
    check(connected().subscribe(1, &[(crate::world::COMMANDS, QOS1)]).then().command(1, QOS1), [released(1)]);
}

#[test]
fn a_command_whose_topic_mqtt_can_not_carry_is_rejected() {
    let command = Command {
        tag: CommandTag(1),
        bag: "k".repeat(65_536).into(),
        payload: Bytes::new(),
        qos: QOS1,
        redelivered: false,
    };
    check(subscribed(QOS1).command_as(&command), [Seen::Settle(1, Settlement::Rejected)]);
}

#[test]
fn mqtt_4_4_0_1_and_3_1_2_5_the_end_of_the_session_releases_what_the_device_did_not_acknowledge() {
    let world = puback(subscribed(QOS1).command(1, QOS1).command(2, QOS1).command(3, QOS1), 2).then();
    check(
        world.close(CloseCause::Gone),
        [released(1), released(3), Seen::CloseCommands, Seen::Close(CloseCause::Gone)],
    );
}

#[test]
fn a_receiver_attached_anew_has_its_whole_credit_and_old_deliveries_settle_nothing() {
    let mut world = subscribed(QOS1);
    for tag in 1..=u64::from(WINDOW) {
        world = world.command(tag, QOS1);
    }
    let world = world.opened(Ok(())).then();
    check(world.command(11, QOS1), [down(Some(WINDOW + 1))]);
    let world = subscribed(QOS1).command(1, QOS1).opened(Ok(())).command(11, QOS1).then();
    check(puback(puback(world, 1), 2), [accepted(11)]);
}

#[test]
fn commands_do_not_fill_the_window_of_telemetry() {
    let mut world = subscribed(QOS1);
    for tag in 1..=u64::from(WINDOW) {
        world = world.command(tag, QOS1);
    }
    assert!(world.session.wants_input());
}
