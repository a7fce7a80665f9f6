//! What the hub's side needs from the secrets directory, read and checked once: keys, passwords, certificates to trust.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use gateway_core::{
    auth::Key,
    settings::{AmqpBroker, IotHub, Settings, Upstream},
};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Keys, passwords and trust for the hub's side. Never shown, not even by `Debug`.
pub struct UpstreamSecrets {
    /// Key of the hub policy, if one is configured.
    pub policy_key: Option<Key>,
    /// User and password for SASL PLAIN, if configured.
    pub sasl_plain: Option<(String, String)>,
    /// TLS towards the peer: trust, and the client certificate for SASL EXTERNAL. `None`: a plain `amqp` broker.
    pub tls: Option<Arc<ClientConfig>>,
}

/// Why the secrets of the hub's side cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file is missing or cannot be read.
    #[error("{}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds something else.
    #[error("{}: {expected}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What would be right.
        expected: &'static str,
    },
    /// The certificate and key do not make a TLS configuration.
    #[error("client certificate of the upstream: {0}")]
    Certificate(#[from] rustls::Error),
}

impl UpstreamSecrets {
    /// Reads what `settings` name below `directory` (`<secrets>/<secretName>/<key>`).
    pub fn load(settings: &Settings, directory: &Path) -> Result<Self, SecretError> {
        match &settings.upstream {
            Upstream::IotHub(hub) => Self::load_iot_hub(hub, directory),
            Upstream::Amqp(broker) => Self::load_broker(broker, directory),
        }
    }

    fn load_iot_hub(hub: &IotHub, directory: &Path) -> Result<Self, SecretError> {
        let policy_key = match &hub.policy {
            Some(policy) => Some(read_key(&directory.join(&policy.secret_name).join("key"))?),
            None => None,
        };
        let tls = tls(hub.ca_secret_name.as_deref(), None, directory)?;
        Ok(Self { policy_key, sasl_plain: None, tls: Some(tls) })
    }

    fn load_broker(broker: &AmqpBroker, directory: &Path) -> Result<Self, SecretError> {
        let sasl_plain = match &broker.sasl_plain_secret_name {
            Some(name) => {
                let part = |file: &str| read_line(&directory.join(name).join(file));
                Some((part("username")?, part("password")?))
            }
            None => None,
        };
        let certificate = broker.client_certificate_secret_name.as_deref();
        let tls = if broker.tls { Some(tls(broker.ca_secret_name.as_deref(), certificate, directory)?) } else { None };
        Ok(Self { policy_key: None, sasl_plain, tls })
    }
}

impl fmt::Debug for UpstreamSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamSecrets").field("tls", &self.tls.is_some()).finish_non_exhaustive()
    }
}

/// TLS 1.2 and 1.3 as a client, trusting `ca` or the system's roots.
fn tls(ca: Option<&str>, certificate: Option<&str>, directory: &Path) -> Result<Arc<ClientConfig>, SecretError> {
    let roots = match ca {
        Some(name) => roots_of(&directory.join(name).join("ca.crt"))?,
        None => system_roots(),
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match certificate {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let (chain, key) = client_pair(&directory.join(name))?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    Ok(Arc::new(config))
}

fn roots_of(path: &Path) -> Result<RootCertStore, SecretError> {
    let unusable = || SecretError::Unusable { path: path.to_owned(), expected: "expected PEM certificates to trust" };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read(path)?) {
        roots.add(certificate.map_err(|_| unusable())?).map_err(|_| unusable())?;
    }
    if roots.is_empty() { Err(unusable()) } else { Ok(roots) }
}

/// The roots of the system; those that cannot be read are left out, so that one bad file does not stop the gateway.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::error!(ignored, "no system certificates to trust; name one by caSecretName");
    }
    roots
}

fn client_pair(directory: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), SecretError> {
    let path = directory.join("tls.crt");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&path)?).collect();
    let chain = chain.map_err(|_| SecretError::Unusable { path, expected: "expected a PEM certificate chain" })?;
    let path = directory.join("tls.key");
    let key = PrivateKeyDer::from_pem_slice(&read(&path)?)
        .map_err(|_| SecretError::Unusable { path, expected: "expected a PEM private key" })?;
    Ok((chain, key))
}

fn read_key(path: &Path) -> Result<Key, SecretError> {
    Key::from_base64(&read(path)?)
        .map_err(|_| SecretError::Unusable { path: path.to_owned(), expected: "expected a key in base64" })
}

fn read_line(path: &Path) -> Result<String, SecretError> {
    let unusable = || SecretError::Unusable { path: path.to_owned(), expected: "expected one line of text" };
    let text = String::from_utf8(read(path)?).map_err(|_| unusable())?;
    let line = text.trim_end_matches(['\r', '\n']);
    if line.is_empty() || line.contains('\n') { Err(unusable()) } else { Ok(line.to_owned()) }
}

fn read(path: &Path) -> Result<Vec<u8>, SecretError> {
    std::fs::read(path).map_err(|error| SecretError::Unreadable { path: path.to_owned(), error })
}
