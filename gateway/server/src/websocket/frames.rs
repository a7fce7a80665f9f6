//! WebSocket frames of a client (RFC 6455 5): unmasked as they come, in any split; payload is a stream of MQTT bytes.

use crate::metrics::TransportFault;

/// What [`Frames::open`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbound {
    /// Bytes of the input that are done with.
    pub used: usize,
    /// The client sent a Close frame (answered already) and nothing after it counts.
    pub peer_closed: bool,
}

/// RFC 6455 7.4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum CloseCode {
    /// The purpose is fulfilled.
    Normal = 1000,
    /// This side goes away.
    GoingAway = 1001,
    /// A frame against the protocol.
    Protocol = 1002,
    /// A kind of data that is not taken.
    Unsupported = 1003,
    /// Against a rule of this side.
    Policy = 1008,
    /// Too big to process.
    TooBig = 1009,
}

/// Where the decoder stands: between frames, or inside the payload of one.
#[derive(Debug, Default)]
pub struct Frames {
    /// Payload bytes of the current data frame still to come.
    remaining: u64,
    mask: [u8; 4],
    /// Which byte of the mask is next.
    phase: u8,
    /// A data frame without FIN came; continuation frames follow.
    fragmented: bool,
    /// Our Close frame is written.
    closed: bool,
}

const OPCODE_CONTINUATION: u8 = 0x0;
const OPCODE_TEXT: u8 = 0x1;
const OPCODE_BINARY: u8 = 0x2;
const OPCODE_CLOSE: u8 = 0x8;
const OPCODE_PING: u8 = 0x9;
const OPCODE_PONG: u8 = 0xA;
const FIN: u8 = 0x80;

/// Head of one frame.
#[derive(Debug, Clone, Copy)]
struct Head {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Bytes of the head itself.
    bytes: usize,
    payload_bytes: u64,
}

impl Frames {
    /// Takes what it can of `input`: data goes to `payload`, answers to control frames go to `reply`.
    ///
    /// On an error a Close frame with the right code is in `reply`.
    pub fn open(
        &mut self,
        input: &mut [u8],
        frame_bytes_max: u64,
        payload: &mut Vec<u8>,
        reply: &mut Vec<u8>,
    ) -> Result<Inbound, TransportFault> {
        let mut used = 0;
        loop {
            used += self.take_payload(&mut input[used..], payload);
            let head = match self.remaining {
                0 => self.head(&input[used..], frame_bytes_max).map_err(|code| self.refuse(code, reply))?,
                _ => None,
            };
            let Some(head) = head else { return Ok(Inbound { used, peer_closed: false }) };
            if head.opcode < OPCODE_CLOSE {
                self.begin(head);
                used += head.bytes;
                continue;
            }
            let end = used + head.bytes + head.payload_bytes as usize;
            let Some(control) = input.get_mut(used + head.bytes..end) else {
                return Ok(Inbound { used, peer_closed: false });
            };
            unmask(control, head.mask, 0);
            used = end;
            match head.opcode {
                OPCODE_PING => append_frame(OPCODE_PONG, control, reply),
                OPCODE_CLOSE => {
                    self.closed = true;
                    append_frame(OPCODE_CLOSE, control.get(..2).unwrap_or_default(), reply);
                    return Ok(Inbound { used, peer_closed: true });
                }
                _ => {}
            }
        }
    }

