//! The label values of the gateway's metrics: names are API.

use gateway_core::{
    auth::RefusedReason,
    drain::{Cause, State},
    session::effect::CloseCause,
};

/// A closed set of label values.
pub trait Label: Copy + PartialEq + 'static {
    /// Every value with its text.
    const ALL: &'static [(Self, &'static str)];
}

/// The text of `label`; `other` for a value that this version does not know.
pub fn label_of<L: Label>(label: L) -> &'static str {
    L::ALL.iter().find(|(known, _)| *known == label).map_or("other", |(_, text)| text)
}

/// `gateway_connects_total{result}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectResult {
    /// CONNACK 0.
    Accepted,
    /// Another CONNACK, or closed before.
    Refused,
}

impl Label for ConnectResult {
    const ALL: &'static [(Self, &'static str)] = &[(Self::Accepted, "accepted"), (Self::Refused, "refused")];
}

/// `gateway_let_go_total{cause}`.
impl Label for Cause {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::ScaleIn, "scale_in"),
        (Self::Upgrade, "upgrade"),
        (Self::Eviction, "eviction"),
        (Self::Rebalance, "rebalance"),
        (Self::CertificateAuthority, "certificate_authority"),
        (Self::Termination, "termination"),
    ];
}

/// `gateway_drain{state}`.
impl Label for State {
    const ALL: &'static [(Self, &'static str)] =
        &[(Self::Draining, "draining"), (Self::Paused, "paused"), (Self::Done, "done")];
}

/// `gateway_drain_orders_total{result}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderResult {
    /// Followed.
    Taken,
    /// Of an earlier epoch.
    Epoch,
    /// Not an order, or one that cannot be meant.
    Nonsense,
}

impl Label for OrderResult {
    const ALL: &'static [(Self, &'static str)] =
        &[(Self::Taken, "taken"), (Self::Epoch, "epoch"), (Self::Nonsense, "nonsense")];
}

/// What is wrong with a connection below MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransportFault {
    /// MQTT without TLS on a TLS port.
    PlainOnTlsPort,
    /// TLS on the plain port.
    TlsOnPlainPort,
    /// HTTP without TLS on a TLS port.
    HttpOnTlsPort,
    /// No TLS version, cipher or the like in common, a broken handshake, or the peer's alert.
    TlsHandshake,
    /// The client certificate is not one that the client CA signed.
    ClientCertificate,
    /// A record that does not decrypt, or an alert, after the handshake.
    TlsRecord,
    /// TLS or WebSocket handshake not done in time.
    HandshakeTimeout,
    /// Not an HTTP request, or one that does not ask for a WebSocket.
    WebSocketRequest,
    /// A WebSocket, but not on our path.
    WebSocketPath,
    /// A WebSocket without the subprotocol `mqtt`.
    WebSocketSubprotocol,
    /// A frame against RFC 6455.
    WebSocketFrame,
    /// A text frame: MQTT is binary [MQTT-6.0.0-1].
    WebSocketText,
    /// A frame above the limit.
    WebSocketTooLarge,
}

/// `gateway_refused_total{reason}` and `gateway_disconnects_total{cause}`: why a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// CONNECT was answered with a code other than 0.
    Refused(RefusedReason),
    /// The session closed it, or the device did.
    Closed(CloseCause),
    /// It went wrong below MQTT.
    Transport(TransportFault),
}

impl Label for End {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Refused(RefusedReason::ProtocolLevel), "protocol_level"),
        (Self::Refused(RefusedReason::UserName), "user_name"),
        (Self::Refused(RefusedReason::ClientId), "client_id"),
        (Self::Refused(RefusedReason::HubHost), "hub_host"),
        (Self::Refused(RefusedReason::TokenForm), "token_form"),
        (Self::Refused(RefusedReason::TokenExpired), "token_expired"),
        (Self::Refused(RefusedReason::TokenScope), "token_scope"),
        (Self::Refused(RefusedReason::TokenSignature), "token_signature"),
        (Self::Refused(RefusedReason::UnknownDevice), "unknown_device"),
        (Self::Refused(RefusedReason::Certificate), "certificate"),
        (Self::Refused(RefusedReason::HubRefused), "hub_refused"),
        (Self::Refused(RefusedReason::HubUnavailable), "hub_unavailable"),
        (Self::Refused(RefusedReason::Capacity), "capacity"),
        (Self::Refused(RefusedReason::Draining), "draining"),
        (Self::Closed(CloseCause::Disconnect), "disconnect"),
        (Self::Closed(CloseCause::Gone), "gone"),
        (Self::Closed(CloseCause::KeepAlive), "keep_alive"),
        (Self::Closed(CloseCause::TakenOver), "taken_over"),
        (Self::Closed(CloseCause::TokenExpired), "token_end"),
        (Self::Closed(CloseCause::Refused), "connect_refused"),
        (Self::Closed(CloseCause::ProtocolViolation), "protocol_violation"),
        (Self::Closed(CloseCause::TooLarge), "too_large"),
        (Self::Closed(CloseCause::Topic), "topic"),
        (Self::Closed(CloseCause::QoS2), "qos2"),
        (Self::Closed(CloseCause::HubRefused), "hub_refused_message"),
        (Self::Closed(CloseCause::HubUnreachable), "hub_unreachable"),
        (Self::Closed(CloseCause::HandshakeTimeout), "connect_timeout"),
        (Self::Closed(CloseCause::UnauthenticatedBytes), "unauthenticated_bytes"),
        (Self::Closed(CloseCause::WriteTimeout), "write_timeout"),
        (Self::Closed(CloseCause::Shutdown), "shutdown"),
        (Self::Transport(TransportFault::PlainOnTlsPort), "plain_on_tls_port"),
        (Self::Transport(TransportFault::TlsOnPlainPort), "tls_on_plain_port"),
        (Self::Transport(TransportFault::HttpOnTlsPort), "http_on_tls_port"),
        (Self::Transport(TransportFault::TlsHandshake), "tls_handshake"),
        (Self::Transport(TransportFault::ClientCertificate), "client_certificate"),
        (Self::Transport(TransportFault::TlsRecord), "tls_record"),
        (Self::Transport(TransportFault::HandshakeTimeout), "handshake_timeout"),
        (Self::Transport(TransportFault::WebSocketRequest), "websocket_request"),
        (Self::Transport(TransportFault::WebSocketPath), "websocket_path"),
        (Self::Transport(TransportFault::WebSocketSubprotocol), "websocket_subprotocol"),
        (Self::Transport(TransportFault::WebSocketFrame), "websocket_frame"),
        (Self::Transport(TransportFault::WebSocketText), "websocket_text"),
        (Self::Transport(TransportFault::WebSocketTooLarge), "websocket_too_large"),
    ];
}

