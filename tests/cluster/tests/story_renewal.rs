//! The fleet's own CA: what it signs is renewed, and it is followed by another, without a disconnect.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Devices, Group, Target},
    world::{Fleet, World, condition},
};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, date_time_ymd};
use serde_json::{Value, json};

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// The kubelet writes a changed Secret within some seconds, the gateway looks every few, the operator asks the port.
const SERVED_TIMEOUT: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);
/// How long a CA that signed is trusted after a promotion: by the dates of the one that follows, twice 30 days.
const OVERLAPS: Duration = Duration::from_hours(60 * 24);
/// What is left of that in the story.
const OVERLAP_LEFT: Duration = Duration::from_secs(45);

/// A CA with its key, as PEM.
struct Ca {
    certificate: String,
    key: String,
}

impl Ca {
    /// As the operator makes them, but valid from `age` ago until `left` from now.
    fn new(name: &str, age: Duration, left: Duration) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let mut parameters = CertificateParams::new(Vec::<String>::new())?;
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(age);
        parameters.not_after = date_time_ymd(1970, 1, 1) + (now + left);
        let key = KeyPair::generate()?;
        Ok(Self { certificate: parameters.self_signed(&key)?.pem(), key: key.serialize_pem() })
    }
}

fn secrets(story: &Story) -> Api<Secret> {
    Api::namespaced(story.client.clone(), &story.namespace)
}

/// A file of a Secret; nothing if it is not there.
async fn file(story: &Story, secret: &str, name: &str) -> anyhow::Result<String> {
    let data = secrets(story).get_opt(secret).await?.and_then(|secret| secret.data).unwrap_or_default();
    Ok(data.get(name).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default())
}

/// Puts files into the Secret of the fleet's own CA, as the operator does: what it wrote it may remove.
async fn hold(story: &Story, files: [(&str, &String); 2]) -> anyhow::Result<()> {
    let mut secret = secrets(story).get("gw-ca").await?;
    secret.metadata.managed_fields = None;
    let data = secret.data.get_or_insert_default();
    data.extend(files.map(|(name, text)| (name.to_owned(), ByteString(text.clone().into_bytes()))));
    let operator = PatchParams::apply("protocol-gateway-operator").force();
    secrets(story).patch("gw-ca", &operator, &Patch::Apply(secret)).await?;
    Ok(())
}

