//! What a link is for, and the pairs that twin and methods links form.

use std::collections::HashMap;
use std::sync::Arc;

use super::link::LinkId;
use super::settings::AmqpSettings;
use crate::domain::Identity;

/// What a link is for. The peer's role is in the names: requests and telemetry come from it, answers and calls go to it.
#[derive(Debug)]
pub(crate) enum Kind {
    /// `$cbs`, from the peer.
    CbsRequests,
    /// `$cbs`, to the peer.
    CbsAnswers,
    /// `…/messages/events`, from the device; with the DTDL model it named.
    Telemetry(Identity, Option<Arc<str>>),
    /// `…/messages/deviceBound`, to the device.
    C2d(Identity),
    /// `…/twin`, from the device.
    TwinRequests(Arc<PairKey>),
    /// `…/twin`, to the device.
    TwinAnswers(Arc<PairKey>),
    /// `…/methods/deviceBound`, from the device.
    MethodAnswers(Arc<PairKey>),
    /// `…/methods/deviceBound`, to the device.
    MethodCalls(Arc<PairKey>),
    /// `/messages/devicebound`, from a back end.
    ServiceC2d,
    /// `/messages/serviceBound/feedback`, to a back end.
    Feedback,
    /// A telemetry partition, to a back end.
    Events(Box<super::events::Reader>),
    /// Refused: only there until the peer's DETACH.
    Refused,
}

impl Kind {
    /// Whose device link this is.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        match self {
            Self::Telemetry(identity, _) | Self::C2d(identity) => Some(identity),
            Self::TwinRequests(pair)
            | Self::TwinAnswers(pair)
            | Self::MethodAnswers(pair)
            | Self::MethodCalls(pair) => Some(&pair.identity),
            _ => None,
        }
    }

    /// The pair this link is half of.
    pub(crate) fn pair(&self) -> Option<&Arc<PairKey>> {
        match self {
            Self::TwinRequests(pair)
            | Self::TwinAnswers(pair)
            | Self::MethodAnswers(pair)
            | Self::MethodCalls(pair) => Some(pair),
            _ => None,
        }
    }

    /// Credit that the peer is given on such a link.
    pub(crate) fn credit(&self, settings: &AmqpSettings) -> u32 {
        match self {
            Self::CbsRequests => settings.cbs_credit,
            Self::Telemetry(..) | Self::TwinRequests(_) | Self::MethodAnswers(_) | Self::ServiceC2d => {
                settings.link_credit
            }
            _ => 0,
        }
    }

    /// Answers and calls are sent settled; what is under a lock, and events, wait for an outcome.
    pub(crate) fn sends_settled_by_default(&self) -> bool {
        !matches!(self, Self::C2d(_) | Self::Feedback | Self::Events(_))
    }
}

/// Which two pairs of links a device may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Paired {
    Twin,
    Methods,
}

/// Two links belong together when all of this is equal (contract §3.4: `com.microsoft:channel-correlation-id`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PairKey {
    pub(crate) identity: Identity,
    pub(crate) paired: Paired,
    pub(crate) correlation: String,
}

/// The halves that are attached.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pair {
    pub(crate) from_peer: Option<LinkId>,
    pub(crate) to_peer: Option<LinkId>,
}

/// The pairs of one connection.
#[derive(Debug, Default)]
pub(crate) struct Pairs(HashMap<Arc<PairKey>, Pair>);

impl Pairs {
    /// Notes one half. Returns the pair as it is now, or none if that half was there already.
    pub(crate) fn join(&mut self, key: &Arc<PairKey>, id: LinkId, is_from_peer: bool) -> Option<Pair> {
        let pair = self.0.entry(key.clone()).or_default();
        let half = if is_from_peer { &mut pair.from_peer } else { &mut pair.to_peer };
        if half.is_some() {
            return None;
        }
        *half = Some(id);
        Some(*pair)
    }

    pub(crate) fn get(&self, key: &PairKey) -> Pair {
        self.0.get(key).copied().unwrap_or_default()
    }

    /// Forgets one half, and the pair with its last.
    pub(crate) fn leave(&mut self, key: &Arc<PairKey>, id: LinkId) {
        let Some(pair) = self.0.get_mut(key) else { return };
        pair.from_peer.take_if(|half| *half == id);
        pair.to_peer.take_if(|half| *half == id);
        if pair.from_peer.is_none() && pair.to_peer.is_none() {
            self.0.remove(key);
        }
    }
}
