//! Carries out the steps that [`crate::desired::tls`] decides on: keys are made here, and only here.
//!
//! Each step makes one Secret to write. It is made from Secrets as they were read, and a step that does not fit them any more
//! is refused. No key is in an error, a log line or anything but the Secret itself: never print one.

mod make;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use self::make::{Pair, Signer};
use crate::{
    desired::tls::{Leaf, Step},
    names,
    observe::Authority,
    secrets,
};

/// Type of the Secrets with a certificate and its key.
const TLS_SECRET: &str = "kubernetes.io/tls";

/// Why a step cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// The decision was made from Secrets that have changed: look again.
    #[error("the Secret {0} is not as it was when this was decided")]
    Outdated(String),
    /// The spec must change.
    #[error("`{0}` cannot stand in a certificate")]
    Name(String),
    /// The library of certificates failed, which has no cause that a user could remove.
    #[error("a certificate could not be made: {0}")]
    Made(String),
}

/// Files of the Secret with the own CA that are there only while one CA follows another.
pub const PASSING_FILES: [&str; 3] = ["next.crt", "next.key", "previous.crt"];

/// The Secret that `step` is to write. `authority` is the Secret with the fleet's own CA, `current` the Secret that the step
/// writes, each as read, if there is one. `metadata` names the Secret, its labels and owner; the version that it replaces is
/// added, so a write fails if somebody was faster.
///
/// # Errors
/// [`MintError`]: nothing is to be written.
pub fn mint(
    step: &Step,
    authority: Option<&Secret>,
    current: Option<&Secret>,
    metadata: ObjectMeta,
    now: Timestamp,
) -> Result<Secret, MintError> {
    let outdated = || MintError::Outdated(step.secret().clone());
    let before = Bundle::read(authority);
    let mut secret = new(metadata, current.or(authority.filter(|_| writes_authority(step))));
    let files = match step {
        Step::CreateAuthority { secret, life_s } => {
            if before.current.is_some() {
                return Err(outdated());
            }
            // of a Secret that was damaged, what still serves is kept: clients trust it
            let previous = before.broken;
            let current = match before.next {
                Some(next) => next,
                None => make::authority(secret, *life_s, now)?,
            };
            Bundle { current: Some(current), next: None, previous, broken: None }.files()
        }
        Step::AddNextAuthority { secret, life_s } => {
            if before.current.is_none() || before.next.is_some() {
                return Err(outdated());
            }
            Bundle { next: Some(make::authority(secret, *life_s, now)?), ..before }.files()
        }
        Step::PromoteNextAuthority { .. } => {
            let (Some(next), Some(current)) = (before.next, before.current) else { return Err(outdated()) };
            let previous = Some(current.certificate);
            Bundle { current: Some(next), next: None, previous, broken: None }.files()
        }
        Step::DropPreviousAuthority { .. } => {
            if before.current.is_none() || before.previous.is_none() {
                return Err(outdated());
            }
            Bundle { previous: None, ..before }.files()
        }
        Step::Issue(leaf) => {
            secret.type_.get_or_insert_with(|| TLS_SECRET.to_owned());
            annotate(&mut secret, names::AUTHORITY, &leaf.authority);
            annotate(&mut secret, names::TRUST, &leaf.trust.join(","));
            issue(leaf, &before, now)?
        }
        Step::Trust { trust, .. } => {
            let current = current.ok_or_else(outdated)?;
            annotate(&mut secret, names::AUTHORITY, annotation(current, names::AUTHORITY).ok_or_else(outdated)?);
            annotate(&mut secret, names::TRUST, &trust.join(","));
            trusting(current, trust, &before).ok_or_else(outdated)?
        }
    };
    secret.data = Some(files.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text))).collect());
    Ok(secret)
}

fn writes_authority(step: &Step) -> bool {
    !matches!(step, Step::Issue(_) | Step::Trust { .. })
}

/// A Secret without content, to replace `current` and no other. The type of a Secret never changes.
fn new(metadata: ObjectMeta, current: Option<&Secret>) -> Secret {
    let resource_version = current.and_then(|current| current.metadata.resource_version.clone());
    let type_ = current.and_then(|current| current.type_.clone());
    Secret { metadata: ObjectMeta { resource_version, ..metadata }, type_, ..Secret::default() }
}

