//! The least a bridge can cost: devices in, transfers on one AMQP link (or one a device) out, PUBACK on the disposition.
//!
//! It leaves out authentication, checks, timers, credit, loss: what it costs is what nobody can avoid.

use std::{
    collections::VecDeque,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use anyhow::Context;
use fe2o3_amqp_types::{
    definitions::{Handle, ReceiverSettleMode, Role, SenderSettleMode},
    messaging::{Source, Target, TargetArchetype},
    performatives::Attach,
};
use rustls::client::UnbufferedClientConnection;

use super::{
    amqp::{self, Fields},
    devices::{Behind, Devices},
    mqtt,
    poll::Poll,
    tls,
    wire::{Scratch, Wire},
};

const UPSTREAM: u64 = 1;

/// Where to listen and what to bridge to.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// address:port for devices
    #[arg(long)]
    listen: String,
    /// address:port of the sink
    #[arg(long)]
    upstream: SocketAddr,
    /// Attach a link for each device instead of one for all
    #[arg(long)]
    link_per_device: bool,
    /// PEM file to trust: speak TLS to the sink
    #[arg(long)]
    upstream_ca: Option<PathBuf>,
    #[command(flatten)]
    tls: tls::Serving,
}

struct Upstream {
    link_per_device: bool,
    /// Link handle of device n, where each has one.
    handles: Vec<Option<u32>>,
    next_handle: u32,
    next_delivery: u32,
    /// Device and packet id of delivery `first_pending`, and so on.
    pending: VecDeque<(usize, u16)>,
    first_pending: u32,
    out: Vec<u8>,
}

impl Behind for Upstream {
    fn connected(&mut self, device: usize) {
        if !self.link_per_device {
            return;
        }
        if self.handles.len() <= device {
            self.handles.resize(device + 1, None);
        }
        if self.handles[device].is_none() {
            self.handles[device] = Some(self.next_handle);
            let attach = attach(self.next_handle);
            self.next_handle += 1;
            amqp::frame(&mut self.out, 0, 0, &attach).expect("our own attach can be encoded");
        }
    }

    fn publish(&mut self, device: usize, packet_id: u16, payload: &[u8], _: &mut Vec<u8>) {
        let handle = if self.link_per_device { self.handles[device].unwrap_or(0) } else { 0 };
        amqp::transfer(&mut self.out, handle, self.next_delivery, payload);
        self.next_delivery = self.next_delivery.wrapping_add(1);
        self.pending.push_back((device, packet_id));
    }
}

/// Serves until it is ended.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut scratch = Scratch::new();
    let mut upstream = Upstream::new(arguments.link_per_device);
    let mut wire = open(arguments.upstream, arguments.upstream_ca.as_deref(), &mut scratch)?;
    poll.add(wire.socket(), UPSTREAM, true)?;
    let mut devices = Devices::listen(&arguments.listen, arguments.tls.config()?, &poll)?;
    let mut ready = Vec::new();
    loop {
        poll.wait(&mut ready)?;
        for &token in &ready {
            if token == UPSTREAM {
                let open = wire.read(&mut scratch, |bytes| upstream.frames(bytes, &mut devices))?;
                anyhow::ensure!(open, "the sink closed");
            } else {
                devices.ready(token, &poll, &mut upstream);
            }
        }
        wire.flush(&mut upstream.out)?;
        devices.flush();
    }
}

/// TLS if there is a CA for it, header, OPEN, BEGIN, ATTACH; waits for the answers.
fn open(
    address: SocketAddr,
    ca: Option<&Path>,
    scratch: &mut Scratch,
) -> anyhow::Result<Wire<UnbufferedClientConnection>> {
    let socket = TcpStream::connect(address).with_context(|| format!("no sink at {address}"))?;
    socket.set_nodelay(true)?;
    let mut wire = Wire::new(socket, ca.map(|ca| tls::client(ca, address)).transpose()?);
    wire.shake_hands(scratch)?;
    let mut out = amqp::AMQP_HEADER.to_vec();
    amqp::frame(&mut out, 0, 0, &amqp::open("floor", 1 << 20, 0))?;
    amqp::frame(&mut out, 0, 0, &amqp::begin(None))?;
    amqp::frame(&mut out, 0, 0, &attach(0))?;
    wire.flush(&mut out)?;
    let (mut greeted, mut credit) = (false, false);
    while !credit {
        let open = wire.read(scratch, |bytes| answers(bytes, &mut greeted, &mut credit))?;
        anyhow::ensure!(open, "the sink closed");
    }
    wire.socket().set_nonblocking(true)?;
    Ok(wire)
}

/// The sink's header, then its frames: a FLOW is the last of the answers.
fn answers(bytes: &[u8], greeted: &mut bool, credit: &mut bool) -> anyhow::Result<usize> {
    let mut taken = 0;
    if !*greeted {
        let Some(header) = bytes.get(..8) else { return Ok(0) };
        anyhow::ensure!(header == amqp::AMQP_HEADER, "the sink speaks another protocol");
        *greeted = true;
        taken = 8;
    }
    while let Some((_, body, size)) = amqp::next(&bytes[taken..])? {
        taken += size;
        *credit |= amqp::code(body) == amqp::FLOW;
    }
    Ok(taken)
}

impl Upstream {
    fn new(link_per_device: bool) -> Self {
        Self {
            link_per_device,
            handles: Vec::new(),
            next_handle: 1,
            next_delivery: 0,
            pending: VecDeque::new(),
            first_pending: 0,
            out: Vec::new(),
        }
    }

    fn frames(&mut self, bytes: &[u8], devices: &mut Devices) -> anyhow::Result<usize> {
        let mut taken = 0;
        while let Some((_, body, size)) = amqp::next(&bytes[taken..])? {
            taken += size;
            if amqp::code(body) == amqp::DISPOSITION {
                let mut fields = Fields::of(body)?;
                fields.number()?;
                let first = fields.number()?.context("first")? as u32;
                let last = fields.number()?.map_or(first, |last| last as u32);
                self.settled(last, devices);
            }
        }
        Ok(taken)
    }

    /// Everything up to `last`: the sink accepts in order.
    fn settled(&mut self, last: u32, devices: &mut Devices) {
        let count = last.wrapping_sub(self.first_pending).wrapping_add(1);
        for _ in 0..count {
            let Some((device, packet_id)) = self.pending.pop_front() else { return };
            self.first_pending = self.first_pending.wrapping_add(1);
            if packet_id != 0 {
                devices.answer(device, &mqtt::puback(packet_id));
            }
        }
    }
}

fn attach(handle: u32) -> Attach {
    Attach {
        name: format!("floor-{handle}"),
        handle: Handle(handle),
        role: Role::Sender,
        snd_settle_mode: SenderSettleMode::Unsettled,
        rcv_settle_mode: ReceiverSettleMode::First,
        source: Some(Box::new(Source::default())),
        target: Some(Box::new(TargetArchetype::Target(Target {
            address: Some("telemetry".into()),
            ..Target::default()
        }))),
        unsettled: None,
        incomplete_unsettled: false,
        initial_delivery_count: Some(0),
        max_message_size: None,
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    }
}
