//! Devices come, leave, are let go and move to another connection.

use std::rc::Rc;

use gateway_core::{auth::Client, message::Outcome, session::effect::CloseCause};

use super::{
    device::{Device, Message, Passenger, Role, Stage, Tie},
    state::State,
};
use crate::upstream::UpstreamEvent;

impl State {
    /// Takes a device on, with what it brings along.
    pub(super) fn take_on(&mut self, passenger: Passenger) -> u32 {
        let Passenger { identity, inbox, proof, client, commands, messages, refused } = passenger;
        let mut owner = Device::new(identity, inbox);
        (owner.proof, owner.client, owner.refused) = (proof, client, refused);
        (owner.commands.window, owner.commands.asked) = commands;
        let waits = owner.proof.is_some();
        let device = self.devices.insert(owner) as u32;
        let owner = &mut self.devices[device as usize];
        for message in messages {
            let in_doubt = message.in_doubt || message.sent.is_some();
            self.messages.push_back(&mut owner.queue, Message { device, sent: None, in_doubt, ..message });
        }
        owner.next = owner.queue.first();
        if waits {
            self.tokens.waiting.push_back(device);
            self.put_waiting_tokens();
        } else {
            self.resume(device);
        }
        device
    }

    /// What the hub is told of a device when a link of it attaches; other brokers do not ask.
    pub(super) fn introduce(&mut self, device: u32, client: Client) {
        if self.pool.target().is_iot_hub()
            && let Some(owner) = self.devices.get_mut(device as usize)
        {
            owner.client = Some(Box::new(client));
        }
    }

    /// The device's connection is gone: its commands go back at once, its messages are still settled.
    pub(super) fn leave(&mut self, device: u32) {
        self.close_commands(device);
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        owner.leaving = true;
        let undecided = owner.proof.as_ref().is_some_and(|proof| proof.asked || proof.stage == Stage::Failed);
        self.forsake(device);
        if undecided || self.devices.get(device as usize).is_some_and(|owner| owner.queue.is_empty()) {
            self.remove(device);
        }
    }

    /// Wants the links that a device has a use for.
    pub(super) fn resume(&mut self, device: u32) {
        for role in [Role::Telemetry, Role::Commands] {
            if self.devices.get(device as usize).is_some_and(|owner| owner.needs(role)) {
                self.want(device, role);
            }
        }
    }

    /// The hub has no place for this device: tells it, and forgets it.
    pub(super) fn let_go(&mut self, device: u32, cause: CloseCause) {
        let Some(inbox) = self.devices.get(device as usize).map(|owner| Rc::clone(&owner.inbox)) else { return };
        inbox.route.take();
        if cause == CloseCause::HubUnreachable {
            self.end_messages(device);
        }
        self.remove(device);
        inbox.post(UpstreamEvent::Lost(cause));
    }

    /// Every message of `device` may or may not have reached the hub, and nobody will know.
    fn end_messages(&mut self, device: u32) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        owner.next = None;
        while let Some(message) = self.messages.pop_front(&mut owner.queue) {
            message.end(&self.pool, &owner.inbox, Outcome::Unreachable);
        }
    }

    /// Detaches a device's links and forgets it with its messages.
    pub(super) fn remove(&mut self, device: u32) {
        self.forget_token(device);
        let Some(mut owner) = self.devices.try_remove(device as usize) else { return };
        while let Some(message) = self.messages.pop_front(&mut owner.queue) {
            message.drop_unsettled(&self.pool);
        }
        self.detach(&owner);
        self.pool.placement.borrow_mut().leave(self.key, self.pool.clock.monotonic());
        if self.messages.is_empty() {
            self.messages.shrink();
        }
    }

    fn detach(&mut self, owner: &Device) {
        let Some(endpoint) = &mut self.endpoint else { return };
        for tie in [owner.sender, owner.commands.tie] {
            if let Tie::Attaching(link) | Tie::Open(link) = tie {
                endpoint.detach(link);
            }
        }
    }

    /// Devices that another connection has to take, with all that they wait for.
    pub(super) fn take_moves(&mut self) -> Vec<Passenger> {
        let moves = std::mem::take(&mut self.moves);
        moves.into_iter().filter_map(|device| self.take_off(device)).collect()
    }

    fn take_off(&mut self, device: u32) -> Option<Passenger> {
        let mut owner = self.devices.try_remove(device as usize)?;
        self.detach(&owner);
        let messages = std::iter::from_fn(|| self.messages.pop_front(&mut owner.queue)).collect();
        self.pool.placement.borrow_mut().leave(self.key, self.pool.clock.monotonic());
        Some(Passenger {
            identity: owner.identity,
            inbox: owner.inbox,
            proof: owner.proof,
            client: owner.client,
            commands: (owner.commands.window, owner.commands.asked),
            messages,
            refused: owner.refused,
        })
    }
}
