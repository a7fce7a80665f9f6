//! What lies between AMQP and the TCP socket: nothing, TLS, or a WebSocket over TLS. Pure filters over bytes, so that
//! the task has one loop: one read and one write for each turn, whatever is below.

use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;

use super::websocket::WebSocket;
use crate::metrics::UpstreamFailure;

/// Socket bytes ⇄ AMQP bytes.
pub(super) enum Transport {
    /// The socket's bytes are AMQP's.
    Plain,
    /// TLS, and a WebSocket inside if there is one.
    Tls(Box<Tls>),
}

/// TLS as a client.
pub(super) struct Tls {
    connection: ClientConnection,
    websocket: Option<WebSocket>,
    /// Decrypted bytes of the WebSocket, reused.
    frames: Vec<u8>,
}

/// Why the bytes below cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The host is no TLS server name.
    #[error("the upstream's host is not a server name")]
    Name,
    /// TLS failed.
    #[error("TLS with the upstream: {0}")]
    Tls(#[from] rustls::Error),
    /// The server answered the upgrade with another status.
    #[error("the upstream answered the WebSocket upgrade with status {0}")]
    Upgrade(u16),
    /// The server broke RFC 6455.
    #[error("WebSocket of the upstream: {0}")]
    WebSocketProtocol(Box<tungstenite::Error>),
    /// The server sent what AMQP over WebSocket does not have.
    #[error("WebSocket of the upstream: {0}")]
    WebSocket(&'static str),
}

impl Broken {
    /// How it is counted.
    pub(super) fn failure(&self) -> UpstreamFailure {
        match self {
            Self::Name | Self::Tls(_) => UpstreamFailure::Tls,
            Self::Upgrade(_) | Self::WebSocketProtocol(_) | Self::WebSocket(_) => UpstreamFailure::WebSocket,
        }
    }
}

impl Transport {
    /// TLS to `host`.
    pub(super) fn tls(config: Arc<ClientConfig>, host: &str, websocket: bool) -> Result<Self, Broken> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Broken::Name)?;
        let mut connection = ClientConnection::new(config, name)?;
        // what waits is bounded by the endpoint's output
        connection.set_buffer_limit(None);
        let websocket = if websocket { Some(WebSocket::new(host)?) } else { None };
        Ok(Self::Tls(Box::new(Tls { connection, websocket, frames: Vec::new() })))
    }

    /// Takes what was read from the socket; what it carried is appended to `plain`.
    pub(super) fn receive(&mut self, wire: &[u8], plain: &mut Vec<u8>) -> Result<(), Broken> {
        match self {
            Self::Plain => plain.extend_from_slice(wire),
            Self::Tls(tls) => tls.receive(wire, plain)?,
        }
        Ok(())
    }

    /// Appends to `wire` what is to be written for `plain`, and what the layers have to say themselves.
    pub(super) fn send(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> Result<(), Broken> {
        match self {
            Self::Plain => wire.extend_from_slice(plain),
            Self::Tls(tls) => tls.send(plain, wire)?,
        }
        Ok(())
    }

    /// Appends the end of the layers below AMQP to `wire`.
    pub(super) fn close(&mut self, wire: &mut Vec<u8>) {
        if let Self::Tls(tls) = self {
            tls.connection.send_close_notify();
            while tls.connection.wants_write() {
                tls.connection.write_tls(wire).expect("a Vec takes every write");
            }
        }
    }
}

impl Tls {
    fn receive(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) -> Result<(), Broken> {
        let Self { connection, websocket, frames } = self;
        while !wire.is_empty() {
            let before = wire.len();
            // an error here means "buffer full", which processing empties; reading a slice has no other
            let _ = connection.read_tls(&mut wire);
            let state = connection.process_new_packets()?;
            let decrypted = state.plaintext_bytes_to_read();
            if decrypted > 0 {
                let target = if websocket.is_some() { &mut *frames } else { &mut *plain };
                take_plaintext(connection, decrypted, target);
            }
            if wire.len() == before && decrypted == 0 {
                // what follows a close_notify is not read; the end of the stream comes by itself
                break;
            }
        }
        if let Some(websocket) = websocket
            && !frames.is_empty()
        {
            websocket.receive(frames, plain)?;
            frames.clear();
        }
        Ok(())
    }

    fn send(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> Result<(), Broken> {
        use std::io::Write as _;
        let Self { connection, websocket, frames } = self;
        let bytes = match websocket {
            None => plain,
            Some(websocket) => {
                websocket.send(plain, frames)?;
                frames.as_slice()
            }
        };
        connection.writer().write_all(bytes).expect("the TLS buffer has no limit");
        frames.clear();
        while connection.wants_write() {
            connection.write_tls(wire).expect("a Vec takes every write");
        }
        Ok(())
    }
}

/// Appends `n` decrypted bytes to `target`.
fn take_plaintext(connection: &mut ClientConnection, n: usize, target: &mut Vec<u8>) {
    use std::io::Read as _;
    let start = target.len();
    target.resize(start + n, 0);
    connection.reader().read_exact(&mut target[start..]).expect("rustls said how much there is");
}
