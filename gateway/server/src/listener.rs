//! Listening sockets, one per core and listener (`SO_REUSEPORT`), and the gate that every new connection passes.
//!
//! At a bound each socket holds one connection at the gate, unread; all others stay in the listen queue, which the system serves in
//! order and bounds. What it turns away when that is full, `gateway_listen_overflows_total` tells.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU32, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use gateway_core::settings::{Limits, Listener, Protocol};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::{debug, warn};

use crate::{
    connection::{Accepted, Connection},
    core::Core,
    metrics::Limit,
    transport::Transport,
};

/// Connections that wait in the listen queue; the system's `somaxconn` may lower it.
const BACKLOG: i32 = 4096;
/// First and longest pause after an error of `accept` that will not go away by itself.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// One core's socket of one listener.
#[derive(Debug)]
pub struct Bound {
    /// Of the settings.
    pub name: String,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Where it really listens.
    pub address: SocketAddr,
    socket: TcpListener,
}

/// Bounds of the whole process on who may come in; touched once per connection.
#[derive(Debug)]
pub struct Gate {
    connections: Places,
    handshakes: Places,
    turns: Mutex<Turns>,
}

/// So many places; how many may change while they are taken.
#[derive(Debug)]
struct Places {
    free: Arc<Semaphore>,
    max: AtomicU32,
}

/// Opens `listener` for each of `cores` cores; port 0 becomes the same free port for all.
pub fn bind(listener: &Listener, cores: usize) -> io::Result<Vec<Bound>> {
    let mut address = SocketAddr::new(listener.address, listener.port);
    // SO_REUSEPORT would let two gateways share a port in silence
    drop(open(address, false)?);
    let mut bound = Vec::with_capacity(cores);
    for _ in 0..cores {
        let socket = open(address, true)?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from(socket);
        address = socket.local_addr()?;
        bound.push(Bound { name: listener.name.clone(), protocol: listener.protocol, address, socket });
    }
    Ok(bound)
}

fn open(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    // inherited by every socket that is accepted
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

/// Takes connections as the gate allows, for ever.
pub async fn accept(core: Rc<Core>, listener: Bound) {
    let Bound { name, protocol, socket, .. } = listener;
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return warn!(listener = name, %error, "listener cannot be watched"),
    };
    let mut pause = PAUSE.0;
    loop {
        match socket.accept().await {
            Ok((stream, address)) => {
                pause = PAUSE.0;
                let permits = core.shared.gate.enter(&core).await;
                take(&core, protocol, stream, address, permits);
                // messages pass between two handshakes
                tokio::task::yield_now().await;
            }
            Err(error) => pause = after_error(&core, &name, &error, pause).await,
        }
    }
}

fn take(
    core: &Rc<Core>,
    protocol: Protocol,
    stream: TcpStream,
    address: SocketAddr,
    (connection_permit, handshake_permit): (OwnedSemaphorePermit, OwnedSemaphorePermit),
) {
    let tls = core.shared.credentials.load().tls.clone();
    let Ok(transport) = Transport::new(protocol, tls) else {
        core.metrics.accept_errors.inc();
        return;
    };
    let place = core.enroll(address, protocol);
    let accepted = Accepted { stream, protocol, transport, place, connection_permit, handshake_permit };
    tokio::task::spawn_local(Connection::new(Rc::clone(core), accepted));
}

/// Waits where waiting helps; gives the pause for the next error in a row.
async fn after_error(core: &Core, listener: &str, error: &io::Error, pause: Duration) -> Duration {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    match error.raw_os_error() {
        // the device was gone before we took it
        _ if error.kind() == io::ErrorKind::ConnectionAborted => return PAUSE.0,
        Some(ENFILE | EMFILE) => {
            core.metrics.limits.at(Limit::OpenFiles).inc();
            if pause == PAUSE.0 {
                warn!(listener, %error, "no file descriptor left: accepting pauses");
            }
        }
        _ => {
            core.metrics.accept_errors.inc();
            debug!(listener, %error, "accept failed");
        }
    }
    tokio::time::sleep(pause).await;
    (pause * 2).min(PAUSE.1)
}

impl Gate {
    /// As `limits` say.
    pub fn new(limits: &Limits) -> Self {
        Self {
            connections: Places::new(limits.connections_max),
            handshakes: Places::new(limits.handshakes_max),
            turns: Mutex::new(Turns::new(limits.connects_per_second)),
        }
    }

    /// Other limits from now on; nobody is sent away. Only on a runtime.
    pub fn set_limits(&self, limits: &Limits) {
        self.connections.set_max(limits.connections_max);
        self.handshakes.set_max(limits.handshakes_max);
        self.turns.lock().unwrap_or_else(PoisonError::into_inner).set_rate(limits.connects_per_second);
    }

    /// Waits until one more connection may be there, shake hands, and come at this rate: whoever comes first is first at each.
    async fn enter(&self, core: &Core) -> (OwnedSemaphorePermit, OwnedSemaphorePermit) {
        let connection = permit(&self.connections.free, core, Limit::Connections).await;
        let handshake = permit(&self.handshakes.free, core, Limit::Handshakes).await;
        let wait = self.turns.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
        if !wait.is_zero() {
            core.metrics.limits.at(Limit::ConnectsPerSecond).inc();
            tokio::time::sleep(wait).await;
        }
        (connection, handshake)
    }
}

