//! `/devices/…` and `/statistics/…`: the registry as JSON.

use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::reply::{self, Reply, invalid};
use super::{Call, identity, unknown, wrong_method};
use crate::domain::{
    Authentication, Domain, ErrorCode, HubError, Identity, IfMatch, Permissions, Record, Registration, SharedKey,
    Status, iso8601, parse_thumbprint,
};

/// The most devices of one list.
const LIST_MAX: usize = 1000;

pub(super) fn route(call: &Call<'_>) -> Result<Reply, HubError> {
    let below = &call.segments[1..];
    match below {
        [] => list(call),
        [device, modules] if modules.eq_ignore_ascii_case("modules") => list_modules(call, device),
        [.., commands] if commands.eq_ignore_ascii_case("commands") && below.len() > 1 => {
            purge(call, &identity(&below[..below.len() - 1]).ok_or_else(unknown)?)
        }
        _ => one(call, &identity(below).ok_or_else(unknown)?),
    }
}

pub(super) fn statistics(call: &Call<'_>) -> Result<Reply, HubError> {
    let statistics = call.domain.registry.statistics();
    let json = match call.segments.get(1).map(|name| name.to_ascii_lowercase()).as_deref() {
        Some("devices") => json!({
            "totalDeviceCount": statistics.enabled + statistics.disabled,
            "enabledDeviceCount": statistics.enabled,
            "disabledDeviceCount": statistics.disabled,
        }),
        Some("service") => json!({"connectedDeviceCount": statistics.connected}),
        _ => return Err(unknown()),
    };
    if call.segments.len() != 2 {
        return Err(unknown());
    }
    expect_get(call)?;
    call.require(Permissions::REGISTRY_READ)?;
    Ok(reply::ok(&json))
}

fn list(call: &Call<'_>) -> Result<Reply, HubError> {
    expect_get(call)?;
    call.require(Permissions::REGISTRY_READ)?;
    let top = match call.query("top") {
        None => LIST_MAX,
        Some(top) => top
            .parse()
            .ok()
            .filter(|top| (1..=LIST_MAX).contains(top))
            .ok_or_else(|| invalid("top must be 1 to 1000"))?,
    };
    let devices = call.domain.registry.devices(top);
    Ok(reply::ok(&devices.iter().map(|record| json(call.domain, record)).collect()))
}

fn list_modules(call: &Call<'_>, device: &str) -> Result<Reply, HubError> {
    expect_get(call)?;
    call.require(Permissions::REGISTRY_READ)?;
    call.domain.registry.expect_registered(&Identity::device(device))?;
    let modules = call.domain.registry.modules(device);
    Ok(reply::ok(&modules.iter().map(|record| json(call.domain, record)).collect()))
}

fn one(call: &Call<'_>, identity: &Identity) -> Result<Reply, HubError> {
    match call.method {
        Method::GET => {
            call.require(Permissions::REGISTRY_READ)?;
            call.domain.registry.expect_registered(identity)?;
            let record = call.domain.registry.get(identity).ok_or_else(unknown)?;
            Ok(reply::ok_tagged(&json(call.domain, &record), &record.etag))
        }
        Method::PUT => {
            call.require(Permissions::REGISTRY_WRITE)?;
            put(call, identity)
        }
        Method::DELETE => {
            call.require(Permissions::REGISTRY_WRITE)?;
            if call.if_match == IfMatch::Absent {
                return Err(HubError::new(ErrorCode::PreconditionFailed, "If-Match is missing"));
            }
            call.domain.delete_identity(identity, &call.if_match)?;
            Ok(reply::no_content())
        }
        _ => Err(wrong_method()),
    }
}

/// `DELETE …/commands`: empties the queue of cloud-to-device messages.
fn purge(call: &Call<'_>, identity: &Identity) -> Result<Reply, HubError> {
    if call.method != Method::DELETE {
        return Err(wrong_method());
    }
    call.require(Permissions::SERVICE_CONNECT)?;
    call.domain.registry.expect_registered(identity)?;
    let purged = call.domain.c2d.purge(identity, call.now_ms());
    Ok(reply::ok(&json!({
        "deviceId": &*identity.device,
        "moduleId": identity.module.as_deref(),
        "totalMessagesPurged": purged,
    })))
}

/// Creates without `If-Match`, updates with it.
fn put(call: &Call<'_>, identity: &Identity) -> Result<Reply, HubError> {
    let body: IdentityBody = serde_json::from_slice(&call.body).map_err(|error| invalid(format!("body: {error}")))?;
    let present = call.domain.registry.get(identity);
    let registration = body.registration(identity, present.as_ref())?;
    let record = match call.if_match {
        IfMatch::Absent => call.domain.create_identity(registration)?,
        _ => call.domain.update_identity(registration, &call.if_match)?,
    };
    Ok(reply::ok_tagged(&json(call.domain, &record), &record.etag))
}

