//! Watches a fleet's pods while a story goes on: how many devices each had when it was told to stop, and when it ended.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::ensure;
use cluster::Story;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams},
};
use tokio::task::JoinHandle;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// What was seen of one pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Devices that status told of last before the pod was told to stop.
    pub(crate) devices_before: Option<i64>,
    /// It was told to stop.
    pub(crate) told: bool,
    /// Devices that it was to let go because fewer pods are wanted: the most that its drain told of.
    pub(crate) ordered: u64,
}

/// Looks until it is dropped.
pub(crate) struct Watch {
    pods: Arc<Mutex<BTreeMap<String, Seen>>>,
    task: JoinHandle<()>,
}

impl Watch {
    pub(crate) fn begin(story: &Story, fleet: &str) -> Self {
        let pods: Arc<Mutex<BTreeMap<String, Seen>>> = Arc::default();
        let seen = Arc::clone(&pods);
        let (client, namespace, fleet) = (story.client.clone(), story.namespace.clone(), fleet.to_owned());
        let task = tokio::spawn(async move {
            let resource = ApiResource::erase::<crds::ProtocolGateway>(&());
            let fleets: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
            let api: Api<Pod> = Api::namespaced(client, &namespace);
            let ours = ListParams::default().labels(&format!("app.kubernetes.io/instance={fleet}"));
            loop {
                // a look that fails is made again
                if let (Ok(object), Ok(list)) = (fleets.get(&fleet).await, api.list(&ours).await) {
                    look(&mut seen.lock().unwrap_or_else(PoisonError::into_inner), &object, &list.items);
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Self { pods, task }
    }

    /// Pods that were told to stop, by name.
    pub(crate) async fn ended(&self) -> BTreeMap<String, Seen> {
        // what happened a moment ago is seen too
        tokio::time::sleep(2 * LOOK).await;
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.iter().filter(|(_, seen)| seen.told).map(|(name, seen)| (name.clone(), seen.clone())).collect()
    }

    /// Devices that pods were to let go because fewer of them are wanted.
    pub(crate) async fn ordered(&self) -> u64 {
        tokio::time::sleep(2 * LOOK).await;
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.values().map(|seen| seen.ordered).sum()
    }

    /// Every pod that was told to stop had no device any more, and there was at least one such pod.
    pub(crate) async fn all_left_empty(&self) -> anyhow::Result<()> {
        let ended = self.ended().await;
        ensure!(!ended.is_empty(), "no pod was told to stop");
        for (name, seen) in ended {
            ensure!(seen.devices_before == Some(0), "{name} was told to stop with {:?} devices", seen.devices_before);
        }
        Ok(())
    }
}

fn look(seen: &mut BTreeMap<String, Seen>, fleet: &DynamicObject, pods: &[Pod]) {
    for pod in pods {
        let name = pod.name_any();
        let entry = seen.entry(name.clone()).or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            entry.told = true;
        } else if let Some(devices) = devices(fleet, &name) {
            entry.devices_before = Some(devices);
        }
    }
    for drain in fleet.data["status"]["drains"].as_array().into_iter().flatten() {
        if drain["cause"] == "ScaleIn"
            && let (Some(pod), Some(remaining)) = (drain["pod"].as_str(), drain["remaining"].as_u64())
        {
            let entry = seen.entry(pod.to_owned()).or_default();
            entry.ordered = entry.ordered.max(remaining);
        }
    }
}

/// As status tells.
fn devices(fleet: &DynamicObject, pod: &str) -> Option<i64> {
    let pods = fleet.data["status"]["pods"].as_array()?;
    pods.iter().find(|each| each["name"] == pod)?["connections"].as_i64()
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
