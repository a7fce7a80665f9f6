//! SAS tokens: their form, what they cover, and how the gateway makes its own (contract §5).

use percent_encoding::percent_decode_str;

use super::{Key, SasToken};
use crate::{message::DeviceId, time::UnixSeconds, topic::percent};

const SCHEME: &str = "SharedAccessSignature ";

impl<'a> SasToken<'a> {
    /// Reads `SharedAccessSignature sr=…&sig=…&se=…[&skn=…]`, fields in any order, unknown ones ignored.
    ///
    /// `None` if a field is missing, given twice or empty (`skn` may be empty), or if `se` is not decimal Unix seconds.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (mut resource, mut signature, mut expires, mut policy) = (None, None, None, None);
        for pair in text.strip_prefix(SCHEME)?.split('&') {
            // base64 may come unencoded and ends in `=`: the first one separates
            let (name, value) = pair.split_once('=')?;
            let field = match name {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expires,
                "skn" => &mut policy,
                _ => continue,
            };
            if field.replace(value).is_some() {
                return None;
            }
        }
        let given = |field: Option<&'a str>| field.filter(|value| !value.is_empty());
        Some(Self {
            text,
            resource: given(resource)?,
            signature: given(signature)?,
            expires: decimal(given(expires)?)?,
            policy,
        })
    }

    /// Whether `sr` names `identity` or a resource above it, at a hub whose name satisfies `is_hub_host`.
    ///
    /// Compared by path segments, ids case-sensitively, each decoded once or twice (some SDKs encode ids in `sr` twice).
    pub fn covers(&self, identity: &DeviceId, is_hub_host: impl Fn(&str) -> bool) -> bool {
        let Ok(path) = percent_decode_str(self.resource).decode_utf8() else { return false };
        let mut segments = path.split('/');
        if !segments.next().is_some_and(is_hub_host) {
            return false;
        }
        let device = [Wanted::Word("devices"), Wanted::Id(identity.device())];
        let module = identity.module().map(|module| [Wanted::Word("modules"), Wanted::Id(module)]);
        let mut wanted = device.into_iter().chain(module.into_iter().flatten());
        segments.all(|segment| wanted.next().is_some_and(|wanted| wanted.is(segment)))
    }
}

/// What a path segment of `sr` must be.
enum Wanted<'a> {
    /// A keyword, in any case.
    Word(&'static str),
    /// An id, case-sensitive.
    Id(&'a str),
}

impl Wanted<'_> {
    fn is(&self, segment: &str) -> bool {
        match self {
            Self::Word(word) => word.eq_ignore_ascii_case(segment),
            Self::Id(id) => *id == segment || percent_decode_str(segment).eq(id.bytes()),
        }
    }
}

/// A token that the gateway makes itself: `resource` (not encoded, `{hub}` or `{hub}/devices/{d}`) signed with `key`.
///
/// `policy` is the name of the key (`skn`); `None` for a device's own key. The text is a secret until it expires.
pub fn sign(key: &Key, resource: &str, expires: UnixSeconds, policy: Option<&str>) -> String {
    let resource = percent::encoded(resource);
    let signature = key.signature_text(&resource, expires);
    let mut token = format!("{SCHEME}sr={resource}&sig={}&se={}", percent::encoded(&signature), expires.0);
    if let Some(policy) = policy {
        token.push_str("&skn=");
        percent::encode(policy, &mut token);
    }
    token
}

