//! Asking pods, over real sockets: fake admin ports on loopback, with mutual TLS, that share no code with the gateway.

mod support;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crds::status::DrainCause;
use operator::{
    metrics::Metrics,
    pods::{Counters, Fleet, Measured, Order, OrderError, Pods, Report, Target},
};
use serde_json::json;
use support::{
    admin::{FakePod, load},
    pki::Pki,
};
use tokio::time::{sleep, timeout};

/// Everything here takes a second or two; a busy machine takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    pki: Pki,
    pods: Pods,
    metrics: Metrics,
    fleet: Fleet,
}

impl World {
    fn new() -> Self {
        let metrics = Metrics::new();
        let pods = Pods::new(Counters::new(&metrics));
        Self { pki: Pki::new(), pods, metrics, fleet: Fleet::new("plants", "a") }
    }

    fn watch(&self, pods: &[&FakePod]) {
        let targets = pods.iter().map(|pod| target(pod)).collect();
        self.pods.watch(&self.fleet, targets, &self.pki.client("operator"));
    }

    async fn until(&self, what: &str, met: impl Fn(&BTreeMap<String, Report>, &Measured) -> bool) -> Measured {
        let begun = Instant::now();
        loop {
            let (reports, measured) = (self.pods.reports(&self.fleet), self.pods.measured(&self.fleet));
            let measured = measured.expect("it is watched");
            if met(&reports, &measured) {
                return measured;
            }
            assert!(begun.elapsed() < PATIENCE, "not seen: {what}; {measured:?} {reports:?}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

fn target(pod: &FakePod) -> Target {
    Target {
        pod: pod.name.clone(),
        uid: format!("uid-of-{}", pod.name),
        address: pod.address.ip(),
        admin_port: pod.address.port(),
        listeners_tls_ports: Vec::new(),
        server_name: "control.a.plants".to_owned(),
        known: None,
    }
}

#[tokio::test]
async fn every_pod_is_asked_over_one_connection_and_a_silent_one_keeps_its_last_value() {
    let world = World::new();
    let (a, b) = (FakePod::start("a", &world.pki).await, FakePod::start("b", &world.pki).await);
    a.say(load(5));
    b.say(load(7));
    world.watch(&[&a, &b]);
    world.until("both answers", |_, measured| measured.connections == 12).await;
    a.say(load(50));
    world.until("the new number", |_, measured| measured.connections == 57).await;
    let asked = a.asked();
    sleep(Duration::from_secs(2)).await;
    assert!(a.asked() > asked, "it is asked again and again");
    assert_eq!((a.connections(), b.connections()), (1, 1), "over one connection");

    b.stop();
    let measured = world.until("the silence", |_, measured| measured.stale == 1).await;
    assert_eq!(measured.connections, 57, "a silent pod counts as it was");
    let reports = world.pods.reports(&world.fleet);
    assert!(reports["b"].is_stale() && reports["b"].problem.is_some() && !reports["a"].is_stale());
    world.watch(&[&a]);
    world.until("that it is gone", |reports, measured| measured.connections == 50 && reports.len() == 1).await;
    world.pods.forget(&world.fleet);
    assert_eq!(world.pods.measured(&world.fleet), None);
}

#[tokio::test]
async fn nonsense_is_refused_and_counted_and_the_last_good_answer_stays() {
    let world = World::new();
    let pod = FakePod::start("a", &world.pki).await;
    pod.say(load(5));
    world.watch(&[&pod]);
    world.until("the answer", |_, measured| measured.connections == 5).await;
    let mut negative = load(0);
    negative["connections"] = json!(-1);
    let too_long = format!("{}{}", load(0), " ".repeat(70_000));
    for (text, said) in [
        (negative.to_string(), "invalid value"),
        ("ready".to_owned(), "expected value"),
        (load(2_000_000_000).to_string(), "above"),
        (too_long, "more than 65536 bytes"),
    ] {
        pod.say_text(&text);
        let refused = |reports: &BTreeMap<String, Report>, _: &Measured| {
            reports["a"].problem.as_ref().is_some_and(|problem| problem.contains(said))
        };
        let measured = world.until(said, refused).await;
        assert_eq!(measured.connections, 5, "{said}");
        pod.say(load(5));
        world.until("a good answer", |reports, _| reports["a"].problem.is_none()).await;
    }
    let metrics = world.metrics.text();
    assert!(metrics.contains("operator_pod_asks_total{result=\"nonsense\"} 4"), "{metrics}");
    assert!(metrics.contains("operator_pods_watched 1"), "{metrics}");
}

#[tokio::test]
async fn who_is_not_the_operator_is_not_answered() {
    let world = World::new();
    let pod = FakePod::start("a", &world.pki).await;
    pod.say(load(5));
    world.pods.watch(&world.fleet, vec![target(&pod)], &Pki::new().client("operator"));
    world.until("the refusal", |reports, _| reports["a"].problem.is_some()).await;
    let other = Target { server_name: "control.b.plants".to_owned(), uid: "other".to_owned(), ..target(&pod) };
    world.pods.watch(&world.fleet, vec![other], &world.pki.client("operator"));
    let wrong_name = |reports: &BTreeMap<String, Report>, _: &Measured| {
        reports["a"].problem.as_ref().is_some_and(|problem| problem.contains("control.b.plants"))
    };
    let measured = world.until("the wrong name", wrong_name).await;
    assert_eq!((measured.connections, pod.asked()), (0, 0));
}

#[tokio::test]
async fn orders_go_the_way_that_the_pod_is_asked_and_are_answered_as_the_pod_decides() {
    let world = World::new();
    let pod = FakePod::start("a", &world.pki).await;
    world.watch(&[&pod]);
    world.until("the answer", |reports, _| reports["a"].load.is_some()).await;
    let order = |epoch| Order::Drain {
        cause: DrainCause::ScaleIn,
        epoch,
        per_second: 2.5,
        lease_seconds: 10.0,
        down_to: 3,
        leave: true,
    };
    let answered = world.pods.order(&world.fleet, "a", order(7)).await.expect("it is taken");
    assert_eq!(answered.drain.as_ref().map(|drain| drain.epoch), Some(7));
    assert!(world.pods.reports(&world.fleet)["a"].load.as_ref().is_some_and(|load| load.drain.is_some()));
    assert_eq!(pod.orders()[0]["perSecond"], json!(2.5));
    let fenced = world.pods.order(&world.fleet, "a", order(6)).await;
    assert!(matches!(fenced, Err(OrderError::Fenced(_))), "{fenced:?}");
    let refused = world.pods.order(&world.fleet, "a", Order::Undrain { epoch: -1 }).await;
    assert!(matches!(refused, Err(OrderError::Refused(_))), "{refused:?}");
    let undone = world.pods.order(&world.fleet, "a", Order::Undrain { epoch: 7 }).await.expect("it is taken");
    assert_eq!(undone.drain, None);
    let nobody = world.pods.order(&world.fleet, "b", order(8)).await;
    assert!(matches!(nobody, Err(OrderError::Unknown)), "{nobody:?}");
    assert_eq!(pod.connections(), 1);
    pod.stop();
    let silent = world.pods.order(&world.fleet, "a", order(9)).await;
    assert!(matches!(silent, Err(OrderError::Unreachable(_))), "{silent:?}");
    assert!(world.metrics.text().contains("operator_pod_orders_total{result=\"fenced\"} 1"));
}

#[tokio::test]
async fn the_served_certificate_is_seen_and_a_new_one_soon() {
    let world = World::new();
    let pod = FakePod::start("a", &world.pki).await;
    let listener = FakePod::start("listener", &world.pki).await;
    let seen = |serial: String| {
        move |reports: &BTreeMap<String, Report>, _: &Measured| {
            reports["a"].served.as_ref().is_some_and(|certificate| certificate.serial == serial)
        }
    };
    let target = Target { listeners_tls_ports: vec![listener.address.port()], ..target(&pod) };
    world.pods.watch(&world.fleet, vec![target], &world.pki.client("operator"));
    world.until("the certificate", seen(listener.serial())).await;
    let before = listener.serial();
    listener.renew(&world.pki);
    assert_ne!(before, listener.serial());
    world.pods.recheck(&world.fleet);
    world.until("the new certificate", seen(listener.serial())).await;
    assert_eq!(listener.asked(), 0, "it is looked at and not asked");
}

#[tokio::test]
async fn what_is_new_is_told_and_what_stays_the_same_is_not() {
    let world = World::new();
    let pod = FakePod::start("a", &world.pki).await;
    pod.say(load(100));
    world.watch(&[&pod]);
    assert_eq!(timeout(PATIENCE, world.pods.changed()).await.expect("it answered"), world.fleet);
    assert!(timeout(Duration::from_secs(3), world.pods.changed()).await.is_err(), "nothing is new");
    let mut throttled = load(100);
    throttled["upstream"]["throttled"] = json!(true);
    pod.say(throttled);
    assert_eq!(timeout(PATIENCE, world.pods.changed()).await.expect("its hub throttles"), world.fleet);
}

/// Prints what 200 pods cost, and holds the freshness that the metrics API promises.
#[test]
fn two_hundred_pods_are_fresh_within_two_seconds_and_cost_little() {
    const PODS: usize = 200;
    const MEASURED: Duration = Duration::from_secs(5);
    let (ready, started) = std::sync::mpsc::channel();
    let (over, wait) = tokio::sync::oneshot::channel::<()>();
    // the fake pods are somebody else's thread: its CPU is not counted
    let servers = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let pki = Pki::new();
            let mut pods = Vec::new();
            for number in 0..PODS {
                let pod = FakePod::start(&format!("pod-{number}"), &pki).await;
                pod.say(load(25));
                pods.push(pod);
            }
            let targets: Vec<Target> = pods.iter().map(target).collect();
            ready.send((targets, pki.client("operator"))).expect("the test waits");
            let _ = wait.await;
            pods.iter().map(FakePod::connections).max()
        })
    });
    let (targets, client) = started.recv().expect("the pods run");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (cpu, oldest) = runtime.block_on(async {
        let world = World::new();
        world.pods.watch(&world.fleet, targets, &client);
        world.until("all answers", |_, measured| measured.connections == 25 * PODS as u64).await;
        sleep(Duration::from_secs(2)).await;
        let (before, begun) = (support::thread_cpu(), Instant::now());
        let mut oldest = Duration::ZERO;
        while begun.elapsed() < MEASURED {
            sleep(Duration::from_millis(250)).await;
            let reports = world.pods.reports(&world.fleet);
            oldest = oldest.max(reports.values().map(|report| report.stale_for).max().expect("there are pods"));
        }
        ((support::thread_cpu() - before).as_secs_f64() / begun.elapsed().as_secs_f64(), oldest)
    });
    drop(over);
    let connections = servers.join().expect("the pods end");
    println!("{PODS} pods asked every second: {:.1} ms of CPU per second; oldest answer {oldest:?}", cpu * 1000.0);
    assert!(oldest <= Duration::from_secs(2), "{oldest:?}");
    assert_eq!(connections, Some(1), "one connection each");
    assert!(cpu < 0.5, "half a core for {PODS} pods");
}
