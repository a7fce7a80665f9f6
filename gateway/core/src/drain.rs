//! Letting devices go in pace: orders with a lease, the gateway's own way out after SIGTERM, and who goes first.
//!
//! It decides how many may go now; it knows no device, no socket and no clock. Three promises, whatever is ordered and however
//! late it is asked: never more than ⌈rate⌉ devices leave in any second; never below `downTo`; nobody is let go on an order that
//! nobody renews. Devices whose certificate is no longer trusted go by the same pace, ordered or not.
//!
//! Where many gateways share one budget, somebody orders each at a pace of which the sum is the budget. A gateway that hears
//! from nobody goes at a pace of its own, which is its part of the budget if all go alone; so it waits until no order that was
//! given to others can still hold ([`Drain::alone_after`]). Only its deadline comes before: in the last quarter of its time it
//! does not wait.

pub mod order;
pub mod outage;
pub mod pace;
pub mod pick;
pub mod share;

use std::time::Duration;

pub use self::order::{Cause, Nonsense, Order, Refused};
use self::pace::Pace;
use crate::time::Millis;

/// After the signal to stop: how long connections are still taken, so that a load balancer notices that this gateway is not
/// ready.
pub const SETTLE: Duration = Duration::from_secs(5);
/// An order that nobody renews is forgotten after so many leases, and not before [`FORGET_MIN`].
const FORGET_LEASES: u32 = 10;
const FORGET_MIN: Duration = Duration::from_mins(1);
/// How often to ask while devices may go, and while none may.
const TICK: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(100));

/// The drain of one gateway.
#[derive(Debug, Default)]
pub struct Drain {
    /// Devices per second where nobody orders another pace; follows the settings.
    pub own_per_second: f64,
    /// How long to wait for an order, since there is a reason to let devices go and since one came last, before they are let
    /// go at the own pace; follows the settings. An order in force or paused is waited out in any case.
    pub alone_after: Duration,
    /// By chance, from 0 to 1: of gateways that go alone at less than one device per second, not all begin in the same second.
    pub phase: f64,
    /// When an order came last, to begin or to end a drain.
    heard: Option<Millis>,
    /// Since when there are devices that are no longer trusted.
    distrusted_since: Option<Millis>,
    /// Highest of all orders, for the life of the process.
    epoch: Option<i64>,
    given: Option<Given>,
    stopping: Option<Stopping>,
    /// Since when this gateway wants to be left.
    unready_since: Option<Millis>,
    pace: Pace,
    /// As of the last look.
    distrusted: u64,
    /// Devices told to go since the start.
    granted: u64,
    /// [`Counts::closed`] when this drain began.
    closed_before: u64,
}

//  (none) ──order──► in force ──lease over──► paused ──10 leases, 1 min──► (none)
//     ▲                 ▲  └────undrain────┐     │
//     └─────────────────┼──────────────────┴◄────┤ undrain
//                       └────────order───────────┘
#[derive(Debug, Clone, Copy)]
struct Given {
    order: Order,
    renewed: Millis,
}

/// The signal to stop came.
#[derive(Debug, Clone, Copy)]
struct Stopping {
    since: Millis,
    deadline: Millis,
}

/// What the gateway knows of its devices at one moment. Read `closed` and `unused` before `connections`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices connected, those on their way out included.
    pub connections: u64,
    /// Devices that went because they were told to, since the start.
    pub closed: u64,
    /// Grants that found nobody, since the start.
    pub unused: u64,
    /// Devices connected whose certificate is no longer trusted and that were not told to go yet.
    pub distrusted: u64,
    /// Devices that went because the hub did nothing for them, since the start: a second is shared with them.
    pub forsaken: u64,
}

/// How many to tell to go now, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// At least 1.
    pub count: u64,
    /// For the metric. [`Cause::CertificateAuthority`]: only devices whose certificate is no longer trusted.
    pub cause: Cause,
}

/// How a drain stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Devices are let go.
    Draining,
    /// Nobody renewed the order: nobody goes.
    Paused,
    /// No more connections than are to stay.
    Done,
}

/// The drain as `/load` tells it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Of the order, or [`Cause::Termination`].
    pub cause: Cause,
    /// Of the order; the highest seen, or 0, without one.
    pub epoch: i64,
    /// How it stands.
    pub state: State,
    /// Devices per second at this moment.
    pub per_second: f64,
    /// Connections that are to stay.
    pub down_to: u64,
    /// Connections that are still to go.
    pub remaining: u64,
    /// Devices that this drain has let go.
    pub let_go: u64,
}

