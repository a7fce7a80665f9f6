//! Cloud-to-device: the one subscription that is served, the receiver behind it, and the commands under way.

use arrayvec::ArrayVec;

use super::{
    effect::{CloseCause, Effect, Effects},
    ended::Ended,
};
use crate::{
    codec::{
        Packet,
        packet::{Publish, Subscribe, Unsubscribe},
    },
    delivery::Outbound,
    message::{Command, DeviceId, PacketId, QoS, Settlement},
    topic::{self, Filter, IdForm},
};

/// Contract §2.5: filters of one device, and so of one SUBSCRIBE.
const FILTERS_MAX: usize = 5;

/// SUBACKs that may wait for the receiver; at the bound the device is not read.
const SUBACKS_MAX: usize = 4;

/// A topic name's longest form [MQTT-4.7.3-3].
const TOPIC_BYTES_MAX: usize = u16::MAX as usize;

#[derive(Debug)]
pub(super) struct Commands {
    receiver: Receiver,
    granted: QoS,
    /// How the device writes its id in the filter it subscribed last, and in topics.
    id_form: IdForm,
    waiting: Vec<SubAck>,
    outbound: Outbound,
    /// Credit given to the hub: unacknowledged commands at most.
    window: u16,
}

//  Off ──SUBSCRIBE──► Opening ──opened──► On ──UNSUBSCRIBE──► Off
//                        └─UNSUBSCRIBE─► Unwanted ──opened──► Off      (one answer is awaited at a time)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receiver {
    Off,
    Opening,
    Unwanted,
    On,
}

#[derive(Debug)]
struct SubAck {
    packet_id: PacketId,
    codes: ArrayVec<u8, FILTERS_MAX>,
}

impl Commands {
    pub(super) fn new(window: u16) -> Self {
        Self {
            receiver: Receiver::Off,
            granted: QoS::AtMostOnce,
            id_form: IdForm::Plain,
            waiting: Vec::new(),
            outbound: Outbound::default(),
            window,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.waiting.len() < SUBACKS_MAX
    }

    pub(super) fn in_flight(&self) -> usize {
        self.outbound.len()
    }

    /// [MQTT-3.8.4-4] several filters: as one after the other. A filter that is not served ends the session, as the hub does:
    /// no SUBACK 0x80 (contract §2.5). [MQTT-3.8.4-3] the same filter again replaces, without a gap.
    pub(super) fn subscribe(
        &mut self,
        identity: &DeviceId,
        subscribe: &Subscribe<'_>,
        out: &mut Effects<'_>,
    ) -> Result<(), Ended> {
        let mut codes = ArrayVec::new();
        for (filter, requested) in subscribe.filters() {
            self.id_form = served(identity, filter)?;
            self.granted = requested.min(QoS::AtLeastOnce);
            codes.try_push(self.granted as u8).map_err(|_| Ended::new(CloseCause::Topic, "more than five filters"))?;
        }
        let ack = SubAck { packet_id: subscribe.packet_id, codes };
        match self.receiver {
            Receiver::On => ack.write(out),
            Receiver::Opening => self.waiting.push(ack),
            Receiver::Unwanted => {
                self.receiver = Receiver::Opening;
                self.waiting.push(ack);
            }
            Receiver::Off => {
                self.receiver = Receiver::Opening;
                self.waiting.push(ack);
                out(Effect::OpenCommands { credit: u32::from(self.window) });
            }
        }
        Ok(())
    }

    /// [MQTT-3.10.4-1], [MQTT-3.10.4-5] UNSUBACK even if no filter is the subscribed one to the letter. [MQTT-3.10.4-3] commands under way finish: their PUBACKs still settle.
    pub(super) fn unsubscribe(&mut self, identity: &DeviceId, unsubscribe: &Unsubscribe<'_>, out: &mut Effects<'_>) {
        let subscribed = Some(Filter::Commands(self.id_form));
        if unsubscribe.filters().any(|filter| topic::filter(identity, filter) == subscribed) {
            match self.receiver {
                Receiver::On => {
                    self.receiver = Receiver::Off;
                    out(Effect::CloseCommands);
                }
                Receiver::Opening => self.receiver = Receiver::Unwanted,
                Receiver::Off | Receiver::Unwanted => {}
            }
        }
        out(Effect::Write(Packet::UnsubAck(unsubscribe.packet_id)));
    }

    /// The receiver is attached: for the first time, or anew after its AMQP connection was lost.
    pub(super) fn opened(&mut self, out: &mut Effects<'_>) {
        self.outbound.forget_tags();
        for ack in std::mem::take(&mut self.waiting) {
            ack.write(out);
        }
        match self.receiver {
            Receiver::Opening => self.receiver = Receiver::On,
            Receiver::Unwanted => {
                self.receiver = Receiver::Off;
                out(Effect::CloseCommands);
            }
            Receiver::On | Receiver::Off => {}
        }
    }

    /// Each delivery of the hub is a PUBLISH of its own; DUP says that the hub sent it before (contract §2.8). QoS 0 is complete
    /// once written, redelivered or not: a command is rather seen twice than never.
    pub(super) fn deliver(&mut self, identity: &DeviceId, command: &Command, out: &mut Effects<'_>) {
        let mut settle = |settlement| out(Effect::Settle(command.tag, settlement));
        if self.receiver != Receiver::On {
            return settle(Settlement::Released);
        }
        let topic = topic::command_topic(identity, self.id_form, &command.bag);
        if topic.len() > TOPIC_BYTES_MAX {
            return settle(Settlement::Rejected);
        }
        let qos = command.qos.min(self.granted);
        let packet_id = match qos {
            QoS::AtMostOnce => None,
            _ => match self.outbound.reserve(command.tag, self.window) {
                Some(packet_id) => Some(packet_id),
                None => return settle(Settlement::Released),
            },
        };
        let dup = packet_id.is_some() && command.redelivered;
        let publish = Publish { dup, qos, retain: false, topic: &topic, packet_id, payload: &command.payload };
        out(Effect::Write(Packet::Publish(publish)));
        if packet_id.is_none() {
            out(Effect::Settle(command.tag, Settlement::Accepted));
        }
    }

    /// PUBACK = complete. An id that nobody waits for is ignored.
    pub(super) fn acknowledge(&mut self, packet_id: PacketId, out: &mut Effects<'_>) {
        if let Some(tag) = self.outbound.acknowledge(packet_id) {
            out(Effect::Settle(tag, Settlement::Accepted));
        }
    }

    /// The device is gone: what it did not acknowledge goes back at once instead of staying locked for a minute (contract §6, §8).
    pub(super) fn leave(&mut self, out: &mut Effects<'_>) {
        for tag in self.outbound.drain() {
            out(Effect::Settle(tag, Settlement::Released));
        }
        if std::mem::replace(&mut self.receiver, Receiver::Off) != Receiver::Off {
            out(Effect::CloseCommands);
        }
    }
}

impl SubAck {
    /// [MQTT-3.8.4-2], [MQTT-3.9.3-1]
    fn write(&self, out: &mut Effects<'_>) {
        out(Effect::Write(Packet::SubAck { packet_id: self.packet_id, codes: &self.codes }));
    }
}

fn served(identity: &DeviceId, filter: &str) -> Result<IdForm, Ended> {
    match topic::filter(identity, filter) {
        Some(Filter::Commands(form)) => Ok(form),
        Some(_) => Err(Ended::new(CloseCause::Topic, "twin, method and input filters are not served yet")),
        None => Err(Ended::new(CloseCause::Topic, "a filter that is not the device's")),
    }
}
