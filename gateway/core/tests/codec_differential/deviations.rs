//! Where the published codecs are known to differ from the standard: named, with a sample that shows it.

use gateway_core::{
    codec::Malformed::{self, *},
    message::QoS,
};

use crate::codec_support::{Owned, OwnedConnect};

/// Which half of a codec deviates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Reads,
    Writes,
}

/// A legal packet that another codec refuses, changes or cannot express.
pub(crate) struct Deviation {
    pub(crate) oracles: &'static [&'static str],
    pub(crate) side: Side,
    pub(crate) what: &'static str,
    /// Which packets it concerns; they are left out of the comparison with these oracles.
    pub(crate) concerns: fn(&Owned) -> bool,
    pub(crate) sample: fn() -> Owned,
}

pub(crate) const DEVIATIONS: &[Deviation] = &[
    Deviation {
        oracles: &["rumqttd", "rumqttc"],
        side: Side::Reads,
        what: "a password that is not text is refused (3.1.3.5 has binary data)",
        concerns: has_binary_password,
        sample: || login(Some("user"), Some(b"\xff")),
    },
    Deviation {
        oracles: &["rumqttd", "rumqttc"],
        side: Side::Writes,
        what: "a password that is not text cannot be expressed",
        concerns: has_binary_password,
        sample: || login(Some("user"), Some(b"\xff")),
    },
    Deviation {
        oracles: &["rumqttd", "rumqttc"],
        side: Side::Reads,
        what: "an empty user name or password is taken for an absent one",
        concerns: has_empty_login,
        sample: || login(Some(""), Some(b"")),
    },
    Deviation {
        oracles: &["rumqttd", "rumqttc"],
        side: Side::Writes,
        what: "an empty user name or password is left out, even if a password without user name remains",
        concerns: has_empty_login,
        sample: || login(Some(""), Some(b"password")),
    },
    Deviation {
        oracles: &["mqtt-proto"],
        side: Side::Writes,
        what: "SUBACK failure is written as 3 instead of 0x80",
        concerns: |packet| matches!(packet, Owned::SubAck { codes, .. } if codes.contains(&0x80)),
        sample: || Owned::SubAck { packet_id: 1, codes: vec![0x80] },
    },
    Deviation {
        oracles: &["mqtt-proto"],
        side: Side::Reads,
        what: "a filter that begins with $share/ is judged by the rules of MQTT 5",
        concerns: has_shared_filter,
        sample: || subscribe("$share/"),
    },
    Deviation {
        oracles: &["mqtt-proto"],
        side: Side::Writes,
        what: "a filter that begins with $share/ must fit the rules of MQTT 5",
        concerns: has_shared_filter,
        sample: || subscribe("$share/"),
    },
];

/// Whether a named deviation of this codec concerns `packet`.
pub(crate) fn deviates(oracle: &str, side: Side, packet: &Owned) -> bool {
    DEVIATIONS.iter().any(|d| d.side == side && d.oracles.contains(&oracle) && (d.concerns)(packet))
}

/// Bytes that break a rule and that another codec takes nevertheless.
pub(crate) struct Lax {
    pub(crate) what: &'static str,
    pub(crate) bytes: &'static [u8],
    /// What we say.
    pub(crate) broken: Malformed,
    pub(crate) accepted_by: &'static [&'static str],
}

const RUMQTT: &[&str] = &["rumqttd", "rumqttc"];
const ALL: &[&str] = &["rumqttd", "rumqttc", "mqtt-proto"];

