//! Keys and certificates of a run, made anew at its beginning: ECDSA P-256, one authority. They protect nothing.

use std::{fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{workload::CONNECTS_AT_A_TIME, world::Place};

/// Key of the enrolment group that every device of the bench belongs to: 64 bytes, base64. It protects nothing.
pub(crate) const GROUP_KEY: &str =
    "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==";

impl Place {
    /// The authority, one leaf for all servers, the group's key, certificates of devices.
    pub(crate) fn make_secrets(&self) -> anyhow::Result<()> {
        for secret in ["ca", "tls", "group"] {
            fs::create_dir_all(self.secrets().join(secret))?;
        }
        let mut authority = CertificateParams::new(Vec::new())?;
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
        let leaf_key = KeyPair::generate()?;
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names)?.signed_by(&leaf_key, &issuer)?;
        let [certificate, key] = self.pair();
        fs::write(self.authority(), issuer.pem())?;
        fs::write(certificate, leaf.pem())?;
        fs::write(key, leaf_key.serialize_pem())?;
        fs::write(self.secrets().join("group/primary"), GROUP_KEY)?;
        self.make_identities(&issuer)
    }

    /// A certificate for each device of CONNECT, by the authority of the servers' own.
    fn make_identities(&self, issuer: &CertifiedIssuer<'_, KeyPair>) -> anyhow::Result<()> {
        fs::create_dir_all(self.identities())?;
        for n in 0..CONNECTS_AT_A_TIME {
            let (id, key) = (format!("device-{n}"), KeyPair::generate()?);
            let mut device = CertificateParams::new(Vec::new())?;
            device.distinguished_name.push(DnType::CommonName, &id);
            fs::write(self.identities().join(format!("{id}.crt")), device.signed_by(&key, issuer)?.pem())?;
            fs::write(self.identities().join(format!("{id}.key")), key.serialize_pem())?;
        }
        Ok(())
    }

    /// A directory of a test's own, with secrets; the test removes it.
    #[cfg(test)]
    pub(crate) fn for_test(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("bench-{name}-{}", std::process::id()));
        let place = Self { gateway: PathBuf::new(), device: PathBuf::new(), bench: PathBuf::new(), directory };
        place.make_secrets().expect("a temporary directory takes files");
        place
    }

    /// What the gateway gets as its secrets.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.directory.join("secrets")
    }

    /// Certificates and keys of devices, by their ids.
    pub(crate) fn identities(&self) -> PathBuf {
        self.directory.join("identities")
    }

    /// The authority's certificate.
    pub(crate) fn authority(&self) -> PathBuf {
        self.secrets().join("ca/ca.crt")
    }

    /// Certificate and key of every server.
    pub(crate) fn pair(&self) -> [PathBuf; 2] {
        ["tls/tls.crt", "tls/tls.key"].map(|file| self.secrets().join(file))
    }
}