/// What is aimed at now.
#[derive(Debug, Clone, Copy)]
struct Aim {
    cause: Cause,
    per_second: f64,
    down_to: u64,
}

impl Drain {
    /// Nobody is let go. `phase` is chance, from 0 to 1.
    pub fn new(phase: f64) -> Self {
        Self { phase, ..Self::default() }
    }

    /// An order, new or renewed. The answer to a wrong one changes nothing.
    pub fn handle_order(&mut self, order: Order, counts: Counts, now: Millis) -> Result<(), Refused> {
        order.check()?;
        self.check_epoch(order.epoch)?;
        self.forget(now);
        if self.given.is_none_or(|given| given.order.cause != order.cause) {
            self.closed_before = counts.closed;
        }
        self.given = Some(Given { order, renewed: now });
        self.heard = Some(now);
        self.note_readiness(now);
        Ok(())
    }

    /// Ends the order in force. A gateway that was told to stop still stops.
    pub fn handle_undrain(&mut self, epoch: i64, now: Millis) -> Result<(), Refused> {
        self.check_epoch(epoch)?;
        self.given = None;
        self.heard = Some(now);
        self.note_readiness(now);
        Ok(())
    }

    /// The signal to stop: by the own pace unless ordered otherwise, and within `timeout`. Only the first counts.
    pub fn handle_stop(&mut self, timeout: Duration, counts: Counts, now: Millis) {
        if self.stopping.is_some() {
            return;
        }
        if self.given.is_none() {
            self.closed_before = counts.closed;
        }
        self.stopping = Some(Stopping { since: now, deadline: now.after(timeout) });
        self.note_readiness(now);
    }

    /// Time went by: how many devices are to be told to go now.
    pub fn poll(&mut self, counts: Counts, now: Millis) -> Option<Grant> {
        self.forget(now);
        self.distrusted = counts.distrusted;
        self.distrusted_since = (counts.distrusted > 0).then(|| self.distrusted_since.unwrap_or(now));
        self.pace.note_closed(counts.closed + counts.forsaken, now);
        let departing = self.departing(counts);
        let Some(aim) = self.aim(counts, now) else {
            self.pace.rest();
            return None;
        };
        let spare = match aim.cause {
            Cause::CertificateAuthority => counts.distrusted,
            _ => counts.connections.saturating_sub(departing).saturating_sub(aim.down_to),
        };
        let count = self.pace.take(aim.per_second, departing, spare, now);
        self.granted += count;
        (count > 0).then_some(Grant { count, cause: aim.cause })
    }

    /// When to call [`Self::poll`] at the latest; `None` while there is nothing to do before the next order.
    pub fn poll_timeout(&self, now: Millis) -> Option<Millis> {
        if self.given.is_none() && self.stopping.is_none() && self.distrusted == 0 {
            return None;
        }
        let counts = Counts { connections: 1, distrusted: self.distrusted, ..Counts::default() };
        let moving = self.aim(counts, now).is_some_and(|aim| aim.per_second > 0.0);
        Some(now.after(if moving { TICK.0 } else { TICK.1 }))
    }

    /// Whether this gateway wants new connections sent to it.
    pub fn is_ready(&self) -> bool {
        self.stopping.is_none() && !self.given.is_some_and(|given| given.order.leave)
    }

    /// Whether an order is in force or paused.
    pub fn is_ordered(&self) -> bool {
        self.given.is_some()
    }

    /// Whether connections that come all the same are taken.
    pub fn is_accepting(&self, now: Millis) -> bool {
        self.settled_at().is_none_or(|settled| now < settled)
    }

    /// Whether the gateway was told to stop and may close what is left: everybody is gone, or time is up.
    pub fn is_over(&self, counts: Counts, now: Millis) -> bool {
        let Some(stopping) = self.stopping else { return false };
        let empty = counts.connections == 0 && self.departing(counts) == 0;
        now >= stopping.deadline || (empty && !self.is_accepting(now))
    }

    /// How it stands, if there is a drain.
    pub fn report(&self, counts: Counts, now: Millis) -> Option<Report> {
        let given = self.given.filter(|given| now < given.forgotten_at());
        let aim = self.aim(counts, now);
        let waits = self.stopping.is_some() || counts.distrusted > 0;
        if given.is_none() && aim.is_none() && !waits {
            return None;
        }
        let alone = if self.stopping.is_some() { Self::ALL_GO } else { Self::DISTRUSTED_GO };
        let resting = given.map_or(alone, |given| Aim { per_second: 0.0, ..given.aim() });
        let Aim { cause, per_second, down_to } = aim.unwrap_or(resting);
        let remaining = match cause {
            Cause::CertificateAuthority => counts.distrusted,
            _ => counts.connections.saturating_sub(down_to),
        };
        let state = match aim {
            _ if remaining == 0 => State::Done,
            Some(_) => State::Draining,
            None => State::Paused,
        };
        let epoch = given.map(|given| given.order.epoch).or(self.epoch).unwrap_or(0);
        let let_go = counts.closed.saturating_sub(self.closed_before);
        Some(Report { cause, epoch, state, per_second, down_to, remaining, let_go })
    }

