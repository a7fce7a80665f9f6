//! (ProtocolGateway, what was observed) → objects, certificates, problems and status, as YAML in `cases/*`.
//!
//! Each case is a directory: `gateway.yaml` and `observed.yaml` in, `desired.yaml` and `status.yaml` out. With
//! `GOLDEN=write` what comes out is written instead of compared: look at the difference before committing it.

#[path = "support/cases.rs"]
mod cases;

use std::{fs, path::Path};

use crds::ProtocolGateway;
use gateway_core::config::GatewayConfig;
use operator::{
    desired::{self, Desired, Invalid},
    scaling::{self, Ledger},
    status::status,
};
use serde_json::{Value, json};

use self::cases::{EPOCH, cases, decide, installation};

fn shown(decided: &Result<Desired, Invalid>) -> Value {
    match decided {
        Ok(desired) => json!(desired),
        Err(invalid) => json!({"invalid": invalid.0.iter().map(ToString::to_string).collect::<Vec<_>>()}),
    }
}

fn compare(path: &Path, value: &Value, stale: &mut Vec<String>) {
    let text = serde_yaml::to_string(value).expect("it is YAML");
    if std::env::var("GOLDEN").is_ok_and(|golden| golden == "write") {
        fs::write(path, text).expect("it can be written");
    } else if fs::read_to_string(path).unwrap_or_default() != text {
        stale.push(format!("{}:\n{text}", path.display()));
    }
}

#[test]
fn every_case_comes_out_as_it_was_agreed() {
    let mut stale = Vec::new();
    for case in cases() {
        let (gateway, observed, plan, decided) = decide(&case);
        compare(&case.join("desired.yaml"), &shown(&decided), &mut stale);
        compare(&case.join("status.yaml"), &json!(status(&gateway, &observed, &plan, &decided)), &mut stale);
    }
    assert!(stale.is_empty(), "{}", stale.join("\n"));
}

#[test]
fn the_same_is_said_twice_and_a_status_that_was_written_stays() {
    for case in cases() {
        let (mut gateway, mut observed, plan, decided) = decide(&case);
        assert_eq!(decide(&case).3, decided, "{}", case.display());
        let first = status(&gateway, &observed, &plan, &decided);
        gateway.status = Some(first.clone());
        observed.now += jiff::SignedDuration::from_secs(60);
        let mut second = status(&gateway, &observed, &plan, &decided);
        // a change of scale that is still ahead is dated anew
        second.last_scale = first.last_scale.clone();
        assert_eq!(second, first, "{}", case.display());
    }
}

#[test]
fn pods_are_replaced_only_for_what_a_running_gateway_cannot_follow() {
    let case = cases().remove(0);
    let installation = installation();
    let templates = |change: fn(&mut ProtocolGateway)| {
        let (mut gateway, observed, ..) = decide(&case);
        change(&mut gateway);
        let plan = scaling::plan(&gateway, &observed, EPOCH, &Ledger::new(0, &[]));
        let desired = desired::desired(&gateway, &observed, &plan, &installation).expect("the spec is right");
        let of_kind = |kind: &str, path: &str| {
            let objects = desired.objects.iter().map(|object| json!(object));
            objects.filter(|object| object["kind"] == kind).map(|object| object.pointer(path).cloned()).next().flatten()
        };
        (of_kind("ConfigMap", "/data").expect("there is one"), of_kind("Deployment", "/spec/template"))
    };
    let before = templates(|_| {});
    // whether pods are replaced; the configuration changes or not
    let check = |what: &str, replaced: bool, change: fn(&mut ProtocolGateway)| {
        let after = templates(change);
        assert_eq!(after.1 != before.1, replaced, "{what}");
        assert!(after != before, "{what} changes nothing");
    };
    check("a limit", false, |gateway| gateway.spec.limits.connects_per_second = Some(77));
    check("the budget", false, |gateway| gateway.spec.reconnects.per_second = 7);
    check("the hub", true, |gateway| {
        gateway.spec.upstream.iot_hub.as_mut().expect("it has a hub").host_name = "other.example".to_owned();
    });
    // what the pod itself is made of
    check("the drain timeout", true, |gateway| {
        gateway.spec.reconnects.drain_timeout = serde_json::from_value(json!("17m")).expect("it is a time");
    });
    check("the image", true, |gateway| gateway.spec.pod.image = Some("registry.example/gateway:2.0.0".to_owned()));
}

