//! Device to hub, against a real hub on real sockets: nothing is lost, order is kept, every outcome comes back once.

use std::time::Duration;

use crate::support::{Device, Verify, World, on_a_core, until};
use gateway_core::message::{Outcome, Refusal};
use gateway_core::session::effect::{CloseCause, Slot};
use hub::{
    HubConfig,
    domain::{Action, Fault, Point},
};

fn ids(prefix: &str, count: u64) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}{n}")).collect()
}

/// Accepted ids without repetitions, in the order of their first acceptance.
fn firsts(accepted: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    accepted.into_iter().filter(|id| seen.insert(id.clone())).collect()
}

#[test]
fn telemetry_is_accepted_once_stored() {
    on_a_core(async {
        let (world, _upstream, device) = World::with_device();
        device.send(7, "m-1");
        assert_eq!(device.outcome().await, (7, Outcome::Accepted));
        assert_eq!(world.accepted("d1"), ["m-1"]);
        assert_eq!(world.metrics.up.inflight.get(), 0);
    });
}

#[test]
fn many_devices_share_one_connection() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        let upstream = world.upstream();
        let devices: Vec<Device> = (0..50)
            .map(|n| {
                world.hub().add_device(&format!("d{n}")).unwrap();
                Device::open(&upstream, &format!("d{n}"))
            })
            .collect();
        for device in &devices {
            device.send(1, "a-0");
            device.send(2, "a-1");
        }
        for device in &devices {
            assert_eq!(device.outcome().await, (1, Outcome::Accepted));
            assert_eq!(device.outcome().await, (2, Outcome::Accepted));
        }
        assert_eq!(world.connections(), 1);
        for n in 0..50 {
            assert_eq!(world.accepted(&format!("d{n}")), ids("a-", 2));
        }
    });
}

#[test]
fn a_message_larger_than_a_frame_arrives_whole() {
    on_a_core(async {
        let (_world, _upstream, device) = World::with_device();
        device.send_sized(1, "large", 250_000);
        assert_eq!(device.outcome().await, (1, Outcome::Accepted));
        device.send_sized(2, "too-large", 300_000);
        assert!(matches!(device.outcome().await, (2, Outcome::Refused(Refusal::TooLarge))));
    });
}

#[test]
fn nothing_is_lost_and_order_is_kept_when_the_hub_kills_the_connection() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        let upstream = world.upstream();
        let devices: Vec<Device> = (0..3)
            .map(|n| {
                world.hub().add_device(&format!("d{n}")).unwrap();
                Device::open(&upstream, &format!("d{n}"))
            })
            .collect();
        let kill = Fault::new(Action::CloseConnection { condition: None }).at(Point::Telemetry);
        world.inject(kill.probability(0.01, 7).count(5));
        tokio::join!(
            devices[0].send_all("a-", 400, 16),
            devices[1].send_all("a-", 400, 1),
            devices[2].send_all("a-", 400, 7)
        );
        for n in 0..3 {
            assert_eq!(firsts(world.accepted(&format!("d{n}"))), ids("a-", 400));
        }
        assert!(world.metrics.upstream_resent.get() > 0, "the fault never struck a message under way");
    });
}

#[test]
fn a_message_without_a_disposition_goes_again() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            limits.settle_timeout = Duration::from_millis(300);
        });
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        world.inject(Fault::new(Action::NeverSettle).count(1));
        device.send(1, "a-0");
        device.send(2, "a-1");
        let outcomes = [device.outcome().await, device.outcome().await];
        assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Accepted), "{outcomes:?}");
        assert!(world.transfers("d1") >= 3);
    });
}

#[test]
fn a_hub_that_answers_nothing_is_left_for_a_new_connection() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            limits.settle_timeout = Duration::from_millis(300);
            limits.request_timeout = Duration::from_millis(500);
        });
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        device.send(1, "a-0");
        device.outcome().await;
        world.inject(Fault::new(Action::HalfOpen));
        // until the hub has carried that out
        tokio::time::sleep(Duration::from_millis(50)).await;
        device.send(2, "a-1");
        assert_eq!(device.outcome().await, (2, Outcome::Accepted));
        assert_eq!(firsts(world.accepted("d1")), ids("a-", 2));
        assert_eq!(world.metrics.upstream_resent.get(), 1);
    });
}

