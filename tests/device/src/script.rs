//! One scripted device on a blocking socket: a test says step by step what it sends and what it expects.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::ServerName;
use tungstenite::{Message as Frame, WebSocket, client::IntoClientRequest, http::HeaderValue};

use crate::packet::{self, Message, Received};

/// How long [`Device::expect`] waits.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How a device reaches the gateway.
#[derive(Clone)]
pub enum Transport {
    /// MQTT without TLS.
    Plain,
    /// MQTT over TLS; the name must be in the certificate.
    Tls(Arc<ClientConfig>, String),
    /// MQTT over WebSocket over TLS; the name must be in the certificate.
    WebSocket(Arc<ClientConfig>, String),
}

/// The bytes between device and gateway.
pub enum Stream {
    /// TCP.
    Plain(TcpStream),
    /// TLS.
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// Binary WebSocket frames.
    WebSocket(Box<WebSocket<StreamOwned<ClientConnection, TcpStream>>>),
}

/// Who the device says it is.
#[derive(Debug, Clone)]
pub struct Login {
    /// MQTT client id.
    pub client_id: String,
    /// MQTT user name.
    pub user_name: Option<String>,
    /// MQTT password.
    pub password: Option<String>,
    /// Seconds.
    pub keep_alive_s: u16,
    /// Clean Session.
    pub clean_session: bool,
}

impl Login {
    /// The login of `device_id` at `hub_host` with its own key and a token of one hour.
    pub fn with_key(hub_host: &str, device_id: &str, key_base64: &str) -> anyhow::Result<Self> {
        let path = device_id.replacen('/', "/modules/", 1);
        let expires = crate::sas::unix_now() + 3600;
        let token = crate::sas::token(&format!("{hub_host}/devices/{path}"), key_base64, None, expires)?;
        Ok(Self { password: Some(token), ..Self::with_certificate(hub_host, device_id) })
    }

    /// The login of `device_id` at `hub_host` without a password: its certificate tells who it is.
    pub fn with_certificate(hub_host: &str, device_id: &str) -> Self {
        Self {
            client_id: device_id.to_owned(),
            user_name: Some(format!("{hub_host}/{device_id}/?api-version=2021-04-12")),
            password: None,
            keep_alive_s: 60,
            clean_session: true,
        }
    }
}

/// A connected device. Dropping it closes the socket hard, without DISCONNECT.
pub struct Device {
    stream: Stream,
    /// Bytes read and not yet taken as packets.
    buffer: Vec<u8>,
    next_id: u16,
}

