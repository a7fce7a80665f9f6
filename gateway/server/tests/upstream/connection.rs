//! The AMQP connection itself: opened when needed, lost, opened again, closed when idle; tokens; transports.

use std::time::Duration;

use crate::support::{Device, Verify, World, now, on_a_core, until};
use gateway_core::{
    auth::{Refused, RefusedReason, Verdict},
    codec::packet::ConnectCode,
    message::Outcome,
    session::effect::{CloseCause, Slot},
};
use hub::{
    HubConfig,
    domain::{Action, Fault, Point},
};

const UNAVAILABLE: Refused = Refused { code: ConnectCode::ServerUnavailable, reason: RefusedReason::HubUnavailable };

/// Asks the hub about `device` by a good token of it.
async fn admit(world: &World, upstream: &gateway::upstream::Upstream, id: &str) -> Device {
    let device = Device::open(upstream, id);
    let (token, expires) = world.token(id);
    device.link.authorize(&token, expires);
    assert_eq!(device.verdict().await, Verdict::Allowed { expires: Some(expires) });
    device
}

/// `sig` of a token.
fn signature(token: &str) -> &str {
    token.split(['?', '&', ' ']).find(|field| field.starts_with("sig=")).unwrap()
}

#[test]
fn a_devices_own_token_lets_it_in() {
    on_a_core(async {
        let world = World::new(Verify::Hub);
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = admit(&world, &upstream, "d1").await;
        device.send(1, "m");
        assert_eq!(device.outcome().await, (1, Outcome::Accepted));
    });
}

#[test]
fn contract_3_2_the_hubs_status_becomes_the_connack_code() {
    on_a_core(async {
        let world = World::new(Verify::Hub);
        for id in ["d1", "d2"] {
            world.hub().add_device(id).unwrap();
        }
        let upstream = world.upstream();
        let check = async |token: String, expected: (ConnectCode, RefusedReason)| {
            let device = Device::open(&upstream, "d1");
            device.link.authorize(&token, now());
            let Verdict::Refused(Refused { code, reason }) = device.verdict().await else {
                panic!("let in by {token}")
            };
            assert_eq!((code, reason), expected, "{token}");
        };
        let (good, _) = world.token("d1");
        let other = world.token("d2").0;
        let forged = good.replace(signature(&good), signature(&other));
        check(forged, (ConnectCode::NotAuthorized, RefusedReason::HubRefused)).await;
        let unknown = good.replace("d1", "unknown");
        check(unknown, (ConnectCode::NotAuthorized, RefusedReason::UnknownDevice)).await;
        world.inject(Fault::new(Action::Cbs { status: 503, ms: 0 }).count(1));
        check(good, (ConnectCode::ServerUnavailable, RefusedReason::HubUnavailable)).await;
    });
}

#[test]
fn a_token_of_another_device_attaches_nothing() {
    on_a_core(async {
        let world = World::new(Verify::Hub);
        for id in ["d1", "d2"] {
            world.hub().add_device(id).unwrap();
        }
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        let (token, expires) = world.token("d2");
        device.link.authorize(&token, expires);
        device.verdict().await;
        device.send(1, "m");
        assert_eq!(device.lost().await, CloseCause::HubRefused);
        assert_eq!(world.transfers("d1"), 0);
    });
}

#[test]
fn a_hub_that_does_not_answer_a_token_is_unavailable() {
    on_a_core(async {
        let world = World::with(Verify::Hub, HubConfig::default(), |limits| {
            limits.request_timeout = Duration::from_millis(400);
        });
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        world.inject(Fault::new(Action::Cbs { status: 0, ms: 60_000 }).count(1));
        let device = Device::open(&upstream, "d1");
        let (token, expires) = world.token("d1");
        device.link.authorize(&token, expires);
        assert_eq!(device.verdict().await, Verdict::Refused(UNAVAILABLE));
        admit(&world, &upstream, "d1").await;
    });
}

