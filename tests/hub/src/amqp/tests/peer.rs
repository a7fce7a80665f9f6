//! For tests: a peer that speaks to one [`Connection`] frame by frame, in virtual time, without a socket.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::definitions::{Error, Fields, ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp_types::messaging::{
    Accepted, ApplicationProperties, DeliveryState, MessageId, Properties, Source, Target,
};
use fe2o3_amqp_types::performatives::{Attach, Begin, Close, Detach, Disposition, End, Flow, Open, Transfer};
use fe2o3_amqp_types::primitives::SimpleValue;
use serde::Serialize;
use serde_amqp::Value;
use serde_amqp::primitives::{OrderedMap, Symbol};

use crate::amqp::connection::{Connection, Now};
use crate::amqp::frame::{self, FrameType, Performative};
use crate::amqp::message::{Message, Outgoing};
use crate::amqp::{AmqpSettings, Transport, error};
use crate::domain::{ClientCertificate, Domain, Identity, Registration, Settings, sign};

pub(crate) const HUB: &str = "hub.example.com";

pub(crate) struct Peer {
    pub(crate) connection: Connection,
    pub(crate) domain: Arc<Domain>,
    pub(crate) now: Now,
    next_delivery_id: u32,
    cbs_answers: u32,
}

impl Peer {
    /// Header and OPEN exchanged.
    pub(crate) fn connected(settings: AmqpSettings) -> Self {
        let domain = Domain::new(HUB, Settings::default()).expect("settings are sound");
        let mut peer = Self::on(domain, settings);
        peer.write(b"AMQP\x00\x01\x00\x00");
        peer.put(0, &open());
        assert_eq!(peer.take_bytes(8), b"AMQP\x00\x01\x00\x00");
        assert!(matches!(peer.take().as_slice(), [(0, Performative::Open(_))]));
        peer
    }

    /// The same, and with a session on channel 0 and a policy token for all devices.
    pub(crate) fn in_session(settings: AmqpSettings) -> Self {
        let mut peer = Self::connected(settings);
        peer.begin(0);
        peer.attach_cbs();
        let token = peer.policy_token("iothubowner");
        assert_eq!(peer.put_token(&token, "azure-devices.net:sastoken").0, 200);
        peer
    }

    /// Bytes may come.
    pub(crate) fn on(domain: Arc<Domain>, settings: AmqpSettings) -> Self {
        Self::shown(domain, settings, None)
    }

    /// The same from a client that showed a certificate in TLS.
    pub(crate) fn shown(
        domain: Arc<Domain>,
        settings: AmqpSettings,
        client_certificate: Option<ClientCertificate>,
    ) -> Self {
        let now = Now { unix_ms: domain.clock.now_ms(), tick: 0 };
        let transport = Transport { name: "AMQP", client_certificate };
        let connection = Connection::new(domain.clone(), Arc::new(settings), transport, now);
        Self { connection, domain, now, next_delivery_id: 0, cbs_answers: 0 }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.connection.input.extend_from_slice(bytes);
        self.connection.handle_input(self.now);
    }

    pub(crate) fn put<T: Serialize>(&mut self, channel: u16, performative: &T) {
        self.put_with(channel, performative, &[]);
    }

    pub(crate) fn put_with<T: Serialize>(&mut self, channel: u16, performative: &T, payload: &[u8]) {
        let mut bytes = BytesMut::new();
        frame::put(&mut bytes, FrameType::Amqp, channel, performative, payload);
        self.write(&bytes);
    }

    pub(crate) fn take_bytes(&mut self, bytes: usize) -> Vec<u8> {
        let taken = self.connection.out.split_to(bytes).to_vec();
        self.connection.unflushed += bytes as u64;
        self.connection.handle_flushed(self.now);
        taken
    }

