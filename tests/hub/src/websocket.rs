//! WebSocket as a byte stream: what AMQP writes goes out as binary messages, binary messages are what it reads. Public
//! for tests, which need the client's end of it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

/// The largest message taken: clients put any number of AMQP frames into one.
const MESSAGE_BYTES_MAX: usize = 4 << 20;
/// The largest message made.
const WRITE_BYTES_MAX: usize = 64 << 10;

/// Whether the request asks for a WebSocket with this subprotocol. The value for `Sec-WebSocket-Accept` if so.
///
/// # Errors
/// What is wrong with it, for a 400.
pub(crate) fn accept_key(headers: &HeaderMap, subprotocol: &str) -> Result<String, &'static str> {
    if !has_token(headers, &UPGRADE, "websocket") || !has_token(headers, &CONNECTION, "upgrade") {
        return Err("this path is for WebSocket upgrades only");
    }
    if !has_token(headers, &SEC_WEBSOCKET_VERSION, "13") {
        return Err("the WebSocket version must be 13");
    }
    if !has_token(headers, &SEC_WEBSOCKET_PROTOCOL, subprotocol) {
        return Err("the subprotocol must be AMQPWSB10");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("Sec-WebSocket-Key is missing")?;
    Ok(derive_accept_key(key.as_bytes()))
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// A byte stream over a WebSocket. What was written goes out with `flush`.
#[derive(Debug)]
pub struct WebSocketBytes<S> {
    socket: WebSocketStream<S>,
    unread: Bytes,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketBytes<S> {
    /// The server's end, after the upgrade was answered.
    pub async fn server(stream: S) -> Self {
        Self::new(stream, Role::Server).await
    }

    /// The client's end, after the upgrade was answered.
    pub async fn client(stream: S) -> Self {
        Self::new(stream, Role::Client).await
    }

    async fn new(stream: S, role: Role) -> Self {
        let mut config = WebSocketConfig::default();
        config.read_buffer_size = 16 << 10;
        config.write_buffer_size = WRITE_BYTES_MAX;
        config.max_write_buffer_size = 4 * WRITE_BYTES_MAX;
        config.max_message_size = Some(MESSAGE_BYTES_MAX);
        config.max_frame_size = Some(MESSAGE_BYTES_MAX);
        let socket = WebSocketStream::from_raw_socket(stream, role, Some(config)).await;
        Self { socket, unread: Bytes::new() }
    }

    /// The next binary message into `unread`; false at the end of the stream.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) if bytes.is_empty() => {}
                Some(Ok(Message::Binary(bytes))) => {
                    self.unread = bytes;
                    return Poll::Ready(Ok(true));
                }
                Some(Ok(Message::Text(_))) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                // answered by the WebSocket layer with the next flush
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(false)),
                Some(Err(error)) => return Poll::Ready(into_end(error)),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBytes<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty() && !ready!(self.poll_message(cx))? {
            return Poll::Ready(Ok(()));
        }
        let count = self.unread.len().min(buf.remaining());
        buf.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketBytes<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(into_io)?;
        let count = bytes.len().min(WRITE_BYTES_MAX);
        let message = Message::Binary(Bytes::copy_from_slice(&bytes[..count]));
        Pin::new(&mut self.socket).start_send(message).map_err(into_io)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(into_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(into_io)
    }
}

fn into_end(error: Error) -> io::Result<bool> {
    match error {
        Error::ConnectionClosed | Error::AlreadyClosed => Ok(false),
        error => Err(into_io(error)),
    }
}

fn into_io(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        error => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_unchanged_whatever_the_sizes_of_writes_and_messages() {
        let (client, server) = tokio::io::duplex(1000);
        let mut client = WebSocketBytes::client(client).await;
        let mut server = WebSocketBytes::server(server).await;
        let sent: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let writing = async move {
            for chunk in sent.chunks(70_001) {
                client.write_all(chunk).await?;
                client.flush().await?;
            }
            client.shutdown().await
        };
        let mut received = Vec::new();
        let (written, read) = tokio::join!(writing, server.read_to_end(&mut received));
        written.expect("written");
        read.expect("read");
        assert_eq!(received, expected);
    }

    #[test]
    fn an_upgrade_without_the_subprotocol_is_refused() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            (UPGRADE, "WebSocket"),
            (CONNECTION, "keep-alive, Upgrade"),
            (SEC_WEBSOCKET_VERSION, "13"),
            (SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ] {
            headers.insert(name, value.parse().expect("legal"));
        }
        assert!(accept_key(&headers, "AMQPWSB10").is_err());
        headers.insert(SEC_WEBSOCKET_PROTOCOL, "mqtt, AMQPWSB10".parse().expect("legal"));
        // the example of RFC 6455, 1.3
        assert_eq!(accept_key(&headers, "AMQPWSB10").as_deref(), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        headers.remove(UPGRADE);
        assert!(accept_key(&headers, "AMQPWSB10").is_err());
    }
}
