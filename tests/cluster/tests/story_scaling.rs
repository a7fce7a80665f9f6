//! The fleet follows the number of connections, and nobody is let go faster than the user allowed.

mod watch;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use cluster::{
    Cluster, Story,
    devices::{Devices, Group, Losses},
    world::{Fleet, World, condition},
};
use hub::domain::{Action, Fault};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use self::watch::Watch;

const CONNECTED_TIMEOUT: Duration = Duration::from_mins(2);
/// New pods must be made and become ready; those that go are drained at the budget, one HPA period after the other.
const GROWN_TIMEOUT: Duration = Duration::from_mins(3);
const SHRUNK_TIMEOUT: Duration = Duration::from_mins(6);
/// The autoscaler's default period of 15 s, the 2 s that a figure may be old, and what a busy machine takes.
const ASKED_TIMEOUT: Duration = Duration::from_secs(15 + 2 + 5);
/// A pod is made, started and asked whether it is ready.
const POD_TIMEOUT: Duration = Duration::from_secs(20);
/// Devices per second that may be told to reconnect.
const BUDGET: u64 = 20;

const SPEC: &str = "{replicas: 2, reconnects: {perSecond: 20, drainTimeout: 60s}, \
     scaling: {minReplicas: 2, maxReplicas: 8, connectionsPerReplica: 50, scaleDownAfter: 20s}}";

fn spec_replicas(object: &Value) -> i64 {
    object["spec"]["replicas"].as_i64().unwrap_or(-1)
}

fn ready_replicas(object: &Value) -> i64 {
    object["status"]["readyReplicas"].as_i64().unwrap_or(0)
}

fn has_pods(wanted: i64) -> impl Fn(&Value) -> bool {
    move |object| {
        let replicas = object["status"]["replicas"].as_i64().unwrap_or(0);
        spec_replicas(object) == wanted && replicas == wanted && ready_replicas(object) == wanted
    }
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn three_hundred_devices_make_the_fleet_grow_to_six_and_when_two_hundred_leave_it_shrinks_to_two() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let spread = SPEC.replace("drainTimeout: 60s", "drainTimeout: 60s, rebalance: {skewMax: 1.15}");
        let fleet = world.gateway("gw", &spread).await?;
        fleet.ready().await?;
        let watch = Watch::begin(story, "gw");
        let group = |per_second| Group { per_second, ..Group::default() };
        let begun = Instant::now();
        // all equally busy: the most silent are moved first, and both kinds are to be everywhere
        let stay = fleet.devices(100, &group(50.0)).await?;
        let leave = fleet.devices(200, &group(100.0)).await?;
        grows(&fleet, begun, &[&stay, &leave]).await?;
        // whoever goes then has devices that stay
        spreads(&fleet, &[&stay, &leave]).await?;
        ensure!(watch.ended().await.is_empty(), "a pod went although six are wanted");

        let (_, left) = fleet.finish(leave).await?;
        let shrinks = Instant::now();
        fleet.until("two pods are left", SHRUNK_TIMEOUT, has_pods(2)).await?;
        let took = shrinks.elapsed().as_secs_f64();
        stay.all_connected(CONNECTED_TIMEOUT).await?;
        watch.all_left_empty().await?;
        let (ordered, went) = (watch.ordered().await, watch.ended().await.len());
        let (_, stayed) = fleet.finish(stay).await?;
        let (all, shrinking) = (Losses::since(begun, &[&stayed, &left]), Losses::since(shrinks, &[&stayed]));
        let moved = shrinking.all;
        let times = stayed.devices.iter().map(|device| device.lost_at.iter().filter(|at| **at >= shrinks).count());
        let times = times.max().unwrap_or(0);
        xtask::step::say(&format!(
            "two pods {took:.1} s after 200 had left: {shrinking}, of 100 devices, none more than {times} times; \
             in the whole story {all}, of {BUDGET} allowed"
        ));
        all.within(BUDGET)?;
        ensure!(moved >= 40, "the pods that went had {moved} devices: nothing is shown by that");
        ensure!(moved == ordered, "{moved} connections were lost, and drains were to let {ordered} go");
        // the autoscaler takes pod by pod: who comes to the next one that goes is moved again, but never twice from one pod
        ensure!(times <= went, "a device was moved {times} times by {went} pods that went");
        Ok(())
    };
    cluster.story("grow-and-shrink", test).await;
}