    /// Told to go and not gone yet.
    fn departing(&self, counts: Counts) -> u64 {
        self.granted.saturating_sub(counts.closed).saturating_sub(counts.unused)
    }

    fn check_epoch(&mut self, epoch: i64) -> Result<(), Refused> {
        match self.epoch {
            Some(highest) if epoch < highest => return Err(Refused::Epoch { highest }),
            _ if epoch < 0 => return Err(Nonsense::Epoch(epoch).into()),
            _ => self.epoch = Some(epoch),
        }
        Ok(())
    }

    fn note_readiness(&mut self, now: Millis) {
        if self.is_ready() {
            self.unready_since = None;
        } else {
            self.unready_since.get_or_insert(now);
        }
    }

    /// The leader is gone for good, or has forgotten us: this is an ordinary gateway again.
    fn forget(&mut self, now: Millis) {
        if self.given.is_some_and(|given| now >= given.forgotten_at()) {
            self.given = None;
            self.note_readiness(now);
        }
    }

    const ALL_GO: Aim = Aim { cause: Cause::Termination, per_second: 0.0, down_to: 0 };
    const DISTRUSTED_GO: Aim = Aim { cause: Cause::CertificateAuthority, ..Self::ALL_GO };

    /// Who decides: the order while its lease lasts; without one the gateway itself, about those whom it no longer trusts; after
    /// the signal to stop about all of them.
    fn aim(&self, counts: Counts, now: Millis) -> Option<Aim> {
        let leased = self.given.filter(|given| now < given.lapses_at()).map(|given| given.aim());
        let Some(stopping) = self.stopping else {
            let own = Aim { per_second: self.own_per_second, ..Self::DISTRUSTED_GO };
            let alone = self.given.is_none() && self.distrusted_since.is_some_and(|since| self.is_alone(since, now));
            return leased.or((alone && counts.distrusted > 0).then_some(own));
        };
        let needed = stopping.needed(counts.connections, now);
        match leased {
            Some(aim) if !stopping.is_late(now) => Some(aim),
            Some(aim) => Some(Aim { per_second: aim.per_second.max(needed), ..Self::ALL_GO }),
            None if !self.is_alone(stopping.since, now) && !stopping.is_late(now) => None,
            None => Some(Aim { per_second: self.own_per_second.max(needed), ..Self::ALL_GO }),
        }
    }

    /// Whether nobody can be expected to order any more how those go who are to go `since` then.
    fn is_alone(&self, since: Millis, now: Millis) -> bool {
        let waits = if self.own_per_second > 0.0 && self.own_per_second < 1.0 {
            self.alone_after.saturating_add(Duration::from_secs_f64(self.phase.clamp(0.0, 1.0) / self.own_per_second))
        } else {
            self.alone_after
        };
        now >= since.max(self.heard.unwrap_or_default()).after(waits)
    }

    /// When everybody who sends connections has noticed that none are wanted.
    fn settled_at(&self) -> Option<Millis> {
        let stopping = self.stopping?;
        let since = self.unready_since.unwrap_or(stopping.since).min(stopping.since);
        Some(since.after(SETTLE).max(stopping.since).min(stopping.deadline))
    }
}

impl Given {
    fn aim(&self) -> Aim {
        let Order { cause, per_second, down_to, .. } = self.order;
        Aim { cause, per_second, down_to }
    }

    fn lapses_at(&self) -> Millis {
        self.renewed.after(self.order.lease)
    }

    fn forgotten_at(&self) -> Millis {
        self.renewed.after((self.order.lease * FORGET_LEASES).max(FORGET_MIN))
    }
}

impl Stopping {
    /// The last quarter of the time: what is left goes, whatever the order says.
    fn is_late(&self, now: Millis) -> bool {
        now.since(self.since) * 4 >= self.deadline.since(self.since) * 3
    }

    /// Devices per second that empty the gateway by the deadline: spread evenly, so that the peak is as low as can be.
    fn needed(&self, connections: u64, now: Millis) -> f64 {
        let left = self.deadline.since(now).as_secs_f64();
        if left > 0.0 { connections as f64 / left } else { 0.0 }
    }
}

#[cfg(test)]
mod tests;
