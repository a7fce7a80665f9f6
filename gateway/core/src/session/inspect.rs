//! What the owner of a session may ask of it for its lists, metrics and log lines. Changes nothing.

use super::{Session, State};
use crate::message::DeviceId;

impl Session {
    /// Who this is, from CONNECT on until the session ended; proven only once the verdict allowed it.
    pub fn identity(&self) -> Option<&DeviceId> {
        match &self.state {
            State::Authenticating(candidate) => Some(&candidate.identity),
            State::Active(live) | State::Draining { live, .. } => Some(&live.identity),
            State::Connecting { .. } | State::Closed(_) => None,
        }
    }

    /// Bytes of its CONNECT, Will and password, that are kept while nobody has let it in yet.
    pub fn unauthenticated_bytes(&self) -> usize {
        match &self.state {
            State::Authenticating(candidate) => candidate.kept_bytes,
            State::Connecting { .. } | State::Active(_) | State::Draining { .. } | State::Closed(_) => 0,
        }
    }

    /// Whether the answer to `Effect::Authenticate` is awaited.
    pub fn is_authenticating(&self) -> bool {
        matches!(self.state, State::Authenticating(_))
    }
}
