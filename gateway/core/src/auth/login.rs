//! CONNECT → [`Login`]: the forms of user name, client id and password that IoT Hub knows. Proves nothing.

use super::{Login, Refused, RefusedReason, SasToken};
use crate::{
    codec::packet::{Connect, ConnectCode},
    message::DeviceId,
    settings::Settings,
};

/// Reads what `connect` claims.
///
/// User names (contract §2.2): `{hub}/{d}`, `{hub}/{d}/`, `{hub}/{d}/?api-version=…&…` and the same without the `?`; modules
/// have `{d}/{m}` for `{d}`. The client id is `{d}` or `{d}/{m}` again, byte for byte; it is the identity that is proved later.
/// An empty password is none: the device may have a certificate.
///
/// # Errors
/// Code 4 for what cannot be read, 5 for ids that do not agree and for the name of another hub.
pub fn login<'a>(connect: &Connect<'a>, settings: &Settings) -> Result<Login<'a>, Refused> {
    let user_name = connect.user_name.ok_or(BAD_USER_NAME)?;
    let (hub_host, rest) = user_name.split_once('/').ok_or(BAD_USER_NAME)?;
    if hub_host.is_empty() || rest.is_empty() {
        return Err(BAD_USER_NAME);
    }
    let identity = identity(connect.client_id)?;
    let query = query_after(rest, connect.client_id).ok_or(OTHER_CLIENT_ID)?;
    if !settings.is_hub_host(hub_host) {
        return Err(OTHER_HUB);
    }
    Ok(Login {
        identity,
        hub_host,
        client_type: first_value(query, "DeviceClientType"),
        model_id: first_value(query, "model-id"),
        token: token(connect.password)?,
    })
}

const BAD_USER_NAME: Refused = Refused { code: ConnectCode::BadUserNameOrPassword, reason: RefusedReason::UserName };
const BAD_TOKEN: Refused = Refused { code: ConnectCode::BadUserNameOrPassword, reason: RefusedReason::TokenForm };
// contract §2.3: the hub's answer is not documented; edge and the ancestor answer 5
const OTHER_CLIENT_ID: Refused = Refused { code: ConnectCode::NotAuthorized, reason: RefusedReason::ClientId };
const OTHER_HUB: Refused = Refused { code: ConnectCode::NotAuthorized, reason: RefusedReason::HubHost };

fn identity(client_id: &str) -> Result<DeviceId, Refused> {
    let id = match client_id.split_once('/') {
        None => DeviceId::new(client_id, None),
        Some((device, module)) => DeviceId::new(device, Some(module)),
    };
    id.map_err(|_| OTHER_CLIENT_ID)
}

/// The query of a user name whose part behind the hub's name is `rest`, if its ids are those of `client_id`.
///
/// Only a leading `?` is special: ids may hold one as well.
fn query_after<'a>(rest: &'a str, client_id: &str) -> Option<&'a str> {
    let tail = rest.strip_prefix(client_id)?;
    if tail.is_empty() {
        return Some("");
    }
    let query = tail.strip_prefix('/')?;
    match query.strip_prefix('?') {
        Some(query) => Some(query),
        // no `?`: an older form, or the module that the client id does not name
        None if query.is_empty() || (query.contains('=') && !query.contains('/')) => Some(query),
        None => None,
    }
}

/// The value of the first `key=value` of `query`, still encoded.
fn first_value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value)
}

