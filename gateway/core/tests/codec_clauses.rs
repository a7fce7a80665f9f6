//! Every rule of MQTT 3.1.1 that the bytes of one packet can break, by the clause's id: bytes → packet or error.

use std::num::NonZeroU16;

use gateway_core::{
    codec::{
        DecodeError, Decoded, EncodeError,
        Malformed::{self, *},
        Packet, decode, decode_any, encode, encoded_len,
        packet::{Connect, ConnectCode, Publish, Subscribe, Unsubscribe, Will},
    },
    message::{
        PacketId,
        QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce},
    },
};

const LIMIT: usize = 512;

// ── 1.5.3 strings ────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn mqtt_1_5_3_1_ill_formed_utf8_is_refused_in_every_string() {
    let ill_formed: [&[u8]; 8] = [
        b"\xff",             // no first byte of anything
        b"a\xc3",            // cut short
        b"\xc0\xaf",         // overlong '/'
        b"\xe0\x80\xaf",     // overlong in three bytes
        b"\xed\xa0\x80",     // surrogate D800
        b"\xed\xbf\xbf",     // surrogate DFFF
        b"\xf4\x90\x80\x80", // above U+10FFFF
        b"\x80",             // continuation alone
    ];
    for string in ill_formed {
        check_in_every_string(string, Utf8);
    }
}

#[test]
fn mqtt_1_5_3_1_ill_formed_utf8_is_found_behind_a_long_ascii_text() {
    let mut long = vec![b'a'; 200];
    long.extend_from_slice(b"\xed\xa0\x80");
    check_in_every_string(&long, Utf8);
}

#[test]
fn mqtt_1_5_3_2_nul_is_refused_in_every_string() {
    for string in [&b"\0"[..], b"a\0", b"\0a", b"device/\0/x"] {
        check_in_every_string(string, NulCharacter);
    }
}

#[test]
fn mqtt_1_5_3_3_byte_order_mark_is_kept() {
    let bytes = packet(0x30, &string("\u{feff}a"));
    check(&bytes, Packet::Publish(publish_of("\u{feff}a")));
}

#[test]
fn control_characters_and_non_characters_are_legal() {
    // 1.5.3 says SHOULD NOT; a server that closed for them would lose devices that work elsewhere
    for topic in ["\u{1}", "\u{7f}", "\u{9f}", "\u{ffff}", "\u{10ffff}", "température/°C"] {
        check(&packet(0x30, &string(topic)), Packet::Publish(publish_of(topic)));
    }
}

// ── 2.2 fixed header ─────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn mqtt_2_2_2_1_and_2_flags_other_than_listed_are_refused_for_every_type() {
    for packet_type in [1_u8, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14] {
        let listed = if matches!(packet_type, 6 | 8 | 10) { 0b0010 } else { 0 };
        for flags in (0..16).filter(|flags| *flags != listed) {
            let first = [(packet_type << 4) | flags];
            assert_eq!(decode_any(&first, LIMIT), Err(Flags.into()), "type {packet_type} flags {flags:04b}");
        }
        assert!(matches!(decode_any(&[(packet_type << 4) | listed], LIMIT), Ok(Decoded::Incomplete { needed: 2 })));
    }
}

#[test]
fn types_0_and_15_are_refused_at_their_first_byte() {
    for flags in 0..16 {
        check(&[flags], ReservedType);
        check(&[0xf0 | flags], ReservedType);
    }
}

#[test]
fn a_type_that_only_servers_send_is_refused_from_a_client() {
    for first in [0x20, 0x90, 0xb0, 0xd0] {
        check(&[first], ServerOnlyType);
        check(&[first, 2, 0, 1], ServerOnlyType);
        assert!(decode_any(&[first], LIMIT).is_ok());
    }
}

#[test]
fn remaining_length_has_one_to_four_bytes_in_shortest_form() {
    check(&[0xc0, 0x80, 0x00], RemainingLength);
    check(&[0x40, 0x82, 0x00, 0, 1], RemainingLength);
    check(&[0x30, 0x80, 0x80, 0x00], RemainingLength);
    check(&[0x30, 0x80, 0x80, 0x80, 0x00], RemainingLength);
    check(&[0x30, 0x80, 0x80, 0x80, 0x80], RemainingLength);
    check(&[0x30, 0xff, 0xff, 0xff, 0xff], RemainingLength);
    check(&[0x30, 0xff, 0xff, 0xff, 0x80, 0x01], RemainingLength);
}

