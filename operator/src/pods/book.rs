//! What is known of one fleet's pods, kept apart from how it came to be known. Time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    load::Load,
    lost::{Gone, Lost, UNREACHABLE_AFTER},
    owed::Owed,
    rates::Rates,
    told::{self, Facts, Told},
};
use crate::observe::Certificate;

/// A pod that has not answered for so long is stale: its values are its last ones.
const STALE_AFTER: Duration = Duration::from_secs(5);

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// What it said last; absent if it never answered.
    pub load: Option<Load>,
    /// How old that is; how long it has been asked in vain, if it never answered.
    pub stale_for: Duration,
    /// Why it did not answer the last time, if it did not.
    pub problem: Option<String>,
    /// The certificate that its listeners serve; if they differ, the older one.
    pub served: Option<Certificate>,
}

impl Report {
    /// Whether its values are only its last ones.
    pub fn is_stale(&self) -> bool {
        self.load.is_none() || self.stale_for >= STALE_AFTER
    }

    /// Why it is silent, if it has been for so long that it does not just start.
    pub fn silence(&self) -> Option<&str> {
        self.problem.as_deref().filter(|_| self.stale_for >= STALE_AFTER)
    }
}

/// A fleet's pods together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Devices connected, on every pod that exists, draining ones too. Silent pods count by what they said last.
    pub connections: u64,
    /// Connections that are not devices yet.
    pub handshaking: u64,
    /// Devices that were let go in the last minute and have not come back.
    pub owed: u64,
    /// Messages per second.
    pub messages_per_second: f64,
    /// Devices that connected per second.
    pub connects_per_second: f64,
    /// Pods whose broker fails or asks them to be slower.
    pub upstream_limited: usize,
    /// Pods.
    pub pods: usize,
    /// Pods that are silent.
    pub stale: usize,
    /// How long ago the pod with devices was heard of which nothing has been heard for longest.
    pub age: Duration,
}

/// One fleet's pods.
#[derive(Debug, Default)]
pub(super) struct Book {
    pages: BTreeMap<String, Page>,
    owed: Owed,
    /// Pods that went with devices and of which nothing was said yet: each reconcile takes them.
    gone: BTreeMap<String, Gone>,
    /// There is something to tell.
    news: bool,
    /// When something was told.
    told_at: Option<Instant>,
}

#[derive(Debug)]
struct Page {
    known: Option<u64>,
    load: Option<Load>,
    /// When it answered; when it was first asked, if it never did.
    heard_at: Instant,
    /// When it did not answer for the first time since.
    failed_at: Option<Instant>,
    /// It was given up, with its devices.
    given_up: bool,
    problem: Option<String>,
    served: BTreeMap<u16, Certificate>,
    rates: Rates,
    /// What was told of it, and when.
    told: Told,
    told_at: Instant,
    /// That is not how it is any more.
    news: bool,
}

impl Book {
    /// A pod is asked from now on; one of the same name was another.
    pub(super) fn begin(&mut self, pod: &str, known: Option<u64>, now: Instant) {
        let page = Page {
            known,
            load: None,
            heard_at: now,
            failed_at: None,
            given_up: false,
            problem: None,
            served: BTreeMap::new(),
            rates: Rates::default(),
            told: Told::default(),
            told_at: now,
            news: false,
        };
        if let Some(other) = self.pages.insert(pod.to_owned(), page) {
            self.gone.extend(other.gone(now).map(|gone| (pod.to_owned(), gone)));
        }
    }

    /// A pod is gone.
    pub(super) fn forget(&mut self, pod: &str, now: Instant) {
        if let Some(page) = self.pages.remove(pod) {
            self.gone.extend(page.gone(now).map(|gone| (pod.to_owned(), gone)));
        }
    }

    /// Pods that went since the last time with devices that nobody let go at `per_second` or less. Those of which `is_ready`
    /// is not true are given up if they have been silent for long.
    pub(super) fn lost(&mut self, per_second: u64, is_ready: impl Fn(&str) -> bool, now: Instant) -> Vec<Lost> {
        for (pod, page) in &mut self.pages {
            if page.is_unreachable(now) && !is_ready(pod) {
                self.gone.extend(page.gone(now).map(|gone| (pod.clone(), gone)));
                page.given_up = true;
            }
        }
        let lost = |(pod, gone): (String, Gone)| Lost { pod, connections: gone.lost(per_second) };
        std::mem::take(&mut self.gone).into_iter().map(lost).filter(|lost| lost.connections > 0).collect()
    }

