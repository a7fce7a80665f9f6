//! The servers that the gateway is compared with. They do the least, and say what they leave out.

mod amqp;
mod devices;
pub(crate) mod floor;
mod mqtt;
pub(crate) mod null;
mod poll;
pub(crate) mod sink;
mod tls;
mod wire;