    /// Whether our Close frame is written.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    fn begin(&mut self, head: Head) {
        (self.remaining, self.mask, self.phase, self.fragmented) = (head.payload_bytes, head.mask, 0, !head.fin);
    }

    fn refuse(&mut self, code: CloseCode, reply: &mut Vec<u8>) -> TransportFault {
        self.closed = true;
        append_close(code, reply);
        match code {
            CloseCode::Unsupported => TransportFault::WebSocketText,
            CloseCode::TooBig => TransportFault::WebSocketTooLarge,
            _ => TransportFault::WebSocketFrame,
        }
    }

    /// Moves what is there of the current frame's payload.
    fn take_payload(&mut self, input: &mut [u8], payload: &mut Vec<u8>) -> usize {
        let take = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(input.len());
        let input = &mut input[..take];
        unmask(input, self.mask, self.phase);
        payload.extend_from_slice(input);
        self.phase = ((usize::from(self.phase) + take) % 4) as u8;
        self.remaining -= take as u64;
        take
    }

    /// The head at the front of `input`, if it is whole; checked as far as it goes.
    fn head(&self, input: &[u8], frame_bytes_max: u64) -> Result<Option<Head>, CloseCode> {
        let &[first, second, ..] = input else { return Ok(None) };
        let (fin, opcode) = (first & FIN != 0, first & 0x0F);
        self.check_opcode(first, opcode, fin, second & 0x7F)?;
        // 5.1: a server closes on a frame that is not masked
        if second & 0x80 == 0 {
            return Err(CloseCode::Protocol);
        }
        let (length_end, payload_bytes) = match second & 0x7F {
            126 => match input.get(2..4) {
                Some(length) => (4, u64::from(u16::from_be_bytes([length[0], length[1]]))),
                None => return Ok(None),
            },
            127 => match input.get(2..10) {
                Some(length) => (10, u64::from_be_bytes(length.try_into().expect("the range has 8 bytes"))),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        if payload_bytes > frame_bytes_max {
            return Err(CloseCode::TooBig);
        }
        let mask = input.get(length_end..length_end + 4);
        Ok(mask.map(|mask| Head {
            fin,
            opcode,
            mask: mask.try_into().expect("the range has 4 bytes"),
            bytes: length_end + 4,
            payload_bytes,
        }))
    }

    fn check_opcode(&self, first: u8, opcode: u8, fin: bool, length: u8) -> Result<(), CloseCode> {
        // 5.2: reserved bits without an extension
        if first & 0x70 != 0 {
            return Err(CloseCode::Protocol);
        }
        match opcode {
            OPCODE_BINARY if !self.fragmented => Ok(()),
            OPCODE_CONTINUATION if self.fragmented => Ok(()),
            // [MQTT-6.0.0-1] control packets travel in binary data frames
            OPCODE_TEXT => Err(CloseCode::Unsupported),
            // 5.5: control frames are whole and short
            OPCODE_CLOSE | OPCODE_PING | OPCODE_PONG if fin && length <= 125 => Ok(()),
            _ => Err(CloseCode::Protocol),
        }
    }
}

/// Appends `payload` as one binary frame.
pub fn append_binary(payload: &[u8], out: &mut Vec<u8>) {
    append_frame(OPCODE_BINARY, payload, out);
}

/// Appends a Close frame.
pub fn append_close(code: CloseCode, out: &mut Vec<u8>) {
    append_frame(OPCODE_CLOSE, &(code as u16).to_be_bytes(), out);
}

/// 5.1: a server never masks.
fn append_frame(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(FIN | opcode);
    match payload.len() {
        short @ 0..=125 => out.push(short as u8),
        medium @ 126..=0xFFFF => {
            out.push(126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

fn unmask(bytes: &mut [u8], mask: [u8; 4], phase: u8) {
    let phase = usize::from(phase);
    let mask: [u8; 4] = std::array::from_fn(|i| mask[(i + phase) % 4]);
    let (quads, rest) = bytes.as_chunks_mut::<4>();
    for quad in quads {
        *quad = (u32::from_ne_bytes(*quad) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::{CloseCode, FIN, Frames, append_close};
    use crate::metrics::TransportFault;

    const MASK: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    const MAX: u64 = 100_000;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            short @ 0..=125 => out.push(0x80 | short as u8),
            medium @ 126..=0xFFFF => {
                out.push(0xFE);
                out.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                out.push(0xFF);
                out.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(&MASK);
        out.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        out
    }

    struct Seen {
        payload: Vec<u8>,
        reply: Vec<u8>,
        end: Result<bool, TransportFault>,
    }

    /// Feeds `bytes` in pieces of `step`, keeping what is not used, as a connection does.
    fn feed(bytes: &[u8], step: usize) -> Seen {
        let mut frames = Frames::default();
        let (mut seen, mut held) = (Seen { payload: Vec::new(), reply: Vec::new(), end: Ok(false) }, Vec::new());
        for piece in bytes.chunks(step) {
            held.extend_from_slice(piece);
            match frames.open(&mut held, MAX, &mut seen.payload, &mut seen.reply) {
                Ok(inbound) => {
                    drop(held.drain(..inbound.used));
                    seen.end = Ok(inbound.peer_closed);
                    if inbound.peer_closed {
                        break;
                    }
                }
                Err(fault) => {
                    seen.end = Err(fault);
                    break;
                }
            }
        }
        seen
    }

    #[test]
    fn mqtt_6_0_0_2_payload_is_the_same_in_any_split_with_control_frames_between_fragments() {
        let long = vec![7_u8; 70_000];
        let bytes = [
            frame(FIN | 2, b"one"),
            frame(2, b"tw"),
            frame(FIN | 9, b"ping"),
            frame(0, b""),
            frame(FIN, b"o"),
            frame(FIN | 2, &[1; 200]),
            frame(FIN | 2, &long),
            frame(0x8A, b""),
        ]
        .concat();
        let expected = [b"onetwo".as_slice(), &[1; 200], &long].concat();
        for step in [1, 2, 3, 7, 64, 1000, bytes.len()] {
            let seen = feed(&bytes, step);
            assert_eq!(seen.payload, expected, "step {step}");
            assert_eq!(seen.reply, b"\x8A\x04ping", "step {step}");
            assert_eq!(seen.end, Ok(false));
        }
    }

    #[test]
    fn a_close_frame_is_answered_with_its_code() {
        let seen = feed(&[frame(FIN | 8, b"\x03\xE8bye"), frame(FIN | 2, b"late")].concat(), 1000);
        assert_eq!((seen.reply.as_slice(), seen.end), (b"\x88\x02\x03\xE8".as_slice(), Ok(true)));
        assert!(seen.payload.is_empty());
    }

    #[test]
    fn mqtt_6_0_0_1_a_frame_against_the_protocol_closes_with_the_right_code() {
        let check = |bytes: Vec<u8>, code: CloseCode, fault: TransportFault| {
            let seen = feed(&bytes, 1000);
            let mut close = Vec::new();
            append_close(code, &mut close);
            assert_eq!((seen.end, seen.reply), (Err(fault), close), "{bytes:x?}");
        };
        let (protocol, frame_fault) = (CloseCode::Protocol, TransportFault::WebSocketFrame);
        check(frame(FIN | 1, b"text"), CloseCode::Unsupported, TransportFault::WebSocketText);
        check(vec![FIN | 2, 3, 1, 2, 3], protocol, frame_fault);
        check(frame(FIN | 0x40 | 2, b"rsv"), protocol, frame_fault);
        check(frame(FIN, b"continuation of nothing"), protocol, frame_fault);
        check([frame(2, b"a"), frame(FIN | 2, b"b")].concat(), protocol, frame_fault);
        check(frame(9, b"fragmented ping"), protocol, frame_fault);
        check(frame(FIN | 9, &[0; 126]), protocol, frame_fault);
        check(frame(FIN | 3, b"reserved opcode"), protocol, frame_fault);
        let huge = [&[FIN | 2, 0xFF][..], &u64::MAX.to_be_bytes()].concat();
        check(huge, CloseCode::TooBig, TransportFault::WebSocketTooLarge);
    }
}
