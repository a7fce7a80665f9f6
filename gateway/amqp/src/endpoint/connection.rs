//! The connection: header, SASL, OPEN, heartbeats, CLOSE, and what time does to all of it.

use super::{Endpoint, Wait};
use crate::codec::performative as frames;
use crate::codec::performative::Open;
use crate::codec::value::{List, Malformed};
use crate::{Cause, Error, Event, Peer, Sasl};

//  SaslHeader ─► SaslFrames ─┐
//                            ▼
//                         Header ─► Opening ─► Open ─► Closing ─► Closed
//
// Every phase but Open and Closed has a deadline. Closed swallows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Our SASL header is out, theirs is awaited.
    SaslHeader,
    /// MECHANISMS, CHALLENGEs, OUTCOME are awaited.
    SaslFrames {
        init_sent: bool,
        challenges: u8,
    },
    /// Our AMQP header and OPEN are out, their header is awaited.
    Header,
    /// Their OPEN is awaited.
    Opening,
    Open,
    /// Our CLOSE is out, theirs is awaited; before it their header if that has not come.
    Closing {
        header_awaited: bool,
    },
    Closed,
}

const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";
const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";

/// Challenges answered before the peer is given up.
const CHALLENGES_MAX: u8 = 4;

impl Endpoint {
    pub(super) fn start(&mut self) {
        if self.config.sasl == Sasl::None {
            self.start_amqp();
        } else {
            self.output.extend_from_slice(&SASL_HEADER);
            self.enter(Phase::SaslHeader);
        }
    }

    /// (2.2, 2.4.1) OPEN may follow our header at once.
    fn start_amqp(&mut self) {
        self.output.extend_from_slice(&AMQP_HEADER);
        frames::write_open(&mut self.output, &self.config);
        self.enter(Phase::Header);
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.phase_deadline_ms = match phase {
            Phase::Open | Phase::Closed => None,
            _ => Some(self.now_ms.saturating_add(self.config.answer_timeout_ms)),
        };
    }

    pub(super) fn handle_header(&mut self, header: [u8; 8]) {
        match self.phase {
            Phase::SaslHeader if header == SASL_HEADER => {
                self.enter(Phase::SaslFrames { init_sent: false, challenges: 0 });
            }
            Phase::Header if header == AMQP_HEADER => self.enter(Phase::Opening),
            Phase::Closing { .. } if header == AMQP_HEADER => self.phase = Phase::Closing { header_awaited: false },
            // (2.2) it tells what it would have wanted: nothing more is written
            _ => {
                self.output.clear();
                self.closed(Cause::Header(header));
            }
        }
    }

    /// 5.3.1: one performative per frame; anything else ends the connection without a word.
    pub(super) fn handle_sasl(&mut self, body: &[u8]) {
        let Phase::SaslFrames { init_sent, challenges } = self.phase else { return };
        let step = frames::read_body(body).and_then(|(code, list, rest)| match (code, init_sent, rest) {
            (frames::SASL_MECHANISMS, false, []) => Ok(self.sasl_init(&frames::read_sasl_mechanisms(list)?)),
            (frames::SASL_CHALLENGE, true, []) if challenges < CHALLENGES_MAX => {
                frames::write_sasl_response(&mut self.output);
                self.phase = Phase::SaslFrames { init_sent, challenges: challenges + 1 };
                Ok(None)
            }
            (frames::SASL_OUTCOME, true, []) => Ok(self.sasl_outcome(frames::read_sasl_outcome(list)?)),
            _ => Err(Malformed("unexpected SASL frame")),
        });
        match step {
            Ok(None) => {}
            Ok(Some(cause)) => self.closed(cause),
            Err(malformed) => self.closed(violation("amqp:decode-error", malformed.0)),
        }
    }

