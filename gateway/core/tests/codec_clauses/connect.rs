//! CONNECT and CONNACK (3.1, 3.2).

use gateway_core::{
    codec::{
        DecodeError, EncodeError,
        Malformed::{
            ConnAckCode, ConnAckFlags, ConnectFlag, PasswordWithoutUserName, ProtocolName, TopicEmpty, TopicWildcard,
            TrailingBytes, Truncated, Utf8, WillFlags, WillQos,
        },
        Packet, decode,
        packet::{Connect, ConnectCode, Will},
    },
    message::QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce},
};

use crate::wire::{
    LIMIT, bare_connect, binary, check, check_any, check_unwritable, connect, connect_with_keep_alive, packet, string,
};

#[test]
fn a_connect_with_every_field_is_read() {
    let will = [&string("w/t")[..], &string("bye")].concat();
    let fields = [&string("dev")[..], &will, &string("user"), &binary(b"\xff\0pass")].concat();
    let expected = Connect {
        clean_session: true,
        keep_alive_s: 0x0102,
        client_id: "dev",
        will: Some(Will { topic: "w/t", payload: b"bye", qos: AtLeastOnce, retain: true }),
        user_name: Some("user"),
        password: Some(b"\xff\0pass"),
    };
    check(&connect_with_keep_alive(0b1110_1110, 0x0102, &fields), Packet::Connect(expected));
}

#[test]
fn empty_fields_are_not_absent_fields() {
    let fields = [string(""), string("w"), string(""), string(""), string("")].concat();
    let expected = Connect {
        will: Some(Will { topic: "w", payload: b"", qos: AtMostOnce, retain: false }),
        user_name: Some(""),
        password: Some(b""),
        ..bare_connect()
    };
    check(&connect(0b1100_0100, &fields), Packet::Connect(expected));
    check(&connect(0, &string("")), Packet::Connect(bare_connect()));
}

#[test]
fn mqtt_3_1_2_1_another_protocol_name_is_refused() {
    for name in ["MQIsdp", "mqtt", "MQT", "MQTTT", "", "HTTP", "MQT\u{feff}"] {
        let body = [&string(name)[..], &[4, 2, 0, 0], &string("dev")].concat();
        check(&packet(0x10, &body), ProtocolName);
    }
}

#[test]
fn mqtt_3_1_2_2_another_level_is_told_apart_from_a_malformed_packet() {
    for level in (0..=u8::MAX).filter(|level| *level != 4) {
        // an MQTT 5 CONNECT has properties after keep-alive: nothing behind the level is judged
        let body = [&string("MQTT")[..], &[level, 0xff, 0, 0, 0xfe]].concat();
        assert_eq!(decode(&packet(0x10, &body), LIMIT), Err(DecodeError::UnsupportedLevel(level)));
    }
}

#[test]
fn mqtt_3_1_2_3_reserved_connect_flag_is_refused() {
    check(&connect(0b0000_0001, &string("dev")), ConnectFlag);
    check(&connect(0b0000_0011, &string("dev")), ConnectFlag);
}

#[test]
fn mqtt_3_1_2_4_and_6_clean_session_is_bit_1() {
    check(&connect(0, &string("d")), Packet::Connect(Connect { client_id: "d", ..bare_connect() }));
    let clean = Connect { client_id: "d", clean_session: true, ..bare_connect() };
    check(&connect(2, &string("d")), Packet::Connect(clean));
}

#[test]
fn mqtt_3_1_2_9_will_flag_without_topic_or_message_is_refused() {
    check(&connect(0b0000_0100, &string("dev")), Truncated);
    check(&connect(0b0000_0100, &[string("dev"), string("w")].concat()), Truncated);
}

#[test]
fn mqtt_3_1_2_11_will_fields_without_will_flag_are_refused() {
    check(&connect(0, &[string("dev"), string("w"), string("bye")].concat()), TrailingBytes);
}

#[test]
fn mqtt_3_1_2_13_will_qos_without_will_flag_is_refused() {
    for qos in 1..4 {
        check(&connect(qos << 3, &string("dev")), WillFlags);
    }
}

#[test]
fn mqtt_3_1_2_14_will_qos_3_is_refused() {
    check(&connect(0b0001_1100, &[string("dev"), string("w"), string("m")].concat()), WillQos);
}

#[test]
fn mqtt_3_1_2_14_will_qos_2_is_legal_here() {
    let will = Will { topic: "w", payload: b"m", qos: ExactlyOnce, retain: false };
    let expected = Connect { client_id: "dev", will: Some(will), ..bare_connect() };
    check(&connect(0b0001_0100, &[string("dev"), string("w"), string("m")].concat()), Packet::Connect(expected));
}

