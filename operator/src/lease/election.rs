//! Who leads: what one replica does next, from what it saw of the Lease and when it saw it. No client, no clock, no chance.
//!
//! ```text
//!  Unknown ──read──► held by another ──unchanged for its duration──► write ──taken──► leading ──renewed──► leading
//!     ▲                    ▲  ▲                                        │                 │
//!     └───── no answer ────┴──┴────────── somebody was faster ◄────────┘    no renewal within the deadline: not leading
//! ```
//!
//! Why two never lead at once: a leader counts its term from the moment it *sent* the renewal, others count from the moment
//! they *saw* the Lease change, which is later; and the term ([`Settings::renew_deadline`]) is shorter than what the others
//! wait ([`Settings::patience`]). Each counts on a clock of its own, and no time in the Lease is compared with any. Every write
//! names the version of the Lease that it replaces.

use std::time::{Duration, Instant};

/// How long things take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who we are: no two processes are the same, not even two in one pod one after the other.
    pub identity: String,
    /// For how long the Lease is held, as it says. Others lead within this after a leader died.
    pub duration: Duration,
    /// Others take over when they have seen no change for so long: shorter, for they do not look all the time.
    pub patience: Duration,
    /// A leader whose renewals fail leads no longer than this.
    pub renew_deadline: Duration,
    /// A leader renews this often.
    pub renew_every: Duration,
    /// The others look this often; also the wait after a failure.
    pub retry: Duration,
    /// How long a request may take.
    pub request_timeout: Duration,
}

/// Longest duration that a Lease is believed to have, whoever wrote it.
const DURATION_MAX: Duration = Duration::from_mins(5);

impl Settings {
    /// In the proportions of 15 s: patience 13 s, deadline 10 s, renewal every 5 s, a look every second, 2 s for a request.
    pub fn new(identity: String, duration: Duration) -> Self {
        Self {
            identity,
            duration,
            patience: patience(duration),
            renew_deadline: duration * 2 / 3,
            renew_every: duration / 3,
            retry: (duration / 15).min(Duration::from_secs(1)),
            request_timeout: duration * 2 / 15,
        }
    }
}

/// How long to wait for a holder that does not renew.
fn patience(duration: Duration) -> Duration {
    duration * 13 / 15
}

/// What the Lease says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; nobody, if it was released.
    pub holder: Option<String>,
    /// For how long it is held without a change.
    pub duration: Duration,
    /// How often the holder changed.
    pub transitions: i64,
    /// Version of the object.
    pub version: String,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing until then.
    Wait(Instant),
    /// Look at the Lease, and tell by [`Election::handle_record`].
    Read,
    /// Write the Lease, and tell by [`Election::handle_written`].
    Write(Write),
}

/// The Lease to write: held by us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// Version that it replaces; absent: there must be none.
    pub over: Option<String>,
    /// How often the holder changed.
    pub transitions: i64,
    /// Whether the holder changes by it.
    pub takes: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It was not done: the Lease is not as it was.
    Conflict,
    /// It may have been done, or not.
    Unknown,
}

/// What one replica knows.
#[derive(Debug)]
pub struct Election {
    settings: Settings,
    seen: Option<Seen>,
    /// What was seen may not be so any more.
    doubtful: bool,
    term: Option<Term>,
    /// Nothing is asked before.
    pause: Option<Instant>,
}

#[derive(Debug)]
struct Seen {
    record: Option<Record>,
    /// When it was looked at last.
    at: Instant,
    /// From then on nobody holds it.
    free_from: Instant,
}

/// The time in which we lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// How often the holder of the Lease changed: grows from leader to leader.
    pub epoch: i64,
    /// When to renew it.
    pub renewal: Instant,
    /// It ends then, unless it is renewed.
    pub until: Instant,
}

impl Election {
    /// Knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, seen: None, doubtful: true, term: None, pause: None }
    }

    /// How long things take.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The term, if we lead.
    pub fn term(&self, now: Instant) -> Option<Term> {
        self.term.filter(|term| now < term.until)
    }

    /// What to do. `chance` from 0 to 1 spreads the looks of many. `first_epoch` is for a Lease that is made anew: above every
    /// one that an earlier Lease may have had.
    pub fn next(&self, now: Instant, chance: f64, first_epoch: i64) -> Action {
        let term = self.term(now);
        if let Some(pause) = self.pause.filter(|pause| now < *pause) {
            // who leads wakes at the end of the term at the latest, to say so
            return Action::Wait(term.map_or(pause, |term| pause.min(term.until)));
        }
        let Some(seen) = self.seen.as_ref().filter(|_| !self.doubtful) else { return Action::Read };
        if let Some(term) = term.filter(|term| now < term.renewal) {
            return Action::Wait(term.renewal);
        }
        if now < seen.free_from {
            let look = seen.at + self.settings.retry.mul_f64(0.8 + 0.4 * chance);
            return if now < look { Action::Wait(look.min(seen.free_from)) } else { Action::Read };
        }
        Action::Write(self.write(seen.record.as_ref(), first_epoch))
    }

    fn write(&self, record: Option<&Record>, first_epoch: i64) -> Write {
        match record {
            None => Write { over: None, transitions: first_epoch, takes: true },
            Some(Record { version, transitions, .. }) => {
                let takes = !self.is_ours(record);
                // one that was put back by hand starts anew
                let next = if takes { transitions.max(&0) + 1 } else { *transitions };
                Write { over: Some(version.clone()), transitions: next, takes }
            }
        }
    }

    fn is_ours(&self, record: Option<&Record>) -> bool {
        record.and_then(|record| record.holder.as_ref()) == Some(&self.settings.identity)
    }

    /// A look at the Lease was answered; `None`: there is none.
    pub fn handle_record(&mut self, record: Option<Record>, now: Instant) {
        (self.doubtful, self.pause) = (false, None);
        let ours = self.is_ours(record.as_ref());
        let epoch = record.as_ref().map(|record| record.transitions);
        // taken from us, by whatever means
        self.term = self.term.filter(|term| ours && epoch == Some(term.epoch));
        let free_from = match (&record, &self.seen) {
            (record, Some(seen)) if *record == seen.record => seen.free_from,
            // that it is gone does not say that its holder knows
            (None, Some(seen)) => seen.free_from,
            (Some(held), _) if held.holder.is_some() && !ours => {
                now + patience(held.duration.min(DURATION_MAX)).max(self.settings.patience)
            }
            (Some(_), _) | (None, None) => now,
        };
        self.seen = Some(Seen { record, at: now, free_from });
    }

    /// A write that was sent at `sent` was taken; the Lease now has `version`.
    pub fn handle_written(&mut self, write: &Write, version: String, sent: Instant, now: Instant) {
        (self.doubtful, self.pause) = (false, None);
        let record = Record {
            holder: Some(self.settings.identity.clone()),
            duration: self.settings.duration,
            transitions: write.transitions,
            version,
        };
        self.seen = Some(Seen { record: Some(record), at: now, free_from: now });
        let Settings { renew_every, renew_deadline, .. } = self.settings;
        self.term = Some(Term { epoch: write.transitions, renewal: sent + renew_every, until: sent + renew_deadline });
    }

    /// A request was not answered, or refused.
    pub fn handle_failure(&mut self, failure: Failure, now: Instant) {
        self.doubtful = true;
        self.pause = Some(
            now + match failure {
                // soon, but never in a circle without a rest
                Failure::Conflict => self.settings.retry / 4,
                Failure::Unknown => self.settings.retry,
            },
        );
    }

    /// Leads no more, and will not again.
    pub fn resign(&mut self) {
        self.term = None;
    }
}
