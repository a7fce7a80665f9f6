//! What can go wrong in a reconcile, by what helps: waiting, asking the user, or starting anew.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// The step that failed; a label of `operator_reconcile_errors_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Looking.
    Observe,
    /// Writing.
    Apply,
    /// Writing `/status`.
    Status,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Observe => "observe",
            Self::Apply => "apply",
            Self::Status => "status",
        })
    }
}

/// What kind of failure it is: decides when to try again, and who must act.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Somebody else wrote first: look again at once.
    Conflict,
    /// The API server does not answer, or says it is busy: wait, longer each time.
    Unavailable,
    /// It answers that this one request fails, for a webhook that does not work: others may pass; wait, longer each time.
    Failing,
    /// We may not: the operator's RBAC must change.
    Forbidden,
    /// What we wrote is not taken: the spec, or the cluster, must change.
    #[default]
    Refused,
    /// The namespace or an API is going away: there is nothing to do but to see whether it came back.
    Gone,
    /// This replica does not lead: another does it.
    NotLeader,
}

/// A reconcile that did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step} {object}: {message}")]
pub struct ReconcileError {
    /// Where.
    pub step: Step,
    /// What kind.
    pub kind: Kind,
    /// `Kind name` of the object it was about.
    pub object: String,
    /// What the API server said.
    pub message: String,
}

impl ReconcileError {
    /// From what kube was answered, or was not.
    pub fn of(step: Step, object: String, error: &kube::Error) -> Self {
        let (kind, message) = match error {
            kube::Error::Api(status) => {
                (Kind::of_answer(status.code, &status.reason, &status.message), status.message.clone())
            }
            other => (Kind::Unavailable, other.to_string()),
        };
        Self { step, kind, object, message }
    }
}

/// First wait after a failure.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
/// Longest wait after failures that pass by themselves.
const BACKOFF_MAX: Duration = Duration::from_mins(2);
/// Wait for somebody to change something that we do not watch.
const PATIENCE: Duration = Duration::from_mins(5);
/// What went may be back although no watch told of it.
const GONE_RECHECK: Duration = Duration::from_mins(10);
/// What passes by itself most of the time is told after so many failures in a row.
const TOLD_AFTER: u32 = 3;

impl Kind {
    /// From the code, reason and message of an answer of the API server.
    pub fn of_answer(code: u16, reason: &str, message: &str) -> Self {
        match (code, reason) {
            (403, _) if message.contains("is being terminated") => Self::Gone,
            (409, reason) if reason != "AlreadyExists" => Self::Conflict,
            (401 | 403, _) => Self::Forbidden,
            (404 | 410, _) => Self::Gone,
            (400 | 405 | 409 | 413 | 415 | 422, _) => Self::Refused,
            (500.., _) => Self::Failing,
            _ => Self::Unavailable,
        }
    }

    /// Whether it is about one object alone: others are written nevertheless.
    pub fn is_of_one(self) -> bool {
        matches!(self, Self::Refused | Self::Forbidden | Self::Failing)
    }

    /// Whether a user should know, so many failures in a row before it: what passes by itself is told once it does not.
    pub fn is_told(self, failures: u32) -> bool {
        match self {
            Self::Refused | Self::Forbidden | Self::Failing => true,
            Self::Unavailable => failures >= TOLD_AFTER,
            Self::Conflict | Self::Gone | Self::NotLeader => false,
        }
    }

    /// For a condition: one word.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Conflict => "Conflict",
            Self::Unavailable => "ApiUnavailable",
            Self::Failing => "ApiFailing",
            Self::Forbidden => "Forbidden",
            Self::Refused => "Refused",
            Self::Gone => "Gone",
            Self::NotLeader => "NotLeader",
        }
    }

    /// What a user can do about it, where the API server's words do not say it.
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Self::Failing => Some(
                "see that the API server and the admission webhooks that it asks work (`kubectl get \
                 validatingwebhookconfigurations,mutatingwebhookconfigurations`); it is tried again by itself",
            ),
            Self::Unavailable => {
                Some("see that the API server works and is not overloaded; it is tried again by itself")
            }
            Self::Forbidden => Some(
                "if a quota or a policy says so, change it; if the operator's role lacks the right, upgrade its chart; it is \
                 tried again by itself",
            ),
            Self::Refused | Self::Conflict | Self::Gone | Self::NotLeader => None,
        }
    }

    /// How long to wait before the next try, after so many failures in a row; `chance` from 0 to 1 spreads those of many.
    pub fn retry_after(self, failures: u32, chance: f64) -> Option<Duration> {
        match self {
            Self::Conflict if failures <= 3 => Some(Duration::from_millis(100).mul_f64(1.0 + chance)),
            Self::Conflict | Self::Unavailable | Self::Failing => Some(backoff(failures, chance)),
            Self::Forbidden | Self::Refused => Some(PATIENCE.mul_f64(0.8 + 0.4 * chance)),
            Self::Gone => Some(GONE_RECHECK.mul_f64(0.8 + 0.4 * chance)),
            Self::NotLeader => None,
        }
    }
}