impl Device {
    /// Opens the transport; no CONNECT yet.
    pub fn open(address: SocketAddr, transport: &Transport) -> anyhow::Result<Self> {
        let socket =
            TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("cannot reach {address}"))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let stream = match transport {
            Transport::Plain => Stream::Plain(socket),
            Transport::Tls(config, name) => Stream::Tls(Box::new(tls(socket, config, name)?)),
            Transport::WebSocket(config, name) => {
                Stream::WebSocket(Box::new(websocket(tls(socket, config, name)?, name)?))
            }
        };
        Ok(Self { stream, buffer: Vec::new(), next_id: 0 })
    }

    /// Opens the transport and connects; an answer other than CONNACK 0 is an error that names the code.
    pub fn connect(address: SocketAddr, transport: &Transport, login: &Login) -> anyhow::Result<Self> {
        let mut device = Self::open(address, transport)?;
        match device.login(login)? {
            0 => Ok(device),
            code => bail!("CONNACK {code}"),
        }
    }

    /// Sends CONNECT and returns the CONNACK's return code.
    pub fn login(&mut self, login: &Login) -> anyhow::Result<u8> {
        let mut out = Vec::new();
        let password = login.password.as_deref().map(str::as_bytes);
        packet::connect(
            &mut out,
            &login.client_id,
            login.user_name.as_deref(),
            password,
            login.keep_alive_s,
            login.clean_session,
        );
        self.write(&out)?;
        match self.expect("CONNACK")? {
            Received::ConnAck(code, _) => Ok(code),
            other => bail!("expected CONNACK, got {other:?}"),
        }
    }

    /// Sends a QoS 1 PUBLISH and returns its packet id; the PUBACK is not awaited.
    pub fn publish(&mut self, topic: &str, payload: &[u8]) -> anyhow::Result<u16> {
        let id = self.id();
        let mut out = Vec::new();
        packet::publish(&mut out, topic, payload, Some(id), false, false);
        self.write(&out)?;
        Ok(id)
    }

    /// Sends a QoS 0 PUBLISH.
    pub fn publish_at_most_once(&mut self, topic: &str, payload: &[u8]) -> anyhow::Result<()> {
        let mut out = Vec::new();
        packet::publish(&mut out, topic, payload, None, false, false);
        self.write(&out)
    }

    /// Waits for the PUBACK of `packet_id`; anything else first is an error.
    pub fn expect_puback(&mut self, packet_id: u16) -> anyhow::Result<()> {
        match self.expect("PUBACK")? {
            Received::PubAck(id) if id == packet_id => Ok(()),
            other => bail!("expected PUBACK {packet_id}, got {other:?}"),
        }
    }

    /// Subscribes and returns the codes granted.
    pub fn subscribe(&mut self, filters: &[(&str, u8)]) -> anyhow::Result<Vec<u8>> {
        let id = self.id();
        let mut out = Vec::new();
        packet::subscribe(&mut out, id, filters);
        self.write(&out)?;
        match self.expect("SUBACK")? {
            Received::SubAck(answered, codes) if answered == id => Ok(codes),
            other => bail!("expected SUBACK {id}, got {other:?}"),
        }
    }

    /// Unsubscribes and waits for the UNSUBACK.
    pub fn unsubscribe(&mut self, filters: &[&str]) -> anyhow::Result<()> {
        let id = self.id();
        let mut out = Vec::new();
        packet::unsubscribe(&mut out, id, filters);
        self.write(&out)?;
        match self.expect("UNSUBACK")? {
            Received::UnsubAck(answered) if answered == id => Ok(()),
            other => bail!("expected UNSUBACK {id}, got {other:?}"),
        }
    }

    /// Waits for a message; it is not acknowledged.
    pub fn expect_message(&mut self) -> anyhow::Result<Message> {
        match self.expect("PUBLISH")? {
            Received::Publish(message) => Ok(message),
            other => bail!("expected a PUBLISH, got {other:?}"),
        }
    }

    /// Sends a PUBACK.
    pub fn acknowledge(&mut self, packet_id: u16) -> anyhow::Result<()> {
        let mut out = Vec::new();
        packet::puback(&mut out, packet_id);
        self.write(&out)
    }

    /// Sends PINGREQ and waits for PINGRESP.
    pub fn ping(&mut self) -> anyhow::Result<()> {
        let mut out = Vec::new();
        packet::pingreq(&mut out);
        self.write(&out)?;
        match self.expect("PINGRESP")? {
            Received::PingResp => Ok(()),
            other => bail!("expected PINGRESP, got {other:?}"),
        }
    }

    /// Sends DISCONNECT and waits for the server to close.
    pub fn disconnect(mut self) -> anyhow::Result<()> {
        let mut out = Vec::new();
        packet::disconnect(&mut out);
        self.write(&out)?;
        self.expect_close()
    }

    /// Sends any bytes.
    pub fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match &mut self.stream {
            Stream::Plain(socket) => socket.write_all(bytes)?,
            Stream::Tls(tls) => tls.write_all(bytes).and_then(|()| tls.flush())?,
            Stream::WebSocket(ws) => ws.send(Frame::binary(bytes.to_vec()))?,
        }
        Ok(())
    }

    /// The next packet, which the test calls `what`.
    pub fn expect(&mut self, what: &str) -> anyhow::Result<Received> {
        loop {
            if let Some((packet, consumed)) = packet::read(&self.buffer)? {
                self.buffer.drain(..consumed);
                return Ok(packet);
            }
            if self.fill().with_context(|| format!("waiting for {what}"))? == 0 {
                bail!("closed by the server while waiting for {what}");
            }
        }
    }

    /// Expects the server to close without sending another packet.
    pub fn expect_close(&mut self) -> anyhow::Result<()> {
        loop {
            if let Some((packet, _)) = packet::read(&self.buffer)? {
                bail!("expected the end, got {packet:?}");
            }
            match self.fill() {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if is_end(&error) => return Ok(()),
                Err(error) => return Err(error).context("waiting for the server to close"),
            }
        }
    }

    /// Expects that nothing arrives for `time`.
    pub fn expect_silence(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.socket().set_read_timeout(Some(left))?;
            let result = self.fill();
            self.socket().set_read_timeout(Some(PATIENCE))?;
            match result {
                Err(error) if is_timeout(&error) => return Ok(()),
                Err(error) => return Err(error).context("expected silence"),
                Ok(0) => bail!("closed by the server, expected silence"),
                Ok(_) => {
                    if let Some((packet, _)) = packet::read(&self.buffer)? {
                        bail!("expected silence, got {packet:?}");
                    }
                }
            }
        }
        Ok(())
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(socket) => socket,
            Stream::Tls(tls) => &tls.sock,
            Stream::WebSocket(ws) => &ws.get_ref().sock,
        }
    }

    /// The bytes of the transport, for tests of the transport itself.
    pub fn stream(&mut self) -> &mut Stream {
        &mut self.stream
    }

    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.next_id
    }

    /// Reads once; 0 is the end.
    fn fill(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        loop {
            let read = match &mut self.stream {
                Stream::Plain(socket) => socket.read(&mut chunk),
                Stream::Tls(tls) => tls.read(&mut chunk),
                Stream::WebSocket(ws) => return read_frame(ws, &mut self.buffer),
            };
            match read {
                // a socket with a time-out is woken by signals (of a test, a debugger) that have nothing to do with it
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => {
                    let read = read?;
                    self.buffer.extend_from_slice(&chunk[..read]);
                    return Ok(read);
                }
            }
        }
    }
}

