//! What the API server tells: each kind is watched on a task of its own, told to the mirror, and by it to the queue.

use std::{collections::HashSet, fmt::Debug, pin::pin, sync::Arc};

use futures_util::StreamExt;
use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler,
    core::v1::{Pod, Secret},
};
use kube::{
    Api, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt,
        watcher::{self, Config, watcher},
    },
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::{World, lists::Expected};
use crate::{
    kinds::{GATEWAY, Kind, OWNED, SECRET},
    names,
    observe::{
        mirror::{self, Mirrored, Name, Owner},
        pods,
    },
};

/// How many objects a list brings at a time: an answer is held as a whole.
const PAGE: u32 = 100;

/// What a watch tells.
enum Change<K> {
    /// It is there, as this.
    Is(K),
    /// It is gone.
    Gone(K),
    /// A list ended: what is not in it is gone. What was written while it was made may be missed here, and is told of next.
    Listed(HashSet<Name>),
}

/// Begins to watch everything that every cluster has, in every namespace that is watched.
pub(super) fn begin(world: &Arc<World>, tasks: &mut JoinSet<()>) {
    for namespace in scopes(&world.namespaces) {
        for kind in OWNED.into_iter().chain([&GATEWAY]).filter(|kind| kind.everywhere) {
            begin_kind(world, kind, namespace.clone(), tasks);
        }
        let (shared, synced) = (world.clone(), world.lists.expect(namespace.as_deref()));
        let scope = namespace.clone();
        tasks.spawn(async move { watch_autoscalers(&shared, scope, synced).await });
        let (shared, synced) = (world.clone(), world.lists.expect(namespace.as_deref()));
        let scope = namespace.clone();
        tasks.spawn(async move { watch_pods(&shared, scope, synced).await });
        let (shared, synced) = (world.clone(), world.lists.expect(namespace.as_deref()));
        tasks.spawn(async move { watch_secrets(&shared, namespace, synced).await });
    }
}

/// Ends when one of the tasks does, which none ever should: why it did.
pub(super) async fn ended(tasks: &mut JoinSet<()>) -> String {
    match tasks.join_next().await {
        Some(Err(fault)) => format!("a watch ended by a fault of the program: {fault}"),
        _ => "a watch ended".to_owned(),
    }
}

