//! Drains in virtual time, with devices that take their time to go.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::{Cause, Counts, Drain, Grant, Nonsense, Order, Refused, SETTLE, State};
use crate::time::Millis;

/// A gateway whose devices go some time after they are told to.
struct World {
    drain: Drain,
    now: u64,
    counts: Counts,
    /// When how many will be gone.
    leaving: BTreeMap<u64, u64>,
    /// How long the devices told next take to go.
    takes_ms: u64,
    /// Moments at which devices went.
    gone: Vec<u64>,
    causes: Vec<Cause>,
}

fn order(epoch: i64) -> Order {
    let lease = Duration::from_secs(10);
    Order { cause: Cause::ScaleIn, epoch, per_second: 50.0, lease, down_to: 0, leave: true }
}

impl World {
    fn new(connections: u64) -> Self {
        Self {
            drain: Drain { alone_after: SETTLE, ..Drain::default() },
            now: 1000,
            counts: Counts { connections, ..Counts::default() },
            leaving: BTreeMap::new(),
            takes_ms: 0,
            gone: Vec::new(),
            causes: Vec::new(),
        }
    }

    fn order(&mut self, order: Order) -> Result<(), Refused> {
        self.drain.handle_order(order, self.counts, Millis(self.now))
    }

    fn undrain(&mut self, epoch: i64) -> Result<(), Refused> {
        self.drain.handle_undrain(epoch, Millis(self.now))
    }

    fn stop(&mut self, per_second: f64, timeout_s: u64) {
        self.drain.own_per_second = per_second;
        self.drain.handle_stop(Duration::from_secs(timeout_s), self.counts, Millis(self.now));
    }

    fn state(&self) -> Option<State> {
        self.drain.report(self.counts, Millis(self.now)).map(|report| report.state)
    }

    fn is_over(&self) -> bool {
        self.drain.is_over(self.counts, Millis(self.now))
    }

    /// Goes on in steps as the drain asks for them (20 ms while nothing is in force).
    fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end && !self.is_over() {
            self.now += 20;
            while let Some(first) = self.leaving.first_entry().filter(|first| *first.key() <= self.now) {
                let count = first.remove();
                self.counts.connections -= count;
                self.counts.closed += count;
                self.gone.extend((0..count).map(|_| self.now));
            }
            if let Some(Grant { count, cause }) = self.drain.poll(self.counts, Millis(self.now)) {
                // whom nobody trusts goes first
                self.counts.distrusted = self.counts.distrusted.saturating_sub(count);
                *self.leaving.entry(self.now + self.takes_ms).or_default() += count;
                self.causes.push(cause);
            }
        }
    }

    /// Most devices that went within any second.
    fn peak(&self) -> u64 {
        let within = |start: &u64| self.gone.iter().filter(|at| (*start..start + 1000).contains(at)).count() as u64;
        self.gone.iter().map(within).max().unwrap_or(0)
    }
}

#[test]
fn a_gateway_is_emptied_at_the_rate_and_then_done() {
    let mut world = World::new(200);
    world.order(order(1)).unwrap();
    assert!(!world.drain.is_ready());
    world.run(2000);
    assert_eq!(world.state(), Some(State::Draining));
    world.order(order(1)).unwrap();
    world.run(2500);
    assert_eq!((world.state(), world.gone.len(), world.peak()), (Some(State::Done), 200, 50));
    let report = world.drain.report(world.counts, Millis(world.now)).unwrap();
    assert_eq!((report.let_go, report.remaining, report.epoch), (200, 0, 1));
}

#[test]
fn nobody_goes_below_what_is_to_stay() {
    let mut world = World::new(200);
    world.takes_ms = 700;
    world.order(Order { down_to: 150, leave: false, cause: Cause::Rebalance, ..order(1) }).unwrap();
    assert!(world.drain.is_ready());
    world.run(9000);
    assert_eq!((world.counts.connections, world.state()), (150, Some(State::Done)));
    world.counts.connections += 3;
    world.run(900);
    assert_eq!(world.counts.connections, 150);
}

#[test]
fn a_lease_that_nobody_renews_pauses_and_is_forgotten_later() {
    let mut world = World::new(10_000);
    world.order(order(1)).unwrap();
    world.run(10_000);
    let gone = world.gone.len();
    world.run(50_000);
    assert_eq!((world.gone.len(), world.state(), world.drain.is_ready()), (gone, Some(State::Paused), false));
    world.run(41_000);
    assert_eq!((world.gone.len(), world.state(), world.drain.is_ready()), (gone, None, true));
    assert_eq!(world.drain.poll_timeout(Millis(world.now)), None);
    assert_eq!(world.order(order(0)), Err(Refused::Epoch { highest: 1 }));
    world.order(order(1)).unwrap();
    world.run(1000);
    assert!(world.gone.len() > gone);
}

