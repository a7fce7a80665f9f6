//! Single decisions of the planner: what was seen → the plan, and what is done.

use std::collections::BTreeMap;

use planner::{
    Cause, Decision, Deployment, Drain, DrainOrder, Input, Ledger, Load, Note, Order, Ordered, Pod, Rebalanced, Spec,
    State, plan, upstream::Upstream,
};

const NOW: i64 = 1_000_000;
const EPOCH: i64 = 7;
const MINUTE: i64 = 60_000;

/// A fleet at rest that everything is changed in.
#[derive(Clone)]
struct Fleet {
    spec: Spec,
    deployment: Deployment,
    pods: Vec<Pod>,
    drains: Vec<Drain>,
    rebalanced: Rebalanced,
    upstream: Upstream,
    ledger: Ledger,
}

/// Ready pods `a`, `b`, … with so many devices.
fn fleet(devices: &[u64]) -> Fleet {
    let count = devices.len() as u32;
    let names = ('a'..='z').map(String::from);
    Fleet {
        spec: Spec {
            replicas: count,
            per_second: 10,
            self_per_second: 1.0,
            drain_timeout: 10 * MINUTE,
            skew_max: None,
        },
        deployment: Deployment { replicas: count, running: count, rolling: false, behind: false, refused: false },
        pods: names.zip(devices).map(|(name, devices)| pod(&name, *devices)).collect(),
        drains: Vec::new(),
        rebalanced: Rebalanced::default(),
        upstream: Upstream::Well,
        ledger: Ledger::new(NOW - 10 * MINUTE, &[]),
    }
}

fn pod(name: &str, connections: u64) -> Pod {
    Pod {
        name: name.to_owned(),
        running: true,
        ready: true,
        ready_changed: NOW - 10 * MINUTE,
        ends: None,
        outdated: false,
        deletion_cost: None,
        load: Some(Load { connections, age: 0, upstream: Some(Upstream::Well), drain: None, forsaken_per_second: 0.0 }),
    }
}

fn drain(pod: &str, cause: Cause, state: State) -> Drain {
    Drain {
        pod: pod.to_owned(),
        cause,
        state,
        started_at: NOW - MINUTE,
        deadline: NOW + 9 * MINUTE,
        remaining: 5,
        per_second: 0,
        down_to: 0,
        epoch: EPOCH,
    }
}

impl Fleet {
    fn decide(&self) -> Decision {
        plan(&Input {
            now: NOW,
            epoch: EPOCH,
            spec: self.spec,
            deployment: Some(self.deployment),
            pods: &self.pods,
            drains: &self.drains,
            rebalanced: self.rebalanced,
            upstream: self.upstream,
            ledger: &self.ledger,
        })
    }

    fn wants(mut self, replicas: u32) -> Self {
        self.spec.replicas = replicas;
        self
    }

    fn with(mut self, drain: Drain) -> Self {
        self.drains.push(drain);
        self
    }

    fn pod(mut self, index: usize, change: impl FnOnce(&mut Pod)) -> Self {
        change(&mut self.pods[index]);
        self
    }
}

/// Out of the Service for long enough.
fn left(pod: &mut Pod) {
    (pod.ready, pod.ready_changed) = (false, NOW - MINUTE);
}

fn states(decision: &Decision) -> Vec<(&str, Cause, State, u32)> {
    decision.drains.iter().map(|drain| (drain.pod.as_str(), drain.cause, drain.state, drain.per_second)).collect()
}

fn order(cause: Cause, per_second: u32, leave: bool) -> Order {
    Order::Drain(DrainOrder { cause, per_second, down_to: 0, leave })
}

fn waits(decision: &Decision) -> Option<&str> {
    decision.notes.iter().find_map(|note| match note {
        Note::Waiting { message } => Some(message.as_str()),
        _ => None,
    })
}

#[test]
fn at_rest_nothing_is_planned_ordered_or_written() {
    let decision = fleet(&[5, 9, 7]).decide();
    let nothing = Decision {
        drains: vec![],
        rebalanced: Rebalanced::default(),
        orders: vec![],
        alone: BTreeMap::new(),
        replicas: Some(3),
        deletion_costs: vec![],
        notes: vec![],
        again_in: None,
    };
    assert_eq!(decision, nothing);
}

