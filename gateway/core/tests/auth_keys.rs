//! Keys and tokens against the vectors of contract §5.1, and every way a token fails.

use gateway_core::{
    auth::{self, ClientCertificate, Key, KeyError, Keys, Refused, RefusedReason, Verdict},
    codec::packet::{Connect, ConnectCode},
    config::GatewayConfig,
    settings::Settings,
    time::UnixSeconds,
};

/// base64 of the bytes 00 to 1f.
const K1: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// base64 of the bytes 00 to 3f.
const K2: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0+Pw==";
const EXPIRES: UnixSeconds = UnixSeconds(1_700_000_000);
const BEFORE: UnixSeconds = UnixSeconds(1_699_999_999);

/// sr as in the token, skn, sig in base64, and whom it is for.
const VECTORS: [(&str, Option<&str>, &str, &str); 7] = [
    ("hub.example.com%2Fdevices%2Fdev1", None, "WyqpHuaHgFgaumY+c/4ZN4ajx71528aEWzeYMlu2Yg4=", "dev1"),
    ("hub.example.com%2fdevices%2fdev1", None, "TzHri3uGrFXLS2sC6Fu14+Bkx/XrmGAxL5qogVVGH1M=", "dev1"),
    (
        "hub.example.com%2Fdevices%2Fdev1%2Fmodules%2Fmod1",
        None,
        "7OaH7vsGg9YFURmo6/nkfxZF36IAY8xh+cdif6cA+tY=",
        "dev1/mod1",
    ),
    ("hub.example.com", Some("iothubowner"), "XoAK85qI+v+GyUPM9doa1wxkmY2uHmbGECPPDU+GKLA=", "dev1"),
    ("hub.example.com%2Fdevices", Some("device"), "YmHEus510dbwXXnKEGFCq932zAV9Y4jQWUZqe5OsyxY=", "dev1"),
    ("hub.example.com%2Fdevices%2Fdev%2B1%3Da%3Ab", None, "scTOhfpvn2WHq2pfT3Rc++i5pMKv4vmA8y0n1gmFxCM=", "dev+1=a:b"),
    (
        "hub.example.com%2Fdevices%2Fdev%252B1%253Da%253Ab",
        None,
        "NKara6QVnjttNIND9s/VBnglkJB+2Dlo3JzuNN7o+Bc=",
        "dev+1=a:b",
    ),
];

fn settings(upstream: &str) -> Settings {
    let yaml = format!(
        "{{upstream: {upstream}, tls: {{secretName: serving}}, \
          authentication: {{sas: {{verify: Local, deviceKeys: {{secretName: keys}}}}}}}}"
    );
    GatewayConfig::parse(&yaml).expect("well-formed").check().expect("complete")
}

fn hub() -> Settings {
    settings("{iotHub: {hostName: hub.example.com, policy: {name: device, secretName: p}}}")
}

/// Keys that hold the given lines.
fn keys(lines: &str) -> Keys {
    let mut keys = Keys::new(&hub());
    keys.add_devices(lines.as_bytes()).expect("good lines");
    keys
}

fn group(primary: &str, secondary: Option<&str>) -> Keys {
    let mut keys = Keys::new(&hub());
    keys.add_group(primary.as_bytes(), secondary.map(str::as_bytes)).expect("good keys");
    keys
}

fn verdict_of(
    settings: &Settings,
    keys: &Keys,
    client_id: &str,
    token: &str,
    certificate: Option<&str>,
    now: UnixSeconds,
) -> Verdict {
    let user_name = format!("hub.example.com/{client_id}/?api-version=2021-04-12");
    let connect = Connect {
        clean_session: true,
        keep_alive_s: 60,
        client_id,
        will: None,
        user_name: Some(&user_name),
        password: Some(token.as_bytes()),
    };
    let login = auth::login(&connect, settings).expect("a good login");
    let certificate = certificate.map(|name| ClientCertificate { common_name: name.to_owned() });
    keys.verify(&login, certificate.as_ref(), now, 300)
}

fn verdict(keys: &Keys, client_id: &str, token: &str) -> Verdict {
    verdict_of(&hub(), keys, client_id, token, None, BEFORE)
}

fn allowed() -> Verdict {
    Verdict::Allowed { expires: Some(EXPIRES) }
}

fn refused(reason: RefusedReason) -> Verdict {
    Verdict::Refused(Refused { code: ConnectCode::NotAuthorized, reason })
}

fn key(text: &str) -> Key {
    Key::from_base64(text.as_bytes()).expect("a good key")
}

/// A token with the signature of the vectors, encoded as SDKs do.
fn token(resource: &str, policy: Option<&str>, signature: &str) -> String {
    let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let policy = policy.map(|policy| format!("&skn={policy}")).unwrap_or_default();
    format!("SharedAccessSignature sr={resource}&sig={signature}&se={}{policy}", EXPIRES.0)
}

