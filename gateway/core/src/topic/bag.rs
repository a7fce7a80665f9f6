//! Property bags: the properties of a message as the tail of its topic (contract §2.7, §2.8).
//!
//! ```text
//! bag  = [ pair *( "&" pair ) ] [ "/" ]
//! pair = name [ "=" value ]           ; "k" has no value, "k=" an empty one; both percent-encoded UTF-8
//! ```

use std::ops::Range;

use super::percent::{self, BadPercent};
use crate::message::{PropertyName, PropertyText};

/// Why a bag is refused. IoT Hub closes the connection for each of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BagError {
    /// `%` without two hex digits, or octets that are not UTF-8.
    #[error("bad percent-encoding in a property")]
    Percent,
    /// `&` or `=` where a name should begin, or `&` at the end.
    #[error("a property without a name")]
    EmptyName,
    /// A second `=` in a pair.
    #[error("an unencoded '=' in a property value")]
    RawEquals,
    /// Something after the `/` that ends the bag.
    #[error("an unencoded '/' in the property bag")]
    RawSlash,
    /// `:`, `#` or `+`, which the hub wants encoded.
    #[error("an unencoded ':', '#' or '+' in a property")]
    RawReserved,
    /// A content type or encoding that cannot be an AMQP symbol.
    #[error("a content type or encoding that is not ASCII")]
    NotAscii,
    /// More properties than `limits.propertiesMax`.
    #[error("too many properties")]
    TooMany,
}

impl From<BadPercent> for BagError {
    fn from(_: BadPercent) -> Self {
        Self::Percent
    }
}

/// Adds the properties of `bag` to `out`. A name that comes again replaces the value it had.
///
/// # Errors
/// See [`BagError`]; `out` is then half filled.
#[inline]
pub fn decode(bag: &str, properties_max: usize, out: &mut PropertyText) -> Result<(), BagError> {
    let pairs = match bag.split_once('/') {
        None => bag,
        Some((pairs, "")) => pairs,
        Some(_) => return Err(BagError::RawSlash),
    };
    if pairs.is_empty() {
        return Ok(());
    }
    for pair in pairs.split('&') {
        let (name, value) = match pair.split_once('=') {
            None => (pair, None),
            Some((name, value)) => (name, Some(value)),
        };
        check_raw(name, value)?;
        add_pair(name, value, properties_max, out)?;
    }
    Ok(())
}

fn check_raw(name: &str, value: Option<&str>) -> Result<(), BagError> {
    let is_reserved = |byte: u8| matches!(byte, b':' | b'#' | b'+');
    let value = value.unwrap_or_default();
    if name.is_empty() {
        Err(BagError::EmptyName)
    } else if value.bytes().any(|byte| byte == b'=') {
        Err(BagError::RawEquals)
    } else if name.bytes().chain(value.bytes()).any(is_reserved) {
        Err(BagError::RawReserved)
    } else {
        Ok(())
    }
}

fn add_pair(name: &str, value: Option<&str>, properties_max: usize, out: &mut PropertyText) -> Result<(), BagError> {
    let start = out.text.len();
    let name = append(name, out)?;
    let system = system(out.get(&name));
    if system.is_some() {
        out.text.truncate(start);
    }
    let value = value.map(|value| append(value, out)).transpose()?;
    match system {
        None => set_application(PropertyName::Text(name), value, properties_max, out),
        Some(System::Application(name)) => set_application(PropertyName::Known(name), value, properties_max, out),
        Some(System::Annotation(name)) => {
            set_annotation(name, value, out);
            Ok(())
        }
        Some(System::Property(property)) => set_property(property, value, out),
        Some(System::Ignored) => Ok(()),
    }
}

/// Appends `encoded`, decoded, to the text of `out`.
fn append(encoded: &str, out: &mut PropertyText) -> Result<Range<u32>, BagError> {
    let start = out.text.len() as u32;
    percent::decode(encoded, &mut out.text)?;
    Ok(start..out.text.len() as u32)
}