#[test]
fn the_cheapest_are_to_go_and_nothing_is_ordered_before_that_is_written() {
    let decision = fleet(&[30, 5, 20, 6]).wants(2).decide();
    let expected = [("b", Cause::ScaleIn, State::Leaving, 0), ("d", Cause::ScaleIn, State::Leaving, 0)];
    assert_eq!(states(&decision), expected);
    assert_eq!((decision.orders, decision.replicas), (vec![], Some(4)));
}

#[test]
fn pods_that_do_not_run_go_first_and_those_that_nobody_can_count_last() {
    let seen = fleet(&[30, 5, 20]).pod(0, |pod| pod.running = false).pod(1, |pod| pod.load = None);
    assert_eq!(states(&seen.clone().wants(2).decide())[0].0, "a");
    let names: Vec<_> = seen.wants(1).decide().drains.into_iter().map(|drain| drain.pod).collect();
    assert_eq!(names, ["a", "c"]);
}

#[test]
fn a_victim_leaves_the_service_first_then_lets_devices_go() {
    let leaving = fleet(&[5, 9]).wants(1).with(drain("a", Cause::ScaleIn, State::Leaving));
    let decision = leaving.decide();
    assert_eq!(decision.orders, [("a".to_owned(), order(Cause::ScaleIn, 0, true))]);
    // out of the Service: the share is written, and ordered in the next step
    let decision = leaving.pod(0, left).decide();
    assert_eq!(states(&decision), [("a", Cause::ScaleIn, State::Draining, 10)]);
    assert_eq!(decision.orders, [("a".to_owned(), order(Cause::ScaleIn, 0, true))]);
    let written = Drain { per_second: 10, ..drain("a", Cause::ScaleIn, State::Draining) };
    let decision = fleet(&[5, 9]).wants(1).with(written).pod(0, left).decide();
    assert_eq!(decision.orders, [("a".to_owned(), order(Cause::ScaleIn, 10, true))]);
}

#[test]
fn the_deployment_is_told_only_when_the_pod_is_empty_and_marked() {
    let done = fleet(&[0, 9]).wants(1).with(drain("a", Cause::ScaleIn, State::Done)).pod(0, left);
    let decision = done.decide();
    assert_eq!((decision.deletion_costs, decision.replicas), (vec![("a".to_owned(), Some(-1000))], Some(2)));
    let mut marked = done.pod(0, |pod| pod.deletion_cost = Some(-1000));
    assert_eq!(
        (marked.decide().deletion_costs, marked.decide().replicas),
        (vec![], Some(2)),
        "nobody may have seen it"
    );
    marked.ledger.see([("a", Some(-1000))].into_iter(), NOW - 2000);
    assert_eq!((marked.decide().deletion_costs, marked.decide().replicas), (vec![], Some(1)));
    let mut behind = marked.clone();
    behind.deployment.behind = true;
    assert_eq!(behind.decide().replicas, Some(2));
    let come_back = marked.pod(0, |pod| pod.load.as_mut().unwrap().connections = 1).decide();
    assert_eq!(come_back.replicas, Some(2), "somebody came");
    assert_eq!(come_back.drains[0].state, State::Draining);
}

#[test]
fn what_an_earlier_leader_planned_is_taken_over_before_it_is_acted_upon() {
    let earlier = Drain { epoch: EPOCH - 1, per_second: 4, ..drain("a", Cause::ScaleIn, State::Draining) };
    let decision = fleet(&[5, 9]).wants(1).with(earlier).pod(0, left).decide();
    assert_eq!(decision.orders, []);
    assert_eq!(decision.drains[0].epoch, EPOCH);
}

