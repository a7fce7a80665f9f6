//! What cannot be written, what must not be shown, several packets in one read.

use gateway_core::{
    codec::{
        Decoded, EncodeError,
        Malformed::PasswordWithoutUserName,
        Packet, decode, encoded_len,
        packet::{Connect, Publish, Will},
    },
    message::QoS::{AtLeastOnce, AtMostOnce},
};

use crate::wire::{LIMIT, bare_connect, check_unwritable, id, packet, publish_of, string};

#[test]
fn a_publish_whose_packet_id_and_qos_disagree_is_not_written() {
    let without = Publish { qos: AtLeastOnce, packet_id: None, ..publish_of("t") };
    let with = Publish { packet_id: Some(id(1)), ..publish_of("t") };
    check_unwritable(&Packet::Publish(without), EncodeError::PacketId);
    check_unwritable(&Packet::Publish(with), EncodeError::PacketId);
}

#[test]
fn a_connect_with_a_password_alone_or_a_long_field_is_not_written() {
    let alone = Connect { password: Some(b"p"), ..bare_connect() };
    check_unwritable(&Packet::Connect(alone), EncodeError::Malformed(PasswordWithoutUserName));
    let long = vec![b'x'; 65_536];
    let with_long = Connect { user_name: Some("u"), password: Some(&long), ..bare_connect() };
    check_unwritable(&Packet::Connect(with_long), EncodeError::FieldTooLong);
}

#[test]
fn a_packet_longer_than_a_remaining_length_can_say_is_not_written() {
    let payload = vec![0; 268_435_455 - 2];
    let packet = Packet::Publish(Publish { payload: &payload, ..publish_of("t") });
    assert_eq!(encoded_len(&packet), Err(EncodeError::PacketTooLong));
    check_unwritable(&packet, EncodeError::PacketTooLong);
}

#[test]
fn debug_shows_neither_password_nor_payload() {
    let will = Will { topic: "w", payload: b"willsecret", qos: AtMostOnce, retain: false };
    let connect =
        Connect { will: Some(will), user_name: Some("user"), password: Some(b"passsecret"), ..bare_connect() };
    let publish = Publish { payload: b"payloadsecret", ..publish_of("t") };
    let shown = format!("{:?} {:?}", Packet::Connect(connect), Packet::Publish(publish));
    assert!(!shown.contains("secret") && !shown.contains("115, 101"), "{shown}");
    assert!(shown.contains("user") && shown.contains("<13 bytes>"), "{shown}");
}

#[test]
fn several_packets_in_one_read_are_taken_one_by_one() {
    let stream = [&packet(0x30, &string("t"))[..], &[0xc0, 0], &[0x40, 2, 0, 1], &[0xe0]].concat();
    let mut rest = &stream[..];
    let mut found = Vec::new();
    while let Ok(Decoded::Packet { packet, consumed }) = decode(rest, LIMIT) {
        found.push(packet);
        rest = &rest[consumed..];
    }
    assert_eq!(found, [Packet::Publish(publish_of("t")), Packet::PingReq, Packet::PubAck(id(1))]);
    assert_eq!(decode(rest, LIMIT), Ok(Decoded::Incomplete { needed: 2 }));
    assert_eq!(decode(&[], LIMIT), Ok(Decoded::Incomplete { needed: 2 }));
}
