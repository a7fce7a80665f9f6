//! From nothing to messages at the hub, as a user does it.

use std::time::Duration;

use anyhow::ensure;
use cluster::{
    Cluster, Story,
    devices::Group,
    world::{World, condition},
};

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(1);
/// Whatever number of seconds or minutes.
const AGE: &str = "age";

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn helm_install_then_a_protocol_gateway_then_devices_send_and_nothing_is_lost() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        world.installed.test()?;
        let declared = std::time::Instant::now();
        let fleet = world.gateway("gw", "replicas: 2").await?;
        fleet.ready().await?;
        let devices = fleet.devices(50, &Group { per_second: 100.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        xtask::step::say(&format!("from apply to 50 devices connected: {:.1} s", declared.elapsed().as_secs_f64()));
        devices
            .until("1000 messages are acknowledged", CONNECTED_TIMEOUT, |devices| {
                devices.total(|second| second.acknowledged) >= 1000
            })
            .await?;

        let gateway = fleet.until("status counts the devices", CONNECTED_TIMEOUT, counts(50)).await?;
        ensure!(gateway["status"]["replicas"] == 2, "{}", gateway["status"]);
        let served = condition(&gateway, "CertificateServed").is_some_and(|each| each["status"] == "True");
        ensure!(served, "{}", gateway["status"]);
        let hosts: std::collections::BTreeSet<_> =
            fleet.pods().await?.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
        ensure!(hosts.len() == 2, "both pods are on {hosts:?}");

        let short =
            [["NAME", "READY", "CONNECTIONS", "REPLICAS", "DESIRED", "AGE"], ["gw", "True", "50", "2", "2", AGE]];
        ensure!(table(story, &[])? == short.map(|row| row.map(str::to_owned).to_vec()));
        let wide = [
            ["NAME", "READY", "CONNECTIONS", "REPLICAS", "DESIRED", "REASON", "DEGRADED", "AGE"],
            ["gw", "True", "50", "2", "2", "PodsReady", "AsDesired", AGE],
        ];
        ensure!(table(story, &["--output=wide"])? == wide.map(|row| row.map(str::to_owned).to_vec()));

        ensure!(devices.lost() == 0, "a device was disconnected");
        let verdict = fleet.none_lost(devices).await?;
        ensure!(verdict.duplicated == 0, "{verdict}");
        Ok(())
    };
    cluster.story("install", test).await;
}

/// Whether status tells of so many connections.
fn counts(connections: u64) -> impl Fn(&serde_json::Value) -> bool {
    move |gateway| gateway["status"]["connections"] == connections
}

/// All that `kubectl get pgw` prints, word by word; an age is [`AGE`].
fn table(story: &Story, arguments: &[&str]) -> anyhow::Result<Vec<Vec<String>>> {
    let output = story.kubectl()?.args(["get", "pgw"]).args(arguments).output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    xtask::step::say(&format!("kubectl get pgw {}\n{text}", arguments.join(" ")));
    let is_age = |word: &str| word.starts_with(|first: char| first.is_ascii_digit()) && word.ends_with(['s', 'm']);
    let word = |word: &str| if is_age(word) { AGE } else { word }.to_owned();
    Ok(text.lines().map(|line| line.split_whitespace().map(word).collect()).collect())
}