#[test]
fn a_new_leader_counts_what_the_plan_says_was_handed_out() {
    let mut taken_over = fleet(&[5, 5, 9])
        .wants(1)
        .with(Drain { per_second: 7, ..drain("a", Cause::ScaleIn, State::Draining) })
        .with(drain("b", Cause::ScaleIn, State::Draining))
        .pod(0, left)
        .pod(1, left);
    taken_over.ledger = Ledger::new(NOW - 1000, &taken_over.drains);
    let rates: Vec<u32> = taken_over.decide().drains.iter().map(|drain| drain.per_second).collect();
    assert_eq!(rates, [7, 3]);
    taken_over.ledger = Ledger::new(NOW - MINUTE, &taken_over.drains);
    let rates: Vec<u32> = taken_over.decide().drains.iter().map(|drain| drain.per_second).collect();
    assert_eq!(rates, [5, 5], "the leases are over");
}

#[test]
fn a_share_counts_until_the_pod_confirmed_less_and_a_second_went_by() {
    let less = order(Cause::ScaleIn, 2, true);
    let mut ledger = Ledger::new(0, &[]);
    let check = |ledger: &Ledger, expected: &[(i64, u32)]| {
        for (now, share) in expected {
            assert_eq!(ledger.outstanding("a", *now), *share, "at {now}");
        }
    };
    ledger.sending("a", order(Cause::ScaleIn, 8, true), NOW);
    check(&ledger, &[(NOW, 8), (NOW + 20_999, 8), (NOW + 21_000, 0)]);
    ledger.confirmed("a", NOW + 100);
    check(&ledger, &[(NOW + 16_099, 8), (NOW + 16_100, 0)]);
    ledger.sending("a", less, NOW + 2000);
    check(&ledger, &[(NOW + 2000, 8), (NOW + 16_099, 8), (NOW + 16_100, 2), (NOW + 23_000, 0)]);
    ledger.confirmed("a", NOW + 2100);
    check(&ledger, &[(NOW + 3099, 8), (NOW + 3100, 2), (NOW + 18_099, 2), (NOW + 18_100, 0)]);
}

#[test]
fn demand_comes_back_and_the_youngest_are_undone_first() {
    let old = Drain { started_at: NOW - 5 * MINUTE, ..drain("a", Cause::ScaleIn, State::Draining) };
    let young = Drain { per_second: 3, ..drain("b", Cause::ScaleIn, State::Draining) };
    let seen = fleet(&[5, 9, 9]).with(old).with(young).pod(0, left).pod(1, left);
    let decision = seen.clone().wants(2).decide();
    assert_eq!(decision.drains[0].state, State::Draining);
    // it was never told anything: it can be forgotten at once
    assert_eq!(decision.drains.len(), 2);
    let all = seen.wants(3).decide();
    assert!(all.drains.iter().all(|drain| drain.state == State::Undoing), "{:?}", all.drains);
}

#[test]
fn an_undone_drain_is_forgotten_when_the_pod_knows() {
    let mut undoing = fleet(&[5, 9]).with(drain("a", Cause::ScaleIn, State::Undoing));
    undoing.ledger.sending("a", order(Cause::ScaleIn, 5, true), NOW - 2000);
    undoing.ledger.confirmed("a", NOW - 2000);
    let decision = undoing.decide();
    assert_eq!(decision.orders, [("a".to_owned(), Order::Undrain)]);
    assert_eq!(states(&decision), [("a", Cause::ScaleIn, State::Undoing, 5)]);
    undoing.ledger.sending("a", Order::Undrain, NOW - 1500);
    undoing.ledger.confirmed("a", NOW - 1400);
    assert_eq!(undoing.decide().drains, []);
}

#[test]
fn a_pod_that_follows_an_order_which_nobody_planned_is_undone() {
    let ordered = Ordered { cause: Some(Cause::ScaleIn), epoch: EPOCH - 1, per_second: 0, remaining: 5 };
    let seen = fleet(&[5, 9]).pod(0, |pod| pod.load.as_mut().unwrap().drain = Some(ordered));
    assert_eq!(seen.decide().orders, [("a".to_owned(), Order::Undrain)]);
}

