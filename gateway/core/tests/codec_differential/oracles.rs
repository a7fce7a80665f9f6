//! The published codecs, each brought to one form: bytes → packet or nothing, packet → bytes or nothing.

use std::string::FromUtf8Error;

use bytes::{Bytes, BytesMut};
use gateway_core::{codec::packet::ConnectCode, message::QoS};

use crate::codec_support::{Owned, OwnedConnect, OwnedPublish, OwnedWill};

/// One published codec.
pub(crate) struct Oracle {
    pub(crate) name: &'static str,
    /// The packet at the start of the bytes; `None` if it is refused or not whole.
    pub(crate) read: fn(&[u8]) -> Option<Owned>,
    /// `None` if the codec has no value for it or will not write it.
    pub(crate) write: fn(&Owned) -> Option<Vec<u8>>,
}

pub(crate) const ORACLES: [Oracle; 3] = [
    Oracle { name: "rumqttd", read: rumqttd_codec::read, write: rumqttd_codec::write },
    Oracle { name: "rumqttc", read: rumqttc_codec::read, write: rumqttc_codec::write },
    Oracle { name: "mqtt-proto", read: mqtt_proto_codec::read, write: mqtt_proto_codec::write },
];

const LIMIT: usize = 100_000;

fn qos(level: u8) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][usize::from(level)]
}

/// The rumqtt codecs know an absent user name or password only as an empty one.
fn login_of(user_name: String, password: String) -> (Option<String>, Option<Vec<u8>>) {
    let present = |text: String| (!text.is_empty()).then_some(text);
    (present(user_name), present(password).map(String::into_bytes))
}

/// The reverse; an error if the password is not text.
fn login_from(connect: &OwnedConnect) -> Result<Option<(String, String)>, FromUtf8Error> {
    let Some(user_name) = &connect.user_name else { return Ok(None) };
    let password = String::from_utf8(connect.password.clone().unwrap_or_default())?;
    Ok(Some((user_name.clone(), password)))
}

mod rumqttd_codec {
    use rumqttd::protocol::{
        ConnAck, Connect, ConnectReturnCode as Code, Disconnect, DisconnectReasonCode, Filter, LastWill, Login, Packet,
        PingReq, PingResp, Protocol, PubAck, PubAckReason, PubComp, PubCompReason, PubRec, PubRecReason, PubRel,
        PubRelReason, Publish, QoS, RetainForwardRule, SubAck, Subscribe, SubscribeReasonCode, UnsubAck, Unsubscribe,
        v4::V4,
    };

    use super::{
        Bytes, BytesMut, ConnectCode, LIMIT, Owned, OwnedConnect, OwnedPublish, OwnedWill, login_from, login_of,
    };

    pub(super) fn read(bytes: &[u8]) -> Option<Owned> {
        let packet = V4.read_mut(&mut BytesMut::from(bytes), LIMIT).ok()?;
        Some(match packet {
            Packet::Connect(connect, _, will, _, login) => Owned::Connect(from_connect(connect, will, login)?),
            Packet::ConnAck(ack, _) => Owned::ConnAck { session_present: ack.session_present, code: code_of(ack.code) },
            Packet::Publish(publish, _) => Owned::Publish(from_publish(&publish)?),
            Packet::PubAck(ack, _) => Owned::PubAck(ack.pkid),
            Packet::PubRec(ack, _) => Owned::PubRec(ack.pkid),
            Packet::PubRel(ack, _) => Owned::PubRel(ack.pkid),
            Packet::PubComp(ack, _) => Owned::PubComp(ack.pkid),
            Packet::Subscribe(subscribe, _) => Owned::Subscribe {
                packet_id: subscribe.pkid,
                filters: subscribe
                    .filters
                    .into_iter()
                    .map(|filter| (filter.path, super::qos(filter.qos as u8)))
                    .collect(),
            },
            Packet::SubAck(ack, _) => {
                Owned::SubAck { packet_id: ack.pkid, codes: ack.return_codes.into_iter().map(suback_code_of).collect() }
            }
            Packet::Unsubscribe(unsubscribe, _) => {
                Owned::Unsubscribe { packet_id: unsubscribe.pkid, filters: unsubscribe.filters }
            }
            Packet::UnsubAck(ack, _) => Owned::UnsubAck(ack.pkid),
            Packet::PingReq(_) => Owned::PingReq,
            Packet::PingResp(_) => Owned::PingResp,
            Packet::Disconnect(..) => Owned::Disconnect,
        })
    }

