//! THE loop of one device: socket bytes → packets → session → effects → hub and socket, one write per turn.
//!
//! A connection is one task without timers, channels or buffers of its own: what it reads and writes goes through the
//! core's [`Bench`], and it keeps only the bytes of an incomplete packet or of a write that the socket did not take. It
//! decides nothing about MQTT: that is the session's.

mod ending;
mod hands;
mod output;
mod trust;

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use gateway_core::{
    auth::Verdict,
    codec::{self, Decoded},
    message::{Outcome, Refusal},
    session::{
        self, InFlight, Session,
        effect::{CloseCause, Effects},
    },
    settings::Protocol,
    time::{Millis, Now},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
};
use tracing::debug;

use self::{ending::Ending, hands::Hands};
use crate::{
    core::{Bench, Core, Leaving},
    metrics::{ConnectResult, End, Limit, TransportFault},
    presence::Place,
    server::protocol_name,
    transport::{Transport, wrong_port},
    upstream::{DeviceLink, UpstreamEvent},
    wheel::Tick,
};

/// Reads of one socket in one turn; after that the others have their turn first.
const READS_PER_TURN: usize = 4;
/// A partial packet keeps at most so much unused room.
const SPARE_BYTES_MAX: usize = 4096;

/// A connection as its listener hands it over.
pub struct Accepted {
    /// The socket, `TCP_NODELAY` set.
    pub stream: TcpStream,
    /// Over what.
    pub protocol: Protocol,
    /// TLS and the like.
    pub transport: Transport,
    /// Its place in the core's roster.
    pub place: Place,
    /// One of `connectionsMax`.
    pub connection_permit: OwnedSemaphorePermit,
    /// One of `handshakesMax`, given back when MQTT begins.
    pub handshake_permit: OwnedSemaphorePermit,
}

/// One device's connection: a task of its core.
pub struct Connection {
    core: Rc<Core>,
    /// `None` once it is closed.
    stream: Option<TcpStream>,
    transport: Transport,
    session: Session,
    link: Option<DeviceLink>,
    phase: Phase,
    /// Bytes of an incomplete packet, or of packets that the session does not want yet.
    partial: Vec<u8>,
    /// Its part of [`Core::unauthenticated`].
    unauthenticated_bytes: usize,
    /// Bytes that the socket has not taken, and since when.
    unsent: Vec<u8>,
    unsent_since: Millis,
    paused: bool,
    /// The wait for room upstream that it takes part in.
    waits_for_room: u32,
    accepted: bool,
    /// What lets the device in is its certificate.
    by_certificate: bool,
    /// [`Core::trust`] when the handshake began.
    trust: u32,
    protocol: Protocol,
    place: Place,
    armed: Option<Tick>,
    in_flight: InFlight,
    _permit: OwnedSemaphorePermit,
}

//  Handshaking ──established──► Serving ──Close──► Ending ──written and peer gone, or bound──► Over
//       └───────────── fault, time-out ──────────────┘
enum Phase {
    /// TLS or WebSocket handshake under way.
    Handshaking { deadline: Millis, _permit: OwnedSemaphorePermit },
    /// MQTT.
    Serving,
    /// What is queued goes out, then the socket closes.
    Ending(Ending),
    /// The socket is closed.
    Over,
}

/// Whether the socket may have more for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Read {
    /// Nothing more for now; the task is woken when there is.
    Drained,
    /// The budget of the turn is used up.
    More,
}

impl Future for Connection {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let core = Rc::clone(&this.core);
        let mut bench = core.bench.borrow_mut();
        bench.mend();
        let over = this.turn(cx, &core, &mut bench);
        bench.output.clear();
        bench.output.shrink_to(SPARE_BYTES_MAX * 16);
        bench.buffers.clear();
        over
    }
}

