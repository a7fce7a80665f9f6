//! Certificates over their whole life: what is made is what was asked for, and whatever ends between two steps, those who
//! connect always trust those who serve.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crds::ProtocolGateway;
use gateway_core::{config::GatewayConfig, settings::Settings};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{ResourceExt as _, core::ObjectMeta};
use operator::{
    certificates::{self, MintError, control_client, mint},
    desired::{Installation, desired, tls, tls::Step},
    names,
    observe::{Observed, SecretFacts, Use},
    scaling::Plan,
    secrets,
};
use rustls::{
    ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::{CryptoProvider, aws_lc_rs},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use serde_json::{Value, json};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

const BEGIN: i64 = 1_767_225_600; // 2026-01-01
const DAY: SignedDuration = SignedDuration::from_hours(24);

/// One fleet's Secrets, and the operator that looks after them.
struct Fleet {
    gateway: ProtocolGateway,
    now: Timestamp,
    secrets: BTreeMap<String, Secret>,
    settings: Settings,
    version: u64,
}

fn fleet(self_signed: &Value) -> Fleet {
    let gateway = json!({
        "apiVersion": crds::API_VERSION,
        "kind": crds::KIND,
        "metadata": {"name": "plant-a", "namespace": "iot", "uid": "6f1c"},
        "spec": {
            "upstream": {"iotHub": {"hostName": "h.azure-devices.net"}},
            "tls": {"selfSigned": self_signed},
        },
    });
    let config = "{upstream: {iotHub: {hostName: h.azure-devices.net}}, tls: {secretName: t}}";
    Fleet {
        settings: GatewayConfig::read(config).expect("it is right"),
        gateway: serde_json::from_value(gateway).expect("it is a ProtocolGateway"),
        now: Timestamp::from_second(BEGIN).expect("it is a time"),
        secrets: BTreeMap::new(),
        version: 0,
    }
}

impl Fleet {
    fn facts(&self, secret: &Secret) -> SecretFacts {
        secrets::facts(secret, &BTreeSet::from([Use::Serving, Use::Client, Use::Authority]), &self.settings)
    }

    fn observe(&self) -> Observed {
        let authority = self.secrets.get("plant-a-ca");
        let leaves = self.secrets.iter().filter(|(name, _)| *name != "plant-a-ca");
        Observed {
            now: self.now,
            authority: authority.and_then(certificates::authority),
            secrets: leaves.map(|(name, secret)| (name.clone(), self.facts(secret))).collect(),
            ..Observed::default()
        }
    }

    fn steps(&self) -> Vec<Step> {
        let installation = Installation { gateway_image: "g".to_owned(), lease_seconds: 15 };
        desired(&self.gateway, &self.observe(), &Plan::default(), &installation)
            .expect("the spec is right")
            .certificates
    }

    fn mint(&self, step: &Step) -> Result<Secret, MintError> {
        let metadata = names::owned(&self.gateway, step.secret());
        mint(step, self.secrets.get("plant-a-ca"), self.secrets.get(step.secret()), metadata, self.now)
    }

    fn write(&mut self, mut secret: Secret) {
        let before = self.secrets.get(&secret.name_any());
        assert_eq!(
            secret.metadata.resource_version,
            before.and_then(|before| before.metadata.resource_version.clone())
        );
        assert!(before.is_none_or(|before| before.type_ == secret.type_), "the type of a Secret cannot change");
        self.version += 1;
        secret.metadata.resource_version = Some(self.version.to_string());
        self.secrets.insert(secret.name_any(), secret);
    }

    /// Carries out steps until there are none; how many there were.
    fn settle(&mut self) -> usize {
        for round in 0..20 {
            let steps = self.steps();
            if steps.is_empty() {
                return round;
            }
            for step in steps {
                let secret = self.mint(&step).unwrap_or_else(|error| panic!("{step:?}: {error}"));
                self.write(secret);
            }
        }
        panic!("steps are repeated for ever: {:?}", self.steps());
    }

    fn file(&self, secret: &str, file: &str) -> Option<Vec<u8>> {
        Some(self.secrets.get(secret)?.data.as_ref()?.get(file)?.0.clone())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn roots(bundle: &[u8]) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        roots.add(certificate.expect("it is PEM")).expect("it is a CA");
    }
    Arc::new(roots)
}

fn unix(now: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_second().unsigned_abs()))
}

