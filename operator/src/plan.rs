//! `operator plan`: how many pods, and how long drains, rollouts and losses take within the budget.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    path::Path,
    process::ExitCode,
};

use crds::{ProtocolGateway, ProtocolGatewaySpec, status};
use planner::whatif::{self, Outlook, Question};
use serde_json::{Value, json};

use crate::{cli, desired::MIN_READY_S, observe::Observed, scaling};

/// `limits.connectsPerSecond` where none is given.
const CONNECTS_PER_SECOND: i64 = 500;
/// `limits.connectionsMax` where none is given.
const CONNECTIONS_MAX: i64 = 18_000;

/// A file that is larger is none that an API server would take.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Exit code of a file that cannot be read or is wrong.
const EXIT_FILE: u8 = 2;

/// Carries out `operator plan`.
pub fn command(flags: &cli::Plan) -> ExitCode {
    let what_if = WhatIf { connections: flags.connections, pods: flags.pods, nodes: flags.nodes };
    let answered = read(&flags.file).and_then(|text| answer(&text, what_if).map_err(|error| error.to_string()));
    match answered {
        Ok(outlook) => {
            match flags.output {
                cli::Output::Text => print!("{}", text(&outlook, what_if)),
                cli::Output::Json => println!("{:#}", json(&outlook, what_if)),
            }
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("error: {}: {problem}", flags.file.display());
            ExitCode::from(EXIT_FILE)
        }
    }
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let stream: Box<dyn Read> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).map_err(|error| error.to_string())?)
    };
    stream.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("it has more than {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// What is asked beside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WhatIf {
    /// Devices connected.
    pub connections: u64,
    /// Pods; `None`: as many as are needed.
    pub pods: Option<u32>,
    /// Nodes that they are spread over; `None`: one for each pod.
    pub nodes: Option<u32>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not YAML, or not a ProtocolGateway.
    #[error("it is not a ProtocolGateway: {0}")]
    Form(String),
    /// Something else.
    #[error(
        "kind {kind} of {api_version} is not what is planned: expected kind {} of {}",
        crds::KIND,
        crds::API_VERSION
    )]
    Kind {
        /// What stands there as `kind`.
        kind: String,
        /// What stands there as `apiVersion`.
        api_version: String,
    },
    /// More than one of them.
    #[error("it has several documents: give one ProtocolGateway, without a line of ---")]
    Several,
    /// A ProtocolGateway, but not one that can be.
    #[error("spec.{path}: {problem}")]
    Value {
        /// Which field.
        path: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

/// The outlook of the ProtocolGateway that `text` (YAML) declares.
///
/// # Errors
/// What is wrong with the text.
pub fn answer(text: &str, what_if: WhatIf) -> Result<Outlook, PlanError> {
    let form = |error: serde_saphyr::Error| match error.without_snippet() {
        serde_saphyr::Error::MultipleDocuments { .. } => PlanError::Several,
        _ => PlanError::Form(error.to_string()),
    };
    let written: Value = serde_saphyr::from_str(text).map_err(form)?;
    check_kind(&written)?;
    let schema = json!(crds::definition());
    let schema = &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    if let Some(path) = unknown(&written["spec"], schema, "spec") {
        return Err(PlanError::Form(format!("it has no field {path}")));
    }
    let gateway: ProtocolGateway = serde_saphyr::from_str(text).map_err(form)?;
    check(&gateway.spec)?;
    Ok(whatif::outlook(&question(&gateway, what_if)))
}

fn check_kind(written: &Value) -> Result<(), PlanError> {
    let [kind, api_version] = ["kind", "apiVersion"].map(|name| written[name].as_str().unwrap_or("(none)"));
    if (kind, api_version) == (crds::KIND, crds::API_VERSION) {
        return Ok(());
    }
    Err(PlanError::Kind { kind: kind.to_owned(), api_version: api_version.to_owned() })
}

/// The first field that is written and that the schema does not know: it would be passed over, and the answer be wrong.
fn unknown(written: &Value, schema: &Value, path: &str) -> Option<String> {
    if let Value::Array(items) = written {
        return items.iter().find_map(|item| unknown(item, &schema["items"], &format!("{path}[]")));
    }
    let (fields, known) = (written.as_object()?, schema["properties"].as_object()?);
    fields.iter().find_map(|(name, value)| {
        let path = format!("{path}.{name}");
        match known.get(name) {
            Some(schema) => unknown(value, schema, &path),
            None => Some(path),
        }
    })
}

/// What a cluster would refuse, as far as the answer depends on it.
fn check(spec: &ProtocolGatewaySpec) -> Result<(), PlanError> {
    let value = |path, problem: String| Err(PlanError::Value { path, problem });
    if !(1..=i64::from(u32::MAX)).contains(&spec.reconnects.per_second) {
        return value("reconnects.perSecond", format!("{} is not at least 1", spec.reconnects.per_second));
    }
    if spec.reconnects.drain_timeout.duration().is_none() {
        return value(
            "reconnects.drainTimeout",
            format!("{:?} is not a time such as 10m", spec.reconnects.drain_timeout.0),
        );
    }
    if spec.replicas < 0 {
        return value("replicas", format!("{} is not a number of pods", spec.replicas));
    }
    match &spec.scaling {
        Some(scaling) if scaling.min_replicas > scaling.max_replicas => {
            let (min, max) = (scaling.min_replicas, scaling.max_replicas);
            value("scaling", format!("minReplicas ({min}) must not be above maxReplicas ({max})"))
        }
        Some(scaling) if scaling.min_replicas < 0 => value("scaling.minReplicas", "it is below 0".to_owned()),
        Some(scaling) if scaling.connections_per_replica < 1 => {
            value("scaling.connectionsPerReplica", "it is not at least 1".to_owned())
        }
        _ => Ok(()),
    }
}

fn question(gateway: &ProtocolGateway, what_if: WhatIf) -> Question {
    let (spec, limits) = (scaling::spec(gateway), &gateway.spec.limits);
    let connects = limits.connects_per_second.unwrap_or(CONNECTS_PER_SECOND);
    Question {
        pods: what_if.pods,
        connections: what_if.connections,
        per_second: spec.per_second,
        drain_timeout: spec.drain_timeout,
        connects_per_second: u32::try_from(connects).unwrap_or(u32::MAX),
        connections_max: u64::try_from(limits.connections_max.unwrap_or(CONNECTIONS_MAX)).unwrap_or(0),
        min_ready_s: i64::from(MIN_READY_S),
        scaling: scaling::bounds(gateway),
        replicas: spec.replicas,
        nodes: what_if.nodes,
    }
}

/// The same of the fleet as it is, for its status.
pub(crate) fn outlook_now(
    gateway: &ProtocolGateway,
    observed: &Observed,
    connections: Option<i64>,
) -> Option<status::Outlook> {
    let connections = u64::try_from(connections?).ok()?;
    let pods = u32::try_from(gateway.spec.replicas).ok();
    let outlook = whatif::outlook(&question(gateway, WhatIf { connections, pods, nodes: nodes(observed) }));
    Some(status::Outlook {
        pods_needed: i32::try_from(outlook.pods_needed).unwrap_or(i32::MAX),
        drain_seconds: outlook.drain_s,
        rollout_seconds: outlook.rollout_s,
        node_drain_seconds: outlook.node_drain_s,
        node_loss_seconds: outlook.node_loss_s,
    })
}

/// Nodes that pods run on; `None` where none is known.
fn nodes(observed: &Observed) -> Option<u32> {
    let running = observed.pods.iter().filter(|pod| !pod.terminating);
    let nodes: BTreeSet<&str> = running.filter_map(|pod| pod.node.as_deref()).collect();
    u32::try_from(nodes.len()).ok().filter(|nodes| *nodes > 0)
}

/// What does not fit of the fleet as it is, and what to do. A fleet of none is not wrong.
pub(crate) fn problems_now(gateway: &ProtocolGateway, observed: &Observed) -> Vec<String> {
    let loads = observed.pods.iter().filter_map(|pod| pod.load.as_ref());
    let connections = loads.map(|load| u64::try_from(load.connections).unwrap_or(0)).sum();
    let pods = u32::try_from(gateway.spec.replicas).ok().filter(|pods| *pods > 0);
    let Some(pods) = pods else { return Vec::new() };
    let nodes = nodes(observed);
    let outlook = whatif::outlook(&question(gateway, WhatIf { connections, pods: Some(pods), nodes }));
    // a single pod is what the user chose, and a single node may be all that there is
    let alone = pods == 1 || nodes == Some(1);
    outlook.problems.into_iter().filter(|problem| !alone || !problem.starts_with("when ")).collect()
}

/// For people.
pub fn text(outlook: &Outlook, what_if: WhatIf) -> String {
    let mut text = String::new();
    let pods = format!("{} ({} devices on each)", outlook.pods, outlook.connections_per_pod);
    let lost = format!(
        "{} ({} devices of {} pods, not held to the budget)",
        time(outlook.node_loss_s),
        outlook.node_loss_devices,
        outlook.pods_per_node
    );
    for (what, value) in [
        ("devices", what_if.connections.to_string()),
        ("pods needed", outlook.pods_needed.to_string()),
        ("pods", pods),
        ("a drain of one pod takes", time(outlook.drain_s)),
        ("a rollout takes", time(outlook.rollout_s)),
        ("draining a node takes", time(outlook.node_drain_s)),
        ("after a node's loss all are back in", lost),
    ] {
        writeln!(text, "{what:<36}{value}").expect("a String takes it");
    }
    for problem in &outlook.problems {
        writeln!(text, "! {problem}").expect("a String takes it");
    }
    text
}

/// `1h 2m 3s`.
fn time(seconds: i64) -> String {
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let said: Vec<String> =
        parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect();
    if said.is_empty() { "0s".to_owned() } else { said.join(" ") }
}

/// For programs.
pub fn json(outlook: &Outlook, what_if: WhatIf) -> serde_json::Value {
    json!({
        "connections": what_if.connections,
        "podsNeeded": outlook.pods_needed,
        "pods": outlook.pods,
        "connectionsPerPod": outlook.connections_per_pod,
        "drainSeconds": outlook.drain_s,
        "rolloutSeconds": outlook.rollout_s,
        "podsPerNode": outlook.pods_per_node,
        "nodeDrainSeconds": outlook.node_drain_s,
        "nodeLossDevices": outlook.node_loss_devices,
        "nodeLossSeconds": outlook.node_loss_s,
        "problems": outlook.problems,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "\
apiVersion: protocolgateway.io/v1alpha1
kind: ProtocolGateway
metadata: {name: plant-a}
spec:
  upstream: {iotHub: {hostName: contoso.azure-devices.net}}
  scaling: {minReplicas: 2, maxReplicas: 40, connectionsPerReplica: 5000}
  reconnects: {perSecond: 100, drainTimeout: 20m}
";
    const WHAT_IF: WhatIf = WhatIf { connections: 50_000, pods: None, nodes: None };

    #[test]
    fn the_text_says_how_many_and_how_long() {
        let outlook = answer(GATEWAY, WHAT_IF).expect("it is a ProtocolGateway");
        let expected = "\
devices                             50000
pods needed                         10
pods                                10 (5000 devices on each)
a drain of one pod takes            1m 5s
a rollout takes                     10m 50s
draining a node takes               1m 5s
after a node's loss all are back in 2s (5000 devices of 1 pods, not held to the budget)
";
        assert_eq!(text(&outlook, WHAT_IF), expected);
    }

    #[test]
    fn the_json_has_the_same_numbers() {
        let outlook = answer(GATEWAY, WHAT_IF).expect("it is a ProtocolGateway");
        let json = json(&outlook, WHAT_IF);
        assert_eq!(
            (&json["podsNeeded"], &json["drainSeconds"], &json["problems"]),
            (&json!(10), &json!(65), &json!([]))
        );
    }

    #[test]
    fn a_bad_file_is_refused_with_what_is_wrong() {
        let check = |from: &str, to: &str, expected: &str| {
            let text = GATEWAY.replace(from, to);
            assert_ne!(text, GATEWAY, "{from}");
            let error = answer(&text, WHAT_IF).expect_err(to).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("perSecond: 100", "perSecond: 0", "spec.reconnects.perSecond: 0 is not at least 1");
        check("20m", "soon", "spec.reconnects.drainTimeout: \"soon\" is not a time such as 10m");
        check("minReplicas: 2", "minReplicas: 50", "minReplicas (50) must not be above maxReplicas (40)");
        check("perSecond", "persecond", "it has no field spec.reconnects.persecond");
        check("spec:", "spec: [", "it is not a ProtocolGateway: ");
        let expected = "expected kind ProtocolGateway of protocolgateway.io/v1alpha1";
        check(
            "kind: ProtocolGateway",
            "kind: Deployment",
            &format!("kind Deployment of protocolgateway.io/v1alpha1 is not what is planned: {expected}"),
        );
        check("kind: ProtocolGateway\n", "", expected);
        check("v1alpha1", "v1", expected);
        check("20m}\n", "20m}\n---\nkind: Secret\n", "it has several documents: give one ProtocolGateway");
    }
}