#[test]
fn remaining_length_borders_are_read_as_table_2_4_has_them() {
    let table: [(&[u8], usize); 8] = [
        (&[0x00], 0),
        (&[0x7f], 127),
        (&[0x80, 0x01], 128),
        (&[0xff, 0x7f], 16_383),
        (&[0x80, 0x80, 0x01], 16_384),
        (&[0xff, 0xff, 0x7f], 2_097_151),
        (&[0x80, 0x80, 0x80, 0x01], 2_097_152),
        (&[0xff, 0xff, 0xff, 0x7f], 268_435_455),
    ];
    for (length_bytes, length) in table {
        let bytes = [&[0x30], length_bytes].concat();
        let whole = 1 + length_bytes.len() + length;
        let expected = if length == 0 { Err(Truncated.into()) } else { Ok(Decoded::Incomplete { needed: whole }) };
        assert_eq!(decode(&bytes, usize::MAX), expected, "{length}");
    }
}

#[test]
fn a_fixed_size_packet_of_another_size_is_refused_at_its_header() {
    for first in [0x40, 0x50, 0x62, 0x70] {
        check(&[first, 0], PacketLength);
        check(&[first, 1], PacketLength);
        check(&[first, 3], PacketLength);
        check(&[first, 0xff, 0x7f], PacketLength);
    }
    for first in [0xc0, 0xe0] {
        check(&[first, 1], PacketLength);
        check(&[first, 2, 0, 1], PacketLength);
    }
    for first in [0x20, 0xb0] {
        check_any(&[first, 3], PacketLength);
    }
    check_any(&[0xd0, 1], PacketLength);
}

#[test]
fn a_packet_over_the_limit_is_refused_at_its_header() {
    let too_large = |packet_bytes, limit| Err(DecodeError::TooLarge { packet_bytes, limit });
    assert_eq!(decode(&[0x30, 99], 100), too_large(101, 100));
    assert_eq!(decode(&[0x30, 98], 100), Ok(Decoded::Incomplete { needed: 100 }));
    assert_eq!(decode(&[0x10, 0xff, 0xff, 0xff, 0x7f], 300_000), too_large(268_435_460, 300_000));
    let whole = packet(0x30, &string("topic"));
    assert!(decode(&whole, whole.len()).is_ok());
    assert_eq!(decode(&whole, whole.len() - 1), too_large(whole.len(), whole.len() - 1));
}

// ── 2.3.1 packet id ──────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn mqtt_2_3_1_1_publish_with_packet_id_zero_is_refused() {
    for flags in [0x32, 0x34, 0x3a, 0x3c] {
        check(&packet(flags, &[&string("t")[..], &[0, 0]].concat()), PacketIdZero);
    }
}

#[test]
fn mqtt_2_3_1_1_subscribe_with_packet_id_zero_is_refused() {
    check(&packet(0x82, &[&[0, 0][..], &string("t"), &[0]].concat()), PacketIdZero);
}

#[test]
fn mqtt_2_3_1_1_unsubscribe_with_packet_id_zero_is_refused() {
    check(&packet(0xa2, &[&[0, 0][..], &string("t")].concat()), PacketIdZero);
}

#[test]
fn mqtt_2_3_1_6_acknowledgement_with_packet_id_zero_is_refused() {
    for first in [0x40, 0x50, 0x62, 0x70] {
        check(&[first, 2, 0, 0], PacketIdZero);
    }
}

#[test]
fn mqtt_2_3_1_7_suback_and_unsuback_with_packet_id_zero_are_refused() {
    check_any(&[0x90, 3, 0, 0, 0], PacketIdZero);
    check_any(&[0xb0, 2, 0, 0], PacketIdZero);
}

#[test]
fn mqtt_2_3_1_5_publish_of_qos_0_has_no_packet_id() {
    let bytes = packet(0x30, &[&string("t")[..], &[0, 0]].concat());
    check(&bytes, Packet::Publish(Publish { payload: &[0, 0], ..publish_of("t") }));
}

