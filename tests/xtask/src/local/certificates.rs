//! One certificate authority for the local world, and a leaf for hub and gateway each.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::Context;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};

/// Writes `ca.pem`, `hub.crt`, `hub.key`, `secrets/tls/*` and `secrets/hub-ca/ca.crt` below `directory`.
pub(super) fn write(directory: &Path, hub: Ipv4Addr, gateway: Ipv4Addr) -> anyhow::Result<()> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name = named("protocol gateway local CA");
    let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let secrets = directory.join("secrets");
    for name in ["tls", "hub-ca"] {
        fs::create_dir_all(secrets.join(name))?;
    }
    save(&directory.join("ca.pem"), &issuer.pem())?;
    save(&secrets.join("hub-ca/ca.crt"), &issuer.pem())?;
    leaf(&issuer, hub, &directory.join("hub.crt"), &directory.join("hub.key"))?;
    leaf(&issuer, gateway, &secrets.join("tls/tls.crt"), &secrets.join("tls/tls.key"))
}

fn leaf(
    issuer: &CertifiedIssuer<'_, KeyPair>,
    address: Ipv4Addr,
    certificate: &Path,
    key: &Path,
) -> anyhow::Result<()> {
    let leaf_key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec!["localhost".to_owned(), address.to_string()])?;
    leaf.distinguished_name = named("localhost");
    let pem = leaf.signed_by(&leaf_key, issuer)?.pem();
    save(certificate, &pem)?;
    save(key, &leaf_key.serialize_pem())
}

fn named(name: &str) -> DistinguishedName {
    let mut made = DistinguishedName::new();
    made.push(DnType::CommonName, name);
    made
}

fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
