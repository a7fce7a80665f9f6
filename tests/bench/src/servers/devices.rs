//! The device side of floor and null: sockets in a slab, one scratch buffer, one write a device and turn.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
};

use rustls::{ServerConfig, server::UnbufferedServerConnection};
use slab::Slab;

use super::{mqtt, poll::Poll, tls::Layer};

/// Tokens below this are not devices.
pub(super) const FIRST_DEVICE: u64 = 16;
const LISTENER: u64 = 0;

struct Device {
    socket: TcpStream,
    tls: Option<Box<Layer<UnbufferedServerConnection>>>,
    /// Plaintext of an incomplete packet.
    partial: Vec<u8>,
    /// Plaintext to send at the end of the turn.
    answer: Vec<u8>,
    /// Bytes that the socket did not take.
    out: Vec<u8>,
    touched: bool,
}

/// All devices of one server.
pub(super) struct Devices {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    slab: Slab<Device>,
    touched: Vec<usize>,
    scratch: Vec<u8>,
    plain: Vec<u8>,
    cipher: Vec<u8>,
}

/// What the server behind the devices does with their packets.
pub(super) trait Behind {
    /// A device said CONNECT.
    fn connected(&mut self, device: usize);
    /// A device published; QoS 0 has the packet id 0. The answer, if any, goes to `answer`.
    fn publish(&mut self, device: usize, packet_id: u16, payload: &[u8], answer: &mut Vec<u8>);
}

impl Devices {
    pub(super) fn listen(address: &str, tls: Option<Arc<ServerConfig>>, poll: &Poll) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        poll.add(&listener, LISTENER, false)?;
        Ok(Self {
            listener,
            tls,
            slab: Slab::new(),
            touched: Vec::new(),
            scratch: vec![0; 64 << 10],
            plain: Vec::new(),
            cipher: Vec::new(),
        })
    }

    /// Handles one ready token.
    pub(super) fn ready(&mut self, token: u64, poll: &Poll, behind: &mut impl Behind) {
        if token == LISTENER {
            self.accept(poll);
            return;
        }
        let Ok(n) = usize::try_from(token - FIRST_DEVICE) else { return };
        if self.slab.contains(n) && !self.read(n, behind).unwrap_or(false) {
            self.slab.remove(n);
        }
    }

    /// Queues an answer for a device, if it is still there.
    pub(super) fn answer(&mut self, n: usize, bytes: &[u8]) {
        if let Some(device) = self.slab.get_mut(n) {
            device.answer.extend_from_slice(bytes);
            touch(device, n, &mut self.touched);
        }
    }

    /// The end of a turn: one write a touched device.
    pub(super) fn flush(&mut self) {
        for n in std::mem::take(&mut self.touched) {
            let Some(device) = self.slab.get_mut(n) else { continue };
            device.touched = false;
            if write(device, &mut self.cipher).is_err() {
                self.slab.remove(n);
            }
        }
    }

    fn accept(&mut self, poll: &Poll) {
        while let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).and_then(|()| socket.set_nodelay(true)).is_err() {
                continue;
            }
            let tls = self.tls.as_ref().and_then(|config| UnbufferedServerConnection::new(Arc::clone(config)).ok());
            let entry = self.slab.vacant_entry();
            if poll.add(&socket, FIRST_DEVICE + entry.key() as u64, true).is_ok() {
                let tls = tls.map(|connection| Box::new(Layer::new(connection)));
                let (partial, answer, out) = (Vec::new(), Vec::new(), Vec::new());
                entry.insert(Device { socket, tls, partial, answer, out, touched: false });
            }
        }
    }

    /// Reads until drained; `Ok(false)` is the end of the device.
    fn read(&mut self, n: usize, behind: &mut impl Behind) -> anyhow::Result<bool> {
        loop {
            let device = &mut self.slab[n];
            let read = match device.socket.read(&mut self.scratch) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            touch(device, n, &mut self.touched);
            if !take(device, n, &mut self.scratch[..read], &mut self.plain, behind)? {
                return Ok(false);
            }
            if read < self.scratch.len() {
                break;
            }
        }
        // edge-triggered: a socket that has room again says so by the same event
        if !self.slab[n].out.is_empty() {
            let device = &mut self.slab[n];
            touch(device, n, &mut self.touched);
        }
        Ok(true)
    }
}

fn touch(device: &mut Device, n: usize, touched: &mut Vec<usize>) {
    if !device.touched {
        device.touched = true;
        touched.push(n);
    }
}

/// Socket bytes: through TLS where there is one.
fn take(
    device: &mut Device,
    n: usize,
    bytes: &mut [u8],
    plain: &mut Vec<u8>,
    behind: &mut impl Behind,
) -> anyhow::Result<bool> {
    let Some(mut tls) = device.tls.take() else { return Ok(packets(device, n, bytes, behind)) };
    plain.clear();
    let open = tls.receive(bytes, plain, &mut device.out)?;
    device.tls = Some(tls);
    Ok(packets(device, n, plain, behind) && open)
}

fn packets(device: &mut Device, n: usize, bytes: &[u8], behind: &mut impl Behind) -> bool {
    if device.partial.is_empty() {
        let taken = each(device, n, bytes, behind);
        taken.is_some_and(|taken| {
            device.partial.extend_from_slice(&bytes[taken..]);
            true
        })
    } else {
        let mut whole = std::mem::take(&mut device.partial);
        whole.extend_from_slice(bytes);
        let taken = each(device, n, &whole, behind);
        taken.is_some_and(|taken| {
            if taken < whole.len() {
                device.partial = whole.split_off(taken);
            }
            true
        })
    }
}

/// Handles whole packets; `None` after DISCONNECT.
fn each(device: &mut Device, n: usize, bytes: &[u8], behind: &mut impl Behind) -> Option<usize> {
    let mut taken = 0;
    while let Some((packet, length)) = mqtt::read(&bytes[taken..]) {
        taken += length;
        match packet {
            mqtt::Packet::Connect => {
                behind.connected(n);
                device.answer.extend_from_slice(&mqtt::CONNACK);
            }
            mqtt::Packet::Publish(id, payload) => behind.publish(n, id, payload, &mut device.answer),
            mqtt::Packet::Subscribe(id) => device.answer.extend_from_slice(&mqtt::suback(id)),
            mqtt::Packet::PingReq => device.answer.extend_from_slice(&mqtt::PINGRESP),
            mqtt::Packet::Disconnect => return None,
            mqtt::Packet::Other => {}
        }
    }
    Some(taken)
}

fn write(device: &mut Device, cipher: &mut Vec<u8>) -> anyhow::Result<()> {
    match &mut device.tls {
        None if device.out.is_empty() => return write_plain(device),
        None => device.out.append(&mut device.answer),
        Some(_) if device.answer.is_empty() => {}
        Some(tls) => {
            cipher.clear();
            tls.send(&device.answer, cipher)?;
            device.out.extend_from_slice(cipher);
        }
    }
    device.answer = Vec::new();
    write_out(device)
}

fn write_plain(device: &mut Device) -> anyhow::Result<()> {
    let answer = std::mem::take(&mut device.answer);
    if answer.is_empty() {
        return Ok(());
    }
    match device.socket.write(&answer) {
        Ok(written) if written == answer.len() => Ok(()),
        Ok(written) => {
            device.out.extend_from_slice(&answer[written..]);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            device.out = answer;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn write_out(device: &mut Device) -> anyhow::Result<()> {
    while !device.out.is_empty() {
        match device.socket.write(&device.out) {
            Ok(written) => drop(device.out.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    device.out = Vec::new();
    Ok(())
}
