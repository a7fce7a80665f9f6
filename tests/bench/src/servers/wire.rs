//! A socket between two servers of the bench: each read's frames to who takes them, one write a turn.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use anyhow::ensure;
use rustls::client::UnbufferedClientConnection;

use super::tls::{Layer, Records};

/// A connection, with TLS `C` or without.
pub(super) struct Wire<C> {
    socket: TcpStream,
    tls: Option<Box<Layer<C>>>,
    /// Bytes of an incomplete frame.
    partial: Vec<u8>,
    /// Records that the socket did not take.
    records: Vec<u8>,
}

/// Room for one read, shared by all connections of a server.
pub(super) struct Scratch {
    bytes: Vec<u8>,
    plain: Vec<u8>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; 256 << 10], plain: Vec::new() }
    }
}

impl<C: Records> Wire<C> {
    pub(super) fn new(socket: TcpStream, tls: Option<C>) -> Self {
        let tls = tls.map(|connection| Box::new(Layer::new(connection)));
        Self { socket, tls, partial: Vec::new(), records: Vec::new() }
    }

    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Reads until drained, or once from a blocking socket. `take` returns how many bytes it is done with: the rest
    /// comes again with more behind it. `Ok(false)` is the end of the connection.
    pub(super) fn read(
        &mut self,
        scratch: &mut Scratch,
        mut take: impl FnMut(&[u8]) -> anyhow::Result<usize>,
    ) -> anyhow::Result<bool> {
        loop {
            let read = match self.socket.read(&mut scratch.bytes) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error.into()),
            };
            let mut open = true;
            let bytes = match &mut self.tls {
                None => &scratch.bytes[..read],
                Some(tls) => {
                    scratch.plain.clear();
                    open = tls.receive(&mut scratch.bytes[..read], &mut scratch.plain, &mut self.records)?;
                    &scratch.plain[..]
                }
            };
            if self.partial.is_empty() {
                let taken = take(bytes)?;
                self.partial.extend_from_slice(&bytes[taken..]);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(bytes);
                let taken = take(&whole)?;
                self.partial.extend_from_slice(&whole[taken..]);
            }
            if !open || read < scratch.bytes.len() {
                return Ok(open);
            }
        }
    }

    /// One write of `out`, more if the socket took it in part; what it does not take stays for the next call.
    pub(super) fn flush(&mut self, out: &mut Vec<u8>) -> anyhow::Result<()> {
        let Some(tls) = &mut self.tls else { return write(&mut self.socket, out) };
        if !out.is_empty() {
            tls.send(out, &mut self.records)?;
            out.clear();
        }
        write(&mut self.socket, &mut self.records)
    }
}

impl Wire<UnbufferedClientConnection> {
    /// Begins TLS, if it is to be spoken, on a socket that blocks.
    pub(super) fn shake_hands(&mut self, scratch: &mut Scratch) -> anyhow::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        tls.receive(&mut [], &mut scratch.plain, &mut self.records)?;
        write(&mut self.socket, &mut self.records)?;
        while tls.connection.is_handshaking() {
            let read = self.socket.read(&mut scratch.bytes)?;
            ensure!(read > 0, "the server closed during the TLS handshake");
            tls.receive(&mut scratch.bytes[..read], &mut scratch.plain, &mut self.records)?;
            write(&mut self.socket, &mut self.records)?;
        }
        Ok(())
    }
}

fn write(socket: &mut TcpStream, out: &mut Vec<u8>) -> anyhow::Result<()> {
    while !out.is_empty() {
        match socket.write(out) {
            Ok(written) if written == out.len() => out.clear(),
            Ok(written) => drop(out.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