/// What a system property (`$.…`) of a device's message becomes.
#[derive(Clone, Copy)]
enum System {
    Property(Property),
    Annotation(&'static str),
    Application(&'static str),
    /// The hub sets it itself, or it has a meaning only towards devices.
    Ignored,
}

#[derive(Clone, Copy)]
enum Property {
    MessageId,
    CorrelationId,
    UserId,
    ContentType,
    ContentEncoding,
}

/// The table of contract §2.7, device to cloud. An unknown `$.x` is an application property like any other.
fn system(name: &str) -> Option<System> {
    Some(match name.strip_prefix("$.")? {
        "mid" => System::Property(Property::MessageId),
        "cid" => System::Property(Property::CorrelationId),
        "uid" => System::Property(Property::UserId),
        "ct" => System::Property(Property::ContentType),
        "ce" => System::Property(Property::ContentEncoding),
        "ctime" => System::Application("iothub-creation-time-utc"),
        "on" => System::Application("iothub-outputname"),
        "schema" => System::Application("iothub-message-schema"),
        "sub" => System::Annotation("dt-subject"),
        "ifid" => System::Annotation("iothub-interface-id"),
        "diagid" => System::Annotation("Diagnostic-Id"),
        "diagctx" => System::Annotation("Correlation-Context"),
        // who sent it is known from the link, never from the message
        "to" | "exp" | "cdid" | "cmid" => System::Ignored,
        _ => return None,
    })
}

fn set_property(property: Property, value: Option<Range<u32>>, out: &mut PropertyText) -> Result<(), BagError> {
    let is_symbol = matches!(property, Property::ContentType | Property::ContentEncoding);
    if is_symbol && !value.as_ref().is_none_or(|value| out.get(value).is_ascii()) {
        return Err(BagError::NotAscii);
    }
    *match property {
        Property::MessageId => &mut out.message_id,
        Property::CorrelationId => &mut out.correlation_id,
        Property::UserId => &mut out.user_id,
        Property::ContentType => &mut out.content_type,
        Property::ContentEncoding => &mut out.content_encoding,
    } = value;
    Ok(())
}

fn set_annotation(name: &'static str, value: Option<Range<u32>>, out: &mut PropertyText) {
    out.annotations.retain(|(known, _)| *known != name);
    out.annotations.extend(value.map(|value| (name, value)));
}

/// Sets an application property; an AMQP map holds no name twice, so a second value replaces the first.
pub(crate) fn set_application(
    name: PropertyName,
    value: Option<Range<u32>>,
    properties_max: usize,
    out: &mut PropertyText,
) -> Result<(), BagError> {
    let text = out.name(&name);
    if let Some(index) = out.application.iter().position(|(known, _)| out.name(known) == text) {
        out.application[index].1 = value;
        return Ok(());
    }
    if out.application.len() >= properties_max {
        return Err(BagError::TooMany);
    }
    out.application.push((name, value));
    Ok(())
}

/// The bag of a command, under construction: give it the properties in the order in which the device should see them.
#[derive(Debug, Default)]
pub struct Bag {
    text: String,
}

/// A property of a command that has a name of its own in the bag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandProperty {
    /// properties.message-id
    MessageId,
    /// properties.to
    To,
    /// properties.correlation-id
    CorrelationId,
    /// properties.user-id, as UTF-8
    UserId,
    /// properties.content-type
    ContentType,
    /// properties.content-encoding
    ContentEncoding,
    /// annotation `iothub-connection-device-id`
    ConnectionDeviceId,
    /// annotation `iothub-connection-module-id`
    ConnectionModuleId,
}

impl Bag {
    /// Longest bag that leaves room for any device's topic in the 65 535 bytes of an MQTT string.
    pub const BYTES_MAX: usize = 65_535 - 512;

    /// Adds a system property.
    pub fn property(&mut self, property: CommandProperty, value: &str) {
        let name = match property {
            CommandProperty::MessageId => "$.mid",
            CommandProperty::To => "$.to",
            CommandProperty::CorrelationId => "$.cid",
            CommandProperty::UserId => "$.uid",
            CommandProperty::ContentType => "$.ct",
            CommandProperty::ContentEncoding => "$.ce",
            CommandProperty::ConnectionDeviceId => "$.cdid",
            CommandProperty::ConnectionModuleId => "$.cmid",
        };
        self.pair(name, Some(value));
    }

    /// Adds properties.absolute-expiry-time, in milliseconds since 1970, as ISO 8601; a time beyond year 9999 is left out.
    pub fn expiry(&mut self, unix_ms: i64) {
        if let Ok(time) = jiff::Timestamp::from_millisecond(unix_ms) {
            self.pair("$.exp", Some(&time.to_string()));
        }
    }

