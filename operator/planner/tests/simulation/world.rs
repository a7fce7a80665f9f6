//! The world: users, faults, devices and time.

use std::collections::BTreeMap;

use planner::{
    Load, Millis, Spec,
    autoscale::{Bounds, History},
    budget::{alone_after, alone_share},
    upstream::{self, Upstream},
};

use crate::{
    cluster::{Cluster, Grace, RECOVERS, SimPod},
    gateway::{Excuse, LetGo},
    judge::Judge,
    leader::{Around, Late, Leader, Store},
    random::Random,
};

pub(crate) const TICK: Millis = 500;
/// The operator's Lease is held for 15 s.
pub(crate) const ALONE_AFTER: Millis = alone_after(15_000);
const PODS_MAX: i64 = 8;
/// The leader looks again at what it wrote.
const STEPS_PER_TICK: u32 = 3;
/// What a fleet that is left alone may take to come to rest.
const REST_MAX: Millis = 3_600_000;
/// At rest it must stay so.
const REST_FOR: Millis = 90_000;
/// The same where the number of pods follows the connections: for several of the autoscaler's steps down.
const REST_FOR_SCALED: Millis = 300_000;
/// Who was not heard of for so long says nothing of the upstream.
const HEARD_OF: Millis = 10_000;
/// A pod that no node or no quota has room for waits so long.
const STUCK_FOR: Millis = 1_800_000;
/// From a pod told to stop to the first order that counts with it: looked at, written, and what others had is a second ago.
const ORDER_LAG: Millis = 10_000;

pub(crate) fn log(loud: bool, now: Millis, what: impl FnOnce() -> String) {
    if loud {
        println!("{:8.1} {}", now as f64 / 1000.0, what());
    }
}

/// What kind of world.
#[derive(Clone, Copy)]
pub(crate) struct Script {
    pub(crate) faults: bool,
    pub(crate) mortal_leaders: bool,
    pub(crate) story: Story,
    pub(crate) loud: bool,
}

/// What happens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Story {
    /// Anything.
    Mixed,
    /// One rollout.
    Rollout,
    /// One scale-up of a fleet that is rebalanced.
    ScaleUp,
    /// The same, and for long no node has room for one of the new pods, or a quota refuses it.
    OneStuck,
    /// All pods are told to stop at once, with about as much time as it takes.
    AllEnd,
}

impl Script {
    pub(crate) const ROUGH: Self = Self { faults: true, mortal_leaders: true, story: Story::Mixed, loud: false };
    pub(crate) const GENTLE: Self = Self { faults: false, mortal_leaders: false, ..Self::ROUGH };
    pub(crate) const ROLLOUT: Self = Self { story: Story::Rollout, ..Self::GENTLE };
    pub(crate) const ALL_END: Self = Self { story: Story::AllEnd, ..Self::GENTLE };
    pub(crate) const ONE_STUCK: Self = Self { story: Story::OneStuck, ..Self::GENTLE };
    pub(crate) const SCALE_UP: Self = Self { story: Story::ScaleUp, ..Self::GENTLE };
}

#[derive(Clone, Copy, Default)]
struct Device {
    moves: u64,
    /// It does not want to be connected.
    off: bool,
}

/// In some worlds devices do not stay for ever while the upstream is away.
fn outage_max(seed: u64) -> Option<Millis> {
    matches!(seed % 5, 0 | 4).then(|| (seed / 5 % 4).cast_signed() * 10_000)
}

/// One fleet.
pub(crate) struct World {
    script: Script,
    now: Millis,
    random: Random,
    spec: Spec,
    /// What pods have beyond their own time, to settle and to end.
    grace_beyond: Millis,
    cluster: Cluster,
    store: Store,
    leader: Option<Leader>,
    next_leader: Millis,
    nobody_leads: bool,
    epoch: i64,
    late: Vec<Late>,
    devices: Vec<Device>,
    /// Devices that come back, by when.
    away: BTreeMap<Millis, Vec<u32>>,
    upstream: Upstream,
    /// Since when it is away.
    away_since: Option<Millis>,
    /// How long devices stay while it is away; `None`: for ever.
    outage_max: Option<Millis>,
    /// Since when it is so.
    upstream_since: Millis,
    autoscaler: Option<(Bounds, History)>,
    /// The budget that pods which end were last reckoned with.
    reckoned_with: u32,
    /// What comes of a fault may be seen until then.
    troubled_until: Millis,
    pub(crate) judge: Judge,
}

