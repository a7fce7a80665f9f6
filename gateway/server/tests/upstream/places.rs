//! Where devices are placed, and what the hub is told of them there.

use std::time::Duration;

use gateway_core::{auth::Client, message::Outcome};
use hub::{
    HubConfig,
    domain::{Action, Fault, Identity},
};

use crate::support::{Device, Verify, World, on_a_core, until};

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
