//! Many faults at once, chosen by a seed: whatever happens, an accepted message is at the hub, each message has one
//! outcome, and a device's messages arrive in its order.

use std::{collections::HashSet, time::Duration};

use gateway_core::{auth::Verdict, session::effect::Slot};
use hub::{
    HubConfig,
    domain::{Action, Fault, Point},
};

use crate::support::{Device, Verify, World, on_a_core, until};

const DEVICES: u64 = 8;
const MESSAGES: u64 = 120;

fn detach(condition: &str) -> Action {
    Action::Detach { condition: condition.into(), redirect: None }
}

/// Every way to fail that a device is to survive.
fn faults(seed: u64) -> Vec<Fault> {
    let close = |condition: Option<&str>| Action::CloseConnection { condition: condition.map(Into::into) };
    let at = |action, point, probability| Fault::new(action).at(point).probability(probability, seed);
    vec![
        at(close(None), Point::Telemetry, 0.003).count(4),
        at(close(Some("amqp:connection:forced")), Point::Telemetry, 0.003).count(4),
        at(detach("amqp:link:detach-forced"), Point::Telemetry, 0.01).count(10),
        at(Action::Delay { ms: 10 }, Point::Telemetry, 0.05),
        at(detach("amqp:internal-error"), Point::Attach, 0.1).count(10),
        at(close(None), Point::Attach, 0.02).count(2),
        at(Action::Cbs { status: 0, ms: 30 }, Point::Cbs, 0.3),
        at(close(None), Point::Cbs, 0.05).count(1),
    ]
}

async fn admitted(world: &World, upstream: &gateway::upstream::Upstream, id: &str, verify: Verify) -> Device {
    loop {
        // refused while the hub is away: an SDK tries again
        let Ok(device) = Device::try_open(upstream, id) else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        if verify == Verify::Local {
            return device;
        }
        let (token, expires) = world.token(id);
        device.link.authorize(&token, expires);
        if let Verdict::Allowed { .. } = device.verdict().await {
            return device;
        }
    }
}

/// One device: sends everything, with a window and a departure in the middle.
async fn live(world: &World, upstream: &gateway::upstream::Upstream, n: u64, verify: Verify) {
    let id = format!("d{n}");
    let window = 1 + 3 * n as u16;
    let device = admitted(world, upstream, &id, verify).await;
    device.send_all("first-", MESSAGES / 2, window).await;
    device.send(Slot::WILL.0, "will");
    drop(device);
    let device = admitted(world, upstream, &id, verify).await;
    device.send_all("second-", MESSAGES / 2, window).await;
}

/// How many messages went more than once.
fn survives(seed: u64, verify: Verify) -> u64 {
    let metrics = std::cell::RefCell::new(None);
    on_a_core(async {
        let world = World::with(verify, HubConfig::default(), |limits| {
            (limits.devices_per_connection_max, limits.connections_max) = (3, 30);
        });
        for n in 0..DEVICES {
            world.hub().add_device(&format!("d{n}")).unwrap();
        }
        metrics.replace(Some(world.metrics.clone()));
        for fault in faults(seed) {
            world.inject(fault);
        }
        let upstream = world.upstream();
        let lives: Vec<_> = (0..DEVICES).map(|n| live(&world, &upstream, n, verify)).collect();
        join_all(lives).await;
        for n in 0..DEVICES {
            let id = format!("d{n}");
            until("the will is there", || world.accepted(&id).contains(&"will".to_owned())).await;
            for prefix in ["first-", "second-"] {
                let mut seen = HashSet::new();
                let mut firsts = world.accepted(&id);
                firsts.retain(|message| message.starts_with(prefix) && seen.insert(message.clone()));
                let all: Vec<String> = (0..MESSAGES / 2).map(|n| format!("{prefix}{n}")).collect();
                assert_eq!(firsts, all, "seed {seed}, {id}");
            }
        }
        until("nothing is in flight", || world.metrics.up.inflight.get() == 0).await;
        upstream.shutdown(Duration::from_secs(30)).await;
        assert_eq!(world.metrics.upstream_links.get(), 0, "seed {seed}");
        assert_eq!(world.metrics.upstream_credit.get(), 0, "seed {seed}");
        let connections: i64 = world.metrics.upstream_connections.iter().map(|(_, gauge)| gauge.get()).sum();
        assert_eq!(connections, 0, "seed {seed}");
    });
    metrics.take().map_or(0, |metrics| metrics.upstream_resent.get())
}

async fn join_all(futures: Vec<impl Future<Output = ()>>) {
    let mut futures: Vec<_> = futures.into_iter().map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

#[test]
fn nothing_is_lost_under_faults_when_a_policy_token_opens_the_connection() {
    let resent: u64 = (0..6).map(|seed| survives(seed, Verify::Local)).sum();
    assert!(resent > 0, "no fault struck a message under way");
}

#[test]
fn nothing_is_lost_under_faults_when_every_device_has_its_token() {
    let resent: u64 = (100..106).map(|seed| survives(seed, Verify::Hub)).sum();
    assert!(resent > 0, "no fault struck a message under way");
}
