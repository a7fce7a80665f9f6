//! What a change of settings takes: which fields a running gateway follows, when, and which wait for a restart.
//!
//! One table, [`fields`], names every field with its [`When`]; a field of [`Settings`] that is not in it does not compile.

use std::{collections::BTreeMap, fmt};

use super::{
    Admin, AmqpBroker, Authentication, EnrollmentGroup, IotHub, Limits, Sas, Settings, Topics, Upstream, UpstreamLimits,
};

/// When a running gateway follows a change of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum When {
    /// For everybody, at once.
    AtOnce,
    /// For devices that connect from then on; who is connected keeps what held at its CONNECT.
    NextConnect,
    /// For AMQP connections that are opened from then on.
    NextAmqpConnection,
    /// Not while it runs: ports are bound, and devices' links are attached to their peer.
    Restart,
}

/// What differs between two settings, as paths of the configuration file, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// What a running gateway follows.
    pub live: Vec<&'static str>,
    /// What waits for a restart.
    pub restart: Vec<&'static str>,
}

impl Changes {
    /// What differs between `old` and `new`.
    pub fn between(old: &Settings, new: &Settings) -> Self {
        let (mut old, new) = (by_path(old), by_path(new));
        let mut changes = Self::default();
        for (path, (when, value)) in new {
            if old.remove(path).is_none_or(|(_, before)| before != value) {
                changes.add(path, when);
            }
        }
        // fields of the other kind of upstream
        for (path, (when, _)) in old {
            changes.add(path, when);
        }
        changes.live.sort_unstable();
        changes.restart.sort_unstable();
        changes
    }

    /// Nothing differs.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }

    /// Every path that differs, sorted.
    pub fn all(&self) -> Vec<&'static str> {
        let mut all = [self.live.as_slice(), &self.restart].concat();
        all.sort_unstable();
        all
    }

    fn add(&mut self, path: &'static str, when: When) {
        if when == When::Restart { self.restart.push(path) } else { self.live.push(path) }
    }
}

impl Settings {
    /// What a gateway that runs by these settings runs by once it was told `new`: all of it, but for what needs a restart, and
    /// for what would not go together with that.
    #[must_use]
    pub fn followed_by(&self, new: &Self) -> Self {
        let mut next = new.clone();
        next.listeners.clone_from(&self.listeners);
        if next.tls_secret_name.is_some() != self.tls_secret_name.is_some() {
            next.tls_secret_name.clone_from(&self.tls_secret_name);
        }
        let tls = if new.admin.tls.is_some() == self.admin.tls.is_some() { &new.admin.tls } else { &self.admin.tls };
        next.admin = Admin { tls: tls.clone(), ..self.admin.clone() };
        if Changes::between(self, &next).restart.iter().any(|path| path.starts_with("upstream.")) {
            // whom a gateway lets in, and what it lets them send, has to fit the peer
            next.upstream = self.upstream.clone();
            next.authentication = self.authentication.clone();
            next.limits.message_bytes_max = next.limits.message_bytes_max.min(self.limits.message_bytes_max);
        }
        next
    }

    /// One line for each field that needs a restart, in the order of the file. Equal: no restart is needed.
    pub fn restart_text(&self) -> String {
        let mut text = String::new();
        for Field { path, value, .. } in fields(self).iter().filter(|field| field.when == When::Restart) {
            text.extend([path, ": ", value, "\n"]);
        }
        text
    }
}

/// One field and what stands in it.
struct Field {
    path: &'static str,
    when: When,
    value: String,
}

fn by_path(settings: &Settings) -> BTreeMap<&'static str, (When, String)> {
    fields(settings).into_iter().map(|field| (field.path, (field.when, field.value))).collect()
}

/// The table. Every struct is taken apart without `..`, so that a new field has to find its place here.
fn fields(settings: &Settings) -> Vec<Field> {
    let Settings { listeners, tls_secret_name, authentication, upstream, topics, limits, admin } = settings;
    let mut table = Table(Vec::new());
    // sockets are bound once, before anything is served; on a cluster they are the pod's ports, too
    table.add("listeners", When::Restart, listeners);
    table.named("tls", "tls.secretName", tls_secret_name.as_ref());
    table.authentication(authentication);
    match upstream {
        Upstream::IotHub(hub) => table.iot_hub(hub),
        Upstream::Amqp(broker) => table.broker(broker),
    }
    table.topics(topics);
    table.limits(limits);
    table.admin(admin);
    table.0
}