#[test]
fn contract_3_9_what_the_hub_refuses_is_told_to_the_device() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let reject = |condition: &str| Fault::new(Action::Reject { condition: condition.into() }).count(1);
        let faults = [
            (Fault::new(Action::Release).count(1), Outcome::Retry(Refusal::Released)),
            (Fault::new(Action::Modify).count(1), Outcome::Retry(Refusal::Released)),
            (reject("com.microsoft:device-container-throttled"), Outcome::Retry(Refusal::Throttled)),
            (reject("amqp:not-allowed"), Outcome::Refused(Refusal::Invalid)),
            (reject("amqp:unauthorized-access"), Outcome::Refused(Refusal::Unauthorized)),
        ];
        for (slot, (fault, expected)) in (1..).zip(faults) {
            world.inject(fault);
            // what is not taken ends the device's connection
            let device = Device::open(&upstream, "d1");
            device.send(slot, "m");
            assert_eq!(device.outcome().await, (slot, expected));
        }
    });
}

#[test]
fn contract_8_a_device_whose_links_are_stolen_is_taken_over() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        world.hub().add_device("d1").unwrap();
        world.hub().add_device("d2").unwrap();
        let upstream = world.upstream();
        let (stolen, other) = (Device::open(&upstream, "d1"), Device::open(&upstream, "d2"));
        for device in [&stolen, &other] {
            device.send(1, "m");
            device.outcome().await;
        }
        world.inject(Fault::new(Action::Steal).device("d1"));
        assert_eq!(stolen.lost().await, CloseCause::TakenOver);
        let transfers = world.transfers("d1");
        stolen.send(2, "after");
        other.send(2, "m2");
        assert_eq!(other.outcome().await, (2, Outcome::Accepted));
        stolen.hears_nothing_for(Duration::from_millis(100)).await;
        assert_eq!(world.transfers("d1"), transfers);
    });
}

#[test]
fn a_link_that_the_hub_detaches_by_force_comes_back() {
    on_a_core(async {
        let (world, _upstream, device) = World::with_device();
        let detach = Action::Detach { condition: "amqp:link:detach-forced".into(), redirect: None };
        world.inject(Fault::new(detach).at(Point::Telemetry).probability(0.05, 3).count(4));
        device.send_all("a-", 200, 8).await;
        assert_eq!(firsts(world.accepted("d1")), ids("a-", 200));
    });
}

#[test]
fn an_unknown_device_is_let_go() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        let upstream = world.upstream();
        let device = Device::open(&upstream, "nobody");
        device.send(1, "m");
        assert_eq!(device.lost().await, CloseCause::HubRefused);
    });
}

#[test]
fn no_credit_holds_messages_back_until_the_bound() {
    on_a_core(async {
        let mut config = HubConfig::default();
        config.amqp.link_credit = 1;
        let world = World::with(Verify::Local, config, |limits| limits.outage_max = Duration::from_millis(700));
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        world.inject(Fault::new(Action::NoCredit).at(Point::Attach));
        device.send(1, "a-0");
        device.send(2, "a-1");
        assert_eq!(device.outcome().await, (1, Outcome::Accepted));
        device.hears_nothing_for(Duration::from_millis(300)).await;
        assert_eq!(device.outcome().await, (2, Outcome::Unreachable));
        assert_eq!(device.lost().await, CloseCause::HubUnreachable);
    });
}

#[test]
fn a_will_is_sent_although_its_device_is_gone() {
    on_a_core(async {
        let (world, _upstream, device) = World::with_device();
        device.send(1, "a-0");
        device.send(Slot::WILL.0, "a-1");
        drop(device);
        until("the will is there", || world.accepted("d1") == ids("a-", 2)).await;
        until("its link is gone", || world.metrics.upstream_links.get() == 0).await;
        assert_eq!(world.metrics.up.inflight.get(), 0);
    });
}

/// Contract §8: who is throttled is disconnected without a PUBACK, comes back and sends its window again.
#[test]
fn what_a_throttled_device_left_does_not_go_beside_what_it_sends_again_itself() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        world.inject(Fault::new(Action::Throttle { ms: 20 }));
        for _ in 0..5 {
            let device = Device::open(&upstream, "d1");
            for slot in 0..8 {
                device.send(slot, &format!("a-{slot}"));
            }
            assert_eq!(device.outcome().await, (0, Outcome::Retry(Refusal::Throttled)));
        }
        world.hub().faults().clear();
        let device = Device::open(&upstream, "d1");
        device.send_all("a-", 8, 8).await;
        until("nothing is in flight", || world.metrics.up.inflight.get() == 0).await;
        assert_eq!(world.accepted("d1"), ids("a-", 8));
        drop(device);
        until("its links are gone", || world.metrics.upstream_links.get() == 0).await;
    });
}

