//! MQTT over WebSocket, server side: the HTTP request that opens it (`upgrade`) and its frames (`frames`).
//!
//! Our own, because tungstenite keeps two buffers per connection; here a connection holds some forty bytes. It never
//! touches a socket.

pub mod frames;
pub mod upgrade;

pub use frames::{CloseCode, Frames, Inbound};
pub use upgrade::{Upgrade, answer};

use crate::metrics::TransportFault;

/// The WebSocket of one connection, from its HTTP request to its last frame.
#[derive(Debug)]
pub enum WebSocket {
    /// Waiting for the whole HTTP request.
    Upgrading,
    /// Frames both ways.
    Open(Frames),
}

impl WebSocket {
    /// Waits for an HTTP request; frames longer than `frame_bytes_max` will be refused.
    pub fn new() -> Self {
        Self::Upgrading
    }

    /// Whether frames may be written.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open(_))
    }

    /// Whether a Close frame of ours may follow: the first one is the last frame (RFC 6455 5.5.1).
    pub fn may_close(&self) -> bool {
        matches!(self, Self::Open(frames) if !frames.is_closed())
    }

    /// Takes what it can of `input`: payload goes to `payload`, HTTP answers and control frames to `reply`.
    /// Gives the number of bytes used; the rest is to come again with more behind it.
    pub fn open(
        &mut self,
        input: &mut [u8],
        frame_bytes_max: u64,
        payload: &mut Vec<u8>,
        reply: &mut Vec<u8>,
    ) -> Result<Inbound, TransportFault> {
        let Self::Open(frames) = self else {
            return match upgrade::parse(input) {
                Upgrade::Incomplete => Ok(Inbound { used: 0, peer_closed: false }),
                Upgrade::Accepted { used, accept } => {
                    reply.extend_from_slice(&upgrade::switching(&accept));
                    *self = Self::Open(Frames::default());
                    let rest = self.open(&mut input[used..], frame_bytes_max, payload, reply)?;
                    Ok(Inbound { used: used + rest.used, ..rest })
                }
                Upgrade::Refused(refused) => {
                    reply.extend_from_slice(&answer(refused));
                    Err(refused.fault())
                }
            };
        };
        frames.open(input, frame_bytes_max, payload, reply)
    }
}

impl Default for WebSocket {
    fn default() -> Self {
        Self::new()
    }
}