#[test]
fn a_short_lease_is_remembered_for_a_minute() {
    let mut world = World::new(10);
    world.order(Order { lease: Duration::from_secs(1), per_second: 0.0, ..order(1) }).unwrap();
    world.run(59_000);
    assert_eq!((world.state(), world.drain.is_ready()), (Some(State::Paused), false));
    world.run(1500);
    assert_eq!((world.state(), world.drain.is_ready(), world.gone.len()), (None, true, 0));
}

#[test]
fn undrain_ends_it_at_once() {
    let mut world = World::new(1000);
    world.order(order(3)).unwrap();
    world.run(1000);
    assert_eq!(world.undrain(2), Err(Refused::Epoch { highest: 3 }));
    world.undrain(4).unwrap();
    assert!(world.drain.is_ready() && world.state().is_none());
    // those who were told in the last moment still go
    world.run(100);
    let gone = world.gone.len();
    world.run(20_000);
    assert_eq!(world.gone.len(), gone);
    assert_eq!(world.order(order(3)), Err(Refused::Epoch { highest: 4 }));
}

#[test]
fn renewing_with_another_rate_or_again_and_again_gives_no_burst() {
    let mut world = World::new(10_000);
    for _ in 0..500 {
        world.order(order(1)).unwrap();
        world.run(20);
        world.order(Order { per_second: 0.0, ..order(1) }).unwrap();
        world.undrain(1).unwrap();
    }
    assert!(world.peak() <= 50 && world.gone.len() <= 500, "{} in ten seconds", world.gone.len());
}

#[test]
fn what_cannot_be_meant_is_refused_and_changes_nothing() {
    let check = |wrong: Order, expected: Nonsense| {
        let mut world = World::new(10);
        assert_eq!(world.order(wrong), Err(Refused::Nonsense(expected)));
        assert!(world.drain.is_ready() && world.state().is_none() && world.drain.epoch.is_none());
    };
    check(Order { per_second: -1.0, ..order(1) }, Nonsense::PerSecond(-1.0));
    check(Order { per_second: 1e6, ..order(1) }, Nonsense::PerSecond(1e6));
    check(Order { per_second: f64::INFINITY, ..order(1) }, Nonsense::PerSecond(f64::INFINITY));
    check(Order { lease: Duration::ZERO, ..order(1) }, Nonsense::Lease(0.0));
    check(Order { lease: Duration::from_hours(2), ..order(1) }, Nonsense::Lease(7200.0));
    check(order(-1), Nonsense::Epoch(-1));
    check(Order { cause: Cause::Termination, ..order(1) }, Nonsense::Cause);
    let mut world = World::new(10);
    let wrong = world.order(Order { per_second: f64::NAN, ..order(1) });
    assert!(matches!(wrong, Err(Refused::Nonsense(Nonsense::PerSecond(_)))));
    for seconds in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
        assert!(Order::lease(seconds).is_err(), "{seconds}");
    }
    assert_eq!(Order::lease(0.5), Ok(Duration::from_millis(500)));
}

#[test]
fn without_an_order_it_waits_and_then_drains_by_itself() {
    let mut world = World::new(100);
    world.stop(10.0, 30);
    assert!(!world.drain.is_ready() && world.drain.is_accepting(Millis(world.now)));
    world.run(5000);
    assert!(world.gone.is_empty() && !world.drain.is_accepting(Millis(world.now)));
    world.run(60_000);
    assert_eq!((world.gone.len(), world.peak()), (100, 10));
    assert!(world.is_over() && world.causes.iter().all(|cause| *cause == Cause::Termination));
    assert!(world.now < 1000 + 17_000, "over at {}", world.now);
}

#[test]
fn more_devices_than_the_own_rate_can_take_are_spread_evenly_over_the_time() {
    let mut world = World::new(1000);
    world.stop(10.0, 30);
    world.run(40_000);
    assert!((30_000..=31_000).contains(&world.now), "over at {}", world.now);
    assert!((38..=60).contains(&world.peak()), "peak {}", world.peak());
    assert!(world.counts.connections < 60, "{} left for the end", world.counts.connections);
}