#[test]
fn the_first_vector_is_made_byte_for_byte() {
    let expected = "SharedAccessSignature sr=hub.example.com%2Fdevices%2Fdev1\
                    &sig=WyqpHuaHgFgaumY%2Bc%2F4ZN4ajx71528aEWzeYMlu2Yg4%3D&se=1700000000";
    assert_eq!(auth::sign(&key(K1), "hub.example.com/devices/dev1", EXPIRES, None), expected);
}

#[test]
fn every_vector_with_upper_case_hex_is_made() {
    for (resource, policy, signature, _) in VECTORS.into_iter().filter(|vector| !vector.0.contains("%2f")) {
        // `sign` encodes once: what the vector encodes twice is given to it encoded once
        let decoded = percent_encoding::percent_decode_str(resource).decode_utf8_lossy();
        assert_eq!(auth::sign(&key(K1), &decoded, EXPIRES, policy), token(resource, policy, signature));
    }
}

#[test]
fn every_device_vector_is_let_in() {
    for (resource, _, signature, identity) in VECTORS.into_iter().filter(|vector| vector.1.is_none()) {
        let keys = keys(&format!("{identity} {K1}"));
        for policy in [None, Some("")] {
            assert_eq!(
                verdict(&keys, identity, &token(resource, policy, signature)),
                allowed(),
                "{resource} {policy:?}"
            );
        }
    }
}

#[test]
fn a_policy_token_is_not_a_devices_proof() {
    for (resource, policy, signature, identity) in VECTORS.into_iter().filter(|vector| vector.1.is_some()) {
        let keys = keys(&format!("{identity} {K1}"));
        let verdict = verdict(&keys, identity, &token(resource, policy, signature));
        assert_eq!(verdict, refused(RefusedReason::TokenScope), "{resource}");
    }
}

#[test]
fn sr_is_verified_as_received() {
    let (upper, lower) = (VECTORS[0], VECTORS[1]);
    let keys = keys(&format!("dev1 {K1}"));
    for (resource, signature) in [(upper.0, lower.2), (lower.0, upper.2)] {
        let verdict = verdict(&keys, "dev1", &token(resource, None, signature));
        assert_eq!(verdict, refused(RefusedReason::TokenSignature), "{resource}");
    }
}

#[test]
fn an_unencoded_signature_is_read_too() {
    let (resource, _, signature, _) = VECTORS[0];
    let token = format!("SharedAccessSignature sr={resource}&sig={signature}&se={}", EXPIRES.0);
    assert_eq!(verdict(&keys(&format!("dev1 {K1}")), "dev1", &token), allowed());
}

#[test]
fn a_token_ends_at_se_plus_the_clock_skew() {
    let keys = keys(&format!("dev1 {K1}"));
    let token = auth::sign(&key(K1), "hub.example.com/devices/dev1", EXPIRES, None);
    let at = |now| verdict_of(&hub(), &keys, "dev1", &token, None, UnixSeconds(now));
    assert_eq!(at(EXPIRES.0 + 299), allowed());
    assert_eq!(at(EXPIRES.0 + 300), refused(RefusedReason::TokenExpired));
    let endless = auth::sign(&key(K1), "hub.example.com/devices/dev1", UnixSeconds(u64::MAX), None);
    assert_eq!(verdict(&keys, "dev1", &endless), Verdict::Allowed { expires: Some(UnixSeconds(u64::MAX)) });
}

#[test]
fn expiry_is_judged_before_scope_and_scope_before_the_key() {
    let keys = keys(&format!("dev1 {K1}"));
    let foreign = auth::sign(&key(K2), "hub.example.com/devices/dev2", EXPIRES, None);
    let expired = verdict_of(&hub(), &keys, "dev1", &foreign, None, UnixSeconds(EXPIRES.0 + 301));
    assert_eq!(expired, refused(RefusedReason::TokenExpired));
    assert_eq!(verdict(&keys, "dev1", &foreign), refused(RefusedReason::TokenScope));
    assert_eq!(verdict(&keys, "dev2", &foreign), refused(RefusedReason::UnknownDevice));
}

#[test]
fn a_token_of_one_device_does_not_let_in_another_with_the_same_beginning() {
    let keys = keys(&format!("a {K1}\nab {K1}"));
    let token = auth::sign(&key(K1), "hub.example.com/devices/a", EXPIRES, None);
    assert_eq!(verdict(&keys, "a", &token), allowed());
    assert_eq!(verdict(&keys, "ab", &token), refused(RefusedReason::TokenScope));
}

