//! In which order a change is written: nothing that pods in force need changes before the Deployment is taken that brings others.
//!
//! The configuration goes first, so that no pod begins by an old one, and names Secrets that only the new Deployment mounts: so
//! the Deployment is asked for in a rehearsal before it. The Service, which finds ports by name, goes last. Where no Deployment
//! is in force there are no pods, and each goes for itself.

use std::collections::BTreeSet;

use kube::{
    api::{Patch, PatchParams},
    core::DynamicObject,
};

use super::{Memory, Writer, drift, kind_of};
use crate::{
    desired::{self, Desired},
    error::{ReconcileError, Step},
    names,
    observe::Way,
};

/// What a change of the pods consists of, in the order in which it is written.
const CHANGE: [&str; 3] = ["ConfigMap", "Deployment", "Service"];

/// Kinds that are not written for now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Held(BTreeSet<&'static str>);

impl Held {
    /// Every part of a change.
    fn all() -> Self {
        Self(CHANGE.into())
    }

    /// Whether objects of this kind stay as they are, even if they are not wanted any more.
    pub fn holds(&self, kind: &str) -> bool {
        self.0.contains(kind)
    }

    /// An object of this kind was not taken: what comes after it in a change waits. Without pods in force only the Deployment
    /// waits, for its configuration.
    pub(super) fn not_taken(&mut self, kind: &str, is_in_force: bool) {
        let Some(at) = CHANGE.iter().position(|part| *part == kind) else { return };
        let after = CHANGE[at + 1..].iter().filter(|part| is_in_force || **part == "Deployment");
        self.0.extend(after);
    }
}

impl Writer {
    /// What is held from the start: the Deployment while pods are not marked, and with it, or with one that the API server
    /// would not take, the whole change.
    pub(super) async fn held(
        &self,
        desired: &Desired,
        memory: &mut Memory,
        are_marked: bool,
    ) -> Result<Held, ReconcileError> {
        let of_kind = |kind: &str| desired.objects.iter().find(|object| is_of(object, kind));
        let Some(deployment) = of_kind("Deployment").filter(|deployment| self.is_watched(deployment)) else {
            return Ok(Held::default());
        };
        if self.stands(deployment, memory)? {
            return Ok(Held::default());
        }
        if !are_marked {
            return Ok(Held::all());
        }
        let config_stands = of_kind("ConfigMap").map_or(Ok(true), |config| self.stands(config, memory))?;
        let is_free = config_stands || self.rehearse(deployment, memory).await?;
        Ok(if is_free { Held::default() } else { Held::all() })
    }

    /// Whether an object stands as it would be applied.
    fn stands(&self, object: &DynamicObject, memory: &Memory) -> Result<bool, ReconcileError> {
        let kind = kind_of(object)?;
        let (stamped, _) = drift::stamped(object.clone());
        Ok(self.settled(kind, &stamped, &desired::title(object), memory))
    }

    /// Whether the API server, and every webhook that it asks, would take the Deployment. If not, that is remembered as if it
    /// had been written.
    async fn rehearse(&self, deployment: &DynamicObject, memory: &mut Memory) -> Result<bool, ReconcileError> {
        let (title, kind) = (desired::title(deployment), kind_of(deployment)?);
        let (deployment, applied) = drift::stamped(deployment.clone());
        if memory.is_refused(&title, &applied) {
            return Ok(false);
        }
        let api = kind.api(&self.client, deployment.metadata.namespace.as_deref());
        let parameters = PatchParams::apply(names::FIELD_MANAGER).force().dry_run();
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Apply(&deployment);
        match self.write(Step::Apply, &title, api.patch(name, &parameters, &patch)).await {
            Ok(_) => Ok(true),
            Err(error) => memory.ended((Way::Apply, &title), &applied, Err(error)),
        }
    }
}

/// Whether it is what pods are made from.
pub(super) fn is_deployment(object: &DynamicObject) -> bool {
    is_of(object, "Deployment")
}

fn is_of(object: &DynamicObject, kind: &str) -> bool {
    object.types.as_ref().is_some_and(|types| types.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, is_in_force: bool, expected: &[&'static str]) {
        let mut held = Held::default();
        held.not_taken(kind, is_in_force);
        assert_eq!(held, Held(expected.iter().copied().collect()), "{kind} {is_in_force}");
    }

    #[test]
    fn what_comes_after_a_part_that_was_not_taken_waits() {
        check("ConfigMap", true, &["Deployment", "Service"]);
        check("ConfigMap", false, &["Deployment"]);
        check("Deployment", true, &["Service"]);
        check("Deployment", false, &[]);
        check("Service", true, &[]);
        check("NetworkPolicy", true, &[]);
    }
}
