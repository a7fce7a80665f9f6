//! Readiness: epoll, edge-triggered, tokens that are slab keys.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use rustix::event::epoll;

pub(super) struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
}

impl Poll {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, events: Vec::with_capacity(1024) })
    }

    pub(super) fn add(&self, fd: impl AsFd, token: u64, writable: bool) -> anyhow::Result<()> {
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        if writable {
            flags |= epoll::EventFlags::OUT;
        }
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags).context("epoll_ctl")
    }

    /// Waits for readiness; the tokens of what is ready go to `ready`.
    pub(super) fn wait(&mut self, ready: &mut Vec<u64>) -> anyhow::Result<()> {
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        ready.clear();
        ready.extend(self.events.iter().map(|event| event.data.u64()));
        Ok(())
    }
}