    /// All frames that the hub has sent, heartbeats left out.
    pub(crate) fn take(&mut self) -> Vec<(u16, Performative)> {
        let mut frames = Vec::new();
        self.connection.handle_mail(self.now);
        while !self.connection.out.is_empty() {
            let mut out = std::mem::take(&mut self.connection.out);
            self.connection.unflushed += out.len() as u64;
            while let Some(frame) = frame::take(&mut out, FrameType::Amqp, usize::MAX).expect("hub's frames are sound")
            {
                if !frame.body.is_empty() {
                    frames.push((frame.channel, frame::decode(frame.body).expect("hub's frames are sound")));
                }
            }
            assert!(out.is_empty(), "the hub writes whole frames");
            self.connection.handle_flushed(self.now);
        }
        frames
    }

    /// Time passes; due timers fire one after another.
    pub(crate) fn wait(&mut self, ms: u64) {
        let end = self.now.tick + ms;
        while let Some(due) = self.connection.poll_timeout().filter(|due| *due <= end) {
            let step = due.saturating_sub(self.now.tick);
            self.advance(step);
            self.connection.handle_timeout(self.now);
        }
        self.advance(end - self.now.tick);
    }

    fn advance(&mut self, ms: u64) {
        self.now = Now { unix_ms: self.now.unix_ms + ms, tick: self.now.tick + ms };
        self.domain.clock.advance(Duration::from_millis(ms));
        self.domain.c2d.tick(self.now.unix_ms);
        self.domain.feedback.tick(self.now.unix_ms);
    }

    pub(crate) fn begin(&mut self, channel: u16) -> Begin {
        self.put(channel, &begin(2048));
        match self.take().pop() {
            Some((_, Performative::Begin(begin))) => *begin,
            other => panic!("no BEGIN but {other:?}"),
        }
    }

    /// Attaches a link; the frames that came back.
    pub(crate) fn attach(&mut self, channel: u16, attach: &Attach) -> Vec<Performative> {
        self.put(channel, attach);
        self.frames()
    }

    pub(crate) fn frames(&mut self) -> Vec<Performative> {
        self.take().into_iter().map(|(_, performative)| performative).collect()
    }

    pub(crate) fn attach_cbs(&mut self) {
        self.attach(0, &sender(100, "cbs", "$cbs"));
        self.attach(0, &receiver(101, "cbs", "$cbs"));
        self.give_credit(0, 101, 100);
    }

    pub(crate) fn give_credit(&mut self, channel: u16, handle: u32, credit: u32) {
        self.put(channel, &flow(handle, 0, credit));
    }

    /// Sends a message; its delivery-id.
    pub(crate) fn send(&mut self, channel: u16, handle: u32, message: &Outgoing) -> u32 {
        self.send_payload(channel, handle, &message.encode())
    }

    pub(crate) fn send_payload(&mut self, channel: u16, handle: u32, payload: &[u8]) -> u32 {
        let delivery_id = self.next_delivery_id;
        self.next_delivery_id += 1;
        self.put_with(channel, &transfer(handle, delivery_id), payload);
        delivery_id
    }

    /// The same in frames of at most `chunk` bytes.
    pub(crate) fn send_payload_in_frames(&mut self, channel: u16, handle: u32, payload: &[u8], chunk: usize) -> u32 {
        let delivery_id = self.next_delivery_id;
        self.next_delivery_id += 1;
        let chunks = payload.chunks(chunk);
        let last = chunks.len() - 1;
        for (n, chunk) in chunks.enumerate() {
            self.put_with(channel, &Transfer { more: n < last, ..transfer(handle, delivery_id) }, chunk);
        }
        delivery_id
    }

    /// Puts a token and reads the verdict: status and description.
    pub(crate) fn put_token(&mut self, token: &str, kind: &str) -> (i32, String) {
        let id = MessageId::String("cbs-1".into());
        let answer = self.put_token_as(id.clone(), token, kind);
        let properties = answer.application_properties.expect("status is there").0;
        assert_eq!(answer.properties.and_then(|properties| properties.correlation_id), Some(id));
        match (properties.get("status-code"), properties.get("status-description")) {
            (Some(SimpleValue::Int(code)), Some(SimpleValue::String(text))) => (*code, text.clone()),
            other => panic!("no status but {other:?}"),
        }
    }