/// 300 devices at 50 a pod make six of two; growing disconnects nobody.
async fn grows(fleet: &Fleet<'_>, begun: Instant, groups: &[&Devices]) -> anyhow::Result<()> {
    fleet.until("six pods are asked for", GROWN_TIMEOUT, |object| spec_replicas(object) == 6).await?;
    let asked = begun.elapsed().as_secs_f64();
    fleet.until("six pods are ready", GROWN_TIMEOUT, has_pods(6)).await?;
    let ready = begun.elapsed().as_secs_f64();
    xtask::step::say(&format!("from the first of 300 devices to /scale = 6: {asked:.1} s, to six ready: {ready:.1} s"));
    for group in groups {
        group.all_connected(CONNECTED_TIMEOUT).await?;
        ensure!(group.lost() == 0, "growing disconnected somebody");
    }
    Ok(())
}

/// Waits until all six pods have their part of the devices, and asks for no more of that: what moves devices from then on is
/// that pods go.
async fn spreads(fleet: &Fleet<'_>, groups: &[&Devices]) -> anyhow::Result<()> {
    let begun = Instant::now();
    let even = |object: &Value| skew(object).is_some_and(|skew| skew <= 1.15) && no_drains(object);
    fleet.until("the fleet is even", SHRUNK_TIMEOUT, even).await?;
    for group in groups {
        group.all_connected(CONNECTED_TIMEOUT).await?;
    }
    let moved: u64 = groups.iter().map(|group| group.lost()).sum();
    xtask::step::say(&format!("even after {:.1} s, {moved} moves of 300 devices", begun.elapsed().as_secs_f64()));
    let no_more = json!({"spec": {"reconnects": {"rebalance": null}}});
    fleet.api().patch(&fleet.name, &PatchParams::default(), &Patch::Merge(no_more)).await?;
    Ok(())
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn the_pod_for_the_51st_connection_is_ready_within_the_periods_of_the_autoscaler() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let spec = "{replicas: 1, reconnects: {perSecond: 20, drainTimeout: 60s}, \
             scaling: {minReplicas: 1, maxReplicas: 4, connectionsPerReplica: 50, scaleDownAfter: 60s}}";
        let fleet = world.gateway("gw", spec).await?;
        fleet.ready().await?;
        let first = fleet.devices(50, &Group::default()).await?;
        first.all_connected(CONNECTED_TIMEOUT).await?;
        // at no fixed moment of the autoscaler's period, which began with the fleet
        let moment = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() % 15_000;
        tokio::time::sleep(Duration::from_secs(6) + Duration::from_millis(u64::try_from(moment)?)).await;
        ensure!(spec_replicas(&fleet.object().await?) == 1, "50 connections need no second pod");
        // over the autoscaler's tolerance of a tenth
        let more = fleet.devices(6, &Group::default()).await?;
        let begun = Instant::now();
        more.all_connected(CONNECTED_TIMEOUT).await?;
        fleet.until("a second pod is asked for", ASKED_TIMEOUT, |object| spec_replicas(object) == 2).await?;
        let asked = begun.elapsed().as_secs_f64();
        fleet.until("the second pod is ready", POD_TIMEOUT, has_pods(2)).await?;
        xtask::step::say(&format!(
            "from the 51st connection to /scale = 2: {asked:.1} s; to the pod ready: {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    };
    cluster.story("reaction", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn after_more_pods_were_made_devices_are_moved_until_the_fleet_is_even() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let spec = |replicas: u32| {
            format!(
                "{{replicas: {replicas}, reconnects: {{perSecond: 20, drainTimeout: 60s, rebalance: {{skewMax: 1.15}}}}}}"
            )
        };
        let fleet = world.gateway("gw", &spec(2)).await?;
        fleet.ready().await?;
        let devices = fleet.devices(200, &Group { per_second: 50.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        fleet.declare(&spec(4)).await?;
        let begun = Instant::now();
        fleet.until("four pods are ready", GROWN_TIMEOUT, |object| ready_replicas(object) == 4).await?;
        let moving = fleet.until("devices are moved to them", GROWN_TIMEOUT, drains).await?;
        let (planned, planned_at) = (time_to_be_even(&moving)?, Instant::now());
        fleet
            .until("the fleet is even", SHRUNK_TIMEOUT, |object| skew(object).is_some_and(|skew| skew <= 1.15))
            .await?;
        let moved_for = planned_at.elapsed();
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let moved = devices.lost();
        xtask::step::say(&format!(
            "even after {:.1} s, {moved} moves in {:.1} s of {} s planned at most",
            begun.elapsed().as_secs_f64(),
            moved_for.as_secs_f64(),
            planned.as_secs()
        ));
        ensure!(moved_for <= planned, "it took longer than the plan said");
        ensure!(moved > 0, "nobody was moved");
        // and it rests
        fleet.until("nothing is drained", SHRUNK_TIMEOUT, no_drains).await?;
        let rested = devices.lost();
        tokio::time::sleep(Duration::from_secs(20)).await;
        ensure!(devices.lost() == rested, "devices are moved although the fleet is even");
        let (_, outcome) = fleet.finish(devices).await?;
        Losses::since(begun, &[&outcome]).within(BUDGET)?;
        Ok(())
    };
    cluster.story("rebalance", test).await;
}

/// How long the plan gives itself at most, as the condition says it.
fn time_to_be_even(object: &Value) -> anyhow::Result<Duration> {
    let condition = condition(object, "Rebalancing").context("it has the condition")?;
    let message = condition["message"].as_str().context("it has a message")?;
    let seconds = message.split("tried for ").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(Duration::from_secs(seconds.with_context(|| format!("no time in {message:?}"))?.parse()?))
}

/// The fullest pod's devices over the mean; absent while not every pod is counted.
fn skew(object: &Value) -> Option<f64> {
    let pods = object["status"]["pods"].as_array()?;
    let counts: Vec<f64> = pods.iter().map(|pod| pod["connections"].as_f64()).collect::<Option<_>>()?;
    let mean = counts.iter().sum::<f64>() / counts.len() as f64;
    (mean > 0.0).then(|| counts.iter().fold(0.0f64, |most, count| most.max(*count)) / mean)
}

fn no_drains(object: &Value) -> bool {
    object["status"]["drains"].as_array().is_none_or(Vec::is_empty)
}

fn drains(object: &Value) -> bool {
    !no_drains(object)
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn when_more_pods_are_wanted_in_the_middle_of_a_drain_it_is_undone() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        // slow: so that there is a middle
        let spec = |replicas: u32| format!("{{replicas: {replicas}, reconnects: {{perSecond: 2, drainTimeout: 5m}}}}");
        let fleet = world.gateway("gw", &spec(3)).await?;
        fleet.ready().await?;
        let watch = Watch::begin(story, "gw");
        let devices = fleet.devices(150, &Group { per_second: 30.0, ..Group::default() }).await?;
        devices.all_connected(CONNECTED_TIMEOUT).await?;
        let begun = Instant::now();
        fleet.declare(&spec(2)).await?;
        fleet.until("a pod is drained", CONNECTED_TIMEOUT, drains).await?;
        let lost = |devices: &Devices| devices.lost() >= 5;
        devices.until("devices are let go", CONNECTED_TIMEOUT, lost).await?;
        fleet.declare(&spec(3)).await?;
        fleet
            .until("the drain is undone", CONNECTED_TIMEOUT, |object| no_drains(object) && ready_replicas(object) == 3)
            .await?;
        let undone = devices.lost();
        tokio::time::sleep(Duration::from_secs(10)).await;
        ensure!(devices.lost() == undone, "the pod goes on draining");
        ensure!(watch.ended().await.is_empty(), "a pod was taken all the same");
        let (_, outcome) = fleet.finish(devices).await?;
        Losses::since(begun, &[&outcome]).within(2)?;
        Ok(())
    };
    cluster.story("raised", test).await;
}

#[tokio::test]
#[ignore = "level cluster: cargo xtask test cluster"]
async fn a_hub_that_throttles_does_not_make_the_fleet_grow() {
    let cluster = Cluster::nodes().await.expect("a cluster");
    let test = async |story: &Story| {
        let world = World::begin(story).await?;
        let fleet = world.gateway("gw", SPEC).await?;
        fleet.ready().await?;
        let group = Group { per_second: 60.0, ..Group::default() };
        let first = fleet.devices(60, &group).await?;
        first.all_connected(CONNECTED_TIMEOUT).await?;
        let throttle = Action::Throttle { ms: 50 };
        let fault = world.hub.inject(Fault::new(throttle)).context("the hub takes the fault")?;
        let limited = |object: &Value| {
            condition(object, "UpstreamSaturated").is_some_and(|condition| condition["status"] == "True")
        };
        fleet.until("status says that the hub throttles", CONNECTED_TIMEOUT, limited).await?;
        // more connections than two pods are to hold
        let more = fleet.devices(100, &Group::default()).await?;
        tokio::time::sleep(Duration::from_secs(30)).await;
        let object = fleet.object().await?;
        ensure!(spec_replicas(&object) == 2, "the fleet was scaled out: {}", object["status"]);
        world.hub.faults().remove(fault);
        fleet.until("the fleet grows once the hub is well", GROWN_TIMEOUT, |object| spec_replicas(object) >= 3).await?;
        drop(more);
        let (verdict, _) = fleet.finish_after_faults(first).await?;
        // The hub stores nothing of what it refuses. Twice goes only what it stored behind a message that it had refused, or whose
        // PUBACK the end of the connection overtook: at most a window of each device, when the trouble begins or ends.
        let most = 60 * group.window as u64;
        ensure!(verdict.duplicated <= most, "{verdict}; {most} may be duplicated");
        Ok(())
    };
    cluster.story("throttled", test).await;
}
