//! Direct methods: calls wait here for the device's links and for its answers (contract §2.10, §3.8).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::identity::Identity;
use super::mailbox::Listener;

/// Request and response are at most this long.
pub const PAYLOAD_BYTES_MAX: usize = 128 * 1024;
/// Calls of one identity that may be under way.
const CALLS_PER_IDENTITY_MAX: usize = 100;

/// A call, as the device's links get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodCall {
    /// Version 4; the correlation-id.
    pub id: Uuid,
    /// `IoThub-methodname`
    pub name: String,
    /// JSON; `null` for a call without payload, because clients parse it (contract §2.10).
    pub payload: Bytes,
}

/// A call, as the service makes it.
#[derive(Clone, Debug)]
pub struct MethodRequest {
    /// Name of the method.
    pub name: String,
    /// JSON text.
    pub payload: Bytes,
    /// How long to wait for the device's links.
    pub connect_timeout: Duration,
    /// How long to wait for its answer.
    pub response_timeout: Duration,
}

/// The device's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodResult {
    /// `IoThub-status`
    pub status: i32,
    /// JSON text, may be empty.
    pub payload: Bytes,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MethodError {
    /// No methods links in time: 404103.
    NotOnline,
    /// No answer in time: 504101.
    TimedOut,
    /// Too many calls of this identity under way: 429001.
    TooManyCalls,
}

/// All calls under way.
#[derive(Debug, Default)]
pub struct Methods {
    state: Mutex<State>,
    registered: Notify,
}

#[derive(Debug, Default)]
struct State {
    links: HashMap<Identity, Line>,
    waiting: HashMap<Uuid, Caller>,
    /// How many of `waiting` are of each identity.
    under_way: HashMap<Identity, usize>,
}

#[derive(Debug)]
struct Line {
    listener: Listener,
    calls: VecDeque<MethodCall>,
}

#[derive(Debug)]
struct Caller {
    identity: Identity,
    answer: oneshot::Sender<MethodResult>,
}

impl Methods {
    /// Both methods links of the identity are attached: calls go to this one. Returns the link it took that from, which
    /// must be detached as stolen.
    pub fn register(&self, identity: &Identity, listener: Listener) -> Option<Listener> {
        let line = Line { listener, calls: VecDeque::new() };
        let previous = self.lock().links.insert(identity.clone(), line);
        self.registered.notify_waiters();
        previous.map(|line| line.listener)
    }

    /// This link takes no more calls, if it did. Calls it did not take, and answers outstanding, time out.
    pub fn unregister(&self, identity: &Identity, listener: &Listener) {
        let mut state = self.lock();
        if state.links.get(identity).is_some_and(|line| line.listener == *listener) {
            state.links.remove(identity);
        }
    }

    /// Whether calls would be taken.
    pub fn is_online(&self, identity: &Identity) -> bool {
        self.lock().links.contains_key(identity)
    }

    /// The calls that wait for this link, oldest first.
    pub fn take_calls(&self, identity: &Identity, listener: &Listener) -> Vec<MethodCall> {
        let mut state = self.lock();
        match state.links.get_mut(identity) {
            Some(line) if line.listener == *listener => line.calls.drain(..).collect(),
            _ => Vec::new(),
        }
    }

    /// The device's answer. False if nobody waits for it (late, unknown, or another identity's): it is dropped.
    pub fn respond(&self, identity: &Identity, id: Uuid, result: MethodResult) -> bool {
        let mut state = self.lock();
        if state.waiting.get(&id).is_none_or(|caller| caller.identity != *identity) {
            return false;
        }
        state.end(id).is_some_and(|caller| caller.answer.send(result).is_ok())
    }

    /// Calls the device and waits for its answer. Dropping the future gives the call up.
    ///
    /// # Errors
    /// [`MethodError`]
    pub async fn invoke(&self, identity: &Identity, request: MethodRequest) -> Result<MethodResult, MethodError> {
        self.online(identity, Instant::now() + request.connect_timeout).await?;
        let deadline = Instant::now() + request.response_timeout;
        let call = MethodCall { id: Uuid::new_v4(), name: request.name, payload: request.payload };
        let id = call.id;
        let answer = self.start(identity, call)?;
        let _give_up = GiveUp { methods: self, id };
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) | Err(_) => Err(MethodError::TimedOut),
        }
    }

    async fn online(&self, identity: &Identity, deadline: Instant) -> Result<(), MethodError> {
        loop {
            let registered = self.registered.notified();
            if self.is_online(identity) {
                return Ok(());
            }
            timeout_at(deadline, registered).await.map_err(|_| MethodError::NotOnline)?;
        }
    }

    fn start(&self, identity: &Identity, call: MethodCall) -> Result<oneshot::Receiver<MethodResult>, MethodError> {
        let mut state = self.lock();
        if state.under_way.get(identity).is_some_and(|count| *count >= CALLS_PER_IDENTITY_MAX) {
            return Err(MethodError::TooManyCalls);
        }
        let (answer, receiver) = oneshot::channel();
        let id = call.id;
        let line = state.links.get_mut(identity).ok_or(MethodError::NotOnline)?;
        line.calls.push_back(call);
        line.listener.wake();
        state.waiting.insert(id, Caller { identity: identity.clone(), answer });
        *state.under_way.entry(identity.clone()).or_default() += 1;
        Ok(receiver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, id: Uuid) -> Option<Caller> {
        let caller = self.waiting.remove(&id)?;
        if let Some(count) = self.under_way.get_mut(&caller.identity) {
            *count -= 1;
            if *count == 0 {
                self.under_way.remove(&caller.identity);
            }
        }
        Some(caller)
    }
}

