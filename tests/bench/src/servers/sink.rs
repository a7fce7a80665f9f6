//! An AMQP 1.0 peer that accepts everything: each read's deliveries by one ranged disposition, credit 2000 a link.
//!
//! It takes connections with SASL (any mechanism, any secret) or without. It checks nothing.

use std::{collections::HashMap, io::Write, net::TcpListener, sync::Arc};

use fe2o3_amqp_types::{
    definitions::{Handle, Role},
    performatives::{Attach, Close, Detach, End, Flow, Performative},
    sasl::{SaslCode, SaslMechanisms, SaslOutcome},
};
use rustls::{ServerConfig, server::UnbufferedServerConnection};
use serde_amqp::primitives::{Array, Symbol};
use slab::Slab;

use super::{
    amqp::{self, Fields},
    poll::Poll,
    tls,
    wire::{Scratch, Wire},
};

const LISTENER: u64 = 0;
const CONTROL: u64 = 1;
const FIRST: u64 = 16;
/// Credit a link holds at most.
const CREDIT: u32 = 2000;

/// Where to listen.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// address:port for AMQP
    #[arg(long)]
    listen: String,
    /// address:port that answers each connection with the number of messages accepted so far
    #[arg(long)]
    control: String,
    #[command(flatten)]
    tls: tls::Serving,
}

#[derive(Default)]
struct Link {
    received: u32,
    granted: u32,
}

#[derive(Default)]
struct Session {
    links: HashMap<u32, Link>,
    next_incoming_id: u32,
    /// Deliveries of this read: first and last.
    range: Option<(u32, u32)>,
}

struct Connection {
    wire: Wire<UnbufferedServerConnection>,
    peer: Peer,
}

/// What stands above the socket.
struct Peer {
    state: State,
    sessions: HashMap<u16, Session>,
    out: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Header,
    Sasl,
    Open,
}

