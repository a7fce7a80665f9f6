//! Messages of devices: taken, transferred, settled, and after a loss transferred again in the order they came.

use amqp_endpoint::{LinkId, NotSent, Outcome as AmqpOutcome};
use gateway_core::{
    message::{Outcome, QoS, Refusal, Telemetry},
    session::effect::Slot,
    upstream::{self, Disposition},
};

use super::{
    device::{Message, Role, Tie},
    encode,
    state::State,
};
use crate::{metrics::Limit, upstream::arena::Key};

impl State {
    /// Takes a message of `device`: encoded once, kept until it is settled. The session's window bounds how many, and
    /// `unsettledBytesMax` those of all devices.
    pub(super) fn send(&mut self, device: u32, (slot, qos): (Slot, QoS), telemetry: &Telemetry<'_>) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let mut bytes = self.pool.buffers.take();
        let sender = (!self.pool.target().is_iot_hub()).then_some(&owner.identity);
        encode::telemetry(&mut bytes, telemetry, sender);
        self.pool.held.take(bytes.len());
        let given_us = self.pool.clock.turn_us();
        let message = Message { device, slot, qos, bytes, given_us, sent: None, in_doubt: false };
        let key = self.messages.push_back(&mut owner.queue, message);
        owner.next.get_or_insert(key);
        self.pool.metrics.up.inflight.add(1);
        self.pump(device);
    }

    /// Transfers what waits, as far as link and connection let it. Nothing overtakes a message that the hub did not take: its
    /// device is about to go, and sends it again.
    pub(super) fn pump(&mut self, device: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let link = match owner.sender {
            Tie::Open(link) => link,
            Tie::None if owner.next.is_some() => return self.want(device, Role::Telemetry),
            _ => return,
        };
        let Some(endpoint) = &mut self.endpoint else { return };
        while let Some(key) = owner.next {
            let message = self.messages.get_mut(key).expect("a device's queue is in the arena");
            if owner.refused && !message.is_only_here() {
                owner.next = self.messages.after(key);
                continue;
            }
            match endpoint.send(link, u64::from(key.0), false, 0, &[&message.bytes]) {
                Ok(()) => {
                    message.sent = Some((link, self.pool.clock.turn_us()));
                    self.pool.metrics.upstream_resent.add(u64::from(message.in_doubt));
                    owner.next = self.messages.after(key);
                }
                Err(NotSent::TooLarge) => {
                    owner.next = self.messages.after(key);
                    let message = self.messages.remove(&mut owner.queue, key).expect("it was there just now");
                    message.end(&self.pool, &owner.inbox, Outcome::Refused(Refusal::TooLarge));
                    self.handle_refused(device);
                    self.remove_settled(device);
                    return self.pump(device);
                }
                Err(not_sent) => {
                    if not_sent == NotSent::OutputFull {
                        self.pool.metrics.limits.at(Limit::UpstreamOutput).inc();
                    }
                    // `Sendable` follows, or the end of the link
                    return;
                }
            }
        }
    }

    /// The hub's word on one message.
    pub(super) fn handle_settled(&mut self, link: LinkId, key: Key, outcome: &AmqpOutcome) {
        let Some(disposition) = disposition(outcome) else { return };
        let Some(message) = self.messages.get(key) else { return };
        if message.sent.is_none_or(|(sent, _)| sent != link) {
            return;
        }
        let device = message.device;
        let owner = self.devices.get_mut(device as usize).expect("messages leave with their device");
        let message = self.messages.remove(&mut owner.queue, key).expect("it was there just now");
        let took_us = self.pool.clock.turn_us().saturating_sub(message.given_us);
        self.pool.metrics.up.settle.observe_us(took_us);
        let outcome = upstream::outcome(disposition);
        let accepted = outcome == Outcome::Accepted;
        message.end(&self.pool, &owner.inbox, outcome);
        if accepted {
            owner.trouble = None;
        } else {
            self.handle_refused(device);
        }
        self.remove_settled(device);
    }

    /// The hub did not take a message: nothing that came after it may overtake it.
    fn handle_refused(&mut self, device: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        owner.refused = true;
        if owner.leaving {
            self.forsake(device);
        }
    }

