//! The certificates of a control plane and the kubeconfigs of those who speak to it, made anew for each run.

use std::{fs, net::Ipv4Addr, path::Path};

use anyhow::Context;
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

/// The authority of one run: signs for servers, clients and the front proxy alike.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, both PEM.
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        parameters.distinguished_name.push(DnType::CommonName, name);
        Ok(Self(CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A client: Kubernetes takes the common name as the user and the organisation as the group.
    pub(crate) fn client(&self, user: &str, group: Option<&str>) -> anyhow::Result<Identity> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        if let Some(group) = group {
            parameters.distinguished_name.push(DnType::OrganizationName, group);
        }
        self.sign(parameters, user, ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server with these names and addresses.
    pub(crate) fn server(&self, name: &str, names: &[String]) -> anyhow::Result<Identity> {
        self.sign(CertificateParams::new(names)?, name, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn sign(
        &self,
        mut parameters: CertificateParams,
        name: &str,
        purpose: ExtendedKeyUsagePurpose,
    ) -> anyhow::Result<Identity> {
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![purpose];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.0)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// A kubeconfig, complete in one file, for `user` of `group` at `server`.
    pub(crate) fn kubeconfig(&self, server: &str, user: &str, group: Option<&str>) -> anyhow::Result<String> {
        let identity = self.client(user, group)?;
        let cluster = json!({"server": server, "certificate-authority-data": STANDARD.encode(self.pem())});
        let credentials = json!({
            "client-certificate-data": STANDARD.encode(&identity.certificate),
            "client-key-data": STANDARD.encode(&identity.key),
        });
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "protocol-gateway",
            "clusters": [{"name": "protocol-gateway", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "protocol-gateway", "context": {"cluster": "protocol-gateway", "user": user}}],
        });
        Ok(serde_json::to_string_pretty(&config)?)
    }
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn save(&self, directory: &Path, name: &str) -> anyhow::Result<()> {
        save(&directory.join(format!("{name}.crt")), &self.certificate)?;
        save(&directory.join(format!("{name}.key")), &self.key)
    }
}

/// Writes what the API server and the controllers need of certificates into `directory`, and returns the authority.
pub(crate) fn write(directory: &Path, address: Ipv4Addr, service: Ipv4Addr) -> anyhow::Result<Authority> {
    fs::create_dir_all(directory)?;
    let authority = Authority::new("protocol gateway test cluster")?;
    save(&directory.join("ca.crt"), &authority.pem())?;
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .into_iter()
        .chain(["kubernetes.default.svc.cluster.local"])
        .map(str::to_owned)
        .collect();
    names.extend([Ipv4Addr::LOCALHOST, address, service].map(|each| each.to_string()));
    authority.server("kube-apiserver", &names)?.save(directory, "apiserver")?;
    authority.client("kube-apiserver", Some("system:masters"))?.save(directory, "apiserver-to-kubelet")?;
    // an authority of its own: who has a certificate of it may speak for any user
    let front = Authority::new("protocol gateway test cluster front proxy")?;
    save(&directory.join("front-proxy-ca.crt"), &front.pem())?;
    front.client("front-proxy-client", None)?.save(directory, "front-proxy")?;
    let accounts = KeyPair::generate()?;
    save(&directory.join("service-account.key"), &accounts.serialize_pem())?;
    save(&directory.join("service-account.pub"), &accounts.public_key_pem())?;
    Ok(authority)
}

/// Writes `text` to `path`, readable by nobody else: the run's directory is closed to them.
pub(crate) fn save(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
