//! `/healthz`, `/readyz` and `/metrics` in plain HTTP: for the kubelet and Prometheus. Tells nothing that is secret.
//!
//! Bounded in connections, in the time a request may take to come, and in the life of a connection.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, info};

use crate::metrics::Metrics;

/// Connections at a time; further ones are closed.
const CONNECTIONS_MAX: usize = 64;
/// A request must have come within this, and the next one on a connection that is kept.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection is asked to end after this: one that does not read holds its place no longer.
const CONNECTION_AGE_MAX: Duration = Duration::from_mins(5);
/// It has this to finish what it is at.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// After an error of `accept`.
const PAUSE: Duration = Duration::from_millis(200);

/// Whether the operator lives and is ready. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By loop: when it must beat again.
    beats: Mutex<BTreeMap<&'static str, Instant>>,
    /// By part: what it waits for.
    waiting: Mutex<BTreeMap<&'static str, String>>,
}

/// The pulse of one loop: without a beat within its time, `/healthz` fails. Dropped, it is not expected any more.
#[derive(Debug)]
pub struct Pulse {
    health: Health,
    name: &'static str,
    within: Duration,
}

impl Health {
    /// Alive and ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Expects the loop `name` to beat at least every `within` from now on.
    pub fn pulse(&self, name: &'static str, within: Duration) -> Pulse {
        let pulse = Pulse { health: self.clone(), name, within };
        pulse.beat();
        pulse
    }

    /// Not ready: `part` waits for something.
    pub fn waits(&self, part: &'static str, reason: impl Into<String>) {
        lock(&self.0.waiting).insert(part, reason.into());
    }

    /// `part` waits for nothing any more.
    pub fn is_ready(&self, part: &'static str) {
        lock(&self.0.waiting).remove(part);
    }

    /// Loops that do not beat, one a line; empty if all do.
    fn dead(&self, now: Instant) -> String {
        let beats = lock(&self.0.beats);
        let late = beats.iter().filter(|(_, due)| **due < now);
        lines(late.map(|(name, due)| (name, format!("no sign of life, due {} s ago", (now - *due).as_secs()))))
    }

    /// What is waited for, one a line; empty if nothing is.
    fn waiting(&self) -> String {
        lines(lock(&self.0.waiting).iter())
    }
}

impl Pulse {
    /// A sign of life.
    pub fn beat(&self) {
        lock(&self.health.0.beats).insert(self.name, Instant::now() + self.within);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        lock(&self.health.0.beats).remove(self.name);
    }
}

fn lines<'a>(faults: impl Iterator<Item = (&'a &'static str, impl Display)>) -> String {
    faults.fold(String::new(), |text, (part, fault)| text + part + ": " + &fault.to_string() + "\n")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // a map is whole whoever panicked beside it
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, health: Health, metrics: Metrics) {
    info!(address = ?listener.local_addr().ok(), "health and metrics served");
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "accept failed on the health and metrics port");
                metrics.http_refused.with_label_values(&["accept"]).inc();
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            metrics.http_refused.with_label_values(&["connections"]).inc();
            continue;
        };
        let (health, metrics) = (health.clone(), metrics.clone());
        tokio::spawn(async move {
            connection(stream, address, &health, &metrics).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, address: SocketAddr, health: &Health, metrics: &Metrics) {
    let service = service_fn(|request: Request<Incoming>| async move {
        Ok::<_, Infallible>(answer(request.method(), request.uri().path(), health, metrics))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = if let Ok(ended) = timeout(CONNECTION_AGE_MAX, connection.as_mut()).await {
        ended
    } else {
        metrics.http_refused.with_label_values(&["age"]).inc();
        connection.as_mut().graceful_shutdown();
        timeout(FINISH_TIMEOUT, connection).await.unwrap_or(Ok(()))
    };
    if let Err(error) = ended {
        debug!(%address, %error, "connection of the health and metrics port ended");
    }
}

fn answer(method: &Method, path: &str, health: &Health, metrics: &Metrics) -> Response<Full<Bytes>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET only\n".to_owned());
    }
    let verdict = |faults: String| {
        let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        text(status, "text/plain", if faults.is_empty() { "ok\n".to_owned() } else { faults })
    };
    match path {
        "/healthz" => verdict(health.dead(Instant::now())),
        "/readyz" => verdict(health.waiting()),
        "/metrics" => text(StatusCode::OK, prometheus::TEXT_FORMAT, metrics.text()),
        _ => text(StatusCode::NOT_FOUND, "text/plain", "here are /healthz, /readyz and /metrics\n".to_owned()),
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn check(health: &Health, path: &str, status: u16) {
        let answer = answer(&Method::GET, path, health, &Metrics::new());
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }

    #[test]
    fn it_is_ready_when_nothing_is_waited_for() {
        let health = Health::new();
        check(&health, "/readyz", 200);
        health.waits("api", "ProtocolGateway is not known");
        health.waits("caches", "not synced");
        check(&health, "/readyz", 503);
        assert_eq!(health.waiting(), "api: ProtocolGateway is not known\ncaches: not synced\n");
        health.is_ready("api");
        check(&health, "/readyz", 503);
        health.is_ready("caches");
        check(&health, "/readyz", 200);
        check(&health, "/healthz", 200);
        check(&health, "/other", 404);
    }

    #[test]
    fn a_loop_that_does_not_beat_is_dead_until_it_does() {
        let health = Health::new();
        let pulse = health.pulse("controller", Duration::from_mins(1));
        assert_eq!(health.dead(Instant::now()), "");
        let later = Instant::now() + Duration::from_secs(70);
        assert_eq!(health.dead(later), "controller: no sign of life, due 10 s ago\n");
        drop(pulse);
        assert_eq!(health.dead(later), "", "one that ended is not expected");
        drop(health.pulse("controller", Duration::ZERO));
        let _late = health.pulse("controller", Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        check(&health, "/healthz", 503);
    }

    async fn server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, Health::new(), Metrics::new()));
        address
    }

    async fn ask(stream: &mut TcpStream, request: &str) -> String {
        stream.write_all(request.as_bytes()).await.expect("it is written");
        let mut text = vec![0; 64 << 10];
        let read = stream.read(&mut text).await.expect("an answer");
        String::from_utf8_lossy(&text[..read]).into_owned()
    }

    #[tokio::test]
    async fn metrics_are_served_on_a_connection_that_is_kept() {
        let mut stream = TcpStream::connect(server().await).await.expect("it accepts");
        for _ in 0..2 {
            let answer = ask(&mut stream, "GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains("operator_leader 0"), "{answer}");
        }
        let answer = ask(&mut stream, "POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    }

    #[tokio::test]
    async fn silent_connections_do_not_take_more_than_their_places() {
        let address = server().await;
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.expect("it accepts");
            ask(&mut stream, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
            held.push(stream);
        }
        let mut further = TcpStream::connect(address).await.expect("the system accepts");
        let _ = further.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let read = further.read(&mut [0; 16]).await;
        assert!(matches!(read, Ok(0) | Err(_)), "it is closed: {read:?}");
        held.pop();
        sleep(Duration::from_millis(50)).await;
        let mut again = TcpStream::connect(address).await.expect("it accepts");
        let answer = ask(&mut again, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
