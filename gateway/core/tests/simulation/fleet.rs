//! Many conversations, one hub, one clock: what happens next is drawn from the seed.

use std::{sync::Arc, time::Duration};

use gateway_core::{
    config::GatewayConfig,
    pipeline::Pipeline,
    session::Context,
    time::{Millis, Now, UnixSeconds},
};

use crate::{
    conversation::Conversation,
    judge::{Tally, WINDOW},
    random::Random,
};

const DEVICES: usize = 12;
const EPOCH: u64 = 1_700_000_000;
const OUTAGE_MAX: u64 = 300_000;

pub(crate) struct Fleet {
    random: Random,
    cx: Context,
    now: Now,
    devices: Vec<Conversation>,
    /// Since when the hub is away.
    away: Option<Millis>,
    tally: Tally,
}

impl Fleet {
    pub(crate) fn new(seed: u64) -> Self {
        let text = "
upstream: {iotHub: {hostName: hub.example.com}}
tls: {secretName: serving}";
        let mut settings = GatewayConfig::parse(text).unwrap().check().unwrap();
        settings.limits.inflight_max = WINDOW;
        settings.limits.handshake_timeout = Duration::from_secs(10);
        let pipeline = Pipeline::new(&settings);
        let cx = Context::new(Arc::new(settings), pipeline);
        let now = Now { monotonic: Millis(0), unix: UnixSeconds(EPOCH) };
        let devices = (0..DEVICES).map(|_| Conversation::new(&cx, now)).collect();
        Self { random: Random(seed), cx, now, devices, away: None, tally: Tally::default() }
    }

    /// One thing happens to one device, or to all.
    pub(crate) fn step(&mut self) {
        let index = self.random.below(DEVICES);
        if self.devices[index].is_over() {
            return self.device_comes_back(index);
        }
        let (device, cx, random) = (&mut self.devices[index], &mut self.cx, &mut self.random);
        match random.below(1000) {
            0..450 => device.device_acts(cx, random, self.now),
            450..502 => device.verdict(cx, random, self.now),
            502 => device.gateway_acts(cx, random, self.now),
            503 => self.hub_goes_or_comes(),
            504 => self.time_jumps(),
            505..600 => self.time_passes(200),
            _ if self.away.is_some() => self.outage_goes_on(),
            600..850 => device.hub_settles(cx, random, self.now),
            850..920 => device.hub_answers_open(cx, random, self.now),
            _ => device.hub_commands(random),
        }
    }

    /// The hub comes back, and everything ends: nothing waits for ever.
    pub(crate) fn finish(mut self) -> Tally {
        self.away = None;
        for mut device in std::mem::take(&mut self.devices) {
            device.hub_takes_all(&mut self.cx, self.now);
            let mut waits = 0;
            while !device.is_over() {
                device.hub_answers_open(&mut self.cx, &mut self.random, self.now);
                if let Some(deadline) = device.session.poll_timeout() {
                    self.now.monotonic = self.now.monotonic.max(deadline);
                    device.time_passes(&mut self.cx, self.now);
                }
                waits += 1;
                assert!(waits < 5, "a session that does not end");
            }
            self.tally.add(&device.judge.tally);
        }
        self.tally
    }

    fn device_comes_back(&mut self, index: usize) {
        let ended = std::mem::replace(&mut self.devices[index], Conversation::new(&self.cx, self.now));
        self.tally.add(&ended.hears_late(&mut self.cx, self.now).tally);
    }

    fn hub_goes_or_comes(&mut self) {
        if self.away.take().is_none() {
            self.away = Some(self.now.monotonic);
            return;
        }
        for device in self.devices.iter_mut().filter(|device| !device.is_over()) {
            device.hub_came_back(&mut self.cx, self.now);
        }
    }

    fn outage_goes_on(&mut self) {
        let Some(since) = self.away else { return };
        if self.random.one_in(200) {
            return self.hub_goes_or_comes();
        }
        if self.now.monotonic.0 - since.0 > OUTAGE_MAX {
            for device in &mut self.devices {
                device.outage_is_over_bound(&mut self.cx, self.now);
            }
        }
    }

    fn time_jumps(&mut self) {
        let longest = [5_000, 100_000, 2_000_000][self.random.below(3)];
        let jump = self.random.next() % longest;
        self.time_passes(jump);
    }

    fn time_passes(&mut self, milliseconds: u64) {
        self.now.monotonic = Millis(self.now.monotonic.0 + milliseconds);
        self.now.unix = UnixSeconds(EPOCH + self.now.monotonic.0 / 1000);
        for device in self.devices.iter_mut().filter(|device| !device.is_over()) {
            device.time_passes(&mut self.cx, self.now);
        }
    }
}