#[test]
fn trap_24_a_connection_without_tokens_left_gives_way_to_another() {
    on_a_core(async {
        let mut config = HubConfig::default();
        config.amqp.cbs_tokens_max = 3;
        let world = World::with(Verify::Hub, config, |_| {});
        let upstream = world.upstream();
        let mut devices = Vec::new();
        for n in 0..8 {
            world.hub().add_device(&format!("d{n}")).unwrap();
            let device = admit(&world, &upstream, &format!("d{n}")).await;
            device.send(1, "m");
            assert_eq!(device.outcome().await, (1, Outcome::Accepted));
            devices.push(device);
        }
        assert_eq!(world.connections(), 3);
    });
}

#[test]
fn trap_24_a_hub_that_says_so_of_every_connection_is_asked_after_waits_that_grow() {
    on_a_core(async {
        let mut config = HubConfig::default();
        config.amqp.cbs_tokens_max = 0;
        let world = World::with(Verify::Hub, config, |limits| {
            limits.backoff = (Duration::from_secs(1), Duration::from_secs(30));
        });
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let (token, expires) = world.token("d1");
        let (begun, mut refusals) = (tokio::time::Instant::now(), 0);
        // a client that tries again whatever it is told
        while begun.elapsed() < Duration::from_secs(2) {
            if let Ok(device) = Device::try_open(&upstream, "d1") {
                device.link.authorize(&token, expires);
                assert_eq!(device.verdict().await, Verdict::Refused(UNAVAILABLE));
                refusals += 1;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let query = hub::domain::Query { kind: Some(hub::domain::Kind::Cbs), ..hub::domain::Query::default() };
        let puts = world.hub().ledger().entries(&query).len();
        assert!((1..=8).contains(&puts), "{puts} tokens in two seconds, {refusals} refusals");
        let limits = &world.metrics.limits;
        assert_eq!(limits.at(gateway::metrics::Limit::TokensPerConnection).get(), puts as u64);
    });
}

#[test]
fn trap_24_a_device_that_no_new_connection_has_a_token_for_is_let_go_after_the_bound() {
    on_a_core(is_let_go_although_idle(Action::Cbs { status: 403, ms: 0 }, |_| {}));
}

#[test]
fn trap_24_a_device_stays_while_no_connection_has_a_token_for_it_and_works_on_afterwards() {
    on_a_core(async {
        let world = World::new(Verify::Hub);
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = admit(&world, &upstream, "d1").await;
        world.inject(Fault::new(Action::Cbs { status: 403, ms: 0 }).count(4));
        world.inject(Fault::new(Action::CloseConnection { condition: None }));
        until("the connection is lost", || world.connections() == 0).await;
        device.send(1, "m");
        assert_eq!(device.outcome().await, (1, Outcome::Accepted));
        assert_eq!(world.metrics.limits.at(gateway::metrics::Limit::TokensPerConnection).get(), 4);
        admit(&world, &upstream, "d1").await;
    });
}

#[test]
fn trap_29_put_tokens_are_paced_and_all_are_answered() {
    on_a_core(async {
        let world = World::with(Verify::Hub, HubConfig::default(), |limits| limits.tokens_inflight_max = 5);
        let upstream = world.upstream();
        let devices: Vec<Device> = (0..60)
            .map(|n| {
                let id = format!("d{n}");
                world.hub().add_device(&id).unwrap();
                let device = Device::open(&upstream, &id);
                let (token, expires) = world.token(&id);
                device.link.authorize(&token, expires);
                device
            })
            .collect();
        for device in &devices {
            assert!(matches!(device.verdict().await, Verdict::Allowed { .. }));
        }
    });
}

#[test]
fn devices_stay_while_the_connection_is_lost_and_their_tokens_come_back() {
    on_a_core(async {
        let world = World::new(Verify::Hub);
        let upstream = world.upstream();
        let mut devices = Vec::new();
        for n in 0..20 {
            world.hub().add_device(&format!("d{n}")).unwrap();
            devices.push(admit(&world, &upstream, &format!("d{n}")).await);
        }
        for round in 0..3 {
            world.inject(Fault::new(Action::CloseConnection { condition: Some("amqp:connection:forced".into()) }));
            for device in &devices {
                device.send(1, &format!("a-{round}"));
            }
            for device in &devices {
                assert_eq!(device.outcome().await, (1, Outcome::Accepted));
            }
        }
    });
}

#[test]
fn a_token_that_the_hub_refuses_after_a_reconnect_ends_its_device() {
    on_a_core(async {
        let world = World::new(Verify::Hub);
        for id in ["d1", "d2"] {
            world.hub().add_device(id).unwrap();
        }
        let upstream = world.upstream();
        let device = admit(&world, &upstream, "d1").await;
        let other = admit(&world, &upstream, "d2").await;
        world.inject(Fault::new(Action::Cbs { status: 401, ms: 0 }).device("d1"));
        world.inject(Fault::new(Action::CloseConnection { condition: None }));
        assert_eq!(device.lost().await, CloseCause::HubRefused);
        other.send(1, "m");
        assert_eq!(other.outcome().await, (1, Outcome::Accepted));
    });
}

/// A device without messages and links, whose token has to be put again.
async fn is_let_go_although_idle(cbs: Action, change: impl FnOnce(&mut gateway_core::settings::UpstreamLimits)) {
    let world = World::with(Verify::Hub, HubConfig::default(), |limits| {
        limits.outage_max = Duration::from_millis(800);
        change(limits);
    });
    world.hub().add_device("d1").unwrap();
    let upstream = world.upstream();
    let device = admit(&world, &upstream, "d1").await;
    world.inject(Fault::new(cbs));
    world.inject(Fault::new(Action::CloseConnection { condition: None }));
    device.hears_nothing_for(Duration::from_millis(400)).await;
    assert_eq!(device.lost().await, CloseCause::HubUnreachable);
}

#[test]
fn a_device_whose_token_the_hub_is_too_busy_for_is_let_go_after_the_bound() {
    on_a_core(is_let_go_although_idle(Action::Cbs { status: 503, ms: 0 }, |_| {}));
}

#[test]
fn a_device_whose_token_has_no_answer_after_a_reconnect_is_let_go_after_the_bound() {
    let late = Action::Cbs { status: 0, ms: 60_000 };
    on_a_core(is_let_go_although_idle(late, |limits| limits.request_timeout = Duration::from_millis(150)));
}

#[test]
fn trap_24_a_device_that_is_gone_leaves_its_will_and_no_seat_at_the_other_connection() {
    on_a_core(async {
        let mut config = HubConfig::default();
        config.amqp.cbs_tokens_max = 1;
        let world = World::with(Verify::Hub, config, |limits| {
            limits.idle_timeout = Duration::from_millis(300);
            // the token is put again late enough for another device to take the only place
            limits.backoff = (Duration::from_secs(1), Duration::from_secs(1));
        });
        for id in ["gone", "other"] {
            world.hub().add_device(id).unwrap();
        }
        let upstream = world.upstream();
        let gone = admit(&world, &upstream, "gone").await;
        world.inject(Fault::new(Action::Cbs { status: 500, ms: 0 }).device("gone").count(1));
        world.inject(Fault::new(Action::CloseConnection { condition: None }));
        until("the connection is lost", || world.connections() == 0).await;
        gone.send(Slot::WILL.0, "will");
        drop(gone);
        until("the hub is back", || Device::try_open(&upstream, "other").is_ok()).await;
        let other = admit(&world, &upstream, "other").await;
        until("the will is there", || world.accepted("gone") == ["will"]).await;
        until("its link is gone", || world.metrics.upstream_links.get() == 0).await;
        drop(other);
        until("no connection is needed", || world.connections() == 0).await;
    });
}

#[test]
fn after_a_silence_an_answer_is_waited_for_as_long_as_ever() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            limits.request_timeout = Duration::from_millis(500);
        });
        let upstream = world.upstream();
        let mut devices = Vec::new();
        for id in ["d1", "d2"] {
            world.hub().add_device(id).unwrap();
            let device = Device::open(&upstream, id);
            device.send(1, "m");
            assert_eq!(device.outcome().await, (1, Outcome::Accepted));
            device.hears_nothing_for(Duration::from_millis(1300)).await;
            devices.push(device);
        }
        drop(devices);
        until("their links are gone", || world.metrics.upstream_links.get() == 0).await;
        assert!(world.metrics.upstream_failures.iter().all(|(_, failures)| failures.get() == 0));
        assert_eq!(world.metrics.limits.at(gateway::metrics::Limit::RequestTimeout).get(), 0);
    });
}

