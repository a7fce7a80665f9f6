//! The keys this gateway knows, and the judgement by them. Keys are wiped when dropped and never shown.

use std::collections::HashMap;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use super::{Login, Refused, RefusedReason, SasToken, Verdict};
use crate::{
    codec::packet::ConnectCode,
    message::DeviceId,
    settings::{Settings, Upstream},
    time::UnixSeconds,
};

/// Everything a CONNECT can be judged by here: keys of devices and of enrolment groups, and the hub's names.
pub struct Keys {
    /// Names that `sr` may give the hub; empty: the one of the user name (a broker has no name).
    hub_hosts: Vec<String>,
    /// Keys of single devices (`d`) and modules (`d/m`).
    devices: HashMap<Box<str>, KeyPair>,
    groups: Vec<KeyPair>,
}

/// A client certificate that TLS has verified against the client CA: only its subject matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Common name of the subject: `d` or `d/m`.
    pub common_name: String,
}

impl Keys {
    /// No keys yet; the hub's names are those of `settings`.
    pub fn new(settings: &Settings) -> Self {
        let hub_hosts = match &settings.upstream {
            Upstream::IotHub(hub) => std::iter::once(&hub.host_name).chain(&hub.host_name_aliases).cloned().collect(),
            Upstream::Amqp(_) => Vec::new(),
        };
        Self { hub_hosts, devices: HashMap::new(), groups: Vec::new() }
    }

    /// Adds the keys of one file: lines `deviceId primary [secondary]`, or `deviceId/moduleId …`, keys in base64.
    ///
    /// Empty lines and those that begin with `# ` are skipped. Returns how many devices the file holds.
    ///
    /// # Errors
    /// The first line that is none of this, or names a device a second time; then nothing of the file was added.
    pub fn add_devices(&mut self, file: &[u8]) -> Result<usize, KeyFileError> {
        let mut added = HashMap::new();
        for (index, line) in file.split(|byte| *byte == b'\n').enumerate() {
            let line_error = |error| KeyFileError { line: index + 1, error };
            let line = line.trim_ascii();
            if line.is_empty() || line == b"#" || line.starts_with(b"# ") {
                continue;
            }
            let (identity, pair) = device_line(line).map_err(line_error)?;
            let id: Box<str> = identity.as_str().into();
            if self.devices.contains_key(&id) || added.insert(id, pair).is_some() {
                return Err(line_error(KeyError::Duplicate));
            }
        }
        let count = added.len();
        self.devices.extend(added);
        Ok(count)
    }

    /// Adds an enrolment group by its keys, in base64: a member's key is derived from them and its id.
    pub fn add_group(&mut self, primary: &[u8], secondary: Option<&[u8]>) -> Result<(), KeyError> {
        self.groups.push(KeyPair::from_base64(primary, secondary)?);
        Ok(())
    }

    /// Judges `login`: a token by the keys; without a token, the certificate.
    ///
    /// A token decides alone where there is one: a certificate beside it neither helps nor hurts. Order of contract §5:
    /// expiry (at most `clock_skew_s` seconds past), scope, key, signature. A device listed with keys of its own is not a
    /// member of a group; a module without keys of its own uses those of its device.
    pub fn verify(
        &self,
        login: &Login<'_>,
        certificate: Option<&ClientCertificate>,
        now: UnixSeconds,
        clock_skew_s: u64,
    ) -> Verdict {
        let checked = match (&login.token, certificate) {
            (Some(token), _) => self.check_token(login, token, now, clock_skew_s),
            (None, Some(certificate)) if certificate.common_name == login.identity.as_str() => Ok(None),
            (None, Some(_)) => Err(refused(RefusedReason::Certificate)),
            (None, None) => Err(Refused { code: ConnectCode::BadUserNameOrPassword, reason: RefusedReason::TokenForm }),
        };
        match checked {
            Ok(expires) => Verdict::Allowed { expires },
            Err(refused) => Verdict::Refused(refused),
        }
    }

    fn check_token(
        &self,
        login: &Login<'_>,
        token: &SasToken<'_>,
        now: UnixSeconds,
        clock_skew_s: u64,
    ) -> Result<Option<UnixSeconds>, Refused> {
        if token.expires.0.saturating_add(clock_skew_s) <= now.0 {
            return Err(refused(RefusedReason::TokenExpired));
        }
        let is_device_token = token.policy.is_none_or(str::is_empty);
        if !is_device_token || !token.covers(&login.identity, |host| self.is_hub_host(host, login.hub_host)) {
            return Err(refused(RefusedReason::TokenScope));
        }
        let signed = match self.own_keys(&login.identity) {
            Some(pair) => pair.signed(token, Key::clone),
            None if self.groups.is_empty() => return Err(refused(RefusedReason::UnknownDevice)),
            None => self.signed_by_member(token, login.identity.device()),
        };
        if bool::from(signed) { Ok(Some(token.expires)) } else { Err(refused(RefusedReason::TokenSignature)) }
    }

