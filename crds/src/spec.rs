//! What users write: the gateway half, the cluster half, and the rules that join their fields.

use gateway_core::config::{self, GatewayConfig, Limits, SecretReference, Topics, Upstream};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::{
    cluster::{Pod, Reconnects, Scaling, Service, Tls, default_replicas},
    rules,
    status::ProtocolGatewayStatus,
};

/// What a fleet of gateways is to be. `listeners` to `admin` mean the same as in the file of a single gateway.
// The root's own rule is about the name: pods, Services and labels are named after it.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "protocolgateway.io",
    version = "v1alpha1",
    kind = "ProtocolGateway",
    plural = "protocolgateways",
    shortname = "pgw",
    category = "iot",
    namespaced,
    status = "ProtocolGatewayStatus",
    derive = "PartialEq",
    doc = "A fleet of gateways that terminate MQTT, authenticate every device and bridge to Azure IoT Hub or an AMQP 1.0 broker.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether devices can connect and their messages arrive."
    ),
    printcolumn(
        name = "Connections",
        type_ = "integer",
        json_path = ".status.connections",
        description = "Devices connected now."
    ),
    printcolumn(
        name = "Replicas",
        type_ = "integer",
        json_path = ".status.replicas",
        description = "Pods that exist."
    ),
    printcolumn(
        name = "Desired",
        type_ = "integer",
        json_path = ".spec.replicas",
        description = "Pods asked for; an autoscaler writes this."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why it is ready or not."
    ),
    printcolumn(
        name = "Degraded",
        type_ = "string",
        priority = 1,
        json_path = r#".status.conditions[?(@.type=="Degraded")].reason"#,
        description = "What keeps it from being as desired; AsDesired if nothing does."
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = rules::name()
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = rules::one_upstream(),
    validation = rules::broker_needs_local(),
    validation = rules::policy_is_named(),
    validation = rules::hub_needs_no_keys(),
    validation = rules::local_needs_keys(),
    validation = rules::one_broker_login(),
    validation = rules::broker_secrets_need_tls(),
    validation = rules::message_fits_iot_hub(),
    validation = rules::packet_holds_message(),
    validation = rules::packet_holds_default_message(),
    validation = rules::backoff_grows(),
    validation = rules::devices_have_room_upstream(),
    validation = rules::listener_ports_are_unique(),
    validation = rules::listeners_can_be_reached(),
    validation = rules::admin_port_is_free(),
    validation = rules::health_port_is_free(),
    validation = rules::scaling_fits_limits(),
    validation = rules::pod_drains_in_time(),
    validation = rules::cpu_share_is_of_a_request(),
    validation = rules::keep_alive_outruns_balancer(),
    validation = rules::node_ports_are_listeners(),
)]
pub struct ProtocolGatewaySpec {
    /// Where devices connect. Default: MQTT over TLS on port 8883.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listeners: Option<Vec<config::Listener>>,
    /// How devices prove who they are. Default: IoT Hub checks their SAS tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub authentication: config::Authentication,
    /// Where messages go: exactly one of iotHub and amqp.
    pub upstream: Upstream,
    /// Which MQTT topics are telemetry. Default: those of IoT Hub.
    #[serde(default, skip_serializing_if = "is_default")]
    pub topics: Topics,
    /// Bounds towards devices, for each pod. On a cluster the operator decides drainPerSecond, drainAloneAfter and
    /// drainTimeout, by reconnects.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Ports of metrics and drain orders, and of health (default on a cluster: 8081), in each pod. On a cluster the operator
    /// decides their address and certificates; only the ports are taken from here.
    #[serde(default, skip_serializing_if = "is_default")]
    pub admin: config::Admin,

    /// Pods wanted. Written by `kubectl scale` and by autoscalers; honoured once surplus pods are drained.
    #[serde(default = "default_replicas")]
    pub replicas: i32,
    /// Let the number of pods follow the number of connections: the operator makes a HorizontalPodAutoscaler. Leave it out
    /// to set replicas yourself or to bring an autoscaler of your own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// At what pace devices may be disconnected, whatever the cause.
    #[serde(default)]
    pub reconnects: Reconnects,
    /// Certificate of the listeners: exactly one of selfSigned, secretName and certManager. Default: selfSigned.
    #[serde(default)]
    pub tls: Tls,
    /// The Service in front of the listeners.
    #[serde(default)]
    pub service: Service,
    /// What the pods look like beyond what the operator decides.
    #[serde(default, skip_serializing_if = "is_default")]
    pub pod: Pod,
}

impl ProtocolGatewaySpec {
    /// The gateway half as a gateway's configuration file: verbatim, but for the certificates' Secret and the admin port,
    /// which the operator decides on a cluster.
    pub fn gateway_config(&self, tls_secret_name: Option<String>, admin: config::Admin) -> GatewayConfig {
        GatewayConfig {
            listeners: self.listeners.clone(),
            authentication: self.authentication.clone(),
            upstream: self.upstream.clone(),
            topics: self.topics.clone(),
            limits: self.limits.clone(),
            tls: tls_secret_name.map(|secret_name| SecretReference { secret_name }),
            admin,
        }
    }
}

pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
