//! Every rule of MQTT 3.1.1 that the bytes of one packet can break, by the clause's id: bytes → packet or error.

mod connect;
mod header;
mod publish;
mod stream;
mod subscribe;
mod wire;
