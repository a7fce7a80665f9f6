//! Where devices are placed, and what the hub is told of them there.

use std::time::Duration;

use gateway::metrics::UpstreamState;
use gateway_core::{
    auth::{Client, Refused, RefusedReason},
    codec::packet::ConnectCode,
    message::Outcome,
};
use hub::{
    HubConfig,
    domain::{Action, Fault, Identity},
};

use crate::support::{Device, Verify, World, on_a_core, until};

const UNAVAILABLE: Refused = Refused { code: ConnectCode::ServerUnavailable, reason: RefusedReason::HubUnavailable };

#[test]
fn while_one_connection_is_lost_new_devices_come_to_another_that_has_room() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            (limits.devices_per_connection_max, limits.connections_max) = (3, 2);
            limits.backoff = (Duration::from_mins(1), Duration::from_mins(1));
        });
        let upstream = world.upstream();
        let mut devices = Vec::new();
        for n in 0..7 {
            world.hub().add_device(&format!("d{n}")).unwrap();
        }
        for n in 0..4 {
            let device = Device::open(&upstream, &format!("d{n}"));
            device.send(1, "m");
            assert_eq!(device.outcome().await, (1, Outcome::Accepted));
            devices.push(device);
        }
        assert_eq!(world.connections(), 2);
        // the first connection has two devices and room for one, the second one device and room for two
        devices.remove(2);
        world.inject(Fault::new(Action::CloseConnection { condition: None }).device("d0").count(1));
        devices[0].send(2, "m");
        let lost = world.metrics.upstream_connections.at(UpstreamState::Waiting);
        until("the first connection is lost", || lost.get() == 1).await;
        for n in [4, 5] {
            let device = Device::try_open(&upstream, &format!("d{n}")).expect("there is room at the other one");
            device.send(1, "m");
            assert_eq!(device.outcome().await, (1, Outcome::Accepted));
            devices.push(device);
        }
        // now room is at the lost one only
        assert_eq!(Device::try_open(&upstream, "d6").err(), Some(UNAVAILABLE));
    });
}

#[test]
fn contract_3_4_what_a_device_says_of_itself_goes_with_its_link_to_a_hub_and_to_every_link_after_it() {
    on_a_core(async {
        let world = World::with(Verify::Local, HubConfig::default(), |limits| {
            limits.backoff = (Duration::from_millis(400), Duration::from_millis(400));
        });
        for id in ["d1", "d2"] {
            world.hub().add_device(id).unwrap();
        }
        let upstream = world.upstream();
        let (device, silent) = (Device::open(&upstream, "d1"), Device::open(&upstream, "d2"));
        let model = "dtmi:com:example:Thermostat;1";
        device.link.introduce(Client { user_agent: Some("py/2".into()), model_id: Some(model.into()) });
        device.send(1, "before");
        assert_eq!(device.outcome().await, (1, Outcome::Accepted));
        world.inject(Fault::new(Action::CloseConnection { condition: None }));
        until("the connection is lost", || world.connections() == 0).await;
        for device in [&device, &silent] {
            device.send(2, "after");
            assert_eq!(device.outcome().await, (2, Outcome::Accepted));
        }
        let models = |id: &str| -> Vec<Option<String>> {
            let telemetry = &world.hub().domain().telemetry;
            let events = (0..telemetry.partitions()).flat_map(|partition| telemetry.read(partition, 0, 100));
            let of_device = events.filter(|event| event.event.identity == Identity::device(id));
            of_device.map(|event| event.event.model_id.as_deref().map(str::to_owned)).collect()
        };
        assert_eq!(models("d1"), [Some(model.to_owned()), Some(model.to_owned())]);
        assert_eq!(models("d2"), [None]);
    });
}
