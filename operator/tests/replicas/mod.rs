//! Replicas that stand for election, an API server, and everything that can go wrong between them, in virtual time.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use operator::lease::election::{Action, Election, Failure, Record, Settings, Write};

/// What goes wrong, from 0 (never) to 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// A request or its answer is lost.
    lost: f64,
    /// A request comes to the API server when nobody waits for it any more.
    late: f64,
    /// In each second: a replica is killed, exits orderly, or stands still for a while.
    process: f64,
    /// Clocks run faster or slower by so much.
    drift: f64,
}

impl Faults {
    pub(crate) fn none() -> Self {
        Self { lost: 0.0, late: 0.0, process: 0.0, drift: 0.0 }
    }

    pub(crate) fn many() -> Self {
        Self { lost: 0.15, late: 0.1, process: 0.03, drift: 0.05 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A replica looks what to do.
    Wake { replica: usize, life: u32 },
    /// A request comes to the API server.
    Arrive { request: u64 },
    /// Its answer comes back.
    Answer { request: u64 },
    /// Nobody waits for the answer any more.
    TimeOut { request: u64 },
    /// Once a second: what happens to processes.
    Fate,
    /// A replica that was ended comes up anew.
    Start { replica: usize },
}

struct Request {
    replica: usize,
    life: u32,
    kind: Kind,
    /// On the replica's clock.
    sent: Instant,
    answer: Option<Answer>,
}

#[derive(Clone)]
enum Kind {
    Read,
    Write(Write),
    /// Reads and writes that nobody holds it.
    Release(String),
}

enum Answer {
    Record(Option<Record>),
    Written(String),
    Conflict,
}

struct Replica {
    election: Election,
    /// Counts processes; none runs if `alive` is not.
    life: u32,
    alive: bool,
    /// Its request under way.
    waits_for: Option<u64>,
    /// It stands still until then.
    still_until: u64,
    /// Its clock: zero, and ticks for one of ours.
    zero: Instant,
    rate: f64,
}

/// Time in microseconds.
pub(crate) struct World {
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    serial: u64,
    requests: BTreeMap<u64, Request>,
    lease: Option<Record>,
    version: u64,
    replicas: Vec<Replica>,
    chance: u64,
    faults: Faults,
    /// Who led last, with its epoch.
    last: Option<(usize, u32, i64)>,
    /// How often leadership moved.
    pub(crate) terms: u64,
    /// Writes that the API server took.
    pub(crate) writes: u64,
}

const SECOND: u64 = 1_000_000;
const LEASE: Duration = Duration::from_secs(15);

impl World {
    pub(crate) fn new(seed: u64, replicas: usize, faults: Faults) -> Self {
        let mut world = Self {
            now: 0,
            queue: BinaryHeap::new(),
            serial: 0,
            requests: BTreeMap::new(),
            lease: None,
            version: 0,
            replicas: Vec::new(),
            chance: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            faults,
            last: None,
            terms: 0,
            writes: 0,
        };
        let zero = Instant::now();
        for index in 0..replicas {
            let drift = world.faults.drift * (2.0 * world.draw() - 1.0);
            let zero = zero + Duration::from_secs_f64(1000.0 * world.draw());
            let election = Election::new(Settings::new(format!("{index}-0"), LEASE));
            let replica =
                Replica { election, life: 0, alive: true, waits_for: None, still_until: 0, zero, rate: 1.0 + drift };
            world.replicas.push(replica);
            world.after(0.0, Event::Wake { replica: index, life: 0 });
        }
        world.after(1.0, Event::Fate);
        world
    }

    /// From now on nothing goes wrong.
    pub(crate) fn calm(&mut self) {
        self.faults = Faults { drift: self.faults.drift, ..Faults::none() };
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time.as_micros() as u64;
        while let Some(Reverse((at, _, _))) = self.queue.peek() {
            if *at > end {
                break;
            }
            let Reverse((at, _, event)) = self.queue.pop().expect("it was seen");
            self.now = at;
            self.handle(event);
            self.watch();
        }
        self.now = end;
    }

    /// How many believe that they lead.
    pub(crate) fn leaders(&self) -> usize {
        (0..self.replicas.len()).filter(|index| self.leads(*index)).count()
    }

    fn leads(&self, index: usize) -> bool {
        let replica = &self.replicas[index];
        replica.alive && replica.election.term(self.local(index)).is_some()
    }

    /// How long nobody leads after `act`.
    pub(crate) fn without_leader_after(&mut self, act: impl FnOnce(&mut Self)) -> Duration {
        assert_eq!(self.leaders(), 1, "one leads before");
        act(self);
        let begin = self.now;
        while self.leaders() == 0 {
            assert!(self.now < begin + 60 * SECOND, "nobody leads");
            self.run(Duration::from_millis(10));
        }
        Duration::from_micros(self.now - begin)
    }

    pub(crate) fn kill_leader(&mut self) {
        let leader = (0..self.replicas.len()).find(|index| self.leads(*index)).expect("one leads");
        self.kill(leader);
    }

    pub(crate) fn exit_leader(&mut self) {
        let leader = (0..self.replicas.len()).find(|index| self.leads(*index)).expect("one leads");
        self.exit(leader);
    }

    fn kill(&mut self, replica: usize) {
        self.replicas[replica].alive = false;
        let pause = 1.0 + 20.0 * self.draw();
        self.after(pause, Event::Start { replica });
    }

    fn exit(&mut self, replica: usize) {
        self.replicas[replica].election.resign();
        let identity = self.replicas[replica].election.settings().identity.clone();
        self.send(replica, Kind::Release(identity));
        self.kill(replica);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake { replica, life } => self.wake(replica, life),
            Event::Arrive { request } => self.arrive(request),
            Event::Answer { request } => self.answer(request, true),
            Event::TimeOut { request } => self.answer(request, false),
            Event::Fate => {
                self.fate();
                self.after(1.0, Event::Fate);
            }
            Event::Start { replica } => self.start(replica),
        }
    }

    fn start(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        replica.life += 1;
        replica.alive = true;
        replica.waits_for = None;
        replica.still_until = 0;
        let life = replica.life;
        replica.election = Election::new(Settings::new(format!("{index}-{life}"), LEASE));
        self.after(0.0, Event::Wake { replica: index, life });
    }

    /// What happens to processes.
    fn fate(&mut self) {
        for replica in 0..self.replicas.len() {
            if !self.replicas[replica].alive || self.draw() >= self.faults.process {
                continue;
            }
            match (self.draw() * 3.0) as u32 {
                0 => self.kill(replica),
                1 => self.exit(replica),
                _ => self.replicas[replica].still_until = self.now + (self.draw() * 40.0 * SECOND as f64) as u64,
            }
        }
    }

    /// Postpones what a replica that stands still would do.
    fn stands_still(&mut self, replica: usize, event: Event) -> bool {
        let until = self.replicas[replica].still_until;
        if self.now < until {
            self.at(until + 1, event);
        }
        self.now < until
    }

    fn wake(&mut self, index: usize, life: u32) {
        let replica = &self.replicas[index];
        if !replica.alive || replica.life != life || replica.waits_for.is_some() {
            return;
        }
        if self.stands_still(index, Event::Wake { replica: index, life }) {
            return;
        }
        let (local, chance) = (self.local(index), self.draw());
        let first_epoch = 1_000 + (self.now / SECOND / 60).cast_signed();
        match self.replicas[index].election.next(local, chance, first_epoch) {
            Action::Wait(until) => {
                assert!(until > local, "a wait is a wait");
                let ours = (until - local).as_secs_f64() / self.replicas[index].rate;
                self.at(self.now + (ours * SECOND as f64) as u64 + 1, Event::Wake { replica: index, life });
            }
            Action::Read => self.send(index, Kind::Read),
            Action::Write(write) => self.send(index, Kind::Write(write)),
        }
    }

    fn send(&mut self, replica: usize, kind: Kind) {
        let (life, sent) = (self.replicas[replica].life, self.local(replica));
        let request = self.serial();
        let release = matches!(kind, Kind::Release(_));
        self.requests.insert(request, Request { replica, life, kind, sent, answer: None });
        if !release {
            self.replicas[replica].waits_for = Some(request);
            let patience = self.replicas[replica].election.settings().request_timeout.as_secs_f64();
            self.after(patience, Event::TimeOut { request });
        }
        if self.draw() >= self.faults.lost {
            let late = self.draw() < self.faults.late;
            let delay = if late { 40.0 * self.draw() } else { 0.05 * self.draw() };
            self.after(delay, Event::Arrive { request });
        }
    }

    fn arrive(&mut self, id: u64) {
        let kind = self.requests[&id].kind.clone();
        let answer = self.serve(&kind, self.requests[&id].replica, self.requests[&id].life);
        self.requests.get_mut(&id).expect("it was sent").answer = Some(answer);
        if self.draw() >= self.faults.lost {
            let delay = 0.05 * self.draw();
            self.after(delay, Event::Answer { request: id });
        }
    }

    /// What the API server does.
    fn serve(&mut self, kind: &Kind, replica: usize, life: u32) -> Answer {
        let write = match kind {
            Kind::Read => return Answer::Record(self.lease.clone()),
            Kind::Release(identity) => {
                let held = self.lease.as_mut().filter(|lease| lease.holder.as_ref() == Some(identity));
                let Some(lease) = held else { return Answer::Conflict };
                self.version += 1;
                (lease.holder, lease.version) = (None, self.version.to_string());
                return Answer::Written(self.version.to_string());
            }
            Kind::Write(write) => write,
        };
        if self.lease.as_ref().map(|lease| &lease.version) != write.over.as_ref() {
            return Answer::Conflict;
        }
        self.version += 1;
        self.writes += 1;
        self.lease = Some(Record {
            holder: Some(format!("{replica}-{life}")),
            duration: LEASE,
            transitions: write.transitions,
            version: self.version.to_string(),
        });
        Answer::Written(self.version.to_string())
    }

    fn answer(&mut self, id: u64, in_time: bool) {
        let (index, life) = (self.requests[&id].replica, self.requests[&id].life);
        let replica = &self.replicas[index];
        if !replica.alive || replica.life != life || replica.waits_for != Some(id) {
            return;
        }
        let event = if in_time { Event::Answer { request: id } } else { Event::TimeOut { request: id } };
        if self.stands_still(index, event) {
            return;
        }
        let now = self.local(index);
        // one that nobody waits for any more may still arrive
        let request = self.requests.get_mut(&id).expect("it was sent");
        let (answer, kind, sent) = (request.answer.take(), request.kind.clone(), request.sent);
        let election = &mut self.replicas[index].election;
        match (answer.filter(|_| in_time), kind) {
            (None, _) => election.handle_failure(Failure::Unknown, now),
            (Some(Answer::Conflict), _) => election.handle_failure(Failure::Conflict, now),
            (Some(Answer::Record(record)), _) => election.handle_record(record, now),
            (Some(Answer::Written(version)), Kind::Write(write)) => {
                election.handle_written(&write, version, sent, now);
            }
            (Some(Answer::Written(_)), _) => unreachable!("nobody waits for the answer to a release"),
        }
        self.replicas[index].waits_for = None;
        self.wake(index, life);
    }

    /// The promise: one leads at most, and epochs grow.
    fn watch(&mut self) {
        let leading: Vec<usize> = (0..self.replicas.len()).filter(|index| self.leads(*index)).collect();
        assert!(leading.len() <= 1, "{leading:?} lead at once at {} s", self.now as f64 / SECOND as f64);
        let Some(index) = leading.first().copied() else { return };
        let epoch = self.replicas[index].election.term(self.local(index)).expect("it leads").epoch;
        let leader = (index, self.replicas[index].life, epoch);
        if self.last == Some(leader) {
            return;
        }
        if let Some((_, _, before)) = self.last {
            assert!(epoch > before, "epoch {epoch} after {before}");
        }
        self.last = Some(leader);
        self.terms += 1;
    }

    fn local(&self, index: usize) -> Instant {
        let replica = &self.replicas[index];
        replica.zero + Duration::from_secs_f64(self.now as f64 / SECOND as f64 * replica.rate)
    }

    fn after(&mut self, seconds: f64, event: Event) {
        self.at(self.now + (seconds * SECOND as f64) as u64, event);
    }

    fn at(&mut self, time: u64, event: Event) {
        let serial = self.serial();
        self.queue.push(Reverse((time, serial, event)));
    }

    fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// From 0 to 1.
    fn draw(&mut self) -> f64 {
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        (self.chance >> 11) as f64 / (1u64 << 53) as f64
    }
}
