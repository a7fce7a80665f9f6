//! One connection of one device: its session, its judge, and everything that device and hub may do to it.

use bytes::Bytes;
use gateway_core::{
    auth::{Refused, RefusedReason, Verdict},
    codec::{
        DecodeError, Malformed, Packet,
        packet::{Connect, ConnectCode, Publish, Subscribe, Unsubscribe, Will},
    },
    message::{Command, CommandTag, Outcome, PacketId, QoS, Refusal},
    session::{
        Context, Session,
        effect::{CloseCause, Slot},
    },
    time::{Millis, Now, UnixSeconds},
};

use crate::{
    judge::{Handed, Judge, Receiver, Unacknowledged, WINDOW},
    random::Random,
};

const EVENTS: &str = "devices/d/messages/events/";
const COMMANDS: &str = "devices/d/messages/devicebound/#";

pub(crate) struct Conversation {
    pub(crate) session: Session,
    pub(crate) judge: Judge,
    next_number: u64,
    next_id: u16,
    next_tag: u64,
}

/// Calls one `handle_*` of the session with the judge as its sink.
macro_rules! tell {
    ($self:ident.$handle:ident($($argument:expr),*)) => {{
        let judge = &mut $self.judge;
        $self.session.$handle($($argument,)* &mut |effect| judge.see(&effect));
        $self.check();
    }};
}

impl Conversation {
    pub(crate) fn new(cx: &Context, now: Now) -> Self {
        let session = Session::new(&cx.settings, now);
        Self { session, judge: Judge::default(), next_number: 0, next_id: 0, next_tag: 0 }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.judge.closed.is_some()
    }

    /// What holds after every event.
    fn check(&self) {
        let in_flight = self.session.in_flight();
        assert!(in_flight.telemetry <= usize::from(WINDOW) && in_flight.commands <= usize::from(WINDOW));
        assert_eq!(self.session.ended().map(|ended| ended.cause), self.judge.closed);
        if self.is_over() {
            assert!(!self.session.wants_input() && self.session.poll_timeout().is_none());
        }
        if self.judge.handed.len() == usize::from(WINDOW) {
            assert!(!self.session.wants_input(), "the window is full and more is read");
        }
    }

    // ── the device ──────────────────────────────────────────────────────────────────────────────────────────────────────────

    pub(crate) fn device_acts(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        if random.one_in(400) {
            return tell!(self.handle_close(cx, CloseCause::Gone));
        }
        if !self.session.wants_input() {
            self.judge.tally.window_full += u64::from(self.judge.handed.len() == usize::from(WINDOW));
            return;
        }
        if random.one_in(400) {
            return tell!(self.handle_malformed(cx, &DecodeError::Malformed(Malformed::Truncated)));
        }
        if self.judge.active { self.device_talks(cx, random, now) } else { self.connect(cx, random, now) }
    }

    fn connect(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        if random.one_in(50) {
            return self.packet(cx, &Packet::PingReq, now);
        }
        let will = Will { topic: EVENTS, payload: b"will", qos: QoS::AtLeastOnce, retain: random.one_in(2) };
        self.judge.has_will = random.one_in(2);
        let foreign = random.one_in(50);
        let connect = Connect {
            clean_session: random.one_in(2),
            keep_alive_s: [0, 5, 60, 600][random.below(4)],
            client_id: "d",
            will: self.judge.has_will.then_some(will),
            user_name: Some(if foreign { "other.example.com/d" } else { "hub.example.com/d" }),
            password: None,
        };
        self.packet(cx, &Packet::Connect(connect), now);
    }

    fn device_talks(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        match random.below(200) {
            0..90 => self.publish(cx, random, now),
            90..100 => self.publish_again(cx, now),
            100..120 => {
                self.judge.pinged = true;
                self.packet(cx, &Packet::PingReq, now);
                assert!(!self.judge.pinged, "a ping without a pong");
            }
            120..160 => self.puback(cx, random, now),
            160..180 => self.subscribe(cx, random, now),
            180..195 => self.unsubscribe(cx, random, now),
            195 => {
                self.judge.disconnected = true;
                self.packet(cx, &Packet::Disconnect, now);
            }
            _ => self.misbehave(cx, random, now),
        }
    }

