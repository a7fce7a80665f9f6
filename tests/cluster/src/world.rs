//! The world of a story: the operator on the cluster, a hub on this machine that pods reach, fleets and their devices.
//!
//! ```text
//!   devices (this process) ──TLS──► node port ──► gateway pods ──AMQP──► hub (this process)
//! ```
//! So a test asks the hub itself what arrived, and makes it fail as it likes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use device::{load::Outcome, script::Login};
use hub::{Hub, HubConfig, domain::Identity};
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use xtask::verdict::Verdict;

use crate::{
    Story,
    devices::{Devices, Group, Target},
    installed::Installed,
};

/// What server-side apply calls the user of the story.
const USER: &str = "story";
/// Secret with the hub's CA, in the story's namespace.
const HUB_CA: &str = "hub-ca";
/// From the ProtocolGateway being declared until devices can connect. A busy machine starts pods slowly.
const READY_TIMEOUT: Duration = Duration::from_mins(3);
/// kube-proxy writes its rules at most once a second.
const ROUTED: Duration = Duration::from_secs(2);
/// Between two looks at the API.
const LOOK: Duration = Duration::from_millis(250);

/// What a story has beside its namespace.
pub struct World<'a> {
    /// The story.
    pub story: &'a Story,
    /// The operator.
    pub installed: Installed,
    /// The hub; its host name is the address by which pods and devices know it.
    pub hub: Hub,
    devices: AtomicU64,
}

impl<'a> World<'a> {
    /// Installs the operator unless this process has, and starts a hub.
    ///
    /// # Errors
    /// As [`Installed::operator`]; a cluster that is not this harness's, for its pods do not reach this machine.
    pub async fn begin(story: &'a Story) -> anyhow::Result<Self> {
        let installed = Installed::operator(&story.cluster).await?;
        let machine = story.cluster.machine().context("only nodes of this harness reach this machine")?;
        let hub = start_hub(machine)?;
        let world = Self { story, installed, hub, devices: AtomicU64::new(0) };
        world.secret(HUB_CA, &[("ca.crt", world.hub.ca_pem())]).await?;
        Ok(world)
    }

    /// Writes a Secret of the user's.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn secret(&self, name: &str, data: &[(&str, &str)]) -> anyhow::Result<()> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
            "stringData": data.iter().copied().collect::<BTreeMap<_, _>>(),
        });
        let secrets: Api<Secret> = Api::namespaced(self.story.client.clone(), &self.story.namespace);
        secrets.patch(name, &PatchParams::apply(USER).force(), &Patch::Apply(secret)).await?;
        Ok(())
    }

    /// Declares a fleet. `spec` is YAML and wins over what every story needs: the hub of this world, node ports, small pods
    /// and a certificate that names the nodes' addresses.
    ///
    /// # Errors
    /// YAML that is none; what the API server says to it.
    pub async fn gateway(&self, name: &str, spec: &str) -> anyhow::Result<Fleet<'_>> {
        let fleet = Fleet { world: self, name: name.to_owned() };
        fleet.declare(spec).await?;
        Ok(fleet)
    }

    /// Registers devices at the hub; each has an id that no other test has.
    ///
    /// # Errors
    /// A hub that refuses them.
    pub fn register(&self, count: usize) -> anyhow::Result<Vec<Login>> {
        let login = |_n| {
            let id = format!("{}-{}", self.story.namespace, self.devices.fetch_add(1, Relaxed));
            let connection_string = self.hub.add_device(&id).map_err(|error| anyhow::Error::msg(error.to_string()))?;
            let key = connection_string.split_once("SharedAccessKey=").context("a connection string has a key")?.1;
            Login::with_key(&self.hub.domain().host_name, &id, key)
        };
        (0..count).map(login).collect()
    }

    /// What the hub has of what these devices sent.
    ///
    /// # Errors
    /// A ledger that has forgotten some of it.
    pub fn judge(&self, run: &str, outcome: &Outcome) -> anyhow::Result<Verdict> {
        let prefix = format!("{run}-");
        let mut verdict = Verdict::default();
        for device in &outcome.devices {
            let counts = self.hub.ledger().counts(&Identity::device(&device.device_id));
            let stored = counts.sequences.iter().find(|sequence| *sequence.prefix == *prefix);
            if stored.is_some_and(|stored| stored.forgotten_gaps > 0) {
                bail!("the ledger forgot gaps of {}: nothing can be said", device.device_id);
            }
            let (ranges, duplicates) = stored.map_or((&[][..], 0), |stored| (&stored.ranges[..], stored.duplicates));
            verdict.add(device.sent, &device.acknowledged, ranges, duplicates);
        }
        Ok(verdict)
    }

    fn defaults(&self) -> Value {
        let nodes: Vec<Ipv4Addr> = self.story.cluster.nodes.iter().map(|node| node.address).collect();
        json!({
            "upstream": {"iotHub": {
                "hostName": self.hub.domain().host_name,
                "port": self.hub.addresses().amqps.port(),
                "caSecretName": HUB_CA,
            }},
            // devices come to both nodes, wherever the pods are
            "service": {"type": "NodePort", "externalTrafficPolicy": "Cluster"},
            "tls": {"selfSigned": {"ipAddresses": nodes}},
            "pod": {"resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}}},
        })
    }
}