    pub(super) fn answered(&mut self, pod: &str, load: Load, now: Instant) {
        let Some(page) = self.pages.get_mut(pod) else { return };
        let growth = page.rates.add(&load, now);
        self.owed.add(growth.let_go, growth.connects, now);
        if growth.anew {
            self.gone.extend(page.gone(now).map(|gone| (pod.to_owned(), gone)));
        }
        page.load = Some(load);
        page.heard_at = now;
        (page.failed_at, page.given_up) = (None, false);
        page.problem = None;
    }

    pub(super) fn failed(&mut self, pod: &str, problem: &str, now: Instant) {
        if let Some(page) = self.pages.get_mut(pod) {
            page.failed_at.get_or_insert(now);
            page.problem = Some(problem.to_owned());
        }
    }

    /// Certificates were seen at some of the pod's `ports`; at the others what was seen before holds.
    pub(super) fn served(&mut self, pod: &str, served: Vec<(u16, Certificate)>, ports: &[u16]) {
        if let Some(page) = self.pages.get_mut(pod) {
            page.served.extend(served);
            page.served.retain(|port, _| ports.contains(port));
        }
    }

    pub(super) fn reports(&self, now: Instant) -> BTreeMap<String, Report> {
        self.pages.iter().map(|(pod, page)| (pod.clone(), page.report(now))).collect()
    }

    pub(super) fn measured(&mut self, now: Instant) -> Measured {
        let mut sum = Measured { owed: self.owed.count(now), pods: self.pages.len(), ..Measured::default() };
        for page in self.pages.values() {
            let rate = page.rates.rate();
            sum.connections += page.connections();
            sum.handshaking += page.load.as_ref().map_or(0, |load| load.handshaking);
            sum.messages_per_second += rate.messages;
            sum.connects_per_second += rate.connects;
            sum.upstream_limited += usize::from(page.load.as_ref().is_some_and(Load::is_limited));
            sum.stale += usize::from(!page.answers(now));
            if page.connections() > 0 {
                sum.age = sum.age.max(now.saturating_duration_since(page.heard_at));
            }
        }
        sum
    }

    /// Whether there is news, now that something was heard of `pod`; then they count as told.
    pub(super) fn tell(&mut self, pod: &str, now: Instant) -> bool {
        let page = self.pages.get_mut(pod);
        self.news |= page.is_some_and(|page| page.has_news(now));
        let too_soon = |at| now.saturating_duration_since(at) < told::NEWS_EVERY;
        if !self.news || self.told_at.is_some_and(too_soon) {
            return false;
        }
        self.pages.values_mut().for_each(|page| page.count_as_told(now));
        self.told_at = Some(now);
        std::mem::take(&mut self.news)
    }
}

impl Page {
    /// What it said; what others knew, if it said nothing yet.
    fn connections(&self) -> u64 {
        self.load.as_ref().map_or(self.known.unwrap_or(0), |load| load.connections)
    }

    fn answers(&self, now: Instant) -> bool {
        self.load.is_some() && now.saturating_duration_since(self.heard_at) < STALE_AFTER
    }

    /// Silent for long, and not because it drains: an order that nobody renews makes it pause.
    fn is_unreachable(&self, now: Instant) -> bool {
        self.load.as_ref().is_some_and(|load| load.drain.is_none())
            && now.saturating_duration_since(self.heard_at) >= UNREACHABLE_AFTER
    }

    /// What it was, if it went with devices of which nothing was said yet.
    fn gone(&self, now: Instant) -> Option<Gone> {
        let load = self.load.clone().filter(|load| load.connections > 0 && !self.given_up)?;
        Some(Gone { load, lived: self.failed_at.unwrap_or(now).saturating_duration_since(self.heard_at) })
    }