#[test]
fn no_link_is_counted_beyond_the_loss_of_its_connection() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            limits.request_timeout = Duration::from_millis(500);
        });
        let upstream = world.upstream();
        let mut devices = Vec::new();
        for n in 0..3 {
            world.hub().add_device(&format!("d{n}")).unwrap();
            let device = Device::open(&upstream, &format!("d{n}"));
            device.send(1, "m");
            assert_eq!(device.outcome().await, (1, Outcome::Accepted));
            devices.push(device);
        }
        assert_eq!(world.metrics.upstream_links.get(), 3);
        world.inject(Fault::new(Action::HalfOpen));
        // more than a tick apart: the first DETACH without an answer gives the connection up, before the others run out
        for device in devices {
            tokio::time::sleep(Duration::from_millis(150)).await;
            drop(device);
        }
        let failures = || world.metrics.upstream_failures.iter().map(|(_, failures)| failures.get()).sum::<u64>();
        until("the connection is given up", || failures() > 0).await;
        assert_eq!(world.metrics.upstream_links.get(), 0);
    });
}

#[test]
fn amqp_over_websocket_carries_the_same() {
    on_a_core(async {
        let mut world = World::new(Verify::Local);
        world.use_websocket();
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        device.send_all("a-", 100, 16).await;
        device.send_sized(1, "large", 250_000);
        assert_eq!(device.outcome().await, (1, Outcome::Accepted));
        assert_eq!(world.hub().domain().connections.list()[0].1.transport, "AMQP_WS");
    });
}

