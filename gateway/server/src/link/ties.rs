//! Links of devices: attached when there is a use for them, spread over sessions, attached again after a loss.
//!
//! At most `tokens_inflight_max` attaches wait for their answer, so that a reconnect does not fall upon the hub with a
//! thousand at once (contract §7, trap 32).

use amqp_endpoint::{Attach, Cause, LinkId, Refused, SessionId};
use gateway_core::{
    message::Refusal,
    session::effect::CloseCause,
    time::Millis,
    upstream::{self, AfterLoss},
};

use super::{
    device::{Role, Tie, Trouble},
    state::{Phase, State},
};
use crate::{
    metrics::{Limit, UpstreamFailure},
    upstream::{UpstreamEvent, clock},
};

/// One session of the connection and how many links of devices are on it.
pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) links: u32,
    pub(super) links_max: u32,
    pub(super) ended: bool,
}

/// The number that comes back with every event of a link: what it is, on which session, for which device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum User {
    Device { role: Role, session: u32, device: u32 },
    CbsSender,
    CbsReceiver,
}

const COMMANDS: u64 = 1 << 60;
const CBS_SENDER: u64 = 2 << 60;
const CBS_RECEIVER: u64 = 3 << 60;

impl User {
    pub(super) fn pack(self) -> u64 {
        match self {
            Self::CbsSender => CBS_SENDER,
            Self::CbsReceiver => CBS_RECEIVER,
            Self::Device { role, session, device } => {
                let role = if role == Role::Commands { COMMANDS } else { 0 };
                role | u64::from(session & 0x0fff_ffff) << 32 | u64::from(device)
            }
        }
    }

    pub(super) fn unpack(user: u64) -> Self {
        match user & (3 << 60) {
            CBS_SENDER => Self::CbsSender,
            CBS_RECEIVER => Self::CbsReceiver,
            role => Self::Device {
                role: if role == COMMANDS { Role::Commands } else { Role::Telemetry },
                session: (user >> 32) as u32 & 0x0fff_ffff,
                device: user as u32,
            },
        }
    }
}