    /// Forgets a device that is gone, once nothing of it is owed an outcome.
    fn remove_settled(&mut self, device: u32) {
        if self.devices.get(device as usize).is_some_and(|owner| owner.leaving && owner.queue.is_empty()) {
            self.remove(device);
        }
    }

    /// What was transferred on a link that is gone goes again, before anything newer; but see [`State::forsake`].
    pub(super) fn rewind(&mut self, device: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let mut next = owner.queue.first();
        while let Some(key) = next {
            let message = self.messages.get_mut(key).expect("a device's queue is in the arena");
            message.in_doubt |= message.sent.take().is_some();
            next = self.messages.after(key);
        }
        owner.next = owner.queue.first();
        if owner.leaving {
            self.forsake(device);
            self.remove_settled(device);
        }
    }

    /// Drops what a device that is gone need not have sent for it: what is in doubt, and what came after a message that the hub
    /// did not take, which it must not overtake. QoS 1 the device sends again itself, for it has no PUBACK: copies would only
    /// make duplicates, a window of them for each time that it comes back to a hub that throttles. QoS 0 in doubt may have
    /// arrived, which is as often as was promised. A Will goes again, it is nobody else's to send; QoS 0 that has not gone yet
    /// goes, whatever was refused; and all that has not gone yet goes if nothing was: the device may have said goodbye
    /// without waiting.
    pub(super) fn forsake(&mut self, device: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let mut next = owner.queue.first();
        owner.next = None;
        while let Some(key) = next {
            next = self.messages.after(key);
            let message = self.messages.get(key).expect("a device's queue is in the arena");
            if message.sent.is_some() {
                continue;
            }
            if !message.is_only_here() && (message.in_doubt || owner.refused) {
                let message = self.messages.remove(&mut owner.queue, key).expect("it was there just now");
                message.drop_unsettled(&self.pool);
            } else {
                owner.next.get_or_insert(key);
            }
        }
    }

    /// The link ended over the size of a message: the first one under way was it. Without this it would go again for ever.
    pub(super) fn refuse_first(&mut self, device: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let Some(key) = owner.queue.first() else { return };
        if self.messages.get(key).is_some_and(|message| message.sent.is_some()) {
            if owner.next == Some(key) {
                owner.next = self.messages.after(key);
            }
            owner.refused = true;
            let message = self.messages.remove(&mut owner.queue, key).expect("it was there just now");
            message.end(&self.pool, &owner.inbox, Outcome::Refused(Refusal::TooLarge));
        }
    }

    /// Looks at the oldest message of a device: too long without a disposition, and its link is opened anew.
    pub(super) fn check_age(&mut self, device: u32, now_us: u64) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let Some(message) = owner.queue.first().and_then(|key| self.messages.get(key)) else { return };
        let target = self.pool.target();
        let limits = &target.limits;
        let Some((link, sent_us)) = message.sent else { return };
        let sent = std::time::Duration::from_micros(now_us.saturating_sub(sent_us));
        if sent >= limits.settle_timeout && owner.sender == Tie::Open(link) {
            self.pool.metrics.limits.at(Limit::SettleTimeout).inc();
            tracing::debug!(device = %owner.identity, "no disposition in time, attaching again");
            owner.sender = Tie::Detaching(link);
            if let Some(endpoint) = &mut self.endpoint {
                endpoint.detach(link);
            }
        }
    }
}

/// The terminal state in the words of the core; `None`: in doubt, and the end of its link follows.
fn disposition(outcome: &AmqpOutcome) -> Option<Disposition<'_>> {
    match outcome {
        AmqpOutcome::Accepted => Some(Disposition::Accepted),
        AmqpOutcome::Rejected(error) => Some(Disposition::Rejected(error.as_ref().map(|error| &*error.condition))),
        AmqpOutcome::Released => Some(Disposition::Released),
        AmqpOutcome::Modified { undeliverable_here, .. } => {
            Some(Disposition::Modified { undeliverable_here: *undeliverable_here })
        }
        AmqpOutcome::Lost => None,
    }
}
