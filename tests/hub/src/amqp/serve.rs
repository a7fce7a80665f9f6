//! The task of one connection: reads, lets the state machine work, writes once per wake. All I/O of the AMQP side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::connection::{Connection, Now};
use super::settings::AmqpSettings;
use crate::domain::{ClientCertificate, Domain};

/// Room for one read; a connection that fills it gets the larger one.
const READ_BYTES: usize = 4 * 1024;
const READ_BYTES_BUSY: usize = 64 * 1024;
/// A peer that takes nothing for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a connection that has ended waits for the peer to see it.
const FAREWELL: Duration = Duration::from_secs(1);
/// Without any timer the task looks around this often.
const IDLE_TURN: Duration = Duration::from_hours(1);

/// What is known of a connection before its first byte.
#[derive(Clone, Debug)]
pub struct Transport {
    /// `AMQP` or `AMQP_WS`.
    pub name: &'static str,
    /// The certificate that the client showed in TLS, if any; what it is worth is decided at each attach.
    pub client_certificate: Option<ClientCertificate>,
}

/// Serves AMQP 1.0 on a byte stream (TLS or WebSocket already taken off) until it ends.
///
/// # Errors
/// Those of the stream. What a peer does wrong is answered on the wire and is no error here.
pub async fn serve<S>(
    stream: S,
    transport: Transport,
    domain: Arc<Domain>,
    settings: Arc<AmqpSettings>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let clock = Ticker { start: Instant::now(), domain: domain.clone() };
    let connection = Connection::new(domain, settings, transport, clock.now());
    let (reader, writer) = tokio::io::split(stream);
    let progress = (0, Instant::now());
    Task { connection, reader, writer, clock, progress, is_busy: false }.run().await
}

struct Task<R, W> {
    connection: Connection,
    reader: R,
    writer: W,
    clock: Ticker,
    /// How much the stream had taken when it took something last, or had nothing to take, and when that was.
    progress: (u64, Instant),
    /// The last read filled its room.
    is_busy: bool,
}

struct Ticker {
    start: Instant,
    domain: Arc<Domain>,
}

impl Ticker {
    fn now(&self) -> Now {
        Now { unix_ms: self.domain.clock.now_ms(), tick: self.start.elapsed().as_millis() as u64 }
    }
}

enum Woken {
    Read(usize),
    Flushed,
    Posted,
    Timeout,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Task<R, W> {
    async fn run(mut self) -> io::Result<()> {
        loop {
            if self.connection.has_ended() && !self.connection.has_output() {
                return self.shutdown().await;
            }
            match self.wait().await? {
                Woken::Read(0) => return Ok(()),
                Woken::Read(bytes) => {
                    self.is_busy = bytes >= READ_BYTES;
                    self.connection.handle_input(self.clock.now());
                }
                Woken::Flushed => self.connection.handle_flushed(self.clock.now()),
                Woken::Posted => self.connection.handle_mail(self.clock.now()),
                Woken::Timeout => {
                    if self.connection.has_output() && self.progress.1.elapsed() >= WRITE_TIMEOUT {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.connection.handle_timeout(self.clock.now());
                }
            }
        }
    }

    async fn wait(&mut self) -> io::Result<Woken> {
        let has_output = self.connection.has_output();
        let taken = self.connection.taken_bytes();
        if !has_output || taken != self.progress.0 {
            self.progress = (taken, Instant::now());
        }
        let deadline = self.deadline(has_output);
        let connection = &mut self.connection;
        let wants_input = connection.wants_input();
        if wants_input {
            connection.input.reserve(if self.is_busy { READ_BYTES_BUSY } else { READ_BYTES });
        }
        let mailbox = connection.mailbox.clone();
        let (input, out, unflushed) = (&mut connection.input, &mut connection.out, &mut connection.unflushed);
        tokio::select! {
            read = self.reader.read_buf(input), if wants_input => read.map(Woken::Read),
            flushed = write(&mut self.writer, out, unflushed), if has_output => flushed.map(|()| Woken::Flushed),
            () = mailbox.ready() => Ok(Woken::Posted),
            () = sleep_until(deadline) => Ok(Woken::Timeout),
        }
    }

    fn deadline(&self, has_output: bool) -> Instant {
        let timer = self.connection.poll_timeout().map(|tick| self.clock.start + Duration::from_millis(tick));
        let write = has_output.then(|| self.progress.1 + WRITE_TIMEOUT);
        let idle = Instant::now() + IDLE_TURN;
        [timer, write].into_iter().flatten().fold(idle, Instant::min)
    }

    /// Closes our half first and drops what still comes: closing over unread bytes could take our last frames back.
    async fn shutdown(mut self) -> io::Result<()> {
        let farewell = async {
            self.writer.shutdown().await?;
            let mut dropped = [0; 1024];
            while self.reader.read(&mut dropped).await? > 0 {}
            Ok::<_, io::Error>(())
        };
        // the peer may be gone or silent: there is nothing left to say to it
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        Ok(())
    }
}

/// Writes and flushes all there is. Cancel-safe: what the stream took is in `unflushed` and no longer in `out`.
async fn write<W: AsyncWrite + Unpin>(writer: &mut W, out: &mut BytesMut, unflushed: &mut u64) -> io::Result<()> {
    while !out.is_empty() {
        let bytes = writer.write_buf(out).await?;
        if bytes == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *unflushed += bytes as u64;
    }
    writer.flush().await
}
