//! SAS tokens: parsed, verified over the text as received, turned into [`Claims`] (contract §5).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::{ErrorCode, HubError};
use super::identity::Identity;
use super::policy::{Permissions, SharedKey};
use super::{Domain, Status};

/// What an accepted token, password or certificate allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Whose it is.
    pub scope: Scope,
    /// Seconds since the epoch at which it ends; `u64::MAX` for certificates.
    pub expires: u64,
}

/// Whose key signed, and for what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The identity's own key or certificate.
    Device {
        /// The identity (and what lies below its path).
        identity: Identity,
        /// How it proved itself.
        proof: Proof,
    },
    /// A policy of the hub.
    Hub {
        /// Name of the policy.
        policy: String,
        /// Its rights.
        permissions: Permissions,
        /// What the token's `sr` names.
        resource: Resource,
    },
}

/// How an identity proved itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A SAS token with its own key.
    Sas,
    /// A client certificate by thumbprint or by authority.
    X509,
}

/// The decoded `sr` of a token, without the hub's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `{hub}`
    Hub,
    /// `{hub}/devices`
    Devices,
    /// `{hub}/devices/{d}[/modules/{m}]`
    Identity(Identity),
}

impl Claims {
    /// Whether device operations of this identity are allowed. Compares whole path segments: `a` does not cover `ab`.
    pub fn covers(&self, identity: &Identity) -> bool {
        match &self.scope {
            Scope::Device { identity: own, .. } => is_at_or_below(identity, own),
            Scope::Hub { permissions, resource, .. } => {
                permissions.contains(Permissions::DEVICE_CONNECT)
                    && match resource {
                        Resource::Hub | Resource::Devices => true,
                        Resource::Identity(own) => is_at_or_below(identity, own),
                    }
            }
        }
    }

    /// Whether the cloud-side operations that need these rights are allowed.
    pub fn permits(&self, needed: Permissions) -> bool {
        match &self.scope {
            Scope::Device { .. } => false,
            Scope::Hub { permissions, resource, .. } => *resource == Resource::Hub && permissions.contains(needed),
        }
    }

    /// Whether the claims are over at this time, given the hub's tolerance.
    pub fn has_expired(&self, now_unix: u64, skew_s: u64) -> bool {
        self.expires.saturating_add(skew_s) <= now_unix
    }

    /// The value of `iothub-connection-auth-method`.
    pub fn auth_method_json(&self) -> String {
        let (scope, kind) = match &self.scope {
            Scope::Hub { .. } => ("hub", "sas"),
            Scope::Device { identity, proof } => (
                if identity.module.is_some() { "module" } else { "device" },
                if *proof == Proof::Sas { "sas" } else { "x509" },
            ),
        };
        format!(r#"{{"scope":"{scope}","type":"{kind}","issuer":"iothub"}}"#)
    }
}

/// Why a token, password or certificate was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// Not a token.
    Malformed,
    /// `se` is over.
    Expired,
    /// `sr` names another hub, or nothing of this one.
    ForeignResource,
    /// `skn` names no policy.
    UnknownPolicy,
    /// No such device.
    UnknownDevice,
    /// No such module.
    UnknownModule,
    /// The identity is disabled.
    Disabled,
    /// Signed with another key, or the identity has no keys.
    Signature,
    /// The certificate is not one of the identity's.
    Certificate,
    /// The claims do not cover what was asked.
    NotCovered,
}

impl AuthError {
    /// `status-code` of the CBS response.
    pub fn cbs_status(self) -> i32 {
        match self {
            Self::Malformed => 400,
            Self::UnknownDevice | Self::UnknownModule => 404,
            _ => 401,
        }
    }

