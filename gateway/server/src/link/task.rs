//! The task of one AMQP connection: **its** loop. It owns the socket, reads once and writes once for each turn, and opens
//! the connection again when it is lost. It decides nothing about devices: [`super::state`] does.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use amqp_endpoint::Cause;
use gateway_core::{time::Millis, upstream::Backoff};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};

use super::{
    Link,
    state::Phase,
    transport::{Broken, Transport},
};
use crate::{
    metrics::{Limit, UpstreamFailure, UpstreamState},
    upstream::clock::random,
};

/// Reads or writes of one turn before other tasks run.
const ROUNDS_MAX: usize = 16;
/// A write buffer that grew beyond this in a burst is given back when it is empty.
const KEPT_BYTES_MAX: usize = 256 * 1024;

/// Why a connection, or an attempt at one, is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no answer in time")]
    Timeout,
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("socket failed: {0}")]
    Socket(io::Error),
    /// The endpoint's last word; before and after it was usable these are different failures.
    #[error("closed: {cause:?}")]
    Closed { cause: Cause, was_up: bool },
}

/// Runs one AMQP connection until nobody needs it.
pub(super) async fn run(link: Rc<Link>) {
    let mut backoff = Backoff::new(random(), link.pool.target().limits.backoff);
    loop {
        link.state.borrow_mut().show(UpstreamState::Connecting);
        let started = link.pool.clock.monotonic();
        let end = connect_and_serve(&link).await;
        link.handle_end(&end);
        if link.state.borrow().ending {
            break;
        }
        link.state.borrow_mut().show(UpstreamState::Waiting);
        backoff.handle_lost(link.pool.clock.monotonic().since(started));
        let wait = backoff.next_wait();
        let refused = link.state.borrow_mut().refused.take();
        link.pool.metrics.upstream_problem.set(Some(refused.unwrap_or_else(|| end.to_string())));
        tracing::warn!(core = link.pool.share.core, connection = link.key.0, reason = %end, wait_ms = wait.as_millis(), "no connection to the hub");
        link.ticking(pin!(sleep(wait))).await;
        if link.state.borrow().ending {
            break;
        }
    }
    link.state.borrow_mut().hide();
    link.pool.running.set(link.pool.running.get() - 1);
}

async fn connect_and_serve(link: &Rc<Link>) -> End {
    let (mut stream, transport) = match connect(link).await {
        Ok(connected) => connected,
        Err(end) => return end,
    };
    link.state.borrow_mut().open();
    let mut driver = Driver::new(Rc::clone(link), transport);
    poll_fn(|cx| driver.poll(cx, Pin::new(&mut stream))).await
}

async fn connect(link: &Rc<Link>) -> Result<(TcpStream, Transport), End> {
    let target = link.pool.target();
    let secrets = Rc::clone(link).pool.secrets.borrow().clone();
    let tls = secrets.tls.as_ref().filter(|_| target.tls);
    let transport = match tls {
        Some(config) => Transport::tls(config.clone(), &target.host, target.websocket)?,
        None => Transport::Plain,
    };
    let attempt = timeout(target.limits.request_timeout, TcpStream::connect((target.host.as_str(), target.port)));
    let stream = link.ticking(pin!(attempt)).await.ok_or(End::Timeout)?;
    let stream = stream.map_err(|_| End::Timeout)?.map_err(End::Connect)?;
    stream.set_nodelay(true).map_err(End::Socket)?;
    Ok((stream, transport))
}