    fn publish(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        self.next_number += 1;
        let text = self.next_number.to_string();
        let packet_id = (!random.one_in(3)).then(|| self.unused_id());
        let publish = Publish {
            dup: packet_id.is_some() && random.one_in(5),
            qos: if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce },
            retain: false,
            topic: EVENTS,
            packet_id: packet_id.and_then(packet_id_of),
            payload: text.as_bytes(),
        };
        self.judge.publishing = Some(self.next_number);
        if let Some(packet_id) = packet_id {
            self.judge.unacknowledged.push_back(Unacknowledged { packet_id, number: self.next_number });
        }
        self.packet(cx, &Packet::Publish(publish), now);
        assert_eq!(self.judge.publishing, None, "a publish that went nowhere");
    }

    /// The same message again, unacknowledged: nothing may be sent upstream.
    fn publish_again(&mut self, cx: &mut Context, now: Now) {
        let Some(first) = self.judge.unacknowledged.front().copied() else { return };
        let text = first.number.to_string();
        let publish = Publish {
            dup: true,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: EVENTS,
            packet_id: packet_id_of(first.packet_id),
            payload: text.as_bytes(),
        };
        self.judge.tally.sent_again += 1;
        self.packet(cx, &Packet::Publish(publish), now);
    }

    fn puback(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        let packet_id = match self.judge.held.len() {
            0 => 60_000,
            held if random.one_in(4) => self.judge.tell_puback(random.below(held)),
            _ => self.judge.tell_puback(0),
        };
        if let Some(packet_id) = packet_id_of(packet_id) {
            self.packet(cx, &Packet::PubAck(packet_id), now);
        }
    }

    fn subscribe(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        let packet_id = self.unused_id();
        let filters: Vec<(&str, QoS)> = (0..=random.below(3))
            .map(|_| (COMMANDS, [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][random.below(3)]))
            .collect();
        self.judge.granted = filters.last().map_or(0, |(_, qos)| (*qos as u8).min(1));
        self.judge.subacks.push_back((packet_id, filters.len()));
        let mut room = Vec::new();
        let id = packet_id_of(packet_id).expect("ids start at 1");
        let subscribe = Subscribe::new(id, filters, &mut room).expect("well-formed filters");
        self.packet(cx, &Packet::Subscribe(subscribe), now);
    }

    fn unsubscribe(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        let packet_id = self.unused_id();
        let filter = if random.one_in(3) { "some/other" } else { COMMANDS };
        self.judge.unsuback = Some(packet_id);
        let mut room = Vec::new();
        let id = packet_id_of(packet_id).expect("ids start at 1");
        let unsubscribe = Unsubscribe::new(id, [filter], &mut room).expect("well-formed filters");
        self.packet(cx, &Packet::Unsubscribe(unsubscribe), now);
        assert_eq!(self.judge.unsuback, None, "an unsubscribe without an answer");
    }

    fn misbehave(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        let publish = Publish {
            dup: false,
            qos: QoS::AtLeastOnce,
            retain: false,
            topic: EVENTS,
            packet_id: packet_id_of(65_000),
            payload: b"bad",
        };
        let packet = match random.below(4) {
            0 => Packet::Publish(Publish { qos: QoS::ExactlyOnce, ..publish }),
            1 => Packet::Publish(Publish { topic: "devices/e/messages/events/", ..publish }),
            2 => Packet::PubRel(PacketId(std::num::NonZeroU16::MIN)),
            _ => match self.judge.unacknowledged.back() {
                // an id in use, without DUP
                Some(last) => Packet::Publish(Publish { packet_id: packet_id_of(last.packet_id), ..publish }),
                None => return,
            },
        };
        self.packet(cx, &packet, now);
        assert!(self.is_over(), "a misbehaving device stays");
    }

    fn packet(&mut self, cx: &mut Context, packet: &Packet<'_>, now: Now) {
        tell!(self.handle_packet(cx, packet, now));
    }

    fn unused_id(&mut self) -> u16 {
        self.next_id = self.next_id % 50_000 + 1;
        self.next_id
    }

    // ── the hub, and the gateway's own reasons ──────────────────────────────────────────────────────────────────────────────

    pub(crate) fn verdict(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        if !self.judge.asked || self.judge.active {
            return;
        }
        let verdict = match random.below(10) {
            0 => Verdict::Refused(Refused { code: ConnectCode::NotAuthorized, reason: RefusedReason::TokenSignature }),
            1..4 => Verdict::Allowed { expires: Some(UnixSeconds(now.unix.0 + 1 + random.below(7200) as u64)) },
            _ => Verdict::Allowed { expires: None },
        };
        self.judge.allowed = matches!(verdict, Verdict::Allowed { .. });
        tell!(self.handle_verdict(cx, &verdict, now));
    }

    pub(crate) fn hub_settles(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        if self.judge.handed.is_empty() {
            return;
        }
        let position = if random.one_in(3) { random.below(self.judge.handed.len()) } else { 0 };
        let outcome = match random.below(400) {
            0 => Outcome::Refused(Refusal::Invalid),
            1 => Outcome::Retry(Refusal::Throttled),
            _ => Outcome::Accepted,
        };
        let handed = self.settle(cx, position, &outcome, now);
        if random.one_in(20) {
            // the same outcome again changes nothing
            tell!(self.handle_outcome(cx, handed.slot, &outcome, now));
        }
    }

    pub(crate) fn settle(&mut self, cx: &mut Context, position: usize, outcome: &Outcome, now: Now) -> Handed {
        let handed = self.judge.handed.remove(position).expect("a position of the queue");
        self.judge.tell_outcome(handed, outcome);
        tell!(self.handle_outcome(cx, handed.slot, outcome, now));
        handed
    }

    pub(crate) fn hub_answers_open(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        if self.judge.receiver() != Receiver::Asked {
            return;
        }
        if random.one_in(100) {
            return tell!(self.handle_commands_opened(cx, Err(Refusal::NotFound), now));
        }
        self.attach(cx, now);
        assert!(self.is_over() || self.judge.subacks.is_empty(), "a subscribe without an answer");
    }

    /// The hub's connection came back: the receiver is attached anew.
    pub(crate) fn hub_came_back(&mut self, cx: &mut Context, now: Now) {
        if self.judge.receiver() == Receiver::On {
            self.judge.tally.receivers_anew += 1;
            self.attach(cx, now);
        }
    }

    fn attach(&mut self, cx: &mut Context, now: Now) {
        self.judge.tell_opened();
        tell!(self.handle_commands_opened(cx, Ok(()), now));
    }

    pub(crate) fn hub_commands(&mut self, random: &mut Random) {
        // now and then beyond the credit, which must come back at once
        let full = self.judge.unsettled() >= usize::from(WINDOW);
        if self.judge.receiver() != Receiver::On || (full && !random.one_in(10)) {
            return;
        }
        self.next_tag += 1;
        let command = Command {
            tag: CommandTag(self.next_tag),
            bag: "".into(),
            payload: Bytes::from(self.next_tag.to_string()),
            qos: if random.one_in(3) { QoS::AtMostOnce } else { QoS::AtLeastOnce },
            redelivered: random.one_in(4),
        };
        self.judge.tell_command(self.next_tag, command.qos);
        tell!(self.handle_command(&command));
    }

    pub(crate) fn outage_is_over_bound(&mut self, cx: &mut Context, now: Now) {
        while !self.judge.handed.is_empty() {
            self.settle(cx, 0, &Outcome::Unreachable, now);
        }
    }

    pub(crate) fn gateway_acts(&mut self, cx: &mut Context, random: &mut Random, now: Now) {
        if random.one_in(2) {
            tell!(self.handle_close(cx, CloseCause::TakenOver));
        } else {
            tell!(self.handle_drain(cx, Millis(now.monotonic.0 + 3_000)));
        }
    }

    pub(crate) fn time_passes(&mut self, cx: &mut Context, now: Now) {
        tell!(self.handle_timeout(cx, now));
        if let Some(deadline) = self.session.poll_timeout() {
            assert!(deadline > now.monotonic, "a deadline in the past is left");
        }
    }

    /// What is still on its way when the session has ended must find nobody. The judge lets no effect pass.
    pub(crate) fn hears_late(mut self, cx: &mut Context, now: Now) -> Judge {
        while !self.judge.handed.is_empty() {
            self.settle(cx, 0, &Outcome::Accepted, now);
        }
        tell!(self.handle_outcome(cx, Slot::WILL, &Outcome::Unreachable, now));
        tell!(self.handle_verdict(cx, &Verdict::Allowed { expires: None }, now));
        tell!(self.handle_commands_opened(cx, Ok(()), now));
        tell!(self.handle_close(cx, CloseCause::Gone));
        tell!(self.handle_timeout(cx, now));
        self.judge
    }

    /// The hub takes everything that is left: every PUBACK that is due comes.
    pub(crate) fn hub_takes_all(&mut self, cx: &mut Context, now: Now) {
        while !self.judge.handed.is_empty() {
            self.settle(cx, 0, &Outcome::Accepted, now);
        }
        assert!(self.is_over() || self.judge.unacknowledged.is_empty(), "an accepted message without a puback");
        // whatever is replayed for slots of the past acknowledges nothing
        for slot in 0..40 {
            tell!(self.handle_outcome(cx, Slot(slot), &Outcome::Accepted, now));
        }
    }
}

fn packet_id_of(number: u16) -> Option<PacketId> {
    number.try_into().ok().map(PacketId)
}
