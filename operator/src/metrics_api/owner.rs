//! The cluster-scoped object that owns what the operator makes for itself.

use k8s_openapi::{api::rbac::v1::ClusterRole, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{Api, Client, ResourceExt};

/// A ClusterRole by name. Cheap to clone.
#[derive(Clone)]
pub(super) struct Owner {
    client: Client,
    name: Option<String>,
}

impl Owner {
    pub(super) fn new(client: Client, name: Option<String>) -> Self {
        Self { client, name }
    }

    /// `None` if no owner was named, or it is not there.
    pub(super) async fn reference(&self) -> kube::Result<Option<OwnerReference>> {
        let Some(name) = &self.name else { return Ok(None) };
        let role: Option<ClusterRole> = Api::all(self.client.clone()).get_opt(name).await?;
        Ok(role.and_then(|role| {
            Some(OwnerReference {
                api_version: "rbac.authorization.k8s.io/v1".to_owned(),
                kind: "ClusterRole".to_owned(),
                name: role.name_any(),
                uid: role.uid()?,
                ..OwnerReference::default()
            })
        }))
    }
}
