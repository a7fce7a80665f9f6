//! How the domain wakes the task of an AMQP connection: a deduplicated list of links that have something to do.
//!
//! There is no task and no channel per link. A mailbox holds at most one entry per link of its connection.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Names a link within its connection; chosen by the connection, opaque to the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkKey(pub u64);

impl LinkKey {
    /// Not a link: the connection itself has orders to take ([`super::Connections::take_orders`]).
    pub const CONNECTION: Self = Self(u64::MAX);
}

/// One per connection, shared with every part of the domain that may wake it.
#[derive(Default)]
pub struct Mailbox {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Default)]
struct Pending {
    keys: Vec<LinkKey>,
    known: HashSet<LinkKey>,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Says that the link has something to do. Saying it twice before [`Self::take`] is saying it once.
    pub fn post(&self, key: LinkKey) {
        let mut pending = self.lock();
        if pending.known.insert(key) {
            pending.keys.push(key);
            drop(pending);
            self.wake.notify_one();
        }
    }

    /// Waits until [`Self::take`] would return something. Cancel-safe. One waiter at a time.
    pub async fn ready(&self) {
        loop {
            let notified = self.wake.notified();
            if !self.lock().keys.is_empty() {
                return;
            }
            notified.await;
        }
    }

    /// The links posted since the last call, in the order of their first post.
    pub fn take(&self) -> Vec<LinkKey> {
        let mut pending = self.lock();
        pending.known.clear();
        std::mem::take(&mut pending.keys)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox").field("pending", &self.lock().keys.len()).finish()
    }
}

/// One link of one connection, as the domain remembers it.
#[derive(Clone, Debug)]
pub struct Listener {
    /// The mailbox of the link's connection.
    pub mailbox: Arc<Mailbox>,
    /// The link.
    pub key: LinkKey,
}

impl Listener {
    /// The link `key` of the connection that owns `mailbox`.
    pub fn new(mailbox: &Arc<Mailbox>, key: LinkKey) -> Self {
        Self { mailbox: mailbox.clone(), key }
    }

    /// Tells the connection that this link has something to do.
    pub fn wake(&self) {
        self.mailbox.post(self.key);
    }
}

impl PartialEq for Listener {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && Arc::ptr_eq(&self.mailbox, &other.mailbox)
    }
}

impl Eq for Listener {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_link_posted_twice_is_taken_once() {
        let mailbox = Mailbox::new();
        mailbox.post(LinkKey(2));
        mailbox.post(LinkKey(1));
        mailbox.post(LinkKey(2));
        mailbox.ready().await;
        assert_eq!(mailbox.take(), [LinkKey(2), LinkKey(1)]);
        assert!(mailbox.take().is_empty());
    }

    #[tokio::test]
    async fn a_post_wakes_the_waiter() {
        let mailbox = Mailbox::new();
        let poster = mailbox.clone();
        let waiter = async {
            mailbox.ready().await;
            mailbox.take()
        };
        let (taken, ()) = tokio::join!(waiter, async move { poster.post(LinkKey(7)) });
        assert_eq!(taken, [LinkKey(7)]);
    }

    #[test]
    fn links_of_two_connections_with_the_same_key_differ() {
        let (a, b) = (Mailbox::new(), Mailbox::new());
        assert_eq!(Listener::new(&a, LinkKey(1)), Listener::new(&a, LinkKey(1)));
        assert_ne!(Listener::new(&a, LinkKey(1)), Listener::new(&b, LinkKey(1)));
    }
}
