//! Time: what is looked after while nothing comes from the socket, and what is shown of it.

use std::time::Duration;

use amqp_endpoint::Endpoint;
use gateway_core::{session::effect::CloseCause, time::Millis};

use super::{
    device::Tie,
    state::{Phase, State},
};
use crate::metrics::UpstreamState;

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
        if self.outage.is_over_bound(now) {
            self.let_devices_go();
        }
        if !self.messages.is_empty() || self.held > 0 {
            self.check_devices();
        }
        let credit = self.credit();
        self.show_credit(credit);
        self.pool.buffers.tick();
        self.check_end(now);
    }

    fn check_devices(&mut self) {
        let now_us = self.pool.clock.turn_us();
        // the next look, not this one again
        let now = self.pool.clock.monotonic().after(Duration::from_millis(1));
        let devices: Vec<u32> = self.devices.iter().map(|(device, _)| device as u32).collect();
        let mut held = 0;
        for device in devices {
            if self.phase == Phase::Up && self.check_age(device, now_us) {
                self.release_held(device);
            }
            let Some(owner) = self.devices.get(device as usize) else { continue };
            for tie in [owner.sender, owner.commands.tie] {
                if let Tie::Held(until) = tie {
                    held += 1;
                    self.next_tick = self.next_tick.min(until.max(now));
                }
            }
        }
        self.held = held;
    }

    /// The hub is away for too long: devices go, no faster than they may come.
    fn let_devices_go(&mut self) {
        let sharers = u32::from(self.pool.share.cores).max(1) * self.pool.placement.borrow().len().max(1) as u32;
        let per_second = u64::from((self.pool.settings().limits.connects_per_second / sharers).max(1));
        let per_tick = (per_second * self.tick_interval().as_millis() as u64).div_ceil(1000);
        let devices: Vec<u32> = self.devices.iter().take(per_tick as usize).map(|(device, _)| device as u32).collect();
        if !devices.is_empty() {
            tracing::warn!(
                core = self.pool.share.core,
                connection = self.key.0,
                devices = devices.len(),
                "the hub is away, letting devices go"
            );
        }
        for device in devices {
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