impl State {
    /// Puts a link into the queue of those to be attached.
    pub(super) fn want(&mut self, device: u32, role: Role) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let proven = owner.is_proven();
        let tie = owner.tie(role);
        if proven && self.phase == Phase::Up && matches!(tie, Tie::None | Tie::Held(_)) {
            *tie = Tie::Wanted;
            self.wanted.push_back((device, role));
        }
    }

    /// Attaches what is wanted, as far as the bound of unanswered attaches lets it.
    pub(super) fn attach_wanted(&mut self) {
        while self.attaching < self.pool.target().limits.tokens_inflight_max {
            let Some((device, role)) = self.wanted.pop_front() else { return };
            let Some(owner) = self.devices.get_mut(device as usize) else { continue };
            if *owner.tie(role) != Tie::Wanted {
                continue;
            }
            if !owner.needs(role) {
                *owner.tie(role) = Tie::None;
                continue;
            }
            match self.attach(device, role) {
                Ok(()) => {}
                Err(Refused::LinksMax | Refused::SessionsMax) => self.handle_no_link(device, role),
                Err(Refused::OutputFull | Refused::Gone | Refused::NameInUse) => {
                    self.wanted.push_front((device, role));
                    return;
                }
            }
        }
    }

    fn attach(&mut self, device: u32, role: Role) -> Result<(), Refused> {
        loop {
            let session = self.session_with_room()?;
            match self.attach_on(session, device, role) {
                // the peer's handle-max is lower than what we knew when the session began
                Err(Refused::LinksMax) if self.sessions[session].links > 0 => {
                    self.sessions[session].links_max = self.sessions[session].links;
                }
                Err(Refused::Gone) if !self.sessions[session].ended => self.sessions[session].ended = true,
                other => return other,
            }
        }
    }

    fn attach_on(&mut self, session: usize, device: u32, role: Role) -> Result<(), Refused> {
        let owner = &mut self.devices[device as usize];
        let endpoint = self.endpoint.as_mut().ok_or(Refused::Gone)?;
        let target = self.pool.target();
        let (kind, address) = match role {
            Role::Telemetry => ("telemetry", Some(target.telemetry_address(&owner.identity))),
            Role::Commands => ("commands", target.command_address(&owner.identity)),
        };
        let address = address.expect("a peer without commands is told apart in open_commands");
        let id = self.sessions[session].id;
        let user = User::Device { role, session: session as u32, device }.pack();
        // the serial makes the name unique for this container, over all sessions and attempts
        let mut attach = Attach::new(format!("{kind}-{}", self.attaches), address);
        attach.properties = target.attach_properties(role, owner.client.as_deref());
        let link = match role {
            Role::Telemetry => endpoint.attach_sender(id, attach, user)?,
            Role::Commands => {
                let link = endpoint.attach_receiver(id, attach, user)?;
                endpoint.grant(link, owner.commands.window);
                owner.commands.unsettled = 0;
                owner.commands.generation = self.attaches as u32;
                link
            }
        };
        *owner.tie(role) = Tie::Attaching(link);
        self.attaches += 1;
        self.attaching += 1;
        self.sessions[session].links += 1;
        self.count_links(1);
        Ok(())
    }

    /// A session that takes one more link; begins one if there is none.
    fn session_with_room(&mut self) -> Result<usize, Refused> {
        let has_room = |session: &Session| !session.ended && session.links < session.links_max;
        if let Some(index) = self.sessions.iter().position(has_room) {
            return Ok(index);
        }
        let endpoint = self.endpoint.as_mut().ok_or(Refused::Gone)?;
        let links_max = self.pool.target().limits.links_per_session_max;
        let session = Session { id: endpoint.begin()?, links: 0, links_max, ended: false };
        let unused = self.sessions.iter().position(|session| session.ended && session.links == 0);
        let index = unused.unwrap_or(self.sessions.len());
        if index == self.sessions.len() {
            self.sessions.push(session);
        } else {
            self.sessions[index] = session;
        }
        Ok(index)
    }

    /// Sessions and handles are used up: no new device here, and this one waits for a link to end.
    fn handle_no_link(&mut self, device: u32, role: Role) {
        self.pool.metrics.limits.at(Limit::Links).inc();
        self.pool.placement.borrow_mut().retire(self.key);
        self.hold(device, role);
    }

    pub(super) fn handle_session_begun(&mut self, id: SessionId, links_max: u32) {
        if let Some(session) = self.sessions.iter_mut().find(|session| session.id == id) {
            session.links_max = session.links_max.min(links_max.max(1));
        }
    }

    pub(super) fn handle_session_ended(&mut self, id: SessionId, cause: &Cause) {
        if let Some(session) = self.sessions.iter_mut().find(|session| session.id == id) {
            session.ended = true;
        }
        if let Cause::Remote(_) | Cause::Violation(_) = cause {
            self.pool.metrics.upstream_failures.at(UpstreamFailure::Session).inc();
            tracing::warn!(core = self.pool.share.core, connection = self.key.0, ?cause, "the hub ended a session");
        }
    }

    pub(super) fn handle_attached(&mut self, link: LinkId, device: u32, role: Role) {
        self.attaching = self.attaching.saturating_sub(1);
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        if *owner.tie(role) != Tie::Attaching(link) {
            return;
        }
        *owner.tie(role) = Tie::Open(link);
        match role {
            Role::Telemetry => self.pump(device),
            Role::Commands => {
                if std::mem::take(&mut owner.commands.asked) {
                    owner.inbox.post(UpstreamEvent::CommandsOpened(Ok(())));
                }
            }
        }
    }

    /// A link of a device ended, before or after it was attached.
    pub(super) fn handle_link_ended(&mut self, link: LinkId, user: (Role, u32, u32), attached: bool, cause: &Cause) {
        let (role, session, device) = user;
        if *cause == Cause::Timeout {
            let waited = self.pool.target().limits.request_timeout.as_millis() as u64;
            self.handle_no_answer(Millis(self.pool.clock.monotonic().0.saturating_sub(waited)));
        }
        if !attached {
            self.attaching = self.attaching.saturating_sub(1);
        }
        self.count_links(-1);
        if let Some(session) = self.sessions.get_mut(session as usize) {
            session.links = session.links.saturating_sub(1);
        }
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let tie = owner.tie(role);
        if tie.link() != Some(link) {
            return;
        }
        let ours = matches!(tie, Tie::Detaching(_)) || matches!(cause, Cause::Local | Cause::Carrier | Cause::Eof);
        *tie = Tie::None;
        if role == Role::Telemetry && !ours && judge(cause) == AfterLoss::Reattach(Refusal::TooLarge) {
            self.refuse_first(device);
        }
        if role == Role::Telemetry {
            self.rewind(device);
        }
        if ours {
            return self.resume(device);
        }
        self.pool.metrics.upstream_failures.at(UpstreamFailure::Link).inc();
        self.handle_link_refused(device, role, cause);
    }

    fn handle_link_refused(&mut self, device: u32, role: Role, cause: &Cause) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        tracing::debug!(device = %owner.identity, ?role, ?cause, "the hub ended a link");
        match judge(cause) {
            AfterLoss::Reattach(refusal) => {
                if let Refusal::Throttled | Refusal::Quota = refusal {
                    let now = self.pool.clock.monotonic().0;
                    self.pool.metrics.upstream_throttled_ms.set(now.cast_signed());
                }
                self.hold(device, role);
            }
            AfterLoss::Close(cause, refusal) => {
                if cause == CloseCause::TakenOver && !owner.leaving {
                    return self.handle_taken_over(device);
                }
                if cause != CloseCause::TakenOver && std::mem::take(&mut owner.commands.asked) {
                    owner.commands.window = 0;
                    return owner.inbox.post(UpstreamEvent::CommandsOpened(Err(refusal)));
                }
                self.let_go(device, self.expired(device).unwrap_or(cause));
            }
        }
    }

    /// The device has come to another gateway: it is told, and keeps its place until it has left, for its Will is still to go
    /// [MQTT-3.1.2-8]. A sender takes nothing away from the other one (contract §2.5, §2.6); a receiver would, and comes no more.
    fn handle_taken_over(&mut self, device: u32) {
        self.close_commands(device);
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        // what it has sent and nobody has acknowledged it sends over there
        owner.refused = true;
        owner.inbox.post(UpstreamEvent::Lost(CloseCause::TakenOver));
    }

    /// The hub lets links of an expired token go as unauthorized (trap 31).
    fn expired(&self, device: u32) -> Option<CloseCause> {
        let proof = self.devices.get(device as usize)?.proof.as_ref()?;
        (proof.expires <= self.pool.clock.now().unix).then_some(CloseCause::TokenExpired)
    }

    /// Attaches the link again after a wait that grows, for ever: [`State::is_overdue`] says who has waited for too long.
    pub(super) fn hold(&mut self, device: u32, role: Role) {
        let now = self.pool.clock.monotonic();
        let target = self.pool.target();
        let limits = &target.limits;
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        // a link that lasted longer than any wait ends the trouble before it
        owner.trouble = owner.trouble.filter(|trouble| now.since(trouble.last) < limits.backoff.1 * 2);
        let until = Trouble::again(&mut owner.trouble, now, limits.backoff, clock::chance());
        *owner.tie(role) = Tie::Held(until);
        self.held += 1;
        self.tick_by(until);
    }

    /// Wants again what was held for long enough.
    pub(super) fn release_held(&mut self, device: u32) {
        let now = self.pool.clock.monotonic();
        for role in [Role::Telemetry, Role::Commands] {
            let Some(owner) = self.devices.get_mut(device as usize) else { return };
            if let Tie::Held(until) = *owner.tie(role)
                && until <= now
            {
                *owner.tie(role) = Tie::None;
                if owner.needs(role) {
                    self.want(device, role);
                }
            }
        }
    }
}

/// What the end of a link means; a peer that does not answer or breaks the rules may do better next time.
fn judge(cause: &Cause) -> AfterLoss {
    match cause {
        Cause::Remote(error) => upstream::link_lost(error.as_ref().map(|error| &*error.condition)),
        _ => AfterLoss::Reattach(Refusal::Internal),
    }
}

#[cfg(test)]
mod tests {
    use super::{Role, User};

    #[test]
    fn a_links_user_number_comes_back_whole() {
        let check = |user: User| assert_eq!(User::unpack(user.pack()), user);
        check(User::CbsSender);
        check(User::CbsReceiver);
        for role in [Role::Telemetry, Role::Commands] {
            check(User::Device { role, session: 0, device: 0 });
            check(User::Device { role, session: 0x0fff_ffff, device: u32::MAX });
        }
    }
}
