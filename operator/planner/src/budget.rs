//! The reconnect budget: who may let how many devices go, so that at no instant the fleet may let go more than it is allowed.
//!
//! What was handed out is counted until the pod is known not to have it any more: it confirmed an order for less and the
//! second after that has passed, or the order's lease ran out. Whoever takes over counts what the plan says was handed out.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    drains::late_at,
    model::{Cause, Drain, Load, Millis, Order, Pod, State},
    view::{FRESH, View},
};

/// How long an order holds unless it is given again.
pub const LEASE: Millis = 15_000;
/// When it is given again.
pub const RENEWAL: Millis = 5_000;
/// How long after it was sent an order may still arrive: those who send it give up then.
pub const ORDER_TIMEOUT: Millis = 5_000;
/// See [`alone_after`]: a pod of which nothing was heard for so long is counted on.
const UNCOUNTED_MAX: Millis = FRESH;
const _: () = assert!(
    RENEWAL + STEP <= UNCOUNTED_MAX,
    "a leader that lives counts on a pod before one of which nothing is heard"
);
/// How often to look while pods drain.
pub const STEP: Millis = 2_000;
/// Devices are counted per second: what a pod may have let go a moment ago counts.
const WINDOW: Millis = 1_000;
/// How long an order that was sent counts: it may arrive late, and what was let go a moment ago counts.
const TAKEN_FOR: Millis = ORDER_TIMEOUT + LEASE + WINDOW;
/// Before a pod lets devices go whatever it is told, the others that answer are told less: two looks and the second after.
const LATE_SOON: Millis = 2 * STEP + WINDOW;
/// A leader that has not heard of a pod yet has waited long enough for it.
const HEARD_OF: Millis = FRESH;
/// So many pods at most let devices go at a time: what one finishes with, the others go on.
pub(crate) const WIDTH: usize = 4;
/// From a deletion cost seen to everybody having seen it.
const MARK_SETTLE: Millis = 2_000;
/// An order that was not answered is given again after so long.
const RETRY: Millis = 2_000;

/// How long a pod that was told to stop, or whose devices are not trusted any more or forsaken by the upstream, waits for an
/// order before it lets devices go by itself, at [`alone_share`]: until no other pod can still follow an order that was given
/// without counting on it. `lease` is how long the operator's Lease is held.
///
/// A leader that lives counts on it, or tells it something, within [`RENEWAL`] and a [`STEP`], and counts on a pod of which it
/// heard nothing for 10 s; one that sees nothing of the cluster any more leads for two thirds of the Lease. What was sent until
/// then arrives within [`ORDER_TIMEOUT`], holds for [`LEASE`], and lets somebody go at its end: 21 s more. So it is 31 s for a
/// Lease of up to 15 s, and 221 s for one of five minutes.
pub const fn alone_after(lease: Millis) -> Millis {
    let blind_max = (lease * 2 + 2) / 3;
    TAKEN_FOR + if blind_max > UNCOUNTED_MAX { blind_max } else { UNCOUNTED_MAX }
}

/// Devices per second that a pod lets go where nobody orders anything, a whole number or less than one. `pods_max` is how many
/// the spec allows, `pods` how many there are, those that end too.
///
/// As long as nobody leads, nobody makes fewer pods nor another template; so those that can come to go alone are those that
/// there are and, where they are being replaced, as many again: `alone_share × max(2 × pods_max, pods) ≤ per_second`. At one
/// device per second or more that holds in every second, below only in the mean.
pub fn alone_share(per_second: u32, pods_max: u32, pods: u32) -> f64 {
    let pods = pods_max.max(1).saturating_mul(2).max(pods);
    if per_second >= pods {
        return f64::from(per_second / pods);
    }
    // down to thousandths, as it is written
    (f64::from(per_second) * 1000.0 / f64::from(pods)).floor().max(1.0) / 1000.0
}

/// What the pods were told, by this leader and, as far as the plan says so, by those before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger {
    since: Millis,
    grants: BTreeMap<String, Grant>,
    /// Devices per second that pods were counted with beside what they were told; and, where that is over, until when it counts.
    alone: BTreeMap<String, (u32, Option<Millis>)>,
    /// Since when pods are seen to have a deletion cost.
    marked: BTreeMap<String, Millis>,
    /// When one of them was last seen to have none any more.
    unmarked_at: Millis,
}

