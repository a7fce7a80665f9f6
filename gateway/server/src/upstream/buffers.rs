//! Buffers of messages in flight, used again: a message in steady state allocates nothing.

use std::cell::{Cell, RefCell};

/// Buffers kept; those above are freed.
const KEPT_MAX: usize = 4096;
/// A buffer that grew beyond this is freed, so that one burst of large messages does not stay for ever.
const KEPT_BYTES_MAX: usize = 8 * 1024;

/// Empty buffers ready for use.
#[derive(Default)]
pub(crate) struct Buffers {
    free: RefCell<Vec<Vec<u8>>>,
    /// One was taken since the last tick.
    used: Cell<bool>,
}

impl Buffers {
    /// An empty buffer, with room if there was one to use again.
    pub(crate) fn take(&self) -> Vec<u8> {
        self.used.set(true);
        self.free.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub(crate) fn give(&self, mut buffer: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if buffer.capacity() != 0 && buffer.capacity() <= KEPT_BYTES_MAX && free.len() < KEPT_MAX {
            buffer.clear();
            free.push(buffer);
        }
    }

    /// Frees everything if nothing was taken since the last tick: nothing is held while idle.
    pub(crate) fn tick(&self) {
        if !self.used.replace(false) {
            self.free.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Buffers, KEPT_BYTES_MAX};

    #[test]
    fn a_buffer_comes_back_empty_and_with_its_room() {
        let buffers = Buffers::default();
        buffers.give(vec![1; 100]);
        let buffer = buffers.take();
        assert!(buffer.is_empty() && buffer.capacity() >= 100);
    }

    #[test]
    fn a_large_buffer_is_not_kept() {
        let buffers = Buffers::default();
        buffers.give(vec![1; KEPT_BYTES_MAX + 1]);
        assert_eq!(buffers.take().capacity(), 0);
    }

    #[test]
    fn nothing_is_held_while_idle() {
        let buffers = Buffers::default();
        let buffer = vec![1; 100];
        buffers.take();
        buffers.give(buffer);
        buffers.tick();
        assert_eq!(buffers.free.borrow().len(), 1);
        buffers.tick();
        assert_eq!(buffers.free.borrow().len(), 0);
    }
}
