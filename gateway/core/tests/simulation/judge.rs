//! What one session was told and what it did, held against what it promises. Knows nothing of its insides.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use gateway_core::{
    codec::{
        Packet,
        packet::{ConnectCode, Publish},
    },
    message::{Outcome, QoS, Settlement, Telemetry},
    session::{
        Effect,
        effect::{CloseCause, Slot},
    },
};

pub(crate) const WINDOW: u16 = 4;

/// A message on its way to the hub.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handed {
    pub(crate) slot: Slot,
    pub(crate) number: u64,
}

/// A QoS 1 message whose PUBACK is due some time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unacknowledged {
    pub(crate) packet_id: u16,
    pub(crate) number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Receiver {
    Off,
    Asked,
    On,
}

/// How a command was written to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Not,
    AtMostOnce,
    AtLeastOnce,
}

/// One command given to the session.
#[derive(Debug)]
struct Delivered {
    qos: QoS,
    written: Written,
    acknowledged: bool,
    settled: bool,
    /// Its link is gone.
    void: bool,
}

impl Delivered {
    /// Written at QoS 1, and its settlement is still owed.
    fn is_with_device(&self) -> bool {
        self.written == Written::AtLeastOnce && !self.settled && !self.void
    }
}

#[derive(Debug, Default)]
pub(crate) struct Judge {
    pub(crate) allowed: bool,
    pub(crate) has_will: bool,
    pub(crate) disconnected: bool,
    pub(crate) active: bool,
    pub(crate) closed: Option<CloseCause>,
    /// The message of the PUBLISH being handled; none if it must not be sent.
    pub(crate) publishing: Option<u64>,
    pub(crate) unacknowledged: VecDeque<Unacknowledged>,
    pub(crate) handed: VecDeque<Handed>,
    pub(crate) accepted: BTreeSet<u64>,
    pub(crate) receiver: Option<Receiver>,
    pub(crate) granted: u8,
    pub(crate) subacks: VecDeque<(u16, usize)>,
    pub(crate) unsuback: Option<u16>,
    pub(crate) pinged: bool,
    /// Packet ids that the device has not acknowledged.
    pub(crate) held: Vec<(u16, u64)>,
    delivering: Option<u64>,
    commands: BTreeMap<u64, Delivered>,
    pub(crate) asked: bool,
    wills: u32,
    only_close_may_follow: bool,
    pub(crate) tally: Tally,
}

/// How often what happened, so that a world in which nothing happens does not pass.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) pubacks: u64,
    pub(crate) wills: u64,
    pub(crate) sent_again: u64,
    pub(crate) window_full: u64,
    pub(crate) commands_completed: u64,
    pub(crate) commands_released: u64,
    pub(crate) subacks: u64,
    pub(crate) receivers_anew: u64,
    pub(crate) closed: BTreeMap<String, u64>,
}

impl Judge {
    pub(crate) fn see(&mut self, effect: &Effect<'_>) {
        assert_eq!(self.closed, None, "an effect after close: {effect:?}");
        assert!(!self.only_close_may_follow || matches!(effect, Effect::Close(_)), "not the end: {effect:?}");
        match effect {
            Effect::Authenticate(_) => assert!(!std::mem::replace(&mut self.asked, true), "asked twice"),
            Effect::Write(packet) => self.see_packet(packet),
            Effect::Send { slot, telemetry, .. } => self.see_send(*slot, telemetry),
            Effect::OpenCommands { credit } => {
                assert_eq!(*credit, u32::from(WINDOW));
                assert_eq!(self.receiver(), Receiver::Off, "opened twice");
                self.receiver = Some(Receiver::Asked);
            }
            Effect::CloseCommands => {
                assert_ne!(self.receiver(), Receiver::Off, "closed twice");
                self.only_close_may_follow = self.receiver() == Receiver::Asked;
                self.receiver = Some(Receiver::Off);
            }
            Effect::Settle(tag, settlement) => self.see_settle(tag.0, *settlement),
            Effect::Close(cause) => self.see_close(*cause),
        }
    }

    pub(crate) fn receiver(&self) -> Receiver {
        self.receiver.unwrap_or(Receiver::Off)
    }

    /// The hub's answer, given to the session next.
    pub(crate) fn tell_outcome(&mut self, handed: Handed, outcome: &Outcome) {
        if *outcome == Outcome::Accepted {
            self.accepted.insert(handed.number);
        }
    }

    /// The receiver is attached, first or anew: deliveries of before are void.
    pub(crate) fn tell_opened(&mut self) {
        self.receiver = Some(Receiver::On);
        for delivered in self.commands.values_mut().filter(|delivered| !delivered.settled) {
            delivered.void = true;
        }
    }

    pub(crate) fn tell_command(&mut self, tag: u64, qos: QoS) {
        self.delivering = Some(tag);
        let delivered = Delivered { qos, written: Written::Not, acknowledged: false, settled: false, void: false };
        self.commands.insert(tag, delivered);
    }

    /// The device acknowledges one packet id that it holds.
    pub(crate) fn tell_puback(&mut self, position: usize) -> u16 {
        let (packet_id, tag) = self.held.remove(position);
        if let Some(delivered) = self.commands.get_mut(&tag) {
            delivered.acknowledged = true;
        }
        packet_id
    }

    /// Commands that the hub still counts against its credit.
    pub(crate) fn unsettled(&self) -> usize {
        self.commands.values().filter(|delivered| !delivered.settled && !delivered.void).count()
    }