/// What one pod was told: it may be letting `high` go until one time, `low` until a later one, and nobody after that.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Grant {
    high: u32,
    high_until: Millis,
    low: u32,
    low_until: Millis,
    /// The last order of this leader and when it was sent.
    sent: Option<(Order, Millis)>,
    /// The pod confirmed it.
    confirmed: bool,
    /// Since when it was never without an order that it had confirmed.
    follows_since: Option<Millis>,
}

impl Grant {
    fn at(&self, now: Millis) -> u32 {
        let low = if now < self.low_until { self.low } else { 0 };
        if now < self.high_until { self.high.max(low) } else { low }
    }

    fn has_lapsed(&self, now: Millis) -> bool {
        now >= self.high_until.max(self.low_until)
    }
}

impl Ledger {
    /// Of a leader that took over at this time and found this plan: what it says may have been handed out until then.
    pub fn new(since: Millis, plan: &[Drain]) -> Self {
        let inherited = |drain: &Drain| {
            let grant = Grant {
                high: drain.per_second,
                high_until: since + TAKEN_FOR,
                low: 0,
                low_until: since,
                sent: None,
                confirmed: false,
                follows_since: None,
            };
            (drain.pod.clone(), grant)
        };
        let grants = plan.iter().filter(|drain| drain.per_second > 0).map(inherited).collect();
        Self { since, grants, alone: BTreeMap::new(), marked: BTreeMap::new(), unmarked_at: since - MARK_SETTLE }
    }

    /// When this leader took over.
    pub fn since(&self) -> Millis {
        self.since
    }

    /// To be called before an order is sent. Whether it arrives is not known.
    pub fn sending(&mut self, pod: &str, order: Order, now: Millis) {
        let rate = order.per_second();
        let lapses_at = now + TAKEN_FOR;
        let (mut high, mut high_until, low) = match self.grants.get(pod) {
            // what was high is over
            Some(grant) if now >= grant.high_until => (grant.low, grant.low_until, 0),
            Some(grant) => (grant.high, grant.high_until, grant.low),
            None => (0, now, 0),
        };
        if rate >= high || now >= high_until {
            (high, high_until) = (rate, lapses_at);
        }
        let low = low.max(rate);
        let sent = Some((order, now));
        let follows_since =
            self.grants.get(pod).filter(|grant| !grant.has_lapsed(now)).and_then(|grant| grant.follows_since);
        let low_until = lapses_at;
        self.grants
            .insert(pod.to_owned(), Grant { high, high_until, low, low_until, sent, confirmed: false, follows_since });
    }

    /// To be called when the pod took the order that was sent last.
    pub fn confirmed(&mut self, pod: &str, now: Millis) {
        if let Some(grant) = self.grants.get_mut(pod) {
            grant.high_until = grant.high_until.min(now + WINDOW);
            grant.low = grant.sent.map_or(0, |(order, _)| order.per_second());
            grant.low_until = now + LEASE + WINDOW;
            grant.confirmed = true;
            grant.follows_since.get_or_insert(now);
        }
    }

