//! One device's session: packets, verdicts and outcomes in, [`Effect`]s out. The only place that knows its state.
//!
//! It reads no bytes and writes none, waits for nothing and knows no hub: the connection that owns it carries out the effects in
//! the order given, before it hands in the next event, and asks [`Session::wants_input`] before every packet.
//!
//! What it promises: a PUBACK is written only after [`Outcome::Accepted`], in the order of the PUBLISHes; a command is settled as
//! accepted only after the device's PUBACK (QoS 1); windows stay within their size; the Will leaves exactly once when it is due;
//! nothing follows [`Effect::Close`].
//!
//! What it never does: store a session. Commands wait in the hub's own queue and a subscription ends with its connection, so
//! *session present* is always 0 and every client subscribes anew [MQTT-3.2.2-2], [MQTT-3.2.2-3].

mod commands;
mod context;
pub mod effect;
mod ended;
mod inspect;
mod live;
mod will;

use std::time::Duration;

pub use self::{context::Context, effect::Effect, ended::Ended};
use self::{
    effect::{CloseCause, Effects, Slot},
    live::Live,
    will::LastWill,
};
use crate::{
    auth::{self, Refused, RefusedReason, Verdict},
    codec::{
        DecodeError, Packet,
        packet::{Connect, ConnectCode},
    },
    message::{Command, DeviceId, Outcome, Refusal, Settlement},
    settings::Settings,
    time::{Millis, Now},
};

/// One device's session, from the end of its handshake to [`Effect::Close`]. Owned by one connection.
///
/// What was handed upstream before the end (QoS 0 before a DISCONNECT, the Will) is the hub link's to see through: the Will until
/// it is settled, QoS 0 once.
#[derive(Debug)]
pub struct Session {
    state: State,
}

//  Connecting ──CONNECT──► Authenticating ──allowed──► Active ──drain, token expired──► Draining
//      │                        │                        │                                 │ all settled, or the bound
//      └────────────────────────┴── Will, Close(cause) ──┴─────────────────────────────────┴──────► Closed
#[derive(Debug)]
enum State {
    /// Nothing received yet.
    Connecting { deadline: Millis },
    /// `Effect::Authenticate` is out; nothing is read [MQTT-3.1.4-5].
    Authenticating(Box<Candidate>),
    /// CONNACK 0 is written.
    Active(Live),
    /// Nothing is read any more; what is in flight may settle and be acknowledged until `deadline`.
    Draining { live: Live, ended: Ended, deadline: Millis },
    /// `Effect::Close` is out. No effect follows.
    Closed(Ended),
}

/// Who waits for a verdict.
#[derive(Debug)]
struct Candidate {
    identity: DeviceId,
    will: Option<Box<LastWill>>,
    silence_max: Duration,
    deadline: Millis,
    /// Of its CONNECT: what is kept until the verdict, here and where the token waits.
    kept_bytes: usize,
}

/// How much is under way: for `gateway_inflight` and `/connections`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InFlight {
    /// Messages handed upstream that the hub has not settled.
    pub telemetry: usize,
    /// Commands that the device has not acknowledged.
    pub commands: usize,
}

impl Session {
    /// A connection was accepted and its handshake is over: CONNECT is due within `handshake_timeout`.
    pub fn new(settings: &Settings, now: Now) -> Self {
        Self { state: State::Connecting { deadline: now.monotonic.after(settings.limits.handshake_timeout) } }
    }

    /// Whether the next packet may be decoded and handed in. While not, the connection leaves the bytes where they are and does
    /// not read its socket: that is the back-pressure.
    pub fn wants_input(&self) -> bool {
        match &self.state {
            State::Connecting { .. } => true,
            State::Active(live) => live.has_room(),
            State::Authenticating(_) | State::Draining { .. } | State::Closed(_) => false,
        }
    }

