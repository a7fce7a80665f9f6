//! The AMQP connections that are open, and orders for their tasks from the rest of the hub.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::HubError;
use super::faults::Action;
use super::identity::Identity;
use super::mailbox::{LinkKey, Mailbox};

/// Orders that may wait for one connection; one that does not take them loses the oldest.
const ORDERS_MAX: usize = 4096;

/// What a connection's task shall do now.
#[derive(Clone, Debug)]
pub enum Order {
    /// Detach all links of this identity (closed, with this error): it was deleted or disabled.
    Drop {
        /// The identity.
        identity: Identity,
        /// Why.
        error: HubError,
    },
    /// A fault at [`super::Point::Now`]: apply it to the links whose identity fits, or to the connection if no device is
    /// named or one of its links fits.
    Fault {
        /// What to do.
        action: Action,
        /// Pattern of device ids; `None` = all.
        device: Option<Arc<str>>,
    },
}

/// What is known about an open connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionInfo {
    /// `container-id` of the peer's OPEN.
    pub container_id: String,
    /// `hostname` of the peer's OPEN.
    pub hostname: String,
    /// `AMQP` or `AMQP_WS`.
    pub transport: &'static str,
}

/// All connections.
#[derive(Debug, Default)]
pub struct Connections {
    next: AtomicU64,
    refused: AtomicU64,
    orders_dropped: AtomicU64,
    open: Mutex<BTreeMap<u64, Connection>>,
}

#[derive(Debug)]
struct Connection {
    mailbox: Arc<Mailbox>,
    info: ConnectionInfo,
    orders: VecDeque<Order>,
}

impl Connections {
    /// A connection begins. Returns its number, from 1; [`Self::close`] must follow.
    pub fn open(&self, mailbox: Arc<Mailbox>) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let connection = Connection { mailbox, info: ConnectionInfo::default(), orders: VecDeque::new() };
        self.lock().insert(number, connection);
        number
    }

    /// The peer's OPEN arrived.
    pub fn describe(&self, number: u64, info: ConnectionInfo) {
        if let Some(connection) = self.lock().get_mut(&number) {
            connection.info = info;
        }
    }

    /// The connection ended.
    pub fn close(&self, number: u64) {
        self.lock().remove(&number);
    }

    /// Gives an order to all connections; wakes them with [`LinkKey::CONNECTION`].
    pub fn order(&self, order: &Order) {
        for connection in self.lock().values_mut() {
            if connection.orders.len() >= ORDERS_MAX {
                connection.orders.pop_front();
                self.orders_dropped.fetch_add(1, Ordering::Relaxed);
            }
            connection.orders.push_back(order.clone());
            connection.mailbox.post(LinkKey::CONNECTION);
        }
    }

    /// The orders that wait for this connection, oldest first.
    pub fn take_orders(&self, number: u64) -> Vec<Order> {
        self.lock().get_mut(&number).map(|connection| connection.orders.drain(..).collect()).unwrap_or_default()
    }

    /// The open connections by number.
    pub fn list(&self) -> Vec<(u64, ConnectionInfo)> {
        self.lock().iter().map(|(number, connection)| (*number, connection.info.clone())).collect()
    }

    /// A TCP connection was closed at once because too many are open.
    pub fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// TCP connections closed at once because too many were open.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Orders lost because a connection did not take them.
    pub fn orders_dropped(&self) -> u64 {
        self.orders_dropped.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Connection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_reaches_every_open_connection_once() {
        let connections = Connections::default();
        let (a, b) = (Mailbox::new(), Mailbox::new());
        let (first, second) = (connections.open(a.clone()), connections.open(b.clone()));
        connections.close(second);
        connections.order(&Order::Fault { action: Action::Steal, device: None });
        assert_eq!(a.take(), [LinkKey::CONNECTION]);
        assert!(b.take().is_empty());
        assert_eq!(connections.take_orders(first).len(), 1);
        assert!(connections.take_orders(first).is_empty());
    }
}