impl Places {
    fn new(max: u32) -> Self {
        Self { free: Arc::new(Semaphore::new(max as usize)), max: AtomicU32::new(max) }
    }

    /// More places are free at once. Fewer: free ones go at once, taken ones when they are given back, before anybody else
    /// gets them.
    fn set_max(&self, max: u32) {
        let before = self.max.swap(max, Relaxed);
        if max >= before {
            return self.free.add_permits((max - before) as usize);
        }
        let surplus = before - max;
        let taken = surplus - self.free.forget_permits(surplus as usize) as u32;
        if taken > 0 {
            let free = Arc::clone(&self.free);
            tokio::spawn(async move {
                let given_back = free.acquire_many_owned(taken).await;
                given_back.expect("the gate's semaphores are never closed").forget();
            });
        }
    }
}

async fn permit(of: &Arc<Semaphore>, core: &Core, limit: Limit) -> OwnedSemaphorePermit {
    if let Ok(permit) = Arc::clone(of).try_acquire_owned() {
        return permit;
    }
    core.metrics.limits.at(limit).inc();
    Arc::clone(of).acquire_owned().await.expect("the gate's semaphores are never closed")
}

/// Turns at `per_second`, in the order of asking: each is a moment of its own, so that nobody overtakes. A tenth of a second's worth
/// may be taken at once after a pause, and makes up for timers that are late.
#[derive(Debug)]
struct Turns {
    between: Duration,
    at_once: Duration,
    next: Option<Instant>,
}

impl Turns {
    fn new(per_second: u32) -> Self {
        let between = Duration::from_secs(1) / per_second.max(1);
        Self { between, at_once: Duration::from_millis(100).saturating_sub(between), next: None }
    }

    /// Another rate for the turns that are not taken yet.
    fn set_rate(&mut self, per_second: u32) {
        *self = Self { next: self.next, ..Self::new(per_second) };
    }

    /// Takes the next turn: how long to wait for it.
    fn next(&mut self, now: Instant) -> Duration {
        let earliest = now.checked_sub(self.at_once).unwrap_or(now);
        let turn = self.next.map_or(earliest, |next| next.max(earliest));
        self.next = Some(turn + self.between);
        turn.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr},
        sync::Arc,
        time::{Duration, Instant},
    };

    use gateway_core::settings::{Listener, Protocol};

    use super::{Places, Turns, bind};

    #[test]
    fn connects_come_at_the_rate_of_the_settings_and_in_order() {
        let (mut turns, start) = (Turns::new(50), Instant::now());
        let moments: Vec<_> = (0..200).map(|_| turns.next(start)).collect();
        assert!(moments.is_sorted());
        let within = |seconds| moments.iter().filter(|wait| **wait < Duration::from_secs(seconds)).count();
        assert_eq!((within(1), within(2), within(3)), (54, 104, 154));
    }

    #[test]
    fn a_pause_saves_up_a_tenth_of_a_second_at_most() {
        let (mut turns, start) = (Turns::new(50), Instant::now());
        turns.next(start);
        let later = start + Duration::from_mins(1);
        let at_once = (0..200).filter(|_| turns.next(later).is_zero()).count();
        assert_eq!(at_once, 5);
        let (mut slow, hour) = (Turns::new(1), start + Duration::from_hours(1));
        assert!(slow.next(hour).is_zero());
        assert_eq!(slow.next(hour), Duration::from_secs(1));
    }

    #[test]
    fn another_rate_holds_at_once() {
        let (mut turns, start) = (Turns::new(1000), Instant::now());
        turns.set_rate(10);
        let within = (0..100).filter(|_| turns.next(start) < Duration::from_secs(1)).count();
        assert_eq!(within, 10);
    }

    #[tokio::test]
    async fn places_come_at_once_and_go_as_they_are_given_back() {
        let places = Places::new(3);
        let take = || Arc::clone(&places.free).try_acquire_owned();
        let mut taken = vec![take().unwrap(), take().unwrap()];
        places.set_max(1);
        tokio::task::yield_now().await;
        assert!(take().is_err());
        taken.pop();
        tokio::task::yield_now().await;
        assert!(take().is_err(), "one is taken and there is but one");
        taken.pop();
        taken.push(take().unwrap());
        assert!(take().is_err());
        places.set_max(2);
        taken.push(take().unwrap());
        assert!(take().is_err());
        // lowered and raised again before anybody left
        places.set_max(1);
        places.set_max(3);
        tokio::task::yield_now().await;
        taken.push(take().unwrap());
        assert!(take().is_err());
    }

    #[test]
    fn all_cores_share_one_free_port_and_nobody_else_does() {
        let listener = |port| Listener {
            name: "a".into(),
            protocol: Protocol::MqttPlain,
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port,
        };
        let bound = bind(&listener(0), 3).unwrap();
        let port = bound[0].address.port();
        assert!(port != 0 && bound.iter().all(|bound| bound.address.port() == port));
        assert_eq!(bind(&listener(port), 1).unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    }
}
