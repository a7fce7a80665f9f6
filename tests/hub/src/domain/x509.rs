//! Client certificates: the registry decides whose they are, at attach, not in TLS (contract §2.1).

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::hex;
use super::identity::Identity;
use super::registry::{Authentication, Status};
use super::sas::{AuthError, Claims, Proof, Scope};
use super::{Domain, registry};

/// What a client showed in TLS: its certificate, then what came with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Leaf first; never empty.
    pub chain: Vec<CertificateDer<'static>>,
}

/// The authorities whose certificates identify devices by common name.
#[derive(Clone, Debug, Default)]
pub struct DeviceAuthorities(Option<Arc<dyn ClientCertVerifier>>);

impl DeviceAuthorities {
    /// These authorities; none is legal too.
    ///
    /// # Errors
    /// Text about a certificate that cannot be an authority.
    pub fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, String> {
        if certificates.is_empty() {
            return Ok(Self::default());
        }
        let mut roots = RootCertStore::empty();
        for certificate in certificates {
            roots.add(certificate.clone()).map_err(|error| format!("device authority: {error}"))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| format!("device authorities: {error}"))?;
        Ok(Self(Some(verifier)))
    }

    fn issued(&self, certificate: &ClientCertificate, now_ms: u64) -> bool {
        let Some((leaf, intermediates)) = certificate.chain.split_first() else { return false };
        let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
        self.0.as_ref().is_some_and(|verifier| verifier.verify_client_cert(leaf, intermediates, now).is_ok())
    }
}

impl Domain {
    /// Whether this certificate makes the client that identity: by thumbprint, or by an authority and its common name.
    ///
    /// # Errors
    /// `UnknownDevice`, `UnknownModule`, `Disabled`, `Certificate`.
    pub fn verify_certificate(
        &self,
        identity: &Identity,
        certificate: &ClientCertificate,
    ) -> Result<Claims, AuthError> {
        let record = self.registry.get(identity).ok_or_else(|| registry::unknown(identity))?;
        let leaf = certificate.chain.first().ok_or(AuthError::Certificate)?;
        let now_ms = self.clock.now_ms();
        let expires = match &record.registration.authentication {
            // a thumbprint names one certificate; its dates do not matter to the hub
            Authentication::SelfSigned { primary, secondary } => {
                let own = thumbprints(leaf);
                let known = [primary, secondary];
                let fits = known.into_iter().flatten().any(|thumbprint| own.contains(thumbprint));
                fits.then_some(u64::MAX)
            }
            Authentication::CertificateAuthority => {
                let subject = subject(leaf).filter(|subject| subject.common_name == client_name(identity));
                subject.filter(|_| self.authorities.issued(certificate, now_ms)).map(|subject| subject.not_after_unix)
            }
            Authentication::SymmetricKey { .. } => None,
        };
        let expires = expires.ok_or(AuthError::Certificate)?;
        if record.registration.status == Status::Disabled {
            return Err(AuthError::Disabled);
        }
        Ok(Claims { scope: Scope::Device { identity: identity.clone(), proof: Proof::X509 }, expires })
    }
}

/// The common name that a certificate of this identity must carry.
fn client_name(identity: &Identity) -> String {
    identity.to_string()
}

/// SHA-1 and SHA-256 of the certificate, as upper-case hex digits.
fn thumbprints(certificate: &CertificateDer<'_>) -> [String; 2] {
    [&digest::SHA1_FOR_LEGACY_USE_ONLY, &digest::SHA256]
        .map(|algorithm| hex::lower(digest::digest(algorithm, certificate).as_ref()).to_ascii_uppercase())
}

struct Subject {
    common_name: String,
    not_after_unix: u64,
}

fn subject(certificate: &CertificateDer<'_>) -> Option<Subject> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let common_name = parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let not_after_unix = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    Some(Subject { common_name, not_after_unix })
}

/// Brings a thumbprint into the form the registry keeps: 40 or 64 hex digits, upper case.
pub fn parse_thumbprint(text: &str) -> Option<String> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | ' ')).collect::<String>().to_ascii_uppercase();
    let is_hex = digits.bytes().all(|c| c.is_ascii_hexdigit());
    (is_hex && matches!(digits.len(), 40 | 64)).then_some(digits)
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;
    use crate::domain::{IfMatch, Registration, Settings};

    fn params(common_name: &str) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params
    }

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = params("test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("certificate")
    }

    fn issued(common_name: &str, by: &CertifiedIssuer<'static, KeyPair>) -> ClientCertificate {
        let key = KeyPair::generate().expect("key");
        let leaf = params(common_name).signed_by(&key, by).expect("certificate");
        ClientCertificate { chain: vec![leaf.der().clone()] }
    }

    fn domain(authorities: Vec<CertificateDer<'static>>, authentication: Authentication) -> Arc<Domain> {
        let settings = Settings { device_authorities: authorities, ..Settings::default() };
        let domain = Domain::new("hub.example.com", settings).expect("settings");
        let registration = Registration { authentication, ..Registration::new(Identity::device("dev1")) };
        domain.create_identity(registration).expect("new");
        domain
    }

    #[test]
    fn a_device_with_an_authority_needs_its_own_name_and_that_authority() {
        let (known, unknown) = (authority(), authority());
        let domain = domain(vec![known.der().clone()], Authentication::CertificateAuthority);
        for (certificate, expected) in
            [(issued("dev1", &known), true), (issued("dev2", &known), false), (issued("dev1", &unknown), false)]
        {
            let claims = domain.verify_certificate(&Identity::device("dev1"), &certificate);
            assert_eq!(claims.is_ok(), expected, "{claims:?}");
        }
    }

    #[test]
    fn a_device_with_thumbprints_needs_one_of_them() {
        let authority = authority();
        let (own, other) = (issued("anything", &authority), issued("anything", &authority));
        let [sha1, sha256] = thumbprints(&own.chain[0]);
        for thumbprint in [sha1, sha256] {
            let registered = Authentication::SelfSigned { primary: None, secondary: Some(thumbprint) };
            let domain = domain(vec![], registered);
            let device = Identity::device("dev1");
            let claims = domain.verify_certificate(&device, &own).expect("own certificate");
            assert_eq!(claims.auth_method_json(), r#"{"scope":"device","type":"x509","issuer":"iothub"}"#);
            assert_eq!(domain.verify_certificate(&device, &other), Err(AuthError::Certificate));
        }
    }

    #[test]
    fn a_certificate_does_not_open_a_device_with_keys_or_a_disabled_one() {
        let authority = authority();
        let certificate = issued("dev1", &authority);
        let domain = domain(vec![authority.der().clone()], Authentication::generated());
        let device = Identity::device("dev1");
        assert_eq!(domain.verify_certificate(&device, &certificate), Err(AuthError::Certificate));
        let registration = Registration {
            status: Status::Disabled,
            authentication: Authentication::CertificateAuthority,
            ..Registration::new(device.clone())
        };
        domain.update_identity(registration, &IfMatch::Any).expect("there");
        assert_eq!(domain.verify_certificate(&device, &certificate), Err(AuthError::Disabled));
    }

    #[test]
    fn thumbprints_are_read_with_or_without_colons() {
        assert_eq!(parse_thumbprint(&"aB:".repeat(20)), Some("AB".repeat(20)));
        assert_eq!(parse_thumbprint(&"ab".repeat(32)), Some("AB".repeat(32)));
        assert_eq!(parse_thumbprint("ab"), None);
        assert_eq!(parse_thumbprint(&"xy".repeat(20)), None);
    }
}