fn annotate(secret: &mut Secret, key: &str, value: &str) {
    secret.metadata.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

type Files = BTreeMap<&'static str, Vec<u8>>;

/// A new key and its certificate.
fn issue(leaf: &Leaf, authority: &Bundle, now: Timestamp) -> Result<Files, MintError> {
    let outdated = || MintError::Outdated(leaf.secret.clone());
    let signer = authority.current.as_ref().filter(|pair| pair.facts.serial == leaf.authority).ok_or_else(outdated)?;
    let trust = authority.pem(&leaf.trust).ok_or_else(outdated)?;
    let Signer { certificate, key } = make::leaf(leaf, signer, now)?;
    Ok([("tls.crt", certificate), ("tls.key", key), ("ca.crt", trust)].into())
}

/// The same key and certificate, with others to trust.
fn trusting(current: &Secret, trust: &[String], authority: &Bundle) -> Option<Files> {
    let file = |name| Some(current.data.as_ref()?.get(name)?.0.clone());
    Some([("tls.crt", file("tls.crt")?), ("tls.key", file("tls.key")?), ("ca.crt", authority.pem(trust)?)].into())
}

/// What the Secret of the fleet's own CA says, without its keys; `None` if there is no CA that can sign.
pub fn authority(secret: &Secret) -> Option<Authority> {
    let bundle = Bundle::read(Some(secret));
    let current = bundle.current?.facts;
    let previous = bundle.previous.and_then(|pem| secrets::certificate(&pem).ok());
    Some(Authority { current, next: bundle.next.map(|next| next.facts), previous })
}

/// The content of the CA's Secret. What cannot be used is as if it were not there.
#[derive(Default)]
struct Bundle {
    current: Option<Pair>,
    next: Option<Pair>,
    /// PEM.
    previous: Option<Vec<u8>>,
    /// The certificate of a current CA that cannot sign any more: its key is gone.
    broken: Option<Vec<u8>>,
}

impl Bundle {
    fn read(secret: Option<&Secret>) -> Self {
        let Some(data) = secret.and_then(|secret| secret.data.as_ref()) else { return Self::default() };
        let file = |name: &str| data.get(name).map(|bytes| bytes.0.as_slice());
        let pair = |certificate: &str, key: &str| Pair::read(file(certificate)?, file(key)?);
        let alone = |name: &str| file(name).filter(|pem| make::is_authority(pem)).map(<[u8]>::to_vec);
        let current = pair("ca.crt", "ca.key");
        let broken = if current.is_some() { None } else { alone("ca.crt") };
        Self { current, next: pair("next.crt", "next.key"), previous: alone("previous.crt"), broken }
    }

    fn files(self) -> Files {
        let mut files = Files::new();
        if let Some(Pair { certificate, key, .. }) = self.current {
            files.extend([("ca.crt", certificate), ("ca.key", key)]);
        }
        if let Some(Pair { certificate, key, .. }) = self.next {
            files.extend([("next.crt", certificate), ("next.key", key)]);
        }
        files.extend(self.previous.map(|certificate| ("previous.crt", certificate)));
        files
    }

    /// Certificates of the CAs with these serial numbers; `None` if one is not here.
    fn pem(&self, serials: &[String]) -> Option<Vec<u8>> {
        let pairs = [self.current.as_ref(), self.next.as_ref()].into_iter().flatten();
        let mut known: Vec<(String, &[u8])> =
            pairs.map(|pair| (pair.facts.serial.clone(), pair.certificate.as_slice())).collect();
        let previous = self.previous.as_deref().and_then(|pem| Some((secrets::certificate(pem).ok()?.serial, pem)));
        known.extend(previous);
        let find = |serial: &String| known.iter().find(|(known, _)| known == serial).map(|(_, pem)| *pem);
        let found: Option<Vec<&[u8]>> = serials.iter().map(find).collect();
        Some(found?.concat())
    }
}

/// Why pods cannot be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the Secret of the control client {0}")]
pub struct ControlClientError(&'static str);

/// How to speak to the admin ports of a fleet, from its Secret `names::control_client`: our certificate, and whom to trust.
///
/// # Errors
/// What the Secret lacks.
pub fn control_client(secret: &Secret) -> Result<Arc<ClientConfig>, ControlClientError> {
    let file = |name: &str| secret.data.as_ref().and_then(|data| data.get(name)).map(|bytes| bytes.0.as_slice());
    let mut roots = RootCertStore::empty();
    for certificate in chain(file("ca.crt")).ok_or(ControlClientError("has no ca.crt with certificates"))? {
        roots.add(certificate).map_err(|_| ControlClientError("has a ca.crt with something that is no CA"))?;
    }
    let certificate = chain(file("tls.crt")).ok_or(ControlClientError("has no tls.crt with a certificate"))?;
    let key = file("tls.key").and_then(|pem| PrivateKeyDer::from_pem_slice(pem).ok());
    let key = key.ok_or(ControlClientError("has no tls.key with a key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider knows TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(certificate, key)
        .map_err(|_| ControlClientError("has a tls.key that is not the key of its tls.crt"))?;
    Ok(Arc::new(config))
}

fn chain(pem: Option<&[u8]>) -> Option<Vec<CertificateDer<'static>>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem?).collect::<Result<_, _>>().ok()?;
    Some(chain).filter(|chain| !chain.is_empty())
}