fn token(password: Option<&[u8]>) -> Result<Option<SasToken<'_>>, Refused> {
    match password {
        None | Some([]) => Ok(None),
        Some(password) => {
            let text = std::str::from_utf8(password).map_err(|_| BAD_TOKEN)?;
            SasToken::parse(text).map(Some).ok_or(BAD_TOKEN)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GatewayConfig;

    fn settings() -> Settings {
        let text = "
upstream:
  iotHub: {hostName: hub.example.com, hostNameAliases: [gw.example.com]}
tls: {secretName: serving}";
        GatewayConfig::parse(text).unwrap().check().unwrap()
    }

    fn connect<'a>(client_id: &'a str, user_name: Option<&'a str>, password: Option<&'a [u8]>) -> Connect<'a> {
        Connect { clean_session: true, keep_alive_s: 60, client_id, will: None, user_name, password }
    }

    /// `Ok((identity, hub host, model id))` or the refusal.
    fn check(client_id: &str, user_name: &str, expected: Result<(&str, &str, Option<&str>), Refused>) {
        let settings = settings();
        let got = login(&connect(client_id, Some(user_name), None), &settings);
        let got = got.as_ref().map(|l| (l.identity.as_str(), l.hub_host, l.model_id)).map_err(|refused| *refused);
        assert_eq!(got, expected, "client id {client_id:?}, user name {user_name:?}");
    }

    #[test]
    fn every_form_of_user_name_is_read() {
        let host = "hub.example.com";
        for (client_id, user_name, model_id) in [
            ("d1", "hub.example.com/d1/?api-version=2021-04-12", None),
            ("d1", "hub.example.com/d1/?model-id=1", Some("1")),
            ("d1", "hub.example.com/d1/api-version=2016-11-14", None),
            ("d1", "hub.example.com/d1/model-id=1", Some("1")),
            ("d1", "hub.example.com/d1", None),
            ("d1", "hub.example.com/d1/", None),
            ("d1", "hub.example.com/d1/?", None),
            ("d1", "hub.example.com/d1/?api-version=2020-09-30&model-id=dtmi%3Aa%3B1", Some("dtmi%3Aa%3B1")),
            ("d1", "hub.example.com/d1/?model-id=dtmi%3Aa%3B1&api-version=2020-09-30", Some("dtmi%3Aa%3B1")),
            ("d1", "hub.example.com/d1/?model-id=1&model-id=2", Some("1")),
            ("d1", "hub.example.com/d1/?model-id=1&unknown&x=y", Some("1")),
            ("d1", "hub.example.com/d1/?DeviceClientType=a/b&model-id=1", Some("1")),
            ("d1/m1", "hub.example.com/d1/m1/?model-id=1", Some("1")),
            ("d1/m1", "hub.example.com/d1/m1", None),
            ("?d=1", "hub.example.com/?d=1/?model-id=7", Some("7")),
        ] {
            check(client_id, user_name, Ok((client_id, host, model_id)));
        }
    }

    #[test]
    fn the_hub_may_be_named_by_alias_and_in_any_case() {
        check("d", "HUB.example.COM/d", Ok(("d", "HUB.example.COM", None)));
        check("d", "gw.example.com/d", Ok(("d", "gw.example.com", None)));
        check("d", "other.example.com/d", Err(OTHER_HUB));
        check("d", "hub.example.com.evil.example/d", Err(OTHER_HUB));
    }

    #[test]
    fn a_client_id_other_than_the_user_name_is_refused_with_5() {
        for (client_id, user_name) in [
            ("d1", "hub.example.com/d2/?api-version=1"),
            ("d1", "hub.example.com/D1/?api-version=1"),
            ("d", "hub.example.com/d1/?api-version=1"),
            ("d1", "hub.example.com/d1/m1/?api-version=1"),
            ("d1", "hub.example.com/d1/m1"),
            ("d1/m2", "hub.example.com/d1/m1/?api-version=1"),
            ("d1/m1", "hub.example.com/d1/?api-version=1"),
            ("", "hub.example.com//?api-version=1"),
            ("d 1", "hub.example.com/d 1"),
            ("d1/m1/x", "hub.example.com/d1/m1/x"),
        ] {
            check(client_id, user_name, Err(OTHER_CLIENT_ID));
        }
    }

    #[test]
    fn a_user_name_without_hub_or_device_is_refused_with_4() {
        for user_name in ["", "hub.example.com", "hub.example.com/", "/d1", "d1"] {
            check("d1", user_name, Err(BAD_USER_NAME));
        }
        assert_eq!(login(&connect("d1", None, None), &settings()).unwrap_err(), BAD_USER_NAME);
    }

    #[test]
    fn client_information_is_kept_as_received() {
        let name = "hub.example.com/d/?api-version=1&DeviceClientType=py%2F2&model-id=dtmi%3Aa%3B1";
        let settings = settings();
        let login = login(&connect("d", Some(name), None), &settings).unwrap();
        assert_eq!((login.client_type, login.model_id), (Some("py%2F2"), Some("dtmi%3Aa%3B1")));
    }

    #[test]
    fn a_password_is_a_sas_token_or_absent() {
        let settings = settings();
        let with =
            |password| login(&connect("d", Some("hub.example.com/d"), password), &settings).map(|l| l.token.is_some());
        assert_eq!(with(None), Ok(false));
        assert_eq!(with(Some(b"")), Ok(false));
        assert_eq!(with(Some(b"SharedAccessSignature sr=a&sig=b&se=1")), Ok(true));
        assert_eq!(with(Some(b"secret")), Err(BAD_TOKEN));
        assert_eq!(with(Some(b"\xff\xfe")), Err(BAD_TOKEN));
    }
}