struct Table(Vec<Field>);

impl Table {
    fn add(&mut self, path: &'static str, when: When, value: &dyn fmt::Debug) {
        self.0.push(Field { path, when, value: format!("{value:?}") });
    }

    /// What may be there or not: whether it is needs a restart; what it is is followed.
    fn named(&mut self, presence: &'static str, path: &'static str, value: Option<&String>) {
        self.add(presence, When::Restart, &value.is_some());
        self.add(path, When::NextConnect, &value);
    }

    fn authentication(&mut self, authentication: &Authentication) {
        let Authentication { sas, client_ca_secret_name } = authentication;
        let (device_keys, groups) = match sas {
            Sas::Hub => (None, [].as_slice()),
            Sas::Local { device_keys_secret_name, enrollment_groups } => {
                (device_keys_secret_name.as_ref(), enrollment_groups.as_slice())
            }
        };
        let group = |EnrollmentGroup { name, secret_name }: &EnrollmentGroup| format!("{name}={secret_name}");
        let groups: Vec<_> = groups.iter().map(group).collect();
        self.add("authentication.sas.verify", When::NextConnect, &matches!(sas, Sas::Local { .. }));
        self.add("authentication.sas.deviceKeys.secretName", When::NextConnect, &device_keys);
        self.add("authentication.sas.enrollmentGroups", When::NextConnect, &groups);
        self.add("authentication.x509.clientCASecretName", When::NextConnect, client_ca_secret_name);
    }

    fn iot_hub(&mut self, hub: &IotHub) {
        let IotHub { host_name, host_name_aliases, port, policy, transport, ca_secret_name, limits } = hub;
        // devices that stay connected have their links there
        self.add("upstream.iotHub.hostName", When::Restart, host_name);
        self.add("upstream.iotHub.hostNameAliases", When::NextConnect, host_name_aliases);
        self.add("upstream.iotHub.port", When::Restart, port);
        // a connection opened without the policy's token cannot carry devices that need it
        self.add("upstream.iotHub.policy", When::Restart, &policy.is_some());
        let name = policy.as_ref().map(|policy| &policy.name);
        self.add("upstream.iotHub.policy.name", When::NextAmqpConnection, &name);
        let secret_name = policy.as_ref().map(|policy| &policy.secret_name);
        self.add("upstream.iotHub.policy.secretName", When::NextAmqpConnection, &secret_name);
        self.add("upstream.iotHub.transport", When::Restart, transport);
        self.add("upstream.iotHub.caSecretName", When::NextAmqpConnection, ca_secret_name);
        self.add("upstream.iotHub.devicesPerConnectionMax", When::AtOnce, &limits.devices_per_connection_max);
        self.upstream_limits(limits);
    }

    fn broker(&mut self, broker: &AmqpBroker) {
        let AmqpBroker {
            host,
            port,
            tls,
            telemetry_address,
            command_address,
            sasl_plain_secret_name,
            client_certificate_secret_name,
            ca_secret_name,
            limits,
        } = broker;
        self.add("upstream.amqp.url", When::Restart, &(host, port, tls));
        self.add("upstream.amqp.telemetryAddress", When::Restart, telemetry_address);
        self.add("upstream.amqp.commandAddress", When::Restart, command_address);
        self.add("upstream.amqp.saslPlain.secretName", When::NextAmqpConnection, sasl_plain_secret_name);
        let certificate = client_certificate_secret_name;
        self.add("upstream.amqp.clientCertificate.secretName", When::NextAmqpConnection, certificate);
        self.add("upstream.amqp.caSecretName", When::NextAmqpConnection, ca_secret_name);
        self.add("upstream.amqp.devicesPerConnectionMax", When::AtOnce, &limits.devices_per_connection_max);
        self.upstream_limits(limits);
    }