    /// The next packet of the device. Only while [`Self::wants_input`].
    pub fn handle_packet(&mut self, cx: &mut Context, packet: &Packet<'_>, now: Now, out: &mut Effects<'_>) {
        if let State::Active(live) = &mut self.state {
            live.heard(now);
        }
        let handled = match (&mut self.state, packet) {
            (State::Connecting { .. }, Packet::Connect(connect)) => self.connect(cx, connect, now, out),
            (State::Active(live), Packet::Publish(publish)) => live.publish(cx, publish, out),
            (State::Active(live), Packet::PubAck(packet_id)) => {
                live.commands.acknowledge(*packet_id, out);
                Ok(())
            }
            (State::Active(live), Packet::Subscribe(subscribe)) => {
                live.commands.subscribe(&live.identity, subscribe, out)
            }
            (State::Active(live), Packet::Unsubscribe(unsubscribe)) => {
                live.commands.unsubscribe(&live.identity, unsubscribe, out);
                Ok(())
            }
            // [MQTT-3.12.4-1]
            (State::Active(_), Packet::PingReq) => {
                out(Effect::Write(Packet::PingResp));
                Ok(())
            }
            // [MQTT-3.14.4-3] the Will is dropped unpublished
            (State::Active(live), Packet::Disconnect) => {
                live.will = None;
                Err(Ended::new(CloseCause::Disconnect, "the device disconnected"))
            }
            (State::Closed(_), _) => Ok(()),
            (_, packet) => Err(violation(packet)),
        };
        self.end_on_error(handled, cx, out);
    }

    /// The device's bytes are no packet. Only a CONNECT of another protocol level gets an answer.
    pub fn handle_malformed(&mut self, cx: &mut Context, error: &DecodeError, out: &mut Effects<'_>) {
        match (&self.state, error) {
            // [MQTT-3.1.2-2] in the shape of 3.1.1, whatever the level
            (State::Connecting { .. }, DecodeError::UnsupportedLevel(_)) => {
                let code = ConnectCode::UnacceptableProtocolVersion;
                self.refuse(cx, Refused { code, reason: RefusedReason::ProtocolLevel }, out);
            }
            (_, DecodeError::TooLarge { .. }) => self.end(cx, Ended::too_large("packet over the limit"), out),
            _ => self.end(cx, Ended::violation("malformed packet"), out),
        }
    }

    /// The answer to [`Effect::Authenticate`].
    pub fn handle_verdict(&mut self, cx: &mut Context, verdict: &Verdict, now: Now, out: &mut Effects<'_>) {
        let State::Authenticating(candidate) = &mut self.state else { return };
        match verdict {
            Verdict::Allowed { expires } => {
                let live = Live::new(candidate, *expires, &cx.settings.limits, now);
                self.state = State::Active(live);
                // [MQTT-3.1.4-4]
                out(Effect::Write(Packet::ConnAck { session_present: false, code: ConnectCode::Accepted }));
            }
            Verdict::Refused(refused) => self.refuse(cx, *refused, out),
        }
    }

    /// The outcome of one [`Effect::Send`]; a slot that is not in flight changes nothing.
    pub fn handle_outcome(&mut self, cx: &mut Context, slot: Slot, outcome: &Outcome, now: Now, out: &mut Effects<'_>) {
        let handled = match &mut self.state {
            State::Active(live) | State::Draining { live, .. } => live.settle(slot, outcome, now, out),
            State::Connecting { .. } | State::Authenticating(_) | State::Closed(_) => Ok(()),
        };
        self.end_on_error(handled, cx, out);
        self.end_if_drained(cx, out);
    }

    /// The answer to [`Effect::OpenCommands`]; again each time the receiver was attached anew: what came over the former one can
    /// not be settled any more.
    pub fn handle_commands_opened(
        &mut self,
        cx: &mut Context,
        opened: Result<(), Refusal>,
        now: Now,
        out: &mut Effects<'_>,
    ) {
        let (State::Active(live) | State::Draining { live, .. }) = &mut self.state else { return };
        let handled = live.commands_opened(opened, now, out);
        self.end_on_error(handled, cx, out);
    }

