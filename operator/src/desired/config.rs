//! The gateway's configuration: the spec's gateway half, verbatim, in a ConfigMap.

use aws_lc_rs::digest;
use crds::ProtocolGatewaySpec;
use gateway_core::config::{Admin, AdminTls, GatewayConfig, Quantity, Rate};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::DynamicObject;
use planner::budget::{alone_after, alone_share};

use super::{Checked, Context, Invalid, Problem, object};
use crate::{names, observe::Observed, secrets};

/// Key of the ConfigMap, and name of the file.
pub const FILE: &str = "gateway.yaml";

/// Where the kubelet asks, which has no certificate to ask at the admin port with.
const HEALTH_PORT: i64 = 8081;

/// The configuration that the spec asks for.
pub(super) fn wanted(context: &Context<'_>) -> Result<Checked, Invalid> {
    let spec = &context.gateway.spec;
    let control = names::control(&context.name);
    let admin = Admin {
        address: Some("0.0.0.0".to_owned()),
        port: spec.admin.port,
        health_port: Some(spec.admin.health_port.unwrap_or(HEALTH_PORT)),
        tls: Some(AdminTls { secret_name: control.clone(), client_ca_secret_name: control }),
    };
    let mut config = spec.gateway_config(Some(serving_secret(context)), admin);
    follow_budget(&mut config, context);
    let settings = config.check().map_err(Invalid)?;
    Ok(Checked { config, settings })
}

/// Pods that go alone keep to the budget that the planner reckons with.
fn follow_budget(config: &mut GatewayConfig, context: &Context<'_>) {
    let spec = &context.gateway.spec;
    config.limits.drain_per_second = Some(Rate(drain_per_second(spec, context.observed.pods.len())));
    config.limits.drain_alone_after = Some(Quantity(drain_alone_after(context.installation.lease_seconds)));
    config.limits.drain_timeout = Some(spec.reconnects.drain_timeout.clone());
}

/// One pod's share of the budget where nobody coordinates them; `pods` is how many there are.
pub fn drain_per_second(spec: &ProtocolGatewaySpec, pods: usize) -> f64 {
    let most = spec.scaling.as_ref().map_or(spec.replicas, |scaling| scaling.max_replicas.max(spec.replicas));
    let per_second = u32::try_from(spec.reconnects.per_second).unwrap_or(0);
    alone_share(per_second, u32::try_from(most).unwrap_or(0), u32::try_from(pods).unwrap_or(u32::MAX))
}

/// How long a pod waits for an order before it goes alone, in whole seconds.
fn drain_alone_after(lease_seconds: u16) -> String {
    let alone_after = alone_after(i64::from(lease_seconds) * 1000).unsigned_abs();
    format!("{}s", alone_after.div_ceil(1000))
}

/// The Secret with the listeners' certificate: the user's, or the one that we or cert-manager fill.
pub(super) fn serving_secret(context: &Context<'_>) -> String {
    context.gateway.spec.tls.secret_name.clone().unwrap_or_else(|| names::serving(&context.name))
}

/// The configuration that pods run by now, if it can be read.
pub(super) fn in_force(observed: &Observed) -> Option<Checked> {
    let config = GatewayConfig::parse(observed.config_in_force.as_deref()?).ok()?;
    let settings = config.check().ok()?;
    Some(Checked { config, settings })
}

/// The same, but for the budget, which follows the spec whatever else of it cannot be followed.
pub(super) fn last_good(context: &Context<'_>) -> Option<Checked> {
    let before = in_force(context.observed)?;
    let mut config = before.config.clone();
    follow_budget(&mut config, context);
    let settings = config.check();
    Some(settings.map_or(before, |settings| Checked { config, settings }))
}

/// What is wrong with the Secrets that users make.
pub(super) fn references(context: &Context<'_>, wanted: &Checked) -> Vec<Problem> {
    let tls = &context.gateway.spec.tls;
    let serving = tls.secret_name.is_none().then(|| names::serving(&context.name));
    let ours: Vec<String> = serving.into_iter().chain([names::control(&context.name)]).collect();
    let referenced = secrets::referenced(&wanted.config);
    let theirs = referenced.into_iter().filter(|reference| !ours.contains(&reference.secret_name));
    theirs.filter_map(|reference| secrets::judge(&reference, context.observed).err()).collect()
}

pub(super) fn config_map(context: &Context<'_>, checked: &Checked) -> DynamicObject {
    object(&ConfigMap {
        metadata: names::owned(context.gateway, &context.name),
        data: Some([(FILE.to_owned(), text(checked))].into()),
        ..ConfigMap::default()
    })
}

fn text(checked: &Checked) -> String {
    serde_yaml::to_string(&checked.config).expect("a configuration is YAML")
}

/// Hash of what a pod follows only by a restart. It reads its file and its Secrets again when they change.
pub(super) fn started_with(checked: &Checked) -> String {
    hash(&checked.settings.restart_text())
}

/// What names a configuration's text, as pods say it of theirs: the first 8 bytes of its SHA-256 in lower-case hexadecimal.
pub fn hash(text: &str) -> String {
    secrets::hex(&digest::digest(&digest::SHA256, text.as_bytes()).as_ref()[..8])
}

#[cfg(test)]
mod tests {
    use gateway_core::config::Quantity;

    use super::drain_alone_after;

    #[test]
    fn pods_wait_for_orders_for_as_long_as_the_lease_may_make_them_late() {
        let check = |lease_seconds, expected: &str| {
            let text = drain_alone_after(lease_seconds);
            assert_eq!(text, expected, "{lease_seconds} s");
            let time = Quantity(text).duration().expect("it is a time");
            assert!(time.as_secs() <= 3600, "the gateway takes no more than an hour");
        };
        check(3, "31s");
        check(15, "31s");
        check(16, "32s");
        check(30, "41s");
        check(300, "221s");
    }
}
