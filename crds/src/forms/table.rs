//! The table of forms, in the order of the spec.

use super::{Field, Form};

const fn number(path: &'static str, min: i64, max: i64, default: &'static str) -> Field {
    Field { path, form: Form::Number(min, max), default }
}

const fn time(path: &'static str, min: &'static str, max: &'static str, default: &'static str) -> Field {
    Field { path, form: Form::Time(min, max), default }
}

const fn size(path: &'static str, min: &'static str, max: &'static str, default: &'static str) -> Field {
    Field { path, form: Form::Size(min, max), default }
}

const fn form(path: &'static str, form: Form) -> Field {
    Field { path, form, default: "" }
}

const fn text(path: &'static str, length: (u64, u64), cel: &'static str, message: &'static str) -> Field {
    form(path, Form::Text { length, cel, message })
}

const fn plain(path: &'static str, min: u64, max: u64) -> Field {
    text(path, (min, max), "", "")
}

const fn secret(path: &'static str) -> Field {
    text(
        path,
        (1, 253),
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$') && !self.contains('..')",
        "give the name of a Secret in this namespace: lower-case letters, digits, '-' and '.'",
    )
}

const fn one_of(path: &'static str, cel: &'static str, message: &'static str) -> Field {
    text(path, (0, 63), cel, message)
}

const fn class(path: &'static str) -> Field {
    text(
        path,
        (1, 253),
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "give the name of a class of this cluster: lower-case letters, digits, '-' and '.'",
    )
}

