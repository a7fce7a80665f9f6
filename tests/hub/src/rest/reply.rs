//! Answers of the REST side: JSON, and errors in the hub's two forms (contract §4.3).

use axum::body::Body;
use hyper::header::{CONTENT_TYPE, ETAG, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::domain::{ErrorCode, HubError, iso8601, tracking_id};

/// What every handler returns.
pub(super) type Reply = Response<Body>;

/// 200 with JSON.
pub(super) fn ok(json: &Value) -> Reply {
    with_type("application/json; charset=utf-8", json.to_string().into())
}

/// 200 with JSON and an ETag header.
pub(super) fn ok_tagged(json: &Value, etag: &str) -> Reply {
    let mut reply = ok(json);
    if let Ok(value) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        reply.headers_mut().insert(ETAG, value);
    }
    reply
}

/// 204
pub(super) fn no_content() -> Reply {
    let mut reply = Response::new(Body::empty());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

/// 200 with a body of this type.
pub(super) fn with_type(content_type: &'static str, body: Body) -> Reply {
    let mut reply = Response::new(body);
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

/// How an error body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `{"Message":"ErrorCode:DeviceNotFound;…","ExceptionMessage":"Tracking ID:…"}`
    Registry,
    /// `{"Message":"{\"errorCode\":404103,…}","ExceptionMessage":""}`
    Device,
}

/// The error with its status, body and `iothub-errorcode` header.
pub(super) fn error(error: &HubError, form: Form, now_ms: u64) -> Reply {
    let body = match form {
        Form::Registry => json!({
            "Message": format!("ErrorCode:{};{}", error.code.name(), error.message),
            "ExceptionMessage": format!("Tracking ID:{}-TimeStamp:{}", tracking_id(), iso8601(now_ms)),
        }),
        Form::Device => json!({"Message": error.description_json(now_ms), "ExceptionMessage": ""}),
    };
    let mut reply = ok(&body);
    *reply.status_mut() = status(error.code);
    reply.headers_mut().insert("iothub-errorcode", HeaderValue::from_static(error.code.name()));
    reply
}

fn status(code: ErrorCode) -> StatusCode {
    match code {
        // the token is the caller's own: the REST side knows no "disabled"
        ErrorCode::DeviceDisabled => StatusCode::UNAUTHORIZED,
        code => StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// `ArgumentInvalid` with this text.
pub(super) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> HubError {
    HubError::new(ErrorCode::ArgumentInvalid, message)
}