/// `a` was replaced in a rollout and ends in ten minutes.
fn rolling(devices: &[u64]) -> Fleet {
    let mut fleet = fleet(devices).pod(0, |pod| {
        (pod.ready, pod.outdated, pod.ends) = (false, true, Some(NOW + 10 * MINUTE));
    });
    fleet.spec.replicas -= 1;
    fleet.deployment.replicas -= 1;
    fleet.with(Drain { per_second: 10, ..drain("a", Cause::Upgrade, State::Draining) })
}

#[test]
fn in_a_rollout_devices_stay_until_no_old_pod_takes_them() {
    let old_is_there = rolling(&[50, 50, 0]).pod(1, |pod| pod.outdated = true);
    let decision = old_is_there.decide();
    assert_eq!(decision.orders, [("a".to_owned(), order(Cause::Upgrade, 0, true))]);
    assert_eq!(
        waits(&decision),
        Some("devices stay until no pod of the old template takes connections, so that each moves once")
    );
    let decision = rolling(&[50, 50, 0]).decide();
    assert_eq!(decision.orders, [("a".to_owned(), order(Cause::Upgrade, 10, true))]);
}

#[test]
fn a_deadline_comes_before_moving_once() {
    let mut late = rolling(&[5600, 50, 0]).pod(1, |pod| pod.outdated = true);
    late.ledger.sending("a", order(Cause::Upgrade, 0, true), NOW - 4000);
    late.ledger.confirmed("a", NOW - 4000);
    assert_eq!(late.decide().orders, [("a".to_owned(), order(Cause::Upgrade, 10, true))]);
    let too_late = rolling(&[56_000, 50, 0]);
    let message = "56000 devices have 445 s until a has a quarter of its time left and need 5600 s at 10/s: the rest of them goes \
                   as fast as it must; raise reconnects.perSecond or reconnects.drainTimeout (600 s)";
    let expected = Note::DrainTimeoutTooShort { message: message.to_owned() };
    assert!(too_late.decide().notes.contains(&expected), "{:?}", too_late.decide().notes);
}

/// Eight pods with 4050 devices each, told to stop at once with an hour each, at ten devices per second: `passed` ago.
fn all_end(devices: &[u64], passed: i64) -> Fleet {
    let mut fleet = fleet(devices);
    fleet.spec.drain_timeout = 60 * MINUTE;
    for pod in &mut fleet.pods {
        (pod.ready, pod.ends) = (false, Some(NOW - passed + 60 * MINUTE));
    }
    fleet
}

#[test]
fn pods_that_end_are_to_be_empty_before_they_go_whatever_they_are_told() {
    let decision = all_end(&[4050; 8], 0).decide();
    let message = "28350 devices have 2695 s until g has a quarter of its time left and need 2835 s at 10/s: the rest of them goes \
                   as fast as it must; raise reconnects.perSecond or reconnects.drainTimeout (3600 s)";
    let expected = Note::DrainTimeoutTooShort { message: message.to_owned() };
    assert!(decision.notes.contains(&expected), "{:?}", decision.notes);
}

/// The last two of those eight: `a` has ten per second by order, `b` nothing.
fn last_two_follow(devices: [u64; 2], passed: i64) -> Fleet {
    let mut seen = all_end(&devices, passed);
    for (pod, rate) in [("a", 10), ("b", 0)] {
        seen.ledger.sending(pod, order(Cause::Eviction, rate, true), NOW - 4000);
        seen.ledger.confirmed(pod, NOW - 4000);
        seen.drains.push(Drain { per_second: rate, ..drain(pod, Cause::Eviction, State::Draining) });
    }
    seen
}

#[test]
fn what_late_pods_let_go_is_taken_from_what_others_are_told() {
    let told = |fleet: Fleet| {
        let decision = fleet.decide();
        decision.orders.iter().map(|(pod, order)| (pod.clone(), order.per_second())).collect::<Vec<_>>()
    };
    // 4050 in 900 s are five a second that it will not be told
    assert_eq!(told(last_two_follow([1350, 4050], 2_700_000)), [("a".to_owned(), 5)]);
    assert_eq!(told(last_two_follow([1350 + 30, 4050], 2_697_000)), [("a".to_owned(), 5)], "before it begins");
    assert_eq!(told(last_two_follow([1350 + 900, 4050], 2_600_000)), [], "long before");
    let reported = Ordered { cause: Some(Cause::Eviction), epoch: EPOCH, per_second: 7, remaining: 4050 };
    let seen = last_two_follow([1350, 4050], 2_600_000).pod(1, |pod| pod.load.as_mut().unwrap().drain = Some(reported));
    assert_eq!(told(seen), [("a".to_owned(), 3)], "its own time is another");
}

