//! What holds for every packet and for any bytes: round trip, any split, no panic, one spelling only.

mod codec_support;

use codec_support::{Chance, Owned, any_packet, spoil};
use gateway_core::codec::{DecodeError, Decoded, EncodeError, Malformed, decode, decode_any, encode, encoded_len};
use proptest::{collection::vec, prelude::*};

const LIMIT: usize = 100_000;

/// Spoiled packets per run: a few seconds either way.
const SPOILED_INPUTS: u64 = if cfg!(debug_assertions) { 1_000_000 } else { 10_000_000 };

proptest! {
    #[test]
    fn what_is_written_is_read_again(packet in any_packet()) {
        let bytes = packet.bytes().expect("strategies make legal packets");
        let Ok(Decoded::Packet { packet: found, consumed }) = decode_any(&bytes, LIMIT) else {
            panic!("{:?}", decode_any(&bytes, LIMIT));
        };
        prop_assert_eq!(consumed, bytes.len());
        prop_assert_eq!(encoded_len(&found), Ok(bytes.len()));
        prop_assert_eq!(Owned::from(found), packet);
    }

    #[test]
    fn bytes_behind_a_packet_change_nothing(packet in any_packet(), behind in vec(any::<u8>(), 0..40)) {
        let bytes = packet.bytes().expect("strategies make legal packets");
        let stream = [&bytes[..], &behind].concat();
        prop_assert_eq!(decode_any(&stream, LIMIT), decode_any(&bytes, LIMIT));
    }

    #[test]
    fn every_prefix_of_a_packet_is_incomplete(packet in any_packet()) {
        let bytes = packet.bytes().expect("strategies make legal packets");
        let header = 1 + bytes[1..].iter().position(|byte| *byte < 0x80).expect("a length ends") + 1;
        for end in (0..bytes.len()).filter(|end| *end < 40 || end % 97 == 0) {
            let needed = if end < header { (end + 1).max(2) } else { bytes.len() };
            prop_assert_eq!(decode_any(&bytes[..end], LIMIT), Ok(Decoded::Incomplete { needed }));
        }
    }

    #[test]
    fn the_limit_is_the_longest_packet_that_passes(packet in any_packet()) {
        let bytes = packet.bytes().expect("strategies make legal packets");
        let limit = bytes.len() - 1;
        prop_assert_eq!(
            decode_any(&bytes, limit),
            Err(DecodeError::TooLarge { packet_bytes: bytes.len(), limit })
        );
        prop_assert!(decode_any(&bytes, bytes.len()).is_ok());
    }

    #[test]
    fn any_bytes_are_judged_alike_in_any_split(bytes in vec(any::<u8>(), 0..120)) {
        judge(&bytes, &mut Chance(bytes.len() as u64));
    }

    #[test]
    fn any_body_under_a_right_header_is_judged_alike_in_any_split(
        first in prop_oneof![Just(0x10_u8), 0x30..=0x3f_u8, Just(0x82), Just(0x90), Just(0xa2)],
        body in vec(prop_oneof![Just(0_u8), 0..5_u8, any::<u8>()], 0..100),
    ) {
        let bytes = [&[first, body.len() as u8][..], &body].concat();
        judge(&bytes, &mut Chance(body.len() as u64));
    }
}

#[test]
fn spoiled_packets_are_judged_alike_in_any_split() {
    let packets = corpus();
    let mut chance = Chance(0x6d71_7474);
    let (mut accepted, mut refused) = (0_u64, 0_u64);
    for _ in 0..SPOILED_INPUTS {
        let mut bytes = packets[chance.below(packets.len())].clone();
        spoil(&mut bytes, &mut chance);
        match judge(&bytes, &mut chance) {
            Verdict::Accepted => accepted += 1,
            Verdict::Refused => refused += 1,
            Verdict::Incomplete => {}
        }
    }
    // a generator that makes only one kind would prove nothing
    assert!(accepted > SPOILED_INPUTS / 50, "only {accepted} of {SPOILED_INPUTS} still legal");
    assert!(refused > SPOILED_INPUTS / 5, "only {refused} of {SPOILED_INPUTS} malformed");
}

#[test]
fn every_fault_is_found_by_spoiling() {
    let packets = corpus();
    let mut chance = Chance(0x3131);
    let mut found = std::collections::HashSet::new();
    for _ in 0..SPOILED_INPUTS {
        let mut bytes = packets[chance.below(packets.len())].clone();
        spoil(&mut bytes, &mut chance);
        if let Err(DecodeError::Malformed(malformed)) = decode_any(&bytes, LIMIT) {
            found.insert(malformed);
        }
    }
    for malformed in COMMON_FAULTS {
        assert!(found.contains(&malformed), "{malformed:?} was not met: the corpus misses a kind of packet");
    }
}

