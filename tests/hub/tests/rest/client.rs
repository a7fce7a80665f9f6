//! A small HTTPS client that says exactly what it is told.

use std::sync::Arc;

use axum::body::Body;
use hub::Hub;
use hub::domain::sign;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Far enough for any test.
const EXPIRES: u64 = 4_000_000_000;

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// `Null` if there was none, a string if it was no JSON.
    pub(crate) json: Value,
}

impl Answer {
    /// `ETag` without quotes.
    pub(crate) fn etag(&self) -> String {
        self.headers["etag"].to_str().expect("text").trim_matches('"').to_owned()
    }

    /// `iothub-errorcode`
    pub(crate) fn error_code(&self) -> &str {
        self.headers.get("iothub-errorcode").map_or("", |value| value.to_str().expect("text"))
    }
}

/// Calls with the API version and a token of `iothubowner`.
pub(crate) async fn call(hub: &Hub, request: &str, body: Value) -> Answer {
    call_with(hub, request, &[], body).await
}

/// The same with further headers, or others.
pub(crate) async fn call_with(hub: &Hub, request: &str, headers: &[(&str, &str)], body: Value) -> Answer {
    let (method, path) = request.split_once(' ').expect("`METHOD path`");
    let separator = if path.contains('?') { '&' } else { '?' };
    let request = format!("{method} {path}{separator}api-version=2021-04-12");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let token = policy_token(hub, "iothubowner");
    let mut all = vec![("authorization", token.as_str())];
    all.extend_from_slice(headers);
    raw(hub, &request, &all, body.into_bytes()).await
}

/// A token of a policy for the whole hub.
pub(crate) fn policy_token(hub: &Hub, policy: &str) -> String {
    let domain = hub.domain();
    sign(&domain.host_name, &domain.policies.get(policy).expect("a default policy").primary, Some(policy), EXPIRES)
}

/// Exactly this.
pub(crate) async fn raw(hub: &Hub, request: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let response = send(hub, request, headers, body).await;
    let (parts, body) = response.into_parts();
    let body = axum::body::to_bytes(Body::new(body), 1 << 24).await.expect("body");
    let text = || Value::String(String::from_utf8_lossy(&body).into_owned());
    let json = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap_or_else(|_| text()) };
    Answer { status: parts.status.as_u16(), headers: parts.headers, json }
}

/// The same, the body not yet read.
pub(crate) async fn send(hub: &Hub, request: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Response<Incoming> {
    let (method, target) = request.split_once(' ').expect("`METHOD target`");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(connect(hub).await)).await.expect("HTTP");
    tokio::spawn(async move { connection.with_upgrades().await });
    let mut request = Request::builder().method(method).uri(target).header("host", "localhost");
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        let value = HeaderValue::from_str(value).expect("a header value");
        if name == AUTHORIZATION {
            request.headers_mut().expect("no error so far").insert(name, value);
        } else {
            request = request.header(name, value);
        }
    }
    sender.send_request(request.body(Body::from(body)).expect("a request")).await.expect("an answer")
}

/// TLS to the REST port, trusting the hub's own authority only.
pub(crate) async fn connect(hub: &Hub) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for certificate in hub::read_certificates(hub.ca_pem()).expect("PEM") {
        roots.add(certificate).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(hub.addresses().https).await.expect("the hub listens");
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS")
}