/// Serves until it is ended.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let config = arguments.tls.config()?;
    let listener = TcpListener::bind(&arguments.listen)?;
    let control = TcpListener::bind(&arguments.control)?;
    for (listener, token) in [(&listener, LISTENER), (&control, CONTROL)] {
        listener.set_nonblocking(true)?;
        poll.add(listener, token, false)?;
    }
    let mut connections: Slab<Connection> = Slab::new();
    let mut accepted = 0_u64;
    let mut ready = Vec::new();
    let mut scratch = Scratch::new();
    loop {
        poll.wait(&mut ready)?;
        for &token in &ready {
            match token {
                LISTENER => accept(&listener, config.as_ref(), &poll, &mut connections)?,
                CONTROL => {
                    while let Ok((mut socket, _)) = control.accept() {
                        // whoever asks may have gone
                        let _ = writeln!(socket, "{accepted}");
                    }
                }
                token => {
                    let n = (token - FIRST) as usize;
                    let Some(connection) = connections.get_mut(n) else { continue };
                    if !connection.ready(&mut scratch, &mut accepted).unwrap_or(false) {
                        connections.remove(n);
                    }
                }
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    config: Option<&Arc<ServerConfig>>,
    poll: &Poll,
    connections: &mut Slab<Connection>,
) -> anyhow::Result<()> {
    while let Ok((socket, _)) = listener.accept() {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let entry = connections.vacant_entry();
        poll.add(&socket, FIRST + entry.key() as u64, true)?;
        let peer = Peer { state: State::Header, sessions: HashMap::new(), out: Vec::new() };
        let tls = config.map(|config| UnbufferedServerConnection::new(Arc::clone(config))).transpose()?;
        entry.insert(Connection { wire: Wire::new(socket, tls), peer });
    }
    Ok(())
}

impl Connection {
    fn ready(&mut self, scratch: &mut Scratch, accepted: &mut u64) -> anyhow::Result<bool> {
        let Self { wire, peer } = self;
        let open = wire.read(scratch, |bytes| {
            let taken = peer.take(bytes, accepted)?;
            peer.dispositions();
            Ok(taken)
        })?;
        wire.flush(&mut peer.out)?;
        Ok(open)
    }
}

impl Peer {
    fn take(&mut self, bytes: &[u8], accepted: &mut u64) -> anyhow::Result<usize> {
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            if self.state == State::Header {
                if rest.len() < 8 {
                    return Ok(taken);
                }
                self.header(&rest[..8])?;
                taken += 8;
                continue;
            }
            let Some((channel, body, size)) = amqp::next(rest)? else { return Ok(taken) };
            taken += size;
            if self.state == State::Sasl {
                amqp::frame(&mut self.out, 1, 0, &SaslOutcome { code: SaslCode::Ok, additional_data: None })?;
                self.state = State::Header;
            } else if amqp::code(body) == amqp::TRANSFER {
                self.transfer(channel, body)?;
                *accepted += 1;
            } else if !body.is_empty() {
                self.cold(channel, body)?;
            }
        }
    }

    fn header(&mut self, header: &[u8]) -> anyhow::Result<()> {
        self.out.extend_from_slice(header);
        if header == amqp::SASL_HEADER {
            let offered = Array::from(vec![Symbol::from("ANONYMOUS"), Symbol::from("PLAIN"), Symbol::from("EXTERNAL")]);
            amqp::frame(&mut self.out, 1, 0, &SaslMechanisms { sasl_server_mechanisms: offered })?;
            self.state = State::Sasl;
        } else {
            anyhow::ensure!(header == amqp::AMQP_HEADER, "unknown protocol header");
            self.state = State::Open;
        }
        Ok(())
    }

    fn cold(&mut self, channel: u16, body: &[u8]) -> anyhow::Result<()> {
        match amqp::decode(body)? {
            Performative::Open(_) => amqp::frame(&mut self.out, 0, 0, &amqp::open("sink", 64 << 10, 1023))?,
            Performative::Begin(begun) => {
                let session = Session { next_incoming_id: begun.next_outgoing_id, ..Session::default() };
                self.sessions.insert(channel, session);
                amqp::frame(&mut self.out, 0, channel, &amqp::begin(Some(channel)))?;
            }
            Performative::Attach(attach) => self.attach(channel, attach)?,
            Performative::Detach(detach) => {
                if let Some(session) = self.sessions.get_mut(&channel) {
                    session.links.remove(&detach.handle.0);
                }
                let answer = Detach { handle: detach.handle, closed: true, error: None };
                amqp::frame(&mut self.out, 0, channel, &answer)?;
            }
            Performative::End(_) => {
                self.sessions.remove(&channel);
                amqp::frame(&mut self.out, 0, channel, &End { error: None })?;
            }
            Performative::Close(_) => amqp::frame(&mut self.out, 0, 0, &Close { error: None })?,
            Performative::Flow(_) | Performative::Transfer(_) | Performative::Disposition(_) => {}
        }
        Ok(())
    }

    fn attach(&mut self, channel: u16, mut attach: Attach) -> anyhow::Result<()> {
        let handle = attach.handle.0;
        let from_sender = attach.role == Role::Sender;
        attach.role = if from_sender { Role::Receiver } else { Role::Sender };
        attach.initial_delivery_count = (!from_sender).then_some(0);
        amqp::frame(&mut self.out, 0, channel, &attach)?;
        if from_sender && let Some(session) = self.sessions.get_mut(&channel) {
            session.links.insert(handle, Link { received: 0, granted: CREDIT });
            let flow = flow(session, handle, 0);
            amqp::frame(&mut self.out, 0, channel, &flow)?;
        }
        Ok(())
    }

    fn transfer(&mut self, channel: u16, body: &[u8]) -> anyhow::Result<()> {
        let mut fields = Fields::of(body)?;
        let handle = fields.number()?.unwrap_or(0) as u32;
        let delivery = fields.number()?;
        let Some(session) = self.sessions.get_mut(&channel) else { return Ok(()) };
        session.next_incoming_id = session.next_incoming_id.wrapping_add(1);
        if let Some(delivery) = delivery {
            let delivery = delivery as u32;
            session.range = Some((session.range.map_or(delivery, |(first, _)| first), delivery));
        }
        let Some(link) = session.links.get_mut(&handle) else { return Ok(()) };
        link.received = link.received.wrapping_add(1);
        if link.granted.wrapping_sub(link.received) <= CREDIT / 2 {
            link.granted = link.received.wrapping_add(CREDIT);
            let received = link.received;
            let flow = flow(session, handle, received);
            amqp::frame(&mut self.out, 0, channel, &flow)?;
        }
        Ok(())
    }

    /// The end of a read: one disposition a session.
    fn dispositions(&mut self) {
        for (&channel, session) in &mut self.sessions {
            if let Some((first, last)) = session.range.take() {
                amqp::accept(&mut self.out, channel, first, last);
            }
        }
    }
}

fn flow(session: &Session, handle: u32, received: u32) -> Flow {
    Flow {
        next_incoming_id: Some(session.next_incoming_id),
        incoming_window: amqp::WINDOW,
        next_outgoing_id: 0,
        outgoing_window: amqp::WINDOW,
        handle: Some(Handle(handle)),
        delivery_count: Some(received),
        link_credit: Some(CREDIT),
        available: None,
        drain: false,
        echo: false,
        properties: None,
    }
}
