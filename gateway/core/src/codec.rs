//! MQTT 3.1.1 packets: bytes ⇄ [`Packet`]. Strict, incremental, size-limited, borrowed; never allocates for a PUBLISH.
//!
//! [`decode`] judges every rule that the bytes of one packet can break; rules about their order (a second CONNECT,
//! an unknown packet id) belong to the session. It keeps no state: hand it the bytes from the packet's first on, again,
//! with more of them, until it says otherwise; while a packet is incomplete only its fixed header is looked at.

mod decode;
mod encode;
mod error;
mod header;
pub mod packet;
mod reader;
mod text;

pub use decode::{Decoded, decode, decode_any};
pub use encode::{encode, encoded_len};
pub use error::{DecodeError, EncodeError, Malformed};
pub use packet::Packet;
