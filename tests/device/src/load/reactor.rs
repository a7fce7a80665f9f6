//! The loop: epoll with a nanosecond timeout, what is due, one write a client and turn.

use std::{
    io,
    num::NonZeroU64,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::event::{Timespec, epoll};
use serde::Serialize;

use super::{
    Pace, Phase as Part, Plan, Second,
    client::{Client, Phase},
    report::Report,
    schedule::{Due, Schedule},
};

/// A send that begins this long after it was due is late: the load, not the server, was slow.
pub const LATE: Duration = Duration::from_millis(1);

/// What a run came to.
pub struct Outcome {
    /// All seconds together.
    pub total: Report,
    /// Seconds between the first and the last counted send.
    pub seconds: f64,
    /// Devices up when the counting began.
    pub connected: usize,
    /// One entry a device.
    pub devices: Vec<Sequences>,
}

/// What one device sent: message ids are `<run>-<sequence>`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sequences {
    /// Device id.
    pub device_id: String,
    /// Sequence numbers 0 .. sent were written.
    pub sent: u64,
    /// Closed ranges of sequence numbers acknowledged.
    pub acknowledged: Vec<(u64, u64)>,
    /// When it lost a connection that was up.
    #[serde(skip)]
    pub lost_at: Vec<Instant>,
}

struct Loop<'a> {
    plan: &'a Plan,
    clients: Vec<Client>,
    schedule: Schedule,
    epoll: std::os::fd::OwnedFd,
    touched: Vec<usize>,
    /// The running second.
    second: Report,
    total: Report,
    up: usize,
    attempts: Vec<u32>,
    /// When each lost connections that were up.
    lost_at: Vec<Vec<Instant>>,
    sending: bool,
}

/// Runs `plan` to its end; `tell` gets a line each second.
pub fn run(plan: &Plan, mut tell: impl FnMut(&Second)) -> anyhow::Result<Outcome> {
    // one nanosecond: a wait ends when it is due and not, as by default, up to 50 µs later. Refused only by a sandbox,
    // and then the histogram is worse by that much and still true.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let begun = Instant::now();
    let mut this = Loop {
        plan,
        clients: plan.logins.iter().map(|login| Client::new(login, begun)).collect(),
        schedule: Schedule::default(),
        epoll: epoll::create(epoll::CreateFlags::CLOEXEC).context("epoll")?,
        touched: Vec::new(),
        second: Report::default(),
        total: Report::default(),
        up: 0,
        attempts: vec![0; plan.logins.len()],
        lost_at: vec![Vec::new(); plan.logins.len()],
        sending: false,
    };
    this.ramp(begun, &mut tell)?;
    let connected = this.up;
    let (began, ended) = this.send(&mut tell)?;
    this.settle(&mut tell)?;
    let seconds = (ended - began).as_secs_f64();
    let devices = this.results();
    Ok(Outcome { total: this.total, seconds, connected, devices })
}

