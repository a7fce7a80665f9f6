//! What the hub's side has to tell one device connection: a queue and the waker of the task that drains it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use gateway_core::{
    auth::Verdict,
    message::{Command, Outcome, Refusal},
    session::effect::{CloseCause, Slot},
};

use super::arena::{Arena, List};
use crate::link::Link;

/// What the hub's side tells a device connection. Drained in one go, so that what arrived together is answered together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamEvent {
    /// Answer to [`DeviceLink::authorize`](super::DeviceLink::authorize).
    Authorized(Verdict),
    /// What became of the message sent under this slot; exactly once for each, unless `Lost` comes first.
    Outcome(Slot, Outcome),
    /// Answer to [`DeviceLink::open_commands`](super::DeviceLink::open_commands).
    CommandsOpened(Result<(), Refusal>),
    /// The hub has a command for the device.
    Command(Command),
    /// The hub let go of this device, and nothing will come after this: close its connection for this cause. After
    /// [`CloseCause::TakenOver`] a Will can still be handed over.
    Lost(CloseCause),
}

/// The events of all devices of one core.
pub(crate) type Events = Rc<RefCell<Arena<UpstreamEvent>>>;

/// Where a device is: its AMQP connection and its number there.
pub(crate) struct Route {
    pub(crate) link: Rc<Link>,
    pub(crate) device: u32,
}

/// The events of one device, shared by its connection (reads) and its AMQP connection (writes).
pub(crate) struct Inbox {
    events: Events,
    queue: Cell<List>,
    waker: RefCell<Option<Waker>>,
    /// The device's connection is gone: nobody reads any more.
    closed: Cell<bool>,
    /// `Lost` was posted.
    lost: Cell<bool>,
    /// `None` once the hub let go of the device.
    pub(crate) route: RefCell<Option<Route>>,
}

impl Inbox {
    pub(crate) fn new(events: Events) -> Self {
        Self {
            events,
            queue: Cell::new(List::EMPTY),
            waker: RefCell::new(None),
            closed: Cell::new(false),
            lost: Cell::new(false),
            route: RefCell::new(None),
        }
    }

    /// Queues `event`; wakes the reader if the queue was empty. The queue is bounded by the session's own windows: at
    /// most one outcome for each slot, one command for each credit, one answer for each question.
    pub(crate) fn post(&self, event: UpstreamEvent) {
        if self.closed.get() {
            return;
        }
        if let UpstreamEvent::Lost(_) = event {
            self.lost.set(true);
        }
        let mut queue = self.queue.get();
        let was_empty = queue.is_empty();
        self.events.borrow_mut().push_back(&mut queue, event);
        self.queue.set(queue);
        if was_empty && let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Ready when [`Inbox::next`] has something; else `cx` is woken when it has.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if !self.queue.get().is_empty() {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The oldest event not yet taken.
    pub(crate) fn next(&self) -> Option<UpstreamEvent> {
        let mut queue = self.queue.get();
        let event = self.events.borrow_mut().pop_front(&mut queue);
        self.queue.set(queue);
        event
    }

    /// Whether the device's connection is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Whether the device was told that the hub let go of it.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Forgets what is queued and takes nothing more.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        self.waker.take();
        let mut queue = self.queue.replace(List::EMPTY);
        self.events.borrow_mut().clear(&mut queue);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        rc::Rc,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        task::{Context, Poll, Wake},
    };

    use super::{Inbox, UpstreamEvent};
    use crate::upstream::arena::Arena;
    use gateway_core::{message::Outcome, session::effect::Slot};

    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn accepted(slot: u16) -> UpstreamEvent {
        UpstreamEvent::Outcome(Slot(slot), Outcome::Accepted)
    }

    #[test]
    fn a_range_of_outcomes_wakes_the_device_once() {
        let inbox = Inbox::new(Rc::new(RefCell::new(Arena::new())));
        let count = Arc::new(Count(AtomicU32::new(0)));
        let waker = Arc::clone(&count).into();
        assert_eq!(inbox.poll(&Context::from_waker(&waker)), Poll::Pending);
        for slot in 0..8 {
            inbox.post(accepted(slot));
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        let taken: Vec<_> = std::iter::from_fn(|| inbox.next()).collect();
        assert_eq!(taken, (0..8).map(accepted).collect::<Vec<_>>());
        inbox.post(accepted(8));
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_closed_inbox_holds_nothing() {
        let events = Rc::new(RefCell::new(Arena::new()));
        let inbox = Inbox::new(Rc::clone(&events));
        inbox.post(accepted(1));
        inbox.close();
        inbox.post(accepted(2));
        assert_eq!((inbox.next(), events.borrow().len()), (None, 0));
    }
}