/// Waits until it `holds` for a file of a Secret.
async fn until_file(
    story: &Story,
    (secret, name): (&str, &str),
    what: &str,
    holds: impl Fn(&str) -> bool,
) -> anyhow::Result<()> {
    let begun = std::time::Instant::now();
    while !holds(&file(story, secret, name).await?) {
        ensure!(begun.elapsed() < SERVED_TIMEOUT, "{what}: not after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// The one certificate that every pod serves, by its serial number.
fn served(object: &Value) -> Option<&str> {
    let holds = condition(object, "CertificateServed").is_some_and(|each| each["status"] == "True");
    let all = object["status"]["servedCertificates"].as_array()?;
    let every = all.len() == 1 && all[0]["pods"] == object["spec"]["replicas"];
    all.first().filter(|_| holds && every)?["serial"].as_str()
}

/// Waits until every pod serves another certificate than that, and says which.
async fn next_served(fleet: &Fleet<'_>, before: &str) -> anyhow::Result<String> {
    let another = |object: &Value| served(object).is_some_and(|serial| serial != before);
    let object = fleet.until("another certificate is served and in status", SERVED_TIMEOUT, another).await?;
    Ok(served(&object).context("it was there")?.to_owned())
}

/// New devices that trust these CAs connect, and go.
async fn some_connect(world: &World<'_>, target: &Target, trusted: &str) -> anyhow::Result<()> {
    let target = Target { ca_pem: trusted.as_bytes().to_vec(), ..target.clone() };
    let devices = Devices::start(&target, world.register(5)?, &Group::default())?;
    devices.all_connected(CONNECTED_TIMEOUT).await?;
    devices.finish().await?;
    Ok(())
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn the_certificate_of_the_own_ca_is_renewed_under_120_devices_and_none_is_disconnected() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", "replicas: 2").await?;
        fleet.ready().await?;
        let first = next_served(&fleet, "").await?;
        let target = fleet.target("mqtts").await?;
        let devices = fleet.devices(120, &Group { per_second: 120.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;

        let begun = std::time::Instant::now();
        secrets(story).delete("gw-tls", &DeleteParams::default()).await?;
        let second = next_served(&fleet, &first).await?;
        let deleted = begun.elapsed().as_secs_f64();
        // signed by another, as far as anybody knows
        let unknown = json!({"metadata": {"annotations": {"protocolgateway.io/authority": "00"}}});
        secrets(story).patch("gw-tls", &PatchParams::default(), &Patch::Merge(unknown)).await?;
        next_served(&fleet, &second).await?;
        xtask::step::say(&format!("served {deleted:.1} s after it was deleted"));

        // the CA is the same: who trusted it still does
        some_connect(&world, &target, &String::from_utf8(target.ca_pem.clone())?).await?;
        ensure!(devices.lost() == 0, "{} devices were disconnected", devices.lost());
        let verdict = fleet.none_lost(devices).await?;
        ensure!(verdict.duplicated == 0, "{verdict}");
        Ok(())
    };
    cluster.story("own-ca", test).await;
}

/// Years pass in a minute, because the dates of CAs are all that the operator goes by.
#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn the_own_ca_is_followed_by_another_with_overlap_and_no_device_is_disconnected() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", "replicas: 2").await?;
        fleet.ready().await?;
        let first = next_served(&fleet, "").await?;

        // two thirds of its life are gone: it signs, and the next one is made
        let old = Ca::new("gw-ca old", 200 * DAY, 90 * DAY)?;
        hold(story, [("ca.crt", &old.certificate), ("ca.key", &old.key)]).await?;
        let second = next_served(&fleet, &first).await?;
        let target = fleet.target("mqtts").await?;
        until_file(story, ("gw-ca", "next.crt"), "the next CA is made", |next| !next.is_empty()).await?;
        let both = |trusted: &str| trusted.matches("BEGIN CERTIFICATE").count() == 2;
        until_file(story, ("gw-tls", "ca.crt"), "both are to be trusted", both).await?;

        // devices learn of it by other ways, months before it signs
        let next = Ca::new("gw-ca next", OVERLAPS.saturating_sub(OVERLAP_LEFT), 3000 * DAY)?;
        let trusting_both = Target { ca_pem: (old.certificate.clone() + &next.certificate).into_bytes(), ..target };
        let group = Group { per_second: 120.0, ..Group::default() };
        let devices = Devices::start(&trusting_both, world.register(120)?, &group)?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        some_connect(&world, &trusting_both, &old.certificate).await?;
        hold(story, [("next.crt", &next.certificate), ("next.key", &next.key)]).await?;

        let is_next = |current: &str| current == next.certificate;
        until_file(story, ("gw-ca", "ca.crt"), "the next CA signs", is_next).await?;
        ensure!(file(story, "gw-ca", "previous.crt").await? == old.certificate, "the old one is not trusted any more");
        next_served(&fleet, &second).await?;
        some_connect(&world, &trusting_both, &next.certificate).await?;

        ensure!(
            file(story, "gw-tls", "ca.crt").await?.contains(&old.certificate),
            "the old one is not trusted any more"
        );
        tokio::time::sleep(OVERLAP_LEFT).await;
        // at rest the operator looks every ten minutes; it need not wait for that
        fleet.declare("{replicas: 2, limits: {messageBytesMax: 64KiB}}").await?;
        until_file(story, ("gw-ca", "previous.crt"), "the old CA is forgotten", str::is_empty).await?;
        until_file(story, ("gw-tls", "ca.crt"), "the new one alone is to be trusted", is_next).await?;
        // its file has reached the pods by then, if it was to disconnect anybody
        tokio::time::sleep(Duration::from_secs(15)).await;
        some_connect(&world, &trusting_both, &next.certificate).await?;
        fleet.ready().await?;
        ensure!(devices.lost() == 0, "{} devices were disconnected", devices.lost());
        let verdict = fleet.none_lost(devices).await?;
        ensure!(verdict.duplicated == 0, "{verdict}");
        Ok(())
    };
    cluster.story("next-ca", test).await;
}