    /// The hub's own code; decides AMQP condition and HTTP status.
    pub fn code(self) -> ErrorCode {
        match self {
            Self::UnknownDevice => ErrorCode::DeviceNotFound,
            Self::UnknownModule => ErrorCode::ModuleNotFound,
            Self::Disabled => ErrorCode::DeviceDisabled,
            _ => ErrorCode::IotHubUnauthorized,
        }
    }
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "token is malformed",
            Self::Expired => "token has expired",
            Self::ForeignResource => "token is for another resource",
            Self::UnknownPolicy => "token is signed by an unknown policy",
            Self::UnknownDevice => "device is not registered",
            Self::UnknownModule => "module is not registered",
            Self::Disabled => "device is disabled",
            Self::Signature => "token signature does not match",
            Self::Certificate => "certificate is not accepted for this device",
            Self::NotCovered => "token does not cover this resource",
        })
    }
}

impl std::error::Error for AuthError {}

impl From<AuthError> for HubError {
    fn from(error: AuthError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Verifies a whole `SharedAccessSignature …` text. Checks in the order of contract §5: parse, `se`, keys, signature,
/// device enabled.
///
/// # Errors
/// The first check that failed.
pub fn verify(domain: &Domain, token: &str, now_unix: u64) -> Result<Claims, AuthError> {
    let token = Token::parse(token)?;
    if token.expires.saturating_add(domain.settings.sas_skew.as_secs()) <= now_unix {
        return Err(AuthError::Expired);
    }
    let resource = token.resource(domain)?;
    let scope = match (&token.policy, resource) {
        (Some(name), resource) => {
            let policy = domain.policies.get(name).ok_or(AuthError::UnknownPolicy)?;
            token.check_signature([&policy.primary, &policy.secondary])?;
            Scope::Hub { policy: name.clone(), permissions: policy.permissions, resource }
        }
        (None, Resource::Identity(identity)) => {
            let keys = domain.registry.keys(&identity)?;
            token.check_signature(keys.iter())?;
            if domain.registry.status(&identity) != Some(Status::Enabled) {
                return Err(AuthError::Disabled);
            }
            Scope::Device { identity, proof: Proof::Sas }
        }
        (None, Resource::Hub | Resource::Devices) => return Err(AuthError::UnknownPolicy),
    };
    Ok(Claims { scope, expires: token.expires })
}

/// SASL PLAIN: device `{d}[/modules/{m}]@sas.{shortHubName}`, service `{policy}@sas.root.{shortHubName}`; the password
/// is a SAS token that must be of that device or policy (contract §3.1).
///
/// # Errors
/// As [`verify`]; `NotCovered` if the token is somebody else's.
pub fn verify_plain(domain: &Domain, user: &str, password: &str, now_unix: u64) -> Result<Claims, AuthError> {
    let (name, host) = user.rsplit_once('@').ok_or(AuthError::Malformed)?;
    let short = domain.host_name.split('.').next().unwrap_or_default();
    let claims = verify(domain, password, now_unix)?;
    let host = host.to_ascii_lowercase();
    let short = short.to_ascii_lowercase();
    let fits = if host == format!("sas.root.{short}") {
        matches!(&claims.scope, Scope::Hub { policy, .. } if policy == name)
    } else if host == format!("sas.{short}") {
        claims.covers(&identity_of_path(name))
    } else {
        return Err(AuthError::ForeignResource);
    };
    if fits { Ok(claims) } else { Err(AuthError::NotCovered) }
}

/// Makes a token: `resource` is what `sr` names, not yet encoded. For connection strings, tests and the programs here.
pub fn sign(resource: &str, key: &SharedKey, policy: Option<&str>, expires_unix: u64) -> String {
    /// What RFC 3986 leaves unreserved stays as it is.
    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    let sr = utf8_percent_encode(resource, RESERVED).to_string();
    let signature = key.sign(&format!("{sr}\n{expires_unix}"));
    let sig = utf8_percent_encode(&signature, RESERVED);
    let skn = policy.map(|name| format!("&skn={name}")).unwrap_or_default();
    format!("SharedAccessSignature sr={sr}&sig={sig}&se={expires_unix}{skn}")
}

fn identity_of_path(name: &str) -> Identity {
    match name.split_once("/modules/") {
        Some((device, module)) => Identity::module(device, module),
        None => Identity::device(name),
    }
}

fn is_at_or_below(identity: &Identity, own: &Identity) -> bool {
    identity.device == own.device && (own.module.is_none() || own.module == identity.module)
}

struct Token<'a> {
    /// As received: still encoded, case of hex digits kept, because it was signed so.
    resource_raw: &'a str,
    signature: Vec<u8>,
    expires_raw: &'a str,
    expires: u64,
    policy: Option<String>,
}

impl<'a> Token<'a> {
    fn parse(text: &'a str) -> Result<Self, AuthError> {
        let pairs = text.strip_prefix("SharedAccessSignature ").ok_or(AuthError::Malformed)?;
        let (mut sr, mut sig, mut se, mut skn) = (None, None, None, None);
        for pair in pairs.split('&') {
            let (key, value) = pair.split_once('=').ok_or(AuthError::Malformed)?;
            let field = match key {
                "sr" => &mut sr,
                "sig" => &mut sig,
                "se" => &mut se,
                "skn" => &mut skn,
                _ => continue,
            };
            if field.replace(value).is_some() {
                return Err(AuthError::Malformed);
            }
        }
        let (Some(resource_raw), Some(sig), Some(expires_raw)) = (sr, sig, se) else {
            return Err(AuthError::Malformed);
        };
        let signature = STANDARD.decode(decoded(sig)?).map_err(|_| AuthError::Malformed)?;
        let digits = !expires_raw.is_empty() && expires_raw.bytes().all(|c| c.is_ascii_digit());
        let expires = expires_raw.parse().ok().filter(|_| digits).ok_or(AuthError::Malformed)?;
        let policy = skn.filter(|name| !name.is_empty()).map(decoded).transpose()?;
        Ok(Self { resource_raw, signature, expires_raw, expires, policy })
    }

