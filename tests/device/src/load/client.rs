//! One device of a load: socket, TLS, window.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Instant,
};

use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Plan, report::Report};
use crate::{
    packet::{self, Received},
    script::Login,
};

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No socket.
    Down,
    /// TCP, TLS or CONNECT under way.
    Connecting,
    /// SUBSCRIBE under way.
    Subscribing,
    /// Sends.
    Up,
}

/// One message that is not acknowledged.
struct Unacknowledged {
    packet_id: u16,
    sequence: u64,
    due: Instant,
}

pub(super) struct Client {
    pub(super) phase: Phase,
    pub(super) socket: Option<TcpStream>,
    /// The socket waits for room: EPOLLOUT is wanted.
    pub(super) blocked: bool,
    pub(super) last_write: Instant,
    tls: Option<Box<ClientConnection>>,
    /// Bytes to write, after TLS.
    out: Vec<u8>,
    /// Plaintext bytes of an incomplete packet.
    partial: Vec<u8>,
    topic: String,
    next_packet_id: u16,
    next_sequence: u64,
    window: VecDeque<Unacknowledged>,
    /// Sends that are due and have no room in the window.
    waiting: VecDeque<Instant>,
    /// Acknowledged sequence numbers as closed ranges.
    acknowledged: Vec<(u64, u64)>,
}

impl Client {
    pub(super) fn new(login: &Login, now: Instant) -> Self {
        let path = login.client_id.replacen('/', "/modules/", 1);
        Self {
            phase: Phase::Down,
            socket: None,
            blocked: false,
            last_write: now,
            tls: None,
            out: Vec::new(),
            partial: Vec::new(),
            topic: format!("devices/{path}/messages/events/"),
            next_packet_id: 0,
            next_sequence: 0,
            window: VecDeque::new(),
            waiting: VecDeque::new(),
            acknowledged: Vec::new(),
        }
    }

