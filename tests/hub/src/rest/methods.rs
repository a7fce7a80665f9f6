//! `POST /twins/{d}[/modules/{m}]/methods`: direct methods.

use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{self, Reply, invalid};
use super::{Call, identity, unknown, wrong_method};
use crate::domain::{ErrorCode, HubError, MethodError, MethodRequest, PAYLOAD_BYTES_MAX, Permissions};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MethodBody {
    method_name: String,
    payload: Option<Value>,
    response_timeout_in_seconds: Option<u64>,
    connect_timeout_in_seconds: Option<u64>,
}

pub(super) async fn route(call: &Call<'_>) -> Result<Reply, HubError> {
    let identity = identity(&call.segments[1..call.segments.len() - 1]).ok_or_else(unknown)?;
    if call.method != Method::POST {
        return Err(wrong_method());
    }
    call.require(Permissions::SERVICE_CONNECT)?;
    call.domain.registry.expect_registered(&identity)?;
    let request = request(&call.body)?;
    let result = call.domain.methods.invoke(&identity, request).await.map_err(refusal)?;
    // what the device answered may be anything: JSON is passed on as JSON
    let payload = serde_json::from_slice::<Value>(&result.payload)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&result.payload).into_owned()));
    let payload = if result.payload.is_empty() { Value::Null } else { payload };
    Ok(reply::ok(&json!({"status": result.status, "payload": payload})))
}

fn request(body: &[u8]) -> Result<MethodRequest, HubError> {
    let body: MethodBody = serde_json::from_slice(body).map_err(|error| invalid(format!("body: {error}")))?;
    if body.method_name.is_empty() || body.method_name.len() > 100 {
        return Err(invalid("methodName must have 1 to 100 characters"));
    }
    let response_s = body.response_timeout_in_seconds.unwrap_or(30);
    if !(5..=300).contains(&response_s) {
        return Err(invalid("responseTimeoutInSeconds must be 5 to 300"));
    }
    let connect_s = body.connect_timeout_in_seconds.unwrap_or(0);
    if connect_s > 300 {
        return Err(invalid("connectTimeoutInSeconds must be 0 to 300"));
    }
    let payload = body.payload.unwrap_or_default().to_string();
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(HubError::new(ErrorCode::MessageTooLarge, "the payload is longer than 131072 bytes"));
    }
    Ok(MethodRequest {
        name: body.method_name,
        payload: Bytes::from(payload),
        connect_timeout: Duration::from_secs(connect_s),
        response_timeout: Duration::from_secs(response_s),
    })
}

fn refusal(error: MethodError) -> HubError {
    match error {
        MethodError::NotOnline => HubError::new(ErrorCode::DeviceNotOnline, "the device is not online"),
        MethodError::TimedOut => HubError::new(ErrorCode::GatewayTimeout, "the device did not answer in time"),
        MethodError::TooManyCalls => {
            HubError::new(ErrorCode::ThrottlingException, "too many calls of this device are under way")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Result<&str, ErrorCode>) {
        let result = request(body.as_bytes()).map(|request| request.payload).map_err(|error| error.code);
        assert_eq!(result, expected.map(|payload| Bytes::copy_from_slice(payload.as_bytes())), "{body}");
    }

    #[test]
    fn a_call_is_checked_before_it_is_made() {
        check(r#"{"methodName":"m"}"#, Ok("null"));
        check(r#"{"methodName":"m","payload":{"a": 1}}"#, Ok(r#"{"a":1}"#));
        check(
            r#"{"methodName":"m","payload":null,"responseTimeoutInSeconds":5,"connectTimeoutInSeconds":0}"#,
            Ok("null"),
        );
        check(r#"{"methodName":""}"#, Err(ErrorCode::ArgumentInvalid));
        check(r#"{"payload":1}"#, Err(ErrorCode::ArgumentInvalid));
        check(r#"{"methodName":"m","responseTimeoutInSeconds":4}"#, Err(ErrorCode::ArgumentInvalid));
        check(r#"{"methodName":"m","connectTimeoutInSeconds":301}"#, Err(ErrorCode::ArgumentInvalid));
        check("not JSON", Err(ErrorCode::ArgumentInvalid));
        let long = format!(r#"{{"methodName":"m","payload":"{}"}}"#, "x".repeat(PAYLOAD_BYTES_MAX));
        check(&long, Err(ErrorCode::MessageTooLarge));
    }
}