#[test]
fn an_outage_shorter_than_the_bound_is_a_pause() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        world.hub().add_device("d1").unwrap();
        world.hub().add_device("d2").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        device.send(1, "a-0");
        device.outcome().await;
        world.inject(Fault::new(Action::RefuseListen { ms: 700 }));
        tokio::time::sleep(Duration::from_millis(50)).await;
        world.inject(Fault::new(Action::CloseConnection { condition: None }));
        until("the connection is lost", || world.connections() == 0).await;
        device.send(2, "a-1");
        device.hears_nothing_for(Duration::from_millis(300)).await;
        // contract §8: CONNACK 3 to new CONNECTs while the hub is away
        assert_eq!(Device::try_open(&upstream, "d2").err(), Some(UNAVAILABLE));
        assert_eq!(device.outcome().await, (2, Outcome::Accepted));
        Device::open(&upstream, "d2");
    });
}

#[test]
fn an_outage_beyond_the_bound_lets_devices_go() {
    on_a_core(async {
        let mut world =
            World::with(Verify::Local, HubConfig::default(), |limits| limits.outage_max = Duration::from_millis(500));
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let (busy, idle) = (Device::open(&upstream, "d1"), Device::open(&upstream, "d2"));
        busy.send(1, "a-0");
        busy.outcome().await;
        world.hub.take().unwrap().stop();
        busy.send(2, "a-1");
        assert_eq!(busy.outcome().await, (2, Outcome::Unreachable));
        assert_eq!(busy.lost().await, CloseCause::HubUnreachable);
        assert_eq!(idle.lost().await, CloseCause::HubUnreachable);
    });
}

/// Letting go of everybody at once would be a storm of connects of our making.
#[test]
fn whatever_the_hub_does_not_do_devices_go_at_one_pace_for_all_cores() {
    const PER_SECOND: f64 = 20.0;
    let check = |fault: Option<Fault>| {
        on_a_core(async {
            let mut world = World::with(Verify::Local, HubConfig::default(), |limits| {
                limits.outage_max = Duration::from_millis(500);
            });
            world.settings.limits.drain_per_second = gateway_core::config::Rate(PER_SECOND);
            let cores = [world.upstream(), world.upstream()];
            for n in 0..20 {
                world.hub().add_device(&format!("d{n}")).unwrap();
            }
            let devices: Vec<_> = (0..20).map(|n| Device::open(&cores[n % 2], &format!("d{n}"))).collect();
            match &fault {
                Some(fault) => world.inject(fault.clone()),
                None => world.hub.take().unwrap().stop(),
            }
            let begun = tokio::time::Instant::now();
            for device in &devices {
                device.send(1, "m");
            }
            let mut moments = Vec::new();
            for device in &devices {
                assert_eq!(device.lost().await, CloseCause::HubUnreachable);
                moments.push(begun.elapsed());
            }
            // the slowest of them ends the wait: twenty at twenty a second, behind the bound
            let last = moments.last().unwrap();
            assert!(*last >= Duration::from_millis(500 + 900), "all were let go within {last:?}: {fault:?}");
        });
    };
    check(None);
    check(Some(Fault::new(Action::NeverSettle)));
    check(Some(Fault::new(Action::Throttle { ms: 0 }).at(Point::Attach).device("d*")));
}

