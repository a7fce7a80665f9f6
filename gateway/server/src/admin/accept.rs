//! Accepts connections of the admin port, plain or with mutual TLS; slow and silent ones hold up nobody for long.

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, Sleep, sleep},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::debug;

/// Connections of the admin port at a time; further ones wait in the listen queue.
const CONNECTIONS_MAX: usize = 64;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection on which nothing moves for so long is closed: each holds one of the places.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// After an error of `accept`.
const PAUSE: Duration = Duration::from_millis(200);

/// Hands over connections whose handshake is done.
pub(super) struct AdminListener {
    ready: mpsc::Receiver<(AdminStream, SocketAddr)>,
    address: SocketAddr,
}

impl AdminListener {
    pub(super) fn new(listener: std::net::TcpListener, tls: Option<Arc<ArcSwap<ServerConfig>>>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let listener = TcpListener::from_std(listener)?;
        let (sender, ready) = mpsc::channel(CONNECTIONS_MAX);
        tokio::spawn(accept(listener, tls, sender));
        Ok(Self { ready, address })
    }
}

impl axum::serve::Listener for AdminListener {
    type Io = AdminStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (AdminStream, SocketAddr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // the accepting task ends only with its runtime
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    ready: mpsc::Sender<(AdminStream, SocketAddr)>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "accept failed on the admin port");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let (tls, ready) = (tls.as_ref().map(|tls| tls.load_full()), ready.clone());
        tokio::spawn(async move {
            match shake_hands(stream, tls).await {
                // as many places as permits: there is room
                Ok(layer) => drop(ready.try_send((AdminStream::new(layer, permit), address))),
                Err(error) => debug!(%address, %error, "admin connection refused"),
            }
        });
    }
}

async fn shake_hands(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> io::Result<Layer> {
    let Some(tls) = tls else { return Ok(Layer::Plain(stream)) };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
        Ok(stream) => Ok(Layer::Tls(Box::new(stream?))),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// One connection of the admin port.
pub(super) struct AdminStream {
    layer: Layer,
    silence: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl AdminStream {
    fn new(layer: Layer, permit: OwnedSemaphorePermit) -> Self {
        Self { layer, silence: Box::pin(sleep(SILENCE_MAX)), _permit: permit }
    }

    /// What came of a read or write; an error if nothing has moved for too long.
    fn watch<T>(&mut self, cx: &mut Context<'_>, moved: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if moved.is_ready() {
            self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
            return moved;
        }
        self.silence.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

enum Layer {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for AdminStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = match &mut self.layer {
            Layer::Plain(stream) => Pin::new(stream).poll_read(cx, room),
            Layer::Tls(stream) => Pin::new(stream).poll_read(cx, room),
        };
        self.watch(cx, read)
    }
}

impl AsyncWrite for AdminStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.layer {
            Layer::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Layer::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.watch(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.layer {
            Layer::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Layer::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.layer {
            Layer::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Layer::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
