//! A gateway: the product's own drain decides when and how far, chance who goes; the pace is the worst that a second allows.

use std::{collections::BTreeSet, time::Duration};

use gateway_core::{
    drain::{self as product, Counts, Report, outage},
    time,
};
use planner::{Cause, DrainOrder, Load, Millis, Order, Ordered, budget::LEASE, upstream::Upstream};

use crate::world::{ALONE_AFTER, TICK};

/// One process.
pub(crate) struct Gateway {
    pub(crate) devices: Vec<u32>,
    /// Of those, whom it does not trust any more.
    pub(crate) distrusted: BTreeSet<u32>,
    drain: product::Drain,
    pub(crate) stop: Option<Stop>,
    ordered_at: Option<Millis>,
    closed: u64,
    unused: u64,
    outage: outage::OutagePace,
    /// The upstream did nothing for its devices for too long.
    pub(crate) forsaken: bool,
    let_go_last_tick: u32,
    /// At less than one device per second: when the next may go.
    next: Millis,
    /// The same of those whom the upstream does nothing for.
    next_forsaken: Millis,
}

/// It was told to stop.
#[derive(Clone, Copy)]
pub(crate) struct Stop {
    pub(crate) at: Millis,
    pub(crate) deadline: Millis,
}

/// Why a pod that ends may go above the budget in the last part of its time.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Excuse {
    /// It did not fit when the pod was told to stop, or the budget became lower.
    Arithmetic,
    /// The leader or a pod was out of order since.
    Fault,
}

impl Stop {
    /// When the last part of its time begins.
    pub(crate) fn late_at(&self) -> Millis {
        self.at + (self.deadline - self.at) / 4 * 3
    }
}

/// Devices let go in a tick.
#[derive(Default)]
pub(crate) struct LetGo {
    pub(crate) ordered: Vec<u32>,
    pub(crate) by_itself: Vec<u32>,
    /// By itself, because the upstream did nothing for them.
    pub(crate) forsaken: Vec<u32>,
    /// At less than one per second: not more than the budget in the mean.
    pub(crate) in_parts: Vec<u32>,
    /// As fast as the deadline demands, in the last part of the time.
    pub(crate) by_deadline: Vec<u32>,
    /// The same where the arithmetic said that it does not fit.
    pub(crate) beyond: Vec<u32>,
    /// What a fault made late, or a pod that is out of its mind let go by itself.
    pub(crate) by_fault: Vec<u32>,
}

impl LetGo {
    pub(crate) fn all(self) -> impl Iterator<Item = u32> {
        let Self { ordered, by_itself, forsaken, in_parts, by_deadline, beyond, by_fault } = self;
        [ordered, by_itself, forsaken, in_parts, by_deadline, beyond, by_fault].into_iter().flatten()
    }

    /// Files what went late under what made it late.
    pub(crate) fn excused(mut self, excuse: Option<Excuse>) -> Self {
        let late = std::mem::take(&mut self.by_deadline);
        match excuse {
            None => self.by_deadline = late,
            Some(Excuse::Arithmetic) => self.beyond = late,
            Some(Excuse::Fault) => self.by_fault = late,
        }
        self
    }

    /// Of a pod that nobody can believe: what it does by itself nobody can foresee.
    pub(crate) fn unbelieved(mut self) -> Self {
        let own =
            [&mut self.by_itself, &mut self.forsaken, &mut self.in_parts, &mut self.by_deadline, &mut self.beyond];
        for own in own {
            self.by_fault.append(own);
        }
        self
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.ordered.extend(other.ordered);
        self.by_itself.extend(other.by_itself);
        self.forsaken.extend(other.forsaken);
        self.in_parts.extend(other.in_parts);
        self.by_deadline.extend(other.by_deadline);
        self.beyond.extend(other.beyond);
        self.by_fault.extend(other.by_fault);
    }
}

fn at(now: Millis) -> time::Millis {
    time::Millis(now.cast_unsigned())
}

