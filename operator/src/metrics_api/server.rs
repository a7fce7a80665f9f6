//! The HTTPS server: discovery for everybody, metrics for those who may. Bounded in connections, in the time of a handshake
//! and of a request, and in the life of a connection.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{self, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use super::{
    Meter, Reading,
    access::Access,
    bodies::{self, Refusal},
    counters::Counters,
    front_proxy::{FrontProxy, User},
    paths::{Metric, Question, Wanted, question},
};
use crate::pods::Fleet;

/// Connections at a time; further ones are closed. Every API server keeps a few, and looks with five at a time.
const CONNECTIONS_MAX: usize = 512;
/// For the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A request must have come within this, and the next one on a connection that is kept.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);
/// A connection is asked to end after this, so that the API servers spread over the replicas.
const CONNECTION_AGE_MAX: Duration = Duration::from_mins(10);
/// It has this to finish what it is at.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);
/// After an error of `accept`.
const PAUSE: Duration = Duration::from_millis(200);
/// Headers of a request have no more bytes: those about a user may be long.
const HEADERS_BYTES_MAX: usize = 64 << 10;

/// What requests are answered from.
pub(super) struct Server {
    pub(super) meter: Meter,
    pub(super) access: Access,
    pub(super) front_proxy: Arc<ArcSwap<FrontProxy>>,
    pub(super) counters: Counters,
}

impl Server {
    /// Serves until dropped.
    pub(super) async fn run(self: Arc<Self>, listener: TcpListener, tls: Arc<ServerConfig>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let acceptor = TlsAcceptor::from(tls);
        let mut connections = tokio::task::JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    debug!(%error, "accept failed on the port of the metrics API");
                    self.counters.limit("accept");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                self.counters.limit("connections");
                continue;
            };
            let (server, acceptor) = (self.clone(), acceptor.clone());
            connections.spawn(async move {
                server.connection(stream, address, &acceptor).await;
                drop(place);
            });
        }
    }

    async fn connection(&self, stream: TcpStream, address: SocketAddr, acceptor: &TlsAcceptor) {
        let _ = stream.set_nodelay(true);
        let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%address, %error, "handshake with the metrics API failed"),
            Err(_) => return self.counters.limit("handshake"),
        };
        let chain: Vec<CertificateDer<'static>> = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|chain| chain.iter().map(|each| each.clone().into_owned()).collect())
            .unwrap_or_default();
        let service = service_fn(|request| self.answer(request, &chain));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_TIMEOUT)
            .max_buf_size(HEADERS_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        if timeout(CONNECTION_AGE_MAX, connection.as_mut()).await.is_err() {
            self.counters.limit("age");
            connection.as_mut().graceful_shutdown();
            let _ = timeout(FINISH_TIMEOUT, connection).await;
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        chain: &[CertificateDer<'static>],
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, _body) = request.into_parts();
        let answer = match head.method {
            Method::GET => self.get(&head.uri, &head.headers, chain).await,
            _ => Err(Refusal::method()),
        };
        let (code, body) = match answer {
            Ok(body) => (200, body),
            Err(refusal) => (refusal.code, refusal.body()),
        };
        self.counters.requests.with_label_values(&[&code.to_string()]).inc();
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// Discovery says nothing that is not in the source; only metrics are asked about.
    async fn get(&self, uri: &Uri, headers: &HeaderMap, chain: &[CertificateDer<'_>]) -> Result<Value, Refusal> {
        match question(uri.path()) {
            Question::Health => Ok(Value::String("ok".to_owned())),
            Question::Groups => Err(Refusal::not_acceptable()),
            Question::Group => Ok(bodies::group()),
            Question::Resources(version) => Ok(bodies::resources(version)),
            Question::OpenApiV2 => Ok(bodies::openapi_v2()),
            Question::OpenApiV3 => Ok(bodies::openapi_v3()),
            Question::Value(wanted) => {
                let user = self.user(headers, chain).await?;
                self.access.check(&user, &wanted).await?;
                self.value(&wanted, uri.query().unwrap_or_default())
            }
            Question::Unknown => Err(Refusal::not_found(format!("there is no {}", cut(uri.path())))),
        }
    }

    async fn user(&self, headers: &HeaderMap, chain: &[CertificateDer<'_>]) -> Result<User, Refusal> {
        let front_proxy = self.front_proxy.load_full();
        if front_proxy.trusts(chain, UnixTime::now()) {
            return front_proxy.user(headers).ok_or_else(Refusal::unauthorized);
        }
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = authorization
            .and_then(|text| text.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        let (_, token) = token.ok_or_else(Refusal::unauthorized)?;
        self.access.user(token.trim()).await
    }

    fn value(&self, wanted: &Wanted, query: &str) -> Result<Value, Refusal> {
        let Some(metric) = wanted.known() else {
            let message = format!("there is no metric {} of {}", cut(&wanted.metric), cut(&wanted.resource));
            return Err(Refusal::not_found(message));
        };
        if let Some(selector) = metric_selector(query) {
            let message = format!("metricLabelSelector `{}`: {} has no labels", cut(&selector), metric.name());
            return Err(Refusal::bad_request(message));
        }
        let fleet = Fleet::new(wanted.namespace.clone(), wanted.name.clone());
        let reading = (self.meter)(&fleet).ok_or_else(|| {
            Refusal::not_found(format!(
                "nothing is known of {} {}: it does not exist, or its pods are not asked yet",
                crds::KIND,
                cut(&fleet.to_string())
            ))
        })?;
        let value = reading.of(metric).ok_or_else(|| {
            Refusal::not_found(format!(
                "{} of {} {} is not told: the upstream is the bottleneck, and what it was before is not known",
                metric.name(),
                crds::KIND,
                cut(&fleet.to_string())
            ))
        })?;
        let now = Timestamp::now();
        let heard = now.checked_sub(reading.age).unwrap_or(now);
        Ok(bodies::value(wanted, metric, value, heard))
    }
}

impl Reading {
    fn of(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::Connections => self.connections.map(|connections| connections as f64),
            Metric::MessagesPerSecond => self.messages_per_second,
            Metric::ConnectsPerSecond => self.connects_per_second,
        }
    }
}

/// What of the metric is wanted, if not all.
fn metric_selector(query: &str) -> Option<String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let values = pairs.filter(|(key, _)| *key == "metricLabelSelector").map(|(_, value)| value);
    let decoded = values.map(|value| percent_decode_str(value).decode_utf8_lossy().into_owned());
    decoded.into_iter().find(|value| !value.is_empty())
}

/// What is quoted in answers is not longer than names are.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(300)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_one_if_it_says_something() {
        for (query, expected) in [
            ("", None),
            ("metricLabelSelector=", None),
            ("labelSelector=a%3Db", None),
            ("a=1&metricLabelSelector=cause%3Dx", Some("cause=x")),
        ] {
            assert_eq!(metric_selector(query).as_deref(), expected, "{query}");
        }
    }
}
