//! The two windows of unacknowledged messages of one device: [`Inbound`] towards the hub, [`Outbound`] towards the device.
//!
//! They remember who waits for what and in which order; they hold no message, and no memory while nothing is in flight for long.

use std::collections::VecDeque;

use crate::{
    message::{CommandTag, PacketId},
    session::effect::Slot,
};

/// Room that a window keeps while it is empty: one of the usual size costs 64 bytes, a burst's room is given back.
const ENTRIES_KEPT: usize = 16;

/// Device → hub: every PUBLISH handed upstream and not settled yet, in the order received.
///
/// Slots are sequence numbers modulo 65535 ([`Slot::WILL`] is never one), so an outcome that comes twice finds nothing.
#[derive(Debug, Default)]
pub struct Inbound {
    entries: VecDeque<Handed>,
    /// The slot of the first entry.
    first: u16,
}

#[derive(Debug, Clone, Copy)]
struct Handed {
    /// Only QoS 1 has one.
    packet_id: Option<PacketId>,
    progress: Progress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The hub has not answered.
    Pending,
    /// The hub has it; an earlier QoS 1 message is still pending.
    Accepted,
    /// Nothing is owed any more.
    Done,
}

impl Inbound {
    /// Messages that take a place, at most the window's size.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A QoS 1 PUBLISH with this id waits for its PUBACK.
    pub fn awaits(&self, packet_id: PacketId) -> bool {
        self.entries.iter().any(|handed| handed.packet_id == Some(packet_id) && handed.progress != Progress::Done)
    }

    /// Takes the next place for a PUBLISH; `None` if all `window` places are taken.
    #[inline]
    pub fn reserve(&mut self, packet_id: Option<PacketId>, window: u16) -> Option<Slot> {
        if self.entries.len() >= usize::from(window) {
            return None;
        }
        let slot = slot_after(self.first, self.entries.len());
        self.entries.push_back(Handed { packet_id, progress: Progress::Pending });
        Some(slot)
    }

    /// The hub settled `slot`: calls `acknowledge` for every PUBACK that is due now, in the order of the PUBLISHes.
    /// A slot that is not in flight changes nothing and answers `false`.
    #[inline]
    pub fn settle(&mut self, slot: Slot, mut acknowledge: impl FnMut(PacketId)) -> bool {
        let Some(handed) = self.position(slot).and_then(|position| self.entries.get_mut(position)) else {
            return false;
        };
        if handed.progress != Progress::Pending {
            return false;
        }
        handed.progress = if handed.packet_id.is_some() { Progress::Accepted } else { Progress::Done };
        self.acknowledge_in_order(&mut acknowledge);
        self.free_done();
        true
    }

    /// The hub will not take `slot`: its place is free and no PUBACK follows. `false` for a slot that is not in flight.
    pub fn abandon(&mut self, slot: Slot) -> bool {
        let Some(handed) = self.position(slot).and_then(|position| self.entries.get_mut(position)) else {
            return false;
        };
        if handed.progress != Progress::Pending {
            return false;
        }
        handed.progress = Progress::Done;
        self.free_done();
        true
    }

    /// QoS 0 messages owe no PUBACK: they hold nobody up.
    fn acknowledge_in_order(&mut self, acknowledge: &mut impl FnMut(PacketId)) {
        for handed in &mut self.entries {
            match (handed.packet_id, handed.progress) {
                (Some(packet_id), Progress::Accepted) => {
                    handed.progress = Progress::Done;
                    acknowledge(packet_id);
                }
                (Some(_), Progress::Pending) => break,
                _ => {}
            }
        }
    }

    fn free_done(&mut self) {
        while self.entries.front().is_some_and(|handed| handed.progress == Progress::Done) {
            self.entries.pop_front();
            self.first = slot_after(self.first, 1).0;
        }
        give_back_room(&mut self.entries);
    }

    fn position(&self, slot: Slot) -> Option<usize> {
        let ahead = (u32::from(slot.0) + SLOTS - u32::from(self.first)) % SLOTS;
        (slot != Slot::WILL && (ahead as usize) < self.entries.len()).then_some(ahead as usize)
    }
}