impl World {
    pub(crate) fn new(seed: u64, script: Script) -> Self {
        let mut random = Random(seed.wrapping_mul(0x5851_F42D_4C95_7F2D) ^ 0x1405);
        let per_second_most = if script.story == Story::AllEnd { 14 } else { 40 };
        let per_second = random.between(PODS_MAX, per_second_most) as u32;
        let spec = Spec {
            replicas: random.between(1, PODS_MAX) as u32,
            per_second,
            self_per_second: alone_share(per_second, PODS_MAX as u32, 0),
            drain_timeout: random.between(40, 180) * 1000,
            skew_max: match script.story {
                Story::Mixed => random.one_in(2).then_some(1.3),
                Story::Rollout | Story::AllEnd => None,
                Story::ScaleUp | Story::OneStuck => Some(1.15),
            },
        };
        let many = matches!(script.story, Story::ScaleUp | Story::OneStuck | Story::AllEnd);
        let devices_most = if many { (300, 900) } else { (10, 240) };
        let devices = vec![Device::default(); random.between(devices_most.0, devices_most.1) as usize];
        let all = (0..devices.len() as u32).collect();
        let autoscaler = (script.story == Story::Mixed && random.one_in(4)).then(|| {
            let bounds = Bounds { min: 1, max: PODS_MAX as u32, target: 30, scale_down_after: 30_000 };
            (bounds, History::default())
        });
        let share = alone_share(per_second, PODS_MAX as u32, 0);
        let cluster = Cluster::new(spec.replicas, share, script.loud);
        let world = Self {
            script,
            now: 1_000_000,
            random,
            spec,
            grace_beyond: [10_000, 35_000, 310_000][(seed % 3) as usize],
            cluster,
            store: Store::default(),
            leader: None,
            next_leader: 0,
            nobody_leads: false,
            epoch: 0,
            late: Vec::new(),
            devices,
            away: BTreeMap::from([(1_020_000, all)]),
            upstream: Upstream::Well,
            away_since: None,
            outage_max: outage_max(seed).filter(|_| script.faults),
            upstream_since: 0,
            autoscaler,
            reckoned_with: per_second,
            troubled_until: 0,
            judge: Judge::new(per_second),
        };
        log(script.loud, 0, || format!("{:?} {} devices", world.spec, world.devices.len()));
        world
    }

    /// Things happen.
    pub(crate) fn live(&mut self) {
        self.run_for(40_000);
        let events = if self.script.story == Story::Mixed { self.random.between(1, 7) } else { 1 };
        for _ in 0..events {
            self.something_happens();
            let wait_max_s = if self.random.one_in(3) { 8 } else { 60 };
            let wait = self.random.between(1, wait_max_s) * 1000;
            self.run_for(wait);
        }
    }

    /// Nothing happens any more: the fleet reaches what is wanted, is even, and stays so.
    pub(crate) fn rest(&mut self) {
        self.script.mortal_leaders = false;
        if let Some(leader) = &mut self.leader {
            leader.mortality = 0;
        }
        self.set_upstream(Upstream::Well);
        self.judge.let_go_at_rest = 0;
        let until = self.now + REST_MAX;
        let mut calm_since = self.now;
        let rest_for = if self.autoscaler.is_some() { REST_FOR_SCALED } else { REST_FOR };
        while self.now - calm_since < rest_for {
            assert!(self.now < until, "no rest: {}", self.what_is_wrong().unwrap_or_default());
            let was_wrong = self.what_is_wrong().is_some();
            self.tick();
            if was_wrong || self.what_is_wrong().is_some() {
                calm_since = self.now;
                self.judge.let_go_at_rest = 0;
            }
        }
        assert_eq!(self.judge.let_go_at_rest, 0, "devices are let go at rest");
        self.judge.tally.rests_with_autoscaler += u64::from(self.autoscaler.is_some());
        let most = self.devices.iter().map(|device| device.moves).max().unwrap_or(0);
        self.judge.tally.moves_in_rollout_most = if self.script.story == Story::Rollout { most } else { 0 };
        self.judge.tally.rebalances_failed += u64::from(self.store.rebalanced.failures);
    }

