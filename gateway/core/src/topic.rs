//! The IoT Hub dialect of MQTT topics: telemetry templates, property bags, what may be subscribed, where commands go.
//!
//! All rewriting between topic text and message properties is here and in the modules below; `pipeline` applies it.

pub mod bag;
pub mod percent;
pub mod template;

use percent_encoding::percent_decode_str;

pub use self::{
    bag::{Bag, BagError},
    template::{Template, TemplateError},
};
use crate::message::DeviceId;

/// What a topic filter of a SUBSCRIBE asks for (contract §2.5). Which of them are served is the session's matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Filter {
    /// `devices/{d}/messages/devicebound/#`
    Commands(IdForm),
    /// `devices/{d}/modules/{m}/inputs/#` or `devices/{d}/modules/{m}/#`
    ModuleInputs(IdForm),
    /// `$iothub/twin/res/#`
    TwinResponses,
    /// `$iothub/twin/PATCH/properties/desired/#`
    TwinDesired,
    /// `$iothub/methods/POST/#`
    Methods,
}

/// How a device writes its id in topics. Some SDKs percent-encode it, and expect it so in what they receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdForm {
    /// As in the registry.
    Plain,
    /// Percent-encoded; differs from plain only where the id holds special characters.
    Encoded,
}

/// Reads a topic filter for `identity`; `None` for everything that IoT Hub does not let it subscribe.
pub fn filter(identity: &DeviceId, filter: &str) -> Option<Filter> {
    match filter {
        "$iothub/twin/res/#" => return Some(Filter::TwinResponses),
        "$iothub/twin/PATCH/properties/desired/#" => return Some(Filter::TwinDesired),
        "$iothub/methods/POST/#" => return Some(Filter::Methods),
        _ => {}
    }
    let (device, rest) = filter.strip_prefix("devices/")?.split_once('/')?;
    let form = id_form(device, identity.device())?;
    match identity.module() {
        None => (rest == "messages/devicebound/#").then_some(Filter::Commands(form)),
        Some(id) => {
            let (module, rest) = rest.strip_prefix("modules/")?.split_once('/')?;
            let form = form.or(id_form(module, id)?);
            matches!(rest, "#" | "inputs/#").then_some(Filter::ModuleInputs(form))
        }
    }
}

/// The topic of a command for `identity`: `devices/{d}/messages/devicebound/{bag}`, the id in the form it was subscribed in.
///
/// The bag's segment is always there, maybe empty: SDKs find the bag by its position (contract §2.8).
pub fn command_topic(identity: &DeviceId, form: IdForm, bag: &str) -> String {
    let mut topic = String::with_capacity(bag.len() + identity.device().len() + 40);
    topic.push_str("devices/");
    match form {
        IdForm::Plain => topic.push_str(identity.device()),
        IdForm::Encoded => percent::encode(identity.device(), &mut topic),
    }
    topic.push_str("/messages/devicebound/");
    topic.push_str(bag);
    topic
}

impl IdForm {
    /// Encoded if either is.
    fn or(self, other: Self) -> Self {
        if self == Self::Plain { other } else { self }
    }
}

/// In which form `segment` names `id`, if it does.
#[inline]
fn id_form(segment: &str, id: &str) -> Option<IdForm> {
    if segment == id {
        return Some(IdForm::Plain);
    }
    percent_decode_str(segment).eq(id.bytes()).then_some(IdForm::Encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(identity: (&str, Option<&str>), text: &str, expected: Option<Filter>) {
        let identity = DeviceId::new(identity.0, identity.1).unwrap();
        assert_eq!(filter(&identity, text), expected, "{text:?} for {identity}");
    }

    #[test]
    fn a_device_may_subscribe_what_the_hub_lists_and_nothing_else() {
        let d = ("d", None);
        check(d, "devices/d/messages/devicebound/#", Some(Filter::Commands(IdForm::Plain)));
        check(d, "$iothub/twin/res/#", Some(Filter::TwinResponses));
        check(d, "$iothub/twin/PATCH/properties/desired/#", Some(Filter::TwinDesired));
        check(d, "$iothub/methods/POST/#", Some(Filter::Methods));
        for other in [
            "",
            "#",
            "devices/#",
            "devices/d/#",
            "devices/+/messages/devicebound/#",
            "devices/e/messages/devicebound/#",
            "devices/D/messages/devicebound/#",
            "devices/d/messages/devicebound",
            "devices/d/messages/devicebound/",
            "devices/d/messages/devicebound/+",
            "devices/d/messages/events/#",
            "devices/d/modules/m/inputs/#",
            "$iothub/#",
            "$iothub/methods/post/#",
        ] {
            check(d, other, None);
        }
    }

    #[test]
    fn a_module_may_subscribe_its_inputs_and_no_commands() {
        let m = ("d", Some("m"));
        check(m, "devices/d/modules/m/#", Some(Filter::ModuleInputs(IdForm::Plain)));
        check(m, "devices/d/modules/m/inputs/#", Some(Filter::ModuleInputs(IdForm::Plain)));
        check(m, "$iothub/methods/POST/#", Some(Filter::Methods));
        check(m, "devices/d/messages/devicebound/#", None);
        check(m, "devices/d/modules/n/inputs/#", None);
        check(m, "devices/e/modules/m/inputs/#", None);
    }

    #[test]
    fn an_id_may_be_percent_encoded_in_a_filter_and_is_answered_so() {
        check(("a:b", None), "devices/a:b/messages/devicebound/#", Some(Filter::Commands(IdForm::Plain)));
        check(("a:b", None), "devices/a%3Ab/messages/devicebound/#", Some(Filter::Commands(IdForm::Encoded)));
        check(("d", Some("m=1")), "devices/d/modules/m%3D1/inputs/#", Some(Filter::ModuleInputs(IdForm::Encoded)));
        let id = DeviceId::new("a:b", None).unwrap();
        assert_eq!(command_topic(&id, IdForm::Plain, "k=v"), "devices/a:b/messages/devicebound/k=v");
        assert_eq!(command_topic(&id, IdForm::Encoded, ""), "devices/a%3Ab/messages/devicebound/");
    }
}
