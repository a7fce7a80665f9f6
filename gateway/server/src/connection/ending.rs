//! The end of a connection: what is queued goes out, each layer says goodbye, and the device has a moment to read it.

use std::{
    pin::Pin,
    rc::Rc,
    sync::atomic::{Ordering::Release, fence},
    task::{Context, Poll},
    time::Duration,
};

use gateway_core::{
    message::DeviceId,
    session::effect::CloseCause,
    time::{Millis, Now},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use tracing::debug;

use super::{Connection, Phase};
use crate::{
    core::{Bench, Core},
    metrics::{ConnectResult, End, TransportFault, label_of},
    server::protocol_name,
    transport::{Buffers, Transport},
    websocket::CloseCode,
};

/// How long the last bytes may take, and how long the device may take to close its side. A socket that is closed while
/// bytes of the device are unread sends a reset, which may overtake the CONNACK or the alert that says why.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection on its way out.
#[derive(Debug)]
pub(super) struct Ending {
    /// When the socket closes whatever happens.
    pub(super) deadline: Millis,
    code: CloseCode,
    sealed: bool,
    half_closed: bool,
    peer_gone: bool,
}

impl Ending {
    pub(super) fn new(end: End, now: Now) -> Self {
        let peer_gone = end == End::Closed(CloseCause::Gone);
        let deadline = now.monotonic.after(GOODBYE);
        Self { deadline, code: close_code(end), sealed: false, half_closed: false, peer_gone }
    }

    /// The last output, and the goodbyes of the layers behind it; only once.
    pub(super) fn seal(&mut self, transport: &mut Transport, output: &[u8], buffers: &mut Buffers) {
        if !std::mem::replace(&mut self.sealed, true) {
            // a transport that cannot seal any more has nothing to say goodbye with
            let _broken = transport.seal(output, buffers).map(|()| transport.seal_end(self.code, buffers));
        }
    }

    /// Nobody is there to read.
    pub(super) fn peer_gone(&mut self) {
        self.peer_gone = true;
    }

    /// Ready when the socket may be dropped. `all_written`: the kernel has our last bytes.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TcpStream,
        scratch: &mut [u8],
        all_written: bool,
        now: Now,
    ) -> Poll<()> {
        if self.peer_gone || now.monotonic >= self.deadline {
            return Poll::Ready(());
        }
        if all_written && self.sealed && !self.half_closed {
            self.half_closed = true;
            if !matches!(Pin::new(&mut *stream).poll_shutdown(cx), Poll::Ready(Ok(()))) {
                return Poll::Ready(());
            }
        }
        // what still comes is read and dropped, until the device closes its side
        loop {
            let mut room = ReadBuf::new(scratch);
            match Pin::new(&mut *stream).poll_read(cx, &mut room) {
                Poll::Ready(Ok(())) if !room.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Connection {
    /// The end begins: it is counted and told once, and the device is no longer listed.
    pub(super) fn begin_ending(&mut self, core: &Rc<Core>, bench: &mut Bench, fault: Option<End>, now: Now) {
        if matches!(self.phase, Phase::Ending(_) | Phase::Over) {
            return;
        }
        let (end, why) = match (fault, self.session.ended()) {
            (Some(end), _) => (end, ""),
            (None, Some(ended)) => (ended.refused.map_or(End::Closed(ended.cause), End::Refused), ended.why),
            (None, None) => (End::Closed(CloseCause::Gone), ""),
        };
        self.phase = Phase::Ending(Ending::new(end, now));
        self.partial = Vec::new();
        self.tell_end(core, end, why);
        // a session that knows nothing of the fault still has a Will to send
        self.with_session(core, bench, now, |session, context, out| {
            session.handle_close(context, CloseCause::Gone, out);
        });
        // what was handed over, the Will too, still settles without us
        self.link = None;
    }

    fn tell_end(&mut self, core: &Core, end: End, why: &str) {
        let mut roster = core.roster.borrow_mut();
        let entry = roster.get_mut(self.place.key as usize);
        let (address, device, leaving) = entry.map_or((None, None, None), |entry| {
            core.metrics.distrusted.add(-i64::from(std::mem::take(&mut entry.distrusted)));
            (Some(entry.address), entry.device.take(), entry.leaving)
        });
        let device = device.map(|(device, _)| device);
        if let Some(device) = &device {
            core.shared.presence.leave(device, self.place);
        }
        let (cause, address) = (label_of(end), address.map(tracing::field::display));
        if std::mem::take(&mut self.accepted) {
            core.metrics.connections.add(-1);
            core.metrics.disconnects.at(end).inc();
            if let Some(leaving) = leaving {
                // whoever reads this count first finds a count of connections that is not older
                fence(Release);
                core.metrics.let_go.at(leaving.cause).inc();
            }
            debug!(device = device.as_ref().map(DeviceId::as_str), address, cause, why, "device disconnected");
        } else {
            core.metrics.handshakes.add(-1);
            core.metrics.connects.at(ConnectResult::Refused).inc();
            core.metrics.refused.at(end).inc();
            debug!(address, protocol = protocol_name(self.protocol), reason = cause, why, "connection refused");
        }
    }

    /// Closes the socket once the last bytes are out and the device had a moment to read them.
    pub(super) fn say_goodbye(&mut self, cx: &mut Context<'_>, bench: &mut Bench, now: Now) {
        let (Phase::Ending(ending), Some(stream)) = (&mut self.phase, &mut self.stream) else { return };
        if ending.poll(cx, stream, &mut bench.raw, self.unsent.is_empty(), now).is_ready() {
            self.stream = None;
            self.unsent = Vec::new();
            self.transport = Transport::Plain;
            self.phase = Phase::Over;
        }
    }
}

fn close_code(end: End) -> CloseCode {
    match end {
        End::Closed(CloseCause::Disconnect | CloseCause::Gone) => CloseCode::Normal,
        End::Closed(CloseCause::Shutdown | CloseCause::HubUnreachable) => CloseCode::GoingAway,
        End::Closed(CloseCause::ProtocolViolation) | End::Transport(TransportFault::WebSocketFrame) => {
            CloseCode::Protocol
        }
        End::Closed(CloseCause::TooLarge) => CloseCode::TooBig,
        _ => CloseCode::Policy,
    }
}