/// A hub that listens where the pods of the cluster reach this machine.
fn start_hub(machine: Ipv4Addr) -> anyhow::Result<Hub> {
    let config = HubConfig { host_name: machine.to_string(), address: IpAddr::V4(machine), ..HubConfig::default() };
    Hub::start(config).context("no hub for the story")
}

/// A ProtocolGateway of the story, and the pods behind it.
pub struct Fleet<'a> {
    world: &'a World<'a>,
    /// Its name.
    pub name: String,
}

impl Fleet<'_> {
    /// The story whose it is.
    pub fn story(&self) -> &Story {
        self.world.story
    }

    /// Declares it anew; see [`World::gateway`].
    ///
    /// # Errors
    /// As [`World::gateway`].
    pub async fn declare(&self, spec: &str) -> anyhow::Result<()> {
        let mut wanted = self.world.defaults();
        merge(&mut wanted, serde_saphyr::from_str(spec).context("the story's spec is not YAML")?);
        let gateway = json!({
            "apiVersion": "protocolgateway.io/v1alpha1", "kind": "ProtocolGateway",
            "metadata": {"name": self.name}, "spec": wanted,
        });
        self.api().patch(&self.name, &PatchParams::apply(USER).force(), &Patch::Apply(gateway)).await?;
        Ok(())
    }

    /// Its API.
    pub fn api(&self) -> Api<DynamicObject> {
        let resource = ApiResource {
            group: "protocolgateway.io".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "protocolgateway.io/v1alpha1".to_owned(),
            kind: "ProtocolGateway".to_owned(),
            plural: "protocolgateways".to_owned(),
        };
        let story = self.world.story;
        Api::namespaced_with(story.client.clone(), &story.namespace, &resource)
    }

    /// The whole object as the API server has it.
    ///
    /// # Errors
    /// It is gone.
    pub async fn object(&self) -> anyhow::Result<Value> {
        Ok(serde_json::to_value(self.api().get(&self.name).await?)?)
    }

    /// Waits until `holds` for the object.
    ///
    /// # Errors
    /// The time is over: with its conditions.
    pub async fn until(&self, what: &str, limit: Duration, holds: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
        let begun = Instant::now();
        loop {
            let object = self.object().await?;
            if holds(&object) {
                return Ok(object);
            }
            if begun.elapsed() > limit {
                bail!("{what}: not after {limit:?}; status: {}", object["status"]);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until devices can connect to what was declared last, to every pod of it.
    ///
    /// # Errors
    /// The time is over: with its conditions.
    pub async fn ready(&self) -> anyhow::Result<Value> {
        let ready = |object: &Value| {
            let seen = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            let all = object["status"]["readyReplicas"] == object["spec"]["replicas"];
            seen && all && condition(object, "Ready").is_some_and(|ready| ready["status"] == "True")
        };
        let object = self.until(&format!("{} is ready", self.name), READY_TIMEOUT, ready).await?;
        // a pod that no device finds would make a story of nobody
        tokio::time::sleep(ROUTED).await;
        Ok(object)
    }

    /// Its pods that are not on their way out.
    ///
    /// # Errors
    /// What the API server says.
    pub async fn pods(&self) -> anyhow::Result<Vec<Pod>> {
        let story = self.world.story;
        let pods: Api<Pod> = Api::namespaced(story.client.clone(), &story.namespace);
        let selector = format!("app.kubernetes.io/name=protocol-gateway,app.kubernetes.io/instance={}", self.name);
        let pods = pods.list(&ListParams::default().labels(&selector)).await?.items;
        Ok(pods.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect())
    }

    /// The names of [`Fleet::pods`].
    ///
    /// # Errors
    /// As [`Fleet::pods`].
    pub async fn pod_names(&self) -> anyhow::Result<BTreeSet<String>> {
        Ok(self.pods().await?.iter().map(ResourceExt::name_any).collect())
    }

    /// Where devices connect from this machine: the listener's port at every node.
    ///
    /// # Errors
    /// A Service without that port, a Secret without the CA.
    pub async fn target(&self, listener: &str) -> anyhow::Result<Target> {
        let story = self.world.story;
        let services: Api<Service> = Api::namespaced(story.client.clone(), &story.namespace);
        let service = services.get(&self.name).await?;
        let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
        let port = ports.iter().find(|port| port.name.as_deref() == Some(listener)).and_then(|port| port.node_port);
        let port = u16::try_from(port.with_context(|| format!("the Service has no node port {listener}"))?)?;
        let secrets: Api<Secret> = Api::namespaced(story.client.clone(), &story.namespace);
        // the user's own certificate brings its CA along
        let object = self.object().await?;
        let own = object["spec"]["tls"]["secretName"].as_str().map(str::to_owned);
        let secret = secrets.get(&own.unwrap_or_else(|| format!("{}-tls", self.name))).await?;
        let ca =
            secret.data.and_then(|mut data| data.remove("ca.crt")).context("the certificate's Secret has no CA")?;
        Ok(Target {
            addresses: story.cluster.nodes.iter().map(|node| SocketAddr::from((node.address, port))).collect(),
            server_name: format!("{}.{}.svc", self.name, story.namespace),
            ca_pem: ca.0,
        })
    }

    /// New devices that connect to `mqtts` and do what the group does.
    ///
    /// # Errors
    /// As [`Fleet::target`] and [`World::register`].
    pub async fn devices(&self, count: usize, group: &Group) -> anyhow::Result<Devices> {
        Devices::start(&self.target("mqtts").await?, self.world.register(count)?, group)
    }

    /// Ends the devices and asks the hub what it has of what they sent: nothing acknowledged may be missing, and twice may be
    /// only what a lost connection left unacknowledged.
    ///
    /// # Errors
    /// Something is lost, or there more often than QoS 1 allows.
    pub async fn none_lost(&self, devices: Devices) -> anyhow::Result<Verdict> {
        Ok(self.finish(devices).await?.0)
    }

    /// As [`Fleet::none_lost`], with what the devices saw.
    ///
    /// # Errors
    /// As [`Fleet::none_lost`].
    pub async fn finish(&self, devices: Devices) -> anyhow::Result<(Verdict, Outcome)> {
        let window = devices.window as u64;
        let (verdict, outcome) = self.finish_after_faults(devices).await?;
        let lost: usize = outcome.devices.iter().map(|device| device.lost_at.len()).sum();
        let most = lost as u64 * window;
        ensure!(verdict.duplicated <= most, "{verdict}; {lost} lost connections of {window} messages explain {most}");
        Ok((verdict, outcome))
    }

    /// As [`Fleet::finish`], where the hub failed and may have stored what it did not say.
    ///
    /// # Errors
    /// Something is lost.
    pub async fn finish_after_faults(&self, devices: Devices) -> anyhow::Result<(Verdict, Outcome)> {
        let run = devices.run.clone();
        let outcome = devices.finish().await?;
        let verdict = self.world.judge(&run, &outcome)?;
        xtask::step::say(&format!("{}: {verdict}", self.name));
        if verdict.lost > 0 {
            bail!("acknowledged messages are not at the hub: {verdict}");
        }
        Ok((verdict, outcome))
    }
}

/// A condition of an object.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == type_)
}

/// Puts `over` on `base`: objects field by field, all else whole. A field that is null is left out.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                if value.is_null() {
                    base.remove(&key);
                } else {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_story_says_wins_field_by_field() {
        let mut base = json!({"a": {"b": 1, "c": [1]}, "d": 2});
        merge(&mut base, json!({"a": {"c": [2, 3], "e": {"f": 4}}, "d": null}));
        assert_eq!(base, json!({"a": {"b": 1, "c": [2, 3], "e": {"f": 4}}}));
    }
}
