//! Who may do what on a connection: the claims collected by SASL PLAIN, by CBS and from a client certificate.

use std::collections::HashMap;
use std::sync::Arc;

use super::connection::{Connection, Now};
use super::error;
use super::timer::Timer;
use crate::domain::{AuthError, Claims, HubError, Identity, Permissions, Scope};

/// An entry of [`Grants`], for as long as the connection lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GrantId(usize);

/// The claims of one connection. A renewed token replaces its predecessor, links that came by it stay.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    all: Vec<Claims>,
    /// `iothub-connection-auth-method` of each.
    methods: Vec<Arc<str>>,
    of_identity: HashMap<Identity, GrantId>,
    of_hub: Vec<GrantId>,
    /// Who ever put a token here: the limit counts over the connection's life.
    tokens: usize,
    /// When the first of them may be over, Unix milliseconds; `None`: never.
    next_expiry_ms: Option<u64>,
}

impl Grants {
    /// Adds claims that no token limit counts.
    pub(crate) fn add(&mut self, claims: Claims) -> GrantId {
        if let Some(known) = self.position(&claims.scope) {
            self.methods[known.0] = claims.auth_method_json().into();
            self.all[known.0] = claims;
            return known;
        }
        let id = GrantId(self.all.len());
        match &claims.scope {
            Scope::Device { identity, .. } => {
                self.of_identity.insert(identity.clone(), id);
            }
            Scope::Hub { .. } => self.of_hub.push(id),
        }
        self.methods.push(claims.auth_method_json().into());
        self.all.push(claims);
        id
    }

    /// Adds the claims of a token; false: it would be one too many.
    pub(crate) fn put_token(&mut self, claims: Claims, tokens_max: usize) -> bool {
        let is_new = self.position(&claims.scope).is_none();
        if is_new && self.tokens >= tokens_max {
            return false;
        }
        self.tokens += usize::from(is_new);
        self.add(claims);
        true
    }

    /// The grant by which this identity's links may be attached.
    pub(crate) fn covering(&self, identity: &Identity, is_live: impl Fn(&Claims) -> bool) -> Option<GrantId> {
        let own = [self.of_identity.get(identity), self.of_identity.get(&identity.parent())];
        let candidates = own.into_iter().flatten().chain(&self.of_hub);
        candidates.copied().find(|id| is_live(&self.all[id.0]) && self.all[id.0].covers(identity))
    }

    /// The grant by which cloud-side links may be attached.
    pub(crate) fn permitting(&self, needed: Permissions, is_live: impl Fn(&Claims) -> bool) -> Option<GrantId> {
        self.of_hub.iter().copied().find(|id| is_live(&self.all[id.0]) && self.all[id.0].permits(needed))
    }

    /// The value of `iothub-connection-auth-method` for links of this grant.
    pub(crate) fn auth_method(&self, id: GrantId) -> Arc<str> {
        self.methods[id.0].clone()
    }

    /// Whether some token may be over.
    pub(crate) fn has_expired(&self, now_ms: u64) -> bool {
        self.next_expiry_ms.is_some_and(|expiry_ms| expiry_ms <= now_ms)
    }

    /// Looks for the token that is over next.
    fn rearm(&mut self, now_ms: u64, skew_s: u64) {
        let expiries = self.all.iter().map(|claims| claims.expires.saturating_add(skew_s).saturating_mul(1000));
        self.next_expiry_ms = expiries.filter(|expiry_ms| *expiry_ms > now_ms).min();
    }

    pub(crate) fn get(&self, id: GrantId) -> &Claims {
        &self.all[id.0]
    }

    /// Hub-wide scopes are few on one connection; identities are looked up.
    fn position(&self, scope: &Scope) -> Option<GrantId> {
        match scope {
            Scope::Device { identity, .. } => self.of_identity.get(identity).copied(),
            Scope::Hub { .. } => self.of_hub.iter().copied().find(|id| self.all[id.0].scope == *scope),
        }
    }
}

impl Connection {
    fn is_live(&self, claims: &Claims, now: Now) -> bool {
        !claims.has_expired(now.unix_ms / 1000, self.domain.settings.sas_skew.as_secs())
    }

    /// Whether the identity may attach device links here: its own claims, a policy's, or its certificate.
    pub(super) fn authorize_identity(&mut self, identity: &Identity, now: Now) -> Result<GrantId, HubError> {
        let covering = self.grants.covering(identity, |claims| self.is_live(claims, now));
        let grant = match (covering, &self.client_certificate) {
            (Some(grant), _) => grant,
            (None, Some(certificate)) => {
                let claims = self.domain.verify_certificate(identity, certificate)?;
                self.arm_expiry(claims.expires, now);
                self.grants.add(claims)
            }
            (None, None) => return Err(AuthError::NotCovered.into()),
        };
        self.domain.registry.admit(identity)?;
        Ok(grant)
    }

    /// Whether cloud-side links may be attached here.
    pub(super) fn authorize_service(&self, now: Now) -> Result<GrantId, HubError> {
        self.grants
            .permitting(Permissions::SERVICE_CONNECT, |claims| self.is_live(claims, now))
            .ok_or_else(|| AuthError::NotCovered.into())
    }

    /// Detaches the links whose token, password or certificate is over.
    pub(super) fn expire_grants(&mut self, now: Now) {
        let is_over = |id: GrantId| !self.is_live(self.grants.get(id), now);
        let over: Vec<_> =
            self.links.iter().filter(|(_, link)| link.grant.is_some_and(is_over)).map(|(_, link)| link.id).collect();
        for id in over {
            let refusal = HubError::from(AuthError::Expired);
            self.detach(id, error::hub(&refusal, now.unix_ms));
        }
        self.grants.rearm(now.unix_ms, self.domain.settings.sas_skew.as_secs());
    }

    /// Sees to it that links end with these claims.
    pub(super) fn arm_expiry(&mut self, expires: u64, now: Now) {
        let skew_s = self.domain.settings.sas_skew.as_secs();
        let expiry_ms = expires.saturating_add(skew_s).saturating_mul(1000);
        let first = self.grants.next_expiry_ms.map_or(expiry_ms, |first| first.min(expiry_ms));
        self.grants.next_expiry_ms = Some(first);
        let left_ms = expiry_ms.saturating_sub(now.unix_ms);
        self.timers.push(now.tick.saturating_add(left_ms), Timer::Grants);
    }
}
