//! How the tables are judged, and how packets are put together by hand: none of it is the codec's.

use std::num::NonZeroU16;

use gateway_core::{
    codec::{
        DecodeError, Decoded, EncodeError,
        Malformed::{self, ServerOnlyType},
        Packet, decode, decode_any, encode, encoded_len,
        packet::{Connect, Publish},
    },
    message::{PacketId, QoS::AtMostOnce},
};

pub(crate) const LIMIT: usize = 512;

/// What a row of a table expects: a packet that also writes back to the same bytes, or the rule that is broken.
pub(crate) enum Expected<'a> {
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
pub(crate) fn check<'a>(bytes: &'a [u8], expected: impl Into<Expected<'a>>) {
    let expected = expected.into();
    judge(bytes, decode(bytes, LIMIT), &expected);
    if !matches!(expected, Expected::Malformed(ServerOnlyType)) {
        judge(bytes, decode_any(bytes, LIMIT), &expected);
    }
}

/// A server's bytes.
#[track_caller]
pub(crate) fn check_any<'a>(bytes: &'a [u8], expected: impl Into<Expected<'a>>) {
    judge(bytes, decode_any(bytes, LIMIT), &expected.into());
    assert_eq!(decode(bytes, LIMIT), Err(ServerOnlyType.into()), "{bytes:02x?} from a client");
}

#[track_caller]
pub(crate) fn judge(bytes: &[u8], found: Result<Decoded<'_>, DecodeError>, expected: &Expected<'_>) {
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
pub(crate) fn check_unwritable(packet: &Packet<'_>, expected: EncodeError) {
    let mut out = vec![1, 2];
    assert_eq!(encode(packet, &mut out), Err(expected));
    assert_eq!(out, [1, 2], "an error leaves the output as it was");
    assert_eq!(encoded_len(packet), Err(expected));
}

/// `string` in each place of the protocol that holds a UTF-8 string.
#[track_caller]
pub(crate) fn check_in_every_string(string: &[u8], expected: Malformed) {
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
pub(crate) fn check_filter(filter: &[u8], expected: Result<(), Malformed>) {
    let subscribe = packet(0x82, &[&[0, 1][..], &binary(filter), &[1]].concat());
    let unsubscribe = packet(0xa2, &[&[0, 1][..], &binary(filter)].concat());
    for bytes in [subscribe, unsubscribe] {
        let found = decode(&bytes, LIMIT).map(|_| ());
        assert_eq!(found, expected.map_err(DecodeError::from), "{:?}", String::from_utf8_lossy(filter));
    }
}

pub(crate) fn publish_of(topic: &str) -> Publish<'_> {
    Publish { dup: false, qos: AtMostOnce, retain: false, topic, packet_id: None, payload: b"" }
}

pub(crate) fn bare_connect() -> Connect<'static> {
    Connect { clean_session: false, keep_alive_s: 60, client_id: "", will: None, user_name: None, password: None }
}

/// A CONNECT of level 4 with these flags and payload.
pub(crate) fn connect(flags: u8, payload: &[u8]) -> Vec<u8> {
    connect_with_keep_alive(flags, 60, payload)
}

pub(crate) fn connect_with_keep_alive(flags: u8, keep_alive_s: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = keep_alive_s.to_be_bytes();
    packet(0x10, &[&string("MQTT")[..], &[4, flags, high, low], payload].concat())
}

/// A packet of this first byte and body.
pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    assert!(length < 0x4000, "helper writes two bytes of length at most");
    let length_bytes =
        if length < 0x80 { vec![length as u8] } else { vec![(length & 0x7f) as u8 | 0x80, (length >> 7) as u8] };
    [&[first], &length_bytes[..], body].concat()
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    binary(text.as_bytes())
}

pub(crate) fn binary(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

pub(crate) fn id(value: u16) -> PacketId {
    PacketId(NonZeroU16::new(value).expect("ids in tables are not 0"))
}
