//! The other side, by hand: frames made and read with `fe2o3-amqp-types`, so that whatever the endpoint writes is
//! judged by another codec. What was written and what was told become short lines that tables can hold.

use amqp_endpoint::{Attach as Wish, Cause, Config, Endpoint, Event, LinkId, Outcome, SessionId};
use fe2o3_amqp_types::definitions::{Error, ErrorCondition, Handle, ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp_types::messaging::{DeliveryState, Source, Target, TargetArchetype};
use fe2o3_amqp_types::performatives::{
    Attach, Begin, Close, Detach, Disposition, End, Flow, Open, Performative, Transfer,
};
use serde::Deserialize;
use serde_amqp::primitives::Symbol;

pub(crate) const HEADER: &[u8] = b"AMQP\x00\x01\x00\x00";
pub(crate) const SASL_HEADER: &[u8] = b"AMQP\x03\x01\x00\x00";

/// The peer's channel of the first session; ours is 0.
pub(crate) const CHANNEL: u16 = 3;

/// A frame of type 0.
pub(crate) fn frame(channel: u16, performative: impl Into<Body>, payload: &[u8]) -> Vec<u8> {
    raw_frame(0, channel, &[&performative.into().0, payload].concat())
}

pub(crate) fn raw_frame(kind: u8, channel: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (8 + body.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(&[2, kind]);
    bytes.extend_from_slice(&channel.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) struct Body(Vec<u8>);

macro_rules! body_from {
    ($($performative:ident),*) => {
        $(impl From<$performative> for Body {
            fn from(performative: $performative) -> Self {
                Body(serde_amqp::to_vec(&performative).unwrap())
            }
        })*
    };
}
body_from!(Open, Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close);

pub(crate) fn open() -> Open {
    Open {
        container_id: "peer".into(),
        hostname: None,
        max_frame_size: 65_536.into(),
        channel_max: 8191.into(),
        idle_time_out: None,
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

pub(crate) fn begin(remote_channel: Option<u16>) -> Begin {
    Begin {
        remote_channel,
        next_outgoing_id: 100,
        incoming_window: 5000,
        outgoing_window: 5000,
        handle_max: Handle(u32::MAX),
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// The answer to one of our ATTACHes; `role` is the peer's.
pub(crate) fn attach(name: &str, handle: u32, role: Role, address: &str) -> Attach {
    Attach {
        name: name.into(),
        handle: Handle(handle),
        initial_delivery_count: (role == Role::Sender).then_some(0),
        role,
        snd_settle_mode: SenderSettleMode::Unsettled,
        rcv_settle_mode: ReceiverSettleMode::First,
        source: Some(Box::new(Source { address: Some(address.into()), ..Source::default() })),
        target: Some(Box::new(TargetArchetype::Target(Target { address: Some(address.into()), ..Target::default() }))),
        unsettled: None,
        incomplete_unsettled: false,
        max_message_size: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// A session FLOW that repeats the state at the start.
pub(crate) fn flow() -> Flow {
    Flow {
        next_incoming_id: Some(0),
        incoming_window: 5000,
        next_outgoing_id: 100,
        outgoing_window: 5000,
        handle: None,
        delivery_count: None,
        link_credit: None,
        available: None,
        drain: false,
        echo: false,
        properties: None,
    }
}

pub(crate) fn credit(handle: u32, delivery_count: u32, credit: u32) -> Flow {
    Flow { handle: Some(Handle(handle)), delivery_count: Some(delivery_count), link_credit: Some(credit), ..flow() }
}

pub(crate) fn transfer(handle: u32, id: u32) -> Transfer {
    Transfer {
        handle: Handle(handle),
        delivery_id: Some(id),
        delivery_tag: Some(vec![id as u8].into()),
        message_format: Some(0),
        settled: Some(false),
        more: false,
        rcv_settle_mode: None,
        state: None,
        resume: false,
        aborted: false,
        batchable: false,
    }
}

/// What a receiver says of our deliveries.
pub(crate) fn disposition(first: u32, last: u32, state: Option<DeliveryState>) -> Disposition {
    Disposition { role: Role::Receiver, first, last: Some(last), settled: true, state, batchable: false }
}

pub(crate) fn detach(handle: u32, error: Option<Error>) -> Detach {
    Detach { handle: Handle(handle), closed: true, error }
}

pub(crate) fn error(condition: &str) -> Error {
    Error { condition: ErrorCondition::Custom(Symbol::from(condition)), description: None, info: None }
}

/// Endpoint and peer in one room.
pub(crate) struct Room {
    pub(crate) endpoint: Endpoint,
    pub(crate) now: u64,
}

pub(crate) fn config() -> Config {
    Config { sessions_max: 10, links_per_session_max: 100, ..Config::new("us", "host") }
}

impl Room {
    /// Nothing has been said yet; what the endpoint opens with is waiting.
    pub(crate) fn new(config: Config) -> Self {
        Self { endpoint: Endpoint::new(config, 0), now: 0 }
    }

    /// OPEN and one session (ours 0, theirs [`CHANNEL`]).
    pub(crate) fn begun(config: Config) -> (Self, SessionId) {
        Self::begun_with(config, open(), begin(Some(0)))
    }

    pub(crate) fn begun_with(config: Config, open: Open, begin: Begin) -> (Self, SessionId) {
        let mut room = Self::new(config);
        let session = room.endpoint.begin().unwrap();
        room.feed(&[HEADER, &frame(0, open, &[]), &frame(CHANNEL, begin, &[])].concat());
        room.sent();
        room.told();
        (room, session)
    }

    /// A sender of ours with handle and user `n`, credit 100.
    pub(crate) fn sender(&mut self, session: SessionId, n: u32) -> LinkId {
        let link = self.endpoint.attach_sender(session, Wish::new(format!("s{n}"), "node"), u64::from(n)).unwrap();
        self.hear(CHANNEL, attach(&format!("s{n}"), n, Role::Receiver, "node"));
        self.hear(CHANNEL, credit(n, 0, 100));
        self.sent();
        self.told();
        link
    }

    /// A receiver of ours with handle and user `n`, credit 10.
    pub(crate) fn receiver(&mut self, session: SessionId, n: u32, wish: Wish) -> LinkId {
        let name = wish.name.clone();
        let link = self.endpoint.attach_receiver(session, wish, u64::from(n)).unwrap();
        self.hear(CHANNEL, attach(&name, n, Role::Sender, "node"));
        self.endpoint.grant(link, 10);
        self.sent();
        self.told();
        link
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.endpoint.handle_input(bytes, self.now);
    }

    pub(crate) fn hear(&mut self, channel: u16, performative: impl Into<Body>) {
        self.feed(&frame(channel, performative, &[]));
    }

    /// What the endpoint has written since the last time.
    pub(crate) fn sent(&mut self) -> Vec<String> {
        lines(&std::mem::take(self.endpoint.output()))
    }

    /// What the endpoint has told since the last time.
    pub(crate) fn told(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.endpoint.next_event()).map(|event| told(&event)).collect()
    }
}

/// Frames as lines.
pub(crate) fn lines(mut bytes: &[u8]) -> Vec<String> {
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        if let Some(rest) = bytes.strip_prefix(b"AMQP") {
            lines.push(format!("header {}", rest[0]));
            bytes = &rest[4..];
            continue;
        }
        let size = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
        let (frame, rest) = bytes.split_at(size);
        bytes = rest;
        assert_eq!(frame[4], 2, "data offset");
        let channel = u16::from_be_bytes([frame[6], frame[7]]);
        match (frame[5], &frame[8..]) {
            (1, body) => lines.push(sasl_line(body)),
            (0, []) => lines.push("heartbeat".into()),
            (0, body) => {
                let (performative, payload) = read(body);
                lines.push(line(channel, &performative, payload));
            }
            other => panic!("frame type {}", other.0),
        }
    }
    lines
}

/// A performative by the other codec, and what follows it.
pub(crate) fn read(mut body: &[u8]) -> (Performative, &[u8]) {
    let mut deserializer = serde_amqp::de::Deserializer::new(serde_amqp::read::IoReader::new(&mut body));
    let performative = Performative::deserialize(&mut deserializer).unwrap();
    drop(deserializer);
    (performative, body)
}

fn sasl_line(body: &[u8]) -> String {
    match body[2] {
        0x41 => {
            let init: fe2o3_amqp_types::sasl::SaslInit = serde_amqp::from_slice(body).unwrap();
            let response = init.initial_response.map(|r| String::from_utf8(r.into_vec()).unwrap());
            format!("init {} {response:?} {}", init.mechanism.as_str(), init.hostname.unwrap())
        }
        0x43 => "response".into(),
        other => panic!("sasl frame {other:x}"),
    }
}

fn line(channel: u16, performative: &Performative, payload: &[u8]) -> String {
    match performative {
        Performative::Open(open) => format!("open {} {}", open.container_id, open.max_frame_size.0),
        Performative::Begin(begin) => format!("begin {channel} for {:?}", begin.remote_channel),
        Performative::Attach(attach) => {
            let node = match (&attach.role, &attach.source, &attach.target) {
                (Role::Sender, _, Some(target)) => match &**target {
                    TargetArchetype::Target(target) => target.address.clone(),
                },
                (Role::Receiver, Some(source), _) => source.address.clone(),
                _ => None,
            };
            format!("attach {channel}/{} {:?} {} {node:?}", attach.handle.0, attach.role, attach.name)
        }
        Performative::Flow(f) => {
            let link = f.handle.as_ref().map_or_else(String::new, |handle| {
                format!(" link {} {:?}+{:?}", handle.0, f.delivery_count, f.link_credit)
            });
            format!("flow {channel} in {:?}+{} out {}{link}", f.next_incoming_id, f.incoming_window, f.next_outgoing_id)
        }
        Performative::Transfer(t) => {
            let settled = if t.settled == Some(true) { " settled" } else { "" };
            let more = if t.more { " more" } else { "" };
            format!("transfer {channel}/{} {:?} {}B{settled}{more}", t.handle.0, t.delivery_id, payload.len())
        }
        Performative::Disposition(d) => {
            let settled = if d.settled { " settled" } else { "" };
            let state = d.state.as_ref().map_or_else(|| "none".into(), state_line);
            format!("disposition {channel} {:?} {}..{} {state}{settled}", d.role, d.first, d.last.unwrap_or(d.first))
        }
        Performative::Detach(detach) => {
            assert!(detach.closed, "we never suspend");
            format!("detach {channel}/{}{}", detach.handle.0, error_line(detach.error.as_ref()))
        }
        Performative::End(end) => format!("end {channel}{}", error_line(end.error.as_ref())),
        Performative::Close(close) => format!("close{}", error_line(close.error.as_ref())),
    }
}

fn state_line(state: &DeliveryState) -> String {
    match state {
        DeliveryState::Accepted(_) => "accepted".into(),
        DeliveryState::Released(_) => "released".into(),
        DeliveryState::Rejected(rejected) => format!("rejected{}", error_line(rejected.error.as_ref())),
        other => format!("{other:?}"),
    }
}

fn error_line(error: Option<&Error>) -> String {
    error.map_or_else(String::new, |error| {
        let condition = serde_amqp::to_vec(&error.condition).unwrap();
        format!(" {}", std::str::from_utf8(&condition[2..]).unwrap())
    })
}

/// An event as a line.
pub(crate) fn told(event: &Event) -> String {
    match event {
        Event::Opened(peer) => {
            format!(
                "opened {} {} {} {}",
                peer.container_id, peer.frame_bytes_max, peer.sessions_max, peer.idle_timeout_ms
            )
        }
        Event::SessionBegun { links_max, .. } => format!("begun {links_max}"),
        Event::SessionEnded { cause, .. } => format!("ended {}", cause_line(cause)),
        Event::Attached { user, .. } => format!("attached {user}"),
        Event::AttachRefused { user, cause, .. } => format!("refused {user} {}", cause_line(cause)),
        Event::Detached { user, cause, .. } => format!("detached {user} {}", cause_line(cause)),
        Event::Sendable { user, .. } => format!("sendable {user}"),
        Event::Settled { user, token, outcome, .. } => format!("settled {user}/{token} {}", outcome_line(outcome)),
        Event::Delivery(d) => {
            let settled = if d.settled { " settled" } else { "" };
            format!("delivery {}/{} {:?} {}B{settled}", d.user, d.id.0, &d.tag[..], d.message.len())
        }
        Event::Confirmed { user, id, outcome, .. } => format!("confirmed {user}/{} {}", id.0, outcome_line(outcome)),
        Event::Closed { cause } => format!("closed {}", cause_line(cause)),
    }
}

fn outcome_line(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Accepted => "accepted".into(),
        Outcome::Rejected(error) => {
            error.as_ref().map_or_else(|| "rejected".into(), |error| format!("rejected {}", error.condition))
        }
        Outcome::Released => "released".into(),
        Outcome::Modified { .. } => "modified".into(),
        Outcome::Lost => "lost".into(),
    }
}

fn cause_line(cause: &Cause) -> String {
    match cause {
        Cause::Remote(Some(error)) => format!("by peer {}", error.condition),
        Cause::Remote(None) => "by peer".into(),
        Cause::Violation(error) => format!("by us {}", error.condition),
        Cause::Header(header) => format!("header {}", header[4]),
        other => format!("{other:?}").to_lowercase(),
    }
}