impl Loop<'_> {
    /// Connects everybody at the rate asked for and waits until they are up, then warms up.
    fn ramp(&mut self, begun: Instant, tell: &mut impl FnMut(&Second)) -> anyhow::Result<()> {
        for n in 0..self.clients.len() {
            let at = begun + Duration::from_secs_f64(n as f64 / self.plan.connects_per_second);
            self.schedule.add(at, n, Due::Connect);
        }
        let ramp = Duration::from_secs_f64(self.clients.len() as f64 / self.plan.connects_per_second);
        let limit = begun + ramp + self.plan.settle;
        self.turn_until(tell, Part::Ramp, limit, |this| this.up == this.clients.len())?;
        anyhow::ensure!(
            self.up == self.clients.len() || self.plan.reconnect,
            "only {} of {} devices connected ({} refused, {} connections lost)",
            self.up,
            self.clients.len(),
            self.total.refused + self.second.refused,
            self.total.lost_connections + self.second.lost_connections,
        );
        Ok(())
    }

    /// Warm-up, then the counted time; returns when the counting began and ended.
    fn send(&mut self, tell: &mut impl FnMut(&Second)) -> anyhow::Result<(Instant, Instant)> {
        let now = Instant::now();
        self.sending = true;
        match self.plan.pace {
            Pace::Open { per_second, .. } => {
                let each = self.clients.len() as f64 / per_second;
                for n in 0..self.clients.len() {
                    let phase = each * n as f64 / self.clients.len() as f64;
                    self.schedule.add(now + Duration::from_secs_f64(phase), n, Due::Send);
                }
            }
            Pace::Closed { .. } => {
                for n in 0..self.clients.len() {
                    self.handle(n, |client, plan, report| client.fill(now, plan, report));
                }
            }
            Pace::Idle => {}
            Pace::Once => {
                for n in 0..self.clients.len() {
                    self.handle(n, |client, plan, report| client.due(now, plan, report));
                }
            }
            Pace::Churn => {
                self.up = 0;
                for n in 0..self.clients.len() {
                    self.clients[n].disconnect();
                    self.schedule.add(now, n, Due::Connect);
                }
            }
        }
        self.turn_until(tell, Part::WarmUp, now + self.plan.warm_up, |_| false)?;
        self.second = Report::default();
        self.total = Report::default();
        let began = Instant::now();
        self.turn_until(tell, Part::Send, began + self.plan.time, |_| false)?;
        Ok((began, Instant::now()))
    }

    /// No new sends; waits for what is unacknowledged, then says goodbye.
    fn settle(&mut self, tell: &mut impl FnMut(&Second)) -> anyhow::Result<()> {
        self.sending = false;
        self.clients.iter_mut().for_each(Client::drop_backlog);
        let done = |this: &Self| this.clients.iter().all(|client| client.unacknowledged() == 0);
        self.turn_until(tell, Part::Settle, Instant::now() + self.plan.settle, done)?;
        for n in 0..self.clients.len() {
            if self.clients[n].phase == Phase::Up {
                self.handle(n, |client, _, _| client.goodbye());
            }
        }
        self.flush(Instant::now());
        self.total.add(&self.second);
        Ok(())
    }

    /// Turns the loop until `end` or `done`, telling a line each second.
    fn turn_until(
        &mut self,
        tell: &mut impl FnMut(&Second),
        part: Part,
        end: Instant,
        done: impl Fn(&Self) -> bool,
    ) -> anyhow::Result<()> {
        let mut events = Vec::with_capacity(1024);
        let mut scratch = vec![0; 64 << 10];
        let zero = Instant::now();
        let mut next_line = zero + Duration::from_secs(1);
        loop {
            let now = Instant::now();
            if now >= next_line {
                next_line += Duration::from_secs(1);
                tell(&self.second.line(part, (now - zero).as_secs_f64(), self.up));
                let second = std::mem::take(&mut self.second);
                self.total.add(&second);
                if self.plan.stop_file.as_ref().is_some_and(|file| file.exists()) {
                    return Ok(());
                }
            }
            if now >= end || done(self) {
                return Ok(());
            }
            self.handle_due(now);
            self.flush(now);
            self.wait(&mut events, end.min(next_line))?;
            let now = Instant::now();
            for event in &events {
                self.ready(*event, now, &mut scratch);
            }
            self.flush(now);
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, end: Instant) -> anyhow::Result<()> {
        let wake = self.schedule.next().map_or(end, |due| due.min(end));
        let left = wake.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("epoll_wait"),
        }
    }

    fn handle_due(&mut self, now: Instant) {
        while let Some((at, n, due)) = self.schedule.take(now) {
            match due {
                Due::Connect => self.connect(n, now),
                Due::Send => self.due_send(n, at, now),
                Due::Ping => self.due_ping(n, now),
            }
        }
    }

    fn due_send(&mut self, n: usize, at: Instant, now: Instant) {
        let Pace::Open { per_second, .. } = self.plan.pace else { return };
        if !self.sending {
            return;
        }
        self.second.late += u64::from(now - at > LATE);
        self.handle(n, |client, plan, report| client.due(at, plan, report));
        self.schedule.add(at + Duration::from_secs_f64(self.clients.len() as f64 / per_second), n, Due::Send);
    }

    fn due_ping(&mut self, n: usize, now: Instant) {
        if self.clients[n].phase != Phase::Up {
            return;
        }
        let every = self.keep_alive(n);
        if now - self.clients[n].last_write >= every {
            self.handle(n, |client, _, _| client.ping());
            self.clients[n].last_write = now;
        }
        let next = self.clients[n].last_write + every;
        self.schedule.add(next, n, Due::Ping);
    }

    /// Silence after which a client pings: its keep-alive.
    fn keep_alive(&self, n: usize) -> Duration {
        Duration::from_secs(u64::from(self.plan.logins[n].keep_alive_s.max(1)))
    }

    fn connect(&mut self, n: usize, now: Instant) {
        let plan = self.plan;
        let address = plan.addresses[n % plan.addresses.len()];
        let client = &mut self.clients[n];
        let result = client.connect(address, plan.tls_of(n), &plan.logins[n]).and_then(|()| {
            let socket = client.socket.as_ref().expect("connect() made it");
            let flags =
                epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::ET | epoll::EventFlags::RDHUP;
            epoll::add(&self.epoll, socket.as_fd(), epoll::EventData::new_u64(n as u64), flags)?;
            Ok(())
        });
        match result {
            Ok(()) => self.touched.push(n),
            Err(_) => self.lost(n, now),
        }
    }

    fn ready(&mut self, event: epoll::Event, now: Instant, scratch: &mut [u8]) {
        let n = event.data.u64() as usize;
        let was = self.clients[n].phase;
        if was == Phase::Down {
            return;
        }
        self.clients[n].blocked = false;
        let result = self.clients[n].readable(scratch, self.plan, now, &mut self.second);
        if was != Phase::Up && self.clients[n].phase == Phase::Up {
            self.came_up(n, now);
        }
        match result {
            Ok(true) => {
                if self.sending && matches!(self.plan.pace, Pace::Closed { .. }) {
                    self.handle(n, |client, plan, report| client.fill(now, plan, report));
                }
                self.touched.push(n);
            }
            Ok(false) | Err(_) => self.lost(n, now),
        }
    }

    fn came_up(&mut self, n: usize, now: Instant) {
        if self.plan.pace == Pace::Churn && self.sending {
            self.handle(n, |client, _, _| client.goodbye());
            self.flush(now);
            self.clients[n].disconnect();
            self.schedule.add(now, n, Due::Connect);
            return;
        }
        self.up += 1;
        self.attempts[n] = 0;
        self.second.resent += self.clients[n].unacknowledged() as u64;
        self.schedule.add(now + self.keep_alive(n), n, Due::Ping);
    }

    /// A connection that ended: the device comes back with doubling waits, if the plan wants that.
    fn lost(&mut self, n: usize, now: Instant) {
        if self.clients[n].phase == Phase::Up {
            self.up -= 1;
            self.second.lost_connections += 1;
            self.lost_at[n].push(now);
        } else {
            self.second.failed_attempts += 1;
        }
        self.clients[n].disconnect();
        if self.plan.reconnect {
            let attempt = self.attempts[n].min(6);
            self.attempts[n] += 1;
            // spread by the client's number: the load has no randomness of its own
            let spread = Duration::from_millis((n as u64 * 37) % 100);
            self.schedule.add(now + Duration::from_millis(100 << attempt) + spread, n, Due::Connect);
        }
    }

    fn handle(&mut self, n: usize, act: impl FnOnce(&mut Client, &Plan, &mut Report) -> io::Result<()>) {
        match act(&mut self.clients[n], self.plan, &mut self.second) {
            Ok(()) => self.touched.push(n),
            Err(_) => self.lost(n, Instant::now()),
        }
    }

    fn flush(&mut self, now: Instant) {
        for n in std::mem::take(&mut self.touched) {
            if self.clients[n].phase != Phase::Down && !self.clients[n].blocked && self.clients[n].flush(now).is_err() {
                self.lost(n, now);
            }
        }
    }

    fn results(&mut self) -> Vec<Sequences> {
        let rows = self.clients.iter().zip(&self.plan.logins).zip(std::mem::take(&mut self.lost_at));
        rows.map(|((client, login), lost_at)| {
            let (sent, acknowledged) = client.result();
            Sequences { device_id: login.client_id.clone(), sent, acknowledged: acknowledged.to_vec(), lost_at }
        })
        .collect()
    }
}