    /// Adds an application property; `None` is AMQP null.
    pub fn application(&mut self, name: &str, value: Option<&str>) {
        let name = match name {
            "iothub-creation-time-utc" => "$.ctime",
            "iothub-message-schema" => "$.schema",
            other => other,
        };
        self.pair(name, value);
    }

    /// The encoded bag; `None` if it is longer than [`Bag::BYTES_MAX`]: no device can be given this message.
    pub fn into_text(self) -> Option<Box<str>> {
        (self.text.len() <= Self::BYTES_MAX).then(|| self.text.into_boxed_str())
    }

    fn pair(&mut self, name: &str, value: Option<&str>) {
        if !self.text.is_empty() {
            self.text.push('&');
        }
        percent::encode(name, &mut self.text);
        if let Some(value) = value {
            self.text.push('=');
            percent::encode(value, &mut self.text);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};

    use super::*;

    /// Everything that `bag` says, one `name=value` after the other; annotations begin with `@`, properties with `.`.
    fn decoded(bag: &str) -> Result<String, BagError> {
        let mut out = PropertyText::default();
        decode(bag, 4, &mut out)?;
        let properties = [
            (".mid", &out.message_id),
            (".cid", &out.correlation_id),
            (".uid", &out.user_id),
            (".ct", &out.content_type),
            (".ce", &out.content_encoding),
        ];
        let properties =
            properties.into_iter().filter_map(|(name, value)| Some(format!("{name}={}", out.get(value.as_ref()?))));
        let annotations = out.annotations.iter().map(|(name, value)| format!("@{name}={}", out.get(value)));
        let application = out.application.iter().map(|(name, value)| match value {
            None => out.name(name).to_owned(),
            Some(value) => format!("{}={}", out.name(name), out.get(value)),
        });
        Ok(properties.chain(annotations).chain(application).collect::<Vec<_>>().join(" "))
    }

    fn check(bag: &str, expected: Result<&str, BagError>) {
        assert_eq!(decoded(bag).as_deref().map_err(|error| *error), expected, "{bag:?}");
    }

    #[test]
    fn pairs_have_a_value_an_empty_one_or_none() {
        check("", Ok(""));
        check("/", Ok(""));
        check("a=b", Ok("a=b"));
        check("a=b/", Ok("a=b"));
        check("a=b&c=&d", Ok("a=b c= d"));
        check("a%20b=%C3%BC%26%3D%2F%25", Ok("a b=ü&=/%"));
        check("a=1-2.3_4~5", Ok("a=1-2.3_4~5"));
        // contract §2.7: the one example with `?` yields a name that begins with it
        check("?prop1=a", Ok("?prop1=a"));
        check("%2B=%2b", Ok("+=+"));
    }

    #[test]
    fn system_properties_go_where_amqp_has_them() {
        check("%24.mid=m&%24.cid=c&%24.uid=u", Ok(".mid=m .cid=c .uid=u"));
        check("$.ct=application%2Fjson&$.ce=utf-8", Ok(".ct=application/json .ce=utf-8"));
        check("%24.ctime=2026-01-01T00%3A00%3A00Z", Ok("iothub-creation-time-utc=2026-01-01T00:00:00Z"));
        check("%24.on=o&%24.schema=s", Ok("iothub-outputname=o iothub-message-schema=s"));
        check("%24.sub=s&%24.ifid=i", Ok("@dt-subject=s @iothub-interface-id=i"));
        check("%24.diagid=d&%24.diagctx=c", Ok("@Diagnostic-Id=d @Correlation-Context=c"));
        check("%24.unknown=x", Ok("$.unknown=x"));
        check("%24.mid&%24.sub&%24.ctime", Ok("iothub-creation-time-utc"));
        check("%24.MID=x", Ok("$.MID=x"));
    }

    #[test]
    fn who_sent_it_cannot_be_claimed_in_the_bag() {
        check("%24.cdid=other&%24.cmid=m&%24.to=%2Fx&%24.exp=2026", Ok(""));
        check("%24.cdid=%zz", Err(BagError::Percent));
    }

    #[test]
    fn a_name_that_comes_again_replaces_its_value() {
        check("a=1&b=2&a=3", Ok("a=3 b=2"));
        check("a=1&%61", Ok("a"));
        check("%24.mid=1&$.mid=2", Ok(".mid=2"));
        check("%24.sub=1&%24.sub=2", Ok("@dt-subject=2"));
        check("%24.on=1&iothub-outputname=2", Ok("iothub-outputname=2"));
        check("iothub-outputname=1&%24.on=2", Ok("iothub-outputname=2"));
    }

    #[test]
    fn a_malformed_bag_is_refused() {
        for (bag, error) in [
            ("&a=b", BagError::EmptyName),
            ("a=b&", BagError::EmptyName),
            ("a=b&&c=d", BagError::EmptyName),
            ("=b", BagError::EmptyName),
            ("&", BagError::EmptyName),
            ("a=b=c", BagError::RawEquals),
            ("a==", BagError::RawEquals),
            ("a=b/c", BagError::RawSlash),
            ("a=b//", BagError::RawSlash),
            ("/a=b", BagError::RawSlash),
            ("a=12:00", BagError::RawReserved),
            ("a:b=1", BagError::RawReserved),
            ("a=1+1", BagError::RawReserved),
            ("a=%", BagError::Percent),
            ("a=%2", BagError::Percent),
            ("%xy=1", BagError::Percent),
            ("a=%FF", BagError::Percent),
            ("$.ct=%C3%BC", BagError::NotAscii),
            ("$.ce=ü", BagError::NotAscii),
            ("a&b&c&d&e", BagError::TooMany),
        ] {
            check(bag, Err(error));
        }
        check("a&b&c&d&a", Ok("a b c d"));
    }

    #[test]
    fn a_commands_bag_is_encoded_as_sdks_read_it() {
        let mut bag = Bag::default();
        bag.property(CommandProperty::MessageId, "m 1");
        bag.property(CommandProperty::To, "/devices/d/messages/deviceBound");
        bag.property(CommandProperty::CorrelationId, "c");
        bag.property(CommandProperty::UserId, "u");
        bag.property(CommandProperty::ContentType, "application/json");
        bag.property(CommandProperty::ContentEncoding, "utf-8");
        bag.expiry(1_700_000_000_000);
        bag.application("iothub-ack", Some("full"));
        bag.application("iothub-creation-time-utc", Some("2026"));
        bag.application("none", None);
        bag.application("empty", Some(""));
        let expected = "%24.mid=m%201&%24.to=%2Fdevices%2Fd%2Fmessages%2FdeviceBound&%24.cid=c&%24.uid=u\
                        &%24.ct=application%2Fjson&%24.ce=utf-8&%24.exp=2023-11-14T22%3A13%3A20Z\
                        &iothub-ack=full&%24.ctime=2026&none&empty=";
        assert_eq!(bag.into_text().as_deref(), Some(expected));
    }

    #[test]
    fn a_bag_that_no_topic_can_hold_is_none() {
        let mut bag = Bag::default();
        bag.application("k", Some(&"x".repeat(Bag::BYTES_MAX - 2)));
        assert!(bag.into_text().is_some());
        let mut bag = Bag::default();
        bag.application("k", Some(&"x".repeat(Bag::BYTES_MAX - 1)));
        assert_eq!(bag.into_text(), None);
    }

    #[test]
    fn an_expiry_beyond_the_calendar_is_left_out() {
        let mut bag = Bag::default();
        bag.expiry(i64::MAX);
        assert_eq!(bag.into_text().as_deref(), Some(""));
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_to_the_same_pairs(
            pairs in vec(("[^$]{1,8}", option::of(".{0,12}")), 0..8), slash in any::<bool>(),
        ) {
            let mut bag = Bag::default();
            let mut expected: Vec<(String, Option<String>)> = Vec::new();
            for (name, value) in pairs {
                bag.application(&name, value.as_deref());
                expected.retain(|(known, _)| *known != name);
                expected.push((name, value));
            }
            let mut text = bag.into_text().unwrap().into_string();
            if slash { text.push('/'); }
            let mut out = PropertyText::default();
            prop_assert_eq!(decode(&text, 8, &mut out), Ok(()));
            let mut got: Vec<(String, Option<String>)> = out.application.iter()
                .map(|(name, value)| (out.name(name).to_owned(), value.as_ref().map(|value| out.get(value).to_owned())))
                .collect();
            got.sort();
            expected.sort();
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn decoding_never_panics(bag in "[$.midct=&%/0-9a-f:é]{0,40}") {
            let _ = decode(&bag, 4, &mut PropertyText::default());
        }
    }
}
