//! The rules of a device's session, one test each: what comes in, exactly which effects come out.

mod commands;
mod connect;
mod endings;
mod publish;
mod subscribe;
mod time;
#[cfg(test)]
mod world;
