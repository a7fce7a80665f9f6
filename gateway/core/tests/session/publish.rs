//! PUBLISH and its acknowledgement.

use gateway_core::{
    codec::{DecodeError, Malformed, Packet, packet::Publish},
    message::{Outcome, QoS, Refusal},
    session::effect::CloseCause,
};

use crate::world::{COMMANDS, Seen, WINDOW, at_least_once, check, connected, id, send};

#[test]
fn mqtt_3_3_4_1_puback_is_written_only_after_the_hub_accepted() {
    check(connected().publish(7, "t"), [send(0, "t")]);
    check(connected().publish(7, "t").then().hub_accepts(0), [Seen::Puback(7)]);
}

#[test]
fn mqtt_3_3_4_1_qos_0_gets_no_answer() {
    check(connected().publish_qos_0("t").hub_accepts(0), [send(0, "t")]);
}

#[test]
fn mqtt_4_6_0_5_and_6_pubacks_leave_in_the_order_of_the_publishes() {
    let three = || connected().publish(5, "a").publish(9, "b").publish(2, "c").then();
    check(three().hub_accepts(2).hub_accepts(1), []);
    check(three().hub_accepts(2).hub_accepts(1).hub_accepts(0), [Seen::Puback(5), Seen::Puback(9), Seen::Puback(2)]);
    check(three().hub_accepts(1).hub_accepts(0), [Seen::Puback(5), Seen::Puback(9)]);
}

#[test]
fn an_outcome_that_comes_twice_acknowledges_once() {
    check(connected().publish(7, "t").then().hub_accepts(0).hub_accepts(0), [Seen::Puback(7)]);
    check(connected().publish(7, "a").hub_accepts(0).publish(7, "b").then().hub_accepts(0), []);
}

#[test]
fn mqtt_4_8_0_2_what_the_hub_does_not_take_closes_without_puback() {
    let check = |outcome: Outcome, cause| {
        check(connected().publish(7, "t").then().outcome(0, &outcome), [Seen::Close(cause)]);
        check(connected().publish_qos_0("t").then().outcome(0, &outcome), [Seen::Close(cause)]);
    };
    check(Outcome::Refused(Refusal::Invalid), CloseCause::HubRefused);
    check(Outcome::Refused(Refusal::TooLarge), CloseCause::HubRefused);
    check(Outcome::Retry(Refusal::Throttled), CloseCause::HubRefused);
    check(Outcome::Retry(Refusal::Released), CloseCause::HubRefused);
    check(Outcome::Unreachable, CloseCause::HubUnreachable);
}

#[test]
fn an_accepted_message_behind_a_refused_one_is_not_acknowledged() {
    let two = connected().publish(1, "a").publish(2, "b").then();
    let refused = Outcome::Refused(Refusal::Invalid);
    check(two.hub_accepts(1).outcome(0, &refused), [Seen::Close(CloseCause::HubRefused)]);
}

#[test]
fn a_refusal_of_nothing_in_flight_changes_nothing() {
    check(connected().publish(7, "t").then().outcome(3, &Outcome::Refused(Refusal::Invalid)), []);
    check(connected().outcome(0, &Outcome::Unreachable), []);
}

#[test]
fn at_the_windows_end_nothing_is_read_and_an_outcome_opens_it_again() {
    let mut world = connected();
    for number in 1..=WINDOW {
        assert!(world.session.wants_input());
        world = world.publish(number, "t");
    }
    assert!(!world.session.wants_input());
    assert!(world.hub_accepts(0).session.wants_input());
}

#[test]
fn qos_0_counts_in_the_window_and_frees_its_place_with_its_outcome() {
    let full = connected().publish_qos_0("a").publish_qos_0("b").publish_qos_0("c");
    assert_eq!(full.session.in_flight().telemetry, usize::from(WINDOW));
    assert!(!full.session.wants_input());
    assert!(full.hub_accepts(0).session.wants_input());
}

#[test]
fn a_pending_qos_0_message_holds_no_puback_up() {
    check(connected().publish_qos_0("a").publish(7, "b").then().hub_accepts(1), [Seen::Puback(7)]);
}

#[test]
fn mqtt_4_3_2_2_after_its_puback_an_id_is_a_new_messages_with_dup_or_without() {
    let again =
        |dup| connected().publish(7, "a").hub_accepts(0).then().publish_as(&Publish { dup, ..at_least_once(7, "b") });
    check(again(false), [send(1, "b")]);
    check(again(true), [send(1, "b")]);
}

