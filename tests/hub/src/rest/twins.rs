//! `/twins/…`: twins as the service sees them.

use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::devices::{connection_state, kind, status_text};
use super::reply::{self, Reply, invalid};
use super::{Call, identity, unknown, wrong_method};
use crate::domain::{Authentication, Domain, HubError, Identity, Object, Permissions, Twin, TwinChange, iso8601};

pub(super) fn route(call: &Call<'_>) -> Result<Reply, HubError> {
    let identity = identity(&call.segments[1..]).ok_or_else(unknown)?;
    if ![Method::GET, Method::PATCH, Method::PUT].contains(&call.method) {
        return Err(wrong_method());
    }
    call.require(Permissions::SERVICE_CONNECT)?;
    let twins = &call.domain.twins;
    let now_ms = call.now_ms();
    let twin = match call.method {
        Method::PATCH => twins.patch(&identity, &change(call, false)?, &call.if_match, now_ms)?,
        Method::PUT => twins.replace(&identity, &change(call, true)?, &call.if_match, now_ms)?,
        _ => twins.get(&identity)?,
    };
    Ok(reply::ok_tagged(&json(call.domain, &identity, &twin)?, &twin.etag()))
}

#[derive(Debug, Deserialize)]
struct TwinBody {
    tags: Option<Value>,
    properties: Option<PropertiesBody>,
}

#[derive(Debug, Deserialize)]
struct PropertiesBody {
    desired: Option<Value>,
}

/// A replace without tags or desired properties empties them; a patch without leaves them.
fn change(call: &Call<'_>, whole: bool) -> Result<TwinChange, HubError> {
    let body: TwinBody = serde_json::from_slice(&call.body).map_err(|error| invalid(format!("body: {error}")))?;
    let part = |value: Option<Value>| match value {
        None | Some(Value::Null) => Ok(whole.then(Object::new)),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(_) => Err(invalid("tags and desired must be objects")),
    };
    Ok(TwinChange { tags: part(body.tags)?, desired: part(body.properties.and_then(|properties| properties.desired))? })
}

fn json(domain: &Domain, identity: &Identity, twin: &Twin) -> Result<Value, HubError> {
    domain.registry.expect_registered(identity)?;
    let record = domain.registry.get(identity).ok_or_else(unknown)?;
    let registration = &record.registration;
    let (primary, secondary) = match &registration.authentication {
        Authentication::SelfSigned { primary, secondary } => (primary.as_deref(), secondary.as_deref()),
        _ => (None, None),
    };
    let mut json = json!({
        "deviceId": &*identity.device,
        "etag": twin.etag(),
        "deviceEtag": record.etag,
        "status": status_text(registration.status),
        "statusUpdateTime": iso8601(record.status_updated_ms),
        "connectionState": connection_state(&record),
        "lastActivityTime": iso8601(record.last_activity_ms),
        "cloudToDeviceMessageCount": domain.c2d.depth(identity),
        "authenticationType": kind(&registration.authentication),
        "x509Thumbprint": {"primaryThumbprint": primary, "secondaryThumbprint": secondary},
        "modelId": twin.model_id.as_deref().unwrap_or_default(),
        "version": twin.version,
        "tags": twin.tags.properties,
        "properties": {"desired": twin.desired.service_json(), "reported": twin.reported.service_json()},
        "capabilities": {"iotEdge": registration.iot_edge},
    });
    if let Some(module) = &identity.module {
        json["moduleId"] = json!(&**module);
    }
    Ok(json)
}
