//! Bytes become headers and frames, frames find their handler, and what a handler refuses ends at its own level.

use super::Endpoint;
use super::connection::{Phase, decode_error};
use super::link::LinkFault;
use crate::Error;
use crate::codec::performative as frames;
use crate::codec::performative::{Attach, Begin, Detach, Disposition, Flow, Transfer};
use crate::codec::value::{List, Malformed};

/// What a frame handler refuses, and what ends for it.
#[derive(Debug)]
pub(super) enum Fault {
    /// One link, by its place.
    Link(u32, Error),
    /// The session of the frame.
    Session(Error),
    /// The connection.
    Connection(Error),
}

pub(super) type Handled = Result<(), Fault>;

impl Fault {
    pub(super) fn session(condition: &'static str, description: &str) -> Self {
        Fault::Session(Error::new(condition, description))
    }

    pub(super) fn connection(condition: &'static str, description: &str) -> Self {
        Fault::Connection(Error::new(condition, description))
    }
}

impl From<Malformed> for Fault {
    /// 2.3: an undecodable body of a session frame ends the session.
    fn from(malformed: Malformed) -> Self {
        Fault::Session(decode_error(malformed))
    }
}

impl From<LinkFault> for Fault {
    fn from(LinkFault(index, error): LinkFault) -> Self {
        Fault::Link(index, error)
    }
}

const HEADER_BYTES: usize = 8;