    /// One message from the cloud.
    pub fn handle_command(&mut self, command: &Command, out: &mut Effects<'_>) {
        match &mut self.state {
            State::Active(live) => live.commands.deliver(&live.identity, command, out),
            State::Closed(_) => {}
            _ => out(Effect::Settle(command.tag, Settlement::Released)),
        }
    }

    /// The connection ends for a reason of its owner's: the socket is gone, a newer connection of the same device, the hub lost
    /// the device. Only for the first such call; the rest change nothing.
    pub fn handle_close(&mut self, cx: &mut Context, cause: CloseCause, out: &mut Effects<'_>) {
        self.end(cx, Ended::new(cause, "ended from outside"), out);
    }

    /// Stop reading, let what is in flight settle until `deadline`, then close with [`CloseCause::Shutdown`].
    pub fn handle_drain(&mut self, cx: &mut Context, deadline: Millis, out: &mut Effects<'_>) {
        let ended = Ended::new(CloseCause::Shutdown, "the gateway stops or drains");
        match &mut self.state {
            State::Connecting { .. } => self.end(cx, ended, out),
            State::Authenticating(_) => {
                let code = ConnectCode::ServerUnavailable;
                self.refuse(cx, Refused { code, reason: RefusedReason::Draining }, out);
            }
            State::Active(_) => self.drain(cx, ended, deadline, out),
            State::Draining { deadline: earlier, .. } => *earlier = deadline.min(*earlier),
            State::Closed(_) => {}
        }
    }

    /// The connection stopped (`true`) or took up (`false`) reading for a reason of its own, such as unwritten output: a silence
    /// that it caused itself is not the device's.
    pub fn handle_input_paused(&mut self, paused: bool, now: Now) {
        if let State::Active(live) = &mut self.state {
            live.pause(paused, now);
        }
    }

    /// When to call [`Self::handle_timeout`] at the latest; a later call moves the moment on by itself.
    pub fn poll_timeout(&self) -> Option<Millis> {
        match &self.state {
            State::Connecting { deadline } | State::Draining { deadline, .. } => Some(*deadline),
            State::Authenticating(candidate) => Some(candidate.deadline),
            State::Active(live) => live.poll_timeout(),
            State::Closed(_) => None,
        }
    }

    /// Time went by. Too early is harmless.
    pub fn handle_timeout(&mut self, cx: &mut Context, now: Now, out: &mut Effects<'_>) {
        if self.poll_timeout().is_none_or(|deadline| now.monotonic < deadline) {
            return;
        }
        match &mut self.state {
            // contract §2.3: no CONNACK for a late CONNECT
            State::Connecting { .. } => {
                self.end(cx, Ended::new(CloseCause::HandshakeTimeout, "no CONNECT in time"), out);
            }
            State::Authenticating(_) => {
                let code = ConnectCode::ServerUnavailable;
                self.refuse(cx, Refused { code, reason: RefusedReason::HubUnavailable }, out);
            }
            State::Active(live) if live.is_token_expired(now) => {
                let deadline = now.monotonic.after(cx.settle_bound());
                self.drain(cx, Ended::new(CloseCause::TokenExpired, "the token expired"), deadline, out);
            }
            // [MQTT-3.1.2-24]
            State::Active(_) => {
                self.end(cx, Ended::new(CloseCause::KeepAlive, "silent for 1.5 keep-alive periods"), out);
            }
            State::Draining { ended, .. } => {
                let ended = *ended;
                self.end(cx, ended, out);
            }
            State::Closed(_) => {}
        }
    }

    /// Why the session ended, once [`Effect::Close`] is out.
    pub fn ended(&self) -> Option<Ended> {
        match &self.state {
            State::Closed(ended) => Some(*ended),
            _ => None,
        }
    }

    /// What is under way in both directions.
    pub fn in_flight(&self) -> InFlight {
        match &self.state {
            State::Active(live) | State::Draining { live, .. } => live.in_flight(),
            State::Connecting { .. } | State::Authenticating(_) | State::Closed(_) => InFlight::default(),
        }
    }
}