impl Connection {
    /// A connection whose handshake begins now.
    pub fn new(core: Rc<Core>, accepted: Accepted) -> Self {
        let now = core.clock.now();
        core.metrics.handshakes.add(1);
        let handshake_timeout = core.settings().limits.handshake_timeout;
        let phase =
            Phase::Handshaking { deadline: now.monotonic.after(handshake_timeout), _permit: accepted.handshake_permit };
        let (session, trust) = (Session::new(&core.settings(), now), core.trust());
        Self {
            session,
            core,
            stream: Some(accepted.stream),
            transport: accepted.transport,
            link: None,
            phase,
            partial: Vec::new(),
            unauthenticated_bytes: 0,
            unsent: Vec::new(),
            unsent_since: Millis(0),
            paused: false,
            waits_for_room: 0,
            accepted: false,
            by_certificate: false,
            trust,
            protocol: accepted.protocol,
            place: accepted.place,
            armed: None,
            in_flight: InFlight::default(),
            _permit: accepted.connection_permit,
        }
    }

    /// Everything there is to do now: signals, the hub's answers, time, the device's bytes; then one write.
    fn turn(&mut self, cx: &mut Context<'_>, core: &Rc<Core>, bench: &mut Bench) -> Poll<()> {
        let now = core.clock.now();
        let leaving = self.take_signals(cx, core, bench, now);
        self.take_events(cx, core, bench, now);
        self.check_time(core, bench, now);
        let had_link = self.link.is_some();
        let read = self.receive(cx, core, bench, now);
        if let Some(leaving) = leaving {
            // what the device had sent by now is still taken
            self.with_session(core, bench, now, |session, context, out| {
                session.handle_drain(context, leaving.deadline, out);
            });
        }
        if !had_link {
            // the CONNECT may just have made one: it must know whom to wake
            self.take_events(cx, core, bench, now);
        }
        self.bound_unauthenticated(core, bench, now);
        self.write_out(cx, core, bench, now);
        self.say_goodbye(cx, bench, now);
        self.note_in_flight(core, now);
        if read == Read::More {
            cx.waker().wake_by_ref();
        }
        if matches!(self.phase, Phase::Over) {
            return Poll::Ready(());
        }
        self.rearm(core, now.monotonic);
        Poll::Pending
    }

