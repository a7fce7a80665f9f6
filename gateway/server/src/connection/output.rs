//! The write side of a connection: one write per turn, and what the socket does not take is kept within a bound.

use std::{
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use gateway_core::{
    session::effect::CloseCause,
    time::{Millis, Now},
};
use tokio::io::AsyncWrite;

use super::{Connection, Phase};
use crate::{
    core::{Bench, Core},
    metrics::Limit,
};

impl Connection {
    /// The one write of the turn.
    pub(super) fn write_out(&mut self, cx: &mut Context<'_>, core: &Rc<Core>, bench: &mut Bench, now: Now) {
        if matches!(self.phase, Phase::Over) {
            return;
        }
        let Bench { output, buffers, .. } = bench;
        let sealed = match &mut self.phase {
            Phase::Ending(ending) => {
                ending.seal(&mut self.transport, output, buffers);
                Ok(())
            }
            _ => self.transport.seal(output, buffers),
        };
        output.clear();
        if let Err(fault) = sealed {
            self.fail(core, bench, fault, now);
        }
        let wire = &bench.buffers.wire;
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(wire);
            let unsent = std::mem::take(&mut self.unsent);
            match self.write(cx, &unsent) {
                Ok(written) => self.keep_unsent(unsent, written, core, now),
                Err(_) => self.lose(core, bench, now),
            }
        } else if !wire.is_empty() {
            let wire = std::mem::take(&mut bench.buffers.wire);
            match self.write(cx, &wire) {
                Ok(written) if written == wire.len() => {}
                Ok(written) => {
                    self.unsent_since = now.monotonic;
                    self.keep_unsent(wire[written..].to_vec(), 0, core, now);
                }
                Err(_) => self.lose(core, bench, now),
            }
            bench.buffers.wire = wire;
        }
        bench.buffers.wire.clear();
    }

    /// Writes until everything is out or the socket is full, and is woken when it has room again.
    fn write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> io::Result<usize> {
        let Some(stream) = &mut self.stream else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut written = 0;
        while written < bytes.len() {
            match Pin::new(&mut *stream).poll_write(cx, &bytes[written..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(bytes)) => written += bytes,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        Ok(written)
    }

    fn keep_unsent(&mut self, mut unsent: Vec<u8>, written: usize, core: &Core, now: Now) {
        if written > 0 {
            unsent.drain(..written);
            self.unsent_since = now.monotonic;
        }
        if unsent.len() > core.settings().limits.output_bytes_max && !self.paused {
            core.metrics.limits.at(Limit::DeviceOutput).inc();
        }
        self.unsent = if unsent.is_empty() { Vec::new() } else { unsent };
    }

    /// The socket is broken: nothing can be written, nothing will come.
    fn lose(&mut self, core: &Rc<Core>, bench: &mut Bench, now: Now) {
        self.close(core, bench, CloseCause::Gone, now);
        self.unsent = Vec::new();
        if let Phase::Ending(ending) = &mut self.phase {
            ending.peer_gone();
        }
    }

    /// When the device has left our bytes unread for too long.
    pub(super) fn write_deadline(&self, core: &Core) -> Option<Millis> {
        let stuck = !self.unsent.is_empty() && matches!(self.phase, Phase::Serving);
        stuck.then(|| self.unsent_since.after(core.settings().limits.write_timeout))
    }
}
