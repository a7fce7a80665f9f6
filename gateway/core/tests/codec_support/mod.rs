//! Shared by the codec's tests: packets that own their parts, how to make any of them, how to spoil their bytes.

use std::num::NonZeroU16;

use gateway_core::{
    codec::{
        EncodeError, Packet, encode,
        packet::{Connect, ConnectCode, Publish, Subscribe, Unsubscribe, Will},
    },
    message::{PacketId, QoS},
};
use proptest::{
    collection::vec,
    option,
    prelude::{Just, Strategy, any, prop_oneof},
};

/// A packet that owns its parts: the common form in which codecs are compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Owned {
    Connect(OwnedConnect),
    ConnAck { session_present: bool, code: ConnectCode },
    Publish(OwnedPublish),
    PubAck(u16),
    PubRec(u16),
    PubRel(u16),
    PubComp(u16),
    Subscribe { packet_id: u16, filters: Vec<(String, QoS)> },
    SubAck { packet_id: u16, codes: Vec<u8> },
    Unsubscribe { packet_id: u16, filters: Vec<String> },
    UnsubAck(u16),
    PingReq,
    PingResp,
    Disconnect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedConnect {
    pub(crate) clean_session: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) client_id: String,
    pub(crate) will: Option<OwnedWill>,
    pub(crate) user_name: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedWill {
    pub(crate) topic: String,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedPublish {
    pub(crate) dup: bool,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) topic: String,
    /// 0 with QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) payload: Vec<u8>,
}

impl Owned {
    /// What our encoder makes of it.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, EncodeError> {
        let mut room = Vec::new();
        let packet = self.borrowed(&mut room)?;
        let mut out = Vec::new();
        encode(&packet, &mut out)?;
        Ok(out)
    }

    /// Our form of it; `room` keeps the filters.
    fn borrowed<'a>(&'a self, room: &'a mut Vec<u8>) -> Result<Packet<'a>, EncodeError> {
        Ok(match self {
            Self::Connect(connect) => Packet::Connect(connect.borrowed()),
            Self::ConnAck { session_present, code } => {
                Packet::ConnAck { session_present: *session_present, code: *code }
            }
            Self::Publish(publish) => Packet::Publish(publish.borrowed()),
            Self::PubAck(id) => Packet::PubAck(packet_id(*id)),
            Self::PubRec(id) => Packet::PubRec(packet_id(*id)),
            Self::PubRel(id) => Packet::PubRel(packet_id(*id)),
            Self::PubComp(id) => Packet::PubComp(packet_id(*id)),
            Self::Subscribe { packet_id: id, filters } => {
                let filters = filters.iter().map(|(filter, qos)| (filter.as_str(), *qos));
                Packet::Subscribe(Subscribe::new(packet_id(*id), filters, room)?)
            }
            Self::SubAck { packet_id: id, codes } => Packet::SubAck { packet_id: packet_id(*id), codes },
            Self::Unsubscribe { packet_id: id, filters } => {
                Packet::Unsubscribe(Unsubscribe::new(packet_id(*id), filters.iter().map(String::as_str), room)?)
            }
            Self::UnsubAck(id) => Packet::UnsubAck(packet_id(*id)),
            Self::PingReq => Packet::PingReq,
            Self::PingResp => Packet::PingResp,
            Self::Disconnect => Packet::Disconnect,
        })
    }
}

impl OwnedConnect {
    fn borrowed(&self) -> Connect<'_> {
        let will = self.will.as_ref().map(|will| Will {
            topic: &will.topic,
            payload: &will.payload,
            qos: will.qos,
            retain: will.retain,
        });
        Connect {
            clean_session: self.clean_session,
            keep_alive_s: self.keep_alive_s,
            client_id: &self.client_id,
            will,
            user_name: self.user_name.as_deref(),
            password: self.password.as_deref(),
        }
    }
}

