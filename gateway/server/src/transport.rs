//! What lies between a socket and MQTT: nothing, TLS, or WebSocket over TLS. Bytes in, bytes out; no socket here.

use std::sync::Arc;

use gateway_core::settings::Protocol;
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;

use crate::{
    metrics::TransportFault,
    tls::TlsFilter,
    websocket::{CloseCode, WebSocket, frames},
};

/// The layers of one connection, with what is incomplete in each of them.
pub enum Transport {
    /// Socket bytes are MQTT bytes.
    Plain,
    /// TLS records.
    Tls(TlsLayer),
    /// WebSocket frames in TLS records.
    WebSocket(Box<WebSocketLayer>),
}

/// TLS and its incomplete record.
pub struct TlsLayer {
    filter: TlsFilter,
    incomplete: Vec<u8>,
}

/// WebSocket over TLS and its incomplete request or frame head.
pub struct WebSocketLayer {
    tls: TlsLayer,
    websocket: WebSocket,
    incomplete: Vec<u8>,
}

/// Buffers that all connections of a core share; empty between turns.
#[derive(Debug, Default)]
pub struct Buffers {
    /// MQTT bytes of this turn, if they are not those of the socket.
    pub payload: Vec<u8>,
    /// Plaintext below the WebSocket.
    below: Vec<u8>,
    /// WebSocket frames and HTTP answers to be sealed.
    framed: Vec<u8>,
    /// For the socket, in order.
    pub wire: Vec<u8>,
}

impl Buffers {
    /// Ready for the next connection; gives back the room of a burst.
    pub fn clear(&mut self) {
        const KEPT_BYTES: usize = 256 * 1024;
        for buffer in [&mut self.payload, &mut self.below, &mut self.framed, &mut self.wire] {
            buffer.clear();
            buffer.shrink_to(KEPT_BYTES);
        }
    }
}

impl Transport {
    /// The layers for a listener of `protocol`.
    pub fn new(protocol: Protocol, tls: Option<Arc<ServerConfig>>) -> Result<Self, rustls::Error> {
        let (Some(tls), Protocol::Mqtt | Protocol::MqttWebSocket) = (tls, protocol) else {
            return Ok(Self::Plain);
        };
        let tls = TlsLayer { filter: TlsFilter::new(tls)?, incomplete: Vec::new() };
        Ok(match protocol {
            Protocol::MqttWebSocket => {
                Self::WebSocket(Box::new(WebSocketLayer { tls, websocket: WebSocket::new(), incomplete: Vec::new() }))
            }
            _ => Self::Tls(tls),
        })
    }

    /// Whether MQTT may begin.
    pub fn is_established(&self) -> bool {
        match self {
            Self::Plain => true,
            Self::Tls(tls) => tls.filter.is_established(),
            Self::WebSocket(layer) => layer.websocket.is_open(),
        }
    }