fn trusts_server(bundle: &[u8], leaf: &[u8], name: &str, now: Timestamp) -> Result<(), rustls::Error> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots(bundle), provider()).build().expect("it has roots");
    let leaf = CertificateDer::from_pem_slice(leaf).expect("it is PEM");
    let name = ServerName::try_from(name).expect("it is a name");
    verifier.verify_server_cert(&leaf, &[], &name, &[], unix(now)).map(drop)
}

fn trusts_client(bundle: &[u8], leaf: &[u8], now: Timestamp) -> Result<(), rustls::Error> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(bundle), provider()).build().expect("it has roots");
    let leaf = CertificateDer::from_pem_slice(leaf).expect("it is PEM");
    verifier.verify_client_cert(&leaf, &[], unix(now)).map(drop)
}

/// What clients hold: everything that was to be trusted within the last four weeks.
#[derive(Default)]
struct Clients {
    bundles: VecDeque<(Timestamp, Vec<u8>)>,
}

impl Clients {
    /// Every client trusts every server, and pods trust the operator.
    fn check(&mut self, fleet: &Fleet) {
        let now = fleet.now;
        for secret in ["plant-a-tls", "plant-a-control", "plant-a-control-client"] {
            let Some(bundle) = fleet.file(secret, "ca.crt") else { continue };
            match self.bundles.iter_mut().find(|(_, known)| *known == bundle) {
                Some((seen, _)) => *seen = now,
                None => self.bundles.push_back((now, bundle)),
            }
        }
        self.bundles.retain(|(seen, _)| now.duration_since(*seen) <= DAY * 28);
        for (_, bundle) in &self.bundles {
            for (secret, name) in [("plant-a-tls", "plant-a.iot.svc"), ("plant-a-control", "control.plant-a.iot")] {
                let Some(leaf) = fleet.file(secret, "tls.crt") else { continue };
                trusts_server(bundle, &leaf, name, now).unwrap_or_else(|error| panic!("{now} {secret}: {error}"));
            }
            let Some(leaf) = fleet.file("plant-a-control-client", "tls.crt") else { continue };
            trusts_client(bundle, &leaf, now).unwrap_or_else(|error| panic!("{now} control client: {error}"));
        }
    }
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// One look of an operator that may end before or after any write, or carry out a step that was carried out already.
fn look(fleet: &mut Fleet, clients: &mut Clients, chance: &mut Chance, done: &mut BTreeMap<String, u32>) {
    for step in fleet.steps() {
        if chance.below(6) == 0 {
            return;
        }
        let Ok(secret) = fleet.mint(&step) else { panic!("{step:?} does not fit what it was decided from") };
        if chance.below(6) == 0 {
            return; // made, and not written
        }
        fleet.write(secret);
        clients.check(fleet);
        let name = format!("{step:?}");
        *done.entry(name[..name.find([' ', '(']).expect("it has fields")].to_owned()).or_default() += 1;
        if chance.below(6) == 0 {
            // decided twice from the same observation: refused, or harmless
            match fleet.mint(&step) {
                Ok(secret) => fleet.write(secret),
                Err(error) => assert_eq!(error, MintError::Outdated(step.secret().clone())),
            }
            clients.check(fleet);
        }
    }
}

#[test]
fn for_25_years_every_client_trusts_every_server_whatever_ends_between_two_steps() {
    for seed in [1, 2] {
        let (mut fleet, mut clients, mut chance) = (fleet(&json!({})), Clients::default(), Chance(seed * 7919));
        let end = fleet.now + DAY * 365 * 25;
        let mut done = BTreeMap::new();
        while fleet.now < end {
            look(&mut fleet, &mut clients, &mut chance, &mut done);
            clients.check(&fleet);
            // soon while there is something to do, now and then otherwise
            let hours = if fleet.steps().is_empty() { chance.below(24 * 15) + 1 } else { chance.below(12) + 1 };
            fleet.now += SignedDuration::from_hours(hours.cast_signed());
        }
        assert!(fleet.settle() < 5, "seed {seed}");
        let of = |step: &str| done.get(step).copied().unwrap_or_default();
        assert_eq!(of("CreateAuthority"), 1, "seed {seed}: {done:?}");
        for step in ["AddNextAuthority", "PromoteNextAuthority", "DropPreviousAuthority"] {
            assert_eq!(of(step), 3, "seed {seed}: {done:?}");
        }
        // 25 years of 60 to 75 days, three certificates; and anew with each CA
        assert!((390..=480).contains(&of("Issue")), "seed {seed}: {done:?}");
        assert!((15..=40).contains(&of("Trust")), "seed {seed}: {done:?}");
    }
}

#[test]
fn an_operator_that_was_away_for_years_comes_back_to_a_fleet_that_works() {
    for years in [1, 7, 9, 10, 11, 30] {
        let mut fleet = fleet(&json!({}));
        fleet.settle();
        fleet.now += DAY * 365 * years;
        fleet.settle();
        Clients::default().check(&fleet);
        // and goes on by itself
        for _ in 0..100 {
            fleet.now += DAY * 5;
            assert!(fleet.settle() <= 6, "{years} years");
        }
        Clients::default().check(&fleet);
    }
}

#[test]
fn what_is_made_needs_no_further_step() {
    let long = format!("{}.example", ["a"; 30].join(".long-label-of-a-name."));
    for spec in [
        json!({}),
        json!({"dnsNames": ["gw.example", "*.plant-a.example", "GW.Example", "xn--bcher-kva.example"]}),
        json!({"dnsNames": [long]}),
        json!({"ipAddresses": ["192.0.2.1", "2001:DB8::1", "2001:db8:0:0::2", "::1"]}),
        json!({"duration": "1h"}),
        json!({"duration": "87600h", "dnsNames": ["0.example"]}),
    ] {
        let mut fleet = fleet(&spec);
        assert_eq!(fleet.settle(), 2, "{spec}: the CA, then what it signs");
        Clients::default().check(&fleet);
        let facts = fleet.observe().secrets;
        assert_eq!(facts.len(), 3);
        for (name, facts) in facts {
            assert_eq!(facts.wrong, BTreeMap::new(), "{spec} {name}");
        }
    }
}

#[test]
fn a_certificate_is_due_at_two_thirds_of_its_life() {
    let mut fleet = fleet(&json!({"duration": "900h"}));
    fleet.settle();
    let observed = fleet.observe();
    let leaves = observed.secrets.values().filter_map(|facts| facts.certificate.as_ref());
    let due = tls::due(observed.authority.as_ref().expect("there is a CA"), leaves);
    // one hour before it was made, and 900 after
    assert_eq!(due.duration_since(fleet.now).as_hours(), 901 * 2 / 3 - 1);
    fleet.now = due - SignedDuration::from_secs(1);
    assert_eq!(fleet.steps(), []);
    fleet.now = due;
    assert!(matches!(fleet.steps().as_slice(), [Step::Issue(leaf)] if leaf.secret == "plant-a-tls"));
}

#[test]
fn a_name_that_no_certificate_can_hold_is_said() {
    let mut fleet = fleet(&json!({"dnsNames": ["bücher.example"]}));
    let create = fleet.steps().remove(0);
    fleet.write(fleet.mint(&create).expect("a CA"));
    let steps = fleet.steps();
    let serving = steps.iter().find(|step| step.secret() == "plant-a-tls").expect("it is wanted");
    assert_eq!(fleet.mint(serving), Err(MintError::Name("bücher.example".to_owned())));
}

fn der(pem: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem).expect("it is PEM")
}