pub(crate) const LAXNESS: &[Lax] = &[
    lax("flags of CONNECT", b"\x11\x0f\0\x04MQTT\x04\x02\0\0\0\x03dev", Flags, RUMQTT),
    lax("reserved connect flag", b"\x10\x0f\0\x04MQTT\x04\x03\0\0\0\x03dev", ConnectFlag, RUMQTT),
    lax("password without user name", b"\x10\x12\0\x04MQTT\x04\x42\0\0\0\x03dev\0\x01p", PasswordWithoutUserName, ALL),
    lax("Will QoS 3", b"\x10\x15\0\x04MQTT\x04\x1e\0\0\0\x03dev\0\x01w\0\x01m", WillQos, &[]),
    lax("Will QoS without Will", b"\x10\x0f\0\x04MQTT\x04\x0a\0\0\0\x03dev", WillFlags, &[]),
    lax("Will retain without Will", b"\x10\x0f\0\x04MQTT\x04\x22\0\0\0\x03dev", WillFlags, &["mqtt-proto"]),
    lax("client id with U+0000", b"\x10\x0f\0\x04MQTT\x04\x02\0\0\0\x03d\0v", NulCharacter, ALL),
    lax("bytes behind CONNECT", b"\x10\x10\0\x04MQTT\x04\x02\0\0\0\x03dev!", TrailingBytes, ALL),
    lax("another protocol name", b"\x10\x11\0\x06MQIsdp\x03\x02\0\0\0\x03dev", ProtocolName, &["mqtt-proto"]),
    lax("Will topic with a wildcard", b"\x10\x15\0\x04MQTT\x04\x06\0\0\0\x03dev\0\x01#\0\x01m", TopicWildcard, RUMQTT),
    lax("topic that is not UTF-8", b"\x30\x03\0\x01\xff", Utf8, &[]),
    lax("topic with U+0000", b"\x30\x03\0\x01\0", NulCharacter, RUMQTT),
    lax("topic with a wildcard", b"\x30\x03\0\x01+", TopicWildcard, RUMQTT),
    lax("empty topic", b"\x30\x02\0\0", TopicEmpty, ALL),
    lax("QoS 3", b"\x36\x05\0\x01t\0\x01", PublishQos, &[]),
    lax("QoS 0 with DUP", b"\x38\x03\0\x01t", PublishDup, ALL),
    lax("PUBLISH with packet id 0", b"\x32\x05\0\x01t\0\0", PacketIdZero, &[]),
    lax("PUBACK with packet id 0", b"\x40\x02\0\0", PacketIdZero, RUMQTT),
    lax("PUBACK of another length", b"\x50\x03\0\x01\0", PacketLength, ALL),
    lax("SUBSCRIBE with flags 0000", b"\x80\x06\0\x01\0\x01t\0", Flags, RUMQTT),
    lax("filter with a misplaced #", b"\x82\x07\0\x01\0\x02a#\0", FilterMultiLevel, RUMQTT),
    lax("filter with a misplaced +", b"\x82\x07\0\x01\0\x02a+\0", FilterSingleLevel, RUMQTT),
    lax("filter with text behind a +", b"\x82\x07\0\x01\0\x02+a\0", FilterSingleLevel, ALL),
    lax("empty filter", b"\x82\x05\0\x01\0\0\0", TopicEmpty, RUMQTT),
    lax("no filter to subscribe", b"\x82\x02\0\x01", NoFilter, &[]),
    lax("no filter to unsubscribe", b"\xa2\x02\0\x01", NoFilter, RUMQTT),
    lax("reserved bits of the requested QoS", b"\x82\x06\0\x01\0\x01t\x04", RequestedQos, RUMQTT),
    lax("remaining length 80 00", b"\xc0\x80\0", RemainingLength, ALL),
    lax("reserved type 15", b"\xf0\0", ReservedType, &[]),
    lax("fields of CONNECT beyond its length", b"\x10\x0c\0\x04MQTT\x04\x02\0\0\0\x03dev", Truncated, &["mqtt-proto"]),
    lax("reserved acknowledge flags", b"\x20\x02\x02\0", ConnAckFlags, RUMQTT),
    lax("session present with a refusal", b"\x20\x02\x01\x05", ConnAckFlags, ALL),
    lax("SUBACK without codes", b"\x90\x02\0\x01", SubAckCodes, &["mqtt-proto"]),
    lax("CONNACK from a client", b"\x20\x02\0\0", ServerOnlyType, ALL),
];

const fn lax(what: &'static str, bytes: &'static [u8], broken: Malformed, accepted_by: &'static [&'static str]) -> Lax {
    Lax { what, bytes, broken, accepted_by }
}

fn has_binary_password(packet: &Owned) -> bool {
    matches!(packet, Owned::Connect(OwnedConnect { password: Some(password), .. }) if str::from_utf8(password).is_err())
}

fn has_empty_login(packet: &Owned) -> bool {
    let Owned::Connect(connect) = packet else { return false };
    connect.user_name.as_ref().is_some_and(String::is_empty) || connect.password.as_ref().is_some_and(Vec::is_empty)
}

fn has_shared_filter(packet: &Owned) -> bool {
    match packet {
        Owned::Subscribe { filters, .. } => filters.iter().any(|(filter, _)| filter.starts_with("$share/")),
        Owned::Unsubscribe { filters, .. } => filters.iter().any(|filter| filter.starts_with("$share/")),
        _ => false,
    }
}

fn login(user_name: Option<&str>, password: Option<&[u8]>) -> Owned {
    Owned::Connect(OwnedConnect {
        clean_session: true,
        keep_alive_s: 0,
        client_id: "dev".to_owned(),
        will: None,
        user_name: user_name.map(str::to_owned),
        password: password.map(<[u8]>::to_vec),
    })
}

fn subscribe(filter: &str) -> Owned {
    Owned::Subscribe { packet_id: 1, filters: vec![(filter.to_owned(), QoS::AtLeastOnce)] }
}
