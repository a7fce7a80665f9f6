//! ATTACH and DETACH: what the address means, whether it is allowed, and what the domain must know of it.

use std::collections::VecDeque;
use std::sync::Arc;

use fe2o3_amqp_types::definitions::{Error, Fields, ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp_types::messaging::{DeliveryState, Released, TargetArchetype};
use fe2o3_amqp_types::performatives::{Attach, Detach};
use serde_amqp::Value;
use serde_amqp::primitives::Symbol;

use super::address::{self, Endpoint, Node};
use super::auth::GrantId;
use super::connection::{Connection, Now};
use super::error::{
    self, FRAMING_ERROR, HANDLE_IN_USE, LINK_STOLEN, RESOURCE_LIMIT, RESOURCE_LOCKED, UNATTACHED_HANDLE,
};
use super::events::Reader;
use super::kind::{Kind, PairKey, Paired};
use super::link::{Half, Hold, Link, LinkId, LinkState};
use crate::domain::{ErrorCode, HubError, Identity, Listener};

const API_VERSION: &str = "com.microsoft:api-version";
const CORRELATION: &str = "com.microsoft:channel-correlation-id";
const MODEL_ID: &str = "com.microsoft:model-id";

impl Connection {
    pub(super) fn handle_attach(&mut self, session: usize, attach: Attach, now: Now) {
        if let Some(attach) = self.pass_attach_faults(session, attach, now) {
            self.attach(session, attach, None, now);
        }
    }

    /// Attaches a link, or refuses it: for the reason given, or for one of its own.
    pub(super) fn attach(&mut self, session: usize, attach: Attach, refusal: Option<Error>, now: Now) {
        let handle = attach.handle.0;
        if handle > self.settings.handle_max {
            let text = format!("handle {handle} is over handle-max {}", self.settings.handle_max);
            return self.fail(error::protocol(FRAMING_ERROR, text), now);
        }
        if self.sessions[session].handles.contains_key(&handle) {
            let error = error::protocol(HANDLE_IN_USE, format!("handle {handle} is attached already"));
            return self.end_session(session, Some(error));
        }
        let Some(handle_out) = self.sessions[session].claim_handle() else {
            let error = error::protocol(RESOURCE_LIMIT, "the peer's handle-max leaves no handle to answer with");
            return self.end_session(session, Some(error));
        };
        let half = half_of(&attach);
        let name: Arc<str> = attach.name.as_str().into();
        let resolved = if let Some(refusal) = refusal {
            Err(refusal)
        } else if self.sessions[session].names.contains(&(half, name.clone())) {
            Err(error::protocol(RESOURCE_LOCKED, "a link of this name is attached already"))
        } else {
            self.resolve(&attach, half, now).map_err(|refusal| error::hub(&refusal, now.unix_ms))
        };
        let (kind, grant, refusal) = match resolved {
            Ok((kind, grant)) => (kind, grant, None),
            Err(error) => (Kind::Refused, None, Some(error)),
        };
        if let Kind::Telemetry(identity, Some(model)) = &kind {
            self.domain.twins.set_model_id(identity, model);
        }
        let id = self.insert_link(session, (handle, handle_out), name, half, kind, grant, &attach);
        self.put_attach(id, attach, refusal.is_some());
        match refusal {
            Some(error) => self.detach(id, error),
            None => self.handle_attached(id, now),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one caller; each is a field of the link")]
    pub(super) fn insert_link(
        &mut self,
        session: usize,
        (handle_in, handle_out): (u32, u32),
        name: Arc<str>,
        half: Half,
        kind: Kind,
        grant: Option<GrantId>,
        attach: &Attach,
    ) -> LinkId {
        self.links_made += 1;
        let entry = self.links.vacant_entry();
        let id = LinkId { index: entry.key() as u32, generation: self.links_made };
        let sends_settled = match attach.snd_settle_mode {
            SenderSettleMode::Settled => true,
            SenderSettleMode::Unsettled => false,
            SenderSettleMode::Mixed => kind.sends_settled_by_default(),
        };
        let default_outcome = attach.source.as_ref().and_then(|source| source.default_outcome.clone());
        let credit = kind.credit(&self.settings);
        if !matches!(kind, Kind::Refused) {
            self.sessions[session].names.insert((half, name.clone()));
        }
        entry.insert(Link {
            id,
            session,
            handle_in,
            handle_out,
            name,
            half,
            state: LinkState::Attached,
            kind,
            grant,
            delivery_count: if half == Half::Receiver { attach.initial_delivery_count.unwrap_or(0) } else { 0 },
            credit: if half == Half::Receiver { credit } else { 0 },
            drain: false,
            sends_settled,
            default_outcome: default_outcome.map_or(DeliveryState::Released(Released {}), Into::into),
            queue: VecDeque::new(),
            sending: None,
            partial: None,
            unsettled: 0,
            is_ready: false,
            is_blocked: false,
            is_starved: false,
            hold: Hold::No,
        });
        self.sessions[session].handles.insert(handle_in, id);
        id
    }

    /// Answers ATTACH with ATTACH: everything is echoed; a refusal has no terminus of ours (2.6.3).
    fn put_attach(&mut self, id: LinkId, attach: Attach, is_refused: bool) {
        let Some(link) = self.link(id) else { return };
        let is_sender = link.half == Half::Sender;
        let snd_settle_mode = match (is_sender, link.sends_settled, &attach.snd_settle_mode) {
            (true, true, SenderSettleMode::Unsettled) => SenderSettleMode::Settled,
            _ => attach.snd_settle_mode,
        };
        let answer = Attach {
            name: attach.name,
            handle: link.handle_out.into(),
            role: if is_sender { Role::Sender } else { Role::Receiver },
            snd_settle_mode,
            // how a receiver of ours settles is ours to say: at once
            rcv_settle_mode: if is_sender { attach.rcv_settle_mode } else { ReceiverSettleMode::First },
            source: attach.source.filter(|_| !(is_refused && is_sender)),
            target: attach.target.filter(|_| !is_refused || is_sender),
            unsettled: None,
            incomplete_unsettled: false,
            initial_delivery_count: is_sender.then_some(0),
            max_message_size: Some(self.settings.message_bytes_max),
            offered_capabilities: None,
            desired_capabilities: None,
            properties: attach.properties,
        };
        let channel = self.sessions[link.session].channel_out;
        self.put(channel, &answer);
    }

    /// What the attach asks for, and by which claims it may have it.
    fn resolve(&mut self, attach: &Attach, half: Half, now: Now) -> Result<(Kind, Option<GrantId>), HubError> {
        let node = node_of(attach, half)?;
        let wrong_role = || HubError::new(ErrorCode::InvalidOperation, "this address is not for links of this role");
        Ok(match (node, half) {
            (Node::Cbs, Half::Receiver) => (Kind::CbsRequests, None),
            (Node::Cbs, Half::Sender) => (Kind::CbsAnswers, None),
            (Node::Device { device, module, endpoint }, half) => {
                let identity = self.domain.registry.resolve(&device, module.as_deref());
                let grant = self.authorize_identity(&identity, now)?;
                (device_kind(identity, endpoint, half, attach).ok_or_else(wrong_role)??, Some(grant))
            }
            (Node::ServiceDeviceBound, Half::Receiver) => (Kind::ServiceC2d, Some(self.authorize_service(now)?)),
            (Node::Feedback, Half::Sender) => (Kind::Feedback, Some(self.authorize_service(now)?)),
            (Node::Partition { group, partition }, Half::Sender) => {
                let grant = self.authorize_service(now)?;
                let filter = attach.source.as_ref().and_then(|source| source.filter.as_ref());
                (Kind::Events(Box::new(Reader::open(&self.domain, &group, &partition, filter)?)), Some(grant))
            }
            _ => return Err(wrong_role()),
        })
    }

    /// Tells the domain of a link that is there now.
    fn handle_attached(&mut self, id: LinkId, now: Now) {
        let Some(link) = self.link(id) else { return };
        let listener = Listener::new(&self.mailbox, id.key());
        let session = link.session;
        let half = link.half;
        if let Some(identity) = link.kind.identity() {
            self.domain.registry.link_attached(identity, now.unix_ms);
        }
        match &link.kind {
            Kind::CbsAnswers => self.sessions[session].cbs_answers = Some(id),
            Kind::C2d(identity) => steal(self.domain.c2d.attach(identity, listener)),
            Kind::Feedback => self.domain.feedback.attach(listener),
            Kind::Events(reader) => self.domain.telemetry.watch(reader.partition, listener),
            kind => {
                if let Some(pair) = kind.pair().cloned() {
                    self.join_pair(&pair, id, half);
                }
            }
        }
        if half == Half::Receiver {
            self.put_link_flow(id);
        }
        self.make_ready(id);
    }

    fn join_pair(&mut self, key: &Arc<PairKey>, id: LinkId, half: Half) {
        let joined = self.pairs.join(key, id, half == Half::Receiver);
        if let (Paired::Methods, Some(pair)) = (key.paired, joined)
            && let (Some(_), Some(calls)) = (pair.from_peer, pair.to_peer)
        {
            let listener = Listener::new(&self.mailbox, calls.key());
            steal(self.domain.methods.register(&key.identity, listener));
        }
    }

    /// Takes a link out of its session and slab. The domain is told by [`Self::release`].
    pub(super) fn remove_link(&mut self, id: LinkId) -> Option<Link> {
        self.link(id)?;
        let link = self.links.remove(id.index as usize);
        if let Some(session) = self.sessions.get_mut(link.session) {
            session.handles.remove(&link.handle_in);
            session.free_handle(link.handle_out);
            if link.state == LinkState::Attached {
                session.forget_link(id, &(link.half, link.name.clone()), link.unsettled);
            }
        }
        Some(link)
    }

    /// Tells the domain that a link is gone. To be called once, for a link that [`Self::handle_attached`] told of.
    pub(super) fn release(&mut self, id: LinkId, kind: &Kind) {
        let listener = Listener::new(&self.mailbox, id.key());
        match kind {
            Kind::C2d(identity) => self.domain.c2d.detach(identity, &listener),
            Kind::Feedback => self.domain.feedback.detach(&listener),
            Kind::Events(reader) => self.domain.telemetry.unwatch(reader.partition, &listener),
            Kind::TwinAnswers(pair) => self.domain.twins.unsubscribe(&pair.identity, &listener),
            Kind::MethodCalls(pair) => self.domain.methods.unregister(&pair.identity, &listener),
            Kind::MethodAnswers(pair) => {
                if let Some(calls) = self.pairs.get(pair).to_peer {
                    let listener = Listener::new(&self.mailbox, calls.key());
                    self.domain.methods.unregister(&pair.identity, &listener);
                }
            }
            _ => {}
        }
        if let Some(pair) = kind.pair() {
            self.pairs.leave(pair, id);
        }
        if let Some(identity) = kind.identity() {
            self.domain.registry.link_detached(identity, self.domain.clock.now_ms());
        }
    }

    /// Ends a link from our side: DETACH with the error; the handle is free after theirs.
    pub(super) fn detach(&mut self, id: LinkId, error: Error) {
        let Some(link) = self.link_mut(id).filter(|link| link.state == LinkState::Attached) else { return };
        tracing::debug!(link = %link.name, %error, "detaching");
        link.state = LinkState::Detaching;
        let (session, handle) = (link.session, link.handle_out);
        link.queue.clear();
        (link.sending, link.partial) = (None, None);
        // the entry stays until the peer's DETACH, but neither domain nor session know it any more
        let kind = std::mem::replace(&mut link.kind, Kind::Refused);
        let name = (link.half, link.name.clone());
        let unsettled = std::mem::take(&mut link.unsettled);
        self.release(id, &kind);
        self.sessions[session].forget_link(id, &name, unsettled);
        self.tell_accepted(session);
        let channel = self.sessions[session].channel_out;
        self.put(channel, &Detach { handle: handle.into(), closed: true, error: Some(error) });
    }

    pub(super) fn handle_detach(&mut self, session: usize, detach: &Detach) {
        let Some(&id) = self.sessions[session].handles.get(&detach.handle.0) else {
            let error = error::protocol(UNATTACHED_HANDLE, format!("detach of handle {}", detach.handle.0));
            return self.end_session(session, Some(error));
        };
        let Some(link) = self.remove_link(id) else { return };
        if link.state != LinkState::Detaching {
            self.tell_accepted(session);
            let answer = Detach { handle: link.handle_out.into(), closed: detach.closed, error: None };
            let channel = self.sessions[session].channel_out;
            self.put(channel, &answer);
            self.release(link.id, &link.kind);
        }
    }

    /// A wake-up from the domain.
    pub(super) fn handle_wake(&mut self, id: LinkId, is_stolen: bool, now: Now) {
        if is_stolen {
            let refusal = HubError::new(ErrorCode::LinkCreationConflict, "a newer link of this device took over");
            self.detach(id, error::hub_as(LINK_STOLEN, &refusal, now.unix_ms));
        } else {
            self.make_ready(id);
        }
    }
}

/// Tells the connection of a link that another took its place.
pub(super) fn steal(previous: Option<Listener>) {
    if let Some(previous) = previous {
        previous.mailbox.post(LinkId::stolen_key(previous.key));
    }
}

/// Our half of a link that the peer attaches.
pub(super) fn half_of(attach: &Attach) -> Half {
    if attach.role == Role::Sender { Half::Receiver } else { Half::Sender }
}

/// The device that an ATTACH is about, as far as the address tells.
pub(super) fn addressee(attach: &Attach) -> Option<(String, Option<String>)> {
    match node_of(attach, half_of(attach)) {
        Ok(Node::Device { device, module, .. }) => Some((device, module)),
        _ => None,
    }
}

fn node_of(attach: &Attach, half: Half) -> Result<Node, HubError> {
    let address = match (half, &attach.source, attach.target.as_deref()) {
        (Half::Sender, Some(source), _) => source.address.as_deref(),
        (Half::Receiver, _, Some(TargetArchetype::Target(target))) => target.address.as_deref(),
        _ => None,
    };
    let address = address.ok_or_else(|| HubError::new(ErrorCode::ArgumentInvalid, "the link has no address"))?;
    address::parse(address).ok_or_else(|| HubError::new(ErrorCode::AmqpAddressNotFound, "no such address"))
}

/// The kind of a device's link; `None`: nothing of that role is there.
fn device_kind(identity: Identity, endpoint: Endpoint, half: Half, attach: &Attach) -> Option<Result<Kind, HubError>> {
    let paired = |paired, kind: fn(Arc<PairKey>) -> Kind, identity| {
        Some(pair_key(identity, paired, attach).map(|key| kind(Arc::new(key))))
    };
    match (endpoint, half) {
        (Endpoint::Events, Half::Receiver) => {
            let model = text_property(attach.properties.as_ref(), MODEL_ID).map(Into::into);
            Some(Ok(Kind::Telemetry(identity, model)))
        }
        (Endpoint::DeviceBound, Half::Sender) => Some(Ok(Kind::C2d(identity))),
        (Endpoint::Twin, Half::Receiver) => paired(Paired::Twin, Kind::TwinRequests, identity),
        (Endpoint::Twin, Half::Sender) => paired(Paired::Twin, Kind::TwinAnswers, identity),
        (Endpoint::Methods, Half::Receiver) => paired(Paired::Methods, Kind::MethodAnswers, identity),
        (Endpoint::Methods, Half::Sender) => paired(Paired::Methods, Kind::MethodCalls, identity),
        (Endpoint::Events, Half::Sender) | (Endpoint::DeviceBound, Half::Receiver) => None,
    }
}

/// Twin and methods links must name an api-version and their pair (contract §3.4).
fn pair_key(identity: Identity, paired: Paired, attach: &Attach) -> Result<PairKey, HubError> {
    let property = |name| {
        text_property(attach.properties.as_ref(), name)
            .ok_or_else(|| HubError::new(ErrorCode::ArgumentInvalid, format!("link property {name} is missing")))
    };
    property(API_VERSION)?;
    let correlation = property(CORRELATION)?.to_owned();
    Ok(PairKey { identity, paired, correlation })
}

fn text_property<'f>(properties: Option<&'f Fields>, name: &str) -> Option<&'f str> {
    match properties?.get(&Symbol::from(name))? {
        Value::String(text) => Some(text),
        Value::Symbol(text) => Some(text.as_str()),
        _ => None,
    }
}
