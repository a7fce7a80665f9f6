//! A device of our own to judge the gateway with: scripted ([`script::Device`]) or by the thousand ([`load`]).
//!
//! It shares no code with the product: what both get wrong in the same way would stay unseen.

pub mod load;
pub mod packet;
pub mod sas;
pub mod script;
pub mod tls;
pub mod world;