#[test]
fn another_key_and_a_broken_signature_are_refused() {
    let keys = keys(&format!("dev1 {K1}"));
    let resource = VECTORS[0].0;
    let other = auth::sign(&key(K2), "hub.example.com/devices/dev1", EXPIRES, None);
    assert_eq!(verdict(&keys, "dev1", &other), refused(RefusedReason::TokenSignature));
    let long = "A".repeat(64);
    for signature in ["x", "AAAA", "%%%", "WyqpHuaHgFgaumY+c/4ZN4ajx71528aEWzeYMlu2Yg4", &long] {
        let token = format!("SharedAccessSignature sr={resource}&sig={signature}&se={}", EXPIRES.0);
        assert_eq!(verdict(&keys, "dev1", &token), refused(RefusedReason::TokenSignature), "{signature}");
    }
}

#[test]
fn primary_and_secondary_key_both_count() {
    let keys = keys(&format!("dev1 {K1} {K2}"));
    for text in [K1, K2] {
        let token = auth::sign(&key(text), "hub.example.com/devices/dev1", EXPIRES, None);
        assert_eq!(verdict(&keys, "dev1", &token), allowed());
    }
}

#[test]
fn a_module_uses_its_own_keys_or_those_of_its_device() {
    let own = keys(&format!("dev1 {K1}\ndev1/mod1 {K2}"));
    let of_device = keys(&format!("dev1 {K1}"));
    let by = |text| auth::sign(&key(text), "hub.example.com/devices/dev1/modules/mod1", EXPIRES, None);
    assert_eq!(verdict(&own, "dev1/mod1", &by(K2)), allowed());
    assert_eq!(verdict(&own, "dev1/mod1", &by(K1)), refused(RefusedReason::TokenSignature));
    assert_eq!(verdict(&of_device, "dev1/mod1", &by(K1)), allowed());
    assert_eq!(verdict(&of_device, "dev1", &by(K1)), refused(RefusedReason::TokenScope));
}

#[test]
fn group_keys_derive_as_dps_documents() {
    let group = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw==";
    let derived = key(group).derive("sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6");
    let documented = key("Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc=");
    let signed = |key: &Key| auth::sign(key, "hub.example.com/devices/x", EXPIRES, None);
    assert_eq!(signed(&derived), signed(&documented));
}

/// Device id, derived key, signature of its hub token and of its DPS token, both url-encoded; the group's key is K2.
const MEMBERS: [(&str, &str, &str, &str); 2] = [
    (
        "dev1",
        "4au4SX34BGNfKzwqK3pnHfGtzfkkGgMg/yuXrHYqJxg=",
        "2ktZuMWBmzT13rW5%2BwpbtefTohkohk0N0zcTTC4ZqtE%3D",
        "mhoKs09kw9aqMzDM5LP4eARj1eCKppwZaEKwm22vDOQ%3D",
    ),
    (
        "device-0001",
        "+1fi9ZFGE1LjGrIgob/lXJUzCZtw09BomVTmTNQ31c8=",
        "xzwH0GCH2ZuA6bpm4IYxX7Iq32%2BihYZ1MewWnUpapww%3D",
        "ZjYobVkAo3BCKcCKB4E5FVYUThcy3pavHnBJxMoW%2BSg%3D",
    ),
];

#[test]
fn tokens_of_derived_keys_have_the_signatures_of_the_vectors() {
    for (id, derived, hub_signature, dps_signature) in MEMBERS {
        let resource = format!("hub.example.com/devices/{id}");
        let token = auth::sign(&key(derived), &resource, EXPIRES, None);
        assert!(token.contains(&format!("&sig={hub_signature}&")), "{token}");
        assert_eq!(auth::sign(&key(K2).derive(id), &resource, EXPIRES, None), token);
        let dps = format!("0ne00000000/registrations/{id}");
        let dps = auth::sign(&key(derived), &dps, EXPIRES, Some("registration"));
        assert!(dps.contains(&format!("&sig={dps_signature}&")), "{dps}");
    }
}

#[test]
fn members_of_a_group_are_let_in_by_derived_keys() {
    for (id, derived, _, _) in MEMBERS {
        let token = auth::sign(&key(derived), &format!("hub.example.com/devices/{id}"), EXPIRES, None);
        let dps = auth::sign(&key(derived), &format!("0ne00000000/registrations/{id}"), EXPIRES, Some("registration"));
        let stranger = token.replace(id, "stranger");
        for keys in [group(K2, None), group(K1, Some(K2))] {
            assert_eq!(verdict(&keys, id, &token), allowed(), "{id}");
            assert_eq!(verdict(&keys, id, &dps), refused(RefusedReason::TokenScope), "{id}");
            assert_eq!(verdict(&keys, "stranger", &stranger), refused(RefusedReason::TokenSignature));
        }
    }
}

