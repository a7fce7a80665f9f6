//! The hub's REST side (contract §4.3): registry, modules, twins, methods, statistics for services, and beside it what is
//! this emulator's own: telemetry to follow, the ledger, faults.
//!
//! Not here yet: queries, jobs, configurations, bulk import, file upload, the HTTPS device endpoint. Their paths
//! answer 404 or 405 as any unknown one.

mod devices;
mod faults;
mod inspect;
mod methods;
mod reply;
mod twins;

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, IF_MATCH};
use hyper::{Method, Request};
use percent_encoding::percent_decode_str;

use crate::domain::{Domain, ErrorCode, HubError, IfMatch, Permissions, verify};
use reply::{Form, Reply};

/// Bodies may be this long; a twin is at most 72 KB, a method call 128 KB and its envelope.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// A request that was understood so far.
struct Call<'a> {
    domain: &'a Arc<Domain>,
    method: Method,
    /// Percent-decoded.
    segments: Vec<String>,
    query: Vec<(String, String)>,
    if_match: IfMatch,
    authorization: Option<String>,
    body: Bytes,
}

impl Call<'_> {
    fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn now_ms(&self) -> u64 {
        self.domain.clock.now_ms()
    }

    /// # Errors
    /// `IotHubUnauthorized`
    fn require(&self, needed: Permissions) -> Result<(), HubError> {
        let unauthorized = |message: &'static str| HubError::new(ErrorCode::IotHubUnauthorized, message);
        let token = self.authorization.as_deref().ok_or_else(|| unauthorized("the Authorization header is missing"))?;
        let claims = verify(self.domain, token, self.domain.clock.now_unix())
            // whatever is wrong with the caller's own token is 401 here, an unknown device too
            .map_err(|error| HubError::new(ErrorCode::IotHubUnauthorized, error.to_string()))?;
        if claims.permits(needed) { Ok(()) } else { Err(unauthorized("the token does not permit this operation")) }
    }

    /// # Errors
    /// `InvalidProtocolVersion`
    fn require_api_version(&self) -> Result<(), HubError> {
        let known = self.query("api-version").is_some_and(|version| {
            let date = version.strip_suffix("-preview").unwrap_or(version);
            date.len() == 10 && date.parse::<jiff::civil::Date>().is_ok()
        });
        if known {
            Ok(())
        } else {
            Err(HubError::new(ErrorCode::InvalidProtocolVersion, "api-version is missing or not known"))
        }
    }
}

/// Answers one request.
pub(crate) async fn handle(domain: &Arc<Domain>, request: Request<Incoming>) -> Reply {
    let now_ms = domain.clock.now_ms();
    match read(domain, request).await {
        Ok(call) => {
            let form = form_of(&call);
            route(&call).await.unwrap_or_else(|error| reply::error(&error, form, now_ms))
        }
        Err(error) => reply::error(&error, Form::Registry, now_ms),
    }
}

async fn read(domain: &Arc<Domain>, request: Request<Incoming>) -> Result<Call<'_>, HubError> {
    let (parts, body) = request.into_parts();
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from);
    let path = parts.uri.path().trim_matches('/');
    let segments =
        path.split('/').map(decoded).collect::<Result<_, _>>().map_err(|_| reply::invalid("the path is not UTF-8"))?;
    let pairs = parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Ok((decoded(name)?, decoded(value)?))
    };
    let query = pairs
        .map(pair)
        .collect::<Result<_, std::str::Utf8Error>>()
        .map_err(|_| reply::invalid("the query is not UTF-8"))?;
    let text = |name| parts.headers.get(name).and_then(|value: &hyper::header::HeaderValue| value.to_str().ok());
    let if_match = text(IF_MATCH).map_or(IfMatch::Absent, parse_if_match);
    let authorization = text(AUTHORIZATION).map(str::to_owned);
    let body = axum::body::to_bytes(Body::new(body), BODY_BYTES_MAX).await;
    let body = body.map_err(|_| {
        HubError::new(ErrorCode::MessageTooLarge, "the body is longer than 262144 bytes or did not arrive")
    })?;
    Ok(Call { domain, method: parts.method, segments, query, if_match, authorization, body })
}

fn parse_if_match(value: &str) -> IfMatch {
    match value.trim().trim_matches('"') {
        "*" => IfMatch::Any,
        tag => IfMatch::Tag(tag.to_owned()),
    }
}

fn form_of(call: &Call<'_>) -> Form {
    let twins = call.segments.first().is_some_and(|first| first.eq_ignore_ascii_case("twins"));
    if twins { Form::Device } else { Form::Registry }
}

async fn route(call: &Call<'_>) -> Result<Reply, HubError> {
    // keywords are case-insensitive, ids are not
    let keyword =
        |at: usize, word: &str| call.segments.get(at).is_some_and(|segment| segment.eq_ignore_ascii_case(word));
    let own = ["telemetry", "ledger", "faults", "connections", "counters"];
    if call.segments.first().is_some_and(|first| own.iter().any(|word| first.eq_ignore_ascii_case(word))) {
        return if keyword(0, "faults") { faults::route(call) } else { inspect::route(call) };
    }
    if !["devices", "twins", "statistics"].iter().any(|word| keyword(0, word)) {
        return Err(unknown());
    }
    call.require_api_version()?;
    if keyword(0, "devices") {
        devices::route(call)
    } else if keyword(0, "statistics") {
        devices::statistics(call)
    } else if call.segments.last().is_some_and(|last| last.eq_ignore_ascii_case("methods")) && call.segments.len() != 2
    {
        methods::route(call).await
    } else {
        twins::route(call)
    }
}

fn unknown() -> HubError {
    HubError::new(ErrorCode::ResourceNotFound, "there is nothing at this path")
}

fn wrong_method() -> HubError {
    HubError::new(ErrorCode::MethodNotAllowed, "this path does not know the method")
}

/// The identity at `…/{d}` or `…/{d}/modules/{m}`, starting at segment 1.
fn identity(segments: &[String]) -> Option<crate::domain::Identity> {
    use crate::domain::Identity;
    match segments {
        [device] => Some(Identity::device(device)),
        [device, modules, module] if modules.eq_ignore_ascii_case("modules") => Some(Identity::module(device, module)),
        _ => None,
    }
}