// ── 3.1 CONNECT ──────────────────────────────────────────────────────────────────────────────────────────────────

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

// ── 3.2 CONNACK (server to client) ───────────────────────────────────────────────────────────────────────────────

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

// ── 3.3 PUBLISH ──────────────────────────────────────────────────────────────────────────────────────────────────

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

// ── 3.8 to 3.11 SUBSCRIBE, SUBACK, UNSUBSCRIBE ───────────────────────────────────────────────────────────────────

#[test]
fn subscribe_gives_its_filters_in_order() {
    let filters = [("a/+/#", AtLeastOnce), ("$iothub/twin/res/#", AtMostOnce), ("é", ExactlyOnce)];
    let body = [&[0, 5][..], &string("a/+/#"), &[1], &string("$iothub/twin/res/#"), &[0], &string("é"), &[2]].concat();
    let bytes = packet(0x82, &body);
    let Ok(Decoded::Packet { packet: Packet::Subscribe(subscribe), consumed }) = decode(&bytes, LIMIT) else {
        panic!("not a subscribe");
    };
    assert_eq!((subscribe.packet_id, consumed), (id(5), bytes.len()));
    assert_eq!(subscribe.filters().collect::<Vec<_>>(), filters);
    let mut room = vec![1, 2, 3];
    assert_eq!(Subscribe::new(id(5), filters, &mut room), Ok(subscribe));
}

#[test]
fn unsubscribe_gives_its_filters_in_order() {
    let bytes = packet(0xa2, &[&[1, 0][..], &string("a/#"), &string("b")].concat());
    let Ok(Decoded::Packet { packet: Packet::Unsubscribe(unsubscribe), .. }) = decode(&bytes, LIMIT) else {
        panic!("not an unsubscribe");
    };
    assert_eq!(unsubscribe.packet_id, id(256));
    assert_eq!(unsubscribe.filters().collect::<Vec<_>>(), ["a/#", "b"]);
    assert_eq!(Unsubscribe::new(id(256), ["a/#", "b"], &mut Vec::new()), Ok(unsubscribe));
}

#[test]
fn mqtt_3_8_1_1_subscribe_has_flags_0010() {
    check(&packet(0x80, &[&[0, 1][..], &string("t"), &[0]].concat()), Flags);
}

#[test]
fn mqtt_3_10_1_1_unsubscribe_has_flags_0010() {
    check(&packet(0xa0, &[&[0, 1][..], &string("t")].concat()), Flags);
}

#[test]
fn mqtt_3_8_3_1_and_3_10_3_1_ill_formed_filters_are_refused() {
    check_filter(b"\xc3\x28", Err(Utf8));
    check_filter(b"a/\xed\xa0\x80", Err(Utf8));
}

#[test]
fn mqtt_3_8_3_3_subscribe_without_a_filter_is_refused() {
    check(&packet(0x82, &[0, 1]), NoFilter);
    check(&packet(0x82, &[0]), Truncated);
    assert_eq!(Subscribe::new(id(1), [], &mut Vec::new()), Err(EncodeError::Malformed(NoFilter)));
}

#[test]
fn mqtt_3_10_3_2_unsubscribe_without_a_filter_is_refused() {
    check(&packet(0xa2, &[0, 1]), NoFilter);
    assert_eq!(Unsubscribe::new(id(1), [], &mut Vec::new()), Err(EncodeError::Malformed(NoFilter)));
}

#[test]
fn mqtt_3_8_3_4_requested_qos_above_2_or_with_reserved_bits_is_refused() {
    for qos in 3..=u8::MAX {
        check(&packet(0x82, &[&[0, 1][..], &string("t"), &[qos]].concat()), RequestedQos);
    }
}

#[test]
fn a_filter_without_its_qos_is_refused() {
    check(&packet(0x82, &[&[0, 1][..], &string("t")].concat()), Truncated);
    check(&packet(0x82, &[&[0, 1][..], &string("t"), &[0], &string("u")].concat()), Truncated);
}

#[test]
fn a_wrong_filter_behind_a_right_one_is_refused() {
    check(&packet(0x82, &[&[0, 1][..], &string("t"), &[0], &string("a#"), &[0]].concat()), FilterMultiLevel);
    check(&packet(0xa2, &[&[0, 1][..], &string("t"), &string("")].concat()), TopicEmpty);
    check(&packet(0xa2, &[&[0, 1][..], &string("t"), &[0, 3, b'a']].concat()), Truncated);
}