    /// To be called before each step with the pods that there are and their deletion costs: remembers since when they have one,
    /// and forgets pods that are gone, once what they let go last is a second ago.
    pub fn see<'a>(&mut self, pods: impl Iterator<Item = (&'a str, Option<i32>)>, now: Millis) {
        let pods: BTreeMap<&str, Option<i32>> = pods.collect();
        let is_marked = |pod: &str| pods.get(pod).is_some_and(Option::is_some);
        let before = self.marked.len();
        self.marked.retain(|pod, _| is_marked(pod));
        if self.marked.len() < before {
            self.unmarked_at = now;
        }
        for pod in pods.keys().filter(|pod| is_marked(pod)) {
            self.marked.entry((*pod).to_owned()).or_insert(now);
        }
        self.grants.retain(|pod, grant| {
            if !pods.contains_key(pod.as_str()) {
                grant.high = grant.at(now);
                grant.high_until = grant.high_until.max(grant.low_until).min(now + WINDOW);
                grant.low_until = grant.low_until.min(now);
                return !grant.has_lapsed(now);
            }
            true
        });
    }

    /// Whether a pod's deletion cost has been there, and others' not, for so long that who deletes pods has seen it, too.
    pub(crate) fn is_mark_known(&self, pod: &str, now: Millis) -> bool {
        let settled = |since: Millis| now - since >= MARK_SETTLE;
        settled(self.unmarked_at) && self.marked.get(pod).is_some_and(|since| settled(*since))
    }

    /// To be called after each step with what it says pods let go by themselves: what one let go until this look is counted for
    /// the second after it.
    pub fn looked(&mut self, alone: &BTreeMap<String, u32>, now: Millis) {
        for (pod, (_, until)) in &mut self.alone {
            if !alone.contains_key(pod) {
                until.get_or_insert(now + WINDOW);
            }
        }
        self.alone.retain(|_, (_, until)| until.is_none_or(|until| now < until));
        self.alone.extend(alone.iter().map(|(pod, rate)| (pod.clone(), (*rate, None))));
    }

    /// Devices per second that a pod let go by itself a moment ago.
    fn went_alone(&self, pod: &str, now: Millis) -> u32 {
        let counts = |until: &Option<Millis>| until.is_none_or(|until| now < until);
        self.alone.get(pod).filter(|(_, until)| counts(until)).map_or(0, |(rate, _)| *rate)
    }

    /// Whether this leader cannot know yet what pods let go by themselves before it came.
    fn is_new(&self, now: Millis) -> bool {
        now - self.since < WINDOW
    }

    /// Devices per second that pods which are gone may have let go a moment ago.
    fn of_gone(&self, view: &View<'_>) -> u32 {
        let known: BTreeSet<&str> = self.grants.keys().chain(self.alone.keys()).map(String::as_str).collect();
        let gone = known.into_iter().filter(|pod| view.pod(pod).is_none());
        let rate = |pod: &str| self.outstanding(pod, view.now()).max(self.went_alone(pod, view.now()));
        gone.map(rate).fold(0, u32::saturating_add)
    }

    /// Devices per second that a pod may be letting go by what it was told.
    pub fn outstanding(&self, pod: &str, now: Millis) -> u32 {
        self.grants.get(pod).map_or(0, |grant| grant.at(now))
    }

    /// Whether a pod may be forgotten: it knows that it is not to let anybody go, or was never told, or its lease ran out.
    pub(crate) fn is_free(&self, pod: &str, now: Millis) -> bool {
        let knows = |grant: &Grant| grant.confirmed && grant.sent.is_some_and(|(order, _)| order == Order::Undrain);
        self.grants.get(pod).is_none_or(|grant| grant.has_lapsed(now) || (knows(grant) && grant.at(now) == 0))
    }

    /// Whether a pod is to be told now: something new, or the same again before its lease runs out.
    pub(crate) fn is_due(&self, pod: &str, order: Order, now: Millis) -> bool {
        let Some((before, at, confirmed)) = self.grants.get(pod).and_then(|grant| {
            let (order, at) = grant.sent?;
            Some((order, at, grant.confirmed))
        }) else {
            return true;
        };
        before != order || now - at >= if confirmed { RENEWAL } else { RETRY }
    }

    /// Whether the pod follows an order of ours, and has for so long that what it let go by itself is a second ago.
    pub(crate) fn follows(&self, pod: &str, now: Millis) -> bool {
        let follows = |grant: &Grant| {
            let settled = grant.follows_since.is_some_and(|since| now - since >= WINDOW);
            settled && grant.confirmed && !grant.has_lapsed(now)
        };
        self.grants.get(pod).is_some_and(follows)
    }
}