#[test]
fn an_empty_connection_closes_after_the_idle_timeout() {
    on_a_core(async {
        let world =
            World::with(Verify::Local, HubConfig::default(), |limits| limits.idle_timeout = Duration::from_millis(200));
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        device.send(1, "m");
        device.outcome().await;
        assert_eq!(world.connections(), 1);
        drop(device);
        until("the connection is closed", || world.connections() == 0).await;
        let device = Device::open(&upstream, "d1");
        device.send(1, "m");
        assert_eq!(device.outcome().await, (1, Outcome::Accepted));
    });
}

#[test]
fn devices_beyond_one_connection_get_another_and_no_more_than_allowed() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            (limits.devices_per_connection_max, limits.connections_max) = (2, 2);
        });
        let upstream = world.upstream();
        let mut devices = Vec::new();
        for n in 0..4 {
            world.hub().add_device(&format!("d{n}")).unwrap();
            let device = Device::open(&upstream, &format!("d{n}"));
            device.send(1, "m");
            assert_eq!(device.outcome().await, (1, Outcome::Accepted));
            devices.push(device);
        }
        assert_eq!(world.connections(), 2);
        let refused = Device::try_open(&upstream, "d4").err().map(|refused| (refused.code, refused.reason));
        assert_eq!(refused, Some((ConnectCode::ServerUnavailable, RefusedReason::Capacity)));
    });
}

#[test]
fn shutdown_settles_what_is_in_flight_and_closes_in_good_order() {
    on_a_core(async {
        let (world, upstream, device) = World::with_device();
        world.inject(Fault::new(Action::Delay { ms: 200 }).at(Point::Telemetry).count(1));
        device.send(1, "m");
        upstream.shutdown(Duration::from_secs(30)).await;
        assert_eq!(device.outcome().await, (1, Outcome::Accepted));
        until("the hub sees no connection", || world.connections() == 0).await;
        let refused = Device::try_open(&upstream, "d1").err().map(|refused| refused.reason);
        assert_eq!(refused, Some(RefusedReason::Draining));
    });
}

#[test]
fn trap_28_an_idle_connection_lives_on_heartbeats() {
    on_a_core(async {
        let mut config = HubConfig::default();
        config.amqp.idle_timeout = Duration::from_millis(400);
        let world = World::with(Verify::Local, config, |_| {});
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        device.send(1, "m");
        device.outcome().await;
        device.hears_nothing_for(Duration::from_millis(1500)).await;
        device.send(2, "m");
        assert_eq!(device.outcome().await, (2, Outcome::Accepted));
        assert!(world.metrics.upstream_failures.iter().all(|(_, failures)| failures.get() == 0));
    });
}

#[test]
fn a_policy_token_is_renewed_in_place() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            limits.token_ttl = Duration::from_secs(5);
        });
        world.hub().add_device("d1").unwrap();
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        let tokens = || {
            let query = hub::domain::Query { kind: Some(hub::domain::Kind::Cbs), ..hub::domain::Query::default() };
            world.hub().ledger().entries(&query).len()
        };
        device.send(1, "a-0");
        device.outcome().await;
        until("the token is renewed", || tokens() >= 2).await;
        device.send(2, "a-1");
        assert_eq!(device.outcome().await, (2, Outcome::Accepted));
        assert_eq!(world.connections(), 1);
    });
}

#[test]
fn a_wrong_policy_key_keeps_devices_waiting_and_not_the_hub_busy() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            limits.outage_max = Duration::from_millis(600);
        });
        world.hub().add_device("d1").unwrap();
        world.inject(Fault::new(Action::Cbs { status: 401, ms: 0 }));
        let upstream = world.upstream();
        let device = Device::open(&upstream, "d1");
        device.send(1, "m");
        assert_eq!(device.lost().await, CloseCause::HubUnreachable);
        assert_eq!(world.transfers("d1"), 0);
    });
}