    fn resource(&self, domain: &Domain) -> Result<Resource, AuthError> {
        let resource = decoded(self.resource_raw)?;
        let mut segments = resource.trim_end_matches('/').split('/');
        let host = segments.next().unwrap_or_default();
        if !host.eq_ignore_ascii_case(&domain.host_name) {
            return Err(AuthError::ForeignResource);
        }
        let keyword = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
        match *segments.collect::<Vec<_>>().as_slice() {
            [] => Ok(Resource::Hub),
            [devices] if keyword(devices, "devices") => Ok(Resource::Devices),
            [devices, device] if keyword(devices, "devices") => {
                Ok(Resource::Identity(domain.registry.resolve(device, None)))
            }
            [devices, device, modules, module] if keyword(devices, "devices") && keyword(modules, "modules") => {
                Ok(Resource::Identity(domain.registry.resolve(device, Some(module))))
            }
            _ => Err(AuthError::ForeignResource),
        }
    }

    fn check_signature<'k>(&self, keys: impl IntoIterator<Item = &'k SharedKey>) -> Result<(), AuthError> {
        let signed = format!("{}\n{}", self.resource_raw, self.expires_raw);
        // every key is tried, so that the time does not tell which one fits
        let fits = keys.into_iter().fold(false, |fits, key| key.verifies(&signed, &self.signature) | fits);
        if fits { Ok(()) } else { Err(AuthError::Signature) }
    }
}

