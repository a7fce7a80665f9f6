//! What a request asks for, by its path. Pure.

use percent_encoding::percent_decode_str;

/// The API group.
pub const GROUP: &str = "custom.metrics.k8s.io";
/// Segments of the longest path that is known, and one more.
const SEGMENTS_MAX: usize = 9;

/// A version of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// The one that clients prefer.
    V1Beta2,
    /// The one before.
    V1Beta1,
}

impl Version {
    /// Every one, the preferred one first.
    pub const ALL: [Self; 2] = [Self::V1Beta2, Self::V1Beta1];

    /// As it stands in paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1Beta2 => "v1beta2",
            Self::V1Beta1 => "v1beta1",
        }
    }

    /// `apiVersion` of its objects.
    pub fn group_version(self) -> String {
        format!("{GROUP}/{}", self.name())
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.name() == name)
    }
}

/// A metric of a ProtocolGateway. The names are API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Metric {
    /// Devices connected or on their way back.
    Connections,
    /// Messages per second, both directions.
    MessagesPerSecond,
    /// Devices that connect per second.
    ConnectsPerSecond,
}

impl Metric {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Connections, Self::MessagesPerSecond, Self::ConnectsPerSecond];

    /// As it stands in paths and in HorizontalPodAutoscalers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "gateway_connections",
            Self::MessagesPerSecond => "gateway_messages_per_second",
            Self::ConnectsPerSecond => "gateway_connects_per_second",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|metric| metric.name() == name)
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// Whether this server lives.
    Health,
    /// `/apis`: every group in one answer, which this server does not give.
    Groups,
    /// The versions of the group.
    Group,
    /// What there is in a version.
    Resources(Version),
    /// The schemas, version 2.
    OpenApiV2,
    /// The index of the schemas, version 3.
    OpenApiV3,
    /// A metric of an object.
    Value(Wanted),
    /// Nothing that is here.
    Unknown,
}

/// A metric of an object, as it was asked for: it may not be one of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// In this version.
    pub version: Version,
    /// Namespace of the object.
    pub namespace: String,
    /// `plural.group` of the object's kind.
    pub resource: String,
    /// The object's name.
    pub name: String,
    /// The metric's name.
    pub metric: String,
}

impl Wanted {
    /// The metric, if it is one that ProtocolGateways have.
    pub fn known(&self) -> Option<Metric> {
        Metric::named(&self.metric).filter(|_| self.resource == resource())
    }
}

/// `plural.group` of ProtocolGateways.
pub fn resource() -> String {
    format!("{}.{}", crds::PLURAL, crds::GROUP)
}

/// What a GET of `path` asks for.
pub fn question(path: &str) -> Question {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).take(SEGMENTS_MAX).collect();
    match segments[..] {
        ["healthz" | "livez" | "readyz"] => Question::Health,
        ["openapi", "v2"] => Question::OpenApiV2,
        ["openapi", "v3"] => Question::OpenApiV3,
        ["apis"] => Question::Groups,
        ["apis", GROUP] => Question::Group,
        ["apis", GROUP, version] => Version::named(version).map_or(Question::Unknown, Question::Resources),
        ["apis", GROUP, version, "namespaces", namespace, resource, name, metric] => {
            value(version, [namespace, resource, name, metric]).map_or(Question::Unknown, Question::Value)
        }
        _ => Question::Unknown,
    }
}

fn value(version: &str, segments: [&str; 4]) -> Option<Wanted> {
    let version = Version::named(version)?;
    let decoded =
        segments.map(|segment| percent_decode_str(segment).decode_utf8().ok().map(std::borrow::Cow::into_owned));
    let [Some(namespace), Some(resource), Some(name), Some(metric)] = decoded else { return None };
    Some(Wanted { version, namespace, resource, name, metric })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, expected: &Question) {
        assert_eq!(question(path), *expected, "{path}");
    }

    #[test]
    fn paths_are_questions() {
        check("/healthz", &Question::Health);
        check("/livez", &Question::Health);
        check("/readyz", &Question::Health);
        check("/openapi/v2", &Question::OpenApiV2);
        check("/openapi/v3", &Question::OpenApiV3);
        check("/apis", &Question::Groups);
        check("/apis/", &Question::Groups);
        check("/apis/custom.metrics.k8s.io", &Question::Group);
        check("/apis/custom.metrics.k8s.io/v1beta1", &Question::Resources(Version::V1Beta1));
        check("/apis/custom.metrics.k8s.io/v1beta2", &Question::Resources(Version::V1Beta2));
        check("/apis/custom.metrics.k8s.io/v1", &Question::Unknown);
        check("/apis/apps/v1beta1", &Question::Unknown);
        check("/", &Question::Unknown);
        check("/metrics", &Question::Unknown);
    }

    #[test]
    fn a_metric_is_asked_for_by_object() {
        let base = "/apis/custom.metrics.k8s.io/v1beta2/namespaces/plants/protocolgateways.protocolgateway.io";
        let wanted = |name: &str, metric: &str| Wanted {
            version: Version::V1Beta2,
            namespace: "plants".to_owned(),
            resource: "protocolgateways.protocolgateway.io".to_owned(),
            name: name.to_owned(),
            metric: metric.to_owned(),
        };
        let connections = wanted("a", "gateway_connections");
        check(&format!("{base}/a/gateway_connections"), &Question::Value(connections.clone()));
        assert_eq!(connections.known(), Some(Metric::Connections));
        check(&format!("{base}/%2A/gateway%5Fconnections"), &Question::Value(wanted("*", "gateway_connections")));
        check(&format!("{base}/a/none"), &Question::Value(wanted("a", "none")));
        assert_eq!(wanted("a", "none").known(), None);
        let pods = Wanted { resource: "pods".to_owned(), ..connections };
        assert_eq!(pods.known(), None);
        check(&format!("{base}/a"), &Question::Unknown);
        check(&format!("{base}/a/b/c"), &Question::Unknown);
        check(&format!("{base}/%ff/gateway_connections"), &Question::Unknown);
        check(&format!("{base}{}", "/x".repeat(10_000)), &Question::Unknown);
    }
}
