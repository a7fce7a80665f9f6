//! Time: what is looked after while nothing comes from the socket, and what is shown of it.

use std::time::Duration;

use amqp_endpoint::Endpoint;
use gateway_core::{session::effect::CloseCause, time::Millis};

use super::{
    device::{Message, Tie},
    state::{Phase, State},
};
use crate::metrics::UpstreamState;

/// How often to look while devices wait for their turn to go.
const OVERDUE_TICK: Duration = Duration::from_millis(50);

impl State {
    /// When [`State::tick`] or the endpoint's timer is due.
    pub(super) fn poll_timeout(&self) -> Millis {
        let endpoint = self.endpoint.as_ref().and_then(Endpoint::poll_timeout);
        endpoint.map_or(self.next_tick, |at| self.next_tick.min(Millis(at)))
    }

    /// Something may be due.
    pub(super) fn handle_timeout(&mut self, now: Millis) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.set_now(now.0);
            if endpoint.poll_timeout().is_some_and(|at| at <= now.0) {
                endpoint.handle_timeout(now.0);
            }
        }
        if self.next_tick <= now || (self.pool.draining.get() && !self.ending) {
            self.next_tick = now.after(self.tick_interval());
            self.tick(now);
        }
    }

    /// A quarter of the shortest wait that is looked after here; an idle connection wakes once a second.
    fn tick_interval(&self) -> Duration {
        let target = self.pool.target();
        let limits = &target.limits;
        let shortest =
            limits.request_timeout.min(limits.settle_timeout).min(limits.outage_max).min(limits.idle_timeout);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }

    /// Something is due at `at`, before the next tick would come by itself.
    pub(super) fn tick_by(&mut self, at: Millis) {
        self.next_tick = self.next_tick.min(at);
    }

    /// Waits that are over: tokens, dispositions, links held back, an outage, an empty connection.
    fn tick(&mut self, now: Millis) {
        self.check_tokens();
        let mut overdue = Vec::new();
        if !self.messages.is_empty() || self.held > 0 || self.tokens.troubled > 0 {
            overdue = self.check_devices(now);
        }
        if self.outage.is_over_bound(now) {
            overdue = self.devices.iter().map(|(device, _)| device as u32).collect();
        }
        if !overdue.is_empty() {
            self.let_overdue_go(&overdue, now);
        }
        let credit = self.credit();
        self.show_credit(credit);
        self.pool.buffers.tick();
        self.check_end(now);
    }

    /// Gives those for whom the hub has done nothing for too long.
    fn check_devices(&mut self, now: Millis) -> Vec<u32> {
        let now_us = self.pool.clock.turn_us();
        // the next look, not this one again
        let soon = self.pool.clock.monotonic().after(Duration::from_millis(1));
        let outage_max = self.pool.target().limits.outage_max;
        let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
        let (mut held, mut overdue) = (0, Vec::new());
        for device in devices {
            if self.phase == Phase::Up {
                if self.is_overdue(device, outage_max, now, now_us) {
                    overdue.push(device);
                }
                self.check_age(device, now_us);
                self.release_held(device);
            }
            let Some(owner) = self.devices.get(device as usize) else { continue };
            for tie in [owner.sender, owner.commands.tie] {
                if let Tie::Held(until) = tie {
                    held += 1;
                    self.next_tick = self.next_tick.min(until.max(soon));
                }
            }
        }
        self.held = held;
        overdue
    }

    /// Its oldest message has no outcome, or it is refused its links or its token, for `outageMax`, although the hub is there.
    pub(super) fn is_overdue(&self, device: u32, outage_max: Duration, now: Millis, now_us: u64) -> bool {
        let Some(owner) = self.devices.get(device as usize) else { return false };
        let oldest = owner.queue.first().and_then(|key| self.messages.get(key));
        let waits_since = |message: &Message| Duration::from_micros(now_us.saturating_sub(message.given_us));
        let is_held = [owner.sender, owner.commands.tie].iter().any(|tie| matches!(tie, Tie::Held(_)));
        let troubles = [owner.trouble.filter(|_| is_held), owner.proof.as_ref().and_then(|proof| proof.trouble)];
        oldest.is_some_and(|message| waits_since(message) >= outage_max)
            || troubles.into_iter().flatten().any(|trouble| now.since(trouble.since) >= outage_max)
    }

    /// These devices go, all cores' at the one pace that is this gateway's; whose own connection is gone takes nothing of that.
    /// Who has to wait stays as it is: if the hub comes back, so much the better.
    fn let_overdue_go(&mut self, overdue: &[u32], now: Millis) {
        let is_gone = |device: &u32| self.devices.get(*device as usize).is_none_or(|owner| owner.leaving);
        let (mut going, waiting): (Vec<u32>, Vec<u32>) = overdue.iter().partition(|device| is_gone(device));
        let settings = self.pool.settings();
        let count = self.pool.outage_pace.take(&settings.limits, waiting.len() as u64) as usize;
        if count < waiting.len() {
            self.tick_by(now.after(OVERDUE_TICK));
        }
        going.extend(&waiting[..count]);
        for device in going {
            self.let_go(device, CloseCause::HubUnreachable);
        }
    }

    /// Closes a connection that nobody needs: idle for long, or the gateway stops and nothing is in flight.
    fn check_end(&mut self, now: Millis) {
        if !self.ending {
            let idle = self.pool.placement.borrow().next_idle(now) == Some(self.key);
            if idle {
                self.pool.remove(self.key);
                self.ending = true;
            }
            if self.pool.draining.get() && self.messages.is_empty() {
                self.pool.remove(self.key);
                self.ending = true;
                let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
                for device in devices {
                    self.let_go(device, CloseCause::Shutdown);
                }
            }
            if self.ending {
                self.show(UpstreamState::Closing);
                self.close_endpoint();
            }
        }
    }

    /// Counts this connection under `state`.
    pub(super) fn show(&mut self, state: UpstreamState) {
        self.hide();
        self.pool.metrics.upstream_connections.at(state).add(1);
        self.shown = Some(state);
    }

    /// Counts it no more.
    pub(super) fn hide(&mut self) {
        if let Some(shown) = self.shown.take() {
            self.pool.metrics.upstream_connections.at(shown).add(-1);
        }
    }

    fn credit(&self) -> i64 {
        let Some(endpoint) = &self.endpoint else { return 0 };
        let open = self.devices.iter().filter_map(|(_, owner)| match owner.sender {
            Tie::Open(link) => Some(i64::from(endpoint.credit(link))),
            _ => None,
        });
        open.sum()
    }

    pub(super) fn show_credit(&mut self, credit: i64) {
        self.pool.metrics.upstream_credit.add(credit - self.credit_shown);
        self.credit_shown = credit;
    }
}
