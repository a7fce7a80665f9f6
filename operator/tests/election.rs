//! Who leads: tables of single decisions, and a simulation of three replicas whose requests are slow, lost or late.

mod replicas;

use std::time::{Duration, Instant};

use operator::lease::election::{Action, Election, Failure, Record, Settings, Term, Write};

use replicas::{Faults, World};

const FIRST: i64 = 1_000;

fn seconds(number: f64) -> Duration {
    Duration::from_secs_f64(number)
}

/// One replica, on a clock that begins at zero.
struct Replica {
    election: Election,
    zero: Instant,
}

fn replica() -> Replica {
    let settings = Settings::new("us".to_owned(), Duration::from_secs(15));
    Replica { election: Election::new(settings), zero: Instant::now() }
}

impl Replica {
    fn at(&self, time: f64) -> Instant {
        self.zero + seconds(time)
    }

    fn saw(mut self, time: f64, record: impl Into<Option<Record>>) -> Self {
        self.election.handle_record(record.into(), self.zero + seconds(time));
        self
    }

    fn failed(mut self, time: f64, failure: Failure) -> Self {
        self.election.handle_failure(failure, self.zero + seconds(time));
        self
    }

    /// Its write is sent, and taken half a second later.
    fn wrote(mut self, time: f64, transitions: i64, version: &str) -> Self {
        let write = Write { over: None, transitions, takes: true };
        let (sent, now) = (self.at(time), self.at(time + 0.5));
        self.election.handle_written(&write, version.to_owned(), sent, now);
        self
    }

    fn wait(&self, time: f64) -> Action {
        Action::Wait(self.at(time))
    }

    #[track_caller]
    fn check(&self, time: f64, expected: &Action) {
        assert_eq!(&self.election.next(self.at(time), 0.5, FIRST), expected, "at {time} s");
    }

    #[track_caller]
    fn check_term(&self, time: f64, epoch: Option<i64>) {
        let term = self.election.term(self.at(time));
        assert_eq!(term.map(|term| term.epoch), epoch, "at {time} s");
    }
}

fn held(holder: &str, version: &str) -> Record {
    Record {
        holder: Some(holder.to_owned()).filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(15),
        transitions: 7,
        version: version.to_owned(),
    }
}

fn take(version: &str) -> Action {
    Action::Write(Write { over: Some(version.to_owned()), transitions: 8, takes: true })
}

fn create() -> Action {
    Action::Write(Write { over: None, transitions: FIRST, takes: true })
}

#[test]
fn it_looks_before_it_writes() {
    replica().check(0.0, &Action::Read);
    replica().saw(0.1, None).check(0.1, &create());
}

#[test]
fn a_lease_that_another_renews_is_left_alone() {
    let us = replica().saw(0.0, held("other", "1"));
    us.check(0.0, &us.wait(1.0));
    us.check(1.0, &Action::Read);
    let us = us.saw(1.0, held("other", "1")).saw(14.0, held("other", "2"));
    us.check(15.0, &Action::Read);
    let us = us.saw(26.5, held("other", "2"));
    us.check(26.5, &us.wait(27.0));
    us.check(27.0, &take("2"));
}

#[test]
fn a_holder_has_the_longer_of_its_duration_and_ours_but_not_for_ever() {
    let of = |duration: u64| Record { duration: Duration::from_secs(duration), ..held("other", "1") };
    for (duration, patience) in [(0, 13.0), (15, 13.0), (60, 52.0), (1_000_000_000, 260.0)] {
        let us = replica().saw(0.0, of(duration)).saw(patience - 0.1, of(duration));
        us.check(patience - 0.1, &us.wait(patience));
        us.check(patience, &take("1"));
    }
}

#[test]
fn a_lease_that_was_given_back_is_taken_at_once() {
    replica().saw(0.0, held("other", "1")).saw(1.0, held("", "2")).check(1.0, &take("2"));
}

#[test]
fn that_a_lease_is_gone_does_not_say_that_its_holder_knows() {
    let us = replica().saw(0.0, held("other", "1")).saw(3.0, None);
    us.check(3.0, &us.wait(4.0));
    let us = us.saw(12.9, None);
    us.check(12.9, &us.wait(13.0));
    us.check(13.0, &create());
}