#[test]
fn an_order_is_followed_after_the_signal_and_its_end_too() {
    let mut world = World::new(1000);
    world.stop(10.0, 100);
    world.run(3000);
    world.order(Order { per_second: 5.0, cause: Cause::Upgrade, leave: false, ..order(1) }).unwrap();
    world.run(9000);
    assert!(!world.drain.is_ready());
    assert!((40..=45).contains(&world.gone.len()) && world.peak() <= 5);
    // nobody renews: it is on its own at once, having waited out the order itself
    world.run(2000);
    assert_eq!(world.causes.last(), Some(&Cause::Termination));
}

#[test]
fn whoever_goes_alone_has_waited_since_it_last_heard_of_anybody() {
    let mut world = World::new(1000);
    world.drain.alone_after = Duration::from_secs(30);
    world.stop(10.0, 600);
    world.run(20_000);
    assert_eq!((world.gone.len(), world.state()), (0, Some(State::Paused)));
    // told that it is not its turn, then nothing more: the lease of ten seconds is over, but those of others may not be
    world.order(Order { per_second: 0.0, ..order(1) }).unwrap();
    world.run(29_500);
    assert_eq!((world.gone.len(), world.state()), (0, Some(State::Paused)));
    world.run(2000);
    assert!(!world.gone.is_empty() && world.causes.iter().all(|cause| *cause == Cause::Termination));
    // told that it needs no order: the same
    world.undrain(1).unwrap();
    world.run(100);
    let gone = world.gone.len();
    world.run(29_500);
    assert_eq!(world.gone.len(), gone);
}

#[test]
fn the_last_quarter_of_the_time_comes_before_the_end_of_the_wait() {
    let mut world = World::new(100);
    world.drain.alone_after = Duration::from_secs(30);
    world.stop(1.0, 20);
    world.run(14_900);
    assert!(world.gone.is_empty());
    world.run(5_100);
    assert!(world.gone.len() > 90 && world.peak() <= 25, "{} gone, peak {}", world.gone.len(), world.peak());
}

#[test]
fn gateways_that_go_alone_one_device_in_many_seconds_do_not_begin_in_the_same_second() {
    let mut gone = Vec::new();
    for gateway in 0..8 {
        let mut world = World::new(100);
        world.drain.phase = f64::from(gateway) / 8.0;
        world.stop(0.125, 6000);
        world.run(5000 + 24_000);
        gone.extend(world.gone);
    }
    gone.sort_unstable();
    assert!(gone.len() > 8 && gone.windows(2).all(|two| two[1] - two[0] >= 900), "{gone:?}");
}

#[test]
fn in_the_last_quarter_the_rest_goes_whatever_the_order_says() {
    let mut world = World::new(1000);
    world.stop(10.0, 40);
    for _ in 0..41 {
        world.order(Order { per_second: 1.0, down_to: 900, ..order(1) }).unwrap();
        world.run(1000);
    }
    let early = world.gone.iter().filter(|at| **at < 1000 + 30_000).count();
    assert!(early <= 30 && world.peak() <= 140, "{early} early, peak {}", world.peak());
    assert!(world.is_over() && world.counts.connections < 140, "{} left for the end", world.counts.connections);
}

#[test]
fn an_empty_gateway_ends_as_soon_as_nothing_new_is_sent_to_it() {
    let mut world = World::new(0);
    world.stop(10.0, 30);
    assert!(!world.is_over());
    world.run(60_000);
    assert_eq!(world.now - 1000, SETTLE.as_millis() as u64);
    // it had been left before the signal came
    let mut world = World::new(0);
    world.order(order(1)).unwrap();
    world.run(6000);
    world.stop(10.0, 30);
    assert!(world.is_over() && !world.drain.is_accepting(Millis(world.now)));
    // no time at all
    let mut world = World::new(10);
    world.stop(10.0, 0);
    assert!(world.is_over() && !world.drain.is_accepting(Millis(world.now)));
}

#[test]
fn devices_that_are_no_longer_trusted_go_at_the_own_rate_and_nobody_else() {
    let mut world = World::new(100);
    world.drain.own_per_second = 10.0;
    world.counts.distrusted = 20;
    world.run(4500);
    // somebody may order it
    assert_eq!((world.gone.len(), world.state(), world.drain.is_ready()), (0, Some(State::Paused), true));
    world.run(1500);
    assert_eq!((world.state(), world.drain.is_ready()), (Some(State::Draining), true));
    world.run(4000);
    assert_eq!((world.counts.connections, world.peak(), world.state()), (80, 10, None));
    assert!(world.causes.iter().all(|cause| *cause == Cause::CertificateAuthority));
    assert_eq!(world.drain.poll_timeout(Millis(world.now)), None);
}