    /// Begins a connection; CONNECT is written as soon as the socket takes it.
    pub(super) fn connect(
        &mut self,
        address: SocketAddr,
        tls: Option<(&Arc<ClientConfig>, &str)>,
        login: &Login,
    ) -> io::Result<()> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        self.socket = Some(socket.into());
        self.tls = tls.map(|(config, name)| begin_tls(config, name)).transpose()?.map(Box::new);
        self.out.clear();
        self.partial.clear();
        self.phase = Phase::Connecting;
        let mut plain = Vec::with_capacity(256);
        let password = login.password.as_deref().map(str::as_bytes);
        packet::connect(
            &mut plain,
            &login.client_id,
            login.user_name.as_deref(),
            password,
            login.keep_alive_s,
            login.clean_session,
        );
        self.queue(&plain)
    }

    /// Ends the connection; what is unacknowledged stays for the next one.
    pub(super) fn disconnect(&mut self) {
        self.socket = None;
        self.tls = None;
        self.blocked = false;
        self.phase = Phase::Down;
    }

    /// Reads what is there and handles its packets; `Ok(false)` is the end of the connection.
    pub(super) fn readable(
        &mut self,
        scratch: &mut [u8],
        plan: &Plan,
        now: Instant,
        report: &mut Report,
    ) -> io::Result<bool> {
        loop {
            let Some(socket) = self.socket.as_mut() else { return Ok(true) };
            let read = match socket.read(scratch) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            if !self.take(&scratch[..read], plan, now, report)? {
                return Ok(false);
            }
            if read < scratch.len() {
                return Ok(true);
            }
        }
    }

    /// Bytes of the socket, through TLS where there is one.
    fn take(&mut self, mut bytes: &[u8], plan: &Plan, now: Instant, report: &mut Report) -> io::Result<bool> {
        let Some(mut tls) = self.tls.take() else {
            self.partial.extend_from_slice(bytes);
            return self.packets(plan, now, report);
        };
        let mut open = true;
        while !bytes.is_empty() {
            tls.read_tls(&mut bytes)?;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let start = self.partial.len();
            self.partial.resize(start + state.plaintext_bytes_to_read(), 0);
            tls.reader().read_exact(&mut self.partial[start..])?;
            open &= !state.peer_has_closed();
        }
        while tls.wants_write() {
            tls.write_tls(&mut self.out)?;
        }
        self.tls = Some(tls);
        Ok(self.packets(plan, now, report)? && open)
    }

    fn packets(&mut self, plan: &Plan, now: Instant, report: &mut Report) -> io::Result<bool> {
        let mut taken = 0;
        let bytes = std::mem::take(&mut self.partial);
        while let Some((packet, consumed)) = packet::read(&bytes[taken..])? {
            taken += consumed;
            if !self.packet(packet, plan, now, report)? {
                return Ok(false);
            }
        }
        if taken < bytes.len() {
            self.partial.extend_from_slice(&bytes[taken..]);
        }
        Ok(true)
    }

    fn packet(&mut self, packet: Received, plan: &Plan, now: Instant, report: &mut Report) -> io::Result<bool> {
        match packet {
            Received::ConnAck(0, _) => {
                report.connects += 1;
                let kind = self.tls.as_ref().and_then(|tls| tls.handshake_kind());
                report.resumed += u64::from(kind == Some(HandshakeKind::Resumed));
                if plan.subscribe {
                    self.phase = Phase::Subscribing;
                    let device = self.topic.split("/messages/").next().unwrap_or_default();
                    let filter = format!("{device}/messages/devicebound/#");
                    let mut plain = Vec::new();
                    packet::subscribe(&mut plain, u16::MAX, &[(&filter, 1)]);
                    self.queue(&plain)?;
                } else {
                    self.up(plan)?;
                }
            }
            Received::ConnAck(..) => {
                report.refused += 1;
                return Ok(false);
            }
            Received::SubAck(..) => self.up(plan)?,
            Received::PubAck(id) => self.acknowledged(id, plan, now, report)?,
            Received::Publish(message) => {
                report.commands += 1;
                if let Some(id) = message.packet_id {
                    let mut plain = Vec::new();
                    packet::puback(&mut plain, id);
                    self.queue(&plain)?;
                }
            }
            Received::UnsubAck(_) | Received::PingResp => {}
        }
        Ok(true)
    }

    /// Ready to send: what the last connection left unacknowledged goes first, with DUP.
    fn up(&mut self, plan: &Plan) -> io::Result<()> {
        self.phase = Phase::Up;
        let mut plain = Vec::new();
        for entry in &self.window {
            write_publish(&mut plain, &self.topic, plan, entry.sequence, entry.packet_id, true);
        }
        self.queue(&plain)
    }

    /// How many messages the last connection left unacknowledged.
    pub(super) fn unacknowledged(&self) -> usize {
        self.window.len()
    }

    fn acknowledged(&mut self, id: u16, plan: &Plan, now: Instant, report: &mut Report) -> io::Result<()> {
        let Some(at) = self.window.iter().position(|entry| entry.packet_id == id) else { return Ok(()) };
        let entry = self.window.remove(at).expect("position() found it");
        report.acknowledged += 1;
        // a value above the bound of ten minutes is counted as that bound
        report.latency.saturating_record(u64::try_from((now - entry.due).as_nanos()).unwrap_or(u64::MAX));
        match self.acknowledged.last_mut() {
            Some((_, last)) if *last + 1 == entry.sequence => *last = entry.sequence,
            _ => self.acknowledged.push((entry.sequence, entry.sequence)),
        }
        if let Some(due) = self.waiting.pop_front() {
            self.send(due, plan, report)?;
        }
        Ok(())
    }

    /// A send that is due: now if the window has room, otherwise when it has.
    pub(super) fn due(&mut self, due: Instant, plan: &Plan, report: &mut Report) -> io::Result<()> {
        if self.phase == Phase::Up && self.window.len() < plan.pace.window() {
            self.send(due, plan, report)
        } else {
            self.waiting.push_back(due);
            Ok(())
        }
    }

    /// Closed loop: fills the window.
    pub(super) fn fill(&mut self, now: Instant, plan: &Plan, report: &mut Report) -> io::Result<()> {
        while self.phase == Phase::Up && self.window.len() < plan.pace.window() {
            self.send(now, plan, report)?;
        }
        Ok(())
    }

    fn send(&mut self, due: Instant, plan: &Plan, report: &mut Report) -> io::Result<()> {
        // 65535 is the SUBSCRIBE's
        self.next_packet_id = if self.next_packet_id >= u16::MAX - 1 { 1 } else { self.next_packet_id + 1 };
        let entry = Unacknowledged { packet_id: self.next_packet_id, sequence: self.next_sequence, due };
        self.next_sequence += 1;
        let mut plain = Vec::with_capacity(plan.payload_bytes + 96);
        write_publish(&mut plain, &self.topic, plan, entry.sequence, entry.packet_id, false);
        self.window.push_back(entry);
        report.sent += 1;
        self.queue(&plain)
    }

    pub(super) fn ping(&mut self) -> io::Result<()> {
        let mut plain = Vec::new();
        packet::pingreq(&mut plain);
        self.queue(&plain)
    }

    /// Says goodbye.
    pub(super) fn goodbye(&mut self) -> io::Result<()> {
        let mut plain = Vec::new();
        packet::disconnect(&mut plain);
        self.queue(&plain)
    }

    fn queue(&mut self, plain: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            None => self.out.extend_from_slice(plain),
            Some(tls) => {
                tls.writer().write_all(plain)?;
                while tls.wants_write() {
                    tls.write_tls(&mut self.out)?;
                }
            }
        }
        Ok(())
    }

    /// Writes what is queued, in one system call if the socket takes it.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        let Some(socket) = self.socket.as_mut() else { return Ok(()) };
        while !self.out.is_empty() {
            match socket.write(&self.out) {
                Ok(written) => drop(self.out.drain(..written)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotConnected) => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            self.last_write = now;
        }
        self.blocked = false;
        Ok(())
    }

    /// Forgets the sends that wait: the run is over.
    pub(super) fn drop_backlog(&mut self) {
        self.waiting.clear();
    }

    /// Sequence numbers sent and, as closed ranges, those acknowledged.
    pub(super) fn result(&self) -> (u64, &[(u64, u64)]) {
        (self.next_sequence, &self.acknowledged)
    }
}

fn begin_tls(config: &Arc<ClientConfig>, name: &str) -> io::Result<ClientConnection> {
    let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    tls.set_buffer_limit(None);
    Ok(tls)
}

/// The payload begins with the sequence number, so that a message can be told from its neighbour on the wire.
fn write_publish(plain: &mut Vec<u8>, topic: &str, plan: &Plan, sequence: u64, packet_id: u16, dup: bool) {
    let mut payload = [b'.'; 1024];
    let mut large = Vec::new();
    let payload = if plan.payload_bytes <= payload.len() {
        &mut payload[..plan.payload_bytes]
    } else {
        large.resize(plan.payload_bytes, b'.');
        &mut large[..]
    };
    let digits = sequence.to_be_bytes();
    let room = payload.len().min(digits.len());
    payload[..room].copy_from_slice(&digits[..room]);
    match &plan.run {
        None => packet::publish(plain, topic, payload, Some(packet_id), dup, false),
        Some(run) => {
            let topic = format!("{topic}%24.mid={run}-{sequence}");
            packet::publish(plain, &topic, payload, Some(packet_id), dup, false);
        }
    }
}