/// How many slots there are: all of `u16` but [`Slot::WILL`].
const SLOTS: u32 = u16::MAX as u32;

fn slot_after(first: u16, distance: usize) -> Slot {
    Slot(((u32::from(first) + distance as u32) % SLOTS) as u16)
}

/// Hub → device: every QoS 1 PUBLISH that the device has not acknowledged, in the order sent.
#[derive(Debug, Default)]
pub struct Outbound {
    entries: VecDeque<Sent>,
    /// Entries whose delivery can still be settled: what the hub's credit counts.
    settleable: u16,
    /// The packet id given last, 0 before the first.
    last_id: u16,
}

#[derive(Debug, Clone, Copy)]
struct Sent {
    packet_id: PacketId,
    /// `None` once the link of the delivery is gone: the PUBACK frees the id and settles nothing.
    tag: Option<CommandTag>,
}

impl Outbound {
    /// Commands that the device has not acknowledged and the hub still counts.
    pub fn len(&self) -> usize {
        usize::from(self.settleable)
    }

    /// No command waits for its PUBACK.
    pub fn is_empty(&self) -> bool {
        self.settleable == 0
    }

    /// Takes a place and an unused packet id [MQTT-2.3.1-4]; `None` if `window` commands are unacknowledged.
    pub fn reserve(&mut self, tag: CommandTag, window: u16) -> Option<PacketId> {
        if self.settleable >= window {
            return None;
        }
        if self.entries.len() >= 2 * usize::from(window) {
            self.drop_oldest_unsettleable();
        }
        let packet_id = self.unused_id()?;
        self.entries.push_back(Sent { packet_id, tag: Some(tag) });
        self.settleable += 1;
        Some(packet_id)
    }

    /// The device has it: the delivery to settle, if there is one. An unknown id is nobody's [MQTT 3.1.1, 4.3.2].
    pub fn acknowledge(&mut self, packet_id: PacketId) -> Option<CommandTag> {
        let position = self.entries.iter().position(|sent| sent.packet_id == packet_id)?;
        let sent = self.entries.remove(position)?;
        give_back_room(&mut self.entries);
        self.settleable -= u16::from(sent.tag.is_some());
        sent.tag
    }

    /// The hub's link was attached anew: what came over the old one can not be settled any more. The ids stay in use.
    pub fn forget_tags(&mut self) {
        for sent in &mut self.entries {
            sent.tag = None;
        }
        self.settleable = 0;
    }

    /// Ends the window: every delivery that can still be settled, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = CommandTag> + use<> {
        self.settleable = 0;
        std::mem::take(&mut self.entries).into_iter().filter_map(|sent| sent.tag)
    }

    /// A device that lives through many lost links without any PUBACK does not grow the window for ever.
    fn drop_oldest_unsettleable(&mut self) {
        if let Some(position) = self.entries.iter().position(|sent| sent.tag.is_none()) {
            self.entries.remove(position);
        }
    }

    fn unused_id(&mut self) -> Option<PacketId> {
        for _ in 0..=self.entries.len() {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            let packet_id = PacketId(self.last_id.try_into().ok()?);
            if !self.entries.iter().any(|sent| sent.packet_id == packet_id) {
                return Some(packet_id);
            }
        }
        None
    }
}