/// Doubles from [`BACKOFF_MIN`] to [`BACKOFF_MAX`], half of it by chance.
pub fn backoff(failures: u32, chance: f64) -> Duration {
    let doubled = BACKOFF_MIN.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1).min(16)));
    doubled.min(BACKOFF_MAX).mul_f64(0.5 + 0.5 * chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_apart_by_what_helps() {
        for (code, reason, kind) in [
            (409, "Conflict", Kind::Conflict),
            (409, "AlreadyExists", Kind::Refused),
            (403, "Forbidden", Kind::Forbidden),
            (401, "Unauthorized", Kind::Forbidden),
            (404, "NotFound", Kind::Gone),
            (410, "Expired", Kind::Gone),
            (422, "Invalid", Kind::Refused),
            (400, "BadRequest", Kind::Refused),
            (429, "TooManyRequests", Kind::Unavailable),
            (500, "InternalError", Kind::Failing),
            (503, "ServiceUnavailable", Kind::Failing),
            (504, "Timeout", Kind::Failing),
        ] {
            assert_eq!(Kind::of_answer(code, reason, ""), kind, "{code} {reason}");
        }
    }

    #[test]
    fn a_namespace_that_ends_is_no_lack_of_rights() {
        let message = "unable to create new content in namespace a because it is being terminated";
        assert_eq!(Kind::of_answer(403, "Forbidden", message), Kind::Gone);
    }

    #[test]
    fn waits_grow_to_their_bound_and_conflicts_are_quick() {
        assert_eq!(Kind::Unavailable.retry_after(1, 1.0), Some(Duration::from_secs(1)));
        assert_eq!(Kind::Unavailable.retry_after(4, 1.0), Some(Duration::from_secs(8)));
        assert_eq!(Kind::Unavailable.retry_after(4, 0.0), Some(Duration::from_secs(4)));
        assert_eq!(Kind::Unavailable.retry_after(u32::MAX, 1.0), Some(BACKOFF_MAX));
        assert_eq!(Kind::Conflict.retry_after(1, 0.0), Some(Duration::from_millis(100)));
        assert_eq!(Kind::Conflict.retry_after(4, 1.0), Some(Duration::from_secs(8)));
        assert_eq!(Kind::Failing.retry_after(4, 1.0), Some(Duration::from_secs(8)));
        assert_eq!(Kind::Gone.retry_after(1, 0.5), Some(GONE_RECHECK));
        assert_eq!(Kind::NotLeader.retry_after(1, 0.5), None);
    }

    #[test]
    fn users_are_told_of_what_does_not_pass_by_itself_and_what_to_do() {
        for (kind, failures, told) in [
            (Kind::Refused, 0, true),
            (Kind::Forbidden, 0, true),
            (Kind::Failing, 0, true),
            (Kind::Unavailable, TOLD_AFTER - 1, false),
            (Kind::Unavailable, TOLD_AFTER, true),
            (Kind::Conflict, u32::MAX, false),
            (Kind::Gone, u32::MAX, false),
            (Kind::NotLeader, u32::MAX, false),
        ] {
            assert_eq!(kind.is_told(failures), told, "{kind:?} {failures}");
            assert!(!kind.is_of_one() || kind.is_told(0), "{kind:?}: what holds back one object alone is told");
            assert!(!told || kind == Kind::Refused || kind.advice().is_some(), "{kind:?}");
        }
        assert!(Kind::Failing.is_of_one() && !Kind::Unavailable.is_of_one() && !Kind::Gone.is_of_one());
    }
}