    pub(super) fn write(packet: &Owned) -> Option<Vec<u8>> {
        let packet = match packet.clone() {
            Owned::Connect(connect) => to_connect(connect)?,
            Owned::ConnAck { session_present, code } => {
                Packet::ConnAck(ConnAck { session_present, code: code_from(code) }, None)
            }
            Owned::Publish(publish) => Packet::Publish(to_publish(&publish), None),
            Owned::PubAck(pkid) => Packet::PubAck(PubAck { pkid, reason: PubAckReason::Success }, None),
            Owned::PubRec(pkid) => Packet::PubRec(PubRec { pkid, reason: PubRecReason::Success }, None),
            Owned::PubRel(pkid) => Packet::PubRel(PubRel { pkid, reason: PubRelReason::Success }, None),
            Owned::PubComp(pkid) => Packet::PubComp(PubComp { pkid, reason: PubCompReason::Success }, None),
            Owned::Subscribe { packet_id: pkid, filters } => {
                let filters = filters.into_iter().map(|(path, qos)| filter_from(path, qos as u8)).collect();
                Packet::Subscribe(Subscribe { pkid, filters }, None)
            }
            Owned::SubAck { packet_id: pkid, codes } => {
                Packet::SubAck(SubAck { pkid, return_codes: codes.into_iter().map(suback_code_from).collect() }, None)
            }
            Owned::Unsubscribe { packet_id: pkid, filters } => Packet::Unsubscribe(Unsubscribe { pkid, filters }, None),
            Owned::UnsubAck(pkid) => Packet::UnsubAck(UnsubAck { pkid, reasons: Vec::new() }, None),
            Owned::PingReq => Packet::PingReq(PingReq),
            Owned::PingResp => Packet::PingResp(PingResp),
            Owned::Disconnect => {
                Packet::Disconnect(Disconnect { reason_code: DisconnectReasonCode::NormalDisconnection }, None)
            }
        };
        let mut out = BytesMut::new();
        V4.write(packet, &mut out).ok()?;
        Some(out.to_vec())
    }

    fn from_connect(connect: Connect, will: Option<LastWill>, login: Option<Login>) -> Option<OwnedConnect> {
        let (user_name, password) = login.map_or((None, None), |login| login_of(login.username, login.password));
        let will = match will {
            None => None,
            Some(will) => Some(OwnedWill {
                // it hands the topic on unread
                topic: String::from_utf8(will.topic.to_vec()).ok()?,
                payload: will.message.to_vec(),
                qos: super::qos(will.qos as u8),
                retain: will.retain,
            }),
        };
        Some(OwnedConnect {
            clean_session: connect.clean_session,
            keep_alive_s: connect.keep_alive,
            client_id: connect.client_id,
            will,
            user_name,
            password,
        })
    }

    fn to_connect(connect: OwnedConnect) -> Option<Packet> {
        let login = login_from(&connect).ok()?.map(|(username, password)| Login { username, password });
        let will = connect.will.map(|will| LastWill {
            topic: will.topic.into(),
            message: will.payload.into(),
            qos: qos_from(will.qos as u8),
            retain: will.retain,
        });
        let OwnedConnect { keep_alive_s: keep_alive, client_id, clean_session, .. } = connect;
        Some(Packet::Connect(Connect { keep_alive, client_id, clean_session }, None, will, None, login))
    }

