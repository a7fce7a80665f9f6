//! The task of one pod: asks, carries orders, looks at certificates. It owns the connection.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all, pending};
use hyper::{Method, StatusCode};
use rustls::ClientConfig;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::{
    Fleet, Inner, Target, about,
    line::{Answer, Line, LineError, Peer},
    load::Load,
    order::{OrderError, Posted},
    probe,
};
use crate::observe::Certificate;

/// A pod is asked so often.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A pod that does not answer is asked less often, but at least so often.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Listeners' certificates are looked at so often …
const PROBE_EVERY: Duration = Duration::from_secs(30);
/// … and so often, so many times, when a new one is on its way: Secrets take up to a minute or two to reach a pod.
const RECHECK_EVERY: Duration = Duration::from_secs(3);
const RECHECKS: u32 = 40;
/// What a refusal is quoted with, in bytes.
const QUOTE_BYTES_MAX: usize = 200;

/// Whom to ask, and as whom.
#[derive(Debug, Clone)]
pub(super) struct Goal {
    pub(super) target: Target,
    pub(super) client: Arc<ClientConfig>,
    /// Grows when certificates are to be looked at.
    pub(super) rechecks: u64,
}

/// A running [`Driver`]; it ends with this.
#[derive(Debug)]
pub(super) struct Task {
    goals: watch::Sender<Goal>,
    pub(super) posts: mpsc::Sender<Posted>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Task {
    pub(super) fn new(goals: watch::Sender<Goal>, posts: mpsc::Sender<Posted>, handle: JoinHandle<()>) -> Self {
        Self { goals, posts, handle }
    }

    /// Whether it asks this very pod, at this very place.
    pub(super) fn is_for(&self, target: &Target) -> bool {
        let place = |target: &Target| (target.uid.clone(), target.address, target.admin_port);
        place(&self.goals.borrow().target) == place(target)
    }

    pub(super) fn aim(&self, target: Target, client: &Arc<ClientConfig>) {
        self.goals.send_if_modified(|goal| {
            goal.client = client.clone();
            let target = Target { known: goal.target.known, ..target };
            let changed = goal.target != target;
            goal.target = target;
            changed
        });
    }

    pub(super) fn recheck(&self) {
        self.goals.send_modify(|goal| goal.rechecks += 1);
    }
}

/// What the task owns.
pub(super) struct Driver {
    inner: Weak<Inner>,
    fleet: Fleet,
    pod: String,
    goal: watch::Receiver<Goal>,
    posted: mpsc::Receiver<Posted>,
    line: Line,
    /// In a row.
    failures: u32,
    /// Looks that are still to be taken in quick succession.
    rechecks: u32,
}

type Seen = (Vec<u16>, Vec<(u16, Option<Certificate>)>);

impl Driver {
    pub(super) fn new(
        inner: Weak<Inner>,
        fleet: Fleet,
        pod: String,
        goal: watch::Receiver<Goal>,
        posted: mpsc::Receiver<Posted>,
    ) -> Self {
        Self { inner, fleet, pod, goal, posted, line: Line::default(), failures: 0, rechecks: 0 }
    }

    /// Runs until it is not wanted any more.
    pub(super) async fn run(mut self) {
        let (mut next_ask, mut next_probe) = (Instant::now(), Instant::now());
        let mut probing: Option<BoxFuture<'static, Seen>> = None;
        loop {
            tokio::select! {
                biased;
                posted = self.posted.recv() => match posted {
                    Some(posted) => self.carry(posted).await,
                    None => return,
                },
                seen = async { match &mut probing { Some(probing) => probing.await, None => pending().await } } => {
                    probing = None;
                    next_probe = Instant::now() + self.note_served(seen);
                }
                changed = self.goal.changed() => match changed {
                    Ok(()) => {
                        self.rechecks = RECHECKS;
                        next_probe = Instant::now();
                    }
                    Err(_) => return,
                },
                () = sleep_until(next_ask) => {
                    self.ask().await;
                    next_ask = Instant::now() + about(self.pause());
                }
                () = sleep_until(next_probe), if probing.is_none() => probing = Some(look(&self.goal.borrow().target)),
            }
        }
    }

