//! PUBACK at once: what the device side alone costs. It leaves out everything that makes a bridge.

use super::{
    devices::{Behind, Devices},
    mqtt,
    poll::Poll,
    tls,
};

/// Where to listen.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// address:port
    #[arg(long)]
    listen: String,
    #[command(flatten)]
    tls: tls::Serving,
}

struct Null;

impl Behind for Null {
    fn connected(&mut self, _: usize) {}

    fn publish(&mut self, _: usize, packet_id: u16, _: &[u8], answer: &mut Vec<u8>) {
        if packet_id != 0 {
            answer.extend_from_slice(&mqtt::puback(packet_id));
        }
    }
}

/// Serves until it is ended.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut devices = Devices::listen(&arguments.listen, arguments.tls.config()?, &poll)?;
    let mut ready = Vec::new();
    loop {
        poll.wait(&mut ready)?;
        for &token in &ready {
            devices.ready(token, &poll, &mut Null);
        }
        devices.flush();
    }
}