#[test]
fn a_new_leader_waits_until_it_knows_what_pods_that_end_have_left() {
    let free = |load: Option<Load>, since: i64| {
        let ends = |pod: &mut Pod| (pod.ready, pod.ends, pod.load) = (false, Some(NOW + 10 * MINUTE), load);
        let mut seen = fleet(&[50, 50, 9]).wants(1).pod(1, ends);
        seen = seen.with(Drain { per_second: 9, ..drain("a", Cause::ScaleIn, State::Draining) }).pod(0, left);
        seen.ledger = Ledger::new(NOW - since, &[]);
        seen.decide().drains[0].per_second
    };
    assert_eq!(
        (free(None, 9000), free(None, 10_000)),
        (0, 9),
        "one that was never heard of is waited for, not for ever"
    );
    assert!(free(pod("b", 50).load, 2000) > 0);
}

#[test]
fn a_rollout_turns_a_scale_in_back() {
    let seen =
        fleet(&[5, 9, 9]).wants(2).with(drain("a", Cause::ScaleIn, State::Draining)).pod(1, |pod| pod.outdated = true);
    let decision = seen.decide();
    assert_eq!((decision.drains[0].state, decision.replicas), (State::Undoing, Some(3)));
}

#[test]
fn nobody_is_let_go_who_has_nowhere_to_go() {
    let seen = fleet(&[5, 9])
        .wants(1)
        .with(Drain { per_second: 10, ..drain("a", Cause::ScaleIn, State::Draining) })
        .pod(0, left)
        .pod(1, |pod| pod.ready = false);
    let decision = seen.decide();
    assert_eq!(decision.orders, [("a".to_owned(), order(Cause::ScaleIn, 0, true))]);
    assert_eq!(waits(&decision), Some("no other pod is ready: devices would have nowhere to go"));
}

#[test]
fn a_scale_to_zero_lets_all_go_and_says_that_they_have_nowhere_to_go() {
    let both = |state| {
        fleet(&[5, 9])
            .wants(0)
            .with(Drain { per_second: 5, ..drain("a", Cause::ScaleIn, state) })
            .with(Drain { per_second: 5, ..drain("b", Cause::ScaleIn, state) })
            .pod(0, left)
            .pod(1, left)
    };
    let decision = both(State::Draining).decide();
    assert_eq!(decision.orders.iter().map(|(_, order)| order.per_second()).collect::<Vec<_>>(), [5, 5]);
    assert_eq!(waits(&decision), Some("replicas is 0: all devices are let go, and have nowhere to go"));
    assert_eq!(decision.replicas, Some(2));
}

#[test]
fn a_budget_of_zero_lets_nobody_go_and_says_so() {
    let mut seen = fleet(&[5, 9]).wants(1).with(drain("a", Cause::ScaleIn, State::Draining)).pod(0, left);
    seen.spec.per_second = 0;
    let decision = seen.decide();
    assert_eq!(decision.orders, [("a".to_owned(), order(Cause::ScaleIn, 0, true))]);
    assert_eq!(waits(&decision), Some("reconnects.perSecond is 0: nobody may be let go"));
}

#[test]
fn a_silent_pod_is_counted_by_its_last_value_and_gets_no_share() {
    let silent = |pod: &mut Pod| pod.load.as_mut().unwrap().age = MINUTE;
    let seen = fleet(&[0, 9, 9]).wants(2).with(drain("a", Cause::ScaleIn, State::Draining)).pod(0, left).pod(0, silent);
    let decision = seen.decide();
    // what it may let go by itself is counted, not handed out
    assert_eq!(states(&decision), [("a", Cause::ScaleIn, State::Draining, 1)]);
    assert_eq!(decision.orders, [("a".to_owned(), order(Cause::ScaleIn, 0, true))]);
    let late = seen.with(Drain { deadline: NOW, ..drain("b", Cause::ScaleIn, State::Draining) }).wants(1).decide();
    assert_eq!(late.drains[1].state, State::Done, "every drain ends");
}

