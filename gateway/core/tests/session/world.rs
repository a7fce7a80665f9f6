//! A session with its surroundings, for tests: packets pass through the codec both ways, effects are kept as owned values.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use gateway_core::{
    auth::{Refused, Verdict},
    codec::{
        DecodeError, Decoded, Packet, decode, decode_any, encode,
        packet::{Connect, ConnectCode, Publish, Subscribe, Unsubscribe, Will},
    },
    config::GatewayConfig,
    message::{Command, CommandTag, Outcome, PacketId, QoS, Refusal, Settlement, Telemetry},
    pipeline::Pipeline,
    session::{
        Context, Effect, Ended, Session,
        effect::{CloseCause, Slot},
    },
    settings::Settings,
    time::{Millis, Now, UnixSeconds},
};

pub(crate) const EVENTS: &str = "devices/d/messages/events/";
pub(crate) const COMMANDS: &str = "devices/d/messages/devicebound/#";
pub(crate) const WINDOW: u16 = 3;
/// The wall clock when the monotonic one is 0.
pub(crate) const EPOCH: u64 = 1_700_000_000;

/// An effect, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Authenticate(String),
    Connack(u8),
    Puback(u16),
    Suback(u16, Vec<u8>),
    Unsuback(u16),
    Pingresp,
    Publish { qos: u8, dup: bool, id: Option<u16>, topic: String, payload: String },
    Send { slot: u16, payload: String, properties: Vec<String> },
    OpenCommands(u32),
    CloseCommands,
    Settle(u64, Settlement),
    Close(CloseCause),
}

pub(crate) fn id(number: u16) -> PacketId {
    PacketId(number.try_into().unwrap())
}

pub(crate) fn settings() -> Settings {
    let text = "
upstream: {iotHub: {hostName: hub.example.com}}
tls: {secretName: serving}";
    let mut settings = GatewayConfig::parse(text).unwrap().check().unwrap();
    settings.limits.inflight_max = WINDOW;
    settings.limits.handshake_timeout = Duration::from_secs(10);
    settings.limits.keep_alive_max = Duration::from_secs(1767);
    settings.limits.token_expiry_grace = Duration::ZERO;
    settings.limits.clock_skew_max = Duration::from_mins(5);
    settings
}

/// A context of `settings`.
pub(crate) fn context(settings: Settings) -> Context {
    let pipeline = Pipeline::new(&settings);
    Context::new(Arc::new(settings), pipeline)
}

/// One session and all that it caused so far.
pub(crate) struct World {
    pub(crate) cx: Context,
    pub(crate) session: Session,
    pub(crate) now: Now,
    pub(crate) seen: Vec<Seen>,
}

/// How a CONNECT looks that is like any other but for these.
pub(crate) struct Dial {
    pub(crate) clean_session: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) client_id: &'static str,
    pub(crate) user_name: Option<&'static str>,
    pub(crate) will: Option<Will<'static>>,
}

pub(crate) const DIAL: Dial = Dial {
    clean_session: false,
    keep_alive_s: 60,
    client_id: "d",
    user_name: Some("hub.example.com/d/?api-version=2021-04-12"),
    will: None,
};

pub(crate) const WILL: Will<'static> =
    Will { topic: EVENTS, payload: b"farewell", qos: QoS::AtLeastOnce, retain: false };

/// A session whose CONNECT is still to come.
pub(crate) fn accepted() -> World {
    let now = Now { monotonic: Millis(0), unix: UnixSeconds(EPOCH) };
    let cx = context(settings());
    let session = Session::new(&cx.settings, now);
    World { cx, session, now, seen: Vec::new() }
}

/// A session that is let in, its first effects forgotten.
pub(crate) fn connected() -> World {
    accepted().connect(&DIAL).allow(None).then()
}

/// As [`connected`], with a Will.
pub(crate) fn connected_with_will() -> World {
    accepted().connect(&Dial { will: Some(WILL), ..DIAL }).allow(None).then()
}

/// As [`connected`], with the command filter subscribed at this QoS.
pub(crate) fn subscribed(qos: QoS) -> World {
    connected().subscribe(1, &[(COMMANDS, qos)]).opened(Ok(())).then()
}

/// Exactly these effects, in this order.
#[track_caller]
#[expect(clippy::needless_pass_by_value, reason = "a test is one expression: what happened, what came of it")]
pub(crate) fn check(world: World, expected: impl AsRef<[Seen]>) {
    assert_eq!(world.seen, expected.as_ref());
}

impl World {
    /// Forgets the effects so far.
    pub(crate) fn then(mut self) -> Self {
        self.seen.clear();
        self
    }