    async fn ask(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        let (label, result) = match self.exchange(&inner, Method::GET, "/load", Vec::new()).await {
            Ok(answer) if answer.status == StatusCode::OK => match Load::read(&answer.body) {
                Ok(load) => ("answered", Ok(load)),
                Err(nonsense) => ("nonsense", Err(nonsense.to_string())),
            },
            Ok(answer) => ("refused", Err(refusal(&answer))),
            Err(error) => (error.label(), Err(error.to_string())),
        };
        inner.counters.asks.with_label_values(&[label]).inc();
        self.note(&inner, result.as_ref().map_err(String::as_str));
    }

    async fn carry(&mut self, posted: Posted) {
        let Some(inner) = self.inner.upgrade() else { return };
        let Posted { order, mut answer } = posted;
        if answer.is_closed() {
            return;
        }
        let exchanged = tokio::select! {
            // whoever gave up counts on it that nothing is sent any more
            () = answer.closed() => return,
            exchanged = self.exchange(&inner, Method::POST, order.path(), order.body()) => exchanged,
        };
        let result = match exchanged {
            Ok(answer) => judge(&answer),
            Err(error) => Err(OrderError::Unreachable(error.to_string())),
        };
        if let Ok(load) = &result {
            self.note(&inner, Ok(load));
        }
        // an error: nobody waits for it any more
        let _ = answer.send(result);
    }

    async fn exchange(
        &mut self,
        inner: &Inner,
        method: Method,
        path: &'static str,
        body: Vec<u8>,
    ) -> Result<Answer, LineError> {
        let Goal { target, client, .. } = self.goal.borrow().clone();
        let peer = Peer { target: &target, client: &client, handshakes: &inner.handshakes };
        self.line.exchange(&peer, method, path, body).await
    }

    fn note(&mut self, inner: &Inner, result: Result<&Load, &str>) {
        match result {
            Ok(load) => {
                self.failures = 0;
                inner.answered(&self.fleet, &self.pod, load);
            }
            Err(problem) => {
                self.failures = self.failures.saturating_add(1);
                inner.failed(&self.fleet, &self.pod, problem);
            }
        }
    }

    fn pause(&self) -> Duration {
        ASK_EVERY.saturating_mul(2u32.saturating_pow(self.failures.saturating_sub(1).min(8))).min(BACKOFF_MAX)
    }

    /// Says what was seen, and when to look again.
    fn note_served(&mut self, (ports, seen): Seen) -> Duration {
        let Some(inner) = self.inner.upgrade() else { return PROBE_EVERY };
        let failed = seen.iter().any(|(_, certificate)| certificate.is_none());
        for (_, certificate) in &seen {
            let label = if certificate.is_some() { "seen" } else { "failed" };
            inner.counters.probes.with_label_values(&[label]).inc();
        }
        let certificates = seen.into_iter().filter_map(|(port, certificate)| Some((port, certificate?))).collect();
        inner.served(&self.fleet, &self.pod, certificates, &ports);
        let again = failed || self.rechecks > 0;
        self.rechecks = self.rechecks.saturating_sub(1);
        about(if again { RECHECK_EVERY } else { PROBE_EVERY })
    }
}

impl LineError {
    fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Late => "late",
            Self::TooLong => "nonsense",
        }
    }
}

/// Looks at all listeners of a pod at the same time.
fn look(target: &Target) -> BoxFuture<'static, Seen> {
    let Target { address, listeners_tls_ports: ports, server_name, .. } = target.clone();
    Box::pin(async move {
        let looks = ports.iter().map(|port| probe::served(address, *port, &server_name));
        let seen = join_all(looks).await;
        (ports.clone(), ports.into_iter().zip(seen).collect())
    })
}

fn judge(answer: &Answer) -> Result<Load, OrderError> {
    match answer.status {
        StatusCode::OK => Load::read(&answer.body).map_err(|nonsense| OrderError::Unreachable(nonsense.to_string())),
        StatusCode::CONFLICT => Err(OrderError::Fenced(quote(answer))),
        _ => Err(OrderError::Refused(refusal(answer))),
    }
}

fn refusal(answer: &Answer) -> String {
    format!("answers {}: {}", answer.status.as_u16(), quote(answer))
}

fn quote(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body);
    text[..text.floor_char_boundary(QUOTE_BYTES_MAX)].trim().to_owned()
}