#[test]
fn pods_that_end_share_the_budget_with_a_reserve_for_those_that_follow_nobody() {
    let ends = |pod: &mut Pod| (pod.ready, pod.ends) = (false, Some(NOW + 10 * MINUTE));
    let decision = fleet(&[50, 50, 9]).pod(0, ends).pod(1, ends).decide();
    let expected = [("a", Cause::Eviction, State::Draining, 5), ("b", Cause::Eviction, State::Draining, 5)];
    assert_eq!(states(&decision), expected);
    let silent = |pod: &mut Pod| pod.load.as_mut().unwrap().age = MINUTE;
    let decision = fleet(&[50, 50, 9]).pod(0, ends).pod(1, ends).pod(0, silent).decide();
    assert_eq!(decision.drains.iter().map(|drain| drain.per_second).collect::<Vec<_>>(), [1, 9]);
}

#[test]
fn what_pods_let_go_for_want_of_an_upstream_is_taken_from_what_others_are_told() {
    let rates = |forsaken: [f64; 2], share: f64| {
        let mut seen = fleet(&[50, 50, 50]).wants(2).pod(2, left);
        seen = seen.with(Drain { per_second: 10, ..drain("c", Cause::ScaleIn, State::Draining) });
        for (pod, per_second) in seen.pods.iter_mut().zip(forsaken) {
            pod.load.as_mut().unwrap().forsaken_per_second = per_second;
        }
        seen.spec.self_per_second = share;
        let decision = seen.decide();
        (decision.orders[0].1.per_second(), decision.alone.into_values().collect::<Vec<_>>())
    };
    assert_eq!(rates([0.0, 0.0], 2.0), (10, vec![]));
    assert_eq!(rates([2.0, 2.0], 2.0), (6, vec![2, 2]));
    assert_eq!(rates([2.0, 0.0], 3.0), (7, vec![3]), "the newest share may be in force already");
    assert_eq!(rates([0.25, 0.25], 0.25), (9, vec![1]), "parts of devices are counted together");
    // an empty one lets go whoever comes
    let mut empty = fleet(&[0, 50, 50]).wants(2).pod(2, left);
    empty.pods[0].load.as_mut().unwrap().forsaken_per_second = 2.0;
    let written = Drain { per_second: 10, ..drain("c", Cause::ScaleIn, State::Draining) };
    assert_eq!(empty.with(written).decide().orders, [("c".to_owned(), order(Cause::ScaleIn, 8, true))]);
    // the one that is drained goes at one pace or the other
    let mut itself = fleet(&[50, 50, 50]).wants(2).pod(2, left);
    itself.pods[2].load.as_mut().unwrap().forsaken_per_second = 2.0;
    let written = Drain { per_second: 10, ..drain("c", Cause::ScaleIn, State::Draining) };
    let decision = itself.with(written).decide();
    assert_eq!(decision.orders, [("c".to_owned(), order(Cause::ScaleIn, 10, true))]);
}

#[test]
fn what_pods_let_go_for_want_of_an_upstream_counts_for_the_second_after_it() {
    let mut seen = fleet(&[50, 50]).wants(1).pod(1, left);
    seen = seen.with(Drain { per_second: 10, ..drain("b", Cause::ScaleIn, State::Draining) });
    seen.ledger.looked(&BTreeMap::from([("a".to_owned(), 4)]), NOW - 2000);
    seen.ledger.looked(&BTreeMap::new(), NOW - 900);
    assert_eq!(seen.decide().orders, [("b".to_owned(), order(Cause::ScaleIn, 6, true))]);
    seen.ledger.looked(&BTreeMap::new(), NOW);
    seen.ledger.looked(&BTreeMap::new(), NOW + 200);
    let later = Input {
        now: NOW + 200,
        epoch: EPOCH,
        spec: seen.spec,
        deployment: Some(seen.deployment),
        pods: &seen.pods,
        drains: &seen.drains,
        rebalanced: seen.rebalanced,
        ledger: &seen.ledger,
        upstream: seen.upstream,
    };
    assert_eq!(plan(&later).orders, [("b".to_owned(), order(Cause::ScaleIn, 10, true))]);
}

