//! Error conditions as the hub words them (contract §3.9): condition, JSON description, tracking id.

use fe2o3_amqp_types::definitions::{Error, ErrorCondition, Fields};
use fe2o3_amqp_types::messaging::{DeliveryState, Rejected};
use serde_amqp::Value;
use serde_amqp::primitives::Symbol;

use crate::domain::{ErrorCode, HubError, Redirect, tracking_id};

/// `amqp:decode-error`
pub(crate) const DECODE_ERROR: &str = "amqp:decode-error";
/// `amqp:not-found`
pub(crate) const NOT_FOUND: &str = "amqp:not-found";
/// `amqp:not-allowed`
pub(crate) const NOT_ALLOWED: &str = "amqp:not-allowed";
/// `amqp:unauthorized-access`
pub(crate) const UNAUTHORIZED: &str = "amqp:unauthorized-access";
/// `amqp:invalid-field`
pub(crate) const INVALID_FIELD: &str = "amqp:invalid-field";
/// `amqp:illegal-state`
pub(crate) const ILLEGAL_STATE: &str = "amqp:illegal-state";
/// `amqp:resource-limit-exceeded`
pub(crate) const RESOURCE_LIMIT: &str = "amqp:resource-limit-exceeded";
/// `amqp:resource-locked`
pub(crate) const RESOURCE_LOCKED: &str = "amqp:resource-locked";
/// `amqp:connection:forced`
pub(crate) const CONNECTION_FORCED: &str = "amqp:connection:forced";
/// `amqp:connection:framing-error`
pub(crate) const FRAMING_ERROR: &str = "amqp:connection:framing-error";
/// `amqp:session:window-violation`
pub(crate) const WINDOW_VIOLATION: &str = "amqp:session:window-violation";
/// `amqp:session:handle-in-use`
pub(crate) const HANDLE_IN_USE: &str = "amqp:session:handle-in-use";
/// `amqp:session:unattached-handle`
pub(crate) const UNATTACHED_HANDLE: &str = "amqp:session:unattached-handle";
/// `amqp:link:transfer-limit-exceeded`
pub(crate) const TRANSFER_LIMIT: &str = "amqp:link:transfer-limit-exceeded";
/// `amqp:link:message-size-exceeded`
pub(crate) const MESSAGE_SIZE: &str = "amqp:link:message-size-exceeded";
/// `amqp:link:stolen`
pub(crate) const LINK_STOLEN: &str = "amqp:link:stolen";
/// `com.microsoft:argument-error`
pub(crate) const ARGUMENT_ERROR: &str = "com.microsoft:argument-error";
/// `com.microsoft:device-container-throttled`
pub(crate) const THROTTLED: &str = "com.microsoft:device-container-throttled";

/// A protocol error: condition and plain text, as any AMQP peer gives it.
pub(crate) fn protocol(condition: &str, text: impl Into<String>) -> Error {
    Error::new(ErrorCondition::Custom(Symbol::from(condition)), Some(text.into()), None)
}

/// A refusal of the hub's own: condition by its code, JSON description, tracking id and code in `info`.
pub(crate) fn hub(error: &HubError, now_ms: u64) -> Error {
    hub_as(error.code.condition(), error, now_ms)
}

/// The same under another condition than the code's usual one.
pub(crate) fn hub_as(condition: &str, error: &HubError, now_ms: u64) -> Error {
    let tracking_id = tracking_id();
    let description = error.description_json_tracked(&tracking_id, now_ms);
    let code = i32::try_from(error.code.number()).unwrap_or(i32::MAX);
    let mut info = Fields::new();
    info.insert(Symbol::from("com.microsoft:tracking-id"), Value::String(tracking_id));
    info.insert(Symbol::from("com.microsoft:error-code"), Value::Int(code));
    Error::new(ErrorCondition::Custom(Symbol::from(condition)), Some(description), Some(info))
}

/// The outcome `rejected` with its reason.
pub(crate) fn rejected(error: Error) -> DeliveryState {
    DeliveryState::Rejected(Rejected { error: Some(error) })
}

/// The condition of an error as text.
pub(crate) fn condition_text(error: &Error) -> String {
    match serde_amqp::to_value(&error.condition) {
        Ok(Value::Symbol(symbol)) => symbol.0,
        _ => String::new(),
    }
}

/// An error under a condition given as a fault, with the redirect that goes with it.
pub(crate) fn faulty(condition: &str, redirect: Option<&Redirect>, now_ms: u64) -> Error {
    let refusal = HubError::new(code_of(condition), "fault on request");
    let mut error = hub_as(condition, &refusal, now_ms);
    if let (Some(redirect), Some(info)) = (redirect, &mut error.info) {
        info.insert(Symbol::from("hostname"), Value::String(redirect.hostname.clone()));
        info.insert(Symbol::from("network-host"), Value::String(redirect.network_host.clone()));
        info.insert(Symbol::from("port"), Value::Uint(u32::from(redirect.port)));
        if let Some(address) = &redirect.address {
            info.insert(Symbol::from("address"), Value::String(address.clone()));
        }
    }
    error
}

/// The code that the hub gives most often under this condition.
fn code_of(condition: &str) -> ErrorCode {
    match condition {
        UNAUTHORIZED => ErrorCode::IotHubUnauthorized,
        NOT_FOUND => ErrorCode::DeviceNotFound,
        RESOURCE_LIMIT => ErrorCode::DeviceMaximumQueueDepthExceeded,
        "com.microsoft:quota-exceeded" => ErrorCode::IotHubQuotaExceeded,
        MESSAGE_SIZE => ErrorCode::MessageTooLarge,
        LINK_STOLEN | "com.microsoft:link-creation-conflict" => ErrorCode::LinkCreationConflict,
        "com.microsoft:message-lock-lost" => ErrorCode::DeviceMessageLockLost,
        "com.microsoft:timeout" => ErrorCode::OperationTimeout,
        "com.microsoft:precondition-failed" => ErrorCode::PreconditionFailed,
        ARGUMENT_ERROR => ErrorCode::ArgumentInvalid,
        NOT_ALLOWED => ErrorCode::InvalidOperation,
        THROTTLED => ErrorCode::ThrottlingException,
        _ => ErrorCode::ServerError,
    }
}
