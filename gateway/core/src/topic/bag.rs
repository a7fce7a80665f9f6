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
