//! Whether it is the API server that calls, and for whom. It shows a certificate of a CA of its own and names the user in
//! headers; which CA and which headers stands in ConfigMap `kube-system/extension-apiserver-authentication`, and may change.

use std::{collections::BTreeMap, sync::Arc};

use hyper::{HeaderMap, header::HeaderName};
use percent_encoding::percent_decode_str;
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

/// Further values of one header are passed over.
const VALUES_MAX: usize = 256;

/// Who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// Unique, if there is one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Whatever else authorizers look at.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Whose word is taken for who asks.
#[derive(Debug, Clone, Default)]
pub struct FrontProxy {
    /// None: nobody's.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Common names; none: any that the CA signed.
    allowed_names: Vec<String>,
    user_headers: Vec<HeaderName>,
    uid_headers: Vec<HeaderName>,
    group_headers: Vec<HeaderName>,
    /// Lower case.
    extra_prefixes: Vec<String>,
}

impl FrontProxy {
    /// From the data of the ConfigMap. Without a CA in it, nobody's word is taken.
    ///
    /// # Errors
    /// What in it cannot be read.
    pub fn read(data: &BTreeMap<String, String>) -> Result<Self, String> {
        let list = |key: &str| match data.get(key) {
            Some(text) => serde_json::from_str::<Vec<String>>(text).map_err(|error| format!("{key}: {error}")),
            None => Ok(Vec::new()),
        };
        let headers = |key: &str| -> Result<Vec<HeaderName>, String> {
            let name = |name: &String| name.parse().map_err(|_| format!("{key}: `{name}` is no header"));
            list(key)?.iter().map(name).collect()
        };
        let prefixes = list("requestheader-extra-headers-prefix")?;
        Ok(Self {
            verifier: data.get("requestheader-client-ca-file").map(|pem| verifier(pem)).transpose()?,
            allowed_names: list("requestheader-allowed-names")?,
            user_headers: headers("requestheader-username-headers")?,
            uid_headers: headers("requestheader-uid-headers")?,
            group_headers: headers("requestheader-group-headers")?,
            extra_prefixes: prefixes.iter().map(|prefix| prefix.to_ascii_lowercase()).collect(),
        })
    }

    /// Whether whoever shows this chain of certificates is believed.
    pub fn trusts(&self, chain: &[CertificateDer<'_>], now: UnixTime) -> bool {
        let (Some(verifier), Some((leaf, intermediates))) = (&self.verifier, chain.split_first()) else { return false };
        verifier.verify_client_cert(leaf, intermediates, now).is_ok() && self.allows(leaf)
    }

    fn allows(&self, leaf: &CertificateDer<'_>) -> bool {
        if self.allowed_names.is_empty() {
            return true;
        }
        let Ok((_, leaf)) = X509Certificate::from_der(leaf) else { return false };
        let mut names = leaf.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        names.any(|name| self.allowed_names.iter().any(|allowed| allowed == name))
    }

    /// Who asks, by the word of somebody who is believed. `None` if it says nothing.
    pub fn user(&self, headers: &HeaderMap) -> Option<User> {
        let first = |names: &[HeaderName]| names.iter().find_map(|name| values(headers, name).into_iter().next());
        let name = first(&self.user_headers).filter(|name| !name.is_empty())?;
        Some(User {
            name,
            uid: first(&self.uid_headers).unwrap_or_default(),
            groups: self.group_headers.iter().flat_map(|name| values(headers, name)).collect(),
            extra: self.extra(headers),
        })
    }

    fn extra(&self, headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
        let mut extra = BTreeMap::new();
        for name in headers.keys() {
            let key = self.extra_prefixes.iter().find_map(|prefix| name.as_str().strip_prefix(prefix.as_str()));
            let Some(key) = key.filter(|key| !key.is_empty()) else { continue };
            let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
            extra.entry(key).or_insert_with(Vec::new).extend(values(headers, name));
        }
        extra
    }
}

fn values(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let texts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    texts.take(VALUES_MAX).map(str::to_owned).collect()
}

fn verifier(pem: &str) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let bad = |error: &dyn std::fmt::Display| format!("requestheader-client-ca-file: {error}");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|error| bad(&error))?).map_err(|error| bad(&error))?;
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map_err(|error| bad(&error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
    }

    fn certificate(by: &Authority, name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![usage];
        params.signed_by(&KeyPair::generate().expect("a key"), by).expect("a certificate").der().clone()
    }

    fn config(authority: &Authority, names: &str) -> BTreeMap<String, String> {
        [
            ("requestheader-client-ca-file", authority.pem().as_str()),
            ("requestheader-allowed-names", names),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
            ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
            ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    fn check(proxy: &FrontProxy, chain: &[CertificateDer<'_>], expected: bool) {
        assert_eq!(proxy.trusts(chain, UnixTime::now()), expected);
    }

    #[test]
    fn only_the_api_server_speaks_for_others() {
        let (ca, other) = (authority(), authority());
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        let proxy = FrontProxy::read(&config(&ca, r#"["front-proxy-client"]"#)).expect("it is sound");
        let front = certificate(&ca, "front-proxy-client", client.clone());
        check(&proxy, std::slice::from_ref(&front), true);
        check(&proxy, &[], false);
        check(&proxy, &[certificate(&ca, "somebody", client.clone())], false);
        check(&proxy, &[certificate(&other, "front-proxy-client", client.clone())], false);
        check(&proxy, &[certificate(&ca, "front-proxy-client", ExtendedKeyUsagePurpose::ServerAuth)], false);
        check(&proxy, &[CertificateDer::from(vec![1, 2, 3])], false);
        let far = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));
        assert!(!proxy.trusts(std::slice::from_ref(&front), far), "it has expired by then");
        let any = FrontProxy::read(&config(&ca, "[]")).expect("it is sound");
        check(&any, &[certificate(&ca, "somebody", client)], true);
        check(&FrontProxy::default(), std::slice::from_ref(&front), false);
    }

    #[test]
    fn the_user_is_what_the_headers_say() {
        let proxy = FrontProxy::read(&config(&authority(), "[]")).expect("it is sound");
        let mut headers = HeaderMap::new();
        assert_eq!(proxy.user(&headers), None);
        for (name, value) in [
            ("x-remote-user", "jane"),
            ("x-remote-uid", "7"),
            ("x-remote-group", "a"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-extra-acme.com%2fproject", "one"),
            ("x-remote-extra-acme.com%2fproject", "two"),
            ("x-remote-extra-", "nothing"),
            ("authorization", "Bearer x"),
        ] {
            headers.append(name.parse::<HeaderName>().expect("a header"), value.parse().expect("a value"));
        }
        let user = proxy.user(&headers).expect("it says who");
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane", "7"));
        assert_eq!(user.groups, ["a", "system:authenticated"]);
        assert_eq!(user.extra, [("acme.com/project".to_owned(), vec!["one".to_owned(), "two".to_owned()])].into());
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let check = |key: &str, value: &str, said: &str| {
            let mut data = config(&authority(), "[]");
            data.insert(key.to_owned(), value.to_owned());
            let error = FrontProxy::read(&data).expect_err(key);
            assert!(error.contains(said), "{error}");
        };
        check("requestheader-allowed-names", "front", "requestheader-allowed-names");
        check("requestheader-username-headers", r#"["a b"]"#, "`a b` is no header");
        check("requestheader-client-ca-file", "nothing", "requestheader-client-ca-file");
        assert!(FrontProxy::read(&BTreeMap::new()).is_ok());
    }
}
