//! Certificates and other Secrets of the user's: new ones are taken without a disconnect, wrong ones change nothing.

use std::time::Duration;

use anyhow::ensure;
use cluster::{
    Cluster, Story,
    devices::Group,
    world::{Fleet, World, condition},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SerialNumber};
use serde_json::Value;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// The kubelet writes a changed Secret within some seconds, the gateway looks every few, the operator asks the port.
const SERVED_TIMEOUT: Duration = Duration::from_mins(1);
/// As often as the issue wants it.
const ROTATIONS: u64 = 20;

/// A CA of the user's, who makes the listeners' certificate.
struct User {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key as PEM.
struct Pair {
    serial: String,
    certificate: String,
    key: String,
}

impl User {
    fn new() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(Vec::<String>::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = parameters.self_signed(&key)?.pem();
        Ok(Self { ca_pem, issuer: Issuer::new(parameters, key) })
    }

    fn sign(&self, serial: u64, name: &str) -> anyhow::Result<Pair> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(vec![name.to_owned()])?;
        parameters.serial_number = Some(SerialNumber::from(serial));
        let certificate = parameters.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { serial: format!("{serial:x}"), certificate, key: key.serialize_pem() })
    }

    /// Writes it where the fleet's spec says.
    async fn publish(&self, world: &World<'_>, certificate: &Pair, key: &Pair) -> anyhow::Result<()> {
        let data = [("tls.crt", &*certificate.certificate), ("tls.key", &*key.key), ("ca.crt", &*self.ca_pem)];
        world.secret("serving", &data).await
    }
}

fn server_name(story: &Story) -> String {
    format!("gw.{}.svc", story.namespace)
}

/// Waits until every ready pod serves it and status says so.
async fn served(fleet: &Fleet<'_>, pair: &Pair) -> anyhow::Result<()> {
    let says = |object: &Value| {
        let holds = condition(object, "CertificateServed").is_some_and(|each| each["status"] == "True");
        let serials = object["status"]["servedCertificates"].as_array().into_iter().flatten();
        let serials: Vec<&str> = serials.filter_map(|each| each["serial"].as_str()).collect();
        holds && serials.len() == 1 && serials[0].trim_start_matches('0') == pair.serial
    };
    fleet.until(&format!("certificate {} is served and in status", pair.serial), SERVED_TIMEOUT, says).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_certificate_is_rotated_20_times_under_200_devices_and_none_is_disconnected() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let user = User::new()?;
        let first = user.sign(0x1000, &server_name(story))?;
        user.publish(&world, &first, &first).await?;
        let fleet = world.gateway("gw", "{replicas: 2, tls: {selfSigned: null, secretName: serving}}").await?;
        fleet.ready().await?;
        let group = Group { per_second: 100.0, ..Group::default() };
        let devices = fleet.devices(200, &group).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let begun = std::time::Instant::now();
        for rotation in 1..=ROTATIONS {
            let pair = user.sign(0x1000 + rotation, &server_name(story))?;
            user.publish(&world, &pair, &pair).await?;
            served(&fleet, &pair).await?;
        }
        let seconds = begun.elapsed().as_secs_f64() / ROTATIONS as f64;
        xtask::step::say(&format!("from Secret to served and in status: {seconds:.1} s on average"));
        ensure!(devices.lost() == 0, "a device was disconnected");
        let verdict = fleet.none_lost(devices).await?;
        ensure!(verdict.duplicated == 0, "{verdict}");
        Ok(())
    };
    cluster.story("rotation", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_wrong_secret_changes_nothing_and_the_right_one_after_it_is_served() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let user = User::new()?;
        let (first, second) = (user.sign(0x2000, &server_name(story))?, user.sign(0x2001, &server_name(story))?);
        user.publish(&world, &first, &first).await?;
        let fleet = world.gateway("gw", "{replicas: 1, tls: {selfSigned: null, secretName: serving}}").await?;
        fleet.ready().await?;
        let devices = fleet.devices(20, &Group { per_second: 20.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;

        // the new certificate with the old key
        user.publish(&world, &second, &first).await?;
        let degraded = |object: &Value| {
            condition(object, "Degraded").is_some_and(|each| {
                each["status"] == "True" && each["message"].as_str().is_some_and(|message| message.contains("serving"))
            })
        };
        fleet.until("status says that the Secret is wrong", SERVED_TIMEOUT, degraded).await?;
        let events = story.kubectl()?.args(["get", "events", "--output=yaml"]).output()?.stdout;
        ensure!(String::from_utf8_lossy(&events).contains("serving"), "no Event tells of the Secret");
        // the pods have seen it too by now, and serve what they had
        tokio::time::sleep(Duration::from_secs(12)).await;
        let late = fleet.devices(5, &Group::default()).await?;
        late.all_connected(CONNECTED_TIMEOUT).await?;

        user.publish(&world, &second, &second).await?;
        served(&fleet, &second).await?;
        let well = |object: &Value| condition(object, "Degraded").is_some_and(|each| each["status"] == "False");
        fleet.until("status says that all is well", SERVED_TIMEOUT, well).await?;
        ensure!(devices.lost() == 0, "a device was disconnected");
        late.finish().await?;
        fleet.none_lost(devices).await?;
        Ok(())
    };
    cluster.story("wrong-secret", test).await;
}
