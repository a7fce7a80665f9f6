//! Sessions in a world that goes wrong: a seed is a fleet of devices, a hub that answers late, twice, wrongly or not at all, and
//! a clock that jumps. Whatever happens, what the sessions promise holds; the judge knows only what went in and what came out.

#[cfg(test)]
mod conversation;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod judge;
#[cfg(test)]
mod random;

use fleet::Fleet;
use judge::Tally;

const SEEDS: std::ops::Range<u64> = 0..240;
const STEPS: u32 = 15_000;

/// Names the seed if its run panics.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the failing seed is {}", self.0);
        }
    }
}

fn run(seed: u64) -> Tally {
    let named = Named(seed);
    let mut fleet = Fleet::new(seed);
    for _ in 0..STEPS {
        fleet.step();
    }
    let tally = fleet.finish();
    drop(named);
    tally
}

#[test]
fn sessions_keep_their_promises_whatever_happens() {
    let mut total = Tally::default();
    for seed in SEEDS {
        total.add(&run(seed));
    }
    println!("{total:#?}");
    total.assert_everything_happened();
}

#[test]
fn the_same_seed_is_the_same_run() {
    assert_eq!(run(7), run(7));
}