impl Link {
    /// Waits for `future` while the waits of the devices go on. `None`: the connection is not needed any more.
    async fn ticking<F: Future>(&self, mut future: Pin<&mut F>) -> Option<F::Output> {
        loop {
            let mut tick = pin!(sleep_until(self.pool.clock.instant(self.state.borrow().poll_timeout())));
            let output = poll_fn(|cx| {
                self.arm(cx.waker());
                match future.as_mut().poll(cx) {
                    Poll::Ready(output) => Poll::Ready(Some(output)),
                    Poll::Pending if self.pool.draining.get() => Poll::Ready(None),
                    Poll::Pending => tick.as_mut().poll(cx).map(|()| None),
                }
            });
            if let Some(output) = output.await {
                return Some(output);
            }
            let ending = {
                let mut state = self.state.borrow_mut();
                state.handle_timeout(self.pool.clock.monotonic());
                state.ending
            };
            if ending {
                return None;
            }
            if self.pool.draining.get() {
                // what is in flight may still be settled, but nothing is to be gained by running hot
                sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Places devices elsewhere that this connection cannot serve.
    fn relocate(&self) {
        let moves = self.state.borrow_mut().take_moves();
        for passenger in moves {
            self.pool.relocate(passenger);
        }
    }

    fn handle_end(&self, end: &End) {
        let ending = {
            let mut state = self.state.borrow_mut();
            state.handle_lost();
            state.ending
        };
        if !ending {
            self.pool.metrics.upstream_failures.at(end.failure()).inc();
        }
        if let End::Timeout | End::Closed { cause: Cause::Timeout, .. } = end {
            self.pool.metrics.limits.at(Limit::RequestTimeout).inc();
        }
        self.relocate();
    }
}

impl End {
    fn failure(&self) -> UpstreamFailure {
        match self {
            Self::Connect(_) | Self::Timeout => UpstreamFailure::Connect,
            Self::Broken(broken) => broken.failure(),
            Self::Closed { cause: Cause::Violation(_) | Cause::Header(_), .. } => UpstreamFailure::Protocol,
            Self::Closed { was_up: false, .. } => UpstreamFailure::Open,
            Self::Closed { cause: Cause::Timeout, .. } => UpstreamFailure::IdleTimeout,
            Self::Socket(_) | Self::Closed { .. } => UpstreamFailure::Lost,
        }
    }
}

/// The socket's side of a connection that is up or on its way there.
struct Driver {
    link: Rc<Link>,
    transport: Transport,
    /// Bytes for the socket, and how many of them are written.
    wire: Vec<u8>,
    written: usize,
    /// AMQP bytes of this read, where the transport is not plain.
    plain: Vec<u8>,
    timer: Pin<Box<Sleep>>,
    timer_at: Millis,
    was_up: bool,
    /// The endpoint has said its last word; what it wrote is still to be written.
    end: Option<End>,
}

impl Driver {
    fn new(link: Rc<Link>, transport: Transport) -> Self {
        Self {
            link,
            transport,
            wire: Vec::new(),
            written: 0,
            plain: Vec::new(),
            timer: Box::pin(sleep_until(Instant::now())),
            timer_at: Millis(0),
            was_up: false,
            end: None,
        }
    }

    /// One turn: read, let the state work, see to the time, write.
    fn poll(&mut self, cx: &mut Context<'_>, mut stream: Pin<&mut TcpStream>) -> Poll<End> {
        self.link.arm(cx.waker());
        self.link.pool.clock.end_turn();
        let turn = self.turn(cx, stream.as_mut());
        self.link.pool.clock.end_turn();
        self.link.relocate();
        match (self.end.take(), turn) {
            (Some(end), _) => {
                self.say_goodbye(cx, stream);
                Poll::Ready(end)
            }
            (None, Err(end)) => Poll::Ready(end),
            (None, Ok(())) => Poll::Pending,
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>, mut stream: Pin<&mut TcpStream>) -> Result<(), End> {
        self.read(cx, stream.as_mut())?;
        self.see_to_time(cx);
        self.write(cx, stream)
    }

    /// The end of TLS, if the socket takes it at once: it is not worth waiting for.
    fn say_goodbye(&mut self, cx: &mut Context<'_>, stream: Pin<&mut TcpStream>) {
        if self.written == self.wire.len() {
            self.wire.clear();
            self.transport.close(&mut self.wire);
            let _ = stream.poll_write(cx, &self.wire);
        }
    }

    /// Reads until there is nothing more; a read that does not fill the buffer is known to be the last.
    fn read(&mut self, cx: &mut Context<'_>, mut stream: Pin<&mut TcpStream>) -> Result<(), End> {
        for round in 0..ROUNDS_MAX {
            let link = Rc::clone(&self.link);
            let mut scratch = link.pool.scratch.borrow_mut();
            let mut buffer = ReadBuf::new(&mut scratch);
            match stream.as_mut().poll_read(cx, &mut buffer) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(End::Socket(error)),
                Poll::Ready(Ok(())) => {}
            }
            let bytes = buffer.filled();
            let now = link.pool.clock.monotonic().0;
            let mut state = link.state.borrow_mut();
            state.heard = Millis(now);
            let endpoint = state.endpoint.as_mut().expect("an endpoint lives as long as its driver");
            match &mut self.transport {
                _ if bytes.is_empty() => endpoint.handle_eof(now),
                Transport::Plain => endpoint.handle_input(bytes, now),
                transport @ Transport::Tls(_) => {
                    transport.receive(bytes, &mut self.plain)?;
                    endpoint.handle_input(&self.plain, now);
                    self.plain.clear();
                }
            }
            let is_end = bytes.is_empty();
            drop(state);
            drop(scratch);
            self.handle_events();
            if is_end || self.end.is_some() {
                return Ok(());
            }
            if round + 1 == ROUNDS_MAX {
                cx.waker().wake_by_ref();
            }
        }
        Ok(())
    }

    fn handle_events(&mut self) {
        let mut state = self.link.state.borrow_mut();
        if let Some(cause) = state.handle_events() {
            self.end = Some(End::Closed { cause, was_up: self.was_up });
        }
        self.was_up |= state.phase == Phase::Up;
    }

    /// Does what is due, and waits for what is due next.
    fn see_to_time(&mut self, cx: &mut Context<'_>) {
        let pool = &self.link.pool;
        let now = pool.clock.monotonic();
        let mut state = self.link.state.borrow_mut();
        state.handle_timeout(now);
        drop(state);
        self.handle_events();
        let at = self.link.state.borrow().poll_timeout();
        if at < self.timer_at || self.timer_at <= now {
            self.timer.as_mut().reset(self.link.pool.clock.instant(at));
            self.timer_at = at;
            if self.timer.as_mut().poll(cx).is_ready() {
                self.timer_at = Millis(0);
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Writes all that is to be written, if the socket takes it.
    fn write(&mut self, cx: &mut Context<'_>, mut stream: Pin<&mut TcpStream>) -> Result<(), End> {
        for _ in 0..ROUNDS_MAX {
            if self.written == self.wire.len() && !self.refill()? {
                return Ok(());
            }
            match stream.as_mut().poll_write(cx, &self.wire[self.written..]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(0)) => return Err(End::Socket(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => self.written += n,
                Poll::Ready(Err(error)) => return Err(End::Socket(error)),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Takes the endpoint's output; false if there is none. Whoever waited for room in it goes on.
    fn refill(&mut self) -> Result<bool, End> {
        self.wire.clear();
        self.written = 0;
        {
            let mut state = self.link.state.borrow_mut();
            let Some(endpoint) = &mut state.endpoint else { return Ok(false) };
            let output = endpoint.output();
            match &mut self.transport {
                Transport::Plain => std::mem::swap(output, &mut self.wire),
                transport @ Transport::Tls(_) => {
                    transport.send(output, &mut self.wire)?;
                    output.clear();
                }
            }
            for buffer in [output, &mut self.wire] {
                if buffer.is_empty() && buffer.capacity() > KEPT_BYTES_MAX {
                    buffer.shrink_to(KEPT_BYTES_MAX);
                }
            }
        }
        self.handle_events();
        Ok(!self.wire.is_empty())
    }
}