#[test]
fn old_pods_are_reached_until_they_are_gone() {
    let case = cases().into_iter().find(|case| case.ends_with("34-old-pods-keep-their-ports-during-a-rollout"));
    let (gateway, mut observed, plan, decided) = decide(&case.expect("it is there"));
    let installation = installation();
    let object = |desired: &Desired, kind: &str| {
        desired.objects.iter().map(|object| json!(object)).find(|object| object["kind"] == kind).expect("it is made")
    };
    let during = decided.expect("the spec is right");
    let template = &object(&during, "Deployment")["spec"]["template"]["metadata"]["annotations"];
    let started_with = template["protocolgateway.io/started-with"].as_str().map(str::to_owned);
    let mut check = |new: usize, expected: [&[u16]; 2], targets: [Value; 2]| {
        for pod in observed.pods.iter_mut().take(new) {
            pod.started_with.clone_from(&started_with);
            pod.ports = [("devices", 8883), ("web", 8443)].map(|(name, port)| (name.to_owned(), port)).into();
        }
        let desired = desired::desired(&gateway, &observed, &plan, &installation).expect("the spec is right");
        let policy = &object(&desired, "NetworkPolicy")["spec"];
        let ports = |way: &str| -> Vec<u64> {
            let ports = policy[way][0]["ports"].as_array().expect("it names ports");
            ports.iter().filter_map(|port| port["port"].as_u64()).collect()
        };
        let expected = expected.map(|ports| ports.iter().copied().map(u64::from).collect::<Vec<_>>());
        assert_eq!([ports("ingress"), ports("egress")], expected, "{new} pods are new");
        let service = object(&desired, "Service");
        assert_eq!(
            [0, 1].map(|port| service["spec"]["ports"][port]["targetPort"].clone()),
            targets,
            "{new} pods are new"
        );
    };
    let both: [&[u16]; 2] = [&[443, 8443, 8883, 9090, 9191], &[443, 5671]];
    // the first listener has another name, the second is new
    check(0, both, [json!(8883), json!("web")]);
    check(1, both, [json!(8883), json!("web")]);
    check(2, [&[8443, 8883, 9191], &[443]], [json!("devices"), json!("web")]);
}

/// What every pod of every case must be, whatever the spec says.
#[test]
fn no_pod_has_rights_that_it_does_not_need() {
    for case in cases() {
        let Ok(desired) = decide(&case).3 else { continue };
        for object in desired.objects.iter().map(|object| json!(object)).filter(|object| object["kind"] == "Deployment")
        {
            let pod = &object["spec"]["template"]["spec"];
            assert_eq!(pod["automountServiceAccountToken"], false);
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
            for container in pod["containers"].as_array().expect("it has containers") {
                let security = &container["securityContext"];
                assert_eq!(security["allowPrivilegeEscalation"], false);
                assert_eq!(security["readOnlyRootFilesystem"], true);
                assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
            }
        }
    }
}

#[test]
fn every_object_is_owned_named_within_63_and_labelled() {
    for case in cases() {
        let (gateway, _, _, Ok(desired)) = decide(&case) else { continue };
        for object in &desired.objects {
            let title = desired::title(object);
            let metadata = &object.metadata;
            assert!(metadata.name.as_ref().is_some_and(|name| name.len() <= 63), "{title}");
            assert_eq!(metadata.namespace, gateway.metadata.namespace, "{title}");
            let owners = metadata.owner_references.as_ref().expect("it has owners");
            assert!(owners.len() == 1 && owners[0].controller == Some(true) && owners[0].kind == crds::KIND, "{title}");
            // who may block its deletion needs a right to the owner's finalizers
            assert_eq!(owners[0].block_owner_deletion, None, "{title}");
            let labels = metadata.labels.as_ref().expect("it has labels");
            assert!(labels.values().all(|value| value.len() <= 63), "{title}");
            assert_eq!(labels["app.kubernetes.io/managed-by"], operator::names::FIELD_MANAGER, "{title}");
        }
    }
}

#[test]
fn the_written_configuration_is_one_that_a_gateway_takes() {
    for case in cases() {
        let Ok(desired) = decide(&case).3 else { continue };
        let objects = desired.objects.iter().map(|object| json!(object));
        for object in objects.filter(|object| object["kind"] == "ConfigMap") {
            let text = object["data"]["gateway.yaml"].as_str().expect("it holds the file");
            let config = GatewayConfig::parse(text).unwrap_or_else(|errors| panic!("{}: {errors:?}", case.display()));
            assert!(config.check().is_ok(), "{}: {:?}", case.display(), config.check());
        }
    }
}
