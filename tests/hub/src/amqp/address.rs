//! Link addresses (contract §3.4, §4.2): text → what the link is about. Absolute or relative, fixed segments in any
//! case, ids percent-encoded and case-sensitive.

use percent_encoding::percent_decode_str;

/// What an address names. Ids are decoded once; a double-encoded one is the registry's to resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// `$cbs`
    Cbs,
    /// Something of a device or of a module.
    Device { device: String, module: Option<String>, endpoint: Endpoint },
    /// `/messages/devicebound`: where back ends send.
    ServiceDeviceBound,
    /// `/messages/serviceBound/feedback`
    Feedback,
    /// `/messages/events/ConsumerGroups/{group}/Partitions/{partition}`
    Partition { group: String, partition: String },
}

/// The links of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `…/messages/events`
    Events,
    /// `…/messages/deviceBound`
    DeviceBound,
    /// `…/methods/deviceBound`
    Methods,
    /// `…/twin`
    Twin,
}

/// Understands an address, or not.
pub(crate) fn parse(address: &str) -> Option<Node> {
    let path = match address.split_once("://") {
        Some((_scheme, rest)) => rest.split_once('/')?.1,
        None => address.strip_prefix('/').unwrap_or(address),
    };
    let segments: Vec<&str> = path.strip_suffix('/').unwrap_or(path).split('/').collect();
    match segments.as_slice() {
        [one] if is(one, "$cbs") => Some(Node::Cbs),
        [one, two] if is(one, "messages") && is(two, "deviceBound") => Some(Node::ServiceDeviceBound),
        [one, two, three] if is(one, "messages") && is(two, "serviceBound") && is(three, "feedback") => {
            Some(Node::Feedback)
        }
        [one, two, three, group, four, partition]
            if is(one, "messages") && is(two, "events") && is(three, "ConsumerGroups") && is(four, "Partitions") =>
        {
            Some(Node::Partition { group: decode(group)?, partition: decode(partition)? })
        }
        [one, device, two, module, rest @ ..] if is(one, "devices") && is(two, "modules") => {
            Some(Node::Device { device: decode(device)?, module: Some(decode(module)?), endpoint: endpoint(rest)? })
        }
        [one, device, rest @ ..] if is(one, "devices") => {
            Some(Node::Device { device: decode(device)?, module: None, endpoint: endpoint(rest)? })
        }
        _ => None,
    }
}

fn endpoint(rest: &[&str]) -> Option<Endpoint> {
    match rest {
        [one] if is(one, "twin") => Some(Endpoint::Twin),
        [one, two] if is(one, "messages") && is(two, "events") => Some(Endpoint::Events),
        [one, two] if is(one, "messages") && is(two, "deviceBound") => Some(Endpoint::DeviceBound),
        [one, two] if is(one, "methods") && is(two, "deviceBound") => Some(Endpoint::Methods),
        _ => None,
    }
}

fn is(segment: &str, keyword: &str) -> bool {
    segment.eq_ignore_ascii_case(keyword)
}

fn decode(segment: &str) -> Option<String> {
    let id = percent_decode_str(segment).decode_utf8().ok()?;
    (!id.is_empty()).then(|| id.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, expected: Option<&Node>) {
        assert_eq!(parse(address).as_ref(), expected, "{address}");
    }

    fn device(device: &str, module: Option<&str>, endpoint: Endpoint) -> Node {
        Node::Device { device: device.into(), module: module.map(Into::into), endpoint }
    }

    #[test]
    fn addresses_are_understood_relative_absolute_in_mixed_case_and_with_encoded_ids() {
        check("$cbs", Some(&Node::Cbs));
        check("/$cbs", Some(&Node::Cbs));
        check("amqps://hub.example.com/$cbs", Some(&Node::Cbs));
        check("/devices/d/messages/events", Some(&device("d", None, Endpoint::Events)));
        check("devices/d/messages/events/", Some(&device("d", None, Endpoint::Events)));
        check("amqps://h:5671/devices/d/messages/deviceBound", Some(&device("d", None, Endpoint::DeviceBound)));
        check("/Devices/Dev/Messages/devicebound", Some(&device("Dev", None, Endpoint::DeviceBound)));
        check("/devices/a%2Bb%3D/twin", Some(&device("a+b=", None, Endpoint::Twin)));
        check("/devices/d/modules/m/methods/devicebound", Some(&device("d", Some("m"), Endpoint::Methods)));
        check("/devices/d/modules/m/messages/events", Some(&device("d", Some("m"), Endpoint::Events)));
        check("/messages/devicebound", Some(&Node::ServiceDeviceBound));
        check("/messages/serviceBound/feedback", Some(&Node::Feedback));
        check(
            "/messages/events/ConsumerGroups/$Default/Partitions/1",
            Some(&Node::Partition { group: "$Default".into(), partition: "1".into() }),
        );
    }

    #[test]
    fn unknown_addresses_are_not_guessed() {
        for address in [
            "",
            "/",
            "/devices",
            "/devices/d",
            "/devices//twin",
            "/devices/d/twins",
            "/devices/d/messages",
            "amqps://hub",
            "/devices/%ff/twin",
        ] {
            check(address, None);
        }
    }
}