#[test]
fn a_term_counts_from_when_the_write_was_sent() {
    let us = replica().saw(0.0, None).wrote(1.0, 8, "1");
    us.check_term(1.5, Some(8));
    us.check_term(10.9, Some(8));
    us.check_term(11.0, None);
    us.check(1.5, &us.wait(6.0));
    us.check(6.0, &Action::Write(Write { over: Some("1".to_owned()), transitions: 8, takes: false }));
    let until = us.at(11.0);
    assert_eq!(us.election.term(us.at(2.0)), Some(Term { epoch: 8, renewal: us.at(6.0), until }));
}

#[test]
fn an_answer_that_comes_after_the_term_makes_no_leader() {
    let mut us = replica().saw(0.0, None);
    let write = Write { over: None, transitions: 8, takes: true };
    let (sent, now) = (us.at(0.0), us.at(12.0));
    us.election.handle_written(&write, "1".to_owned(), sent, now);
    us.check_term(12.0, None);
    us.check(12.0, &Action::Write(Write { over: Some("1".to_owned()), transitions: 8, takes: false }));
}

#[test]
fn a_leader_that_sees_another_leads_no_more() {
    for seen in [Some(held("other", "2")), Some(held("", "2")), None] {
        let us = replica().saw(0.0, None).wrote(0.0, 7, "1").saw(6.0, seen);
        us.check_term(6.0, None);
        let mut us = us;
        us.election.resign();
        us.check_term(6.0, None);
    }
    // its own write that it had no answer to
    replica().saw(0.0, None).wrote(0.0, 7, "1").saw(6.0, held("us", "2")).check_term(6.0, Some(7));
    // the count of holders was put back by hand
    replica().saw(0.0, None).wrote(0.0, 9, "1").saw(6.0, held("us", "2")).check_term(6.0, None);
}

#[test]
fn a_lease_of_ours_is_renewed_without_counting_a_change() {
    replica()
        .saw(0.0, held("us", "3"))
        .check(0.0, &Action::Write(Write { over: Some("3".to_owned()), transitions: 7, takes: false }));
}

#[test]
fn a_failure_is_followed_by_a_rest_and_a_look() {
    let us = replica().saw(0.0, held("other", "1")).failed(1.0, Failure::Unknown);
    us.check(1.0, &us.wait(2.0));
    us.check(2.0, &Action::Read);
    let us = replica().saw(0.0, held("", "1")).failed(1.0, Failure::Conflict);
    us.check(1.0, &us.wait(1.25));
    us.check(1.25, &Action::Read);
    // a leader wakes at the end of its term, to say so
    let us = replica().saw(0.0, None).wrote(0.0, 7, "1").failed(9.5, Failure::Unknown);
    us.check(9.5, &us.wait(10.0));
    us.check(10.0, &us.wait(10.5));
}

#[test]
fn epochs_grow_from_whatever_was_written() {
    for (transitions, expected) in [(-5, 1), (0, 1), (41, 42)] {
        let record = Record { transitions, ..held("", "1") };
        let expected = Write { over: Some("1".to_owned()), transitions: expected, takes: true };
        replica().saw(0.0, record).check(0.0, &Action::Write(expected));
    }
}

#[test]
fn two_replicas_never_lead_at_once_whatever_happens_to_requests_and_processes() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(500);
    let mut terms = 0;
    for seed in 1..=seeds {
        let mut world = World::new(seed, 3, Faults::many());
        world.run(seconds(600.0));
        world.calm();
        world.run(seconds(60.0));
        assert_eq!(world.leaders(), 1, "seed {seed}: after a quiet minute one of them leads");
        terms += world.terms;
    }
    assert!(terms > seeds * 5, "leadership moved {terms} times: the faults do not bite");
}

#[test]
fn another_leads_within_the_lease_after_a_kill_and_at_once_after_an_orderly_exit() {
    for seed in 1..=200 {
        let mut world = World::new(seed, 3, Faults::none());
        world.run(seconds(30.0));
        let away = world.without_leader_after(World::kill_leader);
        assert!(away <= seconds(15.0) && away >= seconds(7.5), "seed {seed}: killed, {away:?}");
        world.run(seconds(30.0));
        let away = world.without_leader_after(World::exit_leader);
        assert!(away <= seconds(1.4), "seed {seed}: orderly, {away:?}");
    }
}

#[test]
fn a_fleet_of_replicas_at_rest_writes_twelve_times_a_minute() {
    let mut world = World::new(7, 3, Faults::none());
    world.run(seconds(60.0));
    let before = world.writes;
    world.run(seconds(600.0));
    let writes = world.writes - before;
    assert!((118..=121).contains(&writes), "{writes} in ten minutes");
}