fn read_frame<S: Read + Write>(ws: &mut WebSocket<S>, buffer: &mut Vec<u8>) -> io::Result<usize> {
    match ws.read() {
        Ok(Frame::Binary(bytes)) => {
            buffer.extend_from_slice(&bytes);
            Ok(bytes.len())
        }
        Ok(Frame::Close(_)) | Err(tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed) => Ok(0),
        Ok(Frame::Text(_)) => Err(io::Error::new(io::ErrorKind::InvalidData, "text frame from the server")),
        Ok(_) => Ok(usize::MAX),
        Err(tungstenite::Error::Io(error)) => Err(error),
        Err(error) => Err(io::Error::other(error)),
    }
}

fn tls(
    socket: TcpStream,
    config: &Arc<ClientConfig>,
    name: &str,
) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from(name.to_owned())?;
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name)?, socket);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock).context("TLS handshake")?;
    }
    Ok(stream)
}

fn websocket<S: Read + Write>(stream: S, name: &str) -> anyhow::Result<WebSocket<S>> {
    let mut request = format!("wss://{name}/$iothub/websocket").into_client_request()?;
    request.headers_mut().insert("Sec-WebSocket-Protocol", HeaderValue::from_static("mqtt"));
    let (ws, _) =
        tungstenite::client(request, stream).map_err(|error| anyhow::anyhow!("WebSocket handshake: {error}"))?;
    Ok(ws)
}

/// Ends that a closing server may cause: with or without close_notify, orderly or by reset.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