    /// The others do not wait for a pod that is not ready for long: they are even, and then nobody is moved any more.
    pub(crate) fn even_beside_the_stuck(&mut self) {
        self.run_for(900_000);
        let ready = self.cluster.pods.iter().filter(|pod| pod.ready).count() as u32;
        assert_eq!(ready + 1, self.spec.replicas, "none is stuck");
        assert!(!self.is_uneven(), "uneven beside a pod that is not ready");
        self.judge.let_go_at_rest = 0;
        self.run_for(600_000);
        assert_eq!(self.judge.let_go_at_rest, 0, "devices are moved again and again beside a pod that is not ready");
    }

    /// Pods that are ready hold more than is tolerated above their mean.
    fn is_uneven(&self) -> bool {
        let ready = self.cluster.pods.iter().filter(|pod| pod.ready);
        let counts: Vec<usize> = ready.map(|pod| pod.gateway.devices.len()).collect();
        let mean = counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64;
        let most = counts.iter().copied().max().unwrap_or(0) as f64;
        self.spec.skew_max.is_some_and(|max| most > mean * max && most - mean >= 5.0)
    }

    /// After a rebalance a few devices come to the fullest pod, up to half of what is tolerated above the mean, as far as there
    /// is room: nobody is moved for them. Gives how many; that there is room is what the rebalance left.
    pub(crate) fn a_few_come_to_the_fullest(&mut self) -> usize {
        let Some(skew_max) = self.spec.skew_max.filter(|_| self.judge.tally.rebalances > 0) else { return 0 };
        let count = |pod: &SimPod| pod.gateway.devices.len();
        let mean = self.cluster.pods.iter().map(count).sum::<usize>() as f64 / self.cluster.pods.len() as f64;
        self.cluster.pods.sort_by_key(count);
        let room = ((mean * skew_max) as usize).saturating_sub(self.cluster.pods.last().map_or(0, count));
        let few = room.min((mean * (skew_max - 1.0) / 2.0) as usize);
        let (fullest, others) = self.cluster.pods.split_last_mut().expect("there are pods");
        for number in 0..few {
            let index = number % others.len();
            let gone = others[index].gateway.devices.pop();
            fullest.gateway.devices.extend(gone);
        }
        self.judge.let_go_at_rest = 0;
        self.run_for(600_000);
        assert_eq!(self.judge.let_go_at_rest, 0, "devices are moved for {few} that came");
        few
    }

    fn what_is_wrong(&self) -> Option<String> {
        let settled = self.cluster.pods.iter().all(|pod| pod.ends.is_none() && pod.ready && pod.cost.is_none());
        let counts: Vec<usize> = self.cluster.pods.iter().map(|pod| pod.gateway.devices.len()).collect();
        match () {
            () if self.leader.as_ref().is_none_or(|leader| leader.is_busy) => Some("the leader is busy".to_owned()),
            () if !self.store.drains.is_empty() => Some(format!("drains: {:?}", self.store.drains)),
            () if self.cluster.pods.len() as u32 != self.spec.replicas => Some("not as many pods as wanted".to_owned()),
            () if !settled => Some("a pod is not settled".to_owned()),
            () if self.cluster.pods.iter().any(|pod| !pod.gateway.distrusted.is_empty()) => {
                Some("a device is not trusted".to_owned())
            }
            () if self.is_uneven() => Some(format!("uneven: {counts:?}")),
            () => None,
        }
    }