#[test]
fn an_unacknowledged_publish_sent_again_with_dup_goes_upstream_once_and_gets_one_puback() {
    let again = connected().publish(7, "t").publish_as(&Publish { dup: true, ..at_least_once(7, "t") });
    check(again.hub_accepts(0).hub_accepts(1), [send(0, "t"), Seen::Puback(7)]);
}

#[test]
fn mqtt_2_3_1_2_an_id_in_use_without_dup_closes() {
    check(connected().publish(7, "a").then().publish(7, "b"), [Seen::Close(CloseCause::ProtocolViolation)]);
}

#[test]
fn mqtt_4_3_3_2_qos_2_closes_without_sending() {
    let publish = Publish { qos: QoS::ExactlyOnce, ..at_least_once(7, "t") };
    check(connected().publish_as(&publish), [Seen::Close(CloseCause::QoS2)]);
}

#[test]
fn mqtt_3_6_1_1_any_packet_of_qos_2_is_a_violation() {
    for packet in [Packet::PubRec(id(1)), Packet::PubRel(id(1)), Packet::PubComp(id(1))] {
        check(connected().packet(&packet), [Seen::Close(CloseCause::ProtocolViolation)]);
    }
}

#[test]
fn mqtt_3_3_5_2_and_4_5_0_1_a_topic_that_is_not_the_devices_closes_without_puback() {
    for topic in ["devices/e/messages/events/", "$iothub/twin/GET/?$rid=1", "a", "devices/d/messages/devicebound/"] {
        let publish = Publish { topic, ..at_least_once(7, "t") };
        check(connected().publish_as(&publish), [Seen::Close(CloseCause::Topic)]);
    }
}

#[test]
fn a_malformed_property_bag_closes_without_puback() {
    for bag in ["a=b=c", "&a=b", "=b", "a=%zz", "a/b"] {
        let topic = format!("devices/d/messages/events/{bag}");
        check(
            connected().publish_as(&Publish { topic: &topic, ..at_least_once(7, "t") }),
            [Seen::Close(CloseCause::Topic)],
        );
    }
}

#[test]
fn mqtt_3_3_1_12_without_retain_nothing_is_said_of_it() {
    // `send` has no properties
    check(connected().publish(7, "t"), [send(0, "t")]);
}

#[test]
fn mqtt_3_1_2_7_and_3_3_1_6_to_8_and_10_and_11_no_new_subscription_gets_a_retained_message() {
    let retained = |payload| Publish { retain: true, ..at_least_once(7, payload) };
    for payload in ["t", ""] {
        let world = connected().publish_as(&retained(payload)).hub_accepts(0);
        let properties = vec!["mqtt-retain=true".to_owned()];
        let sent = Seen::Send { slot: 0, payload: payload.to_owned(), properties };
        let world = world.subscribe(1, &[(COMMANDS, QoS::AtLeastOnce)]).opened(Ok(()));
        let opened = [Seen::OpenCommands(u32::from(WINDOW)), Seen::Suback(1, vec![1])];
        check(world, [[sent, Seen::Puback(7)], opened].concat());
    }
}

#[test]
fn mqtt_3_3_1_5_retain_is_a_property_and_nothing_is_stored() {
    let world = connected().publish_as(&Publish { retain: true, ..at_least_once(7, "t") });
    let properties = vec!["mqtt-retain=true".to_owned()];
    check(world, [Seen::Send { slot: 0, payload: "t".to_owned(), properties }]);
}

#[test]
fn a_message_over_the_limit_closes() {
    let mut world = connected();
    let mut settings = (*world.cx.settings).clone();
    settings.limits.message_bytes_max = 10;
    world.cx = crate::world::context(settings);
    let world = world.publish(1, "0123456789").then();
    check(world.publish(2, "0123456789a"), [Seen::Close(CloseCause::TooLarge)]);
}

#[test]
fn a_packet_over_the_limit_closes() {
    let error = DecodeError::TooLarge { packet_bytes: 300_000, limit: 262_144 };
    check(connected().malformed(&error), [Seen::Close(CloseCause::TooLarge)]);
}

#[test]
fn mqtt_4_8_0_1_a_malformed_packet_closes() {
    let error = DecodeError::Malformed(Malformed::Flags);
    check(connected().malformed(&error), [Seen::Close(CloseCause::ProtocolViolation)]);
}

#[test]
fn mqtt_3_12_4_1_pingreq_is_answered() {
    check(connected().packet(&Packet::PingReq), [Seen::Pingresp]);
}