    /// Packet id, QoS and DUP are private; its log format shows them: first byte, id, topic length.
    fn from_publish(publish: &Publish) -> Option<OwnedPublish> {
        let log = publish.serialize();
        Some(OwnedPublish {
            dup: log[0] & 0b1000 != 0,
            qos: super::qos((log[0] >> 1) & 0b11),
            retain: publish.retain,
            topic: String::from_utf8(publish.topic.to_vec()).ok()?,
            packet_id: u16::from_be_bytes([log[1], log[2]]),
            payload: publish.payload.to_vec(),
        })
    }

    fn to_publish(publish: &OwnedPublish) -> Publish {
        let first = 0x30 | (u8::from(publish.dup) << 3) | ((publish.qos as u8) << 1) | u8::from(publish.retain);
        let mut log = vec![first];
        log.extend_from_slice(&publish.packet_id.to_be_bytes());
        log.extend_from_slice(&(publish.topic.len() as u16).to_be_bytes());
        log.extend_from_slice(publish.topic.as_bytes());
        log.extend_from_slice(&publish.payload);
        Publish::deserialize(Bytes::from(log))
    }

    fn filter_from(path: String, qos: u8) -> Filter {
        let retain_forward_rule = RetainForwardRule::OnEverySubscribe;
        Filter { path, qos: qos_from(qos), nolocal: false, preserve_retain: false, retain_forward_rule }
    }

    fn qos_from(level: u8) -> QoS {
        rumqttd::protocol::qos(level).expect("our QoS has 0, 1, 2")
    }

    const CODES: [(Code, ConnectCode); 6] = [
        (Code::Success, ConnectCode::Accepted),
        (Code::RefusedProtocolVersion, ConnectCode::UnacceptableProtocolVersion),
        (Code::ClientIdentifierNotValid, ConnectCode::IdentifierRejected),
        (Code::ServiceUnavailable, ConnectCode::ServerUnavailable),
        (Code::BadUserNamePassword, ConnectCode::BadUserNameOrPassword),
        (Code::NotAuthorized, ConnectCode::NotAuthorized),
    ];

    fn code_of(code: Code) -> ConnectCode {
        CODES.iter().find(|pair| pair.0 == code).expect("its v4 reader gives six codes").1
    }

    fn code_from(code: ConnectCode) -> Code {
        CODES.iter().find(|pair| pair.1 == code).expect("all six are listed").0
    }

    fn suback_code_of(code: SubscribeReasonCode) -> u8 {
        match code {
            SubscribeReasonCode::Success(qos) => qos as u8,
            _ => 0x80,
        }
    }

    fn suback_code_from(code: u8) -> SubscribeReasonCode {
        if code == 0x80 { SubscribeReasonCode::Failure } else { SubscribeReasonCode::Success(qos_from(code)) }
    }
}

mod rumqttc_codec {
    use rumqttc::{
        ConnAck, Connect, ConnectReturnCode as Code, LastWill, Login, Packet, Protocol, PubAck, PubComp, PubRec,
        PubRel, Publish, QoS, SubAck, Subscribe, SubscribeFilter, SubscribeReasonCode, UnsubAck, Unsubscribe,
    };

    use super::{BytesMut, ConnectCode, LIMIT, Owned, OwnedConnect, OwnedPublish, OwnedWill, login_from, login_of};