impl Gateway {
    /// `share` is what it lets go per second alone, `phase` its chance.
    pub(crate) fn new(share: f64, phase: f64) -> Self {
        let alone_after = Duration::from_millis(ALONE_AFTER.cast_unsigned());
        let mut drain = product::Drain::new(phase);
        (drain.own_per_second, drain.alone_after) = (share, alone_after);
        Self {
            devices: Vec::new(),
            distrusted: BTreeSet::new(),
            drain,
            stop: None,
            ordered_at: None,
            closed: 0,
            unused: 0,
            outage: outage::OutagePace::default(),
            forsaken: false,
            let_go_last_tick: 0,
            next: 0,
            next_forsaken: 0,
        }
    }

    pub(crate) fn reconfigure(&mut self, share: f64) {
        self.drain.own_per_second = share;
    }

    fn counts(&self) -> Counts {
        Counts {
            connections: self.devices.len() as u64,
            closed: self.closed,
            unused: self.unused,
            distrusted: self.distrusted.len() as u64,
            forsaken: 0,
        }
    }

    /// Whether it was taken; an order of an earlier leader is not.
    pub(crate) fn take(&mut self, order: Order, epoch: i64, now: Millis) -> bool {
        let taken = match order {
            Order::Drain(order) => self.drain.handle_order(ordered(order, epoch), self.counts(), at(now)).is_ok(),
            Order::Undrain => self.drain.handle_undrain(epoch, at(now)).is_ok(),
        };
        if taken {
            self.ordered_at = (order != Order::Undrain).then_some(now);
        }
        taken
    }

    pub(crate) fn stop(&mut self, stop: Stop) {
        let timeout = Duration::from_millis((stop.deadline - stop.at).cast_unsigned());
        self.drain.handle_stop(timeout, self.counts(), at(stop.at));
        self.stop.get_or_insert(stop);
    }

    pub(crate) fn wants_devices(&self) -> bool {
        self.drain.is_ready()
    }

    pub(crate) fn load(&self, now: Millis, upstream: Option<Upstream>) -> Load {
        let drain = self.drain.report(self.counts(), at(now)).map(|report| Ordered {
            cause: cause(report.cause),
            epoch: report.epoch,
            per_second: report.per_second.ceil() as u32,
            remaining: report.remaining,
        });
        let forsaken_per_second = self.forsaken_per_second(now).unwrap_or(0.0);
        Load { connections: self.devices.len() as u64, age: 0, upstream, drain, forsaken_per_second }
    }

    /// What it lets go per second, or is about to, because the upstream does nothing for its devices.
    pub(crate) fn forsaken_per_second(&self, now: Millis) -> Option<f64> {
        self.outage.is_waited_for(at(now)).then_some(self.drain.own_per_second)
    }

    pub(crate) fn tick(&mut self, now: Millis) -> LetGo {
        // its own pace is one of many that keep the promise; here it is the worst
        self.unused += self.drain.poll(self.counts(), at(now)).map_or(0, |grant| grant.count);
        let mut gone = LetGo::default();
        let is_over = self.drain.is_over(self.counts(), at(now));
        let before = std::mem::take(&mut self.let_go_last_tick);
        let report = self.drain.report(self.counts(), at(now));
        if let Some(report) = &report {
            let devices = self.let_go(report, before, now);
            *self.kind(report, now, &mut gone) = devices;
        }
        let moves = |report: &Report| report.state == product::State::Draining && report.per_second > 0.0;
        let devices = self.let_forsaken_go(report.as_ref().is_some_and(moves), before, now);
        if self.drain.own_per_second < 1.0 {
            gone.in_parts.extend(devices);
        } else {
            gone.forsaken = devices;
        }
        if is_over {
            gone.by_deadline.append(&mut self.devices);
            self.distrusted.clear();
        }
        gone
    }

