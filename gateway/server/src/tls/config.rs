//! From PEM to what is served: certificate and key that match and are in date, and the CA of device certificates.

use std::sync::Arc;

use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Why certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate in PEM.
    #[error("tls.crt holds no certificate in PEM")]
    Certificate,
    /// No private key in PEM.
    #[error("tls.key holds no private key in PEM")]
    Key,
    /// They are not a pair, or the key is of a kind that is not supported.
    #[error("tls.crt and tls.key do not fit together: {0}")]
    Pair(rustls::Error),
    /// The certificate's life is over.
    #[error("tls.crt expired at Unix second {0}")]
    Expired(i64),
    /// The certificate's life has not begun.
    #[error("tls.crt is not valid before Unix second {0}")]
    NotYetValid(i64),
    /// No CA certificate in PEM.
    #[error("ca.crt holds no CA certificate in PEM")]
    ClientCa,
    /// rustls refused the combination.
    #[error("TLS configuration: {0}")]
    Config(String),
}

/// A certificate chain with its key, checked.
#[derive(Debug, Clone)]
pub struct Serving {
    pair: Arc<CertifiedKey>,
    /// End of the leaf's life, in Unix seconds.
    pub not_after: i64,
}

impl Serving {
    /// Reads and checks a chain (leaf first) and its key; `now` in Unix seconds.
    pub fn from_pem(chain: &[u8], key: &[u8], now: i64) -> Result<Self, TlsError> {
        let chain = certificates(chain).ok_or(TlsError::Certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Key)?;
        let (_, leaf) = X509Certificate::from_der(&chain[0]).map_err(|_| TlsError::Certificate)?;
        let (not_before, not_after) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        if now >= not_after {
            return Err(TlsError::Expired(not_after));
        }
        if now < not_before {
            return Err(TlsError::NotYetValid(not_before));
        }
        let pair = CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Pair)?;
        Ok(Self { pair: Arc::new(pair), not_after })
    }
}

/// The certificates that sign those of clients.
pub fn client_ca(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem).ok_or(TlsError::ClientCa)? {
        roots.add(certificate).map_err(|_| TlsError::ClientCa)?;
    }
    Ok(roots)
}

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// It may: devices.
    Optional,
    /// It must: the admin port.
    Required,
}

/// TLS 1.2 and 1.3, tickets made by `ticketer`, client certificates asked for if there is a CA for them.
///
/// A resumed session is not verified again: with another client CA there must be another ticketer.
pub fn server_config(
    serving: &Serving,
    client_ca: Option<Arc<dyn ClientCertVerifier>>,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let config_error = |error: &dyn std::fmt::Display| TlsError::Config(error.to_string());
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| config_error(&error))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&serving.pair))));
    // resumption by tickets only: nothing is kept here for a device that is gone
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ticketer;
    config.send_tls13_tickets = 1;
    Ok(Arc::new(config))
}

/// Keys for session tickets, renewed by themselves.
pub fn new_ticketer() -> Result<Arc<dyn ProducesTickets>, TlsError> {
    aws_lc_rs::Ticketer::new().map_err(|error| TlsError::Config(error.to_string()))
}

/// Judges clients' certificates by who signed them.
pub fn verifier(roots: RootCertStore, auth: ClientAuth) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if auth == ClientAuth::Optional { builder.allow_unauthenticated() } else { builder };
    builder.build().map_err(|error| TlsError::Config(error.to_string()))
}

fn certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().ok()?;
    (!chain.is_empty()).then_some(chain)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests {
    use super::{Serving, TlsError};

    fn pair(name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new([name.to_owned()]).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_certificate_with_another_key_is_refused() {
        let ((chain, key), (_, other)) = (pair("a"), pair("b"));
        assert!(Serving::from_pem(chain.as_bytes(), key.as_bytes(), NOW).is_ok());
        let error = Serving::from_pem(chain.as_bytes(), other.as_bytes(), NOW).unwrap_err();
        assert!(matches!(error, TlsError::Pair(_)), "{error}");
    }

    #[test]
    fn what_is_no_pem_is_named() {
        let (chain, key) = pair("a");
        let from = |chain: &str, key: &str| Serving::from_pem(chain.as_bytes(), key.as_bytes(), NOW).unwrap_err();
        assert!(matches!(from("x", &key), TlsError::Certificate));
        assert!(matches!(from(&chain, "x"), TlsError::Key));
    }

    #[test]
    fn an_expired_certificate_is_refused() {
        let (chain, key) = pair("a");
        let late = 5_000_000_000_000;
        let error = Serving::from_pem(chain.as_bytes(), key.as_bytes(), late).unwrap_err();
        assert!(matches!(error, TlsError::Expired(_)), "{error}");
    }
}