    fn see_packet(&mut self, packet: &Packet<'_>) {
        match packet {
            Packet::ConnAck { session_present, code } => {
                assert!(!session_present && !self.active);
                assert!(*code != ConnectCode::Accepted || (self.asked && self.allowed), "let in without a verdict");
                self.active = *code == ConnectCode::Accepted;
                self.only_close_may_follow = !self.active;
            }
            Packet::PubAck(packet_id) => {
                let first = self.unacknowledged.pop_front().expect("a puback for nothing");
                assert_eq!(packet_id.0.get(), first.packet_id, "pubacks out of order");
                assert!(self.accepted.contains(&first.number), "a puback before the hub accepted");
                self.tally.pubacks += 1;
            }
            Packet::SubAck { packet_id, codes } => {
                assert_eq!(self.receiver(), Receiver::On, "a suback before the receiver is attached");
                assert_eq!(self.subacks.pop_front(), Some((packet_id.0.get(), codes.len())));
                self.tally.subacks += 1;
            }
            Packet::UnsubAck(packet_id) => assert_eq!(self.unsuback.take(), Some(packet_id.0.get())),
            Packet::PingResp => assert!(std::mem::take(&mut self.pinged), "pong without ping"),
            Packet::Publish(publish) => self.see_command(publish),
            other => panic!("a server does not send {other:?}"),
        }
    }

    fn see_send(&mut self, slot: Slot, telemetry: &Telemetry<'_>) {
        if slot == Slot::WILL {
            assert!(self.active && self.has_will && !self.disconnected, "a will that is not due");
            assert_eq!(telemetry.payload, b"will");
            self.wills += 1;
            return;
        }
        let number = self.publishing.take().expect("sent without a publish, or twice");
        assert_eq!(telemetry.payload, number.to_string().as_bytes());
        assert!(self.handed.iter().all(|handed| handed.slot != slot), "a slot in use is given again");
        self.handed.push_back(Handed { slot, number });
        assert!(self.handed.len() <= usize::from(WINDOW), "the window is exceeded");
        self.tally.sent += 1;
    }

    fn see_command(&mut self, publish: &Publish<'_>) {
        let tag = self.delivering.expect("a publish without a command");
        let delivered = self.commands.get_mut(&tag).expect("a command that was given");
        assert_eq!(publish.payload, tag.to_string().as_bytes());
        assert_eq!(publish.qos as u8, self.granted.min(delivered.qos as u8));
        assert_eq!(delivered.written, Written::Not, "written twice");
        let packet_id = publish.packet_id.map(|packet_id| packet_id.0.get());
        delivered.written = if packet_id.is_some() { Written::AtLeastOnce } else { Written::AtMostOnce };
        if let Some(packet_id) = packet_id {
            assert!(self.held.iter().all(|(held, _)| *held != packet_id), "a packet id in use is given again");
            self.held.push((packet_id, tag));
        }
        let written = self.commands.values().filter(|delivered| delivered.is_with_device()).count();
        assert!(written <= usize::from(WINDOW), "the window of commands is exceeded");
    }

    fn see_settle(&mut self, tag: u64, settlement: Settlement) {
        let delivered = self.commands.get_mut(&tag).expect("a command that was given");
        assert!(!delivered.settled && !delivered.void, "settled twice, or over a link that is gone");
        delivered.settled = true;
        match settlement {
            Settlement::Accepted => {
                let has_it = match delivered.written {
                    Written::AtMostOnce => true,
                    Written::AtLeastOnce => delivered.acknowledged,
                    Written::Not => false,
                };
                assert!(has_it, "completed before the device has it");
                self.tally.commands_completed += 1;
            }
            Settlement::Released => {
                assert!(!delivered.acknowledged, "given back although the device has it");
                self.tally.commands_released += 1;
            }
            Settlement::Rejected => panic!("nothing here is undeliverable"),
        }
    }

    fn see_close(&mut self, cause: CloseCause) {
        self.closed = Some(cause);
        let due = self.active && self.has_will && !self.disconnected;
        assert_eq!(self.wills, u32::from(due), "the will leaves exactly once when it is due");
        assert_eq!(self.receiver(), Receiver::Off, "the receiver is left open");
        assert_eq!(self.unsettled(), 0, "a command is left without a settlement");
        self.tally.wills += u64::from(self.wills);
        *self.tally.closed.entry(format!("{cause:?}")).or_default() += 1;
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.pubacks += other.pubacks;
        self.wills += other.wills;
        self.sent_again += other.sent_again;
        self.window_full += other.window_full;
        self.commands_completed += other.commands_completed;
        self.commands_released += other.commands_released;
        self.subacks += other.subacks;
        self.receivers_anew += other.receivers_anew;
        for (cause, times) in &other.closed {
            *self.closed.entry(cause.clone()).or_default() += times;
        }
    }

    pub(crate) fn assert_everything_happened(&self) {
        let counts = [
            self.sent,
            self.pubacks,
            self.wills,
            self.sent_again,
            self.window_full,
            self.commands_completed,
            self.commands_released,
            self.subacks,
            self.receivers_anew,
        ];
        assert!(counts.iter().all(|count| *count > 1000), "too little happened: {self:#?}");
        for cause in [
            CloseCause::Disconnect,
            CloseCause::Gone,
            CloseCause::KeepAlive,
            CloseCause::TakenOver,
            CloseCause::TokenExpired,
            CloseCause::Refused,
            CloseCause::ProtocolViolation,
            CloseCause::Topic,
            CloseCause::QoS2,
            CloseCause::HubRefused,
            CloseCause::HubUnreachable,
            CloseCause::HandshakeTimeout,
            CloseCause::Shutdown,
        ] {
            assert!(self.closed.contains_key(&format!("{cause:?}")), "never seen: {cause:?}");
        }
    }
}