impl OwnedPublish {
    fn borrowed(&self) -> Publish<'_> {
        Publish {
            dup: self.dup,
            qos: self.qos,
            retain: self.retain,
            topic: &self.topic,
            packet_id: NonZeroU16::new(self.packet_id).map(PacketId),
            payload: &self.payload,
        }
    }
}

impl From<Packet<'_>> for Owned {
    fn from(packet: Packet<'_>) -> Self {
        match packet {
            Packet::Connect(connect) => Self::Connect(connect.into()),
            Packet::ConnAck { session_present, code } => Self::ConnAck { session_present, code },
            Packet::Publish(publish) => Self::Publish(publish.into()),
            Packet::PubAck(id) => Self::PubAck(id.0.get()),
            Packet::PubRec(id) => Self::PubRec(id.0.get()),
            Packet::PubRel(id) => Self::PubRel(id.0.get()),
            Packet::PubComp(id) => Self::PubComp(id.0.get()),
            Packet::Subscribe(subscribe) => Self::Subscribe {
                packet_id: subscribe.packet_id.0.get(),
                filters: subscribe.filters().map(|(filter, qos)| (filter.to_owned(), qos)).collect(),
            },
            Packet::SubAck { packet_id, codes } => Self::SubAck { packet_id: packet_id.0.get(), codes: codes.to_vec() },
            Packet::Unsubscribe(unsubscribe) => Self::Unsubscribe {
                packet_id: unsubscribe.packet_id.0.get(),
                filters: unsubscribe.filters().map(str::to_owned).collect(),
            },
            Packet::UnsubAck(id) => Self::UnsubAck(id.0.get()),
            Packet::PingReq => Self::PingReq,
            Packet::PingResp => Self::PingResp,
            Packet::Disconnect => Self::Disconnect,
        }
    }
}

impl From<Connect<'_>> for OwnedConnect {
    fn from(connect: Connect<'_>) -> Self {
        let will = connect.will.map(|will| OwnedWill {
            topic: will.topic.to_owned(),
            payload: will.payload.to_vec(),
            qos: will.qos,
            retain: will.retain,
        });
        Self {
            clean_session: connect.clean_session,
            keep_alive_s: connect.keep_alive_s,
            client_id: connect.client_id.to_owned(),
            will,
            user_name: connect.user_name.map(str::to_owned),
            password: connect.password.map(<[u8]>::to_vec),
        }
    }
}

impl From<Publish<'_>> for OwnedPublish {
    fn from(publish: Publish<'_>) -> Self {
        Self {
            dup: publish.dup,
            qos: publish.qos,
            retain: publish.retain,
            topic: publish.topic.to_owned(),
            packet_id: publish.packet_id.map_or(0, |id| id.0.get()),
            payload: publish.payload.to_vec(),
        }
    }
}

fn packet_id(value: u16) -> PacketId {
    PacketId(NonZeroU16::new(value).expect("strategies and readers give no id 0"))
}

/// Any legal packet, of either side.
pub(crate) fn any_packet() -> impl Strategy<Value = Owned> {
    let ids = || 1..=u16::MAX;
    prop_oneof![
        4 => connect().prop_map(Owned::Connect),
        1 => connack(),
        6 => publish().prop_map(Owned::Publish),
        1 => ids().prop_map(Owned::PubAck),
        1 => ids().prop_map(Owned::PubRec),
        1 => ids().prop_map(Owned::PubRel),
        1 => ids().prop_map(Owned::PubComp),
        3 => (ids(), vec((filter(), qos()), 1..5)).prop_map(|(packet_id, filters)| Owned::Subscribe { packet_id, filters }),
        1 => (ids(), vec(suback_code(), 1..5)).prop_map(|(packet_id, codes)| Owned::SubAck { packet_id, codes }),
        2 => (ids(), vec(filter(), 1..5)).prop_map(|(packet_id, filters)| Owned::Unsubscribe { packet_id, filters }),
        1 => ids().prop_map(Owned::UnsubAck),
        1 => Just(Owned::PingReq),
        1 => Just(Owned::PingResp),
        1 => Just(Owned::Disconnect),
    ]
}