    pub(crate) fn put_token_as(&mut self, id: MessageId, token: &str, kind: &str) -> Message {
        self.send_payload(0, 100, &put_token(id, token, kind));
        self.messages().pop().expect("an answer")
    }

    pub(crate) fn send_token(&mut self, channel: u16, handle: u32, token: &str) {
        let payload = put_token(MessageId::Ulong(1), token, "azure-devices.net:sastoken");
        self.send_payload(channel, handle, &payload);
    }

    /// Keeps the hub's credit on `$cbs` up: 100 more than it has sent.
    pub(crate) fn give_credit_of_cbs(&mut self) {
        self.cbs_answers += 1;
        self.put(0, &flow(101, self.cbs_answers, 100));
    }

    /// The messages among the frames that the hub has sent.
    pub(crate) fn messages(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        let mut partial = BytesMut::new();
        for performative in self.frames() {
            if let Performative::Transfer(transfer, payload) = performative {
                partial.extend_from_slice(&payload);
                if !transfer.more {
                    messages.push(Message::parse(partial.split().freeze()).expect("hub's messages are sound"));
                }
            }
        }
        messages
    }

    pub(crate) fn register(&mut self, id: &str) -> Identity {
        let identity = Identity::device(id);
        self.domain.create_identity(Registration::new(identity.clone())).expect("id is free");
        identity
    }

    pub(crate) fn policy_token(&self, policy: &str) -> String {
        let key = &self.domain.policies.get(policy).expect("policy is there").primary;
        sign(HUB, key, Some(policy), self.now.unix_ms / 1000 + 3600)
    }

    pub(crate) fn device_token(&self, identity: &Identity, expires_unix: u64) -> String {
        let keys = self.domain.registry.keys(identity).expect("registered");
        sign(&format!("{HUB}{}", identity.path()), &keys[0], None, expires_unix)
    }
}

/// The outcomes among frames: first, last, settled, state.
pub(crate) fn outcomes(frames: &[Performative]) -> Vec<(u32, u32, bool, DeliveryState)> {
    let outcome = |performative: &Performative| match performative {
        Performative::Disposition(d) => {
            Some((d.first, d.last.unwrap_or(d.first), d.settled, d.state.clone().expect("a state")))
        }
        _ => None,
    };
    frames.iter().filter_map(outcome).collect()
}

/// The one error that ends something among frames, as text: `DETACH condition`, `END condition`, `CLOSE condition`.
pub(crate) fn ending(frames: &[Performative]) -> Option<String> {
    let text = |what: &str, error: Option<&Error>| {
        format!("{what} {}", error.map_or_else(String::new, error::condition_text)).trim().to_owned()
    };
    frames.iter().find_map(|performative| match performative {
        Performative::Detach(detach) => Some(text("DETACH", detach.error.as_ref())),
        Performative::End(error) => Some(text("END", error.as_deref())),
        Performative::Close(error) => Some(text("CLOSE", error.as_deref())),
        _ => None,
    })
}

/// The condition of a rejected outcome.
pub(crate) fn rejection(state: &DeliveryState) -> Option<String> {
    match state {
        DeliveryState::Rejected(rejected) => rejected.error.as_ref().map(error::condition_text),
        _ => None,
    }
}

