//! SAS tokens as a device makes them (IoT Hub contract: sign the encoded resource and the expiry with the base64 key).

use anyhow::Context;
use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A token for `resource` (plain text, such as `hub.example.com/devices/dev1`) that expires at `expires_unix` seconds.
pub fn token(resource: &str, key_base64: &str, policy: Option<&str>, expires_unix: u64) -> anyhow::Result<String> {
    let key = STANDARD.decode(key_base64).context("the key is not base64")?;
    let resource = utf8_percent_encode(resource, ENCODED).to_string();
    let signature = STANDARD.encode(sign(&key, format!("{resource}\n{expires_unix}").as_bytes()));
    let signature = utf8_percent_encode(&signature, ENCODED);
    let policy = policy.map(|policy| format!("&skn={policy}")).unwrap_or_default();
    Ok(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires_unix}{policy}"))
}

/// The key of one member of an enrolment group, base64.
pub fn derived_key(group_key_base64: &str, registration_id: &str) -> anyhow::Result<String> {
    let key = STANDARD.decode(group_key_base64).context("the group key is not base64")?;
    Ok(STANDARD.encode(sign(&key, registration_id.as_bytes())))
}

fn sign(key: &[u8], text: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text)
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const K1: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const K2: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==";

    #[test]
    fn the_first_vector_of_the_contract_is_reproduced() {
        let expected = "SharedAccessSignature sr=hub.example.com%2Fdevices%2Fdev1&sig=WyqpHuaHgFgaumY%2Bc%2F4ZN4ajx71528aEWzeYMlu2Yg4%3D&se=1700000000";
        assert_eq!(token("hub.example.com/devices/dev1", K1, None, 1_700_000_000).unwrap(), expected);
    }

    #[test]
    fn a_policy_is_named_after_the_expiry() {
        let made = token("hub.example.com", K1, Some("iothubowner"), 1_700_000_000).unwrap();
        assert!(
            made.contains("sig=XoAK85qI%2Bv%2BGyUPM9doa1wxkmY2uHmbGECPPDU%2BGKLA%3D&se=1700000000&skn=iothubowner"),
            "{made}"
        );
    }

    #[test]
    fn a_group_member_has_the_derived_key() {
        assert_eq!(derived_key(K2, "dev1").unwrap(), "4au4SX34BGNfKzwqK3pnHfGtzfkkGgMg/yuXrHYqJxg=");
    }
}
