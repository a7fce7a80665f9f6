//! The Secrets that a configuration names: what each is for, what it holds, and whether it will do.
//!
//! [`facts`] is the one place that sees keys; what it returns holds none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use gateway_core::{auth::Keys, config::GatewayConfig, settings::Settings};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use crate::{
    desired::Problem,
    names,
    observe::{Certificate, Observed, SecretFacts, Use},
};

/// One reference of a configuration to a Secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// Name of the Secret.
    pub secret_name: String,
    /// What for.
    pub usage: Use,
    /// Where in the spec.
    pub path: String,
}

/// Every Secret that `config` names, in the order of its sections.
pub fn referenced(config: &GatewayConfig) -> Vec<Reference> {
    let mut references = Vec::new();
    let mut add = |path: String, usage, secret_name: Option<&String>| {
        references.extend(secret_name.map(|name| Reference { secret_name: name.clone(), usage, path }));
    };
    let sas = &config.authentication.sas;
    let device_keys = sas.device_keys.as_ref().map(|keys| &keys.secret_name);
    add("authentication.sas.deviceKeys".to_owned(), Use::DeviceKeys, device_keys);
    for (index, group) in sas.enrollment_groups.iter().enumerate() {
        add(format!("authentication.sas.enrollmentGroups[{index}]"), Use::GroupKeys, Some(&group.secret_name));
    }
    let x509 = config.authentication.x509.as_ref().map(|x509| &x509.client_ca_secret_name);
    add("authentication.x509".to_owned(), Use::Authority, x509);
    if let Some(hub) = &config.upstream.iot_hub {
        let policy = hub.policy.as_ref().map(|policy| &policy.secret_name);
        add("upstream.iotHub.policy".to_owned(), Use::PolicyKey, policy);
        add("upstream.iotHub.caSecretName".to_owned(), Use::Authority, hub.ca_secret_name.as_ref());
    }
    if let Some(amqp) = &config.upstream.amqp {
        let login = amqp.sasl_plain.as_ref().map(|login| &login.secret_name);
        add("upstream.amqp.saslPlain".to_owned(), Use::Login, login);
        let client = amqp.client_certificate.as_ref().map(|client| &client.secret_name);
        add("upstream.amqp.clientCertificate".to_owned(), Use::Client, client);
        add("upstream.amqp.caSecretName".to_owned(), Use::Authority, amqp.ca_secret_name.as_ref());
    }
    add("tls".to_owned(), Use::Serving, config.tls.as_ref().map(|tls| &tls.secret_name));
    if let Some(tls) = &config.admin.tls {
        add("admin.tls.secretName".to_owned(), Use::Serving, Some(&tls.secret_name));
        add("admin.tls.clientCASecretName".to_owned(), Use::Authority, Some(&tls.client_ca_secret_name));
    }
    references
}

/// Whether a Secret will do.
pub fn judge(reference: &Reference, observed: &Observed) -> Result<(), Problem> {
    let Reference { secret_name, usage, path } = reference;
    let problem = |reason, what: &str| Problem { reason, message: format!("spec.{path}: Secret {secret_name} {what}") };
    if let Some(words) = observed.forbidden.get(secret_name) {
        return Err(problem("SecretForbidden", &forbidden(secret_name, words)));
    }
    let Some(facts) = observed.secrets.get(secret_name) else {
        return Err(problem("SecretMissing", &format!("is missing: create it with {}", wanted(*usage))));
    };
    if let Some(wrong) = facts.wrong.get(usage) {
        return Err(problem("SecretInvalid", &format!("{wrong}; it must hold {}", wanted(*usage))));
    }
    if !matches!(usage, Use::Serving | Use::Client) {
        return Ok(());
    }
    match &facts.certificate {
        Some(certificate) if certificate.not_after <= observed.now => Err(problem(
            "CertificateExpired",
            &format!("has a certificate that expired at {}: renew it", certificate.not_after),
        )),
        Some(certificate) if certificate.not_before > observed.now => Err(problem(
            "CertificateNotYetValid",
            &format!("has a certificate that begins at {}: wait, or check the clock", certificate.not_before),
        )),
        _ => Ok(()),
    }
}

/// What may be done about a Secret that the operator may not read, after its name; `words` are the API server's.
pub fn forbidden(name: &str, words: &str) -> String {
    format!(
        "may not be read: {words}; add to the operator's role in this namespace {{apiGroups: [\"\"], resources: [secrets], \
         resourceNames: [{name}], verbs: [get]}}, or upgrade its chart, which allows it for all; it is asked for again by itself"
    )
}

/// What a Secret must hold, for messages.
fn wanted(usage: Use) -> &'static str {
    match usage {
        Use::Serving | Use::Client => "tls.crt, a PEM certificate chain, and tls.key, its key",
        Use::Authority => "ca.crt, PEM certificates",
        Use::DeviceKeys => "files with lines of a device's id and its keys in base64",
        Use::GroupKeys => "primary and, if there are two keys, secondary: keys in base64",
        Use::PolicyKey => "key, the policy's key in base64",
        Use::Login => "username and password, one line of text each",
    }
}

/// What `secret` holds, looked at for `uses`.
pub fn facts(secret: &Secret, uses: &BTreeSet<Use>, settings: &Settings) -> SecretFacts {
    let data = secret.data.iter().flatten();
    let files: Files<'_> = data.map(|(name, bytes)| (name.as_str(), bytes.0.as_slice())).collect();
    let wrong = uses.iter().filter_map(|usage| Some((*usage, look(*usage, &files, settings).err()?))).collect();
    let annotation = |key: &str| secret.metadata.annotations.as_ref()?.get(key).cloned();
    let trust = annotation(names::TRUST).unwrap_or_default();
    SecretFacts {
        certificate: files.get("tls.crt").and_then(|pem| certificate(pem).ok()),
        wrong,
        // one that cert-manager took over is not what the operator made any more
        authority: annotation(names::AUTHORITY).filter(|_| annotation(names::CERT_MANAGER).is_none()),
        trust: trust.split(',').filter(|serial| !serial.is_empty()).map(str::to_owned).collect(),
    }
}

