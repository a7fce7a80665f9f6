//! The WebSocket below AMQP (`AMQPWSB10`, contract §3.1): bytes in, bytes out. The socket and TLS are the caller's.
//!
//! AMQP frames and WebSocket messages have no relation (WSB 2.4): whatever is to be written in one turn is one message.

use std::{
    io::{self, ErrorKind, Read, Write},
    mem,
};

use bytes::Bytes;
use tungstenite::{
    ClientRequestBuilder, Error, HandshakeError, Message, WebSocket as Framed,
    client::IntoClientRequest as _,
    handshake::{MidHandshake, client::ClientHandshake},
    http::Uri,
    protocol::WebSocketConfig,
};

use super::transport::Broken;

const PATH: &str = "/$iothub/websocket";
const SUBPROTOCOL: &str = "AMQPWSB10";
/// The largest WebSocket message taken; AMQP frames inside are bounded on their own.
const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The client's end of a WebSocket, from the upgrade request on.
pub(super) struct WebSocket {
    state: State,
    /// Written by AMQP before the upgrade was answered.
    early: Vec<u8>,
}

enum State {
    Upgrading(Box<MidHandshake<ClientHandshake<Pipe>>>),
    Open(Box<Framed<Pipe>>),
    Failed,
}

/// Both directions of the stream below, in memory.
#[derive(Default)]
struct Pipe {
    inbound: Vec<u8>,
    taken: usize,
    outbound: Vec<u8>,
}

impl WebSocket {
    /// Asks `host` for an upgrade; the request is the first output.
    pub(super) fn new(host: &str) -> Result<Self, Broken> {
        let uri: Uri = format!("wss://{host}{PATH}").parse().map_err(|_| Broken::Name)?;
        let request = ClientRequestBuilder::new(uri).with_sub_protocol(SUBPROTOCOL).into_client_request();
        let config = WebSocketConfig::default()
            .write_buffer_size(0)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let request = request.map_err(broken)?;
        let upgrade = ClientHandshake::start(Pipe::default(), request, Some(config)).map_err(broken)?;
        let mut this = Self { state: State::Upgrading(Box::new(upgrade)), early: Vec::new() };
        this.upgrade()?;
        Ok(this)
    }