#[test]
fn new_pods_are_filled_from_the_fullest() {
    let mut uneven = fleet(&[60, 60, 0]);
    assert_eq!(uneven.decide().drains, [], "nobody asked for it");
    uneven.spec.skew_max = Some(1.2);
    let decision = uneven.decide();
    let level = decision.drains.iter().map(|drain| (drain.pod.as_str(), drain.cause, drain.down_to, drain.remaining));
    // 40 is the mean, 44 half of what is tolerated above it
    assert_eq!(level.collect::<Vec<_>>(), [("a", Cause::Rebalance, 44, 16), ("b", Cause::Rebalance, 44, 16)]);
    for (what, other) in [
        ("a pod is new", uneven.clone().pod(2, |pod| pod.ready_changed = NOW - 5000)),
        ("a pod is silent", uneven.clone().pod(2, |pod| pod.load.as_mut().unwrap().age = MINUTE)),
        ("the upstream throttles", Fleet { upstream: Upstream::Throttled, ..uneven.clone() }),
        ("another pod is to come", uneven.clone().wants(4)),
        ("a rollout is under way", uneven.clone().pod(0, |pod| pod.outdated = true)),
    ] {
        assert!(other.decide().drains.is_empty(), "{what}");
    }
}

#[test]
fn a_fleet_that_is_uneven_is_looked_at_again_although_nothing_changes() {
    let mut uneven = fleet(&[60, 60, 0]).pod(2, |pod| pod.ready_changed = NOW - 5000);
    assert_eq!(uneven.decide().again_in, None, "nobody asked for it");
    uneven.spec.skew_max = Some(1.2);
    let decision = uneven.decide();
    assert_eq!((decision.drains, decision.again_in), (vec![], Some(5000)), "the new pod warms up");
    let mut even = fleet(&[40, 41, 39]);
    even.spec.skew_max = Some(1.2);
    assert_eq!(even.decide().again_in, None);
}

#[test]
fn a_pod_that_is_not_ready_is_waited_for_and_then_left_out() {
    let beside = |not_ready_for: i64| {
        let mut uneven = fleet(&[60, 60, 0, 0]).pod(3, |pod| {
            (pod.ready, pod.running, pod.load, pod.ready_changed) = (false, false, None, NOW - not_ready_for);
        });
        uneven.spec.skew_max = Some(1.2);
        uneven
    };
    let said = |decision: &Decision| decision.notes.clone();
    let waits = beside(119_000).decide();
    assert_eq!((&waits.drains[..], waits.again_in), (&[][..], Some(5000)));
    let message =
        "one pod has 60 devices, the mean is 40: d is not ready; it is waited for until it has not been for 120 s";
    assert_eq!(said(&waits), [Note::RebalanceWaits { message: message.to_owned() }]);
    // 40 is the mean of those that are ready
    let left_out = beside(120_000).decide();
    let moved: Vec<_> = left_out.drains.iter().map(|drain| (drain.pod.as_str(), drain.down_to)).collect();
    assert_eq!(moved, [("a", 44), ("b", 44)]);
    // it is over when those are level, and begins anew when it is ready after all
    let source = |pod| Drain { down_to: 44, ..drain(pod, Cause::Rebalance, State::Draining) };
    let mut level = beside(10 * MINUTE).with(source("a")).with(source("b"));
    for (pod, devices) in level.pods.iter_mut().zip([44, 40, 36]) {
        pod.load.as_mut().unwrap().connections = devices;
    }
    let over = level.clone().decide();
    assert!(over.drains.iter().all(|drain| drain.state == State::Undoing), "{:?}", over.drains);
    assert_eq!(over.rebalanced, Rebalanced { ended_at: Some(NOW), failures: 0 });
    level.drains.clear();
    let come = level.clone().pod(3, |pod| *pod = Pod { ready_changed: NOW - 29_000, ..self::pod("d", 0) });
    assert_eq!(come.decide().drains, [], "it warms up");
    let warm = level.pod(3, |pod| *pod = Pod { ready_changed: NOW - 30_000, ..self::pod("d", 0) });
    assert_eq!(warm.decide().drains.len(), 3);
}