/// All that [`decode_any`] can find; the 26th, `ServerOnlyType`, belongs to `decode`.
const COMMON_FAULTS: [Malformed; 25] = [
    Malformed::ReservedType,
    Malformed::Flags,
    Malformed::PublishQos,
    Malformed::PublishDup,
    Malformed::RemainingLength,
    Malformed::PacketLength,
    Malformed::Truncated,
    Malformed::TrailingBytes,
    Malformed::PacketIdZero,
    Malformed::Utf8,
    Malformed::NulCharacter,
    Malformed::TopicWildcard,
    Malformed::TopicEmpty,
    Malformed::FilterMultiLevel,
    Malformed::FilterSingleLevel,
    Malformed::NoFilter,
    Malformed::RequestedQos,
    Malformed::ProtocolName,
    Malformed::ConnectFlag,
    Malformed::WillFlags,
    Malformed::WillQos,
    Malformed::PasswordWithoutUserName,
    Malformed::ConnAckFlags,
    Malformed::ConnAckCode,
    Malformed::SubAckCodes,
];

enum Verdict {
    Accepted,
    Refused,
    Incomplete,
}

/// What must hold for any bytes at all.
fn judge(bytes: &[u8], chance: &mut Chance) -> Verdict {
    let whole = decode_any(bytes, LIMIT);
    check_split(bytes, chance.below(bytes.len() + 1), whole);
    check_client_side(bytes, whole);
    match whole {
        Ok(Decoded::Packet { packet, consumed }) => {
            let mut written = Vec::new();
            assert_eq!(encode(&packet, &mut written), Ok::<_, EncodeError>(()), "{bytes:02x?}");
            assert_eq!(written, bytes[..consumed], "a packet has one spelling: {packet:?}");
            Verdict::Accepted
        }
        Ok(Decoded::Incomplete { needed }) => {
            assert!(needed > bytes.len() && needed <= LIMIT, "{bytes:02x?} needs {needed}");
            Verdict::Incomplete
        }
        Err(_) => Verdict::Refused,
    }
}

/// The first `end` bytes are judged as the whole is, or not yet.
fn check_split(bytes: &[u8], end: usize, whole: Result<Decoded<'_>, DecodeError>) {
    match decode_any(&bytes[..end], LIMIT) {
        Ok(Decoded::Incomplete { needed }) => {
            assert!(needed > end);
            if let Ok(Decoded::Packet { consumed, .. }) = whole {
                assert!(needed <= consumed && end < consumed, "{bytes:02x?} cut at {end}");
            }
        }
        early => assert_eq!(early, whole, "{bytes:02x?} cut at {end}"),
    }
}

/// [`decode`] differs from [`decode_any`] only for what servers send.
fn check_client_side(bytes: &[u8], any_side: Result<Decoded<'_>, DecodeError>) {
    let client_side = decode(bytes, LIMIT);
    if client_side == Err(Malformed::ServerOnlyType.into()) {
        assert!(matches!(bytes[0] >> 4, 2 | 9 | 11 | 13), "{bytes:02x?}");
    } else {
        assert_eq!(client_side, any_side, "{bytes:02x?}");
    }
}

/// One packet of every type and shape.
fn corpus() -> Vec<Vec<u8>> {
    let connect =
        b"\x10\x36\0\x04MQTT\x04\xee\0\x3c\0\x03dev\0\x03w/t\0\x03bye\0\x0dhub/dev/?api=\0\x0cSharedAcc\xff\0s";
    let packets: [&[u8]; 21] = [
        connect,
        b"\x10\x0f\0\x04MQTT\x04\x02\0\0\0\x03dev",
        b"\x10\x14\0\x04MQTT\x04\x82\0\0\0\x03dev\0\x03usr",
        b"\x10\x19\0\x04MQTT\x04\x06\0\0\0\x03dev\0\x01w\0\x05hello",
        b"\x20\x02\x01\0",
        b"\x20\x02\0\x05",
        b"\x30\x08\0\x03a/b123",
        b"\x33\x0c\0\x05a/b/c\0\x01xyz",
        b"\x3c\x0a\0\x04a\xc3\xa9b\xff\xff\0\0",
        b"\x32\x89\x01\0\x03t/x\x12\x34",
        b"\x40\x02\0\x01",
        b"\x50\x02\0\x02",
        b"\x62\x02\0\x03",
        b"\x70\x02\0\x04",
        b"\x82\x10\0\x05\0\x05a/+/#\x01\0\x03b/+\x02",
        b"\x90\x06\0\x05\0\x01\x02\x80",
        b"\xa2\x09\0\x06\0\x01#\0\x02+/",
        b"\xb0\x02\0\x07",
        b"\xc0\0",
        b"\xd0\0",
        b"\xe0\0",
    ];
    let mut packets: Vec<_> = packets.iter().map(|packet| packet.to_vec()).collect();
    packets[9].resize(3 + 0x89, b'p');
    for packet in &packets {
        let whole = decode_any(packet, LIMIT);
        assert!(
            matches!(whole, Ok(Decoded::Packet { consumed, .. }) if consumed == packet.len()),
            "{packet:02x?} {whole:?}"
        );
    }
    packets
}
