//! Tokens on `$cbs` (contract §3.2): one policy token for the whole connection, or one for each device, several under way.
//!
//! Every request has a number of its own, so that an answer can never prove another device than the one that asked.

use amqp_endpoint::{
    Attach, Cause, Delivery, LinkId, Outcome as AmqpOutcome, Refused, SessionId, Settle,
    cbs::{Cbs, PutToken, Reply, SAS_TOKEN},
};
use gateway_core::{
    auth::{self, Verdict},
    codec::packet::ConnectCode,
    session::effect::CloseCause,
    time::{Millis, UnixSeconds},
    upstream::{PeerLimits, TokenAnswer, token_answer},
};

use super::{
    device::{Proof, Stage, Trouble},
    state::{Phase, State},
    ties::User,
};
use crate::{
    metrics::{Limit, TokenResult},
    upstream::{UpstreamEvent, clock, pool::UNAVAILABLE},
};

const ADDRESS: &str = "$cbs";

/// The `$cbs` pair of one AMQP connection.
pub(super) struct Tokens {
    cbs: Cbs,
    pair: Option<Pair>,
    /// Devices whose tokens wait for their turn.
    pub(super) waiting: std::collections::VecDeque<u32>,
    policy: Policy,
    requests: u64,
    /// Devices whose tokens the hub does not take at the moment, as of the last look.
    pub(super) troubled: usize,
    /// The hub took a device's token on the connection of now.
    taken: bool,
    /// It said of a connection on which it had taken none that it had had all of them, and has taken none since.
    pub(super) fruitless: bool,
}

struct Pair {
    session: SessionId,
    sender: LinkId,
    /// How many of the two are attached.
    open: u8,
}

/// How far the connection's own token is.
#[derive(Clone, Copy)]
enum Policy {
    /// None is configured.
    None,
    /// To be sent.
    Due,
    /// Sent under this request number.
    InFlight(u64, Millis),
    /// Taken; the next one is due then.
    Valid(UnixSeconds),
}

impl Tokens {
    pub(super) fn new(in_flight_max: u32, policy: bool) -> Self {
        Self {
            cbs: Cbs::new(in_flight_max as usize),
            pair: None,
            waiting: std::collections::VecDeque::new(),
            policy: if policy { Policy::Due } else { Policy::None },
            requests: 0,
            troubled: 0,
            taken: false,
            fruitless: false,
        }
    }

    /// The connection is gone: nothing is in flight, and the policy token counts for nothing.
    pub(super) fn reset(&mut self) {
        self.pair = None;
        self.taken = false;
        self.cbs.clear();
        if !matches!(self.policy, Policy::None) {
            self.policy = Policy::Due;
        }
    }
}

impl State {
    /// Attaches the `$cbs` pair, in a session of its own.
    pub(super) fn open_cbs(&mut self) -> Result<(), Refused> {
        let window = self.reply_window();
        let Some(endpoint) = &mut self.endpoint else { return Ok(()) };
        let session = endpoint.begin()?;
        let sender = endpoint.attach_sender(session, Attach::new("cbs-sender", ADDRESS), User::CbsSender.pack())?;
        let mut attach = Attach::new("cbs-receiver", ADDRESS);
        attach.local_address = Some("cbs".into());
        let receiver = endpoint.attach_receiver(session, attach, User::CbsReceiver.pack())?;
        endpoint.grant(receiver, window);
        self.tokens.pair = Some(Pair { session, sender, open: 0 });
        Ok(())
    }

    fn reply_window(&self) -> u32 {
        self.pool.target().limits.tokens_inflight_max.saturating_mul(2)
    }

    /// The session of the `$cbs` pair says how many links the peer lets us have on any.
    pub(super) fn handle_cbs_begun(&mut self, session: SessionId, links_max: u32) {
        if self.tokens.pair.as_ref().is_some_and(|pair| pair.session == session) {
            let peer = PeerLimits { channel_max: self.channel_max, handle_max: links_max.saturating_sub(1) };
            self.pool.placement.borrow_mut().handle_opened(self.key, peer);
        }
    }

    pub(super) fn handle_cbs_attached(&mut self) {
        let Some(pair) = &mut self.tokens.pair else { return };
        pair.open += 1;
        if pair.open == 2 {
            match self.tokens.policy {
                Policy::None => self.go_up(),
                _ => self.put_policy_token(),
            }
        }
    }