#[test]
fn a_device_with_keys_of_its_own_is_not_a_member_of_a_group() {
    let mut keys = keys(&format!("dev1 {K1}"));
    keys.add_group(K2.as_bytes(), None).expect("a good key");
    let derived = auth::sign(&key(K2).derive("dev1"), "hub.example.com/devices/dev1", EXPIRES, None);
    assert_eq!(verdict(&keys, "dev1", &derived), refused(RefusedReason::TokenSignature));
}

#[test]
fn a_certificate_lets_in_the_device_that_it_names_and_no_other() {
    let keys = Keys::new(&hub());
    let with = |client_id, name| verdict_of(&hub(), &keys, client_id, "", name, BEFORE);
    assert_eq!(with("dev1", Some("dev1")), Verdict::Allowed { expires: None });
    assert_eq!(with("dev1/mod1", Some("dev1/mod1")), Verdict::Allowed { expires: None });
    for name in ["dev2", "DEV1", "", "dev1/mod1"] {
        assert_eq!(with("dev1", Some(name)), refused(RefusedReason::Certificate), "{name}");
    }
    let nothing = Refused { code: ConnectCode::BadUserNameOrPassword, reason: RefusedReason::TokenForm };
    assert_eq!(with("dev1", None), Verdict::Refused(nothing));
}

#[test]
fn a_token_beside_a_certificate_decides_alone() {
    let keys = keys(&format!("dev1 {K1}"));
    let good = auth::sign(&key(K1), "hub.example.com/devices/dev1", EXPIRES, None);
    let bad = auth::sign(&key(K2), "hub.example.com/devices/dev1", EXPIRES, None);
    assert_eq!(verdict_of(&hub(), &keys, "dev1", &good, Some("factory"), BEFORE), allowed());
    let verdict = verdict_of(&hub(), &keys, "dev1", &bad, Some("dev1"), BEFORE);
    assert_eq!(verdict, refused(RefusedReason::TokenSignature));
}

#[test]
fn at_a_broker_the_token_names_the_host_of_the_user_name() {
    let broker = settings("{amqp: {url: 'amqps://broker.example', telemetryAddress: 't/{deviceId}'}}");
    let mut keys = Keys::new(&broker);
    keys.add_devices(format!("dev1 {K1}").as_bytes()).expect("a good line");
    let at = |host: &str| {
        let token = auth::sign(&key(K1), &format!("{host}/devices/dev1"), EXPIRES, None);
        verdict_of(&broker, &keys, "dev1", &token, None, BEFORE)
    };
    assert_eq!(at("HUB.example.com"), allowed());
    assert_eq!(at("other.example.com"), refused(RefusedReason::TokenScope));
}

#[test]
fn a_file_of_keys_is_lines_with_comments() {
    let mut keys = Keys::new(&hub());
    let file = format!("# the press line\n#\n\ndev1 {K1}\r\n  dev2\t{K1}  {K2}  \n#3 {K1}\ndev1/mod1 {K2}");
    assert_eq!(keys.add_devices(file.as_bytes()), Ok(4));
    let token = auth::sign(&key(K1), "hub.example.com/devices/#3", EXPIRES, None);
    assert_eq!(verdict(&keys, "#3", &token), allowed());
}

#[test]
fn a_line_that_cannot_be_used_is_named() {
    let short = "AAECAwQFBgcICQoLDA0O";
    for (line, error) in [
        ("dev1".to_owned(), KeyError::Missing),
        ("dev1 secret!".to_owned(), KeyError::Base64),
        (format!("dev1 {short}"), KeyError::Length),
        (format!("dev1 {K1} {K2} {K1}"), KeyError::TooMany),
        (format!("dev1 {K1} x"), KeyError::Base64),
        (format!("a/b/c {K1}"), KeyError::Id),
        (format!("dev&1 {K1}"), KeyError::Id),
        (format!("good {K2}"), KeyError::Duplicate),
    ] {
        let mut keys = Keys::new(&hub());
        let file = format!("good {K1}\n{line}\n");
        let failed = keys.add_devices(file.as_bytes()).expect_err(&line);
        assert_eq!((failed.line, failed.error), (2, error), "{line}");
        assert!(!failed.to_string().contains("secret!"), "{failed}");
        let good = format!("good {K1}");
        assert_eq!(keys.add_devices(good.as_bytes()), Ok(1), "nothing of a bad file was kept");
        let again = keys.add_devices(good.as_bytes()).expect_err("listed in another file");
        assert_eq!(again.error, KeyError::Duplicate);
    }
}

#[test]
fn keys_have_16_to_64_bytes() {
    let of = |bytes: usize| Key::from_base64("AAAA".repeat(bytes / 3).as_bytes()).map(|_| ());
    assert_eq!(of(15), Err(KeyError::Length));
    assert_eq!(of(18), Ok(()));
    assert_eq!(of(63), Ok(()));
    assert_eq!(of(66), Err(KeyError::Length));
    assert!(Key::from_base64(format!("\n {K1}\n").as_bytes()).is_ok());
}