fn expect_get(call: &Call<'_>) -> Result<(), HubError> {
    if call.method == Method::GET { Ok(()) } else { Err(wrong_method()) }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IdentityBody {
    device_id: String,
    module_id: Option<String>,
    managed_by: Option<String>,
    status: Option<String>,
    status_reason: Option<String>,
    authentication: Option<AuthenticationBody>,
    capabilities: Option<CapabilitiesBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<SymmetricKeyBody>,
    #[serde(rename = "x509Thumbprint")]
    x509_thumbprint: Option<ThumbprintBody>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SymmetricKeyBody {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThumbprintBody {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CapabilitiesBody {
    iot_edge: Option<bool>,
}

impl IdentityBody {
    fn registration(self, identity: &Identity, present: Option<&Record>) -> Result<Registration, HubError> {
        if self.device_id != *identity.device
            || (identity.module.is_some() && self.module_id.as_deref() != identity.module.as_deref())
        {
            return Err(invalid("the ids in path and body differ"));
        }
        let status = match self.status.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("enabled") => Status::Enabled,
            Some("disabled") => Status::Disabled,
            Some(_) => return Err(invalid("status must be enabled or disabled")),
        };
        if self.status_reason.as_ref().is_some_and(|reason| reason.len() > 128) {
            return Err(invalid("statusReason is longer than 128 characters"));
        }
        let present = present.map(|record| &record.registration.authentication);
        Ok(Registration {
            identity: identity.clone(),
            status,
            status_reason: self.status_reason,
            authentication: self.authentication.unwrap_or_default().authentication(present)?,
            iot_edge: self.capabilities.and_then(|capabilities| capabilities.iot_edge).unwrap_or(false),
            managed_by: self.managed_by,
        })
    }
}

impl AuthenticationBody {
    /// Keys that are not given stay as they are, or are made.
    fn authentication(self, present: Option<&Authentication>) -> Result<Authentication, HubError> {
        let thumbprints = self.x509_thumbprint.unwrap_or_default();
        let has_thumbprint = thumbprints.primary_thumbprint.is_some() || thumbprints.secondary_thumbprint.is_some();
        let kind = self.kind.map(|kind| kind.to_ascii_lowercase());
        match kind.as_deref() {
            Some("sas") => symmetric(self.symmetric_key, present),
            None if !has_thumbprint => symmetric(self.symmetric_key, present),
            Some("selfsigned") | None => {
                let thumbprint = |text: Option<String>| {
                    let parse = |text: String| {
                        parse_thumbprint(&text).ok_or_else(|| invalid("a thumbprint is 40 or 64 hex digits"))
                    };
                    text.filter(|text| !text.is_empty()).map(parse).transpose()
                };
                if !has_thumbprint {
                    return Err(invalid("selfSigned needs a thumbprint"));
                }
                Ok(Authentication::SelfSigned {
                    primary: thumbprint(thumbprints.primary_thumbprint)?,
                    secondary: thumbprint(thumbprints.secondary_thumbprint)?,
                })
            }
            Some("certificateauthority") => Ok(Authentication::CertificateAuthority),
            Some(_) => Err(invalid("authentication.type must be sas, selfSigned or certificateAuthority")),
        }
    }
}

fn symmetric(keys: Option<SymmetricKeyBody>, present: Option<&Authentication>) -> Result<Authentication, HubError> {
    let keys = keys.unwrap_or_default();
    let given = |key: Option<String>| key.filter(|key| !key.is_empty());
    match (given(keys.primary_key), given(keys.secondary_key), present) {
        (None, None, Some(present @ Authentication::SymmetricKey { .. })) => Ok(present.clone()),
        (None, None, _) => Ok(Authentication::generated()),
        (Some(primary), Some(secondary), _) => {
            let key =
                |base64: &str| SharedKey::parse(base64).ok_or_else(|| invalid("a key is base64 of 16 to 64 bytes"));
            Ok(Authentication::SymmetricKey { primary: key(&primary)?, secondary: key(&secondary)? })
        }
        _ => Err(invalid("primaryKey and secondaryKey must be given together")),
    }
}

fn json(domain: &Domain, record: &Record) -> Value {
    let registration = &record.registration;
    let identity = &registration.identity;
    let mut json = json!({
        "deviceId": &*identity.device,
        "generationId": &*record.generation_id,
        "etag": record.etag,
        "connectionState": connection_state(record),
        "connectionStateUpdatedTime": iso8601(record.connection_updated_ms),
        "lastActivityTime": iso8601(record.last_activity_ms),
        "cloudToDeviceMessageCount": domain.c2d.depth(identity),
        "authentication": authentication_json(&registration.authentication),
    });
    if let Some(module) = &identity.module {
        json["moduleId"] = json!(&**module);
        json["managedBy"] = json!(registration.managed_by);
    } else {
        json["status"] = json!(status_text(registration.status));
        json["statusReason"] = json!(registration.status_reason);
        json["statusUpdatedTime"] = json!(iso8601(record.status_updated_ms));
        json["capabilities"] = json!({"iotEdge": registration.iot_edge});
    }
    json
}

fn authentication_json(authentication: &Authentication) -> Value {
    let (mut keys, mut thumbprints) = ([None, None], [None, None]);
    match authentication {
        Authentication::SymmetricKey { primary, secondary } => {
            keys = [Some(primary.secret_base64()), Some(secondary.secret_base64())];
        }
        Authentication::SelfSigned { primary, secondary } => thumbprints = [primary.as_deref(), secondary.as_deref()],
        Authentication::CertificateAuthority => {}
    }
    json!({
        "symmetricKey": {"primaryKey": keys[0], "secondaryKey": keys[1]},
        "x509Thumbprint": {"primaryThumbprint": thumbprints[0], "secondaryThumbprint": thumbprints[1]},
        "type": kind(authentication),
    })
}

/// `type` of the identity, `authenticationType` of the twin.
pub(super) fn kind(authentication: &Authentication) -> &'static str {
    match authentication {
        Authentication::SymmetricKey { .. } => "sas",
        Authentication::SelfSigned { .. } => "selfSigned",
        Authentication::CertificateAuthority => "certificateAuthority",
    }
}

pub(super) fn connection_state(record: &Record) -> &'static str {
    if record.links > 0 { "Connected" } else { "Disconnected" }
}

pub(super) fn status_text(status: Status) -> &'static str {
    match status {
        Status::Enabled => "enabled",
        Status::Disabled => "disabled",
    }
}