    fn sasl_init(&mut self, offered: &[&str]) -> Option<Cause> {
        if !offered.contains(&frames::mechanism(&self.config.sasl)) {
            return Some(Cause::Sasl(None));
        }
        frames::write_sasl_init(&mut self.output, &self.config.sasl, &self.config.hostname);
        self.phase = Phase::SaslFrames { init_sent: true, challenges: 0 };
        None
    }

    fn sasl_outcome(&mut self, code: u8) -> Option<Cause> {
        if code != 0 {
            return Some(Cause::Sasl(Some(code)));
        }
        self.start_amqp();
        None
    }

    /// 2.7.1. An error here ends the connection.
    pub(super) fn handle_open(&mut self, channel: u16, list: List<'_>) -> Result<(), Error> {
        if self.phase != Phase::Opening || channel != 0 {
            return Err(Error::new("amqp:not-allowed", "OPEN comes first, once, on channel 0"));
        }
        let open = Open::read(list).map_err(decode_error)?;
        let idle_timeout_ms = u64::from(open.idle_timeout_ms);
        if open.frame_bytes_max < 512 {
            return Err(Error::new("amqp:invalid-field", "max-frame-size under 512"));
        }
        if idle_timeout_ms != 0 && idle_timeout_ms < self.config.peer_idle_min_ms {
            return Err(Error::new("amqp:not-allowed", "idle-time-out too small to serve"));
        }
        self.peer_frame_bytes_max = open.frame_bytes_max;
        self.heartbeat_ms = idle_timeout_ms / 2;
        self.sessions_max = self.sessions_max.min(u32::from(open.channel_max) + 1);
        self.enter(Phase::Open);
        self.events.push_back(Event::Opened(Box::new(Peer {
            container_id: open.container_id.to_owned(),
            frame_bytes_max: open.frame_bytes_max,
            sessions_max: self.sessions_max,
            idle_timeout_ms,
        })));
        self.write_waiting_begins();
        Ok(())
    }

    /// 2.7.9: theirs first is answered; as an answer to ours it is the end.
    pub(super) fn handle_close(&mut self, list: List<'_>) -> Result<(), Error> {
        let error = frames::read_end(list).map_err(decode_error)?;
        if self.is_closing() {
            let cause = if error.is_some() { Cause::Remote(error) } else { Cause::Local };
            self.closed(cause);
        } else {
            frames::write_close(&mut self.output, None);
            self.closed(Cause::Remote(error));
        }
        Ok(())
    }

    pub(super) fn close_connection(&mut self, error: Option<&Error>) {
        match self.phase {
            Phase::Closing { .. } | Phase::Closed => {}
            Phase::Open | Phase::Opening | Phase::Header => {
                self.flush();
                frames::write_close(&mut self.output, error);
                self.enter(Phase::Closing { header_awaited: self.phase == Phase::Header });
            }
            // no OPEN of ours is out, so there is nothing to close
            Phase::SaslHeader | Phase::SaslFrames { .. } => self.closed(Cause::Local),
        }
    }

    /// The peer broke a rule of the connection: CLOSE with the error, and no more reading (2.4.3).
    pub(super) fn fail(&mut self, error: Error) {
        if matches!(self.phase, Phase::Header | Phase::Opening | Phase::Open) {
            frames::write_close(&mut self.output, Some(&error));
        }
        self.closed(Cause::Violation(Box::new(error)));
    }

    pub(super) fn stream_ended(&mut self) {
        let cause = if self.is_closing() { Cause::Local } else { Cause::Eof };
        self.closed(cause);
    }

    /// The end: every delivery, link and session gets its last event, then the connection.
    pub(super) fn closed(&mut self, cause: Cause) {
        if self.phase == Phase::Closed {
            return;
        }
        self.enter(Phase::Closed);
        let sessions: Vec<u32> = self.sessions.iter().map(|(index, _)| index as u32).collect();
        for index in sessions {
            self.drop_session(index, Cause::Carrier);
        }
        self.waits.clear();
        self.dirty.clear();
        self.output_blocked.clear();
        self.partial_frame = Vec::new();
        self.events.push_back(Event::Closed { cause });
    }