    pub(super) fn read(bytes: &[u8]) -> Option<Owned> {
        let packet = Packet::read(&mut BytesMut::from(bytes), LIMIT).ok()?;
        Some(match packet {
            Packet::Connect(connect) => Owned::Connect(from_connect(connect)),
            Packet::ConnAck(ack) => Owned::ConnAck {
                session_present: ack.session_present,
                code: ConnectCode::from_byte(ack.code as u8).expect("its codes are ours"),
            },
            Packet::Publish(publish) => Owned::Publish(OwnedPublish {
                dup: publish.dup,
                qos: super::qos(publish.qos as u8),
                retain: publish.retain,
                topic: publish.topic,
                packet_id: publish.pkid,
                payload: publish.payload.to_vec(),
            }),
            Packet::PubAck(ack) => Owned::PubAck(ack.pkid),
            Packet::PubRec(ack) => Owned::PubRec(ack.pkid),
            Packet::PubRel(ack) => Owned::PubRel(ack.pkid),
            Packet::PubComp(ack) => Owned::PubComp(ack.pkid),
            Packet::Subscribe(subscribe) => Owned::Subscribe {
                packet_id: subscribe.pkid,
                filters: subscribe
                    .filters
                    .into_iter()
                    .map(|filter| (filter.path, super::qos(filter.qos as u8)))
                    .collect(),
            },
            Packet::SubAck(ack) => {
                Owned::SubAck { packet_id: ack.pkid, codes: ack.return_codes.into_iter().map(suback_code_of).collect() }
            }
            Packet::Unsubscribe(unsubscribe) => {
                Owned::Unsubscribe { packet_id: unsubscribe.pkid, filters: unsubscribe.topics }
            }
            Packet::UnsubAck(ack) => Owned::UnsubAck(ack.pkid),
            Packet::PingReq => Owned::PingReq,
            Packet::PingResp => Owned::PingResp,
            Packet::Disconnect => Owned::Disconnect,
        })
    }

    pub(super) fn write(packet: &Owned) -> Option<Vec<u8>> {
        let packet = match packet.clone() {
            Owned::Connect(connect) => Packet::Connect(to_connect(connect)?),
            Owned::ConnAck { session_present, code } => {
                Packet::ConnAck(ConnAck { session_present, code: code_from(code) })
            }
            Owned::Publish(publish) => {
                let OwnedPublish { dup, qos, retain, topic, packet_id: pkid, payload } = publish;
                let (qos, payload) = (qos_from(qos as u8), payload.into());
                Packet::Publish(Publish { dup, qos, retain, topic, pkid, payload })
            }
            Owned::PubAck(pkid) => Packet::PubAck(PubAck { pkid }),
            Owned::PubRec(pkid) => Packet::PubRec(PubRec { pkid }),
            Owned::PubRel(pkid) => Packet::PubRel(PubRel { pkid }),
            Owned::PubComp(pkid) => Packet::PubComp(PubComp { pkid }),
            Owned::Subscribe { packet_id: pkid, filters } => {
                let filter = |(path, qos)| SubscribeFilter { path, qos: qos_from(qos as u8) };
                Packet::Subscribe(Subscribe { pkid, filters: filters.into_iter().map(filter).collect() })
            }
            Owned::SubAck { packet_id: pkid, codes } => {
                Packet::SubAck(SubAck { pkid, return_codes: codes.into_iter().map(suback_code_from).collect() })
            }
            Owned::Unsubscribe { packet_id: pkid, filters: topics } => {
                Packet::Unsubscribe(Unsubscribe { pkid, topics })
            }
            Owned::UnsubAck(pkid) => Packet::UnsubAck(UnsubAck { pkid }),
            Owned::PingReq => Packet::PingReq,
            Owned::PingResp => Packet::PingResp,
            Owned::Disconnect => Packet::Disconnect,
        };
        let mut out = BytesMut::new();
        packet.write(&mut out, LIMIT).ok()?;
        Some(out.to_vec())
    }

    fn from_connect(connect: Connect) -> OwnedConnect {
        let (user_name, password) =
            connect.login.map_or((None, None), |login| login_of(login.username, login.password));
        let will = connect.last_will.map(|will| OwnedWill {
            topic: will.topic,
            payload: will.message.to_vec(),
            qos: super::qos(will.qos as u8),
            retain: will.retain,
        });
        OwnedConnect {
            clean_session: connect.clean_session,
            keep_alive_s: connect.keep_alive,
            client_id: connect.client_id,
            will,
            user_name,
            password,
        }
    }

    fn to_connect(connect: OwnedConnect) -> Option<Connect> {
        let login = login_from(&connect).ok()?.map(|(username, password)| Login { username, password });
        let last_will =
            connect.will.map(|will| LastWill::new(will.topic, will.payload, qos_from(will.qos as u8), will.retain));
        let OwnedConnect { keep_alive_s: keep_alive, client_id, clean_session, .. } = connect;
        Some(Connect { protocol: Protocol::V4, keep_alive, client_id, clean_session, last_will, login })
    }