/// [`facts`] of a Secret with a certificate and its key that is the operator's own.
pub fn own_facts(secret: &Secret) -> SecretFacts {
    let annotation = |key: &str| secret.metadata.annotations.as_ref()?.get(key).cloned();
    let trust = annotation(names::TRUST).unwrap_or_default();
    let wrong = certified_key(secret).err().map(|wrong| (Use::Serving, wrong));
    SecretFacts {
        certificate: file_of(secret, "tls.crt").ok().and_then(|pem| certificate(pem).ok()),
        wrong: wrong.into_iter().collect(),
        authority: annotation(names::AUTHORITY),
        trust: trust.split(',').filter(|serial| !serial.is_empty()).map(str::to_owned).collect(),
    }
}

/// What `tls.crt` and `tls.key` are for, or what is wrong with them.
pub fn certified_key(secret: &Secret) -> Result<CertifiedKey, String> {
    pair(file_of(secret, "tls.crt")?, file_of(secret, "tls.key")?)
}

fn file_of<'a>(secret: &'a Secret, name: &str) -> Result<&'a [u8], String> {
    let file = secret.data.as_ref().and_then(|data| data.get(name));
    file.map(|bytes| bytes.0.as_slice()).ok_or_else(|| format!("has no {name}"))
}

type Files<'a> = BTreeMap<&'a str, &'a [u8]>;

/// What keeps `files` from being used so; said without anything secret.
fn look(usage: Use, files: &Files<'_>, settings: &Settings) -> Result<(), String> {
    let file = |name: &str| files.get(name).copied().ok_or_else(|| format!("has no {name}"));
    match usage {
        Use::Serving | Use::Client => pair(file("tls.crt")?, file("tls.key")?).map(drop),
        Use::Authority => certificates(file("ca.crt")?).map(drop).map_err(|error| format!("has a ca.crt that {error}")),
        Use::DeviceKeys => device_keys(files, settings),
        Use::GroupKeys => {
            let added = Keys::new(settings).add_group(file("primary")?, files.get("secondary").copied());
            added.map_err(|error| format!("has a primary or secondary that cannot be used: {error}"))
        }
        Use::PolicyKey => policy_key(file("key")?),
        Use::Login => ["username", "password"].into_iter().try_for_each(|name| line(name, file(name)?)),
    }
}

/// Whether `key` is the key of the first certificate of `chain`.
pub(crate) fn pair(chain: &[u8], key: &[u8]) -> Result<CertifiedKey, String> {
    let chain = certificates(chain).map_err(|error| format!("has a tls.crt that {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "has a tls.key that is no PEM private key".to_owned())?;
    let key = aws_lc_rs::sign::any_supported_type(&key)
        .map_err(|_| "has a tls.key of a kind that is not known".to_owned())?;
    let pair = CertifiedKey::new(chain, key);
    pair.keys_match().map_err(|_| "has a tls.key that is not the key of its tls.crt".to_owned())?;
    Ok(pair)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match chain {
        Ok(chain) if chain.is_empty() => Err("holds no PEM certificate"),
        Ok(chain) if chain.iter().any(|der| X509Certificate::from_der(der).is_err()) => {
            Err("holds something that is no certificate")
        }
        Ok(chain) => Ok(chain),
        Err(_) => Err("is not PEM"),
    }
}

/// The first certificate of a chain.
pub fn certificate(pem: &[u8]) -> Result<Certificate, &'static str> {
    certificate_from_der(&certificates(pem)?[0])
}

/// A certificate as it is sent.
pub(crate) fn certificate_from_der(der: &[u8]) -> Result<Certificate, &'static str> {
    let (_, leaf) = X509Certificate::from_der(der).map_err(|_| "holds something that is no certificate")?;
    let time = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).unwrap_or_default();
    let mut found = Certificate {
        serial: hex(leaf.raw_serial()),
        not_before: time(leaf.validity().not_before),
        not_after: time(leaf.validity().not_after),
        ..Certificate::default()
    };
    let names = leaf.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::DNSName(name) => drop(found.dns_names.insert((*name).to_owned())),
            GeneralName::IPAddress(bytes) => found.ip_addresses.extend(ip(bytes).map(|ip| ip.to_string())),
            _ => {}
        }
    }
    Ok(found)
}

/// Bytes as hexadecimal text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        text.extend([byte >> 4, byte & 15].map(|half| char::from(b"0123456789abcdef"[usize::from(half)])));
        text
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn device_keys(files: &Files<'_>, settings: &Settings) -> Result<(), String> {
    let mut keys = Keys::new(settings);
    for (name, file) in files {
        keys.add_devices(file).map_err(|error| format!("has a file {name} that cannot be read: {error}"))?;
    }
    if files.is_empty() { Err("is empty".to_owned()) } else { Ok(()) }
}

fn policy_key(text: &[u8]) -> Result<(), String> {
    match STANDARD.decode(text.trim_ascii()) {
        Ok(key) if !key.is_empty() => Ok(()),
        _ => Err("has a key that is not in base64".to_owned()),
    }
}

fn line(name: &str, text: &[u8]) -> Result<(), String> {
    let text = text.trim_ascii();
    let is_line = !text.is_empty() && std::str::from_utf8(text).is_ok_and(|text| !text.contains(['\n', '\r']));
    if is_line { Ok(()) } else { Err(format!("has a {name} that is not one line of text")) }
}
