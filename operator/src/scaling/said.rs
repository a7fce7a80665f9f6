//! The planner's decision in the words of the API, and back.

use crds::status::{Drain, DrainCause, DrainState, LastRebalance};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use planner::{Cause, Millis, Rebalanced, State};

pub(super) fn drain(drain: &planner::Drain) -> Drain {
    Drain {
        pod: drain.pod.clone(),
        cause: cause(drain.cause),
        state: state(drain.state),
        started_at: time(drain.started_at),
        deadline: time(drain.deadline),
        remaining: drain.remaining.cast_signed(),
        rate_per_second: i64::from(drain.per_second),
        down_to: drain.down_to.cast_signed(),
        epoch: drain.epoch,
    }
}

pub(super) fn read_drain(drain: &Drain) -> planner::Drain {
    planner::Drain {
        pod: drain.pod.clone(),
        cause: read_cause(drain.cause),
        state: match drain.state {
            DrainState::Leaving => State::Leaving,
            DrainState::Draining => State::Draining,
            DrainState::Done => State::Done,
            DrainState::Undoing => State::Undoing,
        },
        started_at: drain.started_at.0.as_millisecond(),
        deadline: drain.deadline.0.as_millisecond(),
        remaining: u64::try_from(drain.remaining).unwrap_or(0),
        per_second: u32::try_from(drain.rate_per_second).unwrap_or(0),
        down_to: u64::try_from(drain.down_to).unwrap_or(0),
        epoch: drain.epoch,
    }
}

pub(super) fn rebalanced(rebalanced: Rebalanced) -> Option<LastRebalance> {
    let failures = i32::try_from(rebalanced.failures).unwrap_or(i32::MAX);
    rebalanced.ended_at.map(|ended_at| LastRebalance { ended_at: time(ended_at), failures })
}

pub(super) fn read_rebalanced(last: &LastRebalance) -> Rebalanced {
    Rebalanced {
        ended_at: Some(last.ended_at.0.as_millisecond()),
        failures: u32::try_from(last.failures).unwrap_or(0),
    }
}

/// The API's word for a cause; orders use the same.
pub(super) fn cause(cause: Cause) -> DrainCause {
    match cause {
        Cause::Eviction => DrainCause::Eviction,
        Cause::Upgrade => DrainCause::Upgrade,
        Cause::ScaleIn => DrainCause::ScaleIn,
        Cause::CertificateAuthority => DrainCause::CertificateAuthority,
        Cause::Rebalance => DrainCause::Rebalance,
    }
}

pub(super) fn read_cause(cause: DrainCause) -> Cause {
    match cause {
        DrainCause::Eviction => Cause::Eviction,
        DrainCause::Upgrade => Cause::Upgrade,
        DrainCause::ScaleIn => Cause::ScaleIn,
        DrainCause::CertificateAuthority => Cause::CertificateAuthority,
        DrainCause::Rebalance => Cause::Rebalance,
    }
}

fn state(state: State) -> DrainState {
    match state {
        State::Leaving => DrainState::Leaving,
        State::Draining => DrainState::Draining,
        State::Done => DrainState::Done,
        State::Undoing => DrainState::Undoing,
    }
}

/// In whole seconds, as they are written.
fn time(time: Millis) -> Time {
    Time(Timestamp::from_second(time.div_euclid(1000)).unwrap_or_default())
}