impl Session {
    fn connect(
        &mut self,
        cx: &mut Context,
        connect: &Connect<'_>,
        now: Now,
        out: &mut Effects<'_>,
    ) -> Result<(), Ended> {
        let login = match check_login(connect, &cx.settings) {
            Ok(login) => login,
            Err(refused) => {
                self.refuse(cx, refused, out);
                return Ok(());
            }
        };
        let will = LastWill::check(connect.will.as_ref(), &login.identity, cx)?;
        self.state = State::Authenticating(Box::new(Candidate {
            identity: login.identity.clone(),
            will,
            silence_max: silence_max(connect.keep_alive_s, cx.settings.limits.keep_alive_max),
            deadline: now.monotonic.after(cx.verdict_bound()),
            kept_bytes: kept_bytes(connect),
        }));
        out(Effect::Authenticate(login));
        Ok(())
    }

    /// [MQTT-3.2.2-4], [MQTT-3.2.2-5]: session present 0, and the connection ends.
    fn refuse(&mut self, cx: &mut Context, refused: Refused, out: &mut Effects<'_>) {
        out(Effect::Write(Packet::ConnAck { session_present: false, code: refused.code }));
        self.end(cx, Ended::refused(refused.reason), out);
    }

    fn drain(&mut self, cx: &mut Context, ended: Ended, deadline: Millis, out: &mut Effects<'_>) {
        self.state = match std::mem::replace(&mut self.state, State::Closed(ended)) {
            State::Active(live) => State::Draining { live, ended, deadline },
            other => other,
        };
        self.end_if_drained(cx, out);
    }

    fn end_if_drained(&mut self, cx: &mut Context, out: &mut Effects<'_>) {
        if let State::Draining { live, ended, .. } = &self.state
            && live.is_settled()
        {
            let ended = *ended;
            self.end(cx, ended, out);
        }
    }

    fn end_on_error(&mut self, handled: Result<(), Ended>, cx: &mut Context, out: &mut Effects<'_>) {
        if let Err(ended) = handled {
            self.end(cx, ended, out);
        }
    }

    /// The one way to [`State::Closed`].
    fn end(&mut self, cx: &mut Context, ended: Ended, out: &mut Effects<'_>) {
        if matches!(self.state, State::Closed(_)) {
            return;
        }
        match std::mem::replace(&mut self.state, State::Closed(ended)) {
            State::Active(live) | State::Draining { live, .. } => live.leave(cx, out),
            State::Connecting { .. } | State::Authenticating(_) | State::Closed(_) => {}
        }
        out(Effect::Close(ended.cause));
    }
}

fn check_login<'a>(connect: &Connect<'a>, settings: &Settings) -> Result<auth::Login<'a>, Refused> {
    // [MQTT-3.1.3-8]
    if connect.client_id.is_empty() && !connect.clean_session {
        return Err(Refused { code: ConnectCode::IdentifierRejected, reason: RefusedReason::ClientId });
    }
    auth::login(connect, settings)
}

fn kept_bytes(connect: &Connect<'_>) -> usize {
    let will = connect.will.as_ref().map_or(0, |will| will.topic.len() + will.payload.len());
    will + connect.password.map_or(0, <[u8]>::len)
}

/// [MQTT-3.1.2-24] one and a half keep-alive periods; contract §2.4: the hub's cap holds for 0 too.
fn silence_max(keep_alive_s: u16, cap: Duration) -> Duration {
    match keep_alive_s {
        0 => cap,
        seconds => Duration::from_millis(u64::from(seconds) * 1500).min(cap),
    }
}

fn violation(packet: &Packet<'_>) -> Ended {
    Ended::violation(match packet {
        Packet::Connect(_) => "second CONNECT",
        Packet::PubRec(_) | Packet::PubRel(_) | Packet::PubComp(_) => "a packet of QoS 2, which is not served",
        Packet::ConnAck { .. } | Packet::SubAck { .. } | Packet::UnsubAck(_) | Packet::PingResp => {
            "a packet that only servers send"
        }
        _ => "the first packet is not CONNECT",
    })
}
