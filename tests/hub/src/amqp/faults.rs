//! Faults where they strike links and connections: at ATTACH, at OPEN, before a message of ours, or at once by order.

use fe2o3_amqp_types::definitions::Error;
use fe2o3_amqp_types::performatives::Attach;

use super::attach::{addressee, half_of};
use super::connection::{Connection, Now};
use super::error::{self, CONNECTION_FORCED, LINK_STOLEN};
use super::kind::Kind;
use super::link::{Hold, LinkId, LinkState};
use super::timer::{Due, Timer};
use crate::domain::{Action, ConnectionInfo, ErrorCode, HubError, Identity, Order, Point, device_fits};

impl Connection {
    /// Ends or maims a link or its connection. Actions that concern single messages do nothing here.
    pub(super) fn strike(&mut self, id: LinkId, action: &Action, now: Now) {
        match action {
            Action::NoCredit => {
                if let Some(link) = self.link_mut(id) {
                    link.is_starved = true;
                }
            }
            Action::Throttle { ms } => {
                let refusal = HubError::new(ErrorCode::ThrottlingException, "too many requests");
                let error = error::hub(&refusal, now.unix_ms);
                self.timers.push(now.tick + ms, Timer::Link(id, Due::Detach(error)));
            }
            Action::Steal => self.detach(id, error::faulty(LINK_STOLEN, None, now.unix_ms)),
            Action::Detach { condition, redirect } => {
                self.detach(id, error::faulty(condition, redirect.as_ref(), now.unix_ms));
            }
            action => self.strike_connection(action, now),
        }
    }

    fn strike_connection(&mut self, action: &Action, now: Now) {
        match action {
            Action::CloseConnection { condition: Some(condition) } => {
                self.fail(error::faulty(condition, None, now.unix_ms), now);
            }
            Action::CloseConnection { condition: None } => self.abort(),
            Action::HalfOpen => self.go_dead(),
            _ => {}
        }
    }

    /// The peer's OPEN is answered; a fault may end it here.
    pub(super) fn handle_opened(&mut self, info: ConnectionInfo, now: Now) {
        self.domain.connections.describe(self.number, info);
        match self.domain.faults.decide(Point::Open, None) {
            None => {}
            Some(Action::Reject { condition } | Action::Detach { condition, .. }) => {
                self.fail(error::faulty(&condition, None, now.unix_ms), now);
            }
            Some(Action::Throttle { .. }) => self.fail(error::faulty(CONNECTION_FORCED, None, now.unix_ms), now),
            Some(action) => self.strike_connection(&action, now),
        }
    }

    /// Lets an ATTACH through, or keeps it: refused, put off or never answered.
    pub(super) fn pass_attach_faults(&mut self, session: usize, attach: Attach, now: Now) -> Option<Attach> {
        let identity = addressee(&attach).map(|(device, module)| match module {
            None => Identity::device(&device),
            Some(module) => Identity::module(&device, &module),
        });
        let Some(action) = self.domain.faults.decide(Point::Attach, identity.as_ref()) else { return Some(attach) };
        match action {
            Action::Delay { ms } => {
                if let Some(id) = self.keep_attach(session, &attach, LinkState::Pending) {
                    self.timers.push(now.tick + ms, Timer::Attach(id, Box::new(attach)));
                }
            }
            Action::Reject { condition } => self.refuse(session, attach, &condition, None, now),
            Action::Detach { condition, redirect } => self.refuse(session, attach, &condition, redirect.as_ref(), now),
            Action::Steal => self.refuse(session, attach, LINK_STOLEN, None, now),
            Action::Throttle { .. } => self.refuse(session, attach, error::THROTTLED, None, now),
            Action::NoCredit => {
                let handle = attach.handle.0;
                self.attach(session, attach, None, now);
                let id = self.sessions.get(session).and_then(|session| session.handles.get(&handle)).copied();
                if let Some(link) = id.and_then(|id| self.link_mut(id)) {
                    link.is_starved = true;
                }
            }
            Action::CloseConnection { .. } | Action::HalfOpen => self.strike_connection(&action, now),
            // nothing is answered, not even a DETACH
            Action::NeverSettle => {
                self.keep_attach(session, &attach, LinkState::Detaching);
            }
            _ => return Some(attach),
        }
        None
    }

    /// Notes a handle whose ATTACH is not answered now.
    fn keep_attach(&mut self, session: usize, attach: &Attach, state: LinkState) -> Option<LinkId> {
        if self.sessions[session].handles.contains_key(&attach.handle.0) {
            return None;
        }
        let handles = (attach.handle.0, self.sessions[session].claim_handle()?);
        let half = half_of(attach);
        let id = self.insert_link(session, handles, attach.name.as_str().into(), half, Kind::Refused, None, attach);
        self.link_mut(id)?.state = state;
        Some(id)
    }

    fn refuse(
        &mut self,
        session: usize,
        attach: Attach,
        condition: &str,
        redirect: Option<&crate::domain::Redirect>,
        now: Now,
    ) {
        let error: Error = error::faulty(condition, redirect, now.unix_ms);
        self.attach(session, attach, Some(error), now);
    }

    /// Whether a message of ours may go on this link now. A fault may hold it back, once.
    pub(super) fn pass_send_faults(&mut self, id: LinkId, now: Now) -> bool {
        let Some(link) = self.link(id) else { return false };
        let (point, identity) = match &link.kind {
            Kind::C2d(identity) => (Point::C2d, identity.clone()),
            Kind::MethodCalls(pair) => (Point::Method, pair.identity.clone()),
            _ => return true,
        };
        match link.hold {
            Hold::Held => return false,
            Hold::Passed => {
                if let Some(link) = self.link_mut(id) {
                    link.hold = Hold::No;
                }
                return true;
            }
            Hold::No if link.is_starved => return false,
            Hold::No => {}
        }
        let has_work = match point {
            Point::C2d => self.domain.c2d.depth(&identity) > 0,
            _ => true,
        };
        let Some(action) = has_work.then(|| self.domain.faults.decide(point, Some(&identity))).flatten() else {
            return true;
        };
        match action {
            Action::Delay { ms } => {
                if let Some(link) = self.link_mut(id) {
                    link.hold = Hold::Held;
                }
                self.timers.push(now.tick + ms, Timer::Link(id, Due::Unhold));
                false
            }
            action => {
                self.strike(id, &action, now);
                false
            }
        }
    }

    /// Orders of the rest of the hub: identities that are gone, faults that strike at once.
    pub(super) fn take_orders(&mut self, now: Now) {
        for order in self.domain.connections.take_orders(self.number) {
            match order {
                Order::Drop { identity, error } => {
                    for id in self.links_of(|own| *own == identity) {
                        self.detach(id, error::hub(&error, now.unix_ms));
                    }
                }
                Order::Fault { action, device } => self.take_fault(&action, device.as_deref(), now),
            }
        }
        self.expire_grants(now);
    }

    fn take_fault(&mut self, action: &Action, device: Option<&str>, now: Now) {
        let links = self.links_of(|identity| device_fits(device, Some(identity)));
        match action {
            Action::CloseConnection { .. } | Action::HalfOpen => {
                if device.is_none() || !links.is_empty() {
                    self.strike_connection(action, now);
                }
            }
            action => links.into_iter().for_each(|id| self.strike(id, action, now)),
        }
    }

    fn links_of(&self, fits: impl Fn(&Identity) -> bool) -> Vec<LinkId> {
        let fitting = self.links.iter().filter(|(_, link)| link.kind.identity().is_some_and(&fits));
        fitting.map(|(_, link)| link.id).collect()
    }
}
