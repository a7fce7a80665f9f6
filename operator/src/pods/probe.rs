//! Looks at the certificate that a listener serves. Trusts nothing and sends nothing: it reads, and hangs up.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{observe::Certificate, secrets};

/// For TCP and TLS.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The certificate served at `address` for `name`; `None` if nothing answers there with one.
pub(super) async fn served(address: IpAddr, port: u16, name: &str) -> Option<Certificate> {
    let reader = Arc::new(Reader { provider: Arc::new(aws_lc_rs::default_provider()), leaf: Mutex::default() });
    let name = ServerName::try_from(name.to_owned()).ok()?;
    // how the handshake ends does not matter: a listener that wants our certificate shows its own before
    let _ = timeout(PROBE_TIMEOUT, shake_hands(&reader, (address, port).into(), name)).await;
    let leaf = reader.leaf.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    secrets::certificate_from_der(&leaf).ok()
}

async fn shake_hands(reader: &Arc<Reader>, address: SocketAddr, name: ServerName<'static>) -> std::io::Result<()> {
    let builder = ClientConfig::builder_with_provider(reader.provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(std::io::Error::other)?;
    let verifier: Arc<dyn ServerCertVerifier> = reader.clone();
    let config = builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth();
    let socket = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.map(drop)
}

/// Takes every certificate, and remembers the first of the chain.
#[derive(Debug)]
struct Reader {
    provider: Arc<CryptoProvider>,
    leaf: Mutex<Option<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Reader {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.leaf.lock().unwrap_or_else(PoisonError::into_inner) = Some(leaf.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