/// Decimal digits and nothing else (`u64::from_str` would take a `+`).
fn decimal(text: &str) -> Option<UnixSeconds> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok().map(UnixSeconds))?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(text: &str) -> SasToken<'_> {
        SasToken::parse(text).unwrap_or_else(|| panic!("not a token: {text}"))
    }

    #[test]
    fn fields_come_in_any_order_and_unknown_ones_are_ignored() {
        let full = "SharedAccessSignature sig=a%3D&x=1&se=1700000000&skn=p&sr=hub%2Fdevices%2Fd";
        let token = token(full);
        assert_eq!((token.text, token.resource, token.signature), (full, "hub%2Fdevices%2Fd", "a%3D"));
        assert_eq!((token.expires, token.policy), (UnixSeconds(1_700_000_000), Some("p")));
    }

    #[test]
    fn what_is_not_a_token_is_not_parsed() {
        for text in [
            "",
            "SharedAccessSignature",
            "SharedAccessSignature ",
            "sharedaccesssignature sr=a&sig=b&se=1",
            "SharedAccessSignature sr=a&sig=b",
            "SharedAccessSignature sr=a&se=1",
            "SharedAccessSignature sig=b&se=1",
            "SharedAccessSignature sr=&sig=b&se=1",
            "SharedAccessSignature sr=a&sig=&se=1",
            "SharedAccessSignature sr=a&sig=b&se=",
            "SharedAccessSignature sr=a&sig=b&se=+1",
            "SharedAccessSignature sr=a&sig=b&se=-1",
            "SharedAccessSignature sr=a&sig=b&se=1.0",
            "SharedAccessSignature sr=a&sig=b&se=99999999999999999999",
            "SharedAccessSignature sr=a&sr=c&sig=b&se=1",
            "SharedAccessSignature sr=a&sig=b&se=1&skn=x&skn=y",
            "SharedAccessSignature sr=a&sig=b&se=1&",
        ] {
            assert!(SasToken::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn debug_shows_no_signature() {
        let shown = format!("{:?}", token("SharedAccessSignature sr=hub&sig=c2VjcmV0&se=1"));
        assert!(!shown.contains("c2VjcmV0"), "{shown}");
    }

    fn check_scope(resource: &str, device: &str, module: Option<&str>, expected: bool) {
        let text = format!("SharedAccessSignature sr={resource}&sig=x&se=1");
        let identity = DeviceId::new(device, module).unwrap();
        let covers = token(&text).covers(&identity, |host| host.eq_ignore_ascii_case("hub.example.com"));
        assert_eq!(covers, expected, "{resource} for {identity}");
    }

    #[test]
    fn scope_is_a_prefix_of_whole_path_segments() {
        for (resource, device, module, expected) in [
            ("hub.example.com%2Fdevices%2Fa", "a", None, true),
            ("hub.example.com%2fdevices%2fa", "a", None, true),
            ("hub.example.com/devices/a", "a", None, true),
            ("HUB.example.com%2FDevices%2Fa", "a", None, true),
            ("hub.example.com%2Fdevices%2Fa", "ab", None, false),
            ("hub.example.com%2Fdevices%2Fab", "a", None, false),
            ("hub.example.com%2Fdevices%2FA", "a", None, false),
            ("hub.example.com%2Fdevices%2F", "a", None, false),
            ("hub.example.com%2Fdevices%2Fa%2F", "a", None, false),
            ("hub.example.com%2Fdevice%2Fa", "a", None, false),
            ("hub.example.com", "a", None, true),
            ("hub.example.com%2Fdevices", "a", None, true),
            ("other.example.com%2Fdevices%2Fa", "a", None, false),
            ("hub.example.com%2Fdevices%2Fa%2Fmodules%2Fm", "a", None, false),
            ("hub.example.com%2Fdevices%2Fa%2Fmodules%2Fm", "a", Some("m"), true),
            ("hub.example.com%2Fdevices%2Fa", "a", Some("m"), true),
            ("hub.example.com%2Fdevices%2Fa%2Fmodules%2Fn", "a", Some("m"), false),
            ("hub.example.com%2Fdevices%2Fdev%2B1%3Da%3Ab", "dev+1=a:b", None, true),
            ("hub.example.com%2Fdevices%2Fdev%252B1%253Da%253Ab", "dev+1=a:b", None, true),
            ("hub.example.com%2Fdevices%2Fa%252Fb", "a", None, false),
            ("hub.example.com%2Fdevices%2F%FF", "a", None, false),
        ] {
            check_scope(resource, device, module, expected);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_keeps_to_the_text(text in ".{0,80}") {
            let text = format!("{SCHEME}{text}");
            if let Some(token) = SasToken::parse(&text) {
                let identity = DeviceId::new("d", Some("m")).unwrap();
                let _ = token.covers(&identity, |_| true);
                prop_assert!(text.contains(token.resource) && text.contains(token.signature));
            }
        }

        #[test]
        fn fields_survive_in_any_order(
            resource in "[a-z.%/]{1,20}", signature in "[A-Za-z0-9%=/+]{1,44}", expires in any::<u64>(), turn in 0usize..3,
        ) {
            let mut fields = [format!("sr={resource}"), format!("sig={signature}"), format!("se={expires}")];
            fields.rotate_left(turn);
            let text = format!("{SCHEME}{}", fields.join("&"));
            let token = SasToken::parse(&text).unwrap();
            prop_assert_eq!(token.resource, &resource);
            prop_assert_eq!(token.signature, &signature);
            prop_assert_eq!(token.expires, UnixSeconds(expires));
        }
    }
}
