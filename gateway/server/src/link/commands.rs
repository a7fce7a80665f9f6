//! Cloud-to-device: the receiver of a device, its credit, and the settlement of what came.

use amqp_endpoint::{Delivery, DeliveryId, Error, Settle};
use gateway_core::message::{CommandTag, Refusal, Settlement};

use super::{
    command,
    device::{Role, Tie},
    state::State,
};
use crate::upstream::UpstreamEvent;

impl State {
    /// Attaches the command receiver of `device`.
    pub(super) fn open_commands(&mut self, device: u32, credit: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        if self.pool.target().command_address(&owner.identity).is_none() {
            return owner.inbox.post(UpstreamEvent::CommandsOpened(Err(Refusal::NotFound)));
        }
        owner.commands.window = credit.max(1);
        if matches!(owner.commands.tie, Tie::Open(_)) {
            return owner.inbox.post(UpstreamEvent::CommandsOpened(Ok(())));
        }
        owner.commands.asked = true;
        self.want(device, Role::Commands);
    }

    /// Detaches the command receiver: what is not settled goes back to the hub's queue.
    pub(super) fn close_commands(&mut self, device: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        owner.commands.window = 0;
        owner.commands.asked = false;
        match owner.commands.tie {
            Tie::Attaching(link) | Tie::Open(link) => {
                owner.commands.tie = Tie::Detaching(link);
                if let Some(endpoint) = &mut self.endpoint {
                    endpoint.detach(link);
                }
            }
            Tie::Detaching(_) => {}
            Tie::None | Tie::Wanted | Tie::Held(_) => owner.commands.tie = Tie::None,
        }
    }

    /// Settles one command and gives its credit back.
    pub(super) fn settle(&mut self, device: u32, tag: CommandTag, settlement: Settlement) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let (generation, id) = ((tag.0 >> 32) as u32, DeliveryId(tag.0 as u32));
        let Tie::Open(link) = owner.commands.tie else { return };
        let Some(endpoint) = &mut self.endpoint else { return };
        if owner.commands.generation != generation {
            return;
        }
        endpoint.settle(link, id, outcome(settlement));
        owner.commands.unsettled = owner.commands.unsettled.saturating_sub(1);
        endpoint.grant(link, owner.commands.window.saturating_sub(owner.commands.unsettled));
    }

    /// A message for a device: decoded and posted, or rejected if no device could ever be given it.
    pub(super) fn handle_command(&mut self, device: u32, delivery: &Delivery) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        if owner.commands.tie != Tie::Open(delivery.link) {
            return;
        }
        let tag = CommandTag(u64::from(owner.commands.generation) << 32 | u64::from(delivery.id.0));
        match command::decode(tag, &delivery.message) {
            Ok(command) => {
                // a settled delivery has no disposition: its credit comes back with the device's settlement all the same
                owner.commands.unsettled += 1;
                owner.inbox.post(UpstreamEvent::Command(command));
            }
            Err(reason) => {
                tracing::debug!(device = %owner.identity, %reason, "rejected a command of the hub");
                self.reject(device, delivery, &reason);
            }
        }
    }

    fn reject(&mut self, device: u32, delivery: &Delivery, reason: &command::Unusable) {
        let (Some(endpoint), Some(owner)) = (&mut self.endpoint, self.devices.get(device as usize)) else { return };
        if !delivery.settled {
            let error = Error::new("amqp:decode-error", reason.to_string());
            endpoint.settle(delivery.link, delivery.id, Settle::Rejected(Box::new(error)));
        }
        endpoint.grant(delivery.link, owner.commands.window.saturating_sub(owner.commands.unsettled));
    }
}

fn outcome(settlement: Settlement) -> Settle {
    match settlement {
        Settlement::Accepted => Settle::Accepted,
        Settlement::Released => Settle::Released,
        Settlement::Rejected => {
            Settle::Rejected(Box::new(Error::new("amqp:not-allowed", "the device cannot take this message")))
        }
    }
}
