//! One kept connection to one pod's admin port: HTTP/1.1 over mutual TLS. Everything on it has a time and a size.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::{
    Method, Request, StatusCode,
    body::Incoming,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    task::JoinHandle,
    time::{Instant as Deadline, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::Target;

/// For an answer, on a connection that is there.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// For a connection: TCP and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// For the right to begin one.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// A longer answer is refused.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// A connection is replaced after this, so that a renewed identity comes into use.
const AGE_MAX: Duration = Duration::from_hours(1);

/// Whom to reach, and as whom.
pub(super) struct Peer<'a> {
    pub(super) target: &'a Target,
    pub(super) client: &'a Arc<ClientConfig>,
    pub(super) handshakes: &'a Semaphore,
}

/// What a pod answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    #[error("does not answer in time")]
    Late,
    #[error("answers with more than {BODY_BYTES_MAX} bytes")]
    TooLong,
}

/// The connection, if there is one.
#[derive(Debug, Default)]
pub(super) struct Line(Option<Connection>);

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: JoinHandle<()>,
    begun: Instant,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Line {
    /// Asks, on the connection that is there or on a new one. A connection that turns out to be closed is replaced once.
    pub(super) async fn exchange(
        &mut self,
        peer: &Peer<'_>,
        method: Method,
        path: &'static str,
        body: Vec<u8>,
    ) -> Result<Answer, LineError> {
        let body = Bytes::from(body);
        if let Some(mut kept) = self.0.take().filter(Connection::is_usable) {
            match kept.ask(peer, method.clone(), path, body.clone()).await {
                Ok(answer) => return Ok(self.keep(kept, answer)),
                Err(LineError::Unreachable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut new = Connection::open(peer).await?;
        let answer = new.ask(peer, method, path, body).await?;
        Ok(self.keep(new, answer))
    }

    fn keep(&mut self, connection: Connection, answer: Answer) -> Answer {
        self.0 = Some(connection);
        answer
    }
}

impl Connection {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && self.begun.elapsed() < AGE_MAX
    }

    async fn open(peer: &Peer<'_>) -> Result<Self, LineError> {
        let turn = timeout(TURN_TIMEOUT, peer.handshakes.acquire()).await;
        let _turn = turn.map_err(|_| LineError::Unreachable("too many connections are being made".to_owned()))?;
        timeout(CONNECT_TIMEOUT, Self::connect(peer)).await.map_err(|_| LineError::Late)?
    }

    async fn connect(peer: &Peer<'_>) -> Result<Self, LineError> {
        let Target { address, admin_port, server_name, .. } = peer.target;
        let name = ServerName::try_from(server_name.clone()).map_err(unreachable)?;
        let socket = TcpStream::connect((*address, *admin_port)).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let stream = TlsConnector::from(peer.client.clone()).connect(name, socket).await.map_err(unreachable)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
        let task = tokio::spawn(async move {
            // the asker hears of it as an answer that does not come
            let _ = connection.await;
        });
        Ok(Self { sender, task, begun: Instant::now() })
    }

    async fn ask(&mut self, peer: &Peer<'_>, method: Method, path: &str, body: Bytes) -> Result<Answer, LineError> {
        let deadline = Deadline::now() + ANSWER_TIMEOUT;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &peer.target.server_name)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(unreachable)?;
        let response = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        let response = timeout_at(deadline, response).await.map_err(|_| LineError::Late)?.map_err(unreachable)?;
        let status = response.status();
        let body = timeout_at(deadline, read(response.into_body())).await.map_err(|_| LineError::Late)??;
        Ok(Answer { status, body })
    }
}

async fn read(body: Incoming) -> Result<Bytes, LineError> {
    let whole = Limited::new(body, BODY_BYTES_MAX).collect().await;
    whole
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| if error.is::<LengthLimitError>() { LineError::TooLong } else { unreachable(error) })
}

fn unreachable(error: impl fmt::Display) -> LineError {
    LineError::Unreachable(error.to_string())
}
