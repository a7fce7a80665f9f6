//! One line at info every ten seconds in which anything happened: a storm of connects is one line, not a thousand. One at warn
//! where devices were let go because the hub did nothing for them.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use crate::{
    metrics::{ConnectResult, Messages},
    server::Shared,
};

const EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Totals {
    accepted: u64,
    refused: u64,
    disconnected: u64,
    up: u64,
    down: u64,
    unsettled: u64,
    forsaken: u64,
}

/// Tells, for ever.
pub async fn tell(shared: Arc<Shared>) {
    let mut before = Totals::default();
    loop {
        tokio::time::sleep(EVERY).await;
        let now = Totals::of(&shared);
        if now != before {
            now.tell_since(before, &shared);
            before = now;
        }
    }
}

impl Totals {
    fn of(shared: &Shared) -> Self {
        let registry = &shared.registry;
        let accepted_of = |of: &Messages| of.get(0, 0) + of.get(1, 0);
        let all_of = |of: &Messages| (0..4).map(|column| of.get(0, column) + of.get(1, column)).sum::<u64>();
        Self {
            accepted: registry.total(|core| core.connects.at(ConnectResult::Accepted).get()),
            refused: registry.total_of(|core| &core.refused),
            disconnected: registry.total_of(|core| &core.disconnects),
            up: registry.total(|core| accepted_of(&core.up)),
            down: registry.total(|core| accepted_of(&core.down)),
            unsettled: registry.total(|core| all_of(&core.up) - accepted_of(&core.up)),
            forsaken: shared.outage_pace.gone(),
        }
    }

    fn tell_since(self, before: Self, shared: &Shared) {
        info!(
            connections = shared.registry.connections(),
            connected = self.accepted - before.accepted,
            refused = self.refused - before.refused,
            disconnected = self.disconnected - before.disconnected,
            to_hub = self.up - before.up,
            not_accepted = self.unsettled - before.unsettled,
            to_devices = self.down - before.down,
            "last ten seconds"
        );
        if self.forsaken > before.forsaken {
            let devices = self.forsaken - before.forsaken;
            warn!(devices, "let go in the last ten seconds for want of the hub");
        }
        let reasons = shared.registry.by_label(|core| &core.refused);
        if self.refused != before.refused {
            info!(?reasons, "refused since the start, by reason");
        }
    }
}