    /// A second is shared with what a drain let go, as in the product.
    fn let_forsaken_go(&mut self, held: bool, before: u32, now: Millis) -> Vec<u32> {
        let own = self.drain.own_per_second;
        if !self.forsaken || self.devices.is_empty() {
            return Vec::new();
        }
        let waiting = self.devices.len() as u64;
        let alone_after = Duration::from_millis(ALONE_AFTER.cast_unsigned());
        let ask = outage::Ask { per_second: own, alone_after, waiting, held, drained: 0, chance: 0.0 };
        if !self.outage.may_go(&ask, at(now)) {
            return Vec::new();
        }
        let most = if own < 1.0 { u32::from(now >= self.next_forsaken) } else { own.ceil() as u32 };
        let most = most.saturating_sub(before).saturating_sub(self.let_go_last_tick);
        let going: Vec<u32> = self.devices.iter().copied().take(most as usize).collect();
        self.forget(&going);
        self.let_go_last_tick += going.len() as u32;
        if !going.is_empty() {
            self.next_forsaken = now + (1000.0 / own) as Millis;
        }
        going
    }

    fn let_go(&mut self, report: &Report, before: u32, now: Millis) -> Vec<u32> {
        let most = if report.per_second < 1.0 { u32::from(now >= self.next) } else { report.per_second.ceil() as u32 };
        let most = if report.per_second > 0.0 { most.saturating_sub(before) } else { 0 };
        let only_distrusted = report.cause == product::Cause::CertificateAuthority;
        let first: Vec<u32> = self.distrusted.iter().copied().collect();
        let others =
            self.devices.iter().copied().filter(|device| !self.distrusted.contains(device) && !only_distrusted);
        let count = u64::from(most).min(report.remaining) as usize;
        let going: Vec<u32> = first.into_iter().chain(others).take(count).collect();
        self.forget(&going);
        self.closed += going.len() as u64;
        self.let_go_last_tick = going.len() as u32;
        if !going.is_empty() && report.per_second > 0.0 {
            self.next = now + (1000.0 / report.per_second) as Millis;
        }
        going
    }

    /// Devices per second that it must let go now to be empty at its end, and one that it may be ahead: 0 before the last part
    /// of its time.
    pub(crate) fn must(&self, now: Millis) -> u32 {
        let devices = Millis::from(self.devices.len() as u32);
        let rate = |left: Millis| (devices * 1000 + left - 1) / left + 1;
        let late = self.stop.filter(|stop| now >= stop.late_at() && devices > 0);
        late.map_or(0, |stop| rate((stop.deadline - now).max(TICK)) as u32)
    }

    /// They are not here any more.
    pub(crate) fn forget(&mut self, going: &[u32]) {
        if !going.is_empty() {
            let going: BTreeSet<u32> = going.iter().copied().collect();
            self.devices.retain(|device| !going.contains(device));
            self.distrusted.retain(|device| !going.contains(device));
        }
    }

    fn kind<'g>(&self, report: &Report, now: Millis, gone: &'g mut LetGo) -> &'g mut Vec<u32> {
        let late = self.stop.is_some_and(|stop| (now - stop.at) * 4 >= (stop.deadline - stop.at) * 3);
        let own = self.drain.own_per_second;
        match self.ordered_at.is_some_and(|ordered_at| now - ordered_at < LEASE) {
            _ if late => &mut gone.by_deadline,
            true => &mut gone.ordered,
            false if report.per_second > own => &mut gone.by_deadline,
            false if own < 1.0 => &mut gone.in_parts,
            false => &mut gone.by_itself,
        }
    }
}

fn ordered(order: DrainOrder, epoch: i64) -> product::Order {
    product::Order {
        cause: match order.cause {
            Cause::Eviction => product::Cause::Eviction,
            Cause::Upgrade => product::Cause::Upgrade,
            Cause::ScaleIn => product::Cause::ScaleIn,
            Cause::CertificateAuthority => product::Cause::CertificateAuthority,
            Cause::Rebalance => product::Cause::Rebalance,
        },
        epoch,
        per_second: f64::from(order.per_second),
        lease: Duration::from_millis(LEASE.cast_unsigned()),
        down_to: order.down_to,
        leave: order.leave,
    }
}

fn cause(cause: product::Cause) -> Option<Cause> {
    match cause {
        product::Cause::Eviction => Some(Cause::Eviction),
        product::Cause::Upgrade => Some(Cause::Upgrade),
        product::Cause::ScaleIn => Some(Cause::ScaleIn),
        product::Cause::CertificateAuthority => Some(Cause::CertificateAuthority),
        product::Cause::Rebalance => Some(Cause::Rebalance),
        product::Cause::Termination => None,
    }
}
