//! What the hub answers when it refuses: one table of its codes, with the HTTP status and the AMQP condition of each
//! (contract §3.9, §4.3).

use std::borrow::Cow;
use std::fmt;

use super::clock::iso8601;

/// A refusal: the hub's code and a text for people. Never holds a token, key or payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubError {
    /// The code, which decides status and condition.
    pub code: ErrorCode,
    /// Text for people.
    pub message: Cow<'static, str>,
}

impl HubError {
    /// A refusal with this code and text.
    pub fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    /// The JSON that the hub puts into AMQP `error.description`, CBS status descriptions, twin error bodies and method
    /// error bodies: `{"errorCode":…,"trackingId":…,"message":…,"timestampUtc":…}`.
    pub fn description_json(&self, now_ms: u64) -> String {
        self.description_json_tracked(&tracking_id(), now_ms)
    }

    /// The same with a tracking id that also goes elsewhere (`com.microsoft:tracking-id` in `error.info`).
    pub fn description_json_tracked(&self, tracking_id: &str, now_ms: u64) -> String {
        serde_json::json!({
            "errorCode": self.code.number(),
            "trackingId": tracking_id,
            "message": self.message,
            "timestampUtc": iso8601(now_ms),
        })
        .to_string()
    }
}

impl fmt::Display for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.code.number(), self.code.name(), self.message)
    }
}

impl std::error::Error for HubError {}

/// A fresh tracking id: 32 upper-case hex digits, as the hub writes them.
pub fn tracking_id() -> String {
    uuid::Uuid::new_v4().simple().to_string().to_uppercase()
}

macro_rules! error_codes {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $condition:literal;)*) => {
        /// The hub's error codes; the first three digits are the HTTP status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// The six digits, as in `errorCode`.
            pub fn number(self) -> u32 { match self { $(Self::$name => $number,)* } }
            /// The name, as in the `iothub-errorcode` header.
            pub fn name(self) -> &'static str { match self { $(Self::$name => stringify!($name),)* } }
            /// The AMQP condition that goes with it.
            pub fn condition(self) -> &'static str { match self { $(Self::$name => $condition,)* } }
            /// The code of these six digits.
            pub fn from_number(number: u32) -> Option<Self> { match number { $($number => Some(Self::$name),)* _ => None } }
        }
    };
}

error_codes! {
    /// `api-version` missing or unknown.
    InvalidProtocolVersion = 400_001, "com.microsoft:argument-error";
    /// The operation does not exist for this resource or link.
    InvalidOperation = 400_003, "amqp:not-allowed";
    /// A field, header or body is not what it should be.
    ArgumentInvalid = 400_004, "com.microsoft:argument-error";
    /// A newer connection of the same device took over.
    ConnectionForcefullyClosedOnNewConnection = 400_027, "amqp:link:stolen";
    /// The token is missing, malformed, expired, wrongly signed or does not cover the resource.
    IotHubUnauthorized = 401_003, "amqp:unauthorized-access";
    /// Daily quota used up.
    IotHubQuotaExceeded = 403_002, "com.microsoft:quota-exceeded";
    /// 50 cloud-to-device messages wait already.
    DeviceMaximumQueueDepthExceeded = 403_004, "amqp:resource-limit-exceeded";
    /// More than 1000 tokens on one connection.
    IotHubMaxCbsTokenExceeded = 403_005, "amqp:resource-limit-exceeded";
    /// The identity is disabled.
    DeviceDisabled = 403_012, "amqp:unauthorized-access";
    /// No such device.
    DeviceNotFound = 404_001, "amqp:not-found";
    /// No such address.
    AmqpAddressNotFound = 404_006, "amqp:not-found";
    /// No such module.
    ModuleNotFound = 404_010, "amqp:not-found";
    /// The device has no methods links.
    DeviceNotOnline = 404_103, "amqp:not-found";
    /// The connection to the device was lost.
    DeviceConnectionClosedRemotely = 404_104, "amqp:not-found";
    /// No such REST resource.
    ResourceNotFound = 404_999, "amqp:not-found";
    /// The method does not exist for this REST resource.
    MethodNotAllowed = 405_000, "amqp:not-allowed";
    /// The device is in the registry already.
    DeviceAlreadyExists = 409_001, "com.microsoft:device-already-exists";
    /// A newer link took over.
    LinkCreationConflict = 409_002, "com.microsoft:link-creation-conflict";
    /// The module is in the registry already.
    ModuleAlreadyExistsOnDevice = 409_301, "com.microsoft:device-already-exists";
    /// The ETag or version given is not the present one.
    PreconditionFailed = 412_001, "com.microsoft:precondition-failed";
    /// The lock of the message lapsed.
    DeviceMessageLockLost = 412_002, "com.microsoft:message-lock-lost";
    /// Over a size limit.
    MessageTooLarge = 413_001, "amqp:link:message-size-exceeded";
    /// Throttled.
    ThrottlingException = 429_001, "com.microsoft:device-container-throttled";
    /// The hub failed.
    ServerError = 500_001, "amqp:internal-error";
    /// An operation inside the hub took too long.
    OperationTimeout = 500_008, "com.microsoft:timeout";
    /// The hub is not available.
    ServiceUnavailable = 503_001, "amqp:internal-error";
    /// The device did not answer in time.
    GatewayTimeout = 504_101, "com.microsoft:timeout";
}

impl ErrorCode {
    /// The HTTP status, also used as twin status and CBS status.
    pub fn http_status(self) -> u16 {
        (self.number() / 1000) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_the_hubs_json() {
        let error = HubError::new(ErrorCode::DeviceNotFound, "no such device");
        let json: serde_json::Value = serde_json::from_str(&error.description_json(1_700_000_000_000)).expect("JSON");
        assert_eq!(json["errorCode"], 404_001);
        assert_eq!(json["message"], "no such device");
        assert_eq!(json["timestampUtc"], "2023-11-14T22:13:20.0000000Z");
        assert_eq!(json["trackingId"].as_str().map(str::len), Some(32));
        assert_eq!(error.code.http_status(), 404);
    }
}