const fn label_value(path: &'static str) -> Field {
    text(
        path,
        (0, 63),
        "self.matches('^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$')",
        "write a label's value of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    )
}

const fn host(path: &'static str) -> Field {
    text(
        path,
        (1, 253),
        "self.matches('^([A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)([.][A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*$')",
        "write a host name as in contoso.azure-devices.net, without scheme or port",
    )
}

const fn dns_name(path: &'static str) -> Field {
    text(
        path,
        (1, 253),
        "self.matches('^([*][.])?[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$')",
        "write a DNS name in lower case as in gw.example.com or *.example.com, without scheme or port",
    )
}

const fn ip(path: &'static str) -> Field {
    text(path, (2, 45), "isIP(self)", "write an IP address, without port")
}

const fn amqp_address(path: &'static str) -> Field {
    text(
        path,
        (1, 1024),
        "self.contains('{deviceId}') && !self.replace('{deviceId}', '').matches('[{}]')",
        "write an address such as telemetry/{deviceId}; {deviceId} is the only variable, and tells who sent",
    )
}

const PORT_NAME: &str = "use 1 to 15 lower-case letters, digits and '-', with a letter, no '-' at either end or twice in a row, \
     and not admin or health";

/// Every field that not any value of its type may stand in.
pub(super) const FIELDS: &[Field] = &[
    form("listeners", Form::Keyed(1, 16, "name")),
    text(
        "listeners[].name",
        (1, 15),
        "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$') && self.matches('[a-z]') && !self.contains('--') && \
         !(self in ['admin', 'health'])",
        PORT_NAME,
    ),
    plain("listeners[].address", 1, 45),
    number("listeners[].port", 1, 65_535, ""),
    secret("authentication.sas.deviceKeys.secretName"),
    form("authentication.sas.enrollmentGroups", Form::Keyed(0, 64, "name")),
    plain("authentication.sas.enrollmentGroups[].name", 1, 128),
    secret("authentication.sas.enrollmentGroups[].secretName"),
    secret("authentication.x509.clientCASecretName"),
    host("upstream.iotHub.hostName"),
    form("upstream.iotHub.hostNameAliases", Form::Set(0, 32)),
    host("upstream.iotHub.hostNameAliases[]"),
    number("upstream.iotHub.port", 1, 65_535, ""),
    plain("upstream.iotHub.policy.name", 1, 64),
    secret("upstream.iotHub.policy.secretName"),
    number("upstream.iotHub.devicesPerConnectionMax", 1, 1000, ""),
    secret("upstream.iotHub.caSecretName"),
    text(
        "upstream.amqp.url",
        (1, 320),
        "self.matches('^amqps?://([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\\\\[[0-9A-Fa-f:.]+\\\\])(:[1-9][0-9]{0,4})?/?$') && \
         !self.contains('..')",
        "write it as amqps://broker.example:5671, without user, password and path",
    ),
    amqp_address("upstream.amqp.telemetryAddress"),
    amqp_address("upstream.amqp.commandAddress"),
    secret("upstream.amqp.saslPlain.secretName"),
    secret("upstream.amqp.clientCertificate.secretName"),
    secret("upstream.amqp.caSecretName"),
    number("upstream.amqp.devicesPerConnectionMax", 1, 10_000, ""),
    number("upstream.limits.connectionsMax", 1, 10_000, "64"),
    number("upstream.limits.linksPerSessionMax", 2, 65_535, "256"),
    number("upstream.limits.tokensInflightMax", 1, 1000, "30"),
    time("upstream.limits.requestTimeout", "100ms", "10m", "30s"),
    time("upstream.limits.settleTimeout", "100ms", "1h", "60s"),
    time("upstream.limits.outageMax", "0s", "24h", "5m"),
    time("upstream.limits.backoffMin", "10ms", "1m", "500ms"),
    time("upstream.limits.backoffMax", "10ms", "1h", "30s"),
    time("upstream.limits.idleTimeout", "1s", "24h", "210s"),
    size("upstream.limits.frameBytesMax", "512B", "1MiB", "64KiB"),
    size("upstream.limits.outputBytesMax", "64KiB", "64MiB", "1MiB"),
    size("upstream.limits.unsettledBytesMax", "1MiB", "64GiB", "256MiB"),
    time("upstream.limits.tokenTtl", "1m", "24h", "1h"),
    form("topics.inbound", Form::List(1, 32)),
    plain("topics.inbound[]", 1, 1024),
    number("limits.connectionsMax", 1, 1_000_000, "18000"),
    number("limits.connectsPerSecond", 1, 100_000, "500"),
    number("limits.handshakesMax", 1, 10_000, "5000"),
    size("limits.packetBytesMax", "1KiB", "32MiB", "messageBytesMax and room for a topic"),
    size("limits.unauthenticatedBytesMax", "64KiB", "1GiB", "64MiB"),
    size("limits.messageBytesMax", "1KiB", "16MiB", "256KiB"),
    number("limits.propertiesMax", 1, 1024, "256"),
    number("limits.inflightMax", 1, 1000, "16"),
    time("limits.handshakeTimeout", "100ms", "5m", "10s"),
    time("limits.keepAliveMax", "1s", "24h", "1767s"),
    time("limits.tokenExpiryGrace", "0s", "24h", "5m"),
    time("limits.clockSkewMax", "0s", "1h", "5m"),
    size("limits.outputBytesMax", "4KiB", "16MiB", "256KiB"),
    time("limits.writeTimeout", "100ms", "10m", "30s"),
    Field { path: "limits.drainPerSecond", form: Form::Fraction(0.001, 100_000.0), default: "10" },
    time("limits.drainAloneAfter", "0s", "1h", "5s"),
    time("limits.drainTimeout", "0s", "24h", "30s"),
    time("limits.shutdownTimeout", "0s", "1h", "25s"),
    ip("admin.address"),
    number("admin.port", 1, 65_535, ""),
    number("admin.healthPort", 1, 65_535, ""),
    secret("admin.tls.secretName"),
    secret("admin.tls.clientCASecretName"),
    number("replicas", 0, 1000, ""),
    number("scaling.minReplicas", 1, 1000, ""),
    number("scaling.maxReplicas", 1, 1000, ""),
    number("scaling.connectionsPerReplica", 1, 1_000_000, ""),
    number("scaling.cpuUtilization", 1, 100, ""),
    time("scaling.scaleDownAfter", "0s", "1h", ""),
    number("reconnects.perSecond", 1, 100_000, ""),
    time("reconnects.drainTimeout", "1s", "24h", ""),
    form("reconnects.rebalance.skewMax", Form::Fraction(1.01, 10.0)),
    secret("tls.secretName"),
    form("tls.selfSigned.dnsNames", Form::Set(0, 64)),
    dns_name("tls.selfSigned.dnsNames[]"),
    form("tls.selfSigned.ipAddresses", Form::Set(0, 64)),
    ip("tls.selfSigned.ipAddresses[]"),
    time("tls.selfSigned.duration", "1h", "19800h", ""),
    plain("tls.certManager.issuerRef.name", 1, 253),
    plain("tls.certManager.issuerRef.kind", 1, 63),
    plain("tls.certManager.issuerRef.group", 1, 253),
    form("tls.certManager.dnsNames", Form::Set(0, 64)),
    dns_name("tls.certManager.dnsNames[]"),
    form("tls.certManager.ipAddresses", Form::Set(0, 64)),
    ip("tls.certManager.ipAddresses[]"),
    time("tls.certManager.duration", "1h", "87600h", ""),
    form("service.annotations", Form::Map(64)),
    form("service.nodePorts", Form::Map(16)),
    number("service.nodePorts{}", 1, 65_535, ""),
    plain("service.loadBalancerClass", 1, 253),
    form("service.loadBalancerSourceRanges", Form::Set(0, 64)),
    text(
        "service.loadBalancerSourceRanges[]",
        (3, 49),
        "isCIDR(self)",
        "write a range of addresses such as 10.0.0.0/8",
    ),
    time("service.idleTimeout", "2s", "24h", ""),
    text(
        "pod.image",
        (1, 512),
        "self.matches('^[a-z0-9][-a-zA-Z0-9._:/]*[a-zA-Z0-9](@sha256:[0-9a-f]{64})?$')",
        "write an image as in registry.example/gateway:1.2.3 or registry.example/gateway@sha256:…",
    ),
    form("pod.imagePullSecrets", Form::List(0, 16)),
    secret("pod.imagePullSecrets[].name"),
    form("pod.resources.limits", Form::Map(8)),
    form("pod.resources.limits{}", Form::KubernetesQuantity),
    form("pod.resources.requests", Form::Map(8)),
    form("pod.resources.requests{}", Form::KubernetesQuantity),
    form("pod.labels", Form::Map(64)),
    label_value("pod.labels{}"),
    form("pod.annotations", Form::Map(64)),
    form("pod.nodeSelector", Form::Map(64)),
    label_value("pod.nodeSelector{}"),
    form("pod.tolerations", Form::List(0, 64)),
    one_of("pod.tolerations[].operator", "self in ['', 'Exists', 'Equal']", "write Exists or Equal"),
    one_of(
        "pod.tolerations[].effect",
        "self in ['', 'NoSchedule', 'PreferNoSchedule', 'NoExecute']",
        "write NoSchedule, PreferNoSchedule or NoExecute; leave it out for all of them",
    ),
    form("pod.topologySpreadConstraints", Form::List(0, 16)),
    form("pod.topologySpreadConstraints[].maxSkew", Form::Number(1, 10_000)),
    plain("pod.topologySpreadConstraints[].topologyKey", 1, 317),
    one_of(
        "pod.topologySpreadConstraints[].whenUnsatisfiable",
        "self in ['DoNotSchedule', 'ScheduleAnyway']",
        "write DoNotSchedule or ScheduleAnyway",
    ),
    class("pod.priorityClassName"),
    class("pod.runtimeClassName"),
    text(
        "pod.logLevel",
        (1, 256),
        "self.matches('^([A-Za-z0-9_:]+=)?(off|error|warn|info|debug|trace)(,([A-Za-z0-9_:]+=)?(off|error|warn|info|debug|trace))*$')",
        "write levels (off, error, warn, info, debug, trace), as in info or warn,gateway=debug",
    ),
];
