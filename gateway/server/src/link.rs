//! One AMQP connection and the devices on it: what devices ask is done at once, what the hub answers is posted to them.
//!
//! [`state`] is where everything is decided; [`task`] owns the socket. The connection is lost and opened again without
//! its devices noticing more than a pause.

mod command;
mod commands;
mod device;
mod devices;
mod encode;
mod state;
mod task;
mod telemetry;
mod ties;
mod tokens;
mod transport;
mod waits;
mod websocket;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::Waker,
};

use gateway_core::{
    auth::Client,
    message::{CommandTag, QoS, Settlement, Telemetry},
    session::effect::Slot,
    time::UnixSeconds,
    upstream::ConnectionKey,
};

pub(crate) use device::{Passenger, Role};
use state::State;

use crate::upstream::pool::Pool;

/// One AMQP connection of the pool.
pub(crate) struct Link {
    pub(crate) key: ConnectionKey,
    pool: Rc<Pool>,
    state: RefCell<State>,
    /// The task's waker while it waits.
    waker: RefCell<Option<Waker>>,
    /// Woken already and not run yet.
    woken: Cell<bool>,
}

impl Link {
    /// Opens a connection: its task runs until it is idle for long or the gateway stops.
    pub(crate) fn start(pool: Rc<Pool>, key: ConnectionKey) -> Rc<Self> {
        let link = Rc::new(Self {
            key,
            state: RefCell::new(State::new(Rc::clone(&pool), key)),
            pool,
            waker: RefCell::new(None),
            woken: Cell::new(false),
        });
        link.pool.running.set(link.pool.running.get() + 1);
        tokio::task::spawn_local(task::run(Rc::clone(&link)));
        link
    }

    /// The hub cannot be reached by this connection.
    pub(crate) fn is_away(&self) -> bool {
        self.state.borrow().is_away()
    }

    /// Takes a device on; the number names it here.
    pub(crate) fn take_on(&self, passenger: Passenger) -> u32 {
        let device = self.state.borrow_mut().take_on(passenger);
        self.wake();
        device
    }

    pub(crate) fn authorize(&self, device: u32, token: &str, expires: UnixSeconds) {
        self.state.borrow_mut().authorize(device, token, expires);
        self.wake();
    }

    pub(crate) fn introduce(&self, device: u32, client: Client) {
        self.state.borrow_mut().introduce(device, client);
    }

    pub(crate) fn send(&self, device: u32, name: (Slot, QoS), telemetry: &Telemetry<'_>) {
        self.state.borrow_mut().send(device, name, telemetry);
        self.wake();
    }

    pub(crate) fn open_commands(&self, device: u32, credit: u32) {
        self.state.borrow_mut().open_commands(device, credit);
        self.wake();
    }

    pub(crate) fn close_commands(&self, device: u32) {
        let mut state = self.state.borrow_mut();
        state.see_time();
        state.close_commands(device);
        drop(state);
        self.wake();
    }

    pub(crate) fn settle(&self, device: u32, tag: CommandTag, settlement: Settlement) {
        self.state.borrow_mut().settle(device, tag, settlement);
        self.wake();
    }

    /// The device's connection is gone.
    pub(crate) fn leave(&self, device: u32) {
        let mut state = self.state.borrow_mut();
        state.see_time();
        state.leave(device);
        drop(state);
        self.wake();
    }

    /// Lets the task run once more after whatever is ready to run now: many calls, one turn, one write.
    pub(crate) fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// The task waits with this waker from now on.
    fn arm(&self, waker: &Waker) {
        self.woken.set(false);
        self.pool.clock.end_turn();
        let mut armed = self.waker.borrow_mut();
        if !armed.as_ref().is_some_and(|armed| armed.will_wake(waker)) {
            *armed = Some(waker.clone());
        }
    }
}
