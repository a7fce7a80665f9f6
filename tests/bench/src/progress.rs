//! What is done and how long the rest will take, on stderr.

use std::time::Instant;

/// Expected seconds of work, done and to be done.
pub(crate) struct Progress {
    begun: Instant,
    done_s: f64,
    left_s: f64,
}

impl Progress {
    pub(crate) fn new(expected_s: f64) -> Self {
        let this = Self { begun: Instant::now(), done_s: 0.0, left_s: expected_s };
        this.say("begin");
        this
    }

    /// More to do than was expected.
    pub(crate) fn add(&mut self, expected_s: f64) {
        self.left_s += expected_s;
    }

    /// Work of `expected_s` is done.
    pub(crate) fn step(&mut self, expected_s: f64, what: &str) {
        self.done_s += expected_s;
        self.left_s = (self.left_s - expected_s).max(0.0);
        self.say(what);
    }

    pub(crate) fn say(&self, what: &str) {
        eprintln!(
            "▸ {:>5} left  {what}",
            minutes(left_s(self.begun.elapsed().as_secs_f64(), self.done_s, self.left_s))
        );
    }
}

/// Seconds left, if the rest differs from what was expected as the part that is done did.
fn left_s(took_s: f64, done_s: f64, left_s: f64) -> f64 {
    if done_s > 0.0 { left_s * took_s / done_s } else { left_s }
}

fn minutes(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_takes_as_much_longer_as_the_part_that_is_done() {
        assert!((left_s(0.0, 0.0, 60.0) - 60.0).abs() < f64::EPSILON);
        assert!((left_s(20.0, 10.0, 60.0) - 120.0).abs() < f64::EPSILON);
        assert_eq!(minutes(125.4), "2:05");
    }
}
