//! Which AMQP connection takes a new device: the fullest that has room and is not lost, so that few connections serve many
//! devices and the emptiest run dry and close.
//!
//! It counts; it opens and closes nothing. A connection that is lost and comes back keeps its key and its devices.

use std::time::Duration;

use slab::Slab;

use crate::{settings::UpstreamLimits, time::Millis};

/// Links that a device may have: telemetry and commands.
pub const LINKS_PER_DEVICE: u32 = 2;

/// Put-tokens that the hub takes on one AMQP connection over its whole life, renewals included (contract §3.2, trap 24).
pub const TOKENS_PER_CONNECTION_MAX: u32 = 1000;

/// Names one AMQP connection of one core. A key is used again after [`Placement::remove`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey(pub usize);

/// Where a device goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// Its AMQP connection.
    pub connection: ConnectionKey,
    /// The connection is new: open it.
    pub open: bool,
}

/// Every connection is full and none may be opened: refuse the CONNECT with code 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("every amqp connection is full")]
pub struct NoRoom;

/// What the peer of one connection announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// OPEN: the highest channel number.
    pub channel_max: u16,
    /// BEGIN: the highest handle on one session.
    pub handle_max: u32,
}

/// The AMQP connections of one core and how many devices are on each.
#[derive(Debug)]
pub struct Placement {
    connections: Slab<Connection>,
    connections_max: usize,
    devices_max: u32,
    links_per_session_max: u32,
    idle_timeout: Duration,
    device_tokens: bool,
}

#[derive(Debug)]
struct Connection {
    devices: u32,
    devices_max: u32,
    /// Put over the life of this AMQP connection.
    tokens: u32,
    retired: bool,
    /// When the last device left.
    empty_since: Option<Millis>,
}

impl Placement {
    /// `connections_max` is this core's share of the process's. `device_tokens`: every device puts a token of its own
    /// (`verify: Hub`), and the hub takes [`TOKENS_PER_CONNECTION_MAX`].
    pub fn new(limits: &UpstreamLimits, connections_max: usize, device_tokens: bool) -> Self {
        Self {
            connections: Slab::new(),
            connections_max,
            devices_max: limits.devices_per_connection_max,
            links_per_session_max: limits.links_per_session_max,
            idle_timeout: limits.idle_timeout,
            device_tokens,
        }
    }

    /// Goes on with other limits. Devices that are there stay, even beyond lower ones; a connection that is open takes no more
    /// devices than when it was opened.
    pub fn set_limits(&mut self, limits: &UpstreamLimits, connections_max: usize, device_tokens: bool) {
        self.connections_max = connections_max;
        self.devices_max = limits.devices_per_connection_max;
        self.links_per_session_max = limits.links_per_session_max;
        self.idle_timeout = limits.idle_timeout;
        self.device_tokens = device_tokens;
    }

    /// Finds a place for one more device and takes it: the fullest connection with room that is not lost, or else the fullest
    /// with room. `is_away` tells which are lost and not back yet.
    ///
    /// # Errors
    /// [`NoRoom`] if all connections are full and there are `connections_max` of them.
    pub fn place(&mut self, is_away: impl Fn(ConnectionKey) -> bool) -> Result<Placed, NoRoom> {
        let with_room = self.connections.iter().filter(|(_, connection)| self.has_room(connection));
        let best = |(key, connection): &(usize, &Connection)| (!is_away(ConnectionKey(*key)), connection.devices);
        let (key, open) = match with_room.max_by_key(best) {
            Some((key, _)) => (key, false),
            None => (self.open()?, true),
        };
        let connection = &mut self.connections[key];
        connection.devices += 1;
        connection.empty_since = None;
        Ok(Placed { connection: ConnectionKey(key), open })
    }

    /// A device left its connection.
    pub fn leave(&mut self, key: ConnectionKey, now: Millis) {
        let Some(connection) = self.connections.get_mut(key.0) else { return };
        debug_assert!(connection.devices > 0, "a device left that was never placed");
        connection.devices = connection.devices.saturating_sub(1);
        if connection.devices == 0 {
            connection.empty_since = Some(now);
        }
    }

    /// The AMQP connection is open, for the first time or again: its peer's limits hold, and its token count starts anew.
    /// Devices that are there stay, even beyond a lower limit.
    pub fn handle_opened(&mut self, key: ConnectionKey, peer: PeerLimits) {
        let devices_max = self.devices_max.min(capacity(peer, self.links_per_session_max));
        if let Some(connection) = self.connections.get_mut(key.0) {
            connection.devices_max = devices_max;
            connection.tokens = 0;
            connection.retired = false;
        }
    }

    /// A token is put for a device, the first or a renewal.
    pub fn handle_token_put(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(key.0) {
            connection.tokens = connection.tokens.saturating_add(1);
        }
    }

    /// The hub takes no further token or link on this connection: no new device until it is opened anew.
    pub fn retire(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get_mut(key.0) {
            connection.retired = true;
        }
    }