impl Endpoint {
    /// Whole frames are read where they lie; only the rest of the last one is copied.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.is_live() {
            let step = if self.partial_frame.is_empty() { self.read_whole(bytes) } else { self.read_rest(bytes) };
            match step {
                Ok(rest) => bytes = rest,
                Err(error) => return self.fail(error),
            }
        }
    }

    /// Nothing is left over from before: handles one unit, or keeps what there is of it.
    fn read_whole<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Error> {
        let Some((unit, rest)) = bytes.split_at_checked(self.wanted(bytes)?) else {
            self.partial_frame.extend_from_slice(bytes);
            return Ok(&[]);
        };
        self.handle_unit(unit);
        Ok(rest)
    }

    /// Fills up what was left over; its size is known only from the fourth byte on.
    fn read_rest<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], Error> {
        let missing = self.wanted(&self.partial_frame)? - self.partial_frame.len();
        let (head, rest) = bytes.split_at(missing.min(bytes.len()));
        self.partial_frame.extend_from_slice(head);
        if self.wanted(&self.partial_frame)? == self.partial_frame.len() {
            let unit = std::mem::take(&mut self.partial_frame);
            self.handle_unit(&unit);
            self.partial_frame = reuse(unit);
        }
        Ok(rest)
    }

    /// How many bytes the header or frame that begins here has, as far as these bytes tell; always more than an incomplete one holds.
    fn wanted(&self, bytes: &[u8]) -> Result<usize, Error> {
        if self.awaits_header() { Ok(HEADER_BYTES) } else { self.frame_size(bytes) }
    }

    /// 2.3.1: the size counts itself and is 8 at least; ours is the limit, before OPEN only for the frames of SASL 512.
    fn frame_size(&self, bytes: &[u8]) -> Result<usize, Error> {
        let Some(size) = bytes.first_chunk::<4>().map(|size| u32::from_be_bytes(*size)) else {
            return Ok(HEADER_BYTES);
        };
        let max = match self.phase {
            Phase::SaslFrames { .. } => 512,
            _ => self.config.frame_bytes_max.max(512),
        };
        match size {
            0..8 => Err(Error::new("amqp:connection:framing-error", "frame smaller than its header")),
            _ if size > max => Err(Error::new("amqp:connection:framing-error", "frame larger than max-frame-size")),
            _ => Ok(size as usize),
        }
    }

    /// One complete header or frame.
    fn handle_unit(&mut self, unit: &[u8]) {
        if self.awaits_header() {
            if let Some(header) = unit.first_chunk::<HEADER_BYTES>() {
                self.handle_header(*header);
            }
            return;
        }
        self.counters.frames_in += 1;
        let [_, _, _, _, doff, kind, high, low, rest @ ..] = unit else { return };
        // doff counts words of four bytes from the start; what lies between header and body is ours to ignore
        let Some(body) = usize::from(*doff).checked_sub(2).and_then(|words| rest.get(words * 4..)) else {
            return self.fail(Error::new("amqp:connection:framing-error", "data offset outside the frame"));
        };
        let sasl = matches!(self.phase, Phase::SaslFrames { .. });
        if *kind != u8::from(sasl) {
            return self.fail(Error::new("amqp:connection:framing-error", "unexpected frame type"));
        }
        if sasl {
            return self.handle_sasl(body);
        }
        let channel = u16::from_be_bytes([*high, *low]);
        if channel > self.config.channel_max() {
            return self.fail(Error::new("amqp:connection:framing-error", "channel above channel-max"));
        }
        // an empty body only says that the peer lives
        if !body.is_empty() {
            self.handle_frame(channel, body);
        }
    }

    fn handle_frame(&mut self, channel: u16, body: &[u8]) {
        let handled = match frames::read_body(body) {
            Ok((code, list, payload)) => self.dispatch(channel, code, list, payload),
            Err(malformed) => Err(malformed.into()),
        };
        match handled {
            Ok(()) => {}
            // CLOSE is out: nothing more is written (2.4.3)
            Err(_) if self.is_closing() => self.counters.tolerated += 1,
            Err(Fault::Link(index, error)) => self.fail_link(index, &error),
            Err(Fault::Session(error)) => match self.incoming_session(channel) {
                Some(index) => self.fail_session(index, &error),
                None => self.fail(error),
            },
            Err(Fault::Connection(error)) => self.fail(error),
        }
    }

    fn dispatch(&mut self, channel: u16, code: u64, list: List<'_>, payload: &[u8]) -> Handled {
        match code {
            frames::CLOSE => return self.handle_close(list).map_err(Fault::Connection),
            // (2.4.3) after CLOSE input is discarded; an outcome is still worth having
            _ if self.is_closing() && code != frames::DISPOSITION => return Ok(()),
            frames::OPEN => return self.handle_open(channel, list).map_err(Fault::Connection),
            _ if self.phase != Phase::Open && !self.is_closing() => {
                return Err(Fault::connection("amqp:not-allowed", "the first frame is OPEN"));
            }
            frames::BEGIN => return self.handle_begin(channel, &Begin::read(list).map_err(begin_unreadable)?),
            _ => {}
        }
        let Some(session) = self.incoming_session(channel) else {
            return Err(Fault::connection("amqp:not-allowed", "channel without a session"));
        };
        if code == frames::END {
            let error = frames::read_end(list)?;
            self.handle_end(channel, session, error);
            return Ok(());
        }
        if self.sessions[session as usize].is_discarding() {
            return Ok(());
        }
        match code {
            // (2.5.5) while our END is unanswered only outcomes are still worth having
            _ if self.sessions[session as usize].is_ending() && code != frames::DISPOSITION => Ok(()),
            frames::TRANSFER => self.handle_transfer(session, &Transfer::read(list)?, payload),
            frames::DISPOSITION => self.handle_disposition(session, &Disposition::read(list)?),
            frames::FLOW => self.handle_flow(session, &Flow::read(list)?),
            frames::ATTACH => self.handle_attach(session, &Attach::read(list)?),
            frames::DETACH => self.handle_detach(session, Detach::read(list)?),
            _ => Err(Fault::session("amqp:decode-error", "unknown performative")),
        }
    }

    fn incoming_session(&self, channel: u16) -> Option<u32> {
        self.channels.get(usize::from(channel)).copied().flatten().map(u32::from)
    }
}

/// BEGIN has no session yet that could end for it.
fn begin_unreadable(malformed: Malformed) -> Fault {
    Fault::Connection(decode_error(malformed))
}

/// The buffer of the partial frame is kept for the next one, unless it grew large.
fn reuse(mut buffer: Vec<u8>) -> Vec<u8> {
    const KEPT_BYTES_MAX: usize = 4096;
    if buffer.capacity() > KEPT_BYTES_MAX {
        return Vec::new();
    }
    buffer.clear();
    buffer
}
