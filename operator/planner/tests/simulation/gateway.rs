//! A gateway as its admin port promises it: orders with epochs and leases, paced; drains by itself when it is told to stop.

use planner::{DrainOrder, Load, Millis, Order, Ordered, budget::LEASE, upstream::Upstream};

use crate::world::TICK;

/// Told to stop and ordered nothing for so long, it drains by itself.
const SELF_AFTER: Millis = 5_000;
/// An order that nobody renewed for so long is forgotten.
const FORGET_AFTER: Millis = 10 * LEASE;

/// One process.
#[derive(Default)]
pub(crate) struct Gateway {
    pub(crate) devices: Vec<u32>,
    highest_epoch: i64,
    order: Option<(DrainOrder, i64, Millis)>,
    stop: Option<Stop>,
    let_go_last_tick: u32,
}

/// It was told to stop.
#[derive(Clone, Copy)]
pub(crate) struct Stop {
    pub(crate) at: Millis,
    pub(crate) deadline: Millis,
    pub(crate) per_second: u32,
}

/// Devices let go in a tick.
#[derive(Default)]
pub(crate) struct LetGo {
    pub(crate) ordered: Vec<u32>,
    pub(crate) by_itself: Vec<u32>,
    pub(crate) at_deadline: Vec<u32>,
}

impl Gateway {
    /// Whether it was taken; an order of an earlier leader is not.
    pub(crate) fn take(&mut self, order: Order, epoch: i64, now: Millis) -> bool {
        if epoch < self.highest_epoch {
            return false;
        }
        self.highest_epoch = epoch;
        self.order = match order {
            Order::Drain(order) => Some((order, epoch, now)),
            Order::Undrain => None,
        };
        true
    }

    pub(crate) fn stop(&mut self, stop: Stop) {
        self.stop.get_or_insert(stop);
    }

    pub(crate) fn wants_devices(&self) -> bool {
        self.stop.is_none() && !self.order.is_some_and(|(order, ..)| order.leave)
    }

    fn rate(&self, now: Millis) -> u32 {
        match self.order {
            Some((order, _, at)) if now - at < LEASE => order.per_second,
            _ => 0,
        }
    }

    pub(crate) fn load(&self, now: Millis, upstream: Upstream) -> Load {
        let drain = self.order.map(|(order, epoch, _)| Ordered {
            cause: Some(order.cause),
            epoch,
            per_second: self.rate(now),
            remaining: (self.devices.len() as u64).saturating_sub(order.down_to),
        });
        let by_itself = self.drains_by_itself(now).map(|per_second| Ordered {
            cause: None,
            epoch: 0,
            per_second,
            remaining: self.devices.len() as u64,
        });
        Load { connections: self.devices.len() as u64, age: 0, upstream, drain: drain.or(by_itself) }
    }

    fn drains_by_itself(&self, now: Millis) -> Option<u32> {
        let stop = self.stop.filter(|stop| now - stop.at >= SELF_AFTER)?;
        self.order.is_none().then_some(stop.per_second)
    }

    pub(crate) fn tick(&mut self, now: Millis) -> LetGo {
        if self.order.is_some_and(|(_, _, at)| now - at >= FORGET_AFTER) {
            self.order = None;
        }
        let mut gone = LetGo::default();
        let by_itself = self.drains_by_itself(now);
        let rate = by_itself.unwrap_or_else(|| self.rate(now));
        let down_to = self.order.map_or(0, |(order, ..)| order.down_to) as usize;
        // the worst that a second allows: all at once, then nobody
        let count =
            (rate.saturating_sub(self.let_go_last_tick) as usize).min(self.devices.len().saturating_sub(down_to));
        self.let_go_last_tick = count as u32;
        let list = if by_itself.is_some() { &mut gone.by_itself } else { &mut gone.ordered };
        list.extend(self.devices.drain(..count));
        if let Some(stop) = self.stop
            && now >= stop.deadline - 5 * TICK
        {
            gone.at_deadline.append(&mut self.devices);
        }
        gone
    }
}