    /// The connection is closed for good. Its devices, if any, are to be placed again.
    pub fn remove(&mut self, key: ConnectionKey) {
        self.connections.try_remove(key.0);
    }

    /// Connections there are.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// There is no connection.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    /// Devices on one connection.
    pub fn devices(&self, key: ConnectionKey) -> u32 {
        self.connections.get(key.0).map_or(0, |connection| connection.devices)
    }

    /// When the next connection has been empty for long enough.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.connections.iter().filter_map(|(_, connection)| self.closes_at(connection)).min()
    }

    /// A connection that has been empty for `idle_timeout`: close it, then [`Self::remove`] it. A retired one does not wait.
    pub fn next_idle(&self, now: Millis) -> Option<ConnectionKey> {
        let due = |connection: &Connection| self.closes_at(connection).is_some_and(|at| at <= now);
        self.connections.iter().find(|(_, connection)| due(connection)).map(|(key, _)| ConnectionKey(key))
    }

    fn open(&mut self) -> Result<usize, NoRoom> {
        if self.connections.len() >= self.connections_max {
            return Err(NoRoom);
        }
        let devices_max = self.devices_max;
        Ok(self.connections.insert(Connection {
            devices: 0,
            devices_max,
            tokens: 0,
            retired: false,
            empty_since: None,
        }))
    }

    /// A device that is placed but has not put its token yet counts as one to be put.
    fn has_room(&self, connection: &Connection) -> bool {
        let tokens_left = !self.device_tokens || connection.tokens.max(connection.devices) < TOKENS_PER_CONNECTION_MAX;
        let devices_max = connection.devices_max.min(self.devices_max);
        connection.devices < devices_max && tokens_left && !connection.retired
    }

    fn closes_at(&self, connection: &Connection) -> Option<Millis> {
        let wait = if self.has_room(connection) { self.idle_timeout } else { Duration::ZERO };
        connection.empty_since.map(|since| since.after(wait))
    }
}

