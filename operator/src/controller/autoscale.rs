//! Scales a fleet through `/scale` where no HorizontalPodAutoscaler can see its connections, by the rule of one.
//!
//! Only the number that is asked for is written, as an autoscaler or a user does; what becomes of it is the plan's matter.

use std::time::Duration;

use crds::ProtocolGateway;
use kube::{Api, api::Patch};
use serde_json::json;
use tracing::info;

use super::World;
use crate::{
    apply::merging,
    error::{ReconcileError, Step},
    kinds::GATEWAY,
    metrics_api::Reading,
    observe::{CustomMetrics, Observed, mirror::Name},
    orders::Book,
    pods::Fleet,
    scaling,
};

/// As often as a HorizontalPodAutoscaler looks.
const PERIOD: Duration = Duration::from_secs(15);

impl World {
    /// Asks for as many pods as there should be, if nobody else does; after what time to look again.
    pub(super) async fn autoscale(
        &self,
        gateway: &mut ProtocolGateway,
        observed: &Observed,
        book: &mut Book,
    ) -> Result<Option<Duration>, ReconcileError> {
        if !scales_itself(gateway, observed) {
            book.history = planner::autoscale::History::default();
            return Ok(None);
        }
        let name = Name::of(&gateway.metadata);
        let fleet = Fleet::from(&name);
        let connections = self.pods.measured(&fleet).and_then(|measured| Reading::from(measured).connections);
        let reported = connections.and_then(|connections| self.meter.reported(&fleet, connections));
        let from = gateway.spec.replicas;
        let to = scaling::autoscale(gateway, &mut book.history, reported, scaling::millis(observed.now));
        if let Some(to) = to.filter(|to| *to != from) {
            let api: Api<ProtocolGateway> = Api::namespaced(self.writer.client.clone(), &name.namespace);
            // whoever changed it since this was decided has the last word
            let version = gateway.metadata.resource_version.as_deref();
            let scale = json!({"metadata": {"resourceVersion": version}, "spec": {"replicas": to}});
            let (parameters, patch) = (merging(), Patch::Merge(&scale));
            let write = api.patch_scale(&name.name, &parameters, &patch);
            let answer = self.writer.write(Step::Apply, &format!("{} {}", GATEWAY.name, name.name), write).await?;
            // that change is ours: it stands in the way of no status
            gateway.metadata.resource_version = answer.metadata.resource_version;
            self.metrics.writes.with_label_values(&["Scale"]).inc();
            info!(gateway = %name, from, to, reported, "scaled by its connections");
        }
        Ok(Some(PERIOD))
    }
}

/// Whether the operator is the fleet's autoscaler: there is to be one, it cannot be one of Kubernetes', and it is nobody
/// else's.
fn scales_itself(gateway: &ProtocolGateway, observed: &Observed) -> bool {
    let serves = match observed.apis.custom_metrics {
        CustomMetrics::Ours | CustomMetrics::Nobody | CustomMetrics::Unknown => true,
        CustomMetrics::Foreign | CustomMetrics::Off | CustomMetrics::Unreachable | CustomMetrics::Unregistered => false,
    };
    gateway.spec.scaling.is_some() && !serves && observed.autoscalers.of_gateway.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::observe::{Apis, Autoscalers};

    fn check(scaling: &Value, custom_metrics: CustomMetrics, autoscaler: Option<&str>, expected: bool) {
        let gateway = json!({
            "apiVersion": crds::API_VERSION, "kind": crds::KIND, "metadata": {"name": "a"},
            "spec": {"upstream": {"iotHub": {"hostName": "hub.azure-devices.net"}}, "scaling": scaling},
        });
        let gateway: ProtocolGateway = serde_json::from_value(gateway).expect("it is one");
        let of_gateway = autoscaler.map(str::to_owned).into_iter().collect();
        let observed = Observed {
            apis: Apis { custom_metrics, ..Apis::default() },
            autoscalers: Autoscalers { of_gateway, ..Autoscalers::default() },
            ..Observed::default()
        };
        assert_eq!(scales_itself(&gateway, &observed), expected, "{scaling} {custom_metrics:?} {autoscaler:?}");
    }

    #[test]
    fn the_operator_is_an_autoscaler_only_where_there_can_be_no_other() {
        let scaling = json!({"minReplicas": 1, "maxReplicas": 4});
        check(&scaling, CustomMetrics::Foreign, None, true);
        check(&scaling, CustomMetrics::Off, None, true);
        check(&scaling, CustomMetrics::Unreachable, None, true);
        check(&scaling, CustomMetrics::Unregistered, None, true);
        check(&scaling, CustomMetrics::Ours, None, false);
        check(&scaling, CustomMetrics::Nobody, None, false);
        check(&scaling, CustomMetrics::Unknown, None, false);
        check(&Value::Null, CustomMetrics::Foreign, None, false);
        check(&scaling, CustomMetrics::Foreign, Some("HorizontalPodAutoscaler theirs"), false);
    }
}
