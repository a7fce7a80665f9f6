//! Hub to device: the receiver, its credit, and what every settlement means to the hub.

use std::{sync::Arc, time::Duration};

use crate::support::{Device, Verify, World, on_a_core, until};
use fe2o3_amqp_types::messaging::{ApplicationProperties, MessageId, Properties};
use gateway::upstream::UpstreamEvent;
use gateway_core::{
    message::{Refusal, Settlement},
    session::effect::CloseCause,
};
use hub::{
    HubConfig,
    domain::{Ack, Action, C2dMessage, Fault, Identity, Point},
};

/// Puts a command for `device` into the hub's queue.
pub(crate) fn enqueue(world: &World, device: &str, message_id: &str) {
    let domain = world.hub().domain();
    let identity = Identity::device(device);
    let now = domain.clock.now_ms();
    let message = C2dMessage {
        properties: Properties { message_id: Some(MessageId::String(message_id.into())), ..Properties::default() },
        application_properties: ApplicationProperties::default(),
        body: bytes::Bytes::from_static(b"go"),
        ack: Ack::default(),
        message_id: Arc::from(message_id),
        generation_id: Arc::from("1"),
        enqueued_ms: now,
        expires_ms: now + 3_600_000,
        sequence_number: 0,
    };
    domain.c2d.enqueue(&identity, message, now).unwrap();
}

fn depth(world: &World, device: &str) -> usize {
    world.hub().domain().c2d.depth(&Identity::device(device))
}

/// A hub that takes a command back soon when nobody settles it (the real one: 60 s).
fn world_with_short_locks() -> World {
    let mut config = HubConfig::default();
    config.settings.c2d.lock_ms = 300;
    World::with(Verify::Local, config, |_| {})
}

async fn ready(world: &World, credit: u32) -> (gateway::upstream::Upstream, Device) {
    world.hub().add_device("d1").unwrap();
    let upstream = world.upstream();
    let device = Device::open(&upstream, "d1");
    device.open_commands(credit).await;
    (upstream, device)
}

#[test]
fn an_accepted_command_leaves_the_hubs_queue() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        let (_upstream, device) = ready(&world, 16).await;
        enqueue(&world, "d1", "c 1");
        let command = device.command().await;
        assert!(command.bag.starts_with("%24.mid=c%201"), "{}", command.bag);
        assert_eq!(command.payload, "go");
        assert_eq!(depth(&world, "d1"), 1);
        device.link.settle(command.tag, Settlement::Accepted);
        until("the queue is empty", || depth(&world, "d1") == 0).await;
    });
}

#[test]
fn a_released_command_comes_again() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        let (_upstream, device) = ready(&world, 16).await;
        enqueue(&world, "d1", "c1");
        let command = device.command().await;
        assert!(!command.redelivered);
        device.link.settle(command.tag, Settlement::Released);
        let again = device.command().await;
        assert!(again.redelivered);
        assert_eq!(again.bag, command.bag);
        device.link.settle(again.tag, Settlement::Rejected);
        until("the queue is empty", || depth(&world, "d1") == 0).await;
    });
}

#[test]
fn no_more_commands_are_under_way_than_the_window() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        let (_upstream, device) = ready(&world, 2).await;
        for n in 0..6 {
            enqueue(&world, "d1", &format!("c{n}"));
        }
        for _ in 0..3 {
            let (first, second) = (device.command().await, device.command().await);
            device.hears_nothing_for(Duration::from_millis(50)).await;
            device.link.settle(first.tag, Settlement::Accepted);
            device.link.settle(second.tag, Settlement::Accepted);
        }
        until("the queue is empty", || depth(&world, "d1") == 0).await;
    });
}

#[test]
fn unsettled_commands_come_again_after_the_connection_is_lost_and_old_tags_count_for_nothing() {
    on_a_core(async {
        let world = world_with_short_locks();
        let (_upstream, device) = ready(&world, 16).await;
        enqueue(&world, "d1", "c1");
        let old = device.command().await;
        world.inject(Fault::new(Action::CloseConnection { condition: None }));
        let again = device.command().await;
        assert_eq!(again.bag, old.bag);
        assert_ne!(again.tag, old.tag);
        device.link.settle(old.tag, Settlement::Accepted);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(depth(&world, "d1"), 1);
        // the lock of `again` has not run out yet
        device.link.settle(again.tag, Settlement::Accepted);
        until("the queue is empty", || depth(&world, "d1") == 0).await;
    });
}

#[test]
fn a_device_that_leaves_gives_its_commands_back() {
    on_a_core(async {
        let world = world_with_short_locks();
        let (upstream, device) = ready(&world, 16).await;
        enqueue(&world, "d1", "c1");
        device.command().await;
        drop(device);
        until("the links are gone", || world.metrics.upstream_links.get() == 0).await;
        let device = Device::open(&upstream, "d1");
        device.open_commands(16).await;
        let command = device.command().await;
        device.link.settle(command.tag, Settlement::Accepted);
        until("the queue is empty", || depth(&world, "d1") == 0).await;
    });
}

#[test]
fn closed_commands_stay_at_the_hub_and_can_be_opened_again() {
    on_a_core(async {
        let world = world_with_short_locks();
        let (_upstream, device) = ready(&world, 16).await;
        device.link.close_commands();
        // the hub may lock it for the receiver that is on its way out: it comes all the same
        enqueue(&world, "d1", "c1");
        device.hears_nothing_for(Duration::from_millis(100)).await;
        device.open_commands(16).await;
        let command = device.command().await;
        device.link.settle(command.tag, Settlement::Accepted);
        until("the queue is empty", || depth(&world, "d1") == 0).await;
    });
}

#[test]
fn a_newer_receiver_elsewhere_takes_the_device_over() {
    on_a_core(async {
        let world = World::new(Verify::Local);
        let (_upstream, device) = ready(&world, 16).await;
        let elsewhere = world.upstream();
        let newer = Device::open(&elsewhere, "d1");
        newer.open_commands(16).await;
        assert_eq!(device.lost().await, CloseCause::TakenOver);
        enqueue(&world, "d1", "c1");
        newer.link.settle(newer.command().await.tag, Settlement::Accepted);
        until("the queue is empty", || depth(&world, "d1") == 0).await;
    });
}

#[test]
fn a_receiver_that_the_hub_refuses_is_told() {
    on_a_core(async {
        let (world, _upstream, device) = World::with_device();
        let refuse = Action::Detach { condition: "amqp:not-allowed".into(), redirect: None };
        world.inject(Fault::new(refuse).at(Point::Attach).device("d1").count(1));
        device.link.open_commands(1);
        assert_eq!(device.event().await, UpstreamEvent::CommandsOpened(Err(Refusal::Invalid)));
    });
}