    pub(crate) fn packet(mut self, packet: &Packet<'_>) -> Self {
        assert!(self.session.wants_input(), "no packet is handed in while none is wanted");
        let mut bytes = Vec::new();
        encode(packet, &mut bytes).unwrap();
        let Decoded::Packet { packet, .. } = decode(&bytes, 1 << 20).unwrap() else { panic!("half a packet") };
        let seen = &mut self.seen;
        self.session.handle_packet(&mut self.cx, &packet, self.now, &mut |effect| seen.push(see(&effect)));
        self
    }

    pub(crate) fn connect(self, dial: &Dial) -> Self {
        self.packet(&Packet::Connect(Connect {
            clean_session: dial.clean_session,
            keep_alive_s: dial.keep_alive_s,
            client_id: dial.client_id,
            will: dial.will,
            user_name: dial.user_name,
            password: None,
        }))
    }

    pub(crate) fn verdict(mut self, verdict: &Verdict) -> Self {
        let seen = &mut self.seen;
        self.session.handle_verdict(&mut self.cx, verdict, self.now, &mut |effect| seen.push(see(&effect)));
        self
    }

    /// Lets it in until the wall clock shows `expires` (seconds after [`EPOCH`]).
    pub(crate) fn allow(self, expires: Option<u64>) -> Self {
        self.verdict(&Verdict::Allowed { expires: expires.map(|seconds| UnixSeconds(EPOCH + seconds)) })
    }

    pub(crate) fn refuse(self, refused: Refused) -> Self {
        self.verdict(&Verdict::Refused(refused))
    }

    pub(crate) fn publish(self, packet_id: u16, payload: &str) -> Self {
        self.publish_as(&at_least_once(packet_id, payload))
    }

    pub(crate) fn publish_qos_0(self, payload: &str) -> Self {
        self.publish_as(&Publish { qos: QoS::AtMostOnce, packet_id: None, ..at_least_once(1, payload) })
    }

    pub(crate) fn publish_as(self, publish: &Publish<'_>) -> Self {
        self.packet(&Packet::Publish(*publish))
    }

    pub(crate) fn subscribe(self, packet_id: u16, filters: &[(&str, QoS)]) -> Self {
        let mut room = Vec::new();
        let subscribe = Subscribe::new(id(packet_id), filters.iter().copied(), &mut room).unwrap();
        self.packet(&Packet::Subscribe(subscribe))
    }

    pub(crate) fn unsubscribe(self, packet_id: u16, filters: &[&str]) -> Self {
        let mut room = Vec::new();
        let unsubscribe = Unsubscribe::new(id(packet_id), filters.iter().copied(), &mut room).unwrap();
        self.packet(&Packet::Unsubscribe(unsubscribe))
    }

    pub(crate) fn malformed(mut self, error: &DecodeError) -> Self {
        let seen = &mut self.seen;
        self.session.handle_malformed(&mut self.cx, error, &mut |effect| seen.push(see(&effect)));
        self
    }

    pub(crate) fn outcome(mut self, slot: u16, outcome: &Outcome) -> Self {
        let seen = &mut self.seen;
        let out = &mut |effect: Effect<'_>| seen.push(see(&effect));
        self.session.handle_outcome(&mut self.cx, Slot(slot), outcome, self.now, out);
        self
    }

    pub(crate) fn hub_accepts(self, slot: u16) -> Self {
        self.outcome(slot, &Outcome::Accepted)
    }

    pub(crate) fn opened(mut self, opened: Result<(), Refusal>) -> Self {
        let seen = &mut self.seen;
        let out = &mut |effect: Effect<'_>| seen.push(see(&effect));
        self.session.handle_commands_opened(&mut self.cx, opened, self.now, out);
        self
    }

    pub(crate) fn command(self, tag: u64, qos: QoS) -> Self {
        self.command_as(&Command {
            tag: CommandTag(tag),
            bag: "k=v".into(),
            payload: Bytes::from_static(b"c"),
            qos,
            redelivered: false,
        })
    }

    pub(crate) fn command_as(mut self, command: &Command) -> Self {
        let seen = &mut self.seen;
        self.session.handle_command(command, &mut |effect| seen.push(see(&effect)));
        self
    }

    pub(crate) fn close(mut self, cause: CloseCause) -> Self {
        let seen = &mut self.seen;
        self.session.handle_close(&mut self.cx, cause, &mut |effect| seen.push(see(&effect)));
        self
    }

    pub(crate) fn drain(mut self, bound: Duration) -> Self {
        let deadline = self.now.monotonic.after(bound);
        let seen = &mut self.seen;
        self.session.handle_drain(&mut self.cx, deadline, &mut |effect| seen.push(see(&effect)));
        self
    }