#[test]
fn an_order_sets_the_rate_at_which_those_no_longer_trusted_go() {
    let mut world = World::new(100);
    world.drain.own_per_second = 50.0;
    world.counts.distrusted = 20;
    let authority = Order { cause: Cause::CertificateAuthority, per_second: 2.0, leave: false, ..order(1) };
    world.order(authority).unwrap();
    world.run(5000);
    assert!((8..=10).contains(&world.gone.len()) && world.peak() <= 2, "{}", world.gone.len());
    world.order(Order { per_second: 100.0, ..authority }).unwrap();
    world.run(2000);
    assert_eq!((world.counts.connections, world.state()), (80, Some(State::Done)));
    // any other order in force comes first: it takes them before all others
    world.counts.distrusted = 5;
    world.order(Order { down_to: 78, ..order(2) }).unwrap();
    world.run(2000);
    assert_eq!((world.counts.connections, world.counts.distrusted), (78, 3));
}

#[test]
fn a_second_in_which_devices_went_for_want_of_a_hub_has_room_for_so_many_fewer() {
    let mut world = World::new(100);
    world.order(Order { per_second: 10.0, ..order(1) }).unwrap();
    world.counts.forsaken = 8;
    world.run(900);
    assert_eq!(world.gone.len(), 2);
    world.run(1000);
    assert!(world.gone.len() > 8, "{:?}", world.gone);
}

#[test]
fn grants_that_found_nobody_are_given_again() {
    let mut world = World::new(10);
    world.order(order(1)).unwrap();
    let mut unused = 0;
    for now in (1000..4000).step_by(20) {
        let counts = Counts { unused, ..world.counts };
        unused += world.drain.poll(counts, Millis(now)).map_or(0, |grant| grant.count);
    }
    assert!(unused > 50, "{unused}");
}

/// What may happen in a moment.
#[derive(Debug, Clone)]
enum Event {
    Order { rate: usize, down_to: u64, leave: bool, epoch: i64 },
    Undrain(i64),
    Run(u64),
    Takes(u64),
    Connect(u64),
    Stop,
}

const RATES: [f64; 6] = [0.0, 0.4, 1.0, 7.3, 50.0, 120.0];

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..RATES.len(), 0_u64..300, any::<bool>(), 0_i64..4)
            .prop_map(|(rate, down_to, leave, epoch)| Event::Order { rate, down_to, leave, epoch }),
        1 => (0_i64..4).prop_map(Event::Undrain),
        6 => (1_u64..4000).prop_map(Event::Run),
        2 => (0_u64..3000).prop_map(Event::Takes),
        2 => (1_u64..200).prop_map(Event::Connect),
        1 => Just(Event::Stop),
    ]
}

proptest! {
    #[test]
    fn no_second_sees_more_go_than_the_highest_rate_in_force_and_none_below_what_stays(
        events in prop::collection::vec(event(), 1..60),
        connections in 0_u64..2000,
    ) {
        let mut world = World::new(connections);
        // (moment, rate) of every order taken
        let (mut rates, mut floor, mut stopped, mut highest) = (vec![(0, 0.0)], u64::MAX, false, -1);
        for event in events {
            match event {
                Event::Order { rate, down_to, leave, epoch } => {
                    let given = Order { per_second: RATES[rate], down_to, leave, ..order(epoch) };
                    let taken = world.order(given).is_ok();
                    prop_assert_eq!(taken, epoch >= highest);
                    if taken {
                        highest = epoch;
                        rates.push((world.now, RATES[rate]));
                        floor = floor.min(down_to);
                    }
                }
                Event::Undrain(epoch) => {
                    let taken = world.undrain(epoch).is_ok();
                    prop_assert_eq!(taken, epoch >= highest);
                    highest = highest.max(epoch);
                }
                Event::Run(ms) => world.run(ms),
                Event::Takes(ms) => world.takes_ms = ms,
                Event::Connect(more) => world.counts.connections += more,
                // a day: it is never late
                Event::Stop => {
                    world.stop(1.0, 86_400);
                    stopped = true;
                    rates.push((world.now, 1.0));
                }
            }
            let leaving: u64 = world.leaving.values().sum();
            prop_assert!(stopped || world.gone.is_empty() || world.counts.connections - leaving >= floor.min(world.counts.connections));
        }
        let highest_rate = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        prop_assert!(world.peak() <= highest_rate.ceil() as u64, "{} at {highest_rate}", world.peak());
        // of one rate: no mean above it
        let elapsed_s = (world.now - 1000) as f64 / 1000.0;
        prop_assert!(world.gone.len() as f64 <= highest_rate * elapsed_s + 1.0);
    }
}