/// `gateway_limit_reached_total{limit}`: a bound of the settings was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// `connectionsMax`: accepting pauses.
    Connections,
    /// `connectsPerSecond`: accepting pauses.
    ConnectsPerSecond,
    /// `handshakesMax`: accepting pauses.
    Handshakes,
    /// The process has no file descriptor left: accepting pauses.
    OpenFiles,
    /// `unauthenticatedBytesMax`: the connection that came above it is closed.
    UnauthenticatedBytes,
    /// `outputBytesMax` of a device: it is not read.
    DeviceOutput,
    /// `inflightMax` of a device: it is not read.
    Inflight,
    /// Client information or model id of a user name: too long or no text, and not passed on.
    ClientText,
    /// AMQP connections of this core are full and no further one may open.
    UpstreamConnections,
    /// `outputBytesMax` of an AMQP connection.
    UpstreamOutput,
    /// `unsettledBytesMax`: devices are not read, and no new one is let in.
    UnsettledBytes,
    /// `tokensInflightMax`: put-tokens wait.
    TokensInflight,
    /// The hub's limit of put-tokens over the life of one AMQP connection.
    TokensPerConnection,
    /// Links per session or sessions per connection: a further session or connection opens.
    Links,
    /// `settleTimeout`: the link counts as broken.
    SettleTimeout,
    /// `requestTimeout`: an open, begin, attach or put-token had no answer.
    RequestTimeout,
}

impl Label for Limit {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Connections, "connections"),
        (Self::ConnectsPerSecond, "connects_per_second"),
        (Self::Handshakes, "handshakes"),
        (Self::OpenFiles, "open_files"),
        (Self::UnauthenticatedBytes, "unauthenticated_bytes"),
        (Self::DeviceOutput, "device_output"),
        (Self::Inflight, "inflight"),
        (Self::ClientText, "client_text"),
        (Self::UpstreamConnections, "upstream_connections"),
        (Self::UpstreamOutput, "upstream_output"),
        (Self::UnsettledBytes, "unsettled_bytes"),
        (Self::TokensInflight, "tokens_inflight"),
        (Self::TokensPerConnection, "tokens_per_connection"),
        (Self::Links, "links"),
        (Self::SettleTimeout, "settle_timeout"),
        (Self::RequestTimeout, "request_timeout"),
    ];
}

/// `gateway_upstream_connections{state}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamState {
    /// TCP, TLS, SASL or OPEN under way.
    Connecting,
    /// Open in both directions.
    Open,
    /// Lost; waits before it tries again.
    Waiting,
    /// CLOSE sent.
    Closing,
}

impl Label for UpstreamState {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Connecting, "connecting"),
        (Self::Open, "open"),
        (Self::Waiting, "waiting"),
        (Self::Closing, "closing"),
    ];
}

/// `gateway_upstream_failures_total{kind}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamFailure {
    /// TCP connection refused, name unknown, …
    Connect,
    /// TLS to the hub failed.
    Tls,
    /// WebSocket upgrade refused by the hub.
    WebSocket,
    /// SASL or OPEN refused.
    Open,
    /// An open AMQP connection was lost or closed by the hub.
    Lost,
    /// The hub was silent for longer than agreed.
    IdleTimeout,
    /// A session was ended by the hub.
    Session,
    /// A link was refused or detached by the hub.
    Link,
    /// What the hub sent breaks AMQP.
    Protocol,
}

impl Label for UpstreamFailure {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Connect, "connect"),
        (Self::Tls, "tls"),
        (Self::WebSocket, "websocket"),
        (Self::Open, "open"),
        (Self::Lost, "lost"),
        (Self::IdleTimeout, "idle_timeout"),
        (Self::Session, "session"),
        (Self::Link, "link"),
        (Self::Protocol, "protocol"),
    ];
}

/// `gateway_upstream_tokens_total{result}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenResult {
    /// 200, 202.
    Accepted,
    /// 401, 404 and the like.
    Refused,
    /// 5xx, or the connection was lost.
    Failed,
    /// No answer in time.
    Timeout,
}

impl Label for TokenResult {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Accepted, "accepted"),
        (Self::Refused, "refused"),
        (Self::Failed, "failed"),
        (Self::Timeout, "timeout"),
    ];
}
