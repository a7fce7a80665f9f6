//! The hub is away: that is said, no pod is made for it, and devices are let go only when it has been away too long, in pace.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Devices, Group, Losses},
    world::{World, condition},
};
use hub::domain::{Action, Fault};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(2);
/// Pods tell it within 2 s of a try to connect; those back off.
const SAID_TIMEOUT: Duration = Duration::from_secs(30);
/// As the fleet is declared.
const OUTAGE_MAX: Duration = Duration::from_secs(30);
/// After it pods announce that they will let devices go, for as long as an order to another may still hold.
const ANNOUNCED: Duration = Duration::from_secs(31);
const BUDGET: u64 = 10;
/// How long the hub is away: some devices go, and some do not.
const AWAY: Duration = Duration::from_secs(85);

const SPEC: &str = "{replicas: 2, reconnects: {perSecond: 10, drainTimeout: 60s}, \
     upstream: {limits: {outageMax: 30s}}, \
     scaling: {minReplicas: 2, maxReplicas: 6, connectionsPerReplica: 50, scaleDownAfter: 5m}}";

/// Why the hub is the bottleneck, if it is.
fn saturated(object: &Value) -> Option<&str> {
    condition(object, "UpstreamSaturated").filter(|condition| condition["status"] == "True")?["reason"].as_str()
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_hub_that_is_away_makes_no_pods_and_lets_devices_go_only_in_pace() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", SPEC).await?;
        fleet.ready().await?;
        let devices = fleet.devices(90, &Group { per_second: 45.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;

        let begun = Instant::now();
        let ms = u64::try_from(AWAY.as_millis())?;
        world.hub.inject(Fault::new(Action::RefuseListen { ms })).context("the hub refuses connections")?;
        let ends = Fault::new(Action::CloseConnection { condition: None });
        world.hub.inject(ends).context("the hub's connections end")?;
        fleet
            .until("status says that the hub is away", SAID_TIMEOUT, |object| saturated(object) == Some("Away"))
            .await?;
        let said = begun.elapsed().as_secs_f64();
        // a pod more, without a device, has not seen that the hub is away
        let three = json!({"spec": {"replicas": 3}});
        fleet.api().patch("gw", &PatchParams::default(), &Patch::Merge(three)).await?;
        let three = |object: &Value| object["status"]["readyReplicas"] == 3;
        let object = fleet.until("a third pod is ready", SAID_TIMEOUT, three).await?;
        ensure!(saturated(&object) == Some("Away"), "it hides that the hub is away: {}", object["status"]);
        ensure!(devices.lost() == 0, "{} were let go after {said:.1} s of outage", devices.lost());
        let gone = |devices: &Devices| devices.lost() > 0;
        devices.until("devices are let go", AWAY, gone).await?;
        let kept = begun.elapsed();
        ensure!(kept >= OUTAGE_MAX + ANNOUNCED, "devices were let go after {kept:?}");
        let object = fleet.object().await?;
        ensure!(object["spec"]["replicas"].as_i64() <= Some(3), "the fleet was scaled out: {}", object["status"]);

        let back = AWAY.saturating_sub(begun.elapsed()) + CONNECTED_TIMEOUT;
        devices.until("all are back", back, |devices| devices.connected() == devices.count).await?;
        fleet.until("status says that the hub is well", SAID_TIMEOUT, |object| saturated(object).is_none()).await?;
        let acknowledged = devices.total(|second| second.acknowledged);
        let goes_on = |devices: &Devices| devices.total(|second| second.acknowledged) > acknowledged + 90;
        devices.until("messages go on", CONNECTED_TIMEOUT, goes_on).await?;
        let (verdict, outcome) = fleet.finish_after_faults(devices).await?;
        let losses = Losses::since(begun, &[&outcome]);
        xtask::step::say(&format!(
            "said after {said:.1} s; the first was let go after {:.1} s; {losses}, of {BUDGET} allowed",
            kept.as_secs_f64()
        ));
        losses.within(BUDGET)?;
        // what was in flight when the hub's connections ended may be stored without a word of it
        let most = 90 * 8;
        ensure!(verdict.duplicated <= most, "{verdict}; {most} may be duplicated");
        Ok(())
    };
    cluster.story("hub-away", test).await;
}