/// Says in each drain the most that its pod may have, and returns what it is to be told, by pod.
/// `alone` is what [`alone`] gives.
pub(crate) fn allot(view: &View<'_>, drains: &mut [Drain], alone: &BTreeMap<String, u32>) -> BTreeMap<String, u32> {
    let budget = view.input.spec.per_second;
    let held: BTreeMap<&str, Held> =
        view.input.pods.iter().map(|pod| (pod.name.as_str(), Held::of(view, pod, alone))).collect();
    let taken = held.values().fold(view.input.ledger.of_gone(view), |sum, held| sum.saturating_add(held.all()));
    let mut free = if knows_too_little(view) { 0 } else { budget.saturating_sub(taken) };
    let over = taken.saturating_sub(budget);
    let queue = queue(view, drains);
    let share = shares(budget, queue.len());
    let mut rates = BTreeMap::new();
    for (place, index) in queue.into_iter().enumerate() {
        let drain = &drains[index];
        let had = held.get(drain.pod.as_str()).copied().unwrap_or_default();
        // what it may have been told, or lets go by itself, it may be told as far as there is room for all
        let has = had.all().saturating_sub(over);
        let rate = share(place).min(has.saturating_add(free));
        free -= rate.saturating_sub(has);
        rates.insert(drain.pod.clone(), rate);
    }
    for drain in drains.iter_mut() {
        let held = held.get(drain.pod.as_str()).copied().unwrap_or_default();
        drain.per_second = rates.get(&drain.pod).copied().unwrap_or(0).max(held.all());
    }
    rates
}

/// A new leader does not know yet what pods let go by themselves, nor what those that end have left.
fn knows_too_little(view: &View<'_>) -> bool {
    let (ledger, now) = (view.input.ledger, view.now());
    let uncounted = || view.input.pods.iter().any(|pod| pod.ends.is_some() && pod.devices().is_none());
    ledger.is_new(now) || (now - ledger.since() < HEARD_OF && uncounted())
}

/// Devices per second that one pod may be letting go.
#[derive(Clone, Copy, Default)]
struct Held {
    /// As it was told.
    told: u32,
    /// By itself.
    by_itself: u32,
}

impl Held {
    fn of(view: &View<'_>, pod: &Pod, alone: &BTreeMap<String, u32>) -> Self {
        let (ledger, now) = (view.input.ledger, view.now());
        // one that ends may have let go more than it was told although it follows
        let obeys = pod.ends.is_none() && ledger.follows(&pod.name, now);
        let before = if obeys { 0 } else { ledger.went_alone(&pod.name, now) };
        Self {
            told: ledger.outstanding(&pod.name, now),
            by_itself: alone.get(&pod.name).copied().unwrap_or(0).max(before),
        }
    }

    fn all(self) -> u32 {
        self.told.max(self.by_itself)
    }
}

/// Devices per second that pods let go without having been told, by name; [`Ledger::looked`] is to be told, too.
pub(crate) fn alone(view: &View<'_>) -> BTreeMap<String, u32> {
    let late = late(view);
    let mut forsaken = Parts::default();
    let rates = view.input.pods.iter().map(|pod| {
        let forsaken = forsaken.add(forsaken_per_second(view, pod));
        (pod.name.clone(), by_itself(view, pod, &late).max(forsaken))
    });
    rates.filter(|(_, rate)| *rate > 0).collect()
}

/// Rates below one device per second, made whole: what is handed out adds up to the sum, rounded up, and not to one for each.
#[derive(Default)]
struct Parts {
    thousandths: u64,
}

impl Parts {
    fn add(&mut self, per_second: f64) -> u32 {
        let before = self.thousandths.div_ceil(1000);
        self.thousandths += (per_second * 1000.0).ceil() as u64;
        (self.thousandths.div_ceil(1000) - before) as u32
    }
}

/// Devices per second that a pod lets go, or is about to, because the upstream does nothing for them. All pods may at the same
/// time, and for long. The newest share may be in force before the pod says so; and who comes to one that is empty goes again at
/// once, as long as it says so.
fn forsaken_per_second(view: &View<'_>, pod: &Pod) -> f64 {
    match recent(pod).map_or(0.0, |load| load.forsaken_per_second) {
        reported if reported > 0.0 => reported.max(view.input.spec.self_per_second),
        _ => 0.0,
    }
}

/// What it said, if what it did then may still go on.
fn recent(pod: &Pod) -> Option<&Load> {
    pod.load.as_ref().filter(|load| load.age < TAKEN_FOR)
}