#[test]
fn mqtt_3_9_3_2_suback_codes_are_0_1_2_and_0x80() {
    check_any(&[0x90, 6, 0, 1, 0, 1, 2, 0x80], Packet::SubAck { packet_id: id(1), codes: &[0, 1, 2, 0x80] });
    for code in (3..0x80).chain(0x81..=u8::MAX) {
        check_any(&[0x90, 3, 0, 1, code], SubAckCodes);
        check_unwritable(&Packet::SubAck { packet_id: id(1), codes: &[code] }, EncodeError::Malformed(SubAckCodes));
    }
    check_any(&[0x90, 2, 0, 1], SubAckCodes);
}

// ── 3.12 to 3.14 ─────────────────────────────────────────────────────────────────────────────────────────────────

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

// ── 4.7 topics ───────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn mqtt_4_7_1_1_wildcards_are_legal_in_filters_only() {
    check_filter(b"+", Ok(()));
    check(&packet(0x30, &string("+")), TopicWildcard);
}

#[test]
fn mqtt_4_7_1_2_multi_level_wildcard_stands_alone_in_the_last_level() {
    for legal in ["#", "/#", "sport/tennis/player1/#", "+/#", "$SYS/#"] {
        check_filter(legal.as_bytes(), Ok(()));
    }
    for illegal in ["a#", "#a", "##", "a/#/b", "#/", "#/a", "a/b#", "sport/tennis/#/ranking"] {
        check_filter(illegal.as_bytes(), Err(FilterMultiLevel));
    }
}

#[test]
fn mqtt_4_7_1_3_single_level_wildcard_fills_its_level() {
    for legal in ["+", "/+", "+/", "+/+", "a/+/b", "+/tennis/#"] {
        check_filter(legal.as_bytes(), Ok(()));
    }
    for illegal in ["a+", "+a", "++", "a/+b/c", "sport+"] {
        check_filter(illegal.as_bytes(), Err(FilterSingleLevel));
    }
    check_filter(b"+#", Err(FilterMultiLevel));
}

#[test]
fn mqtt_4_7_3_1_empty_filter_is_refused() {
    check_filter(b"", Err(TopicEmpty));
}

#[test]
fn mqtt_4_7_3_2_filter_with_nul_is_refused() {
    check_filter(b"a/\0", Err(NulCharacter));
}

#[test]
fn mqtt_4_7_3_3_a_topic_of_65535_bytes_is_the_longest() {
    let longest = "t".repeat(65_535);
    let mut out = Vec::new();
    encode(&Packet::Publish(publish_of(&longest)), &mut out).unwrap();
    let decoded = Decoded::Packet { packet: Packet::Publish(publish_of(&longest)), consumed: out.len() };
    assert_eq!(decode(&out, out.len()), Ok(decoded));
    let longer = "t".repeat(65_536);
    check_unwritable(&Packet::Publish(publish_of(&longer)), EncodeError::FieldTooLong);
    let mut room = Vec::new();
    assert_eq!(Unsubscribe::new(id(1), [&longer[..]], &mut room), Err(EncodeError::FieldTooLong));
}

#[test]
fn mqtt_4_7_3_4_topics_are_not_normalised() {
    for topic in ["/", "//", "/a/", "A", "a b", "%2F", "e\u{301}", "$SYS/x"] {
        check(&packet(0x30, &string(topic)), Packet::Publish(publish_of(topic)));
    }
}

// ── what cannot be written; what must not be shown ───────────────────────────────────────────────────────────────

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

// ── helpers ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// What a row of a table expects: a packet that also writes back to the same bytes, or the rule that is broken.
enum Expected<'a> {
    Packet(Packet<'a>),
    Malformed(Malformed),
}

impl<'a> From<Packet<'a>> for Expected<'a> {
    fn from(packet: Packet<'a>) -> Self {
        Self::Packet(packet)
    }
}