    /// Takes what came from below; what it carried is appended to `plain`.
    pub(super) fn receive(&mut self, bytes: &[u8], plain: &mut Vec<u8>) -> Result<(), Broken> {
        self.pipe()?.inbound.extend_from_slice(bytes);
        self.upgrade()?;
        let State::Open(framed) = &mut self.state else { return Ok(()) };
        loop {
            match framed.read() {
                Ok(Message::Binary(bytes)) => plain.extend_from_slice(&bytes),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                // (WSB 2.2) AMQP is binary
                Ok(_) => return Err(Broken::WebSocket("text or close frame")),
                Err(Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(broken(error)),
            }
        }
    }

    /// Wraps `plain` (which may be empty) and appends what is to be written below to `wire`.
    pub(super) fn send(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> Result<(), Broken> {
        match &mut self.state {
            State::Upgrading(_) => self.early.extend_from_slice(plain),
            State::Open(framed) if plain.is_empty() => framed.flush().map_err(broken)?,
            State::Open(framed) => {
                framed.send(Message::Binary(Bytes::copy_from_slice(plain))).map_err(broken)?;
            }
            State::Failed => return Err(Broken::WebSocket("upgrade failed")),
        }
        wire.append(&mut self.pipe()?.outbound);
        Ok(())
    }

    /// Goes on with the upgrade as far as the bytes reach.
    fn upgrade(&mut self) -> Result<(), Broken> {
        if !matches!(self.state, State::Upgrading(_)) {
            return Ok(());
        }
        let State::Upgrading(upgrade) = mem::replace(&mut self.state, State::Failed) else { return Ok(()) };
        match upgrade.handshake() {
            Ok((mut framed, _)) => {
                let early = mem::take(&mut self.early);
                if !early.is_empty() {
                    framed.send(Message::Binary(early.into())).map_err(broken)?;
                }
                self.state = State::Open(Box::new(framed));
            }
            Err(HandshakeError::Interrupted(upgrade)) => self.state = State::Upgrading(Box::new(upgrade)),
            Err(HandshakeError::Failure(error)) => return Err(broken(error)),
        }
        Ok(())
    }

    fn pipe(&mut self) -> Result<&mut Pipe, Broken> {
        match &mut self.state {
            State::Upgrading(upgrade) => Ok(upgrade.get_mut().get_mut()),
            State::Open(framed) => Ok(framed.get_mut()),
            State::Failed => Err(Broken::WebSocket("upgrade failed")),
        }
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.inbound[self.taken..];
        if left.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let n = left.len().min(buffer.len());
        buffer[..n].copy_from_slice(&left[..n]);
        self.taken += n;
        if self.taken == self.inbound.len() {
            self.inbound.clear();
            self.taken = 0;
        }
        Ok(n)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outbound.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn broken(error: Error) -> Broken {
    match error {
        Error::Http(response) => Broken::Upgrade(response.status().as_u16()),
        error => Broken::WebSocketProtocol(Box::new(error)),
    }
}

#[cfg(test)]
mod tests {
    use tungstenite::{
        Message,
        handshake::server::{Request, Response},
    };

    use super::{Pipe, SUBPROTOCOL, WebSocket};
    use crate::link::transport::Broken;

    /// Answers an upgrade as a hub would.
    #[expect(clippy::result_large_err, reason = "the callback's type is tungstenite's")]
    fn accept(request: Vec<u8>) -> tungstenite::WebSocket<Pipe> {
        let pipe = Pipe { inbound: request, ..Pipe::default() };
        tungstenite::accept_hdr(pipe, |request: &Request, mut response: Response| {
            assert_eq!(request.uri().path(), "/$iothub/websocket");
            let protocol = request.headers()["sec-websocket-protocol"].clone();
            assert_eq!(protocol, SUBPROTOCOL);
            response.headers_mut().insert("sec-websocket-protocol", protocol);
            Ok(response)
        })
        .unwrap()
    }

    #[test]
    fn what_was_written_before_the_upgrade_follows_it() {
        let mut client = WebSocket::new("hub.example").unwrap();
        let (mut wire, mut plain) = (Vec::new(), Vec::new());
        client.send(b"AMQP", &mut wire).unwrap();
        let mut server = accept(wire);

        for bytes in std::mem::take(&mut server.get_mut().outbound).chunks(50) {
            client.receive(bytes, &mut plain).unwrap();
        }
        let mut wire = Vec::new();
        client.send(&[], &mut wire).unwrap();
        server.get_mut().inbound = wire;
        assert_eq!(server.read().unwrap(), Message::binary(&b"AMQP"[..]));

        server.send(Message::binary(&b"ab"[..])).unwrap();
        server.send(Message::binary(&b"c"[..])).unwrap();
        let frames = std::mem::take(&mut server.get_mut().outbound);
        client.receive(&frames, &mut plain).unwrap();
        assert_eq!(plain, b"abc");
    }

    #[test]
    fn wsb_2_2_a_text_frame_breaks_the_connection() {
        let mut client = WebSocket::new("hub.example").unwrap();
        let (mut wire, mut plain) = (Vec::new(), Vec::new());
        client.send(&[], &mut wire).unwrap();
        let mut server = accept(wire);
        server.send(Message::text("AMQP")).unwrap();
        let frames = std::mem::take(&mut server.get_mut().outbound);
        assert!(matches!(client.receive(&frames, &mut plain), Err(Broken::WebSocket(_))));
    }

    #[test]
    fn a_refused_upgrade_tells_its_status() {
        let mut client = WebSocket::new("hub.example").unwrap();
        let answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        assert!(matches!(client.receive(answer, &mut Vec::new()), Err(Broken::Upgrade(404))));
    }
}