#[test]
fn certificates_have_the_extensions_that_rfc_5280_wants() {
    let mut fleet = fleet(&json!({"dnsNames": ["gw.example"], "ipAddresses": ["192.0.2.1"]}));
    fleet.settle();
    let ca = der(&fleet.file("plant-a-ca", "ca.crt").expect("a CA"));
    let (_, ca) = X509Certificate::from_der(&ca).expect("a certificate");
    let constraints = ca.basic_constraints().expect("it parses").expect("it is there");
    assert!(constraints.critical && constraints.value.ca && constraints.value.path_len_constraint == Some(0));
    let usage = ca.key_usage().expect("it parses").expect("it is there").value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    for (secret, server) in [("plant-a-tls", true), ("plant-a-control", true), ("plant-a-control-client", false)] {
        let leaf = der(&fleet.file(secret, "tls.crt").expect("a certificate"));
        let (_, leaf) = X509Certificate::from_der(&leaf).expect("a certificate");
        assert!(!leaf.is_ca(), "{secret}");
        assert_eq!(leaf.issuer(), ca.subject(), "{secret}");
        assert_eq!((leaf.raw_serial().len(), leaf.raw_serial()[0] & 0xc0), (16, 0x40), "{secret}");
        let usage = leaf.extended_key_usage().expect("it parses").expect("it is there").value;
        assert_eq!((usage.server_auth, usage.client_auth), (server, !server), "{secret}");
        assert!(leaf.key_usage().expect("it parses").expect("it is there").value.digital_signature(), "{secret}");
        let find = |is: fn(&ParsedExtension<'_>) -> Option<Vec<u8>>| {
            move |of: &X509Certificate<'_>| of.extensions().iter().find_map(|one| is(one.parsed_extension()))
        };
        let authority = find(|extension| match extension {
            ParsedExtension::AuthorityKeyIdentifier(id) => Some(id.key_identifier.as_ref()?.0.to_vec()),
            _ => None,
        })(&leaf);
        let subject = find(|extension| match extension {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        })(&ca);
        assert!(authority.is_some() && authority == subject, "{secret}");
    }
    let leaf = der(&fleet.file("plant-a-tls", "tls.crt").expect("a certificate"));
    let (_, leaf) = X509Certificate::from_der(&leaf).expect("a certificate");
    let names = &leaf.subject_alternative_name().expect("it parses").expect("it is there").value.general_names;
    assert!(names.contains(&GeneralName::DNSName("gw.example")));
    assert!(names.contains(&GeneralName::IPAddress(&[192, 0, 2, 1])));
    assert_eq!(fleet.secrets["plant-a-tls"].type_.as_deref(), Some("kubernetes.io/tls"));
    assert_eq!(fleet.secrets["plant-a-tls"].metadata.owner_references.as_ref().map(Vec::len), Some(1));
}