/// What a pod may let go without having been told: it was told to stop, or does not trust its devices any more, or may by now
/// for all that is known, and nobody orders anything. It is counted while the pod still waits for an order: what others are
/// told meanwhile holds for longer than it waits.
///
/// Late, it goes as its end demands although it follows.
fn by_itself(view: &View<'_>, pod: &Pod, late: &BTreeMap<&str, u32>) -> u32 {
    let drain = recent(pod).and_then(|load| load.drain);
    let reported = drain.map_or(0, |drain| drain.per_second);
    let distrusts =
        || drain.is_some_and(|drain| drain.cause == Some(Cause::CertificateAuthority) && drain.remaining > 0);
    let late = late.get(pod.name.as_str()).copied().unwrap_or(0);
    let beyond = match view.input.ledger.follows(&pod.name, view.now()) {
        true if pod.ends.is_some() && reported > view.input.ledger.outstanding(&pod.name, view.now()) => reported,
        true => 0,
        false if !pod.is_empty() && (pod.ends.is_some() || distrusts() || !pod.is_fresh()) => {
            reported.max(view.input.spec.self_per_second.ceil() as u32)
        }
        false => reported,
    };
    beyond.max(late)
}

/// By pod that ends, the devices per second that it lets go whatever it is told: evenly what it has left, from [`late_at`] on;
/// and a little before, what it will have left when those that end earlier go first.
fn late<'a>(view: &View<'a>) -> BTreeMap<&'a str, u32> {
    let now = view.now();
    let mut ending: Vec<(Millis, &Pod, u64)> = view.input.pods.iter().filter_map(|pod| ending(view, pod)).collect();
    ending.sort_by_key(|(late_at, pod, _)| (*late_at, pod.name.as_str()));
    let mut before: u64 = 0;
    let mut rates = BTreeMap::new();
    for (late_at, pod, devices) in ending {
        let until_late = (late_at - now).max(0);
        if until_late > LATE_SOON {
            break;
        }
        let served = u64::from(view.input.spec.per_second) * until_late.cast_unsigned() / 1000;
        let left = devices.min((before + devices).saturating_sub(served));
        before += devices;
        // what is given to others because it goes more slowly now, they have when it has done so for a while
        let time = pod.ends.unwrap_or(now) - STEP - late_at.max(now);
        let rate = left.saturating_mul(1000).div_ceil(time.max(WINDOW).cast_unsigned());
        rates.insert(pod.name.as_str(), u32::try_from(rate).unwrap_or(u32::MAX));
    }
    rates.retain(|_, rate| *rate > 0);
    rates
}

/// When it is late, and its devices.
fn ending<'a>(view: &View<'a>, pod: &'a Pod) -> Option<(Millis, &'a Pod, u64)> {
    let devices = pod.devices().filter(|devices| *devices > 0)?;
    Some((late_at(view, pod.ends?), pod, devices))
}

/// Equal parts for the first few of the queue, whole numbers, the rest to the first.
fn shares(budget: u32, queue: usize) -> impl Fn(usize) -> u32 {
    let width = queue.min(WIDTH).min(budget as usize).max(1) as u32;
    move |place| match place as u32 {
        0 => budget / width + budget % width,
        place if place < width => budget / width,
        _ => 0,
    }
}

/// Drains that may let devices go now, the most urgent first.
fn queue(view: &View<'_>, drains: &[Drain]) -> Vec<usize> {
    let pressed = is_pressed(view, drains);
    let may_go = |drain: &Drain| {
        let Some(pod) = view.pod(&drain.pod).filter(|pod| pod.is_fresh()) else { return false };
        drain.state == State::Draining && drain.remaining > 0 && has_where_to_go(view, drain, pod, pressed)
    };
    let mut queue: Vec<usize> = (0..drains.len()).filter(|index| may_go(&drains[*index])).collect();
    queue.sort_by(|a, b| urgency(view, &drains[*a]).cmp(&urgency(view, &drains[*b])));
    if pressed {
        // one after the other is the most that can be done for deadlines
        queue.truncate(1);
    }
    queue
}