#[test]
fn mqtt_3_1_2_15_will_retain_without_will_flag_is_refused() {
    check(&connect(0b0010_0000, &string("dev")), WillFlags);
}

#[test]
fn mqtt_3_1_2_18_user_name_without_its_flag_is_refused() {
    check(&connect(0, &[string("dev"), string("user")].concat()), TrailingBytes);
}

#[test]
fn mqtt_3_1_2_19_user_name_flag_without_user_name_is_refused() {
    check(&connect(0b1000_0000, &string("dev")), Truncated);
}

#[test]
fn mqtt_3_1_2_20_password_without_its_flag_is_refused() {
    check(&connect(0b1000_0000, &[string("dev"), string("user"), string("pass")].concat()), TrailingBytes);
}

#[test]
fn mqtt_3_1_2_21_password_flag_without_password_is_refused() {
    check(&connect(0b1100_0000, &[string("dev"), string("user")].concat()), Truncated);
}

#[test]
fn mqtt_3_1_2_22_password_without_user_name_is_refused() {
    check(&connect(0b0100_0000, &[string("dev"), string("pass")].concat()), PasswordWithoutUserName);
}

#[test]
fn mqtt_3_1_3_1_fields_that_overrun_the_packet_are_refused() {
    check(&connect(0, &[0, 4, b'd', b'e', b'v']), Truncated);
    check(&connect(0b1000_0000, &[&string("dev")[..], &[0xff, 0xff]].concat()), Truncated);
    check(&connect(0b1100_0000, &[&string("dev")[..], &string("u"), &[0]].concat()), Truncated);
}

#[test]
fn mqtt_3_1_3_3_connect_without_client_id_is_refused() {
    check(&connect(2, &[]), Truncated);
    check(&connect(2, &[0]), Truncated);
}

#[test]
fn mqtt_3_1_3_4_and_11_ill_formed_client_id_and_user_name_are_refused() {
    check(&connect(0, &binary(b"\xff")), Utf8);
    check(&connect(0b1000_0000, &[string("dev"), binary(b"\xff")].concat()), Utf8);
}

#[test]
fn mqtt_3_1_3_8_empty_client_id_is_left_to_the_session() {
    check(&connect(0, &string("")), Packet::Connect(bare_connect()));
}

#[test]
fn mqtt_3_1_3_10_ill_formed_or_wild_will_topic_is_refused() {
    let with_will_topic = |topic| connect(0b0000_0100, &[string("dev"), binary(topic), string("m")].concat());
    check(&with_will_topic(b"\xff"), Utf8);
    check(&with_will_topic(b"a/#"), TopicWildcard);
    check(&with_will_topic(b"+"), TopicWildcard);
    check(&with_will_topic(b""), TopicEmpty);
}

#[test]
fn mqtt_3_1_4_1_connect_cut_anywhere_is_refused() {
    let fields = [string("dev"), string("w"), string("m"), string("u"), string("p")].concat();
    let whole = connect(0b1110_0110, &fields);
    for body_bytes in 0..whole.len() - 2 {
        let cut = packet(0x10, &whole[2..2 + body_bytes]);
        assert_eq!(decode(&cut, LIMIT), Err(Truncated.into()), "{body_bytes} of {}", whole.len() - 2);
    }
}

#[test]
fn connack_of_every_code_is_read() {
    let codes = [
        ConnectCode::Accepted,
        ConnectCode::UnacceptableProtocolVersion,
        ConnectCode::IdentifierRejected,
        ConnectCode::ServerUnavailable,
        ConnectCode::BadUserNameOrPassword,
        ConnectCode::NotAuthorized,
    ];
    for (byte, code) in codes.into_iter().enumerate() {
        check_any(&[0x20, 2, 0, byte as u8], Packet::ConnAck { session_present: false, code });
    }
    check_any(&[0x20, 2, 1, 0], Packet::ConnAck { session_present: true, code: ConnectCode::Accepted });
    check_any(&[0x20, 2, 0, 6], ConnAckCode);
    check_any(&[0x20, 2, 2, 0], ConnAckFlags);
}

#[test]
fn mqtt_3_2_2_4_session_present_with_a_refusal_is_neither_read_nor_written() {
    check_any(&[0x20, 2, 1, 5], ConnAckFlags);
    let packet = Packet::ConnAck { session_present: true, code: ConnectCode::NotAuthorized };
    check_unwritable(&packet, EncodeError::Malformed(ConnAckFlags));
}