    fn qos_from(level: u8) -> QoS {
        rumqttc::qos(level).expect("our QoS has 0, 1, 2")
    }

    fn code_from(code: ConnectCode) -> Code {
        match code {
            ConnectCode::Accepted => Code::Success,
            ConnectCode::UnacceptableProtocolVersion => Code::RefusedProtocolVersion,
            ConnectCode::IdentifierRejected => Code::BadClientId,
            ConnectCode::ServerUnavailable => Code::ServiceUnavailable,
            ConnectCode::BadUserNameOrPassword => Code::BadUserNamePassword,
            ConnectCode::NotAuthorized => Code::NotAuthorized,
        }
    }

    fn suback_code_of(code: SubscribeReasonCode) -> u8 {
        match code {
            SubscribeReasonCode::Success(qos) => qos as u8,
            SubscribeReasonCode::Failure => 0x80,
        }
    }

    fn suback_code_from(code: u8) -> SubscribeReasonCode {
        if code == 0x80 { SubscribeReasonCode::Failure } else { SubscribeReasonCode::Success(qos_from(code)) }
    }
}

mod mqtt_proto_codec {
    use mqtt_proto::{
        Pid, Protocol, QoS, QosPid, TopicFilter, TopicName,
        v3::{
            Connack, Connect, ConnectReturnCode as Code, LastWill, Packet, Publish, Suback, Subscribe,
            SubscribeReturnCode, Unsubscribe,
        },
    };

    use super::{ConnectCode, Owned, OwnedConnect, OwnedPublish, OwnedWill};

    pub(super) fn read(bytes: &[u8]) -> Option<Owned> {
        Some(match Packet::decode(bytes).ok()?? {
            Packet::Connect(connect) => Owned::Connect(from_connect(connect)),
            Packet::Connack(ack) => Owned::ConnAck {
                session_present: ack.session_present,
                code: ConnectCode::from_byte(ack.code as u8).expect("its codes are ours"),
            },
            Packet::Publish(publish) => Owned::Publish(OwnedPublish {
                dup: publish.dup,
                qos: super::qos(publish.qos_pid.qos() as u8),
                retain: publish.retain,
                topic: publish.topic_name.to_string(),
                packet_id: publish.qos_pid.pid().map_or(0, Pid::value),
                payload: publish.payload.to_vec(),
            }),
            Packet::Puback(pid) => Owned::PubAck(pid.value()),
            Packet::Pubrec(pid) => Owned::PubRec(pid.value()),
            Packet::Pubrel(pid) => Owned::PubRel(pid.value()),
            Packet::Pubcomp(pid) => Owned::PubComp(pid.value()),
            Packet::Subscribe(subscribe) => Owned::Subscribe {
                packet_id: subscribe.pid.value(),
                filters: subscribe
                    .topics
                    .iter()
                    .map(|(path, qos)| (path.to_string(), super::qos(*qos as u8)))
                    .collect(),
            },
            Packet::Suback(ack) => Owned::SubAck {
                packet_id: ack.pid.value(),
                codes: ack.topics.into_iter().map(suback_code_of).collect(),
            },
            Packet::Unsubscribe(unsubscribe) => Owned::Unsubscribe {
                packet_id: unsubscribe.pid.value(),
                filters: unsubscribe.topics.iter().map(ToString::to_string).collect(),
            },
            Packet::Unsuback(pid) => Owned::UnsubAck(pid.value()),
            Packet::Pingreq => Owned::PingReq,
            Packet::Pingresp => Owned::PingResp,
            Packet::Disconnect => Owned::Disconnect,
        })
    }