#[test]
fn serial_numbers_are_never_the_same() {
    let mut serials = BTreeSet::new();
    for _ in 0..50 {
        let mut fleet = fleet(&json!({}));
        fleet.settle();
        let observed = fleet.observe();
        let leaves = observed.secrets.into_values().filter_map(|facts| facts.certificate);
        for certificate in leaves.chain(observed.authority.map(|authority| authority.current)) {
            assert!(serials.insert(certificate.serial), "one came twice");
        }
    }
}

/// A settled fleet of which the CA's Secret is damaged.
fn damaged(damage: impl FnOnce(&mut BTreeMap<String, ByteString>)) -> Fleet {
    let mut fleet = fleet(&json!({}));
    fleet.settle();
    damage(fleet.secrets.get_mut("plant-a-ca").and_then(|secret| secret.data.as_mut()).expect("it is there"));
    fleet
}

#[test]
fn a_ca_that_lost_its_key_is_followed_by_another_and_trusted_on() {
    let mut fleet = damaged(|files| drop(files.remove("ca.key")));
    let old = fleet.file("plant-a-ca", "ca.crt");
    let served = fleet.file("plant-a-tls", "tls.crt").expect("a certificate");
    fleet.settle();
    assert_eq!(fleet.file("plant-a-ca", "previous.crt"), old);
    let bundle = fleet.file("plant-a-tls", "ca.crt").expect("a bundle");
    trusts_server(&bundle, &served, "plant-a.iot.svc", fleet.now).expect("what is still served is trusted");
    Clients::default().check(&fleet);
    fleet.now += DAY * 61;
    fleet.settle();
    assert_eq!(fleet.file("plant-a-ca", "previous.crt"), None);
}

#[test]
fn nonsense_in_the_secret_of_the_ca_is_replaced() {
    for (file, text) in [("ca.crt", "nonsense"), ("ca.key", ""), ("ca.crt", "-----BEGIN CERTIFICATE-----\n")] {
        let mut fleet = damaged(|files| drop(files.insert(file.to_owned(), ByteString(text.as_bytes().to_vec()))));
        fleet.settle();
        Clients::default().check(&fleet);
    }
    // a certificate that is none of a CA
    let mut fleet = damaged(|_| ());
    let leaf = ["tls.crt", "tls.key"].map(|file| fleet.file("plant-a-tls", file).expect("it is there"));
    let files = fleet.secrets.get_mut("plant-a-ca").and_then(|secret| secret.data.as_mut()).expect("it is there");
    let [certificate, key] = leaf.map(ByteString);
    files.extend([("ca.crt".to_owned(), certificate), ("ca.key".to_owned(), key)]);
    fleet.settle();
    Clients::default().check(&fleet);
}

#[test]
fn a_leaf_that_was_tampered_with_is_made_anew() {
    for (file, text) in [("tls.key", "nonsense"), ("tls.crt", ""), ("ca.crt", "nonsense")] {
        let mut fleet = fleet(&json!({}));
        fleet.settle();
        let files = fleet.secrets.get_mut("plant-a-tls").and_then(|secret| secret.data.as_mut()).expect("it is there");
        files.insert(file.to_owned(), ByteString(text.as_bytes().to_vec()));
        assert_eq!(fleet.settle(), 1, "{file}");
        Clients::default().check(&fleet);
    }
}

