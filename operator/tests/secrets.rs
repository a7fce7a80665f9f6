//! What Secrets hold, and whether they will do: facts say what is wrong and show nothing that is secret.

use std::collections::{BTreeMap, BTreeSet};

use gateway_core::config::GatewayConfig;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use operator::{
    observe::{Observed, SecretFacts, Use},
    secrets::{self, Reference},
};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

/// A certificate for gw.example and 192.0.2.1, from 2026-01-01 to 2027-01-01, and its key.
fn pair() -> (String, String) {
    let mut parameters =
        CertificateParams::new(["gw.example".to_owned(), "192.0.2.1".to_owned()]).expect("names are fine");
    parameters.not_before = date_time_ymd(2026, 1, 1);
    parameters.not_after = date_time_ymd(2027, 1, 1);
    let key = KeyPair::generate().expect("a key can be made");
    (parameters.self_signed(&key).expect("it signs itself").pem(), key.serialize_pem())
}

fn secret(files: &[(&str, &str)]) -> Secret {
    let data: BTreeMap<String, ByteString> =
        files.iter().map(|(name, text)| ((*name).to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
    Secret { data: Some(data), ..Secret::default() }
}

fn facts(usage: Use, files: &[(&str, &str)]) -> SecretFacts {
    let config = "{upstream: {iotHub: {hostName: h.azure-devices.net}}, tls: {secretName: t}}";
    let settings = GatewayConfig::parse(config).expect("it parses").check().expect("it is right");
    secrets::facts(&secret(files), &BTreeSet::from([usage]), &settings)
}

fn check(usage: Use, files: &[(&str, &str)], expected: Option<&str>) {
    let facts = facts(usage, files);
    assert_eq!(facts.wrong.get(&usage).map(String::as_str), expected, "{usage:?}: {:?}", files.first());
    let shown = format!("{facts:?}");
    for (name, text) in files.iter().filter(|(name, text)| *name != "tls.crt" && *name != "ca.crt" && text.len() > 3) {
        assert!(!shown.contains(text.trim()), "{name} is shown");
    }
}

#[test]
fn a_certificate_needs_its_own_key() {
    let ((crt, key), (_, other)) = (pair(), pair());
    for usage in [Use::Serving, Use::Client] {
        check(usage, &[("tls.crt", &crt), ("tls.key", &key)], None);
        let not_its_key = Some("has a tls.key that is not the key of its tls.crt");
        check(usage, &[("tls.crt", &crt), ("tls.key", &other)], not_its_key);
        check(usage, &[("tls.crt", &crt)], Some("has no tls.key"));
        check(usage, &[("tls.key", &key)], Some("has no tls.crt"));
        check(usage, &[("tls.crt", ""), ("tls.key", &key)], Some("has a tls.crt that holds no PEM certificate"));
        check(usage, &[("tls.crt", &crt), ("tls.key", "key")], Some("has a tls.key that is no PEM private key"));
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let no_certificate = Some("has a tls.crt that holds something that is no certificate");
        check(usage, &[("tls.crt", broken), ("tls.key", &key)], no_certificate);
    }
}

#[test]
fn authorities_keys_and_logins_are_looked_at_in_their_form() {
    let (crt, _) = pair();
    check(Use::Authority, &[("ca.crt", &crt)], None);
    check(Use::Authority, &[("ca.crt", "")], Some("has a ca.crt that holds no PEM certificate"));
    check(Use::Authority, &[("tls.crt", &crt)], Some("has no ca.crt"));
    check(Use::PolicyKey, &[("key", "MDEyMzQ1Njc4OWFiY2RlZg==\n")], None);
    check(Use::PolicyKey, &[("key", "not base64!")], Some("has a key that is not in base64"));
    check(Use::PolicyKey, &[("key", "")], Some("has a key that is not in base64"));
    check(Use::GroupKeys, &[("primary", "MDEyMzQ1Njc4OWFiY2RlZg==")], None);
    check(Use::GroupKeys, &[("secondary", "MDEyMzQ1Njc4OWFiY2RlZg==")], Some("has no primary"));
    let broken = facts(Use::GroupKeys, &[("primary", "MDEyMzQ1Njc4OWFiY2RlZg=="), ("secondary", "?")]);
    assert!(broken.wrong[&Use::GroupKeys].starts_with("has a primary or secondary that cannot be used"));
    check(Use::DeviceKeys, &[("a", "d1 MDEyMzQ1Njc4OWFiY2RlZg==\n"), ("b", "d2 MDEyMzQ1Njc4OWFiY2RlZg==\n")], None);
    check(Use::DeviceKeys, &[], Some("is empty"));
    assert!(
        facts(Use::DeviceKeys, &[("a", "d1\n")]).wrong[&Use::DeviceKeys]
            .starts_with("has a file a that cannot be read")
    );
    check(Use::Login, &[("username", "u"), ("password", "pass word\n")], None);
    check(
        Use::Login,
        &[("username", "u"), ("password", "two\nlines")],
        Some("has a password that is not one line of text"),
    );
    check(Use::Login, &[("username", "u")], Some("has no password"));
}

#[test]
fn a_certificate_is_read_with_its_names_and_life() {
    let (crt, key) = pair();
    let certificate = facts(Use::Serving, &[("tls.crt", &crt), ("tls.key", &key)]).certificate.expect("it can be read");
    assert_eq!(certificate.dns_names, BTreeSet::from(["gw.example".to_owned()]));
    assert_eq!(certificate.ip_addresses, BTreeSet::from(["192.0.2.1".to_owned()]));
    assert_eq!(certificate.not_before.to_string(), "2026-01-01T00:00:00Z");
    assert_eq!(certificate.not_after.to_string(), "2027-01-01T00:00:00Z");
    assert!(!certificate.serial.is_empty());
}

#[test]
fn a_certificate_out_of_its_time_will_not_do() {
    let (crt, key) = pair();
    let facts = facts(Use::Serving, &[("tls.crt", &crt), ("tls.key", &key)]);
    let (from, until) = (
        facts.certificate.as_ref().expect("it is there").not_before,
        facts.certificate.as_ref().expect("it is there").not_after,
    );
    let judge = |now: Timestamp| {
        let observed = Observed { now, secrets: [("own".to_owned(), facts.clone())].into(), ..Observed::default() };
        let reference = Reference { secret_name: "own".to_owned(), usage: Use::Serving, path: "tls".to_owned() };
        secrets::judge(&reference, &observed).map_err(|problem| problem.reason)
    };
    let second = SignedDuration::from_secs(1);
    assert_eq!(judge(from - second), Err("CertificateNotYetValid"));
    assert_eq!(judge(from), Ok(()));
    assert_eq!(judge(until - second), Ok(()));
    assert_eq!(judge(until), Err("CertificateExpired"));
}