/// Forgets a call when its future ends, however it ends.
struct GiveUp<'a> {
    methods: &'a Methods,
    id: Uuid,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        let mut state = self.methods.lock();
        if let Some(caller) = state.end(self.id)
            && let Some(line) = state.links.get_mut(&caller.identity)
        {
            line.calls.retain(|call| call.id != self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::mailbox::{LinkKey, Mailbox};

    fn request(response_timeout: Duration) -> MethodRequest {
        MethodRequest {
            name: "reboot".to_owned(),
            payload: Bytes::from_static(b"null"),
            connect_timeout: Duration::ZERO,
            response_timeout,
        }
    }

    #[tokio::test]
    async fn a_call_to_a_device_without_links_is_refused() {
        let methods = Methods::default();
        let result = methods.invoke(&Identity::device("a"), request(Duration::from_secs(1))).await;
        assert_eq!(result, Err(MethodError::NotOnline));
    }

    #[tokio::test]
    async fn only_the_called_device_can_answer() {
        let methods = Methods::default();
        let (device, mailbox) = (Identity::device("a"), Mailbox::new());
        let link = Listener::new(&mailbox, LinkKey(1));
        methods.register(&device, link.clone());
        let answering = async {
            mailbox.ready().await;
            let calls = methods.take_calls(&device, &link);
            assert_eq!(calls[0].name, "reboot");
            let result = MethodResult { status: 200, payload: Bytes::from_static(b"{}") };
            assert!(!methods.respond(&Identity::device("b"), calls[0].id, result.clone()));
            assert!(methods.respond(&device, calls[0].id, result));
        };
        let (result, ()) = tokio::join!(methods.invoke(&device, request(Duration::from_secs(5))), answering);
        assert_eq!(result.map(|result| result.status), Ok(200));
    }

    #[tokio::test]
    async fn a_call_that_nobody_answers_times_out_and_leaves_nothing() {
        let methods = Methods::default();
        let (device, mailbox) = (Identity::device("a"), Mailbox::new());
        let link = Listener::new(&mailbox, LinkKey(1));
        methods.register(&device, link.clone());
        let result = methods.invoke(&device, request(Duration::from_millis(5))).await;
        assert_eq!(result, Err(MethodError::TimedOut));
        assert!(methods.take_calls(&device, &link).is_empty());
        let state = methods.lock();
        assert!(state.waiting.is_empty() && state.under_way.is_empty());
    }

    #[tokio::test]
    async fn a_call_waits_for_the_links_within_its_connect_time_out() {
        let methods = Methods::default();
        let (device, mailbox) = (Identity::device("a"), Mailbox::new());
        let link = Listener::new(&mailbox, LinkKey(1));
        let request = MethodRequest { connect_timeout: Duration::from_secs(5), ..request(Duration::from_secs(5)) };
        let attaching = async {
            tokio::task::yield_now().await;
            methods.register(&device, link.clone());
            mailbox.ready().await;
            let call = methods.take_calls(&device, &link).remove(0);
            methods.respond(&device, call.id, MethodResult { status: 404, payload: Bytes::new() })
        };
        let (result, answered) = tokio::join!(methods.invoke(&device, request), attaching);
        assert!(answered);
        assert_eq!(result.map(|result| result.status), Ok(404));
    }

    #[tokio::test]
    async fn more_calls_than_the_bound_are_refused_until_one_ends() {
        let methods = Methods::default();
        let device = Identity::device("a");
        methods.register(&device, Listener::new(&Mailbox::new(), LinkKey(1)));
        let call = || MethodCall { id: Uuid::new_v4(), name: "m".to_owned(), payload: Bytes::new() };
        let first = call();
        let _answer = methods.start(&device, first.clone()).expect("room");
        for _ in 1..CALLS_PER_IDENTITY_MAX {
            methods.start(&device, call()).expect("room");
        }
        assert_eq!(methods.start(&device, call()).err(), Some(MethodError::TooManyCalls));
        assert!(methods.respond(&device, first.id, MethodResult { status: 200, payload: Bytes::new() }));
        assert!(methods.start(&device, call()).is_ok());
    }
}