    fn is_hub_host(&self, host: &str, login_host: &str) -> bool {
        if self.hub_hosts.is_empty() {
            return host.eq_ignore_ascii_case(login_host);
        }
        self.hub_hosts.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    fn own_keys(&self, identity: &DeviceId) -> Option<&KeyPair> {
        self.devices.get(identity.as_str()).or_else(|| self.devices.get(identity.device()))
    }

    fn signed_by_member(&self, token: &SasToken<'_>, registration_id: &str) -> Choice {
        let none = Choice::from(0);
        self.groups.iter().fold(none, |found, group| found | group.signed(token, |key| key.derive(registration_id)))
    }
}

fn refused(reason: RefusedReason) -> Refused {
    Refused { code: ConnectCode::NotAuthorized, reason }
}

fn device_line(line: &[u8]) -> Result<(DeviceId, KeyPair), KeyError> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let id = words.next().and_then(|id| std::str::from_utf8(id).ok()).ok_or(KeyError::Id)?;
    let id = match id.split_once('/') {
        None => DeviceId::new(id, None),
        Some((device, module)) => DeviceId::new(device, Some(module)),
    };
    let id = id.map_err(|_| KeyError::Id)?;
    let primary = words.next().ok_or(KeyError::Missing)?;
    let pair = KeyPair::from_base64(primary, words.next())?;
    if words.next().is_some() {
        return Err(KeyError::TooMany);
    }
    Ok((id, pair))
}

/// Primary and secondary key: either may sign, so that keys can be changed without a gap.
struct KeyPair {
    primary: Key,
    secondary: Option<Key>,
}

impl KeyPair {
    fn from_base64(primary: &[u8], secondary: Option<&[u8]>) -> Result<Self, KeyError> {
        let secondary = secondary.map(Key::from_base64).transpose()?;
        Ok(Self { primary: Key::from_base64(primary)?, secondary })
    }

    /// Whether either key, through `device_key`, made the signature. Both are always tried.
    fn signed(&self, token: &SasToken<'_>, device_key: impl Fn(&Key) -> Key) -> Choice {
        let none = Choice::from(0);
        let keys = std::iter::once(&self.primary).chain(&self.secondary);
        keys.fold(none, |found, key| found | device_key(key).signed(token))
    }
}

/// A symmetric key, 16 to 64 bytes. Not `Debug`, wiped when dropped.
#[derive(Clone)]
pub struct Key(Zeroizing<Vec<u8>>);

impl Key {
    /// Reads the base64 text of a key; blanks and line ends around it do not count.
    pub fn from_base64(text: &[u8]) -> Result<Self, KeyError> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim_ascii()).map_err(|_| KeyError::Base64)?);
        match bytes.len() {
            16..=64 => Ok(Self(bytes)),
            _ => Err(KeyError::Length),
        }
    }

    /// The key of the member `registration_id` of the enrolment group whose key this is, the id hashed exactly as given.
    #[must_use]
    pub fn derive(&self, registration_id: &str) -> Self {
        let tag = hmac::sign(&self.hmac(), registration_id.as_bytes());
        Self(Zeroizing::new(tag.as_ref().to_vec()))
    }

    /// base64 of the signature over `resource`, which is percent-encoded already, and `expires`.
    pub(super) fn signature_text(&self, resource: &str, expires: UnixSeconds) -> String {
        STANDARD.encode(self.signature(resource, expires))
    }

    fn signature(&self, resource: &str, expires: UnixSeconds) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.hmac());
        context.update(resource.as_bytes());
        context.update(b"\n");
        context.update(expires.0.to_string().as_bytes());
        context.sign()
    }

    /// Whether this key made the token's signature; in constant time.
    ///
    /// What was signed is `sr` as received: `%2f` and `%2F` have different signatures.
    fn signed(&self, token: &SasToken<'_>) -> Choice {
        let expected = self.signature(token.resource, token.expires);
        let base64: Vec<u8> = percent_decode_str(token.signature).collect();
        match STANDARD.decode(base64) {
            Ok(given) => given.as_slice().ct_eq(expected.as_ref()),
            Err(_) => Choice::from(0),
        }
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

/// Why a text is not a key, or a line not that of a device. Never shows the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not standard base64 with padding.
    #[error("the key is not base64")]
    Base64,
    /// Decodes to fewer than 16 or more than 64 bytes.
    #[error("the key is not 16 to 64 bytes long")]
    Length,
    /// The line begins with something else than a device id.
    #[error("the line does not begin with a device id")]
    Id,
    /// The line has an id and no key.
    #[error("the device has no key")]
    Missing,
    /// The line goes on after the secondary key.
    #[error("the line holds more than an id and two keys")]
    TooMany,
    /// The device was listed before.
    #[error("the device is listed twice")]
    Duplicate,
}

/// A line of a file of keys that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct KeyFileError {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub error: KeyError,
}