#[test]
fn what_an_uneven_fleet_waits_for_is_said() {
    let said = |fleet: Fleet| {
        let mut notes = fleet.decide().notes.into_iter();
        notes.find_map(|note| if let Note::RebalanceWaits { message } = note { Some(message) } else { None })
    };
    let mut uneven = fleet(&[60, 60, 0]);
    uneven.spec.skew_max = Some(1.2);
    let check = |fleet: Fleet, expected: Option<&str>| assert_eq!(said(fleet).as_deref(), expected);
    check(uneven.clone(), None);
    let silent = |pod: &mut Pod| pod.load.as_mut().unwrap().age = MINUTE;
    let mut fourth = fleet(&[60, 60, 0, 0]).pod(3, silent);
    fourth.spec.skew_max = Some(1.2);
    check(fourth, Some("one pod has 60 devices, the mean is 40: d is ready and cannot be asked"));
    let mut missing = uneven.clone().wants(5);
    missing.deployment.replicas = 5;
    assert_eq!(missing.decide().drains, []);
    check(missing.clone(), Some("one pod has 60 devices, the mean is 40: pods wanted: 5, there: 3"));
    missing.deployment.refused = true;
    assert_eq!(missing.decide().drains.len(), 2, "what cannot be is not waited for");
    check(missing, None);
    check(
        Fleet { upstream: Upstream::Away, ..uneven },
        Some("one pod has 60 devices, the mean is 40: the upstream is throttling or away"),
    );
}

#[test]
fn a_rebalance_ends_when_all_are_level_and_rests_before_the_next() {
    let source = Drain { down_to: 44, ..drain("a", Cause::Rebalance, State::Draining) };
    let mut even = fleet(&[44, 40, 36]).with(source);
    even.spec.skew_max = Some(1.2);
    let decision = even.decide();
    assert_eq!(decision.drains[0].state, State::Undoing);
    assert_eq!(decision.rebalanced, Rebalanced { ended_at: Some(NOW), failures: 0 });
    let mut rests = fleet(&[60, 60, 0]);
    rests.spec.skew_max = Some(1.2);
    for (ended_at, failures, begins) in [(NOW - 59_000, 0, false), (NOW - 60_000, 0, true), (NOW - 60_000, 3, false)] {
        rests.rebalanced = Rebalanced { ended_at: Some(ended_at), failures };
        assert_eq!(!rests.decide().drains.is_empty(), begins, "{ended_at} {failures}");
    }
}

#[test]
fn a_rebalance_that_does_not_help_is_said_and_tried_more_rarely() {
    let source = Drain { down_to: 44, deadline: NOW, ..drain("a", Cause::Rebalance, State::Draining) };
    let mut sticky = fleet(&[60, 60, 0]).with(source);
    sticky.spec.skew_max = Some(1.2);
    let decision = sticky.decide();
    assert_eq!(decision.rebalanced, Rebalanced { ended_at: Some(NOW), failures: 1 });
}

#[test]
fn fewer_pods_are_asked_for_than_exist_yet_and_no_pod_has_to_go() {
    let mut seen = fleet(&[5, 9]).wants(2);
    (seen.deployment.replicas, seen.deployment.running) = (5, 2);
    let decision = seen.decide();
    assert_eq!((decision.replicas, decision.drains), (Some(2), vec![]));
}

#[test]
fn without_a_deployment_nothing_is_told() {
    let fleet = fleet(&[]);
    let input = Input {
        now: NOW,
        epoch: EPOCH,
        spec: fleet.spec,
        deployment: None,
        pods: &[],
        drains: &[],
        rebalanced: fleet.rebalanced,
        upstream: fleet.upstream,
        ledger: &fleet.ledger,
    };
    assert_eq!(plan(&input).replicas, None);
}