#[test]
fn a_step_that_was_decided_from_what_is_not_so_any_more_is_refused() {
    let mut fleet = fleet(&json!({}));
    let secret = || "plant-a-ca".to_owned();
    let outdated = Err(MintError::Outdated(secret()));
    for step in [
        Step::AddNextAuthority { secret: secret(), life_s: 1000 },
        Step::PromoteNextAuthority { secret: secret() },
        Step::DropPreviousAuthority { secret: secret() },
    ] {
        assert_eq!(fleet.mint(&step), outdated, "{step:?} without a CA");
    }
    fleet.settle();
    for step in [
        Step::CreateAuthority { secret: secret(), life_s: 1000 },
        Step::PromoteNextAuthority { secret: secret() },
        Step::DropPreviousAuthority { secret: secret() },
    ] {
        assert_eq!(fleet.mint(&step), outdated, "{step:?}");
    }
    let trust = Step::Trust { secret: "plant-a-tls".to_owned(), trust: vec!["00".to_owned()] };
    assert_eq!(fleet.mint(&trust), Err(MintError::Outdated("plant-a-tls".to_owned())));
}

/// Carries out a handshake without sockets.
fn shake_hands(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).expect("it is memory");
        }
        let mut read = bytes.as_slice();
        while !read.is_empty() {
            server.read_tls(&mut read).expect("it is memory");
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).expect("it is memory");
        }
        let mut read = bytes.as_slice();
        while !read.is_empty() {
            client.read_tls(&mut read).expect("it is memory");
            client.process_new_packets()?;
        }
    }
    Ok(())
}

/// The admin port of a pod.
fn admin_port(fleet: &Fleet) -> ServerConnection {
    let file = |name: &str| fleet.file("plant-a-control", name).expect("it is there");
    let clients = WebPkiClientVerifier::builder_with_provider(roots(&file("ca.crt")), provider()).build();
    let key = PrivateKeyDer::from_pem_slice(&file("tls.key")).expect("it is a key");
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("it knows TLS")
        .with_client_cert_verifier(clients.expect("it has roots"))
        .with_single_cert(vec![der(&file("tls.crt"))], key)
        .expect("a pair");
    ServerConnection::new(Arc::new(config)).expect("a server")
}

#[test]
fn the_operator_and_its_pods_know_each_other_and_nobody_else() {
    // handshakes go by the clock of the machine
    let of_today = || {
        let mut fleet = fleet(&json!({}));
        fleet.now = Timestamp::now();
        fleet.settle();
        fleet
    };
    let (ours, theirs) = (of_today(), of_today());
    let connect = |fleet: &Fleet| {
        let config = control_client(&fleet.secrets["plant-a-control-client"]).expect("it is whole");
        let name = ServerName::try_from(names::control_host("plant-a", "iot")).expect("it is a name");
        ClientConnection::new(config, name).expect("a client")
    };
    shake_hands(&mut connect(&ours), &mut admin_port(&ours)).expect("they trust each other");
    shake_hands(&mut connect(&theirs), &mut admin_port(&ours)).expect_err("another fleet's");
}

#[test]
fn a_control_client_says_what_its_secret_lacks_and_nothing_secret() {
    let mut whole = fleet(&json!({}));
    whole.settle();
    let check = |file: &str, text: Option<&str>, expected: &str| {
        let mut secret = whole.secrets["plant-a-control-client"].clone();
        let files = secret.data.as_mut().expect("it has files");
        match text {
            Some(text) => drop(files.insert(file.to_owned(), ByteString(text.as_bytes().to_vec()))),
            None => drop(files.remove(file)),
        }
        let error = control_client(&secret).expect_err(file).to_string();
        assert_eq!(error, format!("the Secret of the control client {expected}"));
    };
    check("ca.crt", None, "has no ca.crt with certificates");
    check("ca.crt", Some("nonsense"), "has no ca.crt with certificates");
    check("tls.crt", None, "has no tls.crt with a certificate");
    check("tls.key", Some("nonsense"), "has no tls.key with a key");
    let other = whole.file("plant-a-tls", "tls.key").expect("a key");
    let other = String::from_utf8(other).expect("it is PEM");
    check("tls.key", Some(&other), "has a tls.key that is not the key of its tls.crt");
}

#[test]
fn metadata_is_as_it_was_given() {
    let fleet = fleet(&json!({}));
    let step = fleet.steps().remove(0);
    let metadata = ObjectMeta { name: Some("plant-a-ca".to_owned()), ..ObjectMeta::default() };
    let secret = mint(&step, None, None, metadata.clone(), fleet.now).expect("a CA");
    assert_eq!(secret.metadata, metadata);
}