    pub(super) fn write(packet: &Owned) -> Option<Vec<u8>> {
        let packet = match packet.clone() {
            Owned::Connect(connect) => Packet::Connect(to_connect(connect)?),
            Owned::ConnAck { session_present, code } => {
                Packet::Connack(Connack::new(session_present, Code::from_u8(code as u8).ok()?))
            }
            Owned::Publish(publish) => Packet::Publish(to_publish(publish)?),
            Owned::PubAck(id) => Packet::Puback(Pid::try_from(id).ok()?),
            Owned::PubRec(id) => Packet::Pubrec(Pid::try_from(id).ok()?),
            Owned::PubRel(id) => Packet::Pubrel(Pid::try_from(id).ok()?),
            Owned::PubComp(id) => Packet::Pubcomp(Pid::try_from(id).ok()?),
            Owned::Subscribe { packet_id, filters } => {
                let topics = filters.iter().map(|(path, qos)| Some((filter(path)?, qos_from(*qos as u8)?)));
                Packet::Subscribe(Subscribe::new(Pid::try_from(packet_id).ok()?, topics.collect::<Option<_>>()?))
            }
            Owned::SubAck { packet_id, codes } => {
                let codes = codes.into_iter().map(|code| SubscribeReturnCode::from_u8(code).ok());
                Packet::Suback(Suback::new(Pid::try_from(packet_id).ok()?, codes.collect::<Option<_>>()?))
            }
            Owned::Unsubscribe { packet_id, filters } => {
                let topics = filters.iter().map(|path| filter(path)).collect::<Option<_>>()?;
                Packet::Unsubscribe(Unsubscribe::new(Pid::try_from(packet_id).ok()?, topics))
            }
            Owned::UnsubAck(id) => Packet::Unsuback(Pid::try_from(id).ok()?),
            Owned::PingReq => Packet::Pingreq,
            Owned::PingResp => Packet::Pingresp,
            Owned::Disconnect => Packet::Disconnect,
        };
        Some(packet.encode().ok()?.as_ref().to_vec())
    }

    fn from_connect(connect: Connect) -> OwnedConnect {
        let will = connect.last_will.map(|will| OwnedWill {
            topic: will.topic_name.to_string(),
            payload: will.message.to_vec(),
            qos: super::qos(will.qos as u8),
            retain: will.retain,
        });
        OwnedConnect {
            clean_session: connect.clean_session,
            keep_alive_s: connect.keep_alive,
            client_id: connect.client_id.to_string(),
            will,
            user_name: connect.username.map(|name| name.to_string()),
            password: connect.password.map(|password| password.to_vec()),
        }
    }

    fn to_connect(connect: OwnedConnect) -> Option<Connect> {
        let last_will = match connect.will {
            None => None,
            Some(will) => Some(LastWill {
                qos: qos_from(will.qos as u8)?,
                retain: will.retain,
                topic_name: TopicName::try_from(will.topic.as_str()).ok()?,
                message: will.payload.into(),
            }),
        };
        Some(Connect {
            protocol: Protocol::V311,
            clean_session: connect.clean_session,
            keep_alive: connect.keep_alive_s,
            client_id: connect.client_id.into(),
            last_will,
            username: connect.user_name.map(Into::into),
            password: connect.password.map(Into::into),
        })
    }

    fn to_publish(publish: OwnedPublish) -> Option<Publish> {
        let id = || Pid::try_from(publish.packet_id).ok();
        let qos_pid = match publish.qos as u8 {
            0 => QosPid::Level0,
            1 => QosPid::Level1(id()?),
            _ => QosPid::Level2(id()?),
        };
        let topic_name = TopicName::try_from(publish.topic.as_str()).ok()?;
        let (dup, retain, payload) = (publish.dup, publish.retain, publish.payload.into());
        Some(Publish { dup, retain, qos_pid, topic_name, payload })
    }

    fn filter(path: &str) -> Option<TopicFilter> {
        TopicFilter::try_from(path).ok()
    }

    fn qos_from(level: u8) -> Option<QoS> {
        QoS::from_u8(level).ok()
    }

    fn suback_code_of(code: SubscribeReturnCode) -> u8 {
        match code {
            SubscribeReturnCode::MaxLevel0 => 0,
            SubscribeReturnCode::MaxLevel1 => 1,
            SubscribeReturnCode::MaxLevel2 => 2,
            SubscribeReturnCode::Failure => 0x80,
        }
    }
}