/// Devices whose links all fit: one session is the CBS pair's.
fn capacity(peer: PeerLimits, links_per_session_max: u32) -> u32 {
    let links_per_session = peer.handle_max.saturating_add(1).min(links_per_session_max);
    u32::from(peer.channel_max).saturating_mul(links_per_session / LINKS_PER_DEVICE).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(devices_per_connection_max: u32) -> UpstreamLimits {
        UpstreamLimits {
            devices_per_connection_max,
            connections_max: 100,
            links_per_session_max: 64,
            tokens_inflight_max: 30,
            request_timeout: Duration::from_secs(10),
            settle_timeout: Duration::from_mins(1),
            outage_max: Duration::from_mins(5),
            backoff: (Duration::from_millis(100), Duration::from_secs(30)),
            idle_timeout: Duration::from_mins(1),
            frame_bytes_max: 65_536,
            output_bytes_max: 1 << 20,
            unsettled_bytes_max: 1 << 28,
            token_ttl: Duration::from_hours(1),
        }
    }

    const PEER: PeerLimits = PeerLimits { channel_max: 1024, handle_max: 262_143 };

    /// No connection is lost.
    const HERE: fn(ConnectionKey) -> bool = |_| false;

    fn place_all(placement: &mut Placement, count: usize) -> Vec<Placed> {
        (0..count).map(|_| placement.place(HERE).unwrap()).collect()
    }

    #[test]
    fn other_limits_hold_for_new_devices_and_new_connections() {
        let mut placement = Placement::new(&limits(3), 10, false);
        let first = place_all(&mut placement, 3)[0].connection;
        placement.handle_opened(first, PEER);
        placement.set_limits(&limits(2), 2, false);
        assert_eq!(placement.devices(first), 3);
        placement.leave(first, Millis(0));
        let second = placement.place(HERE).unwrap();
        assert!(second.open, "two are enough now");
        placement.set_limits(&limits(4), 2, false);
        placement.handle_opened(second.connection, PEER);
        assert!(!placement.place(HERE).unwrap().open);
        placement.leave(first, Millis(0));
        let placed = place_all(&mut placement, 3);
        assert_eq!(placed.iter().filter(|placed| placed.connection == first).count(), 1, "it was opened for three");
        assert_eq!(placement.place(HERE).map(|placed| placed.open), Ok(false));
        assert_eq!(placement.place(HERE), Err(NoRoom));
    }

    #[test]
    fn a_connection_is_opened_only_when_all_are_full() {
        let mut placement = Placement::new(&limits(2), 10, false);
        let placed = place_all(&mut placement, 5);
        assert_eq!(placed.iter().map(|placed| placed.open).collect::<Vec<_>>(), [true, false, true, false, true]);
        assert_eq!(placement.len(), 3);
    }

    #[test]
    fn the_fullest_with_room_is_filled_first() {
        let mut placement = Placement::new(&limits(3), 10, false);
        let placed = place_all(&mut placement, 9);
        placement.leave(placed[0].connection, Millis(0));
        placement.leave(placed[1].connection, Millis(0));
        placement.leave(placed[3].connection, Millis(0));
        assert_eq!(placement.place(HERE), Ok(Placed { connection: placed[3].connection, open: false }));
        assert_eq!(placement.place(HERE), Ok(Placed { connection: placed[0].connection, open: false }));
    }

    #[test]
    fn one_that_is_lost_takes_devices_only_if_no_other_has_room() {
        let mut placement = Placement::new(&limits(3), 2, false);
        let placed = place_all(&mut placement, 5);
        let (first, second) = (placed[0].connection, placed[3].connection);
        placement.leave(first, Millis(0));
        placement.leave(first, Millis(0));
        let place = |placement: &mut Placement, lost: &[ConnectionKey]| {
            let placed = placement.place(|key| lost.contains(&key)).unwrap();
            assert!(!placed.open);
            placement.leave(placed.connection, Millis(0));
            placed.connection
        };
        assert_eq!(place(&mut placement, &[]), second);
        assert_eq!(place(&mut placement, &[second]), first);
        assert_eq!(place(&mut placement, &[first, second]), second);
        place_all(&mut placement, 1);
        assert_eq!(place(&mut placement, &[first]), first, "nowhere else is room");
    }

    #[test]
    fn no_room_once_every_connection_is_full() {
        let mut placement = Placement::new(&limits(2), 2, false);
        place_all(&mut placement, 4);
        assert_eq!(placement.place(HERE), Err(NoRoom));
        placement.leave(ConnectionKey(1), Millis(0));
        assert!(placement.place(HERE).is_ok());
    }

    #[test]
    fn the_peers_channels_and_handles_lower_the_devices() {
        let check = |channel_max, handle_max, expected| {
            assert_eq!(capacity(PeerLimits { channel_max, handle_max }, 64), expected, "{channel_max} {handle_max}");
        };
        check(1024, 262_143, 1024 * 32);
        check(1024, 7, 1024 * 4);
        check(3, 1, 3);
        check(1, 262_143, 32);
        check(0, 0, 1);
        let mut placement = Placement::new(&limits(900), 10, false);
        let first = placement.place(HERE).unwrap().connection;
        placement.handle_opened(first, PeerLimits { channel_max: 2, handle_max: 1 });
        assert_eq!(place_all(&mut placement, 2).iter().filter(|placed| placed.open).count(), 1);
    }

    #[test]
    fn a_thousand_tokens_retire_a_connection_until_it_is_opened_anew() {
        let mut placement = Placement::new(&limits(2000), 10, true);
        let key = placement.place(HERE).unwrap().connection;
        placement.handle_opened(key, PEER);
        (0..TOKENS_PER_CONNECTION_MAX).for_each(|_| placement.handle_token_put(key));
        assert!(placement.place(HERE).unwrap().open);
        placement.handle_opened(key, PEER);
        placement.leave(ConnectionKey(1), Millis(0));
        assert!(!placement.place(HERE).unwrap().open);
    }

    #[test]
    fn a_thousand_devices_with_tokens_of_their_own_are_a_connections_most() {
        let mut placement = Placement::new(&limits(2000), 10, true);
        let placed = place_all(&mut placement, 1001);
        assert_eq!(placed.iter().filter(|placed| placed.open).count(), 2);
        assert_eq!(placement.devices(placed[0].connection), TOKENS_PER_CONNECTION_MAX);
        let mut policy = Placement::new(&limits(2000), 10, false);
        assert_eq!(place_all(&mut policy, 1001).iter().filter(|placed| placed.open).count(), 1);
    }

    #[test]
    fn an_empty_connection_closes_after_the_idle_timeout_and_a_retired_one_at_once() {
        let mut placement = Placement::new(&limits(1), 10, false);
        let placed = place_all(&mut placement, 2);
        placement.retire(placed[1].connection);
        placement.leave(placed[0].connection, Millis(1_000));
        assert_eq!(placement.poll_timeout(), Some(Millis(61_000)));
        assert_eq!(placement.next_idle(Millis(60_999)), None);
        assert_eq!(placement.next_idle(Millis(61_000)), Some(placed[0].connection));
        placement.leave(placed[1].connection, Millis(2_000));
        assert_eq!(placement.next_idle(Millis(2_000)), Some(placed[1].connection));
        placement.remove(placed[1].connection);
        assert_eq!(placement.place(HERE).map(|placed| placed.connection), Ok(placed[0].connection));
        assert_eq!(placement.poll_timeout(), None);
    }

    #[test]
    fn a_retired_connection_takes_no_device_and_keeps_its_own() {
        let mut placement = Placement::new(&limits(10), 10, false);
        let key = placement.place(HERE).unwrap().connection;
        placement.retire(key);
        assert!(placement.place(HERE).unwrap().open);
        assert_eq!(placement.devices(key), 1);
        assert_eq!(placement.next_idle(Millis(u64::MAX)), None);
    }
}