    fn run_for(&mut self, time: Millis) {
        let until = self.now + time;
        while self.now < until {
            self.tick();
            // the worst moment
            if std::mem::take(&mut self.nobody_leads) && self.random.one_in(2) {
                self.something_happens();
            }
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.judge.tally.ticks += 1;
        self.lead();
        self.control();
        self.pods_live();
        self.connect();
        self.autoscale();
    }

    fn lead(&mut self) {
        let now = self.now;
        let (arrived, late) = std::mem::take(&mut self.late).into_iter().partition(|order: &Late| order.at <= now);
        self.late = late;
        let arrived: Vec<Late> = arrived;
        for order in arrived {
            order.arrive(now, &mut self.cluster, &mut self.judge);
        }
        if self.leader.is_none() && now >= self.next_leader {
            self.epoch += 1;
            self.judge.tally.leaders += 1;
            let mortality = if self.script.mortal_leaders { 100 } else { 0 };
            log(self.script.loud, now, || format!("leader {} begins", self.epoch));
            self.leader = Some(Leader::new(self.epoch, now, mortality, &self.store.drains, &mut self.random));
        }
        let Some(leader) = &mut self.leader else { return };
        let mut around = Around {
            cluster: &mut self.cluster,
            store: &mut self.store,
            judge: &mut self.judge,
            late: &mut self.late,
            random: &mut self.random,
        };
        let share = alone_share(self.spec.per_second, PODS_MAX as u32, around.cluster.pods.len() as u32);
        self.spec.self_per_second = share;
        around.cluster.configure(share, now, around.random);
        around.judge.budget_written(now, self.spec.per_second);
        let dead = (0..STEPS_PER_TICK).any(|_| leader.step(now, self.spec, &mut around).is_err());
        if dead {
            log(self.script.loud, now, || format!("leader {} dies", self.epoch));
            self.leader = None;
            let ticks_max = [8, 8, 34, 240][self.random.below(4)];
            self.next_leader = now + self.random.between(2, ticks_max) * TICK;
            self.nobody_leads = true;
        }
    }

    fn grace(&self) -> Grace {
        Grace { drain_timeout: self.spec.drain_timeout, beyond: self.grace_beyond }
    }

    /// A pod that is removed because fewer are wanted is empty, unless its time was up or nobody could know.
    fn control(&mut self) {
        let grace = self.grace();
        for index in self.cluster.control(self.now, grace, &mut self.random) {
            let pod = &self.cluster.pods[index];
            if pod.gateway.devices.is_empty() {
                self.judge.tally.removed_empty += 1;
                continue;
            }
            self.judge.tally.removed_with_devices += 1;
            let drain = self.store.drains.iter().find(|drain| drain.pod == pod.name);
            let late = drain.is_some_and(|drain| self.now >= drain.deadline);
            let faulty = pod.is_out_of_order(self.now);
            assert!(late || faulty, "{} was removed with {} devices", pod.name, pod.gateway.devices.len());
        }
    }

    fn pods_live(&mut self) {
        self.reckon();
        let now = self.now;
        let forsaken = self.outage_max.zip(self.away_since).is_some_and(|(max, since)| now - since >= max);
        let (mut let_go, mut must) = (LetGo::default(), 0);
        for pod in &mut self.cluster.pods {
            pod.gateway.forsaken = forsaken;
            pod.probe(now, &mut self.random);
            pod.reload(now);
            let must_now = pod.gateway.must(now);
            let must_in_second = must_now.max(std::mem::replace(&mut pod.must_before, must_now));
            must += if pod.excuse == Some(Excuse::Arithmetic) { must_in_second } else { 0 };
            let gone = pod.gateway.tick(now).excused(pod.excuse);
            let_go.add(if pod.is_unbelieved(now) { gone.unbelieved() } else { gone });
            pod.scrape(now, self.upstream);
        }
        self.judge.let_go(now, &let_go, must, self.cluster.pods.len());
        self.send_back(&let_go.all().collect::<Vec<_>>(), 10);
        let ends =
            |pod: &SimPod| pod.ends.is_some_and(|ends| now >= ends || pod.gateway.devices.is_empty() || !pod.runs(now));
        let killed = self.cluster.pods.iter().filter(|pod| ends(pod) && !pod.gateway.devices.is_empty()).count();
        self.judge.tally.killed_with_devices += killed as u64;
        let over: Vec<_> = self.cluster.pods.extract_if(.., |pod| ends(pod)).collect();
        for pod in over {
            self.send_back(&pod.gateway.devices, 20);
        }
    }

    /// Which pods may be late: of those that are told to stop now, or end when less of the budget is left for them, what does not
    /// fit; while a fault reaches all, what would not fit if nobody were let go until it is over; and who is out of order itself.
    fn reckon(&mut self) {
        let now = self.now;
        if self.leader.is_none() || !self.late.is_empty() || self.cluster.pods.iter().any(|pod| self.reaches_all(pod)) {
            self.troubled_until = now + RECOVERS;
        }
        let per_second = self.left_for_drains();
        let less = per_second < std::mem::replace(&mut self.reckoned_with, per_second);
        let mut ending: Vec<(Millis, &mut SimPod)> = self
            .cluster
            .pods
            .iter_mut()
            .filter_map(|pod| Some((pod.gateway.stop.filter(|_| !pod.gateway.devices.is_empty())?.late_at(), pod)))
            .collect();
        ending.sort_by_key(|(late_at, _)| *late_at);
        if less || ending.iter().any(|(_, pod)| !pod.reckoned) {
            excuse(&mut ending, now, per_second, Excuse::Arithmetic);
        }
        if now < self.troubled_until {
            excuse(&mut ending, self.troubled_until, per_second, Excuse::Fault);
        }
        for (_, pod) in &mut ending {
            pod.reckoned = true;
            pod.excuse = if pod.is_out_of_order(now) { Some(Excuse::Fault) } else { pod.excuse };
        }
    }

    /// A fault of this pod may make any other late: nobody knows what it lets go, or devices have nowhere to go. One that is only
    /// silent and lets nobody go costs the others what it may let go alone, and no more.
    fn reaches_all(&self, pod: &SimPod) -> bool {
        let now = self.now;
        let was = |until: Millis| until > 0 && now < until + RECOVERS;
        let drains = pod.ends.is_some()
            || pod.gateway.load(now, Some(self.upstream)).drain.is_some()
            || self.store.drains.iter().any(|drain| drain.pod == pod.name);
        was(pod.lies_until) || was(pod.blinks_until) || (pod.is_out_of_order(now) && drains)
    }

    /// Devices per second that pods which are drained may have: what is beside pods that the upstream does nothing for, and those of
    /// which nothing is heard.
    fn left_for_drains(&self) -> u32 {
        let alone = |pod: &SimPod| match pod.gateway.forsaken_per_second(self.now) {
            _ if pod.is_out_of_order(self.now) => Some(self.spec.self_per_second.ceil()),
            forsaken => forsaken,
        };
        let alone: f64 = self.cluster.pods.iter().filter_map(alone).sum();
        self.spec.per_second.saturating_sub(alone.ceil() as u32)
    }

    fn send_back(&mut self, devices: &[u32], ticks_max: i64) {
        for device in devices {
            self.devices[*device as usize].moves += 1;
            let at = self.now + self.random.between(1, ticks_max) * TICK;
            self.away.entry(at).or_default().push(*device);
        }
    }

    fn connect(&mut self) {
        while let Some(due) = self.away.first_entry().filter(|entry| *entry.key() <= self.now) {
            for device in due.remove() {
                if self.devices[device as usize].off {
                    continue;
                }
                match self.cluster.place(&mut self.random).map(|index| &mut self.cluster.pods[index]) {
                    Some(pod) if pod.runs(self.now) => pod.gateway.devices.push(device),
                    _ => self.away.entry(self.now + 4 * TICK).or_default().push(device),
                }
            }
        }
    }

    fn autoscale(&mut self) {
        if self.now % 15_000 != 0 {
            return;
        }
        let Some((bounds, history)) = &mut self.autoscaler else { return };
        let connections = self.cluster.pods.iter().map(|pod| pod.gateway.devices.len() as u64).sum();
        let loads: Vec<Load> = self.cluster.pods.iter().filter_map(|pod| pod.said(self.now)).collect();
        let found = upstream::of(loads.iter(), self.store.upstream);
        let told = upstream::reported(connections, found, self.spec.replicas, Some(bounds.target), None);
        let wanted = history.step(bounds, told, self.spec.replicas, self.now).unwrap_or(self.spec.replicas);
        let says = loads.iter().any(|load| load.age <= HEARD_OF && load.upstream.is_some());
        let known = self.now - self.upstream_since > HEARD_OF && (says || self.store.upstream != Upstream::Well);
        let throttles = known && self.upstream != Upstream::Well;
        assert!(!throttles || wanted <= self.spec.replicas, "scaled out while the upstream throttles");
        self.judge.tally.held_without_a_word += u64::from(throttles && !says);
        self.judge.tally.held_beside_idle += u64::from(throttles && loads.iter().any(|load| load.upstream.is_none()));
        self.spec.replicas = wanted;
    }

    fn set_upstream(&mut self, upstream: Upstream) {
        (self.upstream, self.upstream_since) = (upstream, self.now);
        self.away_since = (upstream == Upstream::Away).then(|| self.away_since.unwrap_or(self.now));
    }

    fn something_happens(&mut self) {
        match self.script.story {
            Story::Mixed => {}
            Story::Rollout => return self.one_rollout(),
            Story::AllEnd => return self.all_end(),
            Story::ScaleUp => {
                self.spec.replicas += self.random.between(1, PODS_MAX) as u32;
                return;
            }
            Story::OneStuck => {
                self.spec.replicas += self.random.between(2, PODS_MAX) as u32;
                let until = self.now + STUCK_FOR;
                let refused = self.random.one_in(2);
                let why = if refused { &mut self.cluster.refused_until } else { &mut self.cluster.next_stuck_until };
                *why = until;
                return;
            }
        }
        match self.random.below(if self.script.faults { 15 } else { 9 }) {
            0..=2 => self.user_scales(),
            3 => self.user_changes_the_budget(),
            4 => self.user_rolls_out(),
            5 => self.user_deletes_pods(),
            6 => self.devices_come_or_go(),
            7 => self.upstream_changes(),
            8 => self.authority_is_replaced(),
            9 => self.pod_dies(),
            10..=12 => self.pod_misbehaves(),
            13 => self.node_is_drained(),
            _ => self.new_pods_get_stuck(),
        }
    }

    fn one_rollout(&mut self) {
        self.judge.tally.rollouts += 1;
        self.cluster.template += 1;
        // what there is must fit the time-out, or pods are pressed
        self.spec.drain_timeout = 400_000;
        self.devices.iter_mut().for_each(|device| device.moves = 0);
    }

    fn all_end(&mut self) {
        let devices: usize = self.cluster.pods.iter().map(|pod| pod.gateway.devices.len()).sum();
        let needs = Millis::from(devices as u32) * 1000 / Millis::from(self.spec.per_second);
        self.spec.drain_timeout = (needs / 100 * self.random.between(80, 170)).max(40_000);
        log(self.script.loud, self.now, || format!("all end in {} ms", self.spec.drain_timeout));
        let grace = self.grace();
        for index in 0..self.cluster.pods.len() {
            self.cluster.stop(index, self.now, grace);
        }
    }

    fn user_scales(&mut self) {
        self.spec.replicas = if self.random.one_in(8) { 0 } else { self.random.between(1, PODS_MAX) as u32 };
        log(self.script.loud, self.now, || format!("replicas: {}", self.spec.replicas));
    }

    fn user_changes_the_budget(&mut self) {
        // within the time-out, if nothing goes wrong
        let least = if self.script.faults { 1 } else { PODS_MAX };
        self.spec.per_second = self.random.between(least, 40) as u32;
        self.judge.budget_changed(self.now, self.spec.per_second);
        log(self.script.loud, self.now, || format!("perSecond: {}", self.spec.per_second));
    }

    fn user_rolls_out(&mut self) {
        self.judge.tally.rollouts += 1;
        self.cluster.template += 1;
        log(self.script.loud, self.now, || format!("template: {}", self.cluster.template));
    }

    /// Pods do not trust some of their devices any more; nobody but they knows.
    fn authority_is_replaced(&mut self) {
        let share = self.random.between(1, 5) as u32;
        log(self.script.loud, self.now, || format!("one of {share} devices is not trusted any more"));
        self.judge.tally.authorities += 1;
        for pod in &mut self.cluster.pods {
            let gateway = &mut pod.gateway;
            gateway.distrusted.extend(gateway.devices.iter().filter(|device| **device % share == 0));
        }
    }

    fn user_deletes_pods(&mut self) {
        for _ in 0..self.random.between(1, 3) {
            self.delete_one();
        }
    }

    fn delete_one(&mut self) {
        let alive: Vec<usize> =
            (0..self.cluster.pods.len()).filter(|index| self.cluster.pods[*index].ends.is_none()).collect();
        if !alive.is_empty() {
            let index = alive[self.random.below(alive.len())];
            let grace = self.grace();
            self.cluster.stop(index, self.now, grace);
        }
    }

    fn node_is_drained(&mut self) {
        for _ in 0..2 {
            self.delete_one();
            let wait = self.random.between(1, 30) * TICK;
            self.run_for(wait);
        }
    }

    fn devices_come_or_go(&mut self) {
        let off = self.random.one_in(2);
        let share = self.random.between(2, 5) as u32;
        log(self.script.loud, self.now, || format!("one of {share} devices: off {off}"));
        for device in 0..self.devices.len() as u32 {
            if device % share != 0 || self.devices[device as usize].off == off {
                continue;
            }
            self.devices[device as usize].off = off;
            if off {
                self.cluster.pods.iter_mut().for_each(|pod| pod.gateway.forget(&[device]));
                self.away.values_mut().for_each(|there| there.retain(|there| *there != device));
            } else {
                let at = self.now + self.random.between(1, 10) * TICK;
                self.away.entry(at).or_default().push(device);
            }
        }
    }

    fn upstream_changes(&mut self) {
        let all = [Upstream::Well, Upstream::Throttled, Upstream::Away];
        let upstream = all[self.random.below(3)];
        log(self.script.loud, self.now, || format!("upstream: {upstream:?}"));
        self.set_upstream(upstream);
    }

    fn pod_dies(&mut self) {
        if self.cluster.pods.is_empty() {
            return;
        }
        let index = self.random.below(self.cluster.pods.len());
        let pod = self.cluster.pods.swap_remove(index);
        log(self.script.loud, self.now, || format!("{} dies with {} devices", pod.name, pod.gateway.devices.len()));
        self.judge.tally.lost_to_faults += pod.gateway.devices.len() as u64;
        self.send_back(&pod.gateway.devices, 10);
    }

    fn pod_misbehaves(&mut self) {
        if self.cluster.pods.is_empty() {
            return;
        }
        let until = self.now + self.random.between(1, 90) * 1000;
        let (what, index) = (self.random.below(4), self.random.below(self.cluster.pods.len()));
        let pod = &mut self.cluster.pods[index];
        let names = ["silent", "mute", "lying", "blinking"];
        log(self.script.loud, self.now, || format!("{} is {} until {}", pod.name, names[what], until / 1000));
        match what {
            0 => pod.silent_until = until,
            1 => pod.mute_until = until,
            2 => pod.lies_until = until,
            _ => pod.blinks_until = until,
        }
    }

    fn new_pods_get_stuck(&mut self) {
        let seconds = self.random.between(5, 60);
        let long = if seconds % 8 == 0 { 10 } else { 1 };
        self.cluster.stuck_until = self.now + seconds * long * 1000;
    }
}

/// Excuses those pods that are not empty before they let go whom they must, if they are drained one after the other, the first
/// to be late first, from then on.
fn excuse(ending: &mut [(Millis, &mut SimPod)], from: Millis, per_second: u32, excuse: Excuse) {
    let (mut before, mut too_many) = (0, 0);
    for (place, (late_at, pod)) in ending.iter().enumerate() {
        before += Millis::from(pod.gateway.devices.len() as u32);
        // orders follow one another with gaps
        let needs = (before * 1250).checked_div(Millis::from(per_second)).map(|needs| needs + ORDER_LAG);
        too_many = if needs.is_none_or(|needs| needs > *late_at - from) { place + 1 } else { too_many };
    }
    for (_, pod) in &mut ending[..too_many] {
        pod.excuse = pod.excuse.max(Some(excuse));
    }
}