fn connect() -> impl Strategy<Value = OwnedConnect> {
    let login = option::of((text(), option::of(vec(any::<u8>(), 0..40))));
    let will = option::of((topic(), payload(), qos(), any::<bool>()));
    (any::<bool>(), any::<u16>(), text(), will, login).prop_map(
        |(clean_session, keep_alive_s, client_id, will, login)| {
            let will = will.map(|(topic, payload, qos, retain)| OwnedWill { topic, payload, qos, retain });
            let (user_name, password) = login.map_or((None, None), |(user, password)| (Some(user), password));
            OwnedConnect { clean_session, keep_alive_s, client_id, will, user_name, password }
        },
    )
}

fn connack() -> impl Strategy<Value = Owned> {
    let refusals = (1..=5_u8).prop_map(|byte| ConnectCode::from_byte(byte).expect("1 to 5 are codes"));
    prop_oneof![
        any::<bool>().prop_map(|session_present| Owned::ConnAck { session_present, code: ConnectCode::Accepted }),
        refusals.prop_map(|code| Owned::ConnAck { session_present: false, code }),
    ]
}

fn publish() -> impl Strategy<Value = OwnedPublish> {
    (any::<bool>(), qos(), any::<bool>(), topic(), 1..=u16::MAX, payload()).prop_map(
        |(dup, qos, retain, topic, packet_id, payload)| {
            let acknowledged = qos != QoS::AtMostOnce;
            let packet_id = if acknowledged { packet_id } else { 0 };
            OwnedPublish { dup: dup && acknowledged, qos, retain, topic, packet_id, payload }
        },
    )
}

fn qos() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

fn suback_code() -> impl Strategy<Value = u8> {
    prop_oneof![0..=2_u8, Just(0x80)]
}

/// Lengths on both sides of each size of the remaining length that is cheap to make.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![8 => vec(any::<u8>(), 0..40), 2 => vec(any::<u8>(), 90..140), 1 => vec(any::<u8>(), 16_300..16_400)]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9/_.-]{0,40}", "[^\\x00]{0,12}", Just("\u{feff}x".to_owned())]
}

fn topic() -> impl Strategy<Value = String> {
    prop_oneof!["devices/[a-z0-9]{1,9}/messages/events/[a-z%$.=&]{0,70}", "[^\\x00+#]{1,12}", Just("/".to_owned())]
}

fn filter() -> impl Strategy<Value = String> {
    prop_oneof![
        vec(prop_oneof![3 => "[^\\x00+#/]{0,6}", 1 => Just("+".to_owned())], 1..5)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("not empty", |filter| !filter.is_empty()),
        vec("[a-z]{0,3}", 0..4).prop_map(|mut levels| {
            levels.push("#".to_owned());
            levels.join("/")
        }),
        Just("$share/group/t".to_owned()),
        Just("$share/".to_owned()),
    ]
}

/// SplitMix64: the same numbers for the same seed, everywhere.
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// Changes `bytes` in one to four places, most often to values that mean something in MQTT.
pub(crate) fn spoil(bytes: &mut Vec<u8>, chance: &mut Chance) {
    const TELLING: [u8; 18] =
        [0, 1, 2, 3, 4, 0x10, 0x23, 0x2b, 0x2f, 0x30, 0x3a, 0x7f, 0x80, 0x82, 0xa2, 0xc0, 0xed, 0xff];
    for _ in 0..=chance.below(4) {
        if bytes.is_empty() {
            return;
        }
        // the header and the first fields decide most
        let reach = if chance.below(2) == 0 { bytes.len() } else { bytes.len().min(16) };
        let at = chance.below(reach);
        let telling = TELLING[chance.below(TELLING.len())];
        match chance.below(6) {
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes[at] = telling,
            2 => bytes[at] = chance.next() as u8,
            3 => bytes.insert(at, telling),
            4 => drop(bytes.remove(at)),
            _ => bytes.truncate(at),
        }
    }
}
