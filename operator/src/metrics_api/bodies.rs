//! What is answered, as JSON. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::paths::{GROUP, Metric, Version, Wanted, resource};

/// Over how long rates are, in seconds.
const RATE_WINDOW_S: u64 = 15;
/// Quantities have no more than this, in thousandths.
const MILLI_MAX: f64 = 9e18;

/// The versions of the group.
pub fn group() -> Value {
    let versions: Vec<Value> = Version::ALL.into_iter().map(version).collect();
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": GROUP,
        "versions": versions, "preferredVersion": version(Version::V1Beta2),
    })
}

fn version(version: Version) -> Value {
    json!({"groupVersion": version.group_version(), "version": version.name()})
}

/// What there is in a version.
pub fn resources(version: Version) -> Value {
    let resource = |metric: Metric| {
        json!({
            "name": format!("{}/{}", resource(), metric.name()), "singularName": "", "namespaced": true,
            "kind": "MetricValueList", "verbs": ["get"],
        })
    };
    let resources: Vec<Value> = Metric::ALL.into_iter().map(resource).collect();
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version.group_version(), "resources": resources})
}

/// No schemas, version 2.
pub fn openapi_v2() -> Value {
    json!({"swagger": "2.0", "info": {"title": GROUP, "version": env!("CARGO_PKG_VERSION")}, "paths": {}})
}

/// No schemas, version 3.
pub fn openapi_v3() -> Value {
    json!({"paths": {}})
}

/// A list of exactly one value, of the time when it was heard: clients take no other.
pub fn value(wanted: &Wanted, metric: Metric, value: f64, heard: Timestamp) -> Value {
    let object = json!({
        "kind": crds::KIND, "apiVersion": crds::API_VERSION, "namespace": wanted.namespace, "name": wanted.name,
    });
    let window = (metric != Metric::Connections).then_some(RATE_WINDOW_S);
    let timestamp = Timestamp::from_second(heard.as_second()).unwrap_or(heard).to_string();
    let value = quantity(value);
    let item = match wanted.version {
        Version::V1Beta2 => json!({
            "describedObject": object, "metric": {"name": metric.name(), "selector": null},
            "timestamp": timestamp, "windowSeconds": window, "value": value,
        }),
        Version::V1Beta1 => json!({
            "describedObject": object, "metricName": metric.name(),
            "timestamp": timestamp, "window": window, "value": value, "selector": null,
        }),
    };
    json!({
        "kind": "MetricValueList", "apiVersion": wanted.version.group_version(), "metadata": {}, "items": [item],
    })
}

/// As Kubernetes reads it: a whole number, or thousandths.
fn quantity(value: f64) -> String {
    let milli = (value.max(0.0) * 1000.0).round().min(MILLI_MAX) as u64;
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

/// Why there is no other answer, as clients of Kubernetes read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub code: u16,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

impl Refusal {
    /// Nobody knows who asks.
    pub fn unauthorized() -> Self {
        Self { code: 401, reason: "Unauthorized", message: "Unauthorized".to_owned() }
    }

    /// Who asks may not.
    pub fn forbidden(user: &str, wanted: &Wanted, why: Option<&str>) -> Self {
        let Wanted { resource, metric, name, namespace, .. } = wanted;
        let why = why.filter(|why| !why.is_empty()).map(|why| format!(": {why}")).unwrap_or_default();
        let message = format!(
            "{resource}.{GROUP} \"{name}\" is forbidden: User \"{user}\" cannot get resource \"{resource}/{metric}\" in API \
             group \"{GROUP}\" in the namespace \"{namespace}\"{why}"
        );
        Self { code: 403, reason: "Forbidden", message }
    }

    /// There is no such path, object or metric.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { code: 404, reason: "NotFound", message: message.into() }
    }

    /// Only GET.
    pub fn method() -> Self {
        Self { code: 405, reason: "MethodNotAllowed", message: "metrics can only be read".to_owned() }
    }

    /// `/apis` in one answer: clients then ask for each group.
    pub fn not_acceptable() -> Self {
        Self { code: 406, reason: "NotAcceptable", message: "only discovery of single groups is served".to_owned() }
    }

    /// The question makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { code: 400, reason: "BadRequest", message: message.into() }
    }

    /// The API server cannot be asked who may.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { code: 503, reason: "ServiceUnavailable", message: message.into() }
    }

    /// As `metav1.Status`.
    pub fn body(&self) -> Value {
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(version: Version) -> Wanted {
        Wanted {
            version,
            namespace: "plants".to_owned(),
            resource: resource(),
            name: "a".to_owned(),
            metric: "gateway_connections".to_owned(),
        }
    }

    #[test]
    fn quantities_are_whole_or_thousandths() {
        for (value, expected) in [
            (0.0, "0"),
            (41_500.0, "41500"),
            (1.5, "1500m"),
            (0.0004, "0"),
            (0.0005, "1m"),
            (12.3456, "12346m"),
            (-1.0, "0"),
            (f64::NAN, "0"),
            (f64::INFINITY, "9000000000000000"),
        ] {
            assert_eq!(quantity(value), expected, "{value}");
        }
    }

    #[test]
    fn each_version_has_its_own_names_for_the_same() {
        let now = Timestamp::from_millisecond(1_500).expect("a time");
        let newer = value(&wanted(Version::V1Beta2), Metric::ConnectsPerSecond, 2.5, now);
        assert_eq!(
            newer,
            json!({
                "kind": "MetricValueList", "apiVersion": "custom.metrics.k8s.io/v1beta2", "metadata": {},
                "items": [{
                    "describedObject": {
                        "kind": "ProtocolGateway", "namespace": "plants", "name": "a",
                        "apiVersion": "protocolgateway.io/v1alpha1",
                    },
                    "metric": {"name": "gateway_connects_per_second", "selector": null},
                    "timestamp": "1970-01-01T00:00:01Z", "windowSeconds": 15, "value": "2500m",
                }],
            })
        );
        let older = value(&wanted(Version::V1Beta1), Metric::Connections, 7.0, now);
        let item = &older["items"][0];
        assert_eq!(
            (&item["metricName"], &item["window"], &item["value"]),
            (&json!("gateway_connections"), &Value::Null, &json!("7"))
        );
    }

    #[test]
    fn discovery_names_every_metric_in_every_version() {
        for version in Version::ALL {
            let list = resources(version);
            assert_eq!(list["groupVersion"], json!(version.group_version()));
            let names: Vec<&str> =
                list["resources"].as_array().expect("a list").iter().filter_map(|each| each["name"].as_str()).collect();
            assert_eq!(
                names,
                Metric::ALL.map(|metric| format!("protocolgateways.protocolgateway.io/{}", metric.name()))
            );
        }
        assert_eq!(group()["preferredVersion"]["version"], json!("v1beta2"));
    }
}
