//! Fleets in a world that goes wrong: a seed is a cluster with its Deployment controller, its load balancer, its devices, users who
//! change their minds, pods that die, lag and lie, and operators that die between any two steps. Virtual time; the judge knows
//! only what devices and pods went through.
//!
//! `SEEDS` says how many fleets; `SEED` runs a single one and tells what happens in it.

#[cfg(test)]
mod cluster;
#[cfg(test)]
mod gateway;
#[cfg(test)]
mod judge;
#[cfg(test)]
mod leader;
#[cfg(test)]
mod random;
#[cfg(test)]
mod world;

use std::{
    panic,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

use judge::Tally;
use world::{Script, Story, World};

const SEEDS_DEFAULT: u64 = 10_000;

/// Seeds that failed once: what a pod that says nothing may let go by itself was not counted; what a pod had let go by itself
/// right before it followed an order was forgotten; a lower budget was expected of pods before anybody who led had written it; what
/// pods let go for want of an upstream was not counted, or not of a pod that was empty for a moment.
const FAILED_ONCE: [u64; 6] = [2372, 10_977, 57_368, 58_791, 300, 155_020];

fn run(seed: u64, script: Script) -> Tally {
    let mut world = World::new(seed, script);
    world.live();
    if script.story == Story::OneStuck {
        world.even_beside_the_stuck();
    }
    world.rest();
    if script.story == Story::ScaleUp {
        world.judge.tally.came_to_the_fullest = world.a_few_come_to_the_fullest() as u64;
    }
    world.judge.tally
}

#[expect(clippy::disallowed_methods, reason = "a test is told by its environment how much to do")]
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number of seeds, not {text:?}")))
}

/// Runs seeds on all cores; panics with the smallest that failed.
fn run_all(seeds: impl Fn(u64) -> u64 + Sync, count: u64, script: Script) -> Tally {
    if let Some(seed) = number("SEED") {
        return run(seed, Script { loud: true, ..script });
    }
    let next = AtomicU64::new(0);
    let failed = AtomicU64::new(u64::MAX);
    let work = || {
        let mut total = Tally::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count || failed.load(Ordering::Relaxed) != u64::MAX {
                return total;
            }
            let seed = seeds(index);
            if let Ok(tally) = panic::catch_unwind(|| run(seed, script)) {
                total.add(&tally);
            } else {
                eprintln!("the failing seed is {seed}: SEED={seed} tells what happens in it");
                failed.fetch_min(seed, Ordering::Relaxed);
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let totals = thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("panics are caught")).collect::<Vec<_>>()
    });
    let failed = failed.load(Ordering::Relaxed);
    assert_eq!(failed, u64::MAX, "the fleet of this seed broke a promise");
    totals.iter().fold(Tally::default(), |mut sum, tally| {
        sum.add(tally);
        sum
    })
}

#[test]
fn fleets_keep_their_promises_whatever_happens() {
    if let Some(seed) = number("SEED") {
        println!("{:#?}", run(seed, Script { loud: true, ..Script::ROUGH }));
        return;
    }
    run_all(|index| FAILED_ONCE[index as usize], FAILED_ONCE.len() as u64, Script::ROUGH);
    let total = run_all(|index| index, number("SEEDS").unwrap_or(SEEDS_DEFAULT), Script::ROUGH);
    println!("{total:#?}");
    total.assert_everything_happened();
}

#[test]
fn without_faults_nobody_is_disconnected_but_in_pace() {
    let total = run_all(|index| index, 1_000, Script::GENTLE);
    assert_eq!(total.killed_with_devices, 0, "{total:#?}");
    assert_eq!(total.removed_with_devices, 0, "{total:#?}");
    assert_eq!((total.by_deadline, total.beyond, total.by_fault), (0, 0, 0), "late although it fits: {total:#?}");
    assert!(total.rests_with_autoscaler > 0, "{total:#?}");
}

#[test]
fn pods_that_all_end_at_once_go_above_the_budget_only_where_they_must() {
    let total = run_all(|index| index, 500, Script::ALL_END);
    assert!(total.beyond > 0 && total.ordered > 0, "{total:#?}");
    assert_eq!((total.by_deadline, total.by_fault), (0, 0), "late although it fits: {total:#?}");
}

#[test]
fn a_rollout_moves_each_device_once() {
    let total = run_all(|index| index, 300, Script::ROLLOUT);
    assert!(total.rollouts > 0 && total.ordered > 0, "{total:#?}");
    assert_eq!(total.moves_in_rollout_most, 1, "{total:#?}");
}

#[test]
fn after_a_scale_up_the_fleet_is_even_within_the_time_that_was_said() {
    let total = run_all(|index| index, 500, Script::SCALE_UP);
    assert!(total.rebalances > 0, "{total:#?}");
    assert_eq!(total.rebalances_failed, 0, "{total:#?}");
    assert!(total.came_to_the_fullest > 500, "{total:#?}");
}

#[test]
fn pods_are_even_beside_one_that_is_not_ready_for_long_and_with_it_when_it_is() {
    let total = run_all(|index| index, 300, Script::ONE_STUCK);
    assert!(total.rebalances > 300, "{total:#?}");
    assert_eq!(total.rebalances_failed, 0, "{total:#?}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(7, Script::ROUGH), run(7, Script::ROUGH));
}
