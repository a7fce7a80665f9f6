//! TLS towards devices: what is served and to whom (`config`), and records ⇄ plaintext without buffers of its own (`filter`).
//!
//! It never touches a socket and never reads a file.

pub mod config;
pub mod filter;

pub use config::{TlsError, server_config};
pub use filter::TlsFilter;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The common name in the subject of a certificate that TLS has verified; `None` if it has none or several.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    if names.next().is_some() { None } else { Some(name.to_owned()) }
}
