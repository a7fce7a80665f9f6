//! A session whose CONNACK 0 is written: telemetry, keep-alive, token life.

use std::time::Duration;

use super::{
    Candidate, Context, InFlight,
    commands::Commands,
    effect::{CloseCause, Effect, Effects, Slot},
    ended::Ended,
    will::LastWill,
};
use crate::{
    codec::{Packet, packet::Publish},
    delivery::Inbound,
    message::{DeviceId, Outcome, QoS, Refusal},
    settings::Limits,
    time::{Millis, Now, UnixSeconds},
};

#[derive(Debug)]
pub(super) struct Live {
    pub(super) identity: DeviceId,
    pub(super) will: Option<Box<LastWill>>,
    pub(super) commands: Commands,
    inbound: Inbound,
    /// Places in the inbound window.
    window: u16,
    /// The connection itself does not read.
    paused: bool,
    /// The last packet, or when reading began again.
    heard: Millis,
    silence_max: Duration,
    token_ends: Option<Millis>,
}

impl Live {
    pub(super) fn new(candidate: &mut Candidate, expires: Option<UnixSeconds>, limits: &Limits, now: Now) -> Self {
        Self {
            identity: candidate.identity.clone(),
            will: candidate.will.take(),
            commands: Commands::new(limits.inflight_max),
            inbound: Inbound::default(),
            window: limits.inflight_max,
            paused: false,
            heard: now.monotonic,
            silence_max: candidate.silence_max,
            token_ends: expires.map(|expires| token_end(expires, limits, now)),
        }
    }

    pub(super) fn publish(
        &mut self,
        cx: &mut Context,
        publish: &Publish<'_>,
        out: &mut Effects<'_>,
    ) -> Result<(), Ended> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(Ended::new(CloseCause::QoS2, "publish of QoS 2"));
        }
        if publish.packet_id.is_some_and(|packet_id| self.inbound.awaits(packet_id)) {
            return repeated(publish);
        }
        let telemetry = cx.pipeline.telemetry(&self.identity, publish, &mut cx.text).map_err(Ended::by_pipeline)?;
        let full = || Ended::violation("publish beyond the window");
        let slot = self.inbound.reserve(publish.packet_id, self.window).ok_or_else(full)?;
        out(Effect::Send { slot, qos: publish.qos, telemetry });
        Ok(())
    }

    /// [MQTT-4.3.2-2] PUBACK once the hub owns the message. What the hub does not take ends the session without one: 3.1.1 has
    /// no other way to say so (contract §8).
    pub(super) fn settle(
        &mut self,
        slot: Slot,
        outcome: &Outcome,
        now: Now,
        out: &mut Effects<'_>,
    ) -> Result<(), Ended> {
        let waited = !self.has_room();
        let known = match outcome {
            Outcome::Accepted => self.inbound.settle(slot, |packet_id| out(Effect::Write(Packet::PubAck(packet_id)))),
            _ => self.inbound.abandon(slot),
        };
        if waited && self.has_room() {
            self.heard = now.monotonic;
        }
        match outcome {
            Outcome::Refused(refusal) | Outcome::Retry(refusal) if known => Err(Ended::by_hub(*refusal)),
            Outcome::Unreachable if known => {
                Err(Ended::new(CloseCause::HubUnreachable, "the hub is away for too long"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn commands_opened(
        &mut self,
        opened: Result<(), Refusal>,
        now: Now,
        out: &mut Effects<'_>,
    ) -> Result<(), Ended> {
        let waited = !self.has_room();
        opened.map_err(Ended::by_hub)?;
        self.commands.opened(out);
        if waited && self.has_room() {
            self.heard = now.monotonic;
        }
        Ok(())
    }

    /// Ends everything that is owed: the Will leaves [MQTT-3.1.2-8], commands go back to the hub.
    pub(super) fn leave(mut self, cx: &mut Context, out: &mut Effects<'_>) {
        if let Some(will) = &self.will {
            will.send(&self.identity, cx, out);
        }
        self.commands.leave(out);
    }

    /// Both windows' back-pressure: a place for a PUBLISH and for a SUBSCRIBE.
    pub(super) fn has_room(&self) -> bool {
        self.inbound.len() < usize::from(self.window) && self.commands.has_room()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.inbound.is_empty()
    }

    pub(super) fn in_flight(&self) -> InFlight {
        InFlight { telemetry: self.inbound.len(), commands: self.commands.in_flight() }
    }

    pub(super) fn heard(&mut self, now: Now) {
        self.heard = now.monotonic;
    }

    pub(super) fn pause(&mut self, paused: bool, now: Now) {
        if std::mem::replace(&mut self.paused, paused) && !paused {
            self.heard = now.monotonic;
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Millis> {
        [self.silence_ends(), self.token_ends].into_iter().flatten().min()
    }

    pub(super) fn is_token_expired(&self, now: Now) -> bool {
        self.token_ends.is_some_and(|end| end <= now.monotonic)
    }

    /// Judged on received packets only, and only while we read: what lies unread in the socket may be the PINGREQ.
    fn silence_ends(&self) -> Option<Millis> {
        (self.has_room() && !self.paused).then(|| self.heard.after(self.silence_max))
    }
}

/// The id of a PUBLISH that waits for its PUBACK. With DUP it is the same message again: its one PUBACK is still to come, and
/// sending it upstream twice would only make a duplicate. Without DUP the id is not free [MQTT-2.3.1-2], and a message that
/// silently replaced another would be lost. (Once the PUBACK is written the id is a new message's, DUP or not [MQTT-4.3.2-2].)
fn repeated(publish: &Publish<'_>) -> Result<(), Ended> {
    if publish.dup { Ok(()) } else { Err(Ended::violation("packet id of an unacknowledged publish")) }
}

/// When a token's connection ends: at `se` and its grace (contract §2.12). A token that was let in by the allowance for clock
/// skew alone lives through that allowance, not zero seconds.
fn token_end(expires: UnixSeconds, limits: &Limits, now: Now) -> Millis {
    let left = |allowance: Duration| {
        expires.0.saturating_add(allowance.as_secs()).checked_sub(now.unix.0).filter(|seconds| *seconds > 0)
    };
    let seconds = left(limits.token_expiry_grace).or_else(|| left(limits.clock_skew_max)).unwrap_or(0);
    now.monotonic.after(Duration::from_secs(seconds))
}
