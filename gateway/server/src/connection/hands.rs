//! Carries out a session's effects: output is encoded, messages go to the hub's side, a CONNECT is judged.

use std::rc::Rc;

use gateway_core::{
    auth::{ClientCertificate, Login, Refused, RefusedReason, Verdict},
    codec::{self, Packet, packet::ConnectCode},
    message::QoS,
    session::Effect,
    settings::Sas,
    time::Now,
};
use tracing::error;

use super::trust;
use crate::{core::Core, metrics::Limit, tls, transport::Transport, upstream::DeviceLink};

/// Lent to a session for one event.
pub(super) struct Hands<'a> {
    core: &'a Rc<Core>,
    transport: &'a Transport,
    link: &'a mut Option<DeviceLink>,
    output: &'a mut Vec<u8>,
    now: Now,
    /// Of the command at hand: a QoS 0 command is settled as soon as it is written.
    command_qos: QoS,
    /// The answer to the CONNECT, if it is known at once.
    pub(super) verdict: Option<Verdict>,
    /// [`Core::trust`] when the handshake began.
    pub(super) trust: u32,
    /// The answer is yes, for the device's certificate.
    pub(super) by_certificate: bool,
    /// The session ended.
    pub(super) closed: bool,
}

impl<'a> Hands<'a> {
    pub(super) fn new(
        core: &'a Rc<Core>,
        transport: &'a Transport,
        link: &'a mut Option<DeviceLink>,
        output: &'a mut Vec<u8>,
        now: Now,
    ) -> Self {
        let command_qos = QoS::AtLeastOnce;
        Self {
            core,
            transport,
            link,
            output,
            now,
            command_qos,
            verdict: None,
            trust: core.trust(),
            by_certificate: false,
            closed: false,
        }
    }

    pub(super) fn carry_out(&mut self, effect: Effect<'_>) {
        match effect {
            Effect::Write(packet) => self.write(&packet),
            Effect::Send { slot, qos, telemetry } => {
                self.core.metrics.up.bytes.add(telemetry.payload.len() as u64);
                let sent = self.link.as_ref().is_some_and(|link| link.send(slot, qos, &telemetry));
                if !sent {
                    self.core.metrics.upstream_dropped.inc();
                }
            }
            Effect::Settle(tag, settlement) => {
                self.core.metrics.down.down(self.command_qos, settlement).inc();
                self.command_qos = QoS::AtLeastOnce;
                if let Some(link) = self.link {
                    link.settle(tag, settlement);
                }
            }
            Effect::OpenCommands { credit } => {
                if let Some(link) = self.link {
                    link.open_commands(credit);
                }
            }
            Effect::CloseCommands => {
                if let Some(link) = self.link {
                    link.close_commands();
                }
            }
            Effect::Authenticate(login) => {
                self.verdict = self.authenticate(&login);
                self.introduce(&login);
            }
            Effect::Close(_) => self.closed = true,
        }
    }

    fn write(&mut self, packet: &Packet<'_>) {
        if let Packet::Publish(publish) = packet {
            self.core.metrics.down.bytes.add(publish.payload.len() as u64);
            self.command_qos = publish.qos;
        }
        if let Err(error) = codec::encode(packet, self.output) {
            error!(%error, "packet of our own has no form on the wire");
        }
    }

    /// Judges by our own keys, or asks the hub (then there is no answer yet).
    fn authenticate(&mut self, login: &Login<'_>) -> Option<Verdict> {
        let settings = self.core.settings();
        let limits = &settings.limits;
        let by_hub = match (&settings.authentication.sas, &login.token) {
            (Sas::Hub, Some(token)) => Some(token),
            _ => None,
        };
        let verdict = match by_hub {
            Some(token) if token.expires.0.saturating_add(limits.clock_skew_max.as_secs()) <= self.now.unix.0 => {
                Some(refused(ConnectCode::NotAuthorized, RefusedReason::TokenExpired))
            }
            // the hub only says that a token is good: it takes the identity from `sr` and does not know who asks
            Some(token) if !token.covers(&login.identity, |host| settings.is_hub_host(host)) => {
                Some(refused(ConnectCode::NotAuthorized, RefusedReason::TokenScope))
            }
            Some(_) => None,
            None if login.token.is_none() && !self.is_trusted() => {
                Some(refused(ConnectCode::NotAuthorized, RefusedReason::Certificate))
            }
            None => {
                let certificate = self.certificate();
                let keys = &self.core.shared.credentials.load().keys;
                Some(keys.verify(login, certificate.as_ref(), self.now.unix, limits.clock_skew_max.as_secs()))
            }
        };
        if matches!(verdict, Some(Verdict::Refused(_))) {
            return verdict;
        }
        self.by_certificate = verdict.is_some() && login.token.is_none();
        match self.core.upstream.open(&login.identity) {
            Err(refused) => return Some(Verdict::Refused(refused)),
            Ok(link) => {
                if let Some(token) = by_hub {
                    link.authorize(token.text, token.expires);
                }
                *self.link = Some(link);
            }
        }
        verdict
    }

    /// A certificate that was verified before somebody ceased to be trusted is verified again.
    fn is_trusted(&self) -> bool {
        let chain = self.transport.peer_certificates();
        self.trust == self.core.trust() || chain.is_empty() || trust::is_trusted(self.core, chain, self.now.unix)
    }

    /// Lets the hub know what the device says of itself.
    fn introduce(&self, login: &Login<'_>) {
        let Some(link) = &*self.link else { return };
        let (client, left_out) = login.client();
        if left_out {
            self.core.metrics.limits.at(Limit::ClientText).inc();
        }
        if let Some(client) = client {
            link.introduce(client);
        }
    }

    fn certificate(&self) -> Option<ClientCertificate> {
        tls::common_name(self.transport.peer_certificate()?).map(|common_name| ClientCertificate { common_name })
    }
}

fn refused(code: ConnectCode, reason: RefusedReason) -> Verdict {
    Verdict::Refused(Refused { code, reason })
}