    fn upstream_limits(&mut self, limits: &UpstreamLimits) {
        let UpstreamLimits {
            // said under the upstream's kind
            devices_per_connection_max: _,
            connections_max,
            links_per_session_max,
            tokens_inflight_max,
            request_timeout,
            settle_timeout,
            outage_max,
            backoff: (backoff_min, backoff_max),
            idle_timeout,
            frame_bytes_max,
            output_bytes_max,
            unsettled_bytes_max,
            token_ttl,
        } = limits;
        self.add("upstream.limits.connectionsMax", When::AtOnce, connections_max);
        self.add("upstream.limits.linksPerSessionMax", When::NextAmqpConnection, links_per_session_max);
        self.add("upstream.limits.tokensInflightMax", When::NextAmqpConnection, tokens_inflight_max);
        self.add("upstream.limits.requestTimeout", When::NextAmqpConnection, request_timeout);
        self.add("upstream.limits.settleTimeout", When::AtOnce, settle_timeout);
        self.add("upstream.limits.outageMax", When::NextAmqpConnection, outage_max);
        self.add("upstream.limits.backoffMin", When::NextAmqpConnection, backoff_min);
        self.add("upstream.limits.backoffMax", When::NextAmqpConnection, backoff_max);
        self.add("upstream.limits.idleTimeout", When::AtOnce, idle_timeout);
        self.add("upstream.limits.frameBytesMax", When::NextAmqpConnection, frame_bytes_max);
        self.add("upstream.limits.outputBytesMax", When::NextAmqpConnection, output_bytes_max);
        self.add("upstream.limits.unsettledBytesMax", When::AtOnce, unsettled_bytes_max);
        self.add("upstream.limits.tokenTtl", When::AtOnce, token_ttl);
    }

    fn topics(&mut self, topics: &Topics) {
        let Topics { inbound, unmatched, dup_property } = topics;
        self.add("topics.inbound", When::AtOnce, inbound);
        self.add("topics.unmatched", When::AtOnce, unmatched);
        self.add("topics.dupProperty", When::AtOnce, dup_property);
    }

    fn limits(&mut self, limits: &Limits) {
        let Limits {
            connections_max,
            connects_per_second,
            handshakes_max,
            packet_bytes_max,
            unauthenticated_bytes_max,
            message_bytes_max,
            properties_max,
            inflight_max,
            handshake_timeout,
            keep_alive_max,
            token_expiry_grace,
            clock_skew_max,
            output_bytes_max,
            write_timeout,
            drain_per_second,
            drain_alone_after,
            drain_timeout,
            shutdown_timeout,
        } = limits;
        self.add("limits.connectionsMax", When::AtOnce, connections_max);
        self.add("limits.connectsPerSecond", When::AtOnce, connects_per_second);
        self.add("limits.handshakesMax", When::AtOnce, handshakes_max);
        self.add("limits.packetBytesMax", When::AtOnce, packet_bytes_max);
        self.add("limits.unauthenticatedBytesMax", When::AtOnce, unauthenticated_bytes_max);
        self.add("limits.messageBytesMax", When::AtOnce, message_bytes_max);
        self.add("limits.propertiesMax", When::AtOnce, properties_max);
        self.add("limits.inflightMax", When::NextConnect, inflight_max);
        self.add("limits.handshakeTimeout", When::NextConnect, handshake_timeout);
        self.add("limits.keepAliveMax", When::NextConnect, keep_alive_max);
        self.add("limits.tokenExpiryGrace", When::NextConnect, token_expiry_grace);
        self.add("limits.clockSkewMax", When::NextConnect, clock_skew_max);
        self.add("limits.outputBytesMax", When::AtOnce, output_bytes_max);
        self.add("limits.writeTimeout", When::AtOnce, write_timeout);
        self.add("limits.drainPerSecond", When::AtOnce, drain_per_second);
        self.add("limits.drainAloneAfter", When::AtOnce, drain_alone_after);
        self.add("limits.drainTimeout", When::AtOnce, drain_timeout);
        self.add("limits.shutdownTimeout", When::AtOnce, shutdown_timeout);
    }

    fn admin(&mut self, admin: &Admin) {
        let Admin { address, port, health_port, tls } = admin;
        self.add("admin.address", When::Restart, address);
        self.add("admin.port", When::Restart, port);
        self.add("admin.healthPort", When::Restart, health_port);
        self.named("admin.tls", "admin.tls.secretName", tls.as_ref().map(|tls| &tls.secret_name));
        let client_ca = tls.as_ref().map(|tls| &tls.client_ca_secret_name);
        self.add("admin.tls.clientCASecretName", When::NextConnect, &client_ca);
    }
}

/// Every path of the table with its [`When`], for documents and tests: of a hub with a policy, or of a broker.
pub fn table(settings: &Settings) -> Vec<(&'static str, When)> {
    fields(settings).into_iter().map(|field| (field.path, field.when)).collect()
}