    /// A new certificate is served only when it is served everywhere.
    fn served(&self) -> Option<&Certificate> {
        self.served.values().min_by_key(|certificate| certificate.not_before)
    }

    fn report(&self, now: Instant) -> Report {
        Report {
            load: self.load.clone(),
            stale_for: now.saturating_duration_since(self.heard_at),
            problem: self.problem.clone(),
            served: self.served().cloned(),
        }
    }

    fn has_news(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.told_at);
        self.news |= told::notable(&self.told, &self.told(now), since);
        self.news
    }

    fn count_as_told(&mut self, now: Instant) {
        if std::mem::take(&mut self.news) {
            self.told = self.told(now);
            self.told_at = now;
        }
    }

    fn told(&self, now: Instant) -> Told {
        let load = self.load.clone().unwrap_or_default();
        Told {
            connections: load.connections,
            facts: Facts {
                answers: self.answers(now),
                silent: self.report(now).silence().is_some(),
                ready: load.ready,
                upstream: load.upstream,
                config: load.config,
                secrets_problem: load.secrets_problem,
                drain: load.drain,
                served: self.served().map(|certificate| certificate.serial.clone()),
            },
        }
    }
}

impl Load {
    /// Whether its broker fails or asks it to be slower.
    pub fn is_limited(&self) -> bool {
        self.upstream.throttled || self.upstream.failing.is_some()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn load(connections: u64) -> Load {
        Load { connections, ready: true, ..Load::default() }
    }

    fn certificate(serial: &str, from: i64) -> Certificate {
        let not_before = Timestamp::from_second(from).expect("it is a time");
        Certificate { serial: serial.to_owned(), not_before, ..Certificate::default() }
    }

    #[test]
    fn silent_pods_count_by_what_they_said_last_and_then_by_what_was_known() {
        let begin = Instant::now();
        let later = begin + Duration::from_mins(10);
        let mut book = Book::default();
        book.begin("a", None, begin);
        book.begin("b", Some(7), begin);
        book.begin("c", None, begin);
        book.answered("a", load(5), begin);
        book.failed("a", "connection refused", begin);
        let sum = book.measured(later);
        assert_eq!((sum.connections, sum.pods, sum.stale), (12, 3, 3));
        book.answered("b", load(3), later);
        let sum = book.measured(later);
        assert_eq!((sum.connections, sum.stale, sum.age), (8, 2, Duration::from_mins(10)));
        let reports = book.reports(later);
        assert!(reports["a"].is_stale() && reports["c"].is_stale() && !reports["b"].is_stale());
        assert_eq!(reports["a"].problem.as_deref(), Some("connection refused"));
        book.answered("a", load(0), begin);
        assert_eq!(book.measured(later).age, Duration::ZERO, "a silent pod without devices makes nothing old");
        book.forget("a", later);
        assert_eq!(book.measured(later).connections, 3);
    }

    #[test]
    fn who_was_let_go_by_a_pod_that_is_gone_is_still_owed() {
        let begin = Instant::now();
        let second = |number| begin + Duration::from_secs(number);
        let mut book = Book::default();
        book.begin("a", None, begin);
        book.begin("b", None, begin);
        book.answered("a", Load { connections: 50, ..Load::default() }, second(0));
        book.answered("b", Load { connects_total: 9, ..Load::default() }, second(0));
        book.answered("a", Load { connections: 0, let_go_total: 50, ..Load::default() }, second(1));
        book.forget("a", second(2));
        assert_eq!(book.measured(second(2)).owed, 50);
        book.answered("b", Load { connections: 20, connects_total: 29, ..Load::default() }, second(3));
        let sum = book.measured(second(3));
        assert_eq!((sum.connections, sum.owed), (20, 30));
        assert_eq!(book.measured(second(63)).owed, 0);
    }

    #[test]
    fn a_pod_that_goes_with_devices_is_told_once_however_it_goes() {
        let begin = Instant::now();
        let second = |number| begin + Duration::from_secs(number);
        let mut book = Book::default();
        let lost = |book: &mut Book, ready: &[&str], at| {
            let lost = book.lost(100, |pod| ready.contains(&pod), second(at));
            lost.into_iter().map(|lost| (lost.pod, lost.connections)).collect::<Vec<_>>()
        };
        let one = |pod: &str, connections| vec![(pod.to_owned(), connections)];
        let said = |connections, connects_total| Load { connects_total, ..load(connections) };
        for pod in ["killed", "empty", "unheard", "restarted", "cut-off", "overloaded"] {
            book.begin(pod, Some(9), begin);
        }
        book.answered("killed", said(50, 50), begin);
        book.answered("empty", said(0, 70), begin);
        book.answered("restarted", said(40, 60), begin);
        book.answered("cut-off", said(30, 30), begin);
        book.answered("overloaded", said(10, 10), begin);
        assert_eq!(lost(&mut book, &[], 1), []);
        for pod in ["killed", "empty", "unheard"] {
            book.forget(pod, second(1));
        }
        assert_eq!(lost(&mut book, &[], 1), one("killed", 50));
        assert_eq!(lost(&mut book, &[], 1), []);
        book.answered("restarted", said(1, 1), second(3));
        assert_eq!(lost(&mut book, &[], 3), one("restarted", 40));
        // a node is lost: its pods become unready, and go when somebody removes them
        book.failed("cut-off", "timed out", second(2));
        assert_eq!(lost(&mut book, &["overloaded"], 31), one("cut-off", 30));
        assert_eq!(lost(&mut book, &["overloaded"], 32), []);
        book.forget("cut-off", second(300));
        assert_eq!(lost(&mut book, &["overloaded"], 300), one("restarted", 1));
        book.answered("restarted", said(2, 2), second(301));
        book.forget("restarted", second(302));
        assert_eq!(lost(&mut book, &["overloaded"], 302), one("restarted", 2));
    }

    #[test]
    fn news_are_told_once_and_not_faster_than_they_may() {
        let begin = Instant::now();
        let after = |milliseconds| begin + Duration::from_millis(milliseconds);
        let mut book = Book::default();
        book.begin("a", None, begin);
        assert!(!book.tell("a", after(0)), "it said nothing yet");
        book.answered("a", load(0), after(0));
        assert!(book.tell("a", after(0)), "it is ready");
        assert!(!book.tell("a", after(0)));
        book.answered("a", load(100), after(500));
        assert!(!book.tell("a", after(500)), "too soon");
        assert!(book.tell("a", after(1000)), "what was too soon is told later");
        assert!(!book.tell("a", after(2000)));
        assert!(book.tell("a", after(6000)), "it fell silent");
        assert!(!book.tell("a", after(60_000)));
    }

    #[test]
    fn why_a_pod_never_answered_is_told_when_it_had_the_time_to_start() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let mut book = Book::default();
        book.begin("a", None, begin);
        for (seconds, told) in [(1, false), (4, false), (5, true), (6, false), (60, false)] {
            book.failed("a", "connection refused", after(seconds));
            assert_eq!(book.tell("a", after(seconds)), told, "after {seconds} s");
            let silence = book.reports(after(seconds))["a"].silence().map(str::to_owned);
            assert_eq!(silence.is_some(), seconds >= 5, "after {seconds} s: {silence:?}");
        }
        book.answered("a", load(0), after(61));
        assert_eq!(book.reports(after(61))["a"].silence(), None);
    }

    #[test]
    fn a_new_certificate_is_served_when_it_is_served_at_every_port() {
        let begin = Instant::now();
        let mut book = Book::default();
        book.begin("a", None, begin);
        let serial = |book: &Book| book.reports(begin)["a"].served.clone().map(|certificate| certificate.serial);
        book.served("a", vec![(1, certificate("01", 1)), (2, certificate("01", 1))], &[1, 2]);
        assert_eq!(serial(&book).as_deref(), Some("01"));
        book.served("a", vec![(2, certificate("02", 2))], &[1, 2]);
        assert_eq!(serial(&book).as_deref(), Some("01"));
        book.served("a", vec![(1, certificate("02", 2))], &[1, 2]);
        assert_eq!(serial(&book).as_deref(), Some("02"));
        book.served("a", vec![], &[3]);
        assert_eq!(serial(&book), None);
    }
}
