//! The hub's certificates, and TLS as the hub does it: a client certificate is asked for, none is needed, and whose it is
//! is not decided here.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};

/// What the hub shows to its clients.
#[derive(Debug)]
pub struct Certificates {
    /// What clients must trust, PEM.
    pub ca_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Certificates {
    /// A new authority and a certificate of it for these host names and IP addresses.
    ///
    /// # Errors
    /// Text about a name that cannot stand in a certificate.
    pub fn made(names: &[String]) -> Result<Self, String> {
        let describe = |error: rcgen::Error| format!("certificate for {names:?}: {error}");
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "local IoT Hub authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(describe)?;
        let authority = CertifiedIssuer::self_signed(authority, key).map_err(describe)?;
        let mut leaf = CertificateParams::new(names).map_err(describe)?;
        leaf.distinguished_name.push(DnType::CommonName, names.first().map_or("hub", String::as_str));
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(describe)?;
        let leaf = leaf.signed_by(&key, &authority).map_err(describe)?;
        Ok(Self {
            ca_pem: authority.pem(),
            chain: vec![leaf.der().clone(), authority.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der())?,
        })
    }

    /// A certificate chain (leaf first) and its key, both PEM. What clients must trust is the last of the chain.
    ///
    /// # Errors
    /// Text about what is not PEM.
    pub fn given(chain_pem: &str, key_pem: &str) -> Result<Self, String> {
        let chain = read_certificates(chain_pem)?;
        if chain.is_empty() {
            return Err("certificate: no certificate in the PEM".to_owned());
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| format!("key: {error}"))?;
        let last = chain_pem.rfind("-----BEGIN CERTIFICATE-----").unwrap_or(0);
        Ok(Self { ca_pem: chain_pem[last..].to_owned(), chain, key })
    }

    /// The TLS side of a listener.
    ///
    /// # Errors
    /// Text about a key that does not fit its certificate.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = Arc::new(AnyClient { provider: provider.clone() });
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("tls: {error}"))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| format!("tls: {error}"))?;
        Ok(Arc::new(config))
    }
}

/// All certificates in a PEM text.
///
/// # Errors
/// Text about what is not PEM.
pub fn read_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("certificate: {error}"))
}

/// Asks for a certificate and takes any whose key the client has.
#[derive(Debug)]
struct AnyClient {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateParams;

    use super::*;

    #[test]
    fn a_given_certificate_is_served_with_its_own_key_only() {
        let key = KeyPair::generate().expect("key");
        let chain = CertificateParams::new(vec!["localhost".to_owned()])
            .expect("a name")
            .self_signed(&key)
            .expect("certificate")
            .pem();
        let given = Certificates::given(&chain, &key.serialize_pem()).expect("PEM");
        assert_eq!(given.ca_pem.trim(), chain.trim());
        assert!(given.server_config().is_ok());
        let other = KeyPair::generate().expect("key").serialize_pem();
        assert!(Certificates::given(&chain, &other).expect("PEM").server_config().is_err());
        assert!(Certificates::given("", &other).is_err());
        assert!(Certificates::given(&chain, "no key").is_err());
    }
}
