//! Whether a device's certificate is still trusted after the CA changed. It says so and closes nothing: whoever is to go goes in
//! pace.

use std::time::Duration;

use gateway_core::time::UnixSeconds;
use rustls_pki_types::{CertificateDer, UnixTime};
use tracing::debug;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Connection;
use crate::core::Core;

impl Connection {
    /// Marks the connection if nobody who is trusted now signed the certificate that let its device in.
    pub(super) fn check_trust(&self, core: &Core) {
        let mut roster = core.roster.borrow_mut();
        let Some(entry) = roster.get_mut(self.place.key as usize) else { return };
        let Some((device, since)) = &entry.device else { return };
        if entry.leaving.is_some() {
            return;
        }
        let trusted = is_trusted(core, self.transport.peer_certificates(), *since);
        if entry.distrusted == trusted {
            entry.distrusted = !trusted;
            core.metrics.distrusted.add(if trusted { -1 } else { 1 });
            debug!(%device, trusted, "certificate checked again");
            core.shared.drains.look();
        }
    }
}

/// Whether the chain leads to somebody trusted, at the time of the CONNECT or, if a resumed session outlived the
/// certificate, at the beginning of its life: whether it has expired is no question here.
pub(super) fn is_trusted(core: &Core, chain: &[CertificateDer<'static>], since: UnixSeconds) -> bool {
    let credentials = core.shared.credentials.load();
    let (Some(client_ca), [leaf, others @ ..]) = (&credentials.client_ca, chain) else { return false };
    let begins = X509Certificate::from_der(leaf).map_or(0, |(_, leaf)| leaf.validity().not_before.timestamp());
    [since.0, u64::try_from(begins).unwrap_or(0)].into_iter().any(|at| {
        client_ca.verify_client_cert(leaf, others, UnixTime::since_unix_epoch(Duration::from_secs(at))).is_ok()
    })
}
