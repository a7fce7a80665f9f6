//! The fixed header (2.2), strings (1.5.3), packet ids (2.3.1).

use gateway_core::codec::{
    DecodeError, Decoded,
    Malformed::{
        Flags, NulCharacter, PacketIdZero, PacketLength, RemainingLength, ReservedType, ServerOnlyType, Truncated, Utf8,
    },
    Packet, decode, decode_any, encode, encoded_len,
    packet::Publish,
};

use crate::wire::{LIMIT, check, check_any, check_in_every_string, packet, publish_of, string};

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
fn remaining_length_borders_are_written_as_table_2_4_has_them() {
    let table: [(usize, &[u8]); 6] = [
        (127, &[0x7f]),
        (128, &[0x80, 0x01]),
        (16_383, &[0xff, 0x7f]),
        (16_384, &[0x80, 0x80, 0x01]),
        (2_097_151, &[0xff, 0xff, 0x7f]),
        (2_097_152, &[0x80, 0x80, 0x80, 0x01]),
    ];
    for (remaining_length, length_bytes) in table {
        let payload = vec![0; remaining_length - 3];
        let packet = Packet::Publish(Publish { payload: &payload, ..publish_of("t") });
        let mut out = Vec::new();
        assert_eq!(encode(&packet, &mut out), Ok(()));
        assert_eq!(out[1..=length_bytes.len()], *length_bytes);
        assert_eq!(out.len(), 1 + length_bytes.len() + remaining_length);
        assert_eq!(encoded_len(&packet), Ok(out.len()));
    }
    let longest = vec![0; 268_435_455 - 3];
    let packet = Packet::Publish(Publish { payload: &longest, ..publish_of("t") });
    assert_eq!(encoded_len(&packet), Ok(5 + 268_435_455));
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