    /// Without `$cbs` nobody can be let in: the connection is opened anew.
    pub(super) fn handle_cbs_ended(&mut self, cause: &Cause) {
        if self.tokens.pair.take().is_some() && *cause != Cause::Local && *cause != Cause::Carrier {
            tracing::warn!(
                core = self.pool.share.core,
                connection = self.key.0,
                ?cause,
                "the hub ended the token link"
            );
            self.close_endpoint();
        }
    }

    /// The `$cbs` sender has credit again.
    pub(super) fn handle_cbs_sendable(&mut self) {
        if let Policy::Due = self.tokens.policy
            && self.tokens.pair.as_ref().is_some_and(|pair| pair.open == 2)
        {
            self.put_policy_token();
        }
        self.put_waiting_tokens();
    }

    /// Puts the policy token; renewed at 80 % of its life.
    fn put_policy_token(&mut self) {
        let (target, secrets) = (self.pool.target(), self.pool.secrets.borrow().clone());
        let Some(policy) = target.policy() else { return };
        let Some(key) = &secrets.policy_key else {
            tracing::error!(policy, "no key for the hub policy");
            self.refused = Some("there is no key for the hub policy".to_owned());
            return self.close_endpoint();
        };
        let now = self.pool.clock.now();
        let expires = UnixSeconds(now.unix.0 + target.limits.token_ttl.as_secs());
        let host = target.host.clone();
        let token = auth::sign(key, &host, expires, Some(policy));
        if let Some(request) = self.put_token(&host, &token, expires) {
            self.tokens.policy = Policy::InFlight(request, now.monotonic);
        }
    }