pub(crate) fn open() -> Open {
    Open {
        container_id: "peer".into(),
        hostname: Some("anything".into()),
        max_frame_size: 65_536.into(),
        channel_max: 65_535.into(),
        idle_time_out: None,
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

pub(crate) fn begin(incoming_window: u32) -> Begin {
    Begin {
        remote_channel: None,
        next_outgoing_id: 0,
        incoming_window,
        outgoing_window: 2048,
        handle_max: u32::MAX.into(),
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

pub(crate) fn sender(handle: u32, name: &str, address: &str) -> Attach {
    attach(handle, name, Role::Sender, address)
}

pub(crate) fn receiver(handle: u32, name: &str, address: &str) -> Attach {
    attach(handle, name, Role::Receiver, address)
}

fn attach(handle: u32, name: &str, role: Role, address: &str) -> Attach {
    let is_sender = role == Role::Sender;
    let target = if is_sender { Target::from(address) } else { Target::default() };
    let source = if is_sender { Source::default() } else { Source::from(address) };
    Attach {
        name: name.into(),
        handle: handle.into(),
        role,
        snd_settle_mode: SenderSettleMode::Mixed,
        rcv_settle_mode: ReceiverSettleMode::First,
        source: Some(Box::new(source)),
        target: Some(Box::new(target.into())),
        unsettled: None,
        incomplete_unsettled: false,
        initial_delivery_count: is_sender.then_some(0),
        max_message_size: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}

/// Half of a twin or methods pair.
pub(crate) fn paired(attach: Attach, correlation: &str) -> Attach {
    let mut properties = Fields::new();
    properties.insert(Symbol::from("com.microsoft:api-version"), Value::String("2020-09-30".into()));
    properties.insert(Symbol::from("com.microsoft:channel-correlation-id"), Value::String(correlation.into()));
    Attach { properties: Some(properties), ..attach }
}

pub(crate) fn transfer(handle: u32, delivery_id: u32) -> Transfer {
    Transfer {
        handle: handle.into(),
        delivery_id: Some(delivery_id),
        delivery_tag: Some(delivery_id.to_be_bytes().to_vec().into()),
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

pub(crate) fn flow(handle: u32, delivery_count: u32, credit: u32) -> Flow {
    Flow {
        next_incoming_id: None,
        incoming_window: 1 << 20,
        next_outgoing_id: 0,
        outgoing_window: 2048,
        handle: Some(handle.into()),
        delivery_count: Some(delivery_count),
        link_credit: Some(credit),
        available: None,
        drain: false,
        echo: false,
        properties: None,
    }
}

pub(crate) fn accept(delivery_id: u32, settled: bool) -> Disposition {
    disposition(delivery_id, settled, DeliveryState::Accepted(Accepted {}))
}

pub(crate) fn disposition(delivery_id: u32, settled: bool, state: DeliveryState) -> Disposition {
    Disposition { role: Role::Receiver, first: delivery_id, last: None, settled, state: Some(state), batchable: false }
}

pub(crate) fn detach(handle: u32) -> Detach {
    Detach { handle: handle.into(), closed: true, error: None }
}

pub(crate) fn end() -> End {
    End { error: None }
}

pub(crate) fn close() -> Close {
    Close { error: None }
}

/// A message with this id and body.
pub(crate) fn message(id: &str, body: &'static [u8]) -> Outgoing {
    let properties = Properties { message_id: Some(MessageId::String(id.into())), ..Properties::default() };
    Outgoing { properties: Some(properties), data: Some(Bytes::from_static(body)), ..Outgoing::default() }
}

fn put_token(id: MessageId, token: &str, kind: &str) -> Vec<u8> {
    let mut application = OrderedMap::new();
    for (name, value) in [("operation", "put-token"), ("type", kind), ("name", "whatever")] {
        application.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
    }
    let properties = Properties { message_id: Some(id), to: Some("$cbs".into()), ..Properties::default() };
    let mut payload = serde_amqp::to_vec(&properties).expect("encodable");
    payload.extend(serde_amqp::to_vec(&ApplicationProperties(application)).expect("encodable"));
    payload.extend([0x00, 0x53, 0x77]);
    payload.extend(serde_amqp::to_vec(&token.to_owned()).expect("encodable"));
    payload
}
