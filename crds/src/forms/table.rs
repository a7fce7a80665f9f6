//! The table of forms, in the order of the spec. Where pods run is a table of its own: [`super::placement`].

use super::{Field, Form};

pub(super) const fn number(path: &'static str, min: i64, max: i64, default: &'static str) -> Field {
    Field { path, form: Form::Number(min, max), default }
}

const fn time(path: &'static str, min: &'static str, max: &'static str, default: &'static str) -> Field {
    Field { path, form: Form::Time(min, max), default }
}

const fn size(path: &'static str, min: &'static str, max: &'static str, default: &'static str) -> Field {
    Field { path, form: Form::Size(min, max), default }
}

pub(super) const fn form(path: &'static str, form: Form) -> Field {
    Field { path, form, default: "" }
}

pub(super) const fn text(path: &'static str, length: (u64, u64), cel: &'static str, message: &'static str) -> Field {
    form(path, Form::Text { length, cel, message })
}

pub(super) const fn plain(path: &'static str, min: u64, max: u64) -> Field {
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

pub(super) const fn one_of(path: &'static str, cel: &'static str, message: &'static str) -> Field {
    text(path, (0, 63), cel, message)
}

/// Something that must hold of a field, beside what its own row says.
pub(super) const fn rule(path: &'static str, cel: &'static str, message: &'static str) -> Field {
    form(path, Form::Rule { cel, message })
}

const fn class(path: &'static str) -> Field {
    text(
        path,
        (1, 253),
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "give the name of a class of this cluster: lower-case letters, digits, '-' and '.'",
    )
}

pub(super) const fn label_value(path: &'static str) -> Field {
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

const fn within_1024_bytes(path: &'static str) -> Field {
    rule(path, "bytes(self).size() <= 1024", "give at most 1024 bytes: letters beyond ASCII take two to four")
}

/// As `gateway_core::topic` reads it, but for braces in a default. Only a gateway looks at what octets a default stands for, and
/// at more than 17 variables for one that stands twice: the API server bounds what rules may cost.
const TEMPLATE: &str = "('/' + self).matches('^(/([^{}+#/\\x00]*|[{][A-Za-z0-9._-]+[}]))*\
                        (/[{][A-Za-z0-9._-]+=([^{}%+#/\\x00]|%[0-9A-Fa-f]{2})*[}])*(/[{][*][A-Za-z0-9._-]+[}])?/?$')";

const TEMPLATE_MESSAGE: &str = "write a template such as devices/{deviceId}/messages/events/{*properties}: between slashes a \
     text without braces, '+' and '#' or a variable {name}, after them variables with defaults {name=default}, last the rest \
     {*name}; a default is percent-encoded";

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
    ip("listeners[].address"),
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
    text(
        "upstream.iotHub.policy.name",
        (1, 64),
        "bytes(self).size() <= 64",
        "give the policy's name in at most 64 bytes: letters beyond ASCII take two to four",
    ),
    secret("upstream.iotHub.policy.secretName"),
    number("upstream.iotHub.devicesPerConnectionMax", 1, 1000, ""),
    secret("upstream.iotHub.caSecretName"),
    text(
        "upstream.amqp.url",
        (1, 320),
        "self.matches('^amqps?://([A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?([.][A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?)*|\\\\[[0-9A-Fa-f:.]+\\\\])(:[0-9]{1,5})?/?$')",
        "write it as amqps://broker.example:5671, without user, password and path",
    ),
    rule(
        "upstream.amqp.url",
        "!self.contains('[') || isIP(self.find('[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*'))",
        "write an IPv6 address between the brackets, as in amqps://[2001:db8::1]:5671",
    ),
    rule(
        "upstream.amqp.url",
        "!self.matches(':[0-9]+/?$') || self.matches(':([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])/?$')",
        "give a port from 1 to 65535, or leave it out",
    ),
    amqp_address("upstream.amqp.telemetryAddress"),
    within_1024_bytes("upstream.amqp.telemetryAddress"),
    amqp_address("upstream.amqp.commandAddress"),
    within_1024_bytes("upstream.amqp.commandAddress"),
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
    text("topics.inbound[]", (1, 1024), TEMPLATE, TEMPLATE_MESSAGE),
    within_1024_bytes("topics.inbound[]"),
    rule(
        "topics.inbound[]",
        "!self.matches('[{](properties[=}]|(deviceId|moduleId)=|[*](deviceId|moduleId)[}])')",
        "write {deviceId} and {moduleId} without a default, and a property bag as {*properties} at the end",
    ),
    rule(
        "topics.inbound[]",
        "!self.contains('{moduleId}') || self.matches('(?s)[{]deviceId[}].*[{]moduleId[}]')",
        "write {deviceId} before {moduleId}",
    ),
    rule(
        "topics.inbound[]",
        "('/' + self).replace('{*', '{').replace('=', '}').split('{', 18).all(part, part.find('^[A-Za-z0-9._-]+[}]') == '' || \
         self.replace('{*', '{').replace('=', '}').split('{' + part.find('^[A-Za-z0-9._-]+[}]')).size() == 2)",
        "use every variable of a template once",
    ),
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
    text(
        "tls.certManager.issuerRef.name",
        (1, 253),
        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')",
        "give the name of an issuer: lower-case letters, digits, '-' and '.'",
    ),
    text(
        "tls.certManager.issuerRef.kind",
        (1, 63),
        "self.matches('^[A-Z][A-Za-z0-9]*$')",
        "write a kind as in Issuer or ClusterIssuer",
    ),
    text(
        "tls.certManager.issuerRef.group",
        (1, 253),
        "self.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$')",
        "write an API group as in cert-manager.io, without a version",
    ),
    form("tls.certManager.dnsNames", Form::Set(0, 64)),
    dns_name("tls.certManager.dnsNames[]"),
    form("tls.certManager.ipAddresses", Form::Set(0, 64)),
    ip("tls.certManager.ipAddresses[]"),
    time("tls.certManager.duration", "1h", "87600h", ""),
    form("service.annotations", Form::Map(64)),
    plain("service.annotations{}", 0, 4096),
    form("service.nodePorts", Form::Map(16)),
    number("service.nodePorts{}", 1, 65_535, ""),
    form("service.loadBalancerClass", Form::LabelKey(1)),
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
    form("pod.resources.limits", Form::Map(6)),
    form("pod.resources.limits{}", Form::KubernetesQuantity),
    form("pod.resources.requests", Form::Map(6)),
    form("pod.resources.requests{}", Form::KubernetesQuantity),
    form("pod.labels", Form::Map(64)),
    label_value("pod.labels{}"),
    form("pod.annotations", Form::Map(64)),
    plain("pod.annotations{}", 0, 4096),
    form("pod.nodeSelector", Form::Map(64)),
    label_value("pod.nodeSelector{}"),
    class("pod.priorityClassName"),
    class("pod.runtimeClassName"),
    text(
        "pod.logLevel",
        (1, 256),
        "self.matches('^([A-Za-z0-9_:]+=)?(off|error|warn|info|debug|trace)(,([A-Za-z0-9_:]+=)?(off|error|warn|info|debug|trace))*$')",
        "write levels (off, error, warn, info, debug, trace), as in info or warn,gateway=debug",
    ),
];
