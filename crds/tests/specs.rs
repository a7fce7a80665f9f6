//! What the API server says to specs: the table `specs.yaml`, judged by the definition's schema and rules.

mod support;
#[path = "specs/texts.rs"]
mod texts;

use crds::ProtocolGateway;
use gateway_core::config::{Admin, ConfigError};
use serde_json::{Value, json};

use self::support::{
    ApiServer,
    table::{Case, Table},
};

/// What the gateway itself says to the gateway half, as the operator would write it.
fn gateway_check(stored: &Value) -> Result<(), String> {
    let gateway: ProtocolGateway = serde_json::from_value(stored.clone()).map_err(|error| error.to_string())?;
    let admin = Admin { port: gateway.spec.admin.port, ..gateway.spec.admin.clone() };
    let config = gateway.spec.gateway_config(Some("tls".to_owned()), admin);
    config.check().map(drop).map_err(|errors| errors.iter().map(ConfigError::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn what_works_is_taken_and_works_in_a_gateway() {
    let server = ApiServer::new();
    for case in Table::read().valid {
        assert_eq!(server.create(&case.object()), Vec::<String>::new(), "{}", case.title);
        assert_eq!(gateway_check(&server.stored(&case.object())), Ok(()), "{}", case.title);
    }
}

#[test]
fn what_a_gateway_refuses_is_refused_before_it_with_words_that_help() {
    let server = ApiServer::new();
    for case in Table::read().gateway {
        refuse(&server, &case);
        assert!(gateway_check(&server.stored(&case.object())).is_err(), "{}: a gateway takes it", case.title);
    }
}

#[test]
fn what_cannot_work_on_a_cluster_is_refused_with_words_that_help() {
    let server = ApiServer::new();
    Table::read().cluster.iter().for_each(|case| refuse(&server, case));
}

fn refuse(server: &ApiServer, case: &Case) {
    assert!(!case.error.is_empty(), "{}: name the error", case.title);
    let errors = server.create(&case.object());
    assert!(errors.iter().any(|error| error.contains(&case.error)), "{}: {errors:#?}", case.title);
    let unevaluated = |error: &&String| error.contains("evaluation") || error.contains("compil");
    assert_eq!(errors.iter().find(unevaluated), None, "{}", case.title);
}

#[test]
fn the_table_holds_what_the_issue_asks_for() {
    assert!(Table::read().cases().count() >= 60);
}

/// Words of which one is in every message: what is wrong is not enough.
const TELLING: [&str; 14] = [
    "set ", "write ", "give ", "name ", "use ", "choose ", "raise ", "lower ", "keep ", "leave ", "must ", "need ",
    "takes ", "are ",
];

#[test]
fn every_rule_has_a_message_that_says_what_to_do() {
    let server = ApiServer::new();
    let mut rules = 0;
    walk(server.schema(), "", &mut |path: &str, schema: &Value| {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules += 1;
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(TELLING.iter().any(|word| message.contains(word)), "{path}: {message:?}: {}", rule["rule"]);
        }
    });
    assert!(rules >= 60, "{rules} rules were looked at");
}

#[test]
fn every_field_is_described() {
    let server = ApiServer::new();
    let (mut fields, mut silent) = (0, Vec::new());
    walk(server.schema(), "", &mut |path: &str, schema: &Value| {
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            // the API server says what those of every object are
            let of_every_object = path.is_empty() && ["apiVersion", "kind", "metadata"].contains(&name.as_str());
            fields += 1;
            if !of_every_object && field["description"].as_str().is_none_or(|text| text.trim().len() < 8) {
                silent.push(format!("{path}.{name}"));
            }
        }
    });
    assert_eq!(silent, Vec::<String>::new(), "of {fields} fields");
    assert!(fields >= 250, "{fields} fields were looked at");
}

/// Texts of which nothing but the length is judged, and why.
const FREE_TEXT: [(&str, &str); 3] = [
    (".authentication.sas.enrollmentGroups[].name", "the provisioning service's word, which only its keys prove"),
    (".service.annotations{}", "whatever a load balancer reads"),
    (".pod.annotations{}", "whatever somebody reads of pods"),
];

/// Maps whose keys a rule above them judges.
const KEYS_JUDGED_ABOVE: [&str; 3] = [".service.nodePorts", ".pod.resources.limits", ".pod.resources.requests"];

#[test]
fn every_field_of_a_spec_is_bounded_and_its_nonsense_is_refused() {
    let server = ApiServer::new();
    let (mut fields, mut open) = (0, Vec::new());
    walk(&server.schema()["properties"]["spec"], "", &mut |path: &str, schema: &Value| {
        fields += 1;
        if !is_bounded(path, schema) {
            open.push(path.to_owned());
        }
    });
    assert_eq!(open, Vec::<String>::new(), "of {fields} fields");
    assert!(fields >= 300, "{fields} fields were looked at");
}

/// Whether not any value of its type may stand there.
fn is_bounded(path: &str, schema: &Value) -> bool {
    let has = |key: &str| !schema[key].is_null();
    let judged = has("x-kubernetes-validations");
    match schema["type"].as_str() {
        Some("boolean") => true,
        Some("integer" | "number") => has("minimum") && has("maximum"),
        Some("string") => {
            has("enum") || (has("maxLength") && (judged || FREE_TEXT.iter().any(|(free, _)| *free == path)))
        }
        Some("array") => has("maxItems"),
        Some("object") if has("additionalProperties") => {
            has("maxProperties") && (judged || KEYS_JUDGED_ABOVE.contains(&path))
        }
        Some("object") => has("properties"),
        _ => judged,
    }
}

#[test]
fn what_is_said_to_be_free_text_is_there_and_free() {
    let server = ApiServer::new();
    let mut found = std::collections::BTreeMap::new();
    walk(&server.schema()["properties"]["spec"], "", &mut |path: &str, schema: &Value| {
        found.insert(path.to_owned(), schema["x-kubernetes-validations"].is_null());
    });
    for path in FREE_TEXT.iter().map(|(path, _)| path).chain(&KEYS_JUDGED_ABOVE) {
        assert_eq!(found.get(*path), Some(&true), "{path}");
    }
}

/// Every schema in a schema, with its path.
fn walk(schema: &Value, path: &str, look: &mut impl FnMut(&str, &Value)) {
    look(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(field, &format!("{path}.{name}"), look);
    }
    for (key, sign) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[key].is_object() {
            walk(&schema[key], &format!("{path}{sign}"), look);
        }
    }
}

#[test]
fn every_rule_compiles() {
    let server = ApiServer::new();
    let compiled = kube::core::cel::compile_schema(server.schema());
    assert!(!compiled.has_errors(), "{:?}", compiled.compilation_errors());
}

#[test]
fn the_shortest_spec_is_stored_with_its_defaults() {
    let spec = json!({"upstream": {"iotHub": {"hostName": "contoso.azure-devices.net"}}});
    let case: Case = serde_json::from_value(json!({"case": "the shortest", "spec": spec})).expect("it is of the form");
    let stored = ApiServer::new().stored(&case.object());
    assert_eq!(
        stored["spec"],
        json!({
            "upstream": {"iotHub": {"hostName": "contoso.azure-devices.net", "transport": "AMQP"}},
            "replicas": 2,
            "reconnects": {"perSecond": 100, "drainTimeout": "10m"},
            "service": {"type": "LoadBalancer"},
        })
    );
}