    /// Takes a device's token; the verdict follows.
    pub(super) fn authorize(&mut self, device: u32, token: &str, expires: UnixSeconds) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let since = self.pool.clock.monotonic();
        let proof = Proof { token: token.into(), expires, stage: Stage::Waiting, asked: true, since, trouble: None };
        owner.proof = Some(Box::new(proof));
        self.tokens.waiting.push_back(device);
        self.put_waiting_tokens();
    }

    /// Puts tokens of devices as far as the bound of tokens in flight and the link let it.
    pub(super) fn put_waiting_tokens(&mut self) {
        if self.phase != Phase::Up {
            return;
        }
        while let Some(device) = self.tokens.waiting.front().copied() {
            let proof = self.devices.get(device as usize).and_then(|owner| owner.proof.as_ref());
            let Some(proof) = proof.filter(|proof| proof.stage == Stage::Waiting) else {
                self.tokens.waiting.pop_front();
                continue;
            };
            let (token, expires) = (proof.token.clone(), proof.expires);
            let audience = self.pool.target().audience(&self.devices[device as usize].identity);
            let Some(request) = self.put_token(&audience, &token, expires) else { return };
            self.tokens.waiting.pop_front();
            self.requests.insert(request, device);
            if let Some(proof) = &mut self.devices[device as usize].proof {
                proof.stage = Stage::InFlight(request);
                proof.since = self.pool.clock.monotonic();
            }
        }
    }

    /// Writes one put-token; `None` if it has to wait. The number names the request.
    fn put_token(&mut self, audience: &str, token: &str, expires: UnixSeconds) -> Option<u64> {
        let (Some(pair), Some(endpoint)) = (&self.tokens.pair, &mut self.endpoint) else { return None };
        if !endpoint.sendable(pair.sender) {
            return None;
        }
        let request = self.tokens.requests;
        let expires_at_ms = i64::try_from(expires.0.saturating_mul(1000)).ok();
        let put = PutToken { audience, token, kind: SAS_TOKEN, expires_at_ms };
        let mut message = Vec::with_capacity(512);
        if self.tokens.cbs.put_token(&mut message, &put, request).is_err() {
            self.pool.metrics.limits.at(Limit::TokensInflight).inc();
            return None;
        }
        if endpoint.send(pair.sender, request, false, 0, &[&message]).is_err() {
            self.tokens.cbs.forget(request);
            return None;
        }
        self.tokens.requests += 1;
        self.pool.placement.borrow_mut().handle_token_put(self.key);
        Some(request)
    }

    /// The hub took the request itself, or did not.
    pub(super) fn handle_request_settled(&mut self, request: u64, outcome: &AmqpOutcome) {
        if !matches!(outcome, AmqpOutcome::Accepted | AmqpOutcome::Lost) {
            self.tokens.cbs.forget(request);
            self.handle_reply(&Reply { user: request, status: 500, description: "request not accepted".into() });
        }
        self.put_waiting_tokens();
    }

    /// An answer on the `$cbs` receiver.
    pub(super) fn handle_cbs_delivery(&mut self, delivery: &Delivery) {
        let window = self.reply_window();
        if let Some(endpoint) = &mut self.endpoint {
            if !delivery.settled {
                endpoint.settle(delivery.link, delivery.id, Settle::Accepted);
            }
            if endpoint.credit(delivery.link) <= window / 2 {
                endpoint.grant(delivery.link, window);
            }
        }
        match self.tokens.cbs.handle_response(&delivery.message) {
            Ok(Some(reply)) => self.handle_reply(&reply),
            Ok(None) => {}
            Err(error) => tracing::debug!(
                core = self.pool.share.core,
                connection = self.key.0,
                ?error,
                "an answer to a token is no message"
            ),
        }
        self.put_waiting_tokens();
    }

    fn handle_reply(&mut self, reply: &Reply) {
        if let Policy::InFlight(request, _) = self.tokens.policy
            && request == reply.user
        {
            return self.handle_policy_reply(reply);
        }
        let Some(device) = self.requests.remove(&reply.user) else { return };
        let proof = self.devices.get(device as usize).and_then(|owner| owner.proof.as_ref());
        if proof.is_some_and(|proof| proof.stage == Stage::InFlight(reply.user)) {
            self.handle_device_reply(device, token_answer(reply.status, &reply.description));
        }
    }

    fn handle_policy_reply(&mut self, reply: &Reply) {
        let metrics = &self.pool.metrics;
        if token_answer(reply.status, &reply.description) == TokenAnswer::Accepted {
            metrics.upstream_tokens.at(TokenResult::Accepted).inc();
            let life = self.pool.target().limits.token_ttl.as_secs();
            self.tokens.policy = Policy::Valid(UnixSeconds(self.pool.clock.now().unix.0 + life / 5 * 4));
            if self.phase == Phase::Proving {
                self.go_up();
            }
            return;
        }
        metrics.upstream_tokens.at(TokenResult::Refused).inc();
        // the description may quote what it did not like, so only the status is told
        tracing::error!(
            core = self.pool.share.core,
            connection = self.key.0,
            status = reply.status,
            "the hub refused the policy token"
        );
        self.refused = Some(format!("the hub refused the policy token with status {}", reply.status));
        self.close_endpoint();
    }

    fn handle_device_reply(&mut self, device: u32, answer: TokenAnswer) {
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let Some(proof) = &mut owner.proof else { return };
        let tokens = &self.pool.metrics.upstream_tokens;
        match answer {
            TokenAnswer::Accepted => {
                tokens.at(TokenResult::Accepted).inc();
                proof.stage = Stage::Proven;
                (owner.trouble, proof.trouble) = (None, None);
                self.tokens.taken = true;
                if std::mem::take(&mut self.tokens.fruitless) {
                    self.outage.handle_back();
                }
                if std::mem::take(&mut proof.asked) {
                    let expires = Some(proof.expires);
                    owner.inbox.post(UpstreamEvent::Authorized(Verdict::Allowed { expires }));
                }
                self.resume(device);
            }
            TokenAnswer::ConnectionUsedUp if !self.tokens.taken => {
                tokens.at(TokenResult::Failed).inc();
                if std::mem::take(&mut proof.asked) {
                    proof.stage = Stage::Failed;
                    owner.inbox.post(UpstreamEvent::Authorized(Verdict::Refused(UNAVAILABLE)));
                }
                self.handle_fruitless();
            }
            TokenAnswer::ConnectionUsedUp => {
                self.pool.metrics.limits.at(Limit::TokensPerConnection).inc();
                proof.stage = Stage::Waiting;
                self.pool.placement.borrow_mut().retire(self.key);
                self.moves.push(device);
            }
            TokenAnswer::Refused(refused) if proof.asked => {
                tokens.at(TokenResult::Refused).inc();
                (proof.asked, proof.stage) = (false, Stage::Failed);
                owner.inbox.post(UpstreamEvent::Authorized(Verdict::Refused(refused)));
            }
            // after a reconnect: the hub is busy, the device has its verdict already
            TokenAnswer::Refused(refused) if refused.code == ConnectCode::ServerUnavailable => {
                tokens.at(TokenResult::Failed).inc();
                self.hold_token(device);
            }
            TokenAnswer::Refused(_) => {
                tokens.at(TokenResult::Refused).inc();
                let expired = proof.expires <= self.pool.clock.now().unix;
                let cause = if expired { CloseCause::TokenExpired } else { CloseCause::HubRefused };
                self.let_go(device, cause);
            }
        }
    }

    /// A connection on which no token was taken has not had all of them: on another nobody would fare better. It counts as lost, and
    /// is opened anew after a wait that grows.
    fn handle_fruitless(&mut self) {
        self.pool.metrics.limits.at(Limit::TokensPerConnection).inc();
        self.tokens.fruitless = true;
        if self.refused.is_none() {
            let why = "the hub takes no token on a new connection, as if it had had all of them";
            tracing::warn!(core = self.pool.share.core, connection = self.key.0, "{why}");
            self.refused = Some(why.to_owned());
        }
        self.close_endpoint();
    }

    /// Puts a token again after a wait that grows, for ever: [`State::is_overdue`] says who has waited for too long.
    fn hold_token(&mut self, device: u32) {
        let Some(proof) = self.devices.get_mut(device as usize).and_then(|owner| owner.proof.as_mut()) else { return };
        let backoff = self.pool.target().limits.backoff;
        let until = Trouble::again(&mut proof.trouble, self.pool.clock.monotonic(), backoff, clock::chance());
        proof.stage = Stage::Held(until);
    }

    /// Answers that did not come, the policy token's renewal, tokens to be tried again.
    pub(super) fn check_tokens(&mut self) {
        let now = self.pool.clock.now();
        let timeout = self.pool.target().limits.request_timeout;
        match self.tokens.policy {
            Policy::Valid(renew_at) if self.phase == Phase::Up && renew_at <= now.unix => {
                self.tokens.policy = Policy::Due;
                self.put_policy_token();
            }
            Policy::Due if self.tokens.pair.as_ref().is_some_and(|pair| pair.open == 2) => self.put_policy_token(),
            Policy::InFlight(_, since) if now.monotonic.since(since) >= timeout => {
                self.count_token_timeout();
                self.close_endpoint();
            }
            _ => {}
        }
        self.check_device_tokens(now.monotonic);
        self.put_waiting_tokens();
    }

    fn check_device_tokens(&mut self, now: Millis) {
        let timeout = self.pool.target().limits.request_timeout;
        let mut late = Vec::new();
        self.tokens.troubled = 0;
        for (device, owner) in &mut self.devices {
            let Some(proof) = &mut owner.proof else { continue };
            self.tokens.troubled += usize::from(proof.trouble.is_some());
            if matches!(proof.stage, Stage::Held(until) if until <= now) {
                proof.stage = Stage::Waiting;
                self.tokens.waiting.push_back(device as u32);
            }
            let under_way = matches!(proof.stage, Stage::InFlight(_)) || (proof.asked && proof.stage == Stage::Waiting);
            if under_way && now.since(proof.since) >= timeout {
                late.push(device as u32);
            }
        }
        for device in late {
            self.handle_token_timeout(device);
        }
    }

    fn handle_token_timeout(&mut self, device: u32) {
        self.count_token_timeout();
        let Some(owner) = self.devices.get_mut(device as usize) else { return };
        let Some(proof) = &mut owner.proof else { return };
        let asked = proof.since;
        if let Stage::InFlight(request) = proof.stage {
            self.tokens.cbs.forget(request);
            self.requests.remove(&request);
        }
        if std::mem::take(&mut proof.asked) {
            proof.stage = Stage::Failed;
            owner.inbox.post(UpstreamEvent::Authorized(Verdict::Refused(UNAVAILABLE)));
        } else {
            self.hold_token(device);
        }
        self.handle_no_answer(asked);
    }

    fn count_token_timeout(&self) {
        self.pool.metrics.upstream_tokens.at(TokenResult::Timeout).inc();
        self.pool.metrics.limits.at(Limit::RequestTimeout).inc();
    }

    /// The connection is gone: what was on its way starts again.
    pub(super) fn reset_tokens(&mut self) {
        self.tokens.reset();
        self.requests.clear();
        self.tokens.waiting.clear();
        for (device, owner) in &mut self.devices {
            let Some(proof) = &mut owner.proof else { continue };
            if proof.stage != Stage::Failed {
                proof.stage = Stage::Waiting;
                // devices with messages first: their windows are full
                if owner.queue.is_empty() {
                    self.tokens.waiting.push_back(device as u32);
                } else {
                    self.tokens.waiting.push_front(device as u32);
                }
            }
        }
    }

    /// Nobody waits for this device's answer any more.
    pub(super) fn forget_token(&mut self, device: u32) {
        let Some(proof) = self.devices.get(device as usize).and_then(|owner| owner.proof.as_ref()) else { return };
        if let Stage::InFlight(request) = proof.stage {
            self.tokens.cbs.forget(request);
            self.requests.remove(&request);
        }
    }
}