    /// A peer that makes us answer and does not read the answers is given up.
    pub(super) fn check_answer_bound(&mut self) {
        if self.answer_bytes > self.config.output_bytes_max && self.is_live() {
            self.counters.output_full += 1;
            self.fail(Error::new("amqp:resource-limit-exceeded", "too many answers wait to be written"));
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.phase != Phase::Closed
    }

    pub(super) fn is_closing(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
    }

    pub(super) fn awaits_header(&self) -> bool {
        matches!(self.phase, Phase::SaslHeader | Phase::Header | Phase::Closing { header_awaited: true })
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        if !self.is_live() {
            return None;
        }
        let heartbeat = (self.phase == Phase::Open && self.heartbeat_ms > 0).then(|| self.heartbeat_at());
        let silence = (self.phase == Phase::Open && self.config.idle_timeout_ms > 0).then(|| self.silence_at());
        let wait = self.waits.front().filter(|_| !self.is_closing()).map(|(deadline, _)| *deadline);
        [heartbeat, silence, wait, self.phase_deadline_ms].into_iter().flatten().min()
    }

    fn heartbeat_at(&self) -> u64 {
        self.sent_at_ms.saturating_add(self.heartbeat_ms)
    }

    fn silence_at(&self) -> u64 {
        self.received_at_ms.saturating_add(self.config.idle_timeout_ms)
    }

    pub(super) fn run_timers(&mut self) {
        if !self.is_live() {
            return;
        }
        if self.phase_deadline_ms.is_some_and(|deadline| deadline <= self.now_ms) {
            self.counters.timeouts += 1;
            return self.closed(Cause::Timeout);
        }
        if self.phase == Phase::Open {
            if self.config.idle_timeout_ms > 0 && self.silence_at() <= self.now_ms {
                self.counters.timeouts += 1;
                let error = Error::new("amqp:resource-limit-exceeded", "nothing came within the idle time-out");
                frames::write_close(&mut self.output, Some(&error));
                return self.closed(Cause::Timeout);
            }
            if self.heartbeat_ms > 0 && self.heartbeat_at() <= self.now_ms {
                // bytes that wait to be written are as good; the moment counts from now either way
                if self.output.is_empty() {
                    frames::frame(&mut self.output, 0, |_| {});
                }
                self.sent_at_ms = self.now_ms;
            }
        }
        // after CLOSE nothing is written any more and one deadline ends it all
        while let Some((deadline, wait)) = self.waits.front().copied().filter(|_| !self.is_closing()) {
            if !self.is_stale(wait) {
                if deadline > self.now_ms {
                    break;
                }
                self.counters.timeouts += 1;
                self.wait_ran_out(wait);
            }
            self.waits.pop_front();
        }
    }

    fn is_stale(&self, wait: Wait) -> bool {
        match wait {
            Wait::Begin(id) => self.session(id).is_none_or(|session| !session.is_beginning()),
            Wait::End(id) => self.session(id).is_none_or(|session| !session.is_ending()),
            Wait::Attach(id) => self.link(id).is_none_or(|link| !link.is_attaching()),
            Wait::Detach(id) => self.link(id).is_none_or(|link| !link.is_detaching()),
        }
    }

    fn wait_ran_out(&mut self, wait: Wait) {
        match wait {
            Wait::Begin(id) => self.fail_session_with(id.index, None, Cause::Timeout),
            Wait::End(id) => self.session_over(id.index, Cause::Timeout),
            Wait::Attach(id) => self.fail_link_with(id.index, None, Cause::Timeout),
            Wait::Detach(id) => self.link_over(id.index, Cause::Timeout),
        }
    }
}

pub(super) fn decode_error(malformed: Malformed) -> Error {
    Error::new("amqp:decode-error", malformed.0)
}

pub(super) fn violation(condition: &'static str, description: &str) -> Cause {
    Cause::Violation(Box::new(Error::new(condition, description)))
}