fn decoded(text: &str) -> Result<String, AuthError> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| AuthError::Malformed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::domain::{Authentication, IfMatch, Registration, Settings};

    const K1: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const EXPIRES: u64 = 1_700_000_000;

    /// A hub whose every key is K1, with the devices of the vectors.
    fn domain() -> Arc<Domain> {
        let policy_keys = ["iothubowner", "device", "service"].map(|name| (name.to_owned(), K1.to_owned()));
        let settings = Settings { policy_keys: BTreeMap::from(policy_keys), ..Settings::default() };
        let domain = Domain::new("hub.example.com", settings).expect("keys");
        let identities = [
            Identity::device("dev1"),
            Identity::module("dev1", "mod1"),
            Identity::device("dev+1=a:b"),
            Identity::device("a"),
            Identity::device("ab"),
        ];
        for identity in identities {
            domain.create_identity(registration(identity)).expect("new");
        }
        domain
    }

    fn registration(identity: Identity) -> Registration {
        let key = || SharedKey::parse(K1).expect("a key");
        let authentication = Authentication::SymmetricKey { primary: SharedKey::generate(), secondary: key() };
        Registration { authentication, ..Registration::new(identity) }
    }

    fn token(sr: &str, sig: &str, skn: Option<&str>) -> String {
        let sig = sig.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
        let skn = skn.map(|name| format!("&skn={name}")).unwrap_or_default();
        format!("SharedAccessSignature sr={sr}&sig={sig}&se={EXPIRES}{skn}")
    }

    #[test]
    fn the_test_vectors_of_the_contract_verify() {
        let domain = domain();
        let device = |id: &str| Scope::Device { identity: Identity::device(id), proof: Proof::Sas };
        let module = Scope::Device { identity: Identity::module("dev1", "mod1"), proof: Proof::Sas };
        let policy = |name: &str, permissions, resource| Scope::Hub { policy: name.to_owned(), permissions, resource };
        for (sr, skn, sig, scope) in [
            ("hub.example.com%2Fdevices%2Fdev1", None, "WyqpHuaHgFgaumY+c/4ZN4ajx71528aEWzeYMlu2Yg4=", device("dev1")),
            ("hub.example.com%2fdevices%2fdev1", None, "TzHri3uGrFXLS2sC6Fu14+Bkx/XrmGAxL5qogVVGH1M=", device("dev1")),
            (
                "hub.example.com%2Fdevices%2Fdev1%2Fmodules%2Fmod1",
                None,
                "7OaH7vsGg9YFURmo6/nkfxZF36IAY8xh+cdif6cA+tY=",
                module,
            ),
            (
                "hub.example.com",
                Some("iothubowner"),
                "XoAK85qI+v+GyUPM9doa1wxkmY2uHmbGECPPDU+GKLA=",
                policy("iothubowner", Permissions::ALL, Resource::Hub),
            ),
            (
                "hub.example.com%2Fdevices",
                Some("device"),
                "YmHEus510dbwXXnKEGFCq932zAV9Y4jQWUZqe5OsyxY=",
                policy("device", Permissions::DEVICE_CONNECT, Resource::Devices),
            ),
            (
                "hub.example.com%2Fdevices%2Fdev%2B1%3Da%3Ab",
                None,
                "scTOhfpvn2WHq2pfT3Rc++i5pMKv4vmA8y0n1gmFxCM=",
                device("dev+1=a:b"),
            ),
            (
                "hub.example.com%2Fdevices%2Fdev%252B1%253Da%253Ab",
                None,
                "NKara6QVnjttNIND9s/VBnglkJB+2Dlo3JzuNN7o+Bc=",
                device("dev+1=a:b"),
            ),
        ] {
            let claims = verify(&domain, &token(sr, sig, skn), EXPIRES);
            assert_eq!(claims, Ok(Claims { scope, expires: EXPIRES }), "{sr}");
        }
    }

    #[test]
    fn the_case_of_hex_digits_is_part_of_what_was_signed() {
        let swapped = token("hub.example.com%2Fdevices%2Fdev1", "TzHri3uGrFXLS2sC6Fu14+Bkx/XrmGAxL5qogVVGH1M=", None);
        assert_eq!(verify(&domain(), &swapped, EXPIRES), Err(AuthError::Signature));
    }

    #[test]
    fn a_token_is_refused_for_the_first_thing_that_is_wrong() {
        let domain = domain();
        let key = SharedKey::parse(K1).expect("a key");
        let signed = |resource: &str, policy| sign(resource, &key, policy, EXPIRES);
        let other = SharedKey::generate();
        let good = signed("hub.example.com/devices/dev1", None);
        let disabled = Registration { status: Status::Disabled, ..registration(Identity::device("ab")) };
        domain.update_identity(disabled, &IfMatch::Any).expect("there");
        for (token, now, expected) in [
            (good.clone(), EXPIRES, Ok(())),
            (good.clone(), EXPIRES + 299, Ok(())),
            (good.clone(), EXPIRES + 300, Err(AuthError::Expired)),
            (String::new(), EXPIRES, Err(AuthError::Malformed)),
            (good.replace("SharedAccessSignature ", ""), EXPIRES, Err(AuthError::Malformed)),
            (good.replace("&se=", "&es="), EXPIRES, Err(AuthError::Malformed)),
            (good.replace("&se=1", "&se=+1"), EXPIRES, Err(AuthError::Malformed)),
            (format!("{good}&se=9"), EXPIRES, Err(AuthError::Malformed)),
            (good.replace("&se=1700000000", "&se=1700000001"), EXPIRES, Err(AuthError::Signature)),
            (signed("other.example.com/devices/dev1", None), EXPIRES, Err(AuthError::ForeignResource)),
            (signed("HUB.example.com/devices/dev1", None), EXPIRES, Ok(())),
            (signed("hub.example.com/Devices/DEV1", None), EXPIRES, Err(AuthError::UnknownDevice)),
            (signed("hub.example.com/devices/dev1/modules/x", None), EXPIRES, Err(AuthError::UnknownModule)),
            (signed("hub.example.com", None), EXPIRES, Err(AuthError::UnknownPolicy)),
            (signed("hub.example.com", Some("nobody")), EXPIRES, Err(AuthError::UnknownPolicy)),
            (signed("hub.example.com/devices/ab", None), EXPIRES, Err(AuthError::Disabled)),
            (sign("hub.example.com/devices/dev1", &other, None, EXPIRES), EXPIRES, Err(AuthError::Signature)),
        ] {
            assert_eq!(verify(&domain, &token, now).map(|_| ()), expected, "{expected:?} at {now}");
        }
    }

    #[test]
    fn a_token_for_device_a_does_not_cover_device_ab() {
        let domain = domain();
        let key = SharedKey::parse(K1).expect("a key");
        let claims = |resource: &str, policy| {
            verify(&domain, &sign(resource, &key, policy, EXPIRES), EXPIRES).expect("good token")
        };
        let (a, ab, module) = (Identity::device("a"), Identity::device("ab"), Identity::module("a", "m"));
        for (claims, covered) in [
            (claims("hub.example.com/devices/a", None), [true, false, true]),
            (claims("hub.example.com/devices/a", Some("device")), [true, false, true]),
            (claims("hub.example.com/devices", Some("device")), [true, true, true]),
            (claims("hub.example.com", Some("device")), [true, true, true]),
            (claims("hub.example.com", Some("service")), [false, false, false]),
        ] {
            assert_eq!([&a, &ab, &module].map(|identity| claims.covers(identity)), covered, "{claims:?}");
        }
        assert!(claims("hub.example.com", Some("service")).permits(Permissions::SERVICE_CONNECT));
        assert!(!claims("hub.example.com/devices", Some("iothubowner")).permits(Permissions::SERVICE_CONNECT));
        assert!(!claims("hub.example.com/devices/a", None).permits(Permissions::SERVICE_CONNECT));
    }

    #[test]
    fn a_plain_user_must_be_the_one_its_token_is_for() {
        let domain = domain();
        let key = SharedKey::parse(K1).expect("a key");
        let device = sign("hub.example.com/devices/dev1", &key, None, EXPIRES);
        let service = sign("hub.example.com", &key, Some("service"), EXPIRES);
        for (user, password, expected) in [
            ("dev1@sas.hub", &device, Ok(())),
            ("dev1/modules/mod1@sas.hub", &device, Ok(())),
            ("dev2@sas.hub", &device, Err(AuthError::NotCovered)),
            ("dev1@sas.other", &device, Err(AuthError::ForeignResource)),
            ("dev1", &device, Err(AuthError::Malformed)),
            ("service@sas.root.hub", &service, Ok(())),
            ("iothubowner@sas.root.hub", &service, Err(AuthError::NotCovered)),
            ("dev1@sas.hub", &service, Err(AuthError::NotCovered)),
        ] {
            assert_eq!(verify_plain(&domain, user, password, EXPIRES).map(|_| ()), expected, "{user}");
        }
    }
}