/// Watches kinds that not every cluster has while it has them. Nothing waits for these.
pub(super) async fn optional(world: Arc<World>) {
    let mut apis = world.apis.clone();
    let mut tasks: [(&'static Kind, JoinSet<()>); 2] =
        [(&crate::kinds::POD_MONITOR, JoinSet::new()), (&crate::kinds::CERTIFICATE, JoinSet::new())];
    loop {
        let there = apis.borrow_and_update().clone();
        for (kind, tasks) in &mut tasks {
            let wanted = if kind.name == "PodMonitor" { there.pod_monitor } else { there.cert_manager };
            if !wanted {
                // not only aborted: what has ended is no longer among them, and the kind can be watched anew
                tasks.shutdown().await;
                world.mirror.names(kind).iter().for_each(|name| drop(world.mirror.remove(kind, name)));
            } else if tasks.is_empty() {
                for namespace in scopes(&world.namespaces) {
                    let world = world.clone();
                    let kind: &'static Kind = kind;
                    tasks.spawn(async move { watch_kind(&world, kind, namespace, None).await });
                }
            }
        }
        let [(_, monitors), (_, certificates)] = &mut tasks;
        tokio::select! {
            changed = apis.changed() => if changed.is_err() { return },
            why = ended(monitors), if !monitors.is_empty() => return error!("{why}"),
            why = ended(certificates), if !certificates.is_empty() => return error!("{why}"),
        }
    }
}

fn scopes(namespaces: &[String]) -> Vec<Option<String>> {
    if namespaces.is_empty() { vec![None] } else { namespaces.iter().cloned().map(Some).collect() }
}

fn begin_kind(world: &Arc<World>, kind: &'static Kind, namespace: Option<String>, tasks: &mut JoinSet<()>) {
    let (world, synced) = (world.clone(), world.lists.expect(namespace.as_deref()));
    tasks.spawn(async move { watch_kind(&world, kind, namespace, Some(synced)).await });
}

fn ours() -> Config {
    Config::default().page_size(PAGE).labels(&format!("{}={}", names::MANAGED_BY, names::FIELD_MANAGER))
}

async fn watch_kind(world: &World, kind: &'static Kind, namespace: Option<String>, synced: Option<Expected>) {
    let config = if *kind == GATEWAY { Config::default().page_size(PAGE) } else { ours() };
    let api = kind.api(&world.writer.client, namespace.as_deref());
    let mirror = &world.mirror;
    follow(world, kind.name, api, config, synced, |change| match change {
        Change::Is(object) => {
            let name = Name::of(&object.metadata);
            if let Some((before, now)) = mirror.put(kind, object) {
                world.concerns(kind, &name, before.map(|before| before.owner.clone()).as_ref());
                world.concerns(kind, &name, Some(&now.owner));
            }
        }
        Change::Gone(object) => {
            let name = Name::of(&object.metadata);
            concerned(world, kind, &name, mirror.went(kind, &object.metadata));
        }
        Change::Listed(there) => {
            let known = mirror.names(kind).into_iter().filter(|name| is_in(name, namespace.as_ref()));
            known.filter(|name| !there.contains(name)).for_each(|name| gone(world, kind, &name));
        }
    })
    .await;
}

/// One that a list does not hold any more.
fn gone(world: &World, kind: &'static Kind, name: &Name) {
    concerned(world, kind, name, world.mirror.remove(kind, name));
}

/// `was` went: its owner is to be looked at.
fn concerned(world: &World, kind: &'static Kind, name: &Name, was: Option<Arc<Mirrored>>) {
    if let Some(object) = was {
        world.concerns(kind, name, Some(&object.owner));
    }
    world.went(kind);
}

fn is_in(name: &Name, namespace: Option<&String>) -> bool {
    namespace.is_none_or(|namespace| name.namespace == *namespace)
}

impl World {
    /// Queues whom an object concerns.
    fn concerns(&self, kind: &Kind, name: &Name, owner: Option<&Owner>) {
        match owner {
            _ if *kind == GATEWAY => self.work.add(name),
            Some(Owner::Gateway { name: gateway, .. } | Owner::Orphan { instance: gateway }) => {
                self.work.add(&Name::new(&name.namespace, gateway));
            }
            Some(Owner::Other) | None => {}
        }
    }
}

async fn watch_pods(world: &World, namespace: Option<String>, synced: Expected) {
    let api: Api<Pod> = scoped(world, namespace.as_deref());
    follow(world, "Pod", api, ours(), Some(synced), |change| match change {
        Change::Is(pod) => {
            let Some(fleet) = pods::fleet(&pod) else { return };
            let changed = if pods::ended(&pod) {
                world.mirror.remove_pod(&fleet, &pod.name_any())
            } else {
                world.mirror.put_pod(&fleet, pods::seen(&pod))
            };
            if changed {
                world.work.add(&fleet);
            }
        }
        Change::Gone(pod) => {
            if let Some(fleet) = pods::fleet(&pod).filter(|fleet| world.mirror.remove_pod(fleet, &pod.name_any())) {
                world.work.add(&fleet);
            }
        }
        Change::Listed(there) => {
            let known = world.mirror.pod_names().into_iter();
            for (fleet, pod) in known.filter(|(fleet, _)| is_in(fleet, namespace.as_ref())) {
                if !there.contains(&Name::new(&fleet.namespace, &pod)) && world.mirror.remove_pod(&fleet, &pod) {
                    world.work.add(&fleet);
                }
            }
        }
    })
    .await;
}

/// Those of others, which may aim at what is ours.
async fn watch_autoscalers(world: &World, namespace: Option<String>, synced: Expected) {
    let api: Api<HorizontalPodAutoscaler> = scoped(world, namespace.as_deref());
    // those of the operator's are watched as all that it makes
    let config = Config::default().page_size(PAGE).labels(&format!("{}!={}", names::MANAGED_BY, names::FIELD_MANAGER));
    let put = |autoscaler: &Name, aim| {
        world.mirror.put_autoscaler(autoscaler, aim).iter().for_each(|fleet| world.work.add(fleet));
    };
    follow(world, "HorizontalPodAutoscaler", api, config, Some(synced), |change| match change {
        Change::Is(autoscaler) => {
            let aim = autoscaler
                .spec
                .as_ref()
                .map(|spec| (spec.scale_target_ref.kind.clone(), spec.scale_target_ref.name.clone()));
            put(&Name::of(&autoscaler.metadata), aim);
        }
        Change::Gone(autoscaler) => put(&Name::of(&autoscaler.metadata), None),
        Change::Listed(there) => {
            let known = world.mirror.autoscaler_names().into_iter();
            let known = known.filter(|name| is_in(name, namespace.as_ref()));
            known.filter(|name| !there.contains(name)).for_each(|name| put(&name, None));
        }
    })
    .await;
}

/// By their metadata alone: the data of Secrets that nobody names is never asked for.
async fn watch_secrets(world: &World, namespace: Option<String>, synced: Expected) {
    let api: Api<PartialObjectMeta<Secret>> = scoped(world, namespace.as_deref());
    let config = Config::default().page_size(PAGE);
    let changed = |secret: &Name, version: Option<&str>| {
        world.secrets.changed(secret, version).iter().for_each(|gateway| world.work.add(gateway));
    };
    follow(world, "Secret", api, config, Some(synced), |change| match change {
        Change::Is(secret) => {
            let name = Name::of(&secret.metadata);
            changed(&name, secret.metadata.resource_version.as_deref());
            if mirror::owner(&secret.metadata) != Owner::Other {
                let metadata = secret.metadata;
                world
                    .mirror
                    .put(&SECRET, kube::core::DynamicObject { types: None, metadata, data: serde_json::json!({}) });
            }
        }
        Change::Gone(secret) => {
            let name = Name::of(&secret.metadata);
            changed(&name, None);
            concerned(world, &SECRET, &name, world.mirror.went(&SECRET, &secret.metadata));
        }
        Change::Listed(there) => {
            let mut known: HashSet<Name> = world.secrets.present(namespace.as_deref()).into_iter().collect();
            known.extend(world.mirror.names(&SECRET).into_iter().filter(|name| is_in(name, namespace.as_ref())));
            for name in known.iter().filter(|name| !there.contains(name)) {
                changed(name, None);
                gone(world, &SECRET, name);
            }
        }
    })
    .await;
}

fn scoped<K>(world: &World, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(world.writer.client.clone(), namespace),
        None => Api::all(world.writer.client.clone()),
    }
}

/// Watches for ever; after failures again, later each time.
async fn follow<K>(
    world: &World,
    kind: &str,
    api: Api<K>,
    config: Config,
    mut synced: Option<Expected>,
    mut take: impl FnMut(Change<K>),
) where
    K: Resource + Clone + Debug + Send + DeserializeOwned + 'static,
{
    let namespace = api.namespace().map(str::to_owned);
    let mut stream = pin!(watcher(api, config).default_backoff());
    let mut listed = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(Name::of(object.meta()));
                take(Change::Is(object));
            }
            Ok(watcher::Event::InitDone) => {
                debug!(kind, objects = listed.len(), "listed");
                take(Change::Listed(std::mem::take(&mut listed)));
                // what was kept back until now is looked at
                if synced.take().is_some_and(Expected::was_given_up) {
                    info!(kind, namespace, "listed at last");
                    world.all();
                }
            }
            Ok(watcher::Event::Apply(object)) => take(Change::Is(object)),
            Ok(watcher::Event::Delete(object)) => take(Change::Gone(object)),
            Err(error) => {
                world.own.watch_failures.with_label_values(&[kind]).inc();
                warn!(kind, namespace, %error, "watch failed");
                if let Some(synced) = &mut synced {
                    let is_given_up = if is_forbidden(&error) { synced.refused() } else { synced.failed() };
                    if is_given_up {
                        warn!(
                            kind,
                            namespace,
                            "the operator may not list it: nothing there is reconciled until it may; others go on"
                        );
                    }
                }
            }
        }
    }
}

/// Whether the operator has not the right to list.
fn is_forbidden(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::InitialListFailed(kube::Error::Api(status)) if status.code == 403)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_watch_that_ends_is_told_with_its_reason() {
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending());
        tasks.spawn(async { panic!("no such namespace") });
        let why = ended(&mut tasks).await;
        assert!(why.contains("a fault of the program") && why.contains("no such namespace"), "{why}");
        tasks.spawn(async {});
        assert_eq!(ended(&mut tasks).await, "a watch ended");
        assert_eq!(tasks.len(), 1, "the others go on");
    }
}