    fn take_signals(&mut self, cx: &Context<'_>, core: &Rc<Core>, bench: &mut Bench, now: Now) -> Option<Leaving> {
        let mut roster = core.roster.borrow_mut();
        let entry = roster.get_mut(self.place.key as usize)?;
        if !entry.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            entry.waker = Some(cx.waker().clone());
        }
        let signals = std::mem::take(&mut entry.signals);
        let leaving = entry.leaving.filter(|_| signals.leave);
        drop(roster);
        if signals.check_trust && self.by_certificate {
            self.check_trust(core);
        }
        if signals.taken_over {
            self.close(core, bench, CloseCause::TakenOver, now);
        }
        leaving
    }

    /// What the hub's side has to say, in one go.
    fn take_events(&mut self, cx: &Context<'_>, core: &Rc<Core>, bench: &mut Bench, now: Now) {
        loop {
            let Some(link) = &self.link else { return };
            let Some(event) = link.next_event() else {
                if link.poll_events(cx).is_pending() {
                    return;
                }
                continue;
            };
            match event {
                UpstreamEvent::Authorized(verdict) => self.decide(core, bench, &verdict, now),
                UpstreamEvent::Outcome(slot, outcome) => {
                    if let Outcome::Retry(Refusal::Throttled | Refusal::Quota) = outcome {
                        core.metrics.upstream_throttled_ms.set(now.monotonic.0.cast_signed());
                    }
                    self.with_session(core, bench, now, |session, context, out| {
                        session.handle_outcome(context, slot, &outcome, now, out);
                    });
                }
                UpstreamEvent::CommandsOpened(opened) => {
                    self.with_session(core, bench, now, |session, context, out| {
                        session.handle_commands_opened(context, opened, now, out);
                    });
                }
                UpstreamEvent::Command(command) => self.with_session(core, bench, now, |session, _, out| {
                    session.handle_command(&command, out);
                }),
                UpstreamEvent::Lost(cause) => {
                    // the Will of one that was taken over still goes by it
                    self.close(core, bench, cause, now);
                    self.link = None;
                }
            }
        }
    }

    fn check_time(&mut self, core: &Rc<Core>, bench: &mut Bench, now: Now) {
        if let Phase::Handshaking { deadline, .. } = &self.phase {
            if now.monotonic >= *deadline {
                self.fail(core, bench, TransportFault::HandshakeTimeout, now);
            }
            return;
        }
        if self.write_deadline(core).is_some_and(|deadline| now.monotonic >= deadline) {
            self.close(core, bench, CloseCause::WriteTimeout, now);
            // it does not read: there is no point in waiting for the rest to go out
            self.unsent = Vec::new();
        }
        if self.session.poll_timeout().is_some_and(|deadline| now.monotonic >= deadline) {
            self.with_session(core, bench, now, |session, context, out| session.handle_timeout(context, now, out));
        }
    }

    /// Reads and handles what the device sent, as long as the session wants it.
    fn receive(&mut self, cx: &mut Context<'_>, core: &Rc<Core>, bench: &mut Bench, now: Now) -> Read {
        if !self.partial.is_empty() && self.wants_input(core) {
            let partial = std::mem::take(&mut self.partial);
            let used = self.decode(core, bench, &partial, now);
            self.keep(partial, used);
        }
        for _ in 0..READS_PER_TURN {
            if !self.wants_input(core) {
                if self.lacks_room(core) {
                    core.upstream.wait_for_room(&mut self.waits_for_room, cx.waker());
                }
                self.pause(core, now);
                return Read::Drained;
            }
            match self.read(cx, core, bench, now) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => self.close(core, bench, CloseCause::Gone, now),
                Poll::Ready(Err(fault)) => self.fail(core, bench, fault, now),
                Poll::Pending => return Read::Drained,
            }
        }
        Read::More
    }

    fn wants_input(&self, core: &Core) -> bool {
        match self.phase {
            Phase::Handshaking { .. } => true,
            Phase::Serving => {
                self.session.wants_input()
                    && self.unsent.len() <= core.settings().limits.output_bytes_max
                    && !self.lacks_room(core)
            }
            Phase::Ending(_) | Phase::Over => false,
        }
    }

    /// The hub settles too little for one more message of anybody. A CONNECT is read all the same: it is answered.
    fn lacks_room(&self, core: &Core) -> bool {
        self.accepted && core.upstream.is_full()
    }

    /// One read of the socket. False: nothing more will come.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        core: &Rc<Core>,
        bench: &mut Bench,
        now: Now,
    ) -> Poll<Result<bool, TransportFault>> {
        self.resume(now);
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(false)) };
        let mut raw = std::mem::take(&mut bench.raw);
        let from = self.transport.begin_read(&mut raw);
        let mut room = ReadBuf::new(&mut raw[from..]);
        let read = Pin::new(stream).poll_read(cx, &mut room).map_ok(|()| room.filled().len());
        let handled = match read {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(Ok(false)),
            Poll::Ready(Ok(bytes)) => Poll::Ready(self.take_bytes(core, bench, &mut raw[..from + bytes], from, now)),
            Poll::Pending => Poll::Pending,
        };
        bench.raw = raw;
        handled
    }

    /// Bytes of the socket, from the incomplete record (of `from` bytes) on. False: the peer said that it is done.
    fn take_bytes(
        &mut self,
        core: &Rc<Core>,
        bench: &mut Bench,
        raw: &mut [u8],
        from: usize,
        now: Now,
    ) -> Result<bool, TransportFault> {
        if matches!(self.transport, Transport::Plain) {
            self.establish(core, now);
            if !self.accepted
                && self.partial.is_empty()
                && let Some(fault) = wrong_port(self.protocol, raw)
            {
                return Err(fault);
            }
            self.handle_payload(core, bench, raw, now);
            return Ok(true);
        }
        if from == 0
            && self.is_handshaking()
            && let Some(fault) = wrong_port(self.protocol, raw)
        {
            return Err(fault);
        }
        let frame_bytes_max = core.settings().limits.packet_bytes_max.max(64 * 1024) as u64 * 2;
        let peer_closed = self.transport.open(raw, frame_bytes_max, &mut bench.buffers)?;
        if self.transport.is_established() {
            self.establish(core, now);
            let payload = std::mem::take(&mut bench.buffers.payload);
            self.handle_payload(core, bench, &payload, now);
            bench.buffers.payload = payload;
            bench.buffers.payload.clear();
        }
        Ok(!peer_closed)
    }

    fn is_handshaking(&self) -> bool {
        matches!(self.phase, Phase::Handshaking { .. })
    }

    fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// The handshake is done: the time for CONNECT begins.
    fn establish(&mut self, core: &Core, now: Now) {
        if self.is_handshaking() {
            self.phase = Phase::Serving;
            self.session = Session::new(&core.settings(), now);
        }
    }

    fn handle_payload(&mut self, core: &Rc<Core>, bench: &mut Bench, payload: &[u8], now: Now) {
        if self.partial.is_empty() {
            let used = self.decode(core, bench, payload, now);
            if used < payload.len() && self.is_serving() {
                self.partial = payload[used..].to_vec();
            }
            return;
        }
        let mut partial = std::mem::take(&mut self.partial);
        partial.extend_from_slice(payload);
        let used = self.decode(core, bench, &partial, now);
        self.keep(partial, used);
    }

    /// Keeps what is not used, in no more room than it needs; nothing of a connection that ends.
    fn keep(&mut self, mut bytes: Vec<u8>, used: usize) {
        if !self.is_serving() {
            return;
        }
        bytes.drain(..used);
        if bytes.capacity() - bytes.len() > SPARE_BYTES_MAX {
            bytes.shrink_to_fit();
        }
        self.partial = if bytes.is_empty() { Vec::new() } else { bytes };
    }

    /// Counts what is kept before the device is let in; it goes if that is too much for all such connections together.
    fn bound_unauthenticated(&mut self, core: &Rc<Core>, bench: &mut Bench, now: Now) {
        let kept = if self.accepted { 0 } else { self.partial.capacity() + self.session.unauthenticated_bytes() };
        if kept == 0 && self.unauthenticated_bytes == 0 {
            return;
        }
        let bytes_max = core.unauthenticated_bytes_max();
        if !core.unauthenticated.keep(&mut self.unauthenticated_bytes, kept, bytes_max) {
            core.metrics.limits.at(Limit::UnauthenticatedBytes).inc();
            self.close(core, bench, CloseCause::UnauthenticatedBytes, now);
            core.unauthenticated.keep(&mut self.unauthenticated_bytes, 0, bytes_max);
        }
    }

    /// Hands every whole packet to the session while it wants one. Gives the bytes used.
    fn decode(&mut self, core: &Rc<Core>, bench: &mut Bench, bytes: &[u8], now: Now) -> usize {
        let mut used = 0;
        while self.wants_input(core) && used < bytes.len() {
            match codec::decode(&bytes[used..], core.settings().limits.packet_bytes_max) {
                Ok(Decoded::Packet { packet, consumed }) => {
                    used += consumed;
                    self.with_session(core, bench, now, |session, context, out| {
                        session.handle_packet(context, &packet, now, out);
                    });
                }
                Ok(Decoded::Incomplete { .. }) => break,
                Err(error) => {
                    let roster = core.roster.borrow();
                    let address = roster.get(self.place.key as usize).map(|entry| entry.address);
                    debug!(address = address.map(tracing::field::display), %error, "bytes are no packet");
                    drop(roster);
                    self.with_session(core, bench, now, |session, context, out| {
                        session.handle_malformed(context, &error, out);
                    });
                }
            }
        }
        used
    }

    /// Lets the session work, carries out its effects, and answers its question for a verdict.
    fn with_session(
        &mut self,
        core: &Rc<Core>,
        bench: &mut Bench,
        now: Now,
        work: impl FnOnce(&mut Session, &mut session::Context, &mut Effects<'_>),
    ) {
        let Bench { context, output, .. } = bench;
        let mut hands = Hands::new(core, &self.transport, &mut self.link, output, now);
        hands.trust = self.trust;
        work(&mut self.session, context, &mut |effect| hands.carry_out(effect));
        let (verdict, closed) = (hands.verdict.take(), hands.closed);
        self.by_certificate |= hands.by_certificate;
        if let Some(verdict) = verdict {
            self.decide(core, bench, &verdict, now);
        }
        if closed {
            self.begin_ending(core, bench, None, now);
        }
    }

    /// The answer to the CONNECT, from our keys or from the hub.
    fn decide(&mut self, core: &Rc<Core>, bench: &mut Bench, verdict: &Verdict, now: Now) {
        let was_waiting = self.session.is_authenticating();
        self.with_session(core, bench, now, |session, context, out| session.handle_verdict(context, verdict, now, out));
        if was_waiting && matches!(verdict, Verdict::Allowed { .. }) && matches!(self.phase, Phase::Serving) {
            self.enter(core, now);
        }
    }

    /// The device is in: it is listed, counted, and an older connection of it goes.
    fn enter(&mut self, core: &Rc<Core>, now: Now) {
        let Some(device) = self.session.identity() else { return };
        self.accepted = true;
        core.metrics.handshakes.add(-1);
        core.metrics.connections.add(1);
        core.metrics.connects.at(ConnectResult::Accepted).inc();
        let older = core.shared.presence.enter(device, self.place);
        if let Some(entry) = core.roster.borrow_mut().get_mut(self.place.key as usize) {
            debug!(%device, address = %entry.address, protocol = protocol_name(entry.protocol), "device connected");
            entry.device = Some((device.clone(), now.unix));
        }
        if let Some(older) = older {
            core.take_over(older);
        }
    }

    /// Below MQTT something is wrong.
    fn fail(&mut self, core: &Rc<Core>, bench: &mut Bench, fault: TransportFault, now: Now) {
        self.begin_ending(core, bench, Some(End::Transport(fault)), now);
    }

    fn close(&mut self, core: &Rc<Core>, bench: &mut Bench, cause: CloseCause, now: Now) {
        if self.is_handshaking() {
            self.begin_ending(core, bench, Some(End::Closed(cause)), now);
            return;
        }
        self.with_session(core, bench, now, |session, context, out| session.handle_close(context, cause, out));
    }

    /// We do not read because the session's window, our own output or the hub's side is full.
    fn pause(&mut self, core: &Core, now: Now) {
        if !matches!(self.phase, Phase::Serving) {
            return;
        }
        let paused_before = std::mem::replace(&mut self.paused, true);
        if self.session.wants_input() {
            // also where the session's window was the reason at first
            self.session.handle_input_paused(true, now);
        } else if self.accepted && !paused_before {
            core.metrics.limits.at(Limit::Inflight).inc();
        }
    }

    fn resume(&mut self, now: Now) {
        if self.paused {
            self.paused = false;
            self.session.handle_input_paused(false, now);
        }
    }

    fn note_in_flight(&mut self, core: &Core, now: Now) {
        let in_flight = self.session.in_flight();
        if in_flight == self.in_flight {
            return;
        }
        core.metrics
            .down
            .inflight
            .add(in_flight.commands.cast_signed() as i64 - self.in_flight.commands.cast_signed() as i64);
        self.in_flight = in_flight;
        core.note_in_flight(self.place.key, in_flight, now.monotonic);
    }

    fn rearm(&mut self, core: &Core, now: Millis) {
        let deadline = match &self.phase {
            Phase::Handshaking { deadline, .. } => Some(*deadline),
            Phase::Serving => [self.session.poll_timeout(), self.write_deadline(core)].into_iter().flatten().min(),
            Phase::Ending(ending) => Some(ending.deadline),
            Phase::Over => None,
        };
        // a deadline that moved later is looked at when the old tick comes: no message moves a timer
        let pending = self.armed.filter(|armed| armed.millis() > now);
        let wanted = deadline.map(|deadline| Tick::after(deadline.max(Millis(now.0 + 1))));
        let armed = match (pending, wanted) {
            (Some(pending), Some(wanted)) => Some(pending.min(wanted)),
            (_, wanted) => wanted,
        };
        core.wheel.rearm(self.place.key, pending, armed);
        self.armed = armed;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !matches!(self.phase, Phase::Ending(_) | Phase::Over) {
            // cut short by a panic or by the end of its core
            let gauge = if self.accepted { &self.core.metrics.connections } else { &self.core.metrics.handshakes };
            gauge.add(-1);
        }
        self.core.metrics.down.inflight.add(-(self.in_flight.commands.cast_signed() as i64));
        self.core.unauthenticated.keep(&mut self.unauthenticated_bytes, 0, 0);
        self.core.dismiss(self.place, self.armed);
    }
}

#[cfg(test)]
mod tests {
    use super::Connection;

    #[test]
    fn an_idle_connection_is_small() {
        // a task of its own, times tens of thousands
        assert!(size_of::<Connection>() <= 640, "{} bytes", size_of::<Connection>());
    }
}
