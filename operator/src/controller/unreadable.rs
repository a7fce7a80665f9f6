//! A ProtocolGateway that the API server took and this program cannot read: one of an older or a newer definition. It is left as
//! it is, pods and all, and its condition says so.

use jiff::Timestamp;
use serde_json::Value;

use super::{Next, REST, World};
use crate::{error::ReconcileError, observe::mirror::Name};

impl World {
    /// Says it in the status, and leaves the rest of it as it is.
    pub(super) async fn unreadable(
        &self,
        name: &Name,
        (body, version): (&Value, String),
        why: &serde_json::Error,
        now: Timestamp,
    ) -> Result<Next, ReconcileError> {
        let message = format!(
            "the spec cannot be read: {why}; upgrade the operator or correct the spec; what runs is left as it is"
        );
        if self.writer.leadership.epoch().is_some() {
            self.degrade(name, (body, version), ("Unreadable", message), now).await?;
        }
        Ok(Next::After(REST))
    }
}
