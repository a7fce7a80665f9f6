//! What a device says of its software and its model, for the hub's eyes. It proves nothing, and nothing is decided by it.

use super::Login;
use crate::topic::percent;

/// The longest of these texts, decoded, that is passed on. As long as most user names, and far below any hub's frame.
pub const CLIENT_TEXT_BYTES_MAX: usize = 1024;

/// What the hub is told of a device when a link of it attaches; at least one of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// `DeviceClientType`: library and version.
    pub user_agent: Option<Box<str>>,
    /// `model-id`: the DTMI of what the device is.
    pub model_id: Option<Box<str>>,
}

impl Login<'_> {
    /// What the hub is to be told, `None` if the device said nothing; and whether something was left out because it is longer than
    /// [`CLIENT_TEXT_BYTES_MAX`], does not decode or holds a control character.
    pub fn client(&self) -> (Option<Client>, bool) {
        let mut left_out = false;
        let mut text = |encoded: Option<&str>| {
            let encoded = encoded.filter(|encoded| !encoded.is_empty())?;
            let text = decode(encoded);
            left_out |= text.is_none();
            text
        };
        let (user_agent, model_id) = (text(self.client_type), text(self.model_id));
        let client = (user_agent.is_some() || model_id.is_some()).then_some(Client { user_agent, model_id });
        (client, left_out)
    }
}

fn decode(encoded: &str) -> Option<Box<str>> {
    // an octet takes three characters at most
    if encoded.len() > 3 * CLIENT_TEXT_BYTES_MAX {
        return None;
    }
    let mut text = String::new();
    percent::decode(encoded, &mut text).ok()?;
    (text.len() <= CLIENT_TEXT_BYTES_MAX && !text.chars().any(char::is_control)).then(|| text.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::DeviceId;

    /// User agent, model id, and whether something was left out.
    type Told<'a> = (Option<&'a str>, Option<&'a str>, bool);

    fn check(client_type: Option<&str>, model_id: Option<&str>, expected: Told<'_>) {
        let identity = DeviceId::new("d", None).unwrap();
        let login = Login { identity, hub_host: "hub", client_type, model_id, token: None };
        let (client, left_out) = login.client();
        let told = client.as_ref().map(|client| (client.user_agent.as_deref(), client.model_id.as_deref()));
        assert_ne!(told, Some((None, None)), "nothing is kept for a device that says nothing");
        let (user_agent, model_id) = told.unwrap_or_default();
        assert_eq!((user_agent, model_id, left_out), expected, "{client_type:?} {:?}", login.model_id);
    }

    #[test]
    fn both_texts_are_decoded_once() {
        let agent = "azure-iot-device/2.12.0 (Linux;x86_64)";
        check(None, None, (None, None, false));
        check(Some(""), Some(""), (None, None, false));
        check(Some("azure-iot-device%2F2.12.0%20%28Linux%3Bx86_64%29"), None, (Some(agent), None, false));
        check(
            None,
            Some("dtmi%3Acom%3Aexample%3BThermostat%3B1"),
            (None, Some("dtmi:com:example;Thermostat;1"), false),
        );
        check(Some("a+b%2525"), Some("dtmi:a;1"), (Some("a+b%25"), Some("dtmi:a;1"), false));
    }

    #[test]
    fn what_is_too_long_or_no_text_is_left_out_alone() {
        let (most, more) = ("a".repeat(CLIENT_TEXT_BYTES_MAX), "a".repeat(CLIENT_TEXT_BYTES_MAX + 1));
        check(Some(&most), Some("m"), (Some(&most), Some("m"), false));
        check(Some(&more), Some("m"), (None, Some("m"), true));
        check(Some(&"%61".repeat(CLIENT_TEXT_BYTES_MAX)), None, (Some(&most), None, false));
        check(Some("a"), Some(&"%61".repeat(CLIENT_TEXT_BYTES_MAX + 1)), (Some("a"), None, true));
        check(Some("50%"), Some("%ff"), (None, None, true));
        check(Some("a%00b"), Some("a%0d%0ab"), (None, None, true));
    }
}
