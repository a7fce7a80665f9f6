//! PUBLISH, its acknowledgements, and packets without a body (3.3 to 3.7, 3.12 to 3.14).

use gateway_core::{
    codec::{
        EncodeError,
        Malformed::{Flags, PacketLength, PublishDup, PublishQos, TopicEmpty, TopicWildcard, Truncated},
        Packet,
        packet::Publish,
    },
    message::QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce},
};

use crate::wire::{check, check_any, check_unwritable, id, packet, publish_of, string};

#[test]
fn publish_of_every_flag_is_read() {
    let table = [
        (0x30, Publish { qos: AtMostOnce, ..publish_of("t") }),
        (0x31, Publish { retain: true, ..publish_of("t") }),
        (0x32, Publish { qos: AtLeastOnce, ..publish_of("t") }),
        (0x33, Publish { qos: AtLeastOnce, retain: true, ..publish_of("t") }),
        (0x34, Publish { qos: ExactlyOnce, ..publish_of("t") }),
        (0x3a, Publish { qos: AtLeastOnce, dup: true, ..publish_of("t") }),
        (0x3d, Publish { qos: ExactlyOnce, dup: true, retain: true, ..publish_of("t") }),
    ];
    for (first, expected) in table {
        let packet_id = (expected.qos != AtMostOnce).then(|| id(0x1234));
        let id_bytes: &[u8] = if packet_id.is_some() { &[0x12, 0x34] } else { &[] };
        let bytes = packet(first, &[&string("t")[..], id_bytes, b"\0\xffpayload"].concat());
        check(&bytes, Packet::Publish(Publish { packet_id, payload: b"\0\xffpayload", ..expected }));
    }
}

#[test]
fn mqtt_3_3_1_2_dup_with_qos_0_is_neither_read_nor_written() {
    check(&[0x38], PublishDup);
    check(&[0x39, 3, 0, 1, b't'], PublishDup);
    let packet = Packet::Publish(Publish { dup: true, ..publish_of("t") });
    check_unwritable(&packet, EncodeError::Malformed(PublishDup));
}

#[test]
fn mqtt_3_3_1_4_qos_3_is_refused_at_its_first_byte() {
    for flags in [0b0110, 0b0111, 0b1110, 0b1111] {
        check(&[0x30 | flags], PublishQos);
    }
}

#[test]
fn mqtt_3_3_2_1_publish_without_a_whole_topic_is_refused() {
    check(&[0x30, 0], Truncated);
    check(&[0x30, 1, 0], Truncated);
    check(&[0x30, 3, 0, 2, b't'], Truncated);
    check(&[0x32, 3, 0, 1, b't'], Truncated);
    check(&[0x32, 4, 0, 1, b't', 0], Truncated);
}

#[test]
fn mqtt_3_3_2_2_topic_with_a_wildcard_is_refused() {
    for topic in ["#", "+", "a/+", "a/#", "a+b", "a#", "devices/d/messages/events/x+y=1"] {
        check(&packet(0x30, &string(topic)), TopicWildcard);
    }
}

#[test]
fn mqtt_4_7_3_1_empty_topic_is_neither_read_nor_written() {
    check(&packet(0x30, &string("")), TopicEmpty);
    check_unwritable(&Packet::Publish(publish_of("")), EncodeError::Malformed(TopicEmpty));
}

#[test]
fn publish_of_an_empty_payload_is_legal() {
    check(&packet(0x31, &string("t")), Packet::Publish(Publish { retain: true, ..publish_of("t") }));
}

#[test]
fn mqtt_3_6_1_1_pubrel_has_flags_0010() {
    check(&[0x62, 2, 0, 9], Packet::PubRel(id(9)));
    check(&[0x60, 2, 0, 9], Flags);
}

#[test]
fn acknowledgements_are_read() {
    check(&[0x40, 2, 0xff, 0xff], Packet::PubAck(id(0xffff)));
    check(&[0x50, 2, 0, 1], Packet::PubRec(id(1)));
    check(&[0x70, 2, 1, 0], Packet::PubComp(id(256)));
    check_any(&[0xb0, 2, 0, 7], Packet::UnsubAck(id(7)));
}

#[test]
fn mqtt_3_12_4_1_ping_packets_are_read() {
    check(&[0xc0, 0], Packet::PingReq);
    check_any(&[0xd0, 0], Packet::PingResp);
}

#[test]
fn mqtt_3_14_1_1_disconnect_has_no_flags_and_no_body() {
    check(&[0xe0, 0], Packet::Disconnect);
    check(&[0xe1], Flags);
    check(&[0xe0, 1, 0], PacketLength);
}
