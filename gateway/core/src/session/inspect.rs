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

    /// Whether the answer to `Effect::Authenticate` is awaited.
    pub fn is_authenticating(&self) -> bool {
        matches!(self.state, State::Authenticating(_))
    }
}
