//! Keys and certificates: ECDSA P-256, serial numbers of 126 random bits, extensions as RFC 5280 wants them.

use std::{net::IpAddr, time::Duration};

use aws_lc_rs::rand;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::MintError;
use crate::{
    desired::tls::{Leaf, Purpose},
    observe::Certificate,
    secrets,
};

/// A certificate begins so long before it is made, for clocks that are slow; less if its life is short.
const BACKDATED: SignedDuration = SignedDuration::from_hours(1);
/// Longest common name (RFC 5280, ub-common-name).
const COMMON_NAME_MAX: usize = 64;

/// A certificate and its key, both PEM.
pub(super) struct Signer {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Vec<u8>,
}

/// A CA that can sign.
pub(super) struct Pair {
    /// PEM.
    pub(super) certificate: Vec<u8>,
    /// PEM.
    pub(super) key: Vec<u8>,
    pub(super) facts: Certificate,
}

impl Pair {
    /// `None` if it is no CA, or the key is not its key.
    pub(super) fn read(certificate: &[u8], key: &[u8]) -> Option<Self> {
        secrets::pair(certificate, key).ok()?;
        let facts = secrets::certificate(certificate).ok().filter(|_| is_authority(certificate))?;
        Some(Self { certificate: certificate.to_vec(), key: key.to_vec(), facts })
    }
}

/// Whether it is one certificate, and that of a CA.
pub(super) fn is_authority(pem: &[u8]) -> bool {
    let Ok(der) = CertificateDer::from_pem_slice(pem) else { return false };
    X509Certificate::from_der(&der).is_ok_and(|(_, certificate)| certificate.is_ca())
}

/// A new CA with its key. `name` begins its common name.
pub(super) fn authority(name: &str, life_s: i64, now: Timestamp) -> Result<Pair, MintError> {
    let (mut parameters, serial) = parameters(now, SignedDuration::from_secs(life_s), None);
    // CAs of one fleet are told apart by their names, too: not every device looks at key identifiers
    parameters.distinguished_name = common_name(&format!("{name} {}", &secrets::hex(&serial)[..8]));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = key()?;
    let certificate = parameters.self_signed(&key).map_err(|error| failed(&error))?.pem().into_bytes();
    let facts = secrets::certificate(&certificate).map_err(|error| MintError::Made(error.to_owned()))?;
    Ok(Pair { certificate, key: key.serialize_pem().into_bytes(), facts })
}

/// A new key and its certificate, signed by `authority` and not longer valid than that.
pub(super) fn leaf(leaf: &Leaf, authority: &Pair, now: Timestamp) -> Result<Signer, MintError> {
    let life = SignedDuration::from_secs(leaf.life_s);
    let (mut parameters, _) = parameters(now, life, Some(&authority.facts));
    parameters.distinguished_name =
        leaf.dns_names.first().map_or_else(DistinguishedName::new, |name| common_name(name));
    parameters.subject_alt_names = alternative_names(leaf)?;
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.use_authority_key_identifier_extension = true;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![match leaf.purpose {
        Purpose::Server => ExtendedKeyUsagePurpose::ServerAuth,
        Purpose::Client => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    let signer = text(&authority.key).and_then(|pem| KeyPair::from_pem(pem).map_err(|error| failed(&error)))?;
    let issuer = Issuer::from_ca_cert_pem(text(&authority.certificate)?, signer).map_err(|error| failed(&error))?;
    let key = key()?;
    let certificate = parameters.signed_by(&key, &issuer).map_err(|error| failed(&error))?.pem().into_bytes();
    Ok(Signer { certificate, key: key.serialize_pem().into_bytes() })
}

/// With times and a serial number.
fn parameters(now: Timestamp, life: SignedDuration, within: Option<&Certificate>) -> (CertificateParams, [u8; 16]) {
    let mut parameters = CertificateParams::default();
    // two thirds of the whole life must lie ahead, or it would be renewed at once
    let date_time = |time: Timestamp| date_time_ymd(1970, 1, 1) + Duration::from_secs(time.as_second().unsigned_abs());
    let begin = now - BACKDATED.min(life / 10);
    let end = now.checked_add(life).unwrap_or(Timestamp::MAX);
    parameters.not_before = date_time(within.map_or(begin, |outer| begin.max(outer.not_before)));
    parameters.not_after = date_time(within.map_or(end, |outer| end.min(outer.not_after)));
    let serial = serial();
    parameters.serial_number = Some(SerialNumber::from_slice(&serial));
    (parameters, serial)
}

/// Positive, and never shorter than 16 bytes.
fn serial() -> [u8; 16] {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).expect("the system has a source of chance");
    bytes[0] = bytes[0] & 0x3f | 0x40;
    bytes
}

fn key() -> Result<KeyPair, MintError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| failed(&error))
}

fn common_name(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    if name.len() <= COMMON_NAME_MAX {
        names.push(DnType::CommonName, name);
    }
    names
}

fn alternative_names(leaf: &Leaf) -> Result<Vec<SanType>, MintError> {
    let dns = leaf.dns_names.iter().map(|name| {
        let text = name.as_str().try_into().map_err(|_| MintError::Name(name.clone()))?;
        Ok(SanType::DnsName(text))
    });
    let addresses = leaf.ip_addresses.iter().map(|text| {
        let address: IpAddr = text.parse().map_err(|_| MintError::Name(text.clone()))?;
        Ok(SanType::IpAddress(address))
    });
    dns.chain(addresses).collect()
}

fn text(pem: &[u8]) -> Result<&str, MintError> {
    std::str::from_utf8(pem).map_err(|_| MintError::Made("the CA is no PEM".to_owned()))
}

fn failed(error: &rcgen::Error) -> MintError {
    MintError::Made(error.to_string())
}
