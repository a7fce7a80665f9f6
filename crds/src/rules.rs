//! Rules that join fields, in CEL, as the API server checks them. Each message says what to do.
//!
//! Those about the gateway half say what `GatewayConfig::check` says; `tests/specs.rs` compares the two.

use kube::core::Rule;

use crate::forms::{bytes, is_size, is_time};

/// CEL: a key of annotations.
const ANNOTATION_KEY: &str =
    "^([A-Za-z0-9]([-A-Za-z0-9.]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";

/// CEL: a key of labels. Annotations take capitals in a domain, labels do not.
pub(crate) const LABEL_KEY: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?\
                                    [A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";

/// What [`LABEL_KEY`] wants.
pub(crate) const LABEL_KEY_MESSAGE: &str = "write keys of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both \
     ends, and before them, if anything, a domain in lower case and '/', as in example.com/team";

/// CEL: the field is there. `path` is below the spec.
fn has(path: &str) -> String {
    let names: Vec<&str> = path.split('.').collect();
    let parts: Vec<String> = (1..=names.len()).map(|count| format!("has(self.{})", names[..count].join("."))).collect();
    format!("({})", parts.join(" && "))
}

/// CEL: the field, or what holds where it is absent.
fn or(path: &str, default: &str) -> String {
    format!("({} ? self.{path} : {default})", has(path))
}

/// CEL: the port of the listener `name`.
fn port(name: &str) -> String {
    format!(
        "(has({name}.port) ? {name}.port : {name}.protocol == 'MQTTWebSocket' ? 443 : {name}.protocol == 'MQTTPlain' ? 1883 : 8883)"
    )
}

fn verify_is_local() -> String {
    format!("({} == 'Local')", or("authentication.sas.verify", "'Hub'"))
}

fn has_keys() -> String {
    format!("({} || {})", has("authentication.sas.deviceKeys"), has("authentication.sas.enrollmentGroups"))
}

fn rule(expression: impl Into<String>, field_path: &str, message: &str) -> Rule {
    let rule = Rule::new(expression).message(message);
    if field_path.is_empty() { rule } else { rule.field_path(field_path) }
}

pub(crate) fn name() -> Rule {
    rule(
        "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "",
        "name it with at most 40 lower-case letters, digits and '-', beginning with a letter: Services are named after it",
    )
}

pub(crate) fn one_upstream() -> Rule {
    rule(
        "has(self.upstream.iotHub) != has(self.upstream.amqp)",
        ".upstream",
        "set exactly one of upstream.iotHub and upstream.amqp",
    )
}

pub(crate) fn broker_needs_local() -> Rule {
    rule(
        format!("!has(self.upstream.amqp) || {}", verify_is_local()),
        ".authentication",
        "a broker cannot check tokens: write authentication.sas.verify: Local and name the keys, or set upstream.iotHub",
    )
}

pub(crate) fn policy_is_named() -> Rule {
    rule(
        format!(
            "!has(self.upstream.iotHub) || has(self.upstream.iotHub.policy) || !({} || {})",
            verify_is_local(),
            has("authentication.x509")
        ),
        ".upstream.iotHub",
        "authentication.sas.verify: Local and authentication.x509 need upstream.iotHub.policy: name a policy of the hub with \
         DeviceConnect and the Secret with its key",
    )
}

pub(crate) fn hub_needs_no_keys() -> Rule {
    rule(
        format!("{} || !{}", verify_is_local(), has_keys()),
        ".authentication",
        "the hub checks the tokens: write verify: Local to use these keys, or leave out deviceKeys and enrollmentGroups",
    )
}

pub(crate) fn local_needs_keys() -> Rule {
    rule(
        format!("!{} || {} || {}", verify_is_local(), has_keys(), has("authentication.x509")),
        ".authentication",
        "verify: Local has nothing to verify with: name deviceKeys or enrollmentGroups, or set authentication.x509",
    )
}

pub(crate) fn one_broker_login() -> Rule {
    rule(
        "!has(self.upstream.amqp) || !(has(self.upstream.amqp.saslPlain) && has(self.upstream.amqp.clientCertificate))",
        ".upstream.amqp",
        "saslPlain and clientCertificate are two ways to log in: keep one of them",
    )
}

pub(crate) fn broker_secrets_need_tls() -> Rule {
    rule(
        "!has(self.upstream.amqp) || self.upstream.amqp.url.startsWith('amqps://') || !(has(self.upstream.amqp.saslPlain) || \
         has(self.upstream.amqp.clientCertificate) || has(self.upstream.amqp.caSecretName))",
        ".upstream.amqp",
        "saslPlain, clientCertificate and caSecretName need TLS: write the url as amqps://…, or leave them out",
    )
}

// A field whose form is wrong has a message of its own: rules that join it with others let it pass.

pub(crate) fn message_fits_iot_hub() -> Rule {
    let (size, given) = ("self.limits.messageBytesMax", has("limits.messageBytesMax"));
    rule(
        format!("!has(self.upstream.iotHub) || !{given} || !{} || {} <= 262144", is_size(size), bytes(size)),
        ".limits.messageBytesMax",
        "IoT Hub takes no message above 256KiB: give 1KiB to 256KiB",
    )
}

pub(crate) fn packet_holds_message() -> Rule {
    let [packet, message] = ["packetBytesMax", "messageBytesMax"].map(|name| format!("limits.{name}"));
    let given = format!("{} && {}", has(&packet), has(&message));
    let [packet, message] = [packet, message].map(|path| format!("self.{path}"));
    let forms = format!("{} && {}", is_size(&packet), is_size(&message));
    rule(
        format!("!({given} && {forms}) || {} >= {}", bytes(&packet), bytes(&message)),
        ".limits.packetBytesMax",
        "a packet holds a message: give at least limits.messageBytesMax",
    )
}

pub(crate) fn packet_holds_default_message() -> Rule {
    let (packet, given) = ("self.limits.packetBytesMax", has("limits.packetBytesMax"));
    let message = has("limits.messageBytesMax");
    rule(
        format!("!{given} || {message} || !{} || {} >= 262144", is_size(packet), bytes(packet)),
        ".limits.packetBytesMax",
        "a packet holds a message: give at least 256KiB, or lower limits.messageBytesMax",
    )
}

pub(crate) fn backoff_grows() -> Rule {
    let [min, max] = [("backoffMin", "'500ms'"), ("backoffMax", "'30s'")]
        .map(|(name, default)| or(&format!("upstream.limits.{name}"), default));
    rule(
        format!("!{} || !{} || duration({min}) <= duration({max})", is_time(&min), is_time(&max)),
        ".upstream",
        "upstream.limits.backoffMin (default 500ms) must not be above backoffMax (default 30s)",
    )
}

pub(crate) fn devices_have_room_upstream() -> Rule {
    rule(
        format!(
            "{} * ({} ? self.upstream.iotHub.devicesPerConnectionMax : {}) >= {}",
            or("upstream.limits.connectionsMax", "64"),
            has("upstream.iotHub.devicesPerConnectionMax"),
            or("upstream.amqp.devicesPerConnectionMax", "900"),
            or("limits.connectionsMax", "18000")
        ),
        ".upstream",
        "there is less room upstream than limits.connectionsMax (default 18000) lets connect: raise \
         upstream.limits.connectionsMax (default 64) or devicesPerConnectionMax (default 900), or lower limits.connectionsMax",
    )
}

pub(crate) fn listener_ports_are_unique() -> Rule {
    rule(
        format!(
            "!has(self.listeners) || self.listeners.all(a, self.listeners.exists_one(b, {} == {}))",
            port("a"),
            port("b")
        ),
        ".listeners",
        "give every listener a port of its own (default: 8883 for MQTT, 443 for MQTTWebSocket, 1883 for MQTTPlain)",
    )
}

pub(crate) fn listeners_can_be_reached() -> Rule {
    rule(
        "!has(self.listeners) || self.listeners.all(l, !has(l.address) || (isIP(l.address) && (ip(l.address).isLoopback() || \
         (l.protocol != 'MQTTPlain' && ip(l.address).isUnspecified()))))",
        ".listeners",
        "address is 0.0.0.0 or :: for all devices, or a loopback address for this pod alone; MQTTPlain sends tokens in the \
         clear and takes only loopback addresses",
    )
}

pub(crate) fn admin_port_is_free() -> Rule {
    rule(
        format!(
            "has(self.listeners) ? self.listeners.all(l, {} != {admin}) : {admin} != 8883",
            port("l"),
            admin = or("admin.port", "9090")
        ),
        ".admin",
        "admin.port (default 9090) is the port of a listener: choose another",
    )
}

pub(crate) fn health_port_is_free() -> Rule {
    let health = or("admin.healthPort", "8081");
    rule(
        format!(
            "{health} != {admin} && (has(self.listeners) ? self.listeners.all(l, {} != {health}) : {health} != 8883)",
            port("l"),
            admin = or("admin.port", "9090")
        ),
        ".admin",
        "admin.healthPort (default on a cluster 8081) is admin.port or the port of a listener: choose another",
    )
}

pub(crate) fn scaling_range() -> Rule {
    rule("self.minReplicas <= self.maxReplicas", "", "minReplicas must not be above maxReplicas")
}

pub(crate) fn scaling_fits_limits() -> Rule {
    rule(
        format!("!has(self.scaling) || self.scaling.connectionsPerReplica <= {}", or("limits.connectionsMax", "18000")),
        ".scaling.connectionsPerReplica",
        "a pod takes no more than limits.connectionsMax connections (default 18000): lower connectionsPerReplica or raise the \
         limit",
    )
}

pub(crate) fn cpu_share_is_of_a_request() -> Rule {
    let lists = |list: &str| format!("(has(self.pod.resources.{list}) && 'cpu' in self.pod.resources.{list})");
    rule(
        format!(
            "!has(self.scaling) || !has(self.scaling.cpuUtilization) || !has(self.pod) || !has(self.pod.resources) || {} || {}",
            lists("requests"),
            lists("limits")
        ),
        ".scaling.cpuUtilization",
        "cpuUtilization is a share of what pods request: give pod.resources.requests a cpu, or leave cpuUtilization out",
    )
}

/// In the last quarter it lets go whom it must, at whatever pace.
pub(crate) fn pod_drains_in_time() -> Rule {
    rule(
        format!(
            "!has(self.scaling) || !{} || self.scaling.connectionsPerReplica <= self.reconnects.perSecond * \
             (duration(self.reconnects.drainTimeout).getSeconds() * 3 / 4)",
            is_time("self.reconnects.drainTimeout")
        ),
        ".reconnects",
        "a pod with scaling.connectionsPerReplica connections cannot be drained in three quarters of drainTimeout at perSecond: raise one of them",
    )
}

pub(crate) fn keep_alive_outruns_balancer() -> Rule {
    let (idle, silence) = ("self.service.idleTimeout", or("limits.keepAliveMax", "'1767s'"));
    rule(
        format!(
            "!has({idle}) || !{} || !{} || duration({silence}) < duration({idle})",
            is_time(idle),
            is_time(&silence)
        ),
        ".limits",
        "limits.keepAliveMax (default 1767s) must be shorter than service.idleTimeout, or the load balancer drops silent devices",
    )
}

pub(crate) fn node_ports_are_listeners() -> Rule {
    rule(
        "!has(self.service.nodePorts) || self.service.nodePorts.all(name, has(self.listeners) ? self.listeners.exists(l, \
         l.name == name && l.protocol != 'MQTTPlain') : name == 'mqtts')",
        ".service.nodePorts",
        "the keys of nodePorts are names of listeners that can be reached from outside",
    )
}

pub(crate) fn one_certificate() -> Rule {
    rule(
        "(has(self.selfSigned) ? 1 : 0) + (has(self.secretName) ? 1 : 0) + (has(self.certManager) ? 1 : 0) == 1",
        "",
        "set exactly one of selfSigned, secretName and certManager",
    )
}

pub(crate) fn cluster_ip_has_no_outside() -> Rule {
    rule(
        "self.type != 'ClusterIP' || !(has(self.externalTrafficPolicy) || has(self.nodePorts))",
        "",
        "externalTrafficPolicy and nodePorts need type LoadBalancer or NodePort",
    )
}

pub(crate) fn balancer_fields_need_balancer() -> Rule {
    rule(
        "self.type == 'LoadBalancer' || !(has(self.loadBalancerClass) || has(self.loadBalancerSourceRanges))",
        "",
        "loadBalancerClass and loadBalancerSourceRanges need type LoadBalancer",
    )
}

pub(crate) fn node_ports_are_unique() -> Rule {
    rule(
        "!has(self.nodePorts) || self.nodePorts.all(a, self.nodePorts.exists_one(b, self.nodePorts[a] == self.nodePorts[b]))",
        ".nodePorts",
        "give every listener a node port of its own",
    )
}

/// Of annotations.
pub(crate) fn keys_are_names() -> Rule {
    rule(
        format!("self.all(key, key.matches('{ANNOTATION_KEY}'))"),
        "",
        "write keys of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends, and before them, if \
         anything, a domain and '/', as in example.com/team",
    )
}

/// Of labels.
pub(crate) fn keys_are_labels() -> Rule {
    rule(label_keys(), "", LABEL_KEY_MESSAGE)
}

/// CEL: the keys of a map are those of labels.
pub(crate) fn label_keys() -> String {
    format!("self.all(key, key.matches('{LABEL_KEY}'))")
}

pub(crate) fn resources_are_known() -> Rule {
    let known = "key in ['cpu', 'memory', 'ephemeral-storage'] || key.startsWith('hugepages-') || key.contains('/')";
    let all = |list: &str| format!("(!has(self.{list}) || self.{list}.all(key, {known}))");
    rule(
        format!("{} && {}", all("limits"), all("requests")),
        "",
        "name cpu, memory, ephemeral-storage, hugepages-… or a resource with a domain, such as example.com/nic",
    )
}

/// One by one: what the API server reckons for all of a list's quantities is too much.
pub(crate) fn requests_fit_limits() -> Rule {
    let fits = |key: &str| {
        let [request, limit] = ["requests", "limits"].map(|list| format!("string(self.{list}['{key}'])"));
        format!(
            "(!('{key}' in self.requests && '{key}' in self.limits) || !isQuantity({request}) || !isQuantity({limit}) || \
             quantity({request}).compareTo(quantity({limit})) <= 0)"
        )
    };
    let all = ["cpu", "memory", "ephemeral-storage"].map(fits).join(" && ");
    rule(
        format!("!has(self.limits) || !has(self.requests) || ({all})"),
        "",
        "a pod is given no more than its limits: lower requests or raise limits",
    )
}

pub(crate) fn labels_are_not_ours() -> Rule {
    rule(
        "self.all(key, !key.startsWith('app.kubernetes.io/') && !key.startsWith('protocolgateway.io/'))",
        "",
        "keys below app.kubernetes.io/ and protocolgateway.io/ are the operator's: use another prefix",
    )
}
