//! Shared access keys and the hub's shared access policies (contract §4.1, §5).

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A key for HMAC-SHA256, 16 to 64 bytes. Its text is shown only where the registry or a connection string needs it.
#[derive(Clone)]
pub struct SharedKey {
    /// Not an `hmac::Key`: that is over a kilobyte, and there are two keys per device.
    bytes: Box<[u8]>,
}

impl SharedKey {
    /// A random key of 32 bytes.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).expect("the system has randomness");
        Self { bytes: bytes.into() }
    }

    /// A key from base64; `None` if it is not base64 of 16 to 64 bytes.
    pub fn parse(base64: &str) -> Option<Self> {
        let bytes = STANDARD.decode(base64).ok()?;
        (16..=64).contains(&bytes.len()).then(|| Self { bytes: bytes.into() })
    }

    /// The key as base64: a secret.
    pub fn secret_base64(&self) -> String {
        STANDARD.encode(&self.bytes)
    }

    /// The key that an enrollment group's key gives a registration id (contract §5).
    #[must_use]
    pub fn derived(&self, registration_id: &str) -> Self {
        Self { bytes: hmac::sign(&self.hmac(), registration_id.as_bytes()).as_ref().into() }
    }

    /// HMAC-SHA256 of the text, as base64.
    pub fn sign(&self, text: &str) -> String {
        STANDARD.encode(hmac::sign(&self.hmac(), text.as_bytes()))
    }

    /// Whether the signature is this key's for the text; takes the same time wherever they differ.
    pub fn verifies(&self, text: &str, signature: &[u8]) -> bool {
        hmac::verify(&self.hmac(), text.as_bytes(), signature).is_ok()
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.bytes)
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(…)")
    }
}

/// What a policy allows: a set of the four rights of IoT Hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permissions(u8);

impl Permissions {
    /// Read the identity registry.
    pub const REGISTRY_READ: Self = Self(1);
    /// Read and write the identity registry.
    pub const REGISTRY_WRITE: Self = Self(1 | 2);
    /// Cloud-side endpoints: twins, methods, sending to devices, reading telemetry.
    pub const SERVICE_CONNECT: Self = Self(4);
    /// Device-side endpoints.
    pub const DEVICE_CONNECT: Self = Self(8);
    /// All of them.
    pub const ALL: Self = Self(15);

    /// Whether all of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A shared access policy of the hub.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Its name, `skn` in tokens.
    pub name: String,
    /// First key.
    pub primary: SharedKey,
    /// Second key, for rotation.
    pub secondary: SharedKey,
    /// What a token signed with it may do.
    pub permissions: Permissions,
}

/// The policies of the hub, by name. Fixed while the hub runs.
#[derive(Clone, Debug)]
pub struct Policies(BTreeMap<String, Policy>);

impl Policies {
    /// The five default policies with the keys given by name (base64), random ones for the rest.
    ///
    /// # Errors
    /// The name of a policy whose key is not base64 of 16 to 64 bytes.
    pub fn new(keys: &BTreeMap<String, String>) -> Result<Self, String> {
        let defaults = [
            ("iothubowner", Permissions::ALL),
            ("service", Permissions::SERVICE_CONNECT),
            ("device", Permissions::DEVICE_CONNECT),
            ("registryRead", Permissions::REGISTRY_READ),
            ("registryReadWrite", Permissions::REGISTRY_WRITE),
        ];
        if let Some(unknown) = keys.keys().find(|name| !defaults.iter().any(|(known, _)| known == name)) {
            return Err(format!("{unknown}: not a policy of this hub"));
        }
        let policy = |(name, permissions): (&str, Permissions)| {
            let primary = match keys.get(name) {
                Some(base64) => SharedKey::parse(base64).ok_or_else(|| format!("{name}: the key is not usable"))?,
                None => SharedKey::generate(),
            };
            let name = name.to_owned();
            Ok((name.clone(), Policy { name, primary, secondary: SharedKey::generate(), permissions }))
        };
        defaults.into_iter().map(policy).collect::<Result<_, String>>().map(Self)
    }

    /// The policy of this name.
    pub fn get(&self, name: &str) -> Option<&Policy> {
        self.0.get(name)
    }

    /// All policies, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Policy> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_implies_read_and_not_the_reverse() {
        assert!(Permissions::REGISTRY_WRITE.contains(Permissions::REGISTRY_READ));
        assert!(!Permissions::REGISTRY_READ.contains(Permissions::REGISTRY_WRITE));
        assert!(!Permissions::SERVICE_CONNECT.contains(Permissions::DEVICE_CONNECT));
    }

    #[test]
    fn a_key_never_shows_itself() {
        let key = SharedKey::generate();
        assert!(!format!("{key:?}").contains(&key.secret_base64()));
    }

    #[test]
    fn a_group_key_derives_the_documented_device_key() {
        // contract §5.1
        let group = SharedKey::parse(
            "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==",
        );
        let derived = group.expect("64 bytes").derived("dev1").secret_base64();
        assert_eq!(derived, "4au4SX34BGNfKzwqK3pnHfGtzfkkGgMg/yuXrHYqJxg=");
    }

    #[test]
    fn a_bad_policy_key_is_named() {
        let keys = BTreeMap::from([("device".to_owned(), "short".to_owned())]);
        assert_eq!(Policies::new(&keys).map(|_| ()), Err("device: the key is not usable".to_owned()));
    }
}