impl From<Malformed> for Expected<'_> {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// A client's bytes; servers' decoders must agree with clients' on them.
#[track_caller]
fn check<'a>(bytes: &'a [u8], expected: impl Into<Expected<'a>>) {
    let expected = expected.into();
    judge(bytes, decode(bytes, LIMIT), &expected);
    if !matches!(expected, Expected::Malformed(ServerOnlyType)) {
        judge(bytes, decode_any(bytes, LIMIT), &expected);
    }
}

/// A server's bytes.
#[track_caller]
fn check_any<'a>(bytes: &'a [u8], expected: impl Into<Expected<'a>>) {
    judge(bytes, decode_any(bytes, LIMIT), &expected.into());
    assert_eq!(decode(bytes, LIMIT), Err(ServerOnlyType.into()), "{bytes:02x?} from a client");
}

#[track_caller]
fn judge(bytes: &[u8], found: Result<Decoded<'_>, DecodeError>, expected: &Expected<'_>) {
    match expected {
        Expected::Malformed(malformed) => assert_eq!(found, Err((*malformed).into()), "{bytes:02x?}"),
        Expected::Packet(packet) => {
            let whole = Decoded::Packet { packet: *packet, consumed: bytes.len() };
            assert_eq!(found, Ok(whole), "{bytes:02x?}");
            let mut written = vec![0xaa];
            encode(packet, &mut written).expect("what was read can be written");
            assert_eq!(&written[1..], bytes, "{packet:?} written");
            assert_eq!(encoded_len(packet), Ok(bytes.len()), "{packet:?}");
        }
    }
}

#[track_caller]
fn check_unwritable(packet: &Packet<'_>, expected: EncodeError) {
    let mut out = vec![1, 2];
    assert_eq!(encode(packet, &mut out), Err(expected));
    assert_eq!(out, [1, 2], "an error leaves the output as it was");
    assert_eq!(encoded_len(packet), Err(expected));
}

/// `string` in each place of the protocol that holds a UTF-8 string.
#[track_caller]
fn check_in_every_string(string: &[u8], expected: Malformed) {
    let field = binary(string);
    let (dev, end) = (self::string("dev"), self::string("m"));
    check(&connect(0, &field), expected);
    check(&connect(0b0000_0100, &[&dev[..], &field, &end].concat()), expected);
    check(&connect(0b1000_0000, &[&dev[..], &field].concat()), expected);
    check(&packet(0x30, &field), expected);
    check(&packet(0x32, &[&field[..], &[0, 1]].concat()), expected);
    check_filter(string, Err(expected));
}

/// `filter` in SUBSCRIBE and UNSUBSCRIBE.
#[track_caller]
fn check_filter(filter: &[u8], expected: Result<(), Malformed>) {
    let subscribe = packet(0x82, &[&[0, 1][..], &binary(filter), &[1]].concat());
    let unsubscribe = packet(0xa2, &[&[0, 1][..], &binary(filter)].concat());
    for bytes in [subscribe, unsubscribe] {
        let found = decode(&bytes, LIMIT).map(|_| ());
        assert_eq!(found, expected.map_err(DecodeError::from), "{:?}", String::from_utf8_lossy(filter));
    }
}

fn publish_of(topic: &str) -> Publish<'_> {
    Publish { dup: false, qos: AtMostOnce, retain: false, topic, packet_id: None, payload: b"" }
}

fn bare_connect() -> Connect<'static> {
    Connect { clean_session: false, keep_alive_s: 60, client_id: "", will: None, user_name: None, password: None }
}

/// A CONNECT of level 4 with these flags and payload.
fn connect(flags: u8, payload: &[u8]) -> Vec<u8> {
    connect_with_keep_alive(flags, 60, payload)
}

fn connect_with_keep_alive(flags: u8, keep_alive_s: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = keep_alive_s.to_be_bytes();
    packet(0x10, &[&string("MQTT")[..], &[4, flags, high, low], payload].concat())
}

/// A packet of this first byte and body.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    assert!(length < 0x4000, "helper writes two bytes of length at most");
    let length_bytes =
        if length < 0x80 { vec![length as u8] } else { vec![(length & 0x7f) as u8 | 0x80, (length >> 7) as u8] };
    [&[first], &length_bytes[..], body].concat()
}

fn string(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

fn binary(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn id(value: u16) -> PacketId {
    PacketId(NonZeroU16::new(value).expect("ids in tables are not 0"))
}