fn give_back_room<T>(entries: &mut VecDeque<T>) {
    if entries.is_empty() && entries.capacity() > ENTRIES_KEPT {
        *entries = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> PacketId {
        PacketId(number.try_into().unwrap())
    }

    fn settle(window: &mut Inbound, slot: Slot) -> Vec<u16> {
        let mut acknowledged = Vec::new();
        window.settle(slot, |packet_id| acknowledged.push(packet_id.0.get()));
        acknowledged
    }

    #[test]
    fn pubacks_leave_in_the_order_of_the_publishes() {
        let mut window = Inbound::default();
        let slots: Vec<Slot> = (1..=3).map(|number| window.reserve(Some(id(number)), 16).unwrap()).collect();
        assert_eq!(settle(&mut window, slots[2]), Vec::<u16>::new());
        assert_eq!(settle(&mut window, slots[0]), [1]);
        assert_eq!(settle(&mut window, slots[1]), [2, 3]);
        assert!(window.is_empty());
    }

    #[test]
    fn a_pending_qos_0_message_takes_a_place_but_holds_no_puback_up() {
        let mut window = Inbound::default();
        let first = window.reserve(None, 2).unwrap();
        let second = window.reserve(Some(id(7)), 2).unwrap();
        assert_eq!(window.reserve(None, 2), None);
        assert_eq!(settle(&mut window, second), [7]);
        assert!(!window.awaits(id(7)), "its PUBACK is written: the id is free");
        assert_eq!(settle(&mut window, first), Vec::<u16>::new());
        assert!(window.is_empty());
    }

    #[test]
    fn an_outcome_that_comes_twice_or_for_nobody_changes_nothing() {
        let mut window = Inbound::default();
        let slot = window.reserve(Some(id(1)), 16).unwrap();
        assert!(!window.settle(Slot(9), |_| panic!("nothing is due")));
        assert!(!window.settle(Slot::WILL, |_| panic!("nothing is due")));
        assert_eq!(settle(&mut window, slot), [1]);
        let next = window.reserve(Some(id(1)), 16).unwrap();
        assert!(!window.settle(slot, |_| panic!("nothing is due")));
        assert_eq!(settle(&mut window, next), [1]);
    }

    #[test]
    fn slots_run_round_without_ever_being_the_wills() {
        let mut window = Inbound::default();
        let mut seen_last = false;
        for _ in 0..70_000_u32 {
            let slot = window.reserve(Some(id(1)), 1).unwrap();
            seen_last |= slot == Slot(u16::MAX - 1);
            assert_ne!(slot, Slot::WILL);
            assert_eq!(settle(&mut window, slot), [1]);
        }
        assert!(seen_last);
    }

    #[test]
    fn a_bursts_room_is_given_back() {
        let mut window = Inbound::default();
        let slots: Vec<Slot> = (0..1000).map(|_| window.reserve(None, 1000).unwrap()).collect();
        for slot in slots {
            settle(&mut window, slot);
        }
        assert!(window.entries.capacity() <= ENTRIES_KEPT);
    }

    #[test]
    fn mqtt_2_3_1_4_packet_ids_are_not_zero_and_not_in_use() {
        let mut window = Outbound::default();
        let held = window.reserve(CommandTag(0), 16).unwrap();
        for round in 1..70_000_u64 {
            let given = window.reserve(CommandTag(round), 16).unwrap();
            assert_ne!(given, held);
            assert_eq!(window.acknowledge(given), Some(CommandTag(round)));
        }
        assert_eq!(window.acknowledge(held), Some(CommandTag(0)));
    }

    #[test]
    fn commands_stop_at_the_window_and_go_on_in_any_order_of_pubacks() {
        let mut window = Outbound::default();
        let first = window.reserve(CommandTag(1), 2).unwrap();
        let second = window.reserve(CommandTag(2), 2).unwrap();
        assert_eq!(window.reserve(CommandTag(3), 2), None);
        assert_eq!(window.acknowledge(second), Some(CommandTag(2)));
        assert!(window.reserve(CommandTag(3), 2).is_some());
        assert_eq!(window.drain().collect::<Vec<_>>(), [CommandTag(1), CommandTag(3)]);
        assert_eq!(window.acknowledge(first), None);
    }

    #[test]
    fn a_lost_link_voids_its_tags_and_frees_the_window_within_a_bound() {
        let mut window = Outbound::default();
        let first = window.reserve(CommandTag(0), 2).unwrap();
        for link in 1..10 {
            window.forget_tags();
            assert!(window.is_empty());
            window.reserve(CommandTag(link), 2).unwrap();
            window.reserve(CommandTag(link + 100), 2).unwrap();
            assert!(window.entries.len() <= 4);
        }
        assert_eq!(window.acknowledge(first), None);
        assert_eq!(window.drain().count(), 2);
    }
}