/// Two of nine are under way when the hub refuses the first of them.
async fn refused_before_the_rest(refused: u32, leave_first: bool) -> (World, Vec<String>) {
    let mut config = HubConfig::default();
    config.amqp.link_credit = 2;
    let world = World::with(Verify::Local, config, |_| {});
    world.hub().add_device("d1").unwrap();
    let upstream = world.upstream();
    let condition = "com.microsoft:device-container-throttled".into();
    world.inject(Fault::new(Action::Reject { condition }).count(refused));
    let device = Device::open(&upstream, "d1");
    for slot in 0..8 {
        device.send(slot, &format!("a-{slot}"));
    }
    device.send(Slot::WILL.0, "will");
    if !leave_first {
        assert_eq!(device.outcome().await, (0, Outcome::Retry(Refusal::Throttled)));
        until("all that may go has gone", || world.accepted("d1").contains(&"will".to_owned())).await;
    }
    drop(device);
    until("nothing is in flight", || world.metrics.up.inflight.get() == 0).await;
    until("its links are gone", || world.metrics.upstream_links.get() == 0).await;
    let accepted = world.accepted("d1");
    let [at_most_once, at_least_once, not_taken, dropped] = world.counted();
    assert_eq!((at_most_once, at_least_once, not_taken), (0, accepted.len() as u64, u64::from(refused)));
    assert_eq!(at_least_once + not_taken + dropped, 9, "each message once");
    (world, accepted)
}

#[test]
fn what_came_after_a_refused_message_does_not_overtake_it() {
    on_a_core(async {
        for leave_first in [false, true] {
            let (_world, accepted) = refused_before_the_rest(2, leave_first).await;
            assert_eq!(accepted, ["will"], "leave first: {leave_first}");
            // what was under way with the refused one is not to be called back
            let (_world, accepted) = refused_before_the_rest(1, leave_first).await;
            assert_eq!(accepted, ["a-1", "will"], "leave first: {leave_first}");
        }
    });
}

#[test]
fn what_settles_after_its_device_has_gone_is_counted() {
    on_a_core(async {
        let (world, _upstream, device) = World::with_device();
        device.send(1, "a-0");
        device.send_at_most_once(2, "a-1");
        device.send(Slot::WILL.0, "a-2");
        drop(device);
        until("all are there", || world.accepted("d1") == ids("a-", 3)).await;
        until("nothing is in flight", || world.metrics.up.inflight.get() == 0).await;
        assert_eq!(world.counted(), [1, 2, 0, 0]);
    });
}

#[test]
fn what_is_sent_at_most_once_is_not_dropped_for_a_refused_message_before_it() {
    on_a_core(async {
        let mut config = HubConfig::default();
        config.amqp.link_credit = 2;
        let world = World::with(Verify::Local, config, |_| {});
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let condition = "com.microsoft:device-container-throttled".into();
        world.inject(Fault::new(Action::Reject { condition }).count(2));
        let device = Device::open(&upstream, "d1");
        for slot in [0, 2, 4] {
            device.send(slot, &format!("a-{slot}"));
            device.send_at_most_once(slot + 1, &format!("a-{}", slot + 1));
        }
        drop(device);
        until("nothing is in flight", || world.metrics.up.inflight.get() == 0).await;
        assert_eq!(world.accepted("d1"), ["a-3", "a-5"]);
        assert_eq!(world.counted(), [2, 0, 2, 2]);
    });
}

#[test]
fn of_a_device_that_is_gone_only_the_will_goes_again_over_a_new_connection() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        world.inject(Fault::new(Action::NeverSettle).count(4));
        let device = Device::open(&upstream, "d1");
        for slot in 0..3 {
            device.send(slot, &format!("a-{slot}"));
        }
        device.send(Slot::WILL.0, "will");
        until("all are under way", || world.transfers("d1") == 4).await;
        drop(device);
        world.inject(Fault::new(Action::CloseConnection { condition: None }));
        until("the will went again", || world.transfers("d1") > 4).await;
        until("its links are gone", || world.metrics.upstream_links.get() == 0).await;
        assert_eq!(world.accepted("d1"), ["a-0", "a-1", "a-2", "will", "will"]);
        assert_eq!((world.metrics.up.inflight.get(), world.metrics.upstream_resent.get()), (0, 1));
    });
}

#[test]
fn links_spread_over_sessions_within_the_peers_handles() {
    on_a_core(async {
        let mut config = HubConfig::default();
        config.amqp.handle_max = 3;
        config.amqp.channel_max = 7;
        let world = World::with(Verify::Local, config, |_| {});
        let upstream = world.upstream();
        // seven sessions beside that of $cbs, four links each: 28 senders of at most 14 devices with two links
        let devices: Vec<Device> = (0..20)
            .map(|n| {
                world.hub().add_device(&format!("d{n}")).unwrap();
                Device::open(&upstream, &format!("d{n}"))
            })
            .collect();
        for device in &devices {
            device.send(1, "m");
        }
        for device in &devices {
            assert_eq!(device.outcome().await, (1, Outcome::Accepted));
        }
    });
}
