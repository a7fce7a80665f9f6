//! The task of one connection: reads, lets the state machine work, writes once per wake. All I/O of the AMQP side.

use std::io;
use std::sync::Arc;
use std::time::Duration;

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
    Task { connection, reader, writer, clock, is_flushed: true, written_at: Instant::now(), is_busy: false }.run().await
}

struct Task<R, W> {
    connection: Connection,
    reader: R,
    writer: W,
    clock: Ticker,
    /// Nothing written is left in the stream's own buffers.
    is_flushed: bool,
    /// When the peer last took something, or had nothing to take.
    written_at: Instant,
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
    Written(usize),
    Posted,
    Timeout,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Task<R, W> {
    async fn run(mut self) -> io::Result<()> {
        loop {
            if self.connection.has_ended() && self.connection.out.is_empty() && self.is_flushed {
                return self.shutdown().await;
            }
            match self.wait().await? {
                Woken::Read(0) => return Ok(()),
                Woken::Read(bytes) => {
                    self.is_busy = bytes >= READ_BYTES;
                    self.connection.handle_input(self.clock.now());
                }
                Woken::Written(bytes) => {
                    self.written_at = Instant::now();
                    self.connection.handle_written(bytes);
                    self.connection.turn(self.clock.now());
                }
                Woken::Posted => self.connection.handle_mail(self.clock.now()),
                Woken::Timeout => {
                    if !self.is_flushed && self.written_at.elapsed() >= WRITE_TIMEOUT {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.connection.handle_timeout(self.clock.now());
                }
            }
        }
    }

    async fn wait(&mut self) -> io::Result<Woken> {
        let deadline = self.deadline();
        let connection = &mut self.connection;
        let wants_input = connection.wants_input();
        let has_output = !connection.out.is_empty() || !self.is_flushed;
        if wants_input {
            connection.input.reserve(if self.is_busy { READ_BYTES_BUSY } else { READ_BYTES });
        }
        let mailbox = connection.mailbox.clone();
        let (input, out) = (&mut connection.input, &mut connection.out);
        let flushed = &mut self.is_flushed;
        tokio::select! {
            read = self.reader.read_buf(input), if wants_input => read.map(Woken::Read),
            written = write(&mut self.writer, out, flushed), if has_output => written.map(Woken::Written),
            () = mailbox.ready() => Ok(Woken::Posted),
            () = sleep_until(deadline) => Ok(Woken::Timeout),
        }
    }

    fn deadline(&self) -> Instant {
        let timer = self.connection.poll_timeout().map(|tick| self.clock.start + Duration::from_millis(tick));
        let write = (!self.is_flushed).then(|| self.written_at + WRITE_TIMEOUT);
        let idle = Instant::now() + IDLE_TURN;
        [timer, write].into_iter().flatten().fold(idle, Instant::min)
    }

    async fn shutdown(mut self) -> io::Result<()> {
        // the peer may be gone already: there is nothing left to say to it
        let _ = tokio::time::timeout(Duration::from_secs(1), self.writer.shutdown()).await;
        Ok(())
    }
}

/// Writes what there is, and flushes after the last byte. Cancel-safe: what was written has left `out`.
async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    out: &mut bytes::BytesMut,
    is_flushed: &mut bool,
) -> io::Result<usize> {
    if out.is_empty() {
        writer.flush().await?;
        *is_flushed = true;
        return Ok(0);
    }
    *is_flushed = false;
    let bytes = writer.write_buf(out).await?;
    if bytes == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(bytes) }
}
