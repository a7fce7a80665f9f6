//! How a device trusts the gateway.

use std::sync::Arc;

use anyhow::Context;
use rustls::{ClientConfig, RootCertStore, client::Resumption, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// A client configuration that trusts exactly the certificates of `ca_pem`.
///
/// Without `resume` every handshake is a full one. `tls12` alone speaks what the Python SDK speaks. `identity` is a certificate chain and its key, both PEM.
pub fn client(
    ca_pem: &[u8],
    tls12: bool,
    resume: bool,
    identity: Option<(&[u8], &[u8])>,
) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        roots.add(certificate.context("the CA file holds something that is not a certificate")?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "the CA file holds no certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = if tls12 { &[&version::TLS12][..] } else { &[&version::TLS13, &version::TLS12][..] };
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(versions)?.with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key)?)?
        }
    };
    if !resume {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// The same for one device of many: the tickets that it resumes its sessions by are no other's.
#[must_use]
pub fn with_own_tickets(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut own = config.clone();
    // rustls counts eight tickets a server
    own.resumption = Resumption::in_memory_sessions(8);
    Arc::new(own)
}
