//! Listeners: TCP, TLS, HTTP and WebSocket, down to the byte streams that AMQP and REST are served on. One task per
//! connection, all on one thread.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, error, warn};

use crate::amqp;
use crate::domain::{ClientCertificate, Domain};
use crate::rest;
use crate::websocket::{WebSocketBytes, accept_key};

/// Connections the kernel may hold for us: a fleet reconnects at once.
const BACKLOG: u32 = 4096;
/// Locks lapse, messages expire and batches close this late at worst.
const TICK: Duration = Duration::from_millis(100);
/// How long a listener tries to get its port back after refusing.
const REBIND_TRIES: u32 = 200;
const REBIND_PAUSE: Duration = Duration::from_millis(50);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const WEBSOCKET_PATH: &str = "/$iothub/websocket";
const WEBSOCKET_SUBPROTOCOL: &str = "AMQPWSB10";

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) domain: Arc<Domain>,
    pub(crate) amqp: Arc<amqp::AmqpSettings>,
    pub(crate) tls: TlsAcceptor,
    pub(crate) connections_max: usize,
    pub(crate) handshake_timeout: Duration,
}

/// What is served on a port.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Service {
    Amqps,
    Amqp,
    Https,
}

/// A bound port.
pub(crate) struct Port {
    pub(crate) service: Service,
    pub(crate) listener: TcpListener,
    pub(crate) address: SocketAddr,
}

/// Listens. Needs a runtime's context.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until told to stop.
pub(crate) async fn run(shared: Arc<Shared>, ports: Vec<Port>, mut stopped: watch::Receiver<bool>) {
    for port in ports {
        tokio::spawn(listen(shared.clone(), port));
    }
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => shared.domain.tick(),
            // an error is a Hub that went away without a word
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
    }
}

async fn listen(shared: Arc<Shared>, mut port: Port) {
    let permits = Arc::new(Semaphore::new(shared.connections_max));
    let mut refuse = shared.domain.refuse_until_ms();
    loop {
        tokio::select! {
            accepted = port.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if let Ok(permit) = permits.clone().try_acquire_owned() {
                        tokio::spawn(serve(shared.clone(), port.service, stream, permit));
                    } else {
                        shared.domain.connections.count_refused();
                        debug!(address = %port.address, "too many connections: one was closed");
                    }
                }
                Err(cause) => {
                    warn!(address = %port.address, %cause, "cannot accept");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            _ = refuse.changed() => {
                drop(port.listener);
                refusal(&shared.domain, &mut refuse).await;
                let Some(listener) = rebind(port.address).await else { return };
                port.listener = listener;
            }
        }
    }
}

/// Waits until connections are welcome again.
async fn refusal(domain: &Domain, refuse: &mut watch::Receiver<u64>) {
    loop {
        let until_ms = *refuse.borrow_and_update();
        let Some(rest_ms) = until_ms.checked_sub(domain.clock.now_ms()).filter(|rest| *rest > 0) else { return };
        // waking up in between, because tests may move the clock
        let rest = Duration::from_millis(rest_ms).min(TICK);
        tokio::select! {
            () = sleep(rest) => {}
            _ = refuse.changed() => {}
        }
    }
}

async fn rebind(address: SocketAddr) -> Option<TcpListener> {
    for _ in 0..REBIND_TRIES {
        match bind(address) {
            Ok(listener) => return Some(listener),
            Err(_) => sleep(REBIND_PAUSE).await,
        }
    }
    error!(%address, "cannot listen again");
    None
}

async fn serve(shared: Arc<Shared>, service: Service, stream: TcpStream, permit: OwnedSemaphorePermit) {
    let _permit = permit;
    if let Err(cause) = stream.set_nodelay(true) {
        debug!(%cause, "connection was gone at once");
        return;
    }
    match service {
        Service::Amqp => serve_amqp(&shared, stream, None, "AMQP").await,
        Service::Amqps => {
            let Some((stream, certificate)) = shake_hands(&shared, stream).await else { return };
            serve_amqp(&shared, stream, certificate, "AMQP").await;
        }
        Service::Https => {
            let Some((stream, certificate)) = shake_hands(&shared, stream).await else { return };
            serve_http(shared, stream, certificate).await;
        }
    }
}

async fn shake_hands(shared: &Shared, stream: TcpStream) -> Option<(TlsStream<TcpStream>, Option<ClientCertificate>)> {
    match timeout(shared.handshake_timeout, shared.tls.accept(stream)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().filter(|chain| !chain.is_empty());
            let certificate = certificates.map(|chain| ClientCertificate {
                chain: chain.iter().map(|certificate| certificate.clone().into_owned()).collect(),
            });
            Some((stream, certificate))
        }
        Ok(Err(cause)) => {
            debug!(%cause, "TLS handshake failed");
            None
        }
        Err(_) => {
            debug!("TLS handshake took too long");
            None
        }
    }
}

async fn serve_amqp<S>(shared: &Shared, stream: S, client_certificate: Option<ClientCertificate>, name: &'static str)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let transport = amqp::Transport { name, client_certificate };
    if let Err(cause) = amqp::serve(stream, transport, shared.domain.clone(), shared.amqp.clone()).await {
        debug!(%cause, "AMQP connection failed");
    }
}

async fn serve_http(shared: Arc<Shared>, stream: TlsStream<TcpStream>, certificate: Option<ClientCertificate>) {
    let service = service_fn(|request: Request<Incoming>| {
        let (shared, certificate) = (shared.clone(), certificate.clone());
        async move { Ok::<_, Infallible>(answer(&shared, request, certificate).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(shared.handshake_timeout);
    if let Err(cause) = http.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        debug!(%cause, "HTTP connection failed");
    }
}

async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    certificate: Option<ClientCertificate>,
) -> Response<Body> {
    // `path()` is the same for the origin form and the absolute form that some clients send
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy();
    if !path.eq_ignore_ascii_case(WEBSOCKET_PATH) {
        return rest::handle(&shared.domain, request).await;
    }
    upgrade(shared, request, certificate)
}

fn upgrade(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    certificate: Option<ClientCertificate>,
) -> Response<Body> {
    let accept = match accept_key(request.headers(), WEBSOCKET_SUBPROTOCOL).map(HeaderValue::try_from) {
        Ok(Ok(accept)) => accept,
        Ok(Err(_)) => return plain(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is not legal"),
        Err(reason) => return plain(StatusCode::BAD_REQUEST, reason),
    };
    let upgraded = hyper::upgrade::on(&mut request);
    let shared = shared.clone();
    tokio::spawn(async move {
        match upgraded.await {
            Ok(stream) => {
                let stream = WebSocketBytes::server(TokioIo::new(stream)).await;
                serve_amqp(&shared, stream, certificate, "AMQP_WS").await;
            }
            Err(cause) => debug!(%cause, "WebSocket upgrade failed"),
        }
    });
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(WEBSOCKET_SUBPROTOCOL));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}