fn urgency<'d>(view: &View<'_>, drain: &'d Drain) -> (bool, Millis, Cause, u64, &'d str) {
    let ends = ends(view, drain);
    match drain.cause {
        _ if ends => (false, drain.deadline, drain.cause, 0, &drain.pod),
        // the fullest first
        Cause::Rebalance => (true, drain.started_at, drain.cause, u64::MAX - drain.remaining, &drain.pod),
        _ => (true, drain.started_at, drain.cause, 0, &drain.pod),
    }
}

fn ends(view: &View<'_>, drain: &Drain) -> bool {
    view.pod(&drain.pod).is_some_and(|pod| pod.ends.is_some())
}

/// Nobody is let go who has nowhere to go, or would come to a pod that is about to be replaced; but for a deadline.
fn has_where_to_go(view: &View<'_>, drain: &Drain, pod: &Pod, pressed: bool) -> bool {
    if pod.ends.is_some() {
        let nobody_stays = view.input.spec.replicas == 0;
        return pressed || nobody_stays || (view.has_place() && !view.has_outdated_place());
    }
    match drain.cause {
        Cause::ScaleIn => view.has_place() || view.input.spec.replicas == 0,
        _ => view.has_place(),
    }
}

/// Whether pods that end must be emptied now, one after the other, to be done before they let go whom they must.
pub(crate) fn is_pressed(view: &View<'_>, drains: &[Drain]) -> bool {
    let mut ending: Vec<(Millis, u64)> = drains
        .iter()
        .filter(|drain| drain.remaining > 0 && ends(view, drain))
        .map(|drain| (late_at(view, drain.deadline), drain.remaining))
        .collect();
    ending.sort_unstable();
    let mut before = 0;
    ending.into_iter().any(|(late_at, remaining)| {
        before += remaining;
        // a fifth is kept for orders that are late
        seconds_for(before, view.input.spec.per_second) * 1250 >= late_at - view.now()
    })
}

/// Seconds that it takes to let so many go.
pub fn seconds_for(devices: u64, per_second: u32) -> i64 {
    match per_second {
        0 if devices > 0 => i64::from(u32::MAX),
        0 => 0,
        rate => i64::try_from(devices.div_ceil(u64::from(rate))).unwrap_or(i64::from(u32::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use super::{Parts, alone_after, alone_share};

    #[test]
    fn a_pod_goes_alone_when_no_order_can_hold_that_was_given_without_counting_on_it() {
        let check = |lease_s: i64, expected_ms| assert_eq!(alone_after(lease_s * 1000), expected_ms, "{lease_s} s");
        check(3, 31_000);
        check(15, 31_000);
        check(16, 31_667);
        check(60, 61_000);
        check(300, 221_000);
    }

    #[test]
    fn parts_of_devices_add_up_to_their_sum_rounded_up() {
        let check = |rates: &[f64], expected: &[u32]| {
            let mut parts = Parts::default();
            assert_eq!(rates.iter().map(|rate| parts.add(*rate)).collect::<Vec<_>>(), expected, "{rates:?}");
        };
        check(&[2.0, 3.0], &[2, 3]);
        check(&[0.25; 9], &[1, 0, 0, 0, 1, 0, 0, 0, 1]);
        check(&[0.0, 0.125, 0.0], &[0, 1, 0]);
        check(&[2.5, 2.5, 2.5], &[3, 2, 3]);
    }

    #[test]
    fn the_shares_of_all_that_may_go_alone_are_within_the_budget() {
        let check = |per_second, pods_max, pods, expected: f64| {
            let share = alone_share(per_second, pods_max, pods);
            assert!((share - expected).abs() < 1e-9, "{per_second}/s of {pods_max}, {pods} now: {share}");
            assert!(share * f64::from(pods_max.max(1) * 2).max(f64::from(pods)) <= f64::from(per_second) + 1e-9);
        };
        check(100, 2, 2, 25.0);
        check(100, 40, 6, 1.0);
        check(100, 0, 0, 50.0);
        // ten became two
        check(100, 2, 10, 10.0);
        check(10, 40, 40, 0.125);
        check(1, 3, 3, 0.166);
    }
}