    /// The device's certificate, if it showed one.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        match self {
            Self::Plain => None,
            Self::Tls(tls) => tls.filter.peer_certificate(),
            Self::WebSocket(layer) => layer.tls.filter.peer_certificate(),
        }
    }

    /// The device's certificate and those it sent along; empty if it showed none.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        match self {
            Self::Plain => &[],
            Self::Tls(tls) => tls.filter.peer_certificates(),
            Self::WebSocket(layer) => layer.tls.filter.peer_certificates(),
        }
    }

    /// Copies the incomplete record to the front of `raw`; the socket is to be read behind it. Gives its length.
    pub fn begin_read(&self, raw: &mut [u8]) -> usize {
        let incomplete = match self {
            Self::Plain => return 0,
            Self::Tls(tls) => &tls.incomplete,
            Self::WebSocket(layer) => &layer.tls.incomplete,
        };
        raw[..incomplete.len()].copy_from_slice(incomplete);
        incomplete.len()
    }

    /// Takes `raw`: what [`Self::begin_read`] put there and what was read behind it. MQTT bytes are appended to
    /// `buffers.payload`, answers to `buffers.wire`. True if the peer will send nothing more.
    ///
    /// Not for [`Self::Plain`], whose payload is `raw` itself.
    pub fn open(
        &mut self,
        raw: &mut [u8],
        frame_bytes_max: u64,
        buffers: &mut Buffers,
    ) -> Result<bool, TransportFault> {
        match self {
            Self::Plain => Ok(false),
            Self::Tls(tls) => tls.open(raw, &mut buffers.payload, &mut buffers.wire),
            Self::WebSocket(layer) => layer.open(raw, frame_bytes_max, buffers),
        }
    }

    /// Appends `output` (MQTT bytes of one turn) and pending answers to `buffers.wire`, in as few records and frames as
    /// possible.
    pub fn seal(&mut self, output: &[u8], buffers: &mut Buffers) -> Result<(), TransportFault> {
        let Buffers { framed, wire, .. } = buffers;
        match self {
            Self::Plain => wire.extend_from_slice(output),
            Self::Tls(tls) => tls.seal(output, wire)?,
            Self::WebSocket(layer) => {
                if !output.is_empty() {
                    frames::append_binary(output, framed);
                }
                layer.tls.seal(framed, wire)?;
                framed.clear();
            }
        }
        Ok(())
    }

    /// Appends the layers' own goodbyes to `buffers.wire`. Nothing may be sealed after it.
    pub fn seal_end(&mut self, code: CloseCode, buffers: &mut Buffers) {
        let Buffers { framed, wire, .. } = buffers;
        match self {
            Self::Plain => {}
            Self::Tls(tls) => tls.seal_end(wire),
            Self::WebSocket(layer) => {
                if layer.websocket.may_close() {
                    frames::append_close(code, framed);
                }
                if layer.tls.seal(framed, wire).is_ok() {
                    layer.tls.seal_end(wire);
                }
                framed.clear();
            }
        }
    }
}

impl TlsLayer {
    fn open(&mut self, raw: &mut [u8], payload: &mut Vec<u8>, wire: &mut Vec<u8>) -> Result<bool, TransportFault> {
        let opened = self.filter.open(raw, payload, wire)?;
        self.incomplete = raw[opened.used..].to_vec();
        Ok(opened.peer_closed)
    }

    fn seal(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> Result<(), TransportFault> {
        if plain.is_empty() {
            return Ok(());
        }
        self.filter.seal(&mut self.incomplete, plain, wire)
    }

    fn seal_end(&mut self, wire: &mut Vec<u8>) {
        if self.filter.is_established() {
            self.filter.seal_close(&mut self.incomplete, wire);
        }
    }
}

impl WebSocketLayer {
    fn open(&mut self, raw: &mut [u8], frame_bytes_max: u64, buffers: &mut Buffers) -> Result<bool, TransportFault> {
        let Buffers { payload, below, framed, wire } = buffers;
        below.clear();
        below.append(&mut self.incomplete);
        let tls_closed = self.tls.open(raw, below, wire)?;
        let inbound = self.websocket.open(below, frame_bytes_max, payload, framed)?;
        self.incomplete = below[inbound.used..].to_vec();
        Ok(tls_closed || inbound.peer_closed)
    }
}

/// What the first bytes of a connection say about a device that took the wrong port; `None`: nothing wrong so far.
pub fn wrong_port(protocol: Protocol, first: &[u8]) -> Option<TransportFault> {
    const TLS_HANDSHAKE: u8 = 0x16;
    const MQTT_CONNECT: u8 = 0x10;
    match (protocol, first) {
        (Protocol::MqttPlain, [TLS_HANDSHAKE, 0x03, ..]) => Some(TransportFault::TlsOnPlainPort),
        (Protocol::MqttPlain, _) => None,
        (_, [MQTT_CONNECT, ..]) => Some(TransportFault::PlainOnTlsPort),
        (_, [first, second, ..]) if first.is_ascii_uppercase() && second.is_ascii_uppercase() => {
            Some(TransportFault::HttpOnTlsPort)
        }
        _ => None,
    }
}
