//! MQTT 3.1.1 packets: bytes ⇄ [`Packet`]. Strict, incremental, size-limited, borrowed; never allocates for a PUBLISH.

pub mod packet;

pub use packet::Packet;