    pub(crate) fn paused(mut self, paused: bool) -> Self {
        self.session.handle_input_paused(paused, self.now);
        self
    }

    /// Time goes by, in one step, and the timeout is handled as a connection would.
    pub(crate) fn wait(mut self, duration: Duration) -> Self {
        self.now.monotonic = self.now.monotonic.after(duration);
        self.now.unix = UnixSeconds(EPOCH + self.now.monotonic.0 / 1000);
        let seen = &mut self.seen;
        self.session.handle_timeout(&mut self.cx, self.now, &mut |effect| seen.push(see(&effect)));
        self
    }

    pub(crate) fn wait_ms(self, milliseconds: u64) -> Self {
        self.wait(Duration::from_millis(milliseconds))
    }

    pub(crate) fn ended(&self) -> Ended {
        self.session.ended().expect("the session has ended")
    }
}

pub(crate) fn at_least_once(packet_id: u16, payload: &str) -> Publish<'_> {
    Publish {
        dup: false,
        qos: QoS::AtLeastOnce,
        retain: false,
        topic: EVENTS,
        packet_id: Some(id(packet_id)),
        payload: payload.as_bytes(),
    }
}

pub(crate) fn connack(code: ConnectCode) -> Seen {
    Seen::Connack(code as u8)
}

pub(crate) fn send(slot: u16, payload: &str) -> Seen {
    Seen::Send { slot, payload: payload.to_owned(), properties: Vec::new() }
}

/// The Will of [`WILL`].
pub(crate) fn will() -> Seen {
    let properties = vec!["iothub-MessageType=Will".to_owned()];
    Seen::Send { slot: Slot::WILL.0, payload: "farewell".to_owned(), properties }
}

/// The command of [`World::command`] as the device gets it.
pub(crate) fn down(id: Option<u16>) -> Seen {
    Seen::Publish {
        qos: u8::from(id.is_some()),
        dup: false,
        id,
        topic: "devices/d/messages/devicebound/k=v".to_owned(),
        payload: "c".to_owned(),
    }
}

pub(crate) fn see(effect: &Effect<'_>) -> Seen {
    match effect {
        Effect::Authenticate(login) => Seen::Authenticate(login.identity.to_string()),
        Effect::Write(packet) => see_packet(packet),
        Effect::Send { slot, telemetry, .. } => {
            let payload = String::from_utf8(telemetry.payload.to_vec()).unwrap();
            Seen::Send { slot: slot.0, payload, properties: properties(telemetry) }
        }
        Effect::OpenCommands { credit } => Seen::OpenCommands(*credit),
        Effect::CloseCommands => Seen::CloseCommands,
        Effect::Settle(tag, settlement) => Seen::Settle(tag.0, *settlement),
        Effect::Close(cause) => Seen::Close(*cause),
    }
}

fn properties(telemetry: &Telemetry<'_>) -> Vec<String> {
    let text = telemetry.text;
    let value = |range: &Option<_>| range.as_ref().map_or("", |range| text.get(range)).to_owned();
    text.application.iter().map(|(name, range)| format!("{}={}", text.name(name), value(range))).collect()
}

/// What is written must be a packet that the codec reads back as it was meant.
fn see_packet(packet: &Packet<'_>) -> Seen {
    let mut bytes = Vec::new();
    encode(packet, &mut bytes).unwrap();
    let Ok(Decoded::Packet { packet: read, consumed }) = decode_any(&bytes, 1 << 20) else { panic!("{packet:?}") };
    assert_eq!((read, consumed), (*packet, bytes.len()));
    match read {
        Packet::ConnAck { session_present, code } => {
            assert!(!session_present, "no session is ever stored");
            Seen::Connack(code as u8)
        }
        Packet::PubAck(id) => Seen::Puback(id.0.get()),
        Packet::SubAck { packet_id, codes } => Seen::Suback(packet_id.0.get(), codes.to_vec()),
        Packet::UnsubAck(id) => Seen::Unsuback(id.0.get()),
        Packet::PingResp => Seen::Pingresp,
        Packet::Publish(publish) if publish.retain => panic!("nothing is ever retained: {publish:?}"),
        Packet::Publish(publish) => Seen::Publish {
            qos: publish.qos as u8,
            dup: publish.dup,
            id: publish.packet_id.map(|id| id.0.get()),
            topic: publish.topic.to_owned(),
            payload: String::from_utf8(publish.payload.to_vec()).unwrap(),
        },
        other => panic!("a server does not send {other:?}"),
    }
}
