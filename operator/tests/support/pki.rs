//! A CA and what it signs.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, SerialNumber,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, crypto::aws_lc_rs::default_provider, server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A CA.
pub(crate) struct Pki(pub(crate) CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) serial: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "a CA of tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a CA"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn issue(&self, name: &str, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names are names");
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().expect("a key");
        let serial: Vec<u8> = [&[1][..], &key.public_key_raw()[1..9]].concat();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Pair {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
            serial: format!("{:018x}", serial.iter().fold(0u128, |number, byte| number << 8 | u128::from(*byte))),
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        }
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).expect("a CA");
        Arc::new(roots)
    }

    /// Shows a certificate of this CA, and trusts only this CA.
    pub(crate) fn client(&self, name: &str) -> Arc<ClientConfig> {
        let pair = self.issue(name, &[], ExtendedKeyUsagePurpose::ClientAuth);
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let builder =
            builder.with_safe_default_protocol_versions().expect("versions").with_root_certificates(self.roots());
        Arc::new(builder.with_client_auth_cert(pair.chain, pair.key).expect("a pair"))
    }

    /// Wants a certificate of this CA, and serves `pair`.
    pub(crate) fn server(&self, pair: Pair) -> Arc<ServerConfig> {
        server(self.roots(), pair.chain, pair.key)
    }
}

/// Wants a certificate of a CA in `roots`, and serves `chain`.
pub(crate) fn server(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Arc<ServerConfig> {
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build().expect("roots");
    let key = provider.key_provider.load_private_key(key).expect("a key");
    let resolver = rustls::sign::SingleCertAndKey::from(CertifiedKey::new(chain, key));
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.expect("versions").with_client_cert_verifier(verifier);
    Arc::new(builder.with_cert_resolver(Arc::new(resolver)))
}
