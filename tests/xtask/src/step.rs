//! Progress for people: each long step says that it begins, what it is doing and how long it took.

use std::time::Instant;

/// Runs `work` as one named step, printing its begin and its end with the seconds it took.
pub fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    eprintln!("▸ {name}");
    let begun = Instant::now();
    let result = work();
    let seconds = begun.elapsed().as_secs_f32();
    match &result {
        Ok(_) => eprintln!("✓ {name} ({seconds:.1} s)"),
        Err(error) => eprintln!("✗ {name} ({seconds:.1} s): {error:#}"),
    }
    result
}

/// One line of detail below a step.
pub fn say(text: &str) {
    eprintln!("  {text}");
}
