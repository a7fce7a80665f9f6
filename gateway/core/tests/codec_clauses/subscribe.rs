//! SUBSCRIBE, SUBACK, UNSUBSCRIBE (3.8 to 3.11), topic names and filters (4.7).

use gateway_core::{
    codec::{
        Decoded, EncodeError,
        Malformed::{
            FilterMultiLevel, FilterSingleLevel, Flags, NoFilter, NulCharacter, RequestedQos, SubAckCodes, TopicEmpty,
            TopicWildcard, Truncated, Utf8,
        },
        Packet, decode, encode,
        packet::{Subscribe, Unsubscribe},
    },
    message::QoS::{AtLeastOnce, AtMostOnce, ExactlyOnce},
};

use crate::wire::{LIMIT, check, check_any, check_filter, check_unwritable, id, packet, publish_of, string};

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
