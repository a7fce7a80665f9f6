//! The CA that signs devices' certificates is replaced: whom it no longer vouches for goes, in pace, and nobody else.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Devices, Group, Losses},
    world::{Fleet, World, condition},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::Value;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// The kubelet writes a changed Secret within some seconds, and the gateway looks every few.
const FOLLOWED_TIMEOUT: Duration = Duration::from_mins(1);
/// 60 devices at 4 a second, and orders that are given again.
const GONE_TIMEOUT: Duration = Duration::from_mins(2);
/// Devices per second that may be told to reconnect, by all pods together.
const BUDGET: u64 = 4;

const SPEC: &str = "{replicas: 2, reconnects: {perSecond: 4, drainTimeout: 2m}, \
     authentication: {sas: {verify: Local}, x509: {clientCASecretName: device-ca}}, \
     upstream: {iotHub: {policy: {name: device, secretName: hub-policy}}}}";

/// Who signs devices' certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(Vec::<String>::new())?;
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let pem = parameters.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(parameters, key) })
    }

    /// Certificate and key of a device.
    fn sign(&self, device: &str) -> anyhow::Result<(String, String)> {
        let key = KeyPair::generate()?;
        let mut parameters = CertificateParams::new(Vec::<String>::new())?;
        parameters.distinguished_name.push(DnType::CommonName, device);
        Ok((parameters.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// New devices that are let in by their certificates alone, each a message a second.
    async fn devices(&self, world: &World<'_>, fleet: &Fleet<'_>, count: usize) -> anyhow::Result<Devices> {
        let mut logins = world.register(count)?;
        for login in &mut logins {
            login.password = None;
        }
        let identities: Vec<_> =
            logins.iter().map(|login| self.sign(&login.client_id)).collect::<anyhow::Result<_>>()?;
        let group = Group { per_second: count as f64, ..Group::default() };
        let devices = Devices::start_as(&fleet.target("mqtts").await?, logins, &identities, &group)?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        Ok(devices)
    }
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn devices_of_a_ca_that_is_trusted_no_more_are_let_go_within_the_budget_and_nobody_else() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let (old, new) = (Authority::new("old CA")?, Authority::new("new CA")?);
        let policy = world.hub.policy_connection_string("device").context("the hub has this policy")?;
        let key = policy.split_once("SharedAccessKey=").context("a connection string has a key")?.1;
        world.secret("hub-policy", &[("key", key)]).await?;
        world.secret("device-ca", &[("ca.crt", &format!("{}{}", old.pem, new.pem))]).await?;
        let fleet = world.gateway("gw", SPEC).await?;
        fleet.ready().await?;
        let stay = new.devices(&world, &fleet, 40).await?;
        let go = old.devices(&world, &fleet, 60).await?;
        let pods = fleet.pod_names().await?;

        world.secret("device-ca", &[("ca.crt", &new.pem)]).await?;
        let begun = Instant::now();
        let object = fleet.until("status says who goes", FOLLOWED_TIMEOUT, |object| says_why(object) == 2).await?;
        let says = condition(&object, "Draining").context("there is such a condition")?["message"].clone();
        let said = begun.elapsed().as_secs_f64();
        go.until("they are gone", GONE_TIMEOUT, |devices| devices.connected() == 0 && devices.lost() >= 60).await?;
        let gone = begun.elapsed().as_secs_f64();
        fleet.until("status says that it is over", GONE_TIMEOUT, is_over).await?;

        ensure!(stay.lost() == 0, "{} devices of the CA that is trusted were disconnected", stay.lost());
        ensure!(stay.connected() == 40, "{} of 40 are connected", stay.connected());
        ensure!(fleet.pod_names().await? == pods, "pods were replaced for a CA");
        for (metric, expected) in [
            ("gateway_let_go_total{cause=\"certificate_authority\"}", 60.0),
            ("gateway_distrusted_connections", 0.0),
            ("gateway_connections", 40.0),
        ] {
            let counted = fleet.metric(metric).await?;
            ensure!((counted - expected).abs() < 0.5, "{metric} is {counted} on all pods together, not {expected}");
        }
        fleet.none_lost(stay).await?;
        let (_, went) = fleet.finish(go).await?;
        let losses = Losses::since(begun, &[&went]);
        xtask::step::say(&format!(
            "status told it after {said:.1} s: {says}; all 60 were gone after {gone:.1} s: {losses}, of {BUDGET} allowed"
        ));
        ensure!(losses.all == 60, "60 devices lost {} connections: some came back", losses.all);
        losses.within(BUDGET)
    };
    cluster.story("authority", test).await;
}

/// Pods that let devices go for this reason.
fn says_why(object: &Value) -> usize {
    let drains = object["status"]["drains"].as_array().into_iter().flatten();
    let draining = condition(object, "Draining").is_some_and(|condition| condition["status"] == "True");
    if draining { drains.filter(|drain| drain["cause"] == "CertificateAuthority").count() } else { 0 }
}

fn is_over(object: &Value) -> bool {
    let drains = object["status"]["drains"].as_array();
    drains.is_none_or(Vec::is_empty) && object["status"]["connections"] == 40
}
