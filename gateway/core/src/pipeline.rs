//! A PUBLISH or a Will → [`Telemetry`], by the topic templates and limits of the settings. Decides nothing about delivery.

use std::ops::Range;

use crate::{
    codec::packet::{Publish, Will},
    message::{DeviceId, PropertyName, PropertyText, Telemetry},
    settings::{Settings, Unmatched},
    topic::{BagError, Template, bag::set_application, template::Match},
};

/// What turns publishes into telemetry; one for all devices of a core.
#[derive(Debug, Clone)]
pub struct Pipeline {
    templates: Vec<Template>,
    unmatched: Unmatched,
    dup_property: bool,
    properties_max: usize,
    message_bytes_max: usize,
}

/// Why a publish cannot be telemetry. The session closes the connection for each of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// No template fits the topic.
    #[error("the topic is not one that this gateway serves")]
    Topic,
    /// The topic names another device or module.
    #[error("the topic is that of another device or module")]
    ForeignTopic,
    /// The properties in the topic are malformed.
    #[error("the property bag is malformed: {0}")]
    Bag(#[from] BagError),
    /// Body and properties exceed `limits.messageBytesMax`.
    #[error("a message of {message_bytes} bytes is above the limit")]
    TooLarge {
        /// Body, values of all properties and names of application properties, in bytes.
        message_bytes: usize,
    },
}

impl Pipeline {
    /// The pipeline that `settings` describe.
    pub fn new(settings: &Settings) -> Self {
        Self {
            templates: settings.topics.inbound.clone(),
            unmatched: settings.topics.unmatched,
            dup_property: settings.topics.dup_property,
            properties_max: settings.limits.properties_max,
            message_bytes_max: settings.limits.message_bytes_max,
        }
    }

    /// The telemetry that `identity` means by `publish`. `scratch` is overwritten; once it has grown, nothing is allocated.
    #[inline]
    pub fn telemetry<'a>(
        &self,
        identity: &DeviceId,
        publish: &Publish<'a>,
        scratch: &'a mut PropertyText,
    ) -> Result<Telemetry<'a>, Refused> {
        self.read_topic(identity, publish.topic, scratch)?;
        if publish.retain {
            self.set("mqtt-retain", "true", scratch)?;
        }
        if publish.dup && self.dup_property {
            self.set("mqtt-dup", "true", scratch)?;
        }
        self.sized(publish.payload, scratch)
    }

    /// The telemetry that the Will of `identity` is: as a publish, marked `iothub-MessageType=Will` (contract §2.6).
    ///
    /// Also tells at CONNECT whether a Will can be sent at all.
    pub fn will<'a>(
        &self,
        identity: &DeviceId,
        will: &Will<'a>,
        scratch: &'a mut PropertyText,
    ) -> Result<Telemetry<'a>, Refused> {
        self.read_topic(identity, will.topic, scratch)?;
        if will.retain {
            self.set("mqtt-retain", "true", scratch)?;
        }
        self.set("iothub-MessageType", "Will", scratch)?;
        self.sized(will.payload, scratch)
    }

    fn read_topic(&self, identity: &DeviceId, topic: &str, out: &mut PropertyText) -> Result<(), Refused> {
        out.clear();
        for template in &self.templates {
            match template.bind(identity, topic, self.properties_max, out)? {
                Match::Bound => return Ok(()),
                Match::Foreign => return Err(Refused::ForeignTopic),
                Match::Other => {}
            }
        }
        match self.unmatched {
            Unmatched::Close => Err(Refused::Topic),
            Unmatched::PassThrough => {
                self.set("Unmatched", "True", out)?;
                self.set("Subject", topic, out)
            }
        }
    }

    /// Sets a property of the gateway's own; it prevails over one of the device's.
    fn set(&self, name: &'static str, value: &str, out: &mut PropertyText) -> Result<(), Refused> {
        let start = out.text.len() as u32;
        out.text.push_str(value);
        let value = start..out.text.len() as u32;
        Ok(set_application(PropertyName::Known(name), Some(value), self.properties_max, out)?)
    }

    fn sized<'a>(&self, payload: &'a [u8], text: &'a PropertyText) -> Result<Telemetry<'a>, Refused> {
        let message_bytes = payload.len() + properties_bytes(text);
        if message_bytes > self.message_bytes_max {
            return Err(Refused::TooLarge { message_bytes });
        }
        Ok(Telemetry { text, payload })
    }
}

/// What the hub counts beside the body: values of system properties, names and values of application properties.
fn properties_bytes(text: &PropertyText) -> usize {
    let length = |range: &Range<u32>| range.len();
    let system = [&text.message_id, &text.correlation_id, &text.user_id, &text.content_type, &text.content_encoding];
    let system: usize = system.into_iter().flatten().map(length).sum();
    let annotations: usize = text.annotations.iter().map(|(_, value)| length(value)).sum();
    let application: usize =
        text.application.iter().map(|(name, value)| text.name(name).len() + value.as_ref().map_or(0, length)).sum();
    system + annotations + application
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::GatewayConfig,
        message::{PacketId, QoS},
    };

    fn pipeline(topics: &str) -> Pipeline {
        let yaml = format!(
            "{{upstream: {{iotHub: {{hostName: hub.example.com}}}}, tls: {{secretName: serving}}, topics: {topics}, \
             limits: {{messageBytesMax: 1KiB, propertiesMax: 4}}}}"
        );
        Pipeline::new(&GatewayConfig::parse(&yaml).unwrap().check().unwrap())
    }

    fn publish<'a>(topic: &'a str, payload: &'a [u8]) -> Publish<'a> {
        let packet_id = Some(PacketId(std::num::NonZeroU16::MIN));
        Publish { dup: false, qos: QoS::AtLeastOnce, retain: false, topic, packet_id, payload }
    }

    fn application(telemetry: &Telemetry<'_>) -> String {
        let text = telemetry.text;
        let pair = |(name, value): &(PropertyName, Option<Range<u32>>)| match value {
            None => text.name(name).to_owned(),
            Some(value) => format!("{}={}", text.name(name), text.get(value)),
        };
        text.application.iter().map(pair).collect::<Vec<_>>().join(" ")
    }

    fn check(topics: &str, publish: &Publish<'_>, expected: Result<&str, Refused>) {
        let identity = DeviceId::new("d", None).unwrap();
        let mut scratch = PropertyText::default();
        let got = pipeline(topics).telemetry(&identity, publish, &mut scratch).map(|telemetry| application(&telemetry));
        assert_eq!(got.as_deref().map_err(|refused| *refused), expected, "{publish:?}");
    }

    #[test]
    fn a_publish_on_the_devices_topic_is_telemetry_with_its_payload_untouched() {
        let identity = DeviceId::new("d", None).unwrap();
        let mut scratch = PropertyText::default();
        let payload = [0u8, 255, 10];
        let publish = publish("devices/d/messages/events/%24.mid=7&a=b", &payload);
        let pipeline = pipeline("{}");
        let telemetry = pipeline.telemetry(&identity, &publish, &mut scratch).unwrap();
        assert_eq!(telemetry.payload.as_ptr(), payload.as_ptr(), "the payload is not copied");
        assert_eq!(telemetry.payload, payload);
        assert_eq!(telemetry.text.message_id.as_ref().map(|range| telemetry.text.get(range)), Some("7"));
        assert_eq!(application(&telemetry), "a=b");
    }

    #[test]
    fn foreign_and_unknown_topics_are_refused() {
        check("{}", &publish("devices/e/messages/events/", b""), Err(Refused::ForeignTopic));
        check("{}", &publish("devices/d/modules/m/messages/events/", b""), Err(Refused::ForeignTopic));
        check("{}", &publish("other", b""), Err(Refused::Topic));
        check("{}", &publish("$iothub/twin/GET/?$rid=1", b""), Err(Refused::Topic));
        check("{}", &publish("devices/d/messages/events/a=b=c", b""), Err(Refused::Bag(BagError::RawEquals)));
    }

    #[test]
    fn an_unmatched_topic_passes_through_when_told_but_never_a_foreign_one() {
        let topics = "{unmatched: PassThrough}";
        check(topics, &publish("any/topic", b""), Ok("Unmatched=True Subject=any/topic"));
        check(topics, &publish("devices/e/messages/events/", b""), Err(Refused::ForeignTopic));
    }

    #[test]
    fn the_first_template_that_fits_decides() {
        let topics = "{inbound: ['log/{level}', 'log/{subject}', 'x/{*properties}']}";
        check(topics, &publish("log/a", b""), Ok("level=a"));
        check(topics, &publish("x/k=v", b""), Ok("k=v"));
        check(topics, &publish("devices/d/messages/events/", b""), Err(Refused::Topic));
    }

    #[test]
    fn retain_becomes_a_property_that_the_device_cannot_contradict() {
        let topic = "devices/d/messages/events/mqtt-retain=false&a=b";
        check("{}", &publish(topic, b""), Ok("mqtt-retain=false a=b"));
        check("{}", &Publish { retain: true, ..publish(topic, b"") }, Ok("mqtt-retain=true a=b"));
        let plain = publish("devices/d/messages/events/", b"");
        check("{}", &Publish { retain: true, ..plain }, Ok("mqtt-retain=true"));
    }

    #[test]
    fn dup_becomes_a_property_only_when_told() {
        let publish = Publish { dup: true, ..publish("devices/d/messages/events/", b"") };
        check("{}", &publish, Ok(""));
        check("{dupProperty: true}", &publish, Ok("mqtt-dup=true"));
    }

    #[test]
    fn a_will_is_marked_and_follows_the_same_rules() {
        let identity = DeviceId::new("d", None).unwrap();
        let mut scratch = PropertyText::default();
        let pipeline = pipeline("{}");
        let mut will =
            Will { topic: "devices/d/messages/events/a=b", payload: b"gone", qos: QoS::AtLeastOnce, retain: true };
        let telemetry = pipeline.will(&identity, &will, &mut scratch).unwrap();
        assert_eq!(application(&telemetry), "a=b mqtt-retain=true iothub-MessageType=Will");
        assert_eq!(telemetry.payload, b"gone");
        will.topic = "devices/e/messages/events/";
        assert_eq!(pipeline.will(&identity, &will, &mut scratch).unwrap_err(), Refused::ForeignTopic);
    }

    #[test]
    fn body_values_and_names_of_application_properties_count_towards_the_size() {
        // 2 bytes of $.mid, 1 + 3 of a=xyz, 4 of $.sub; the names `$.mid` and `$.sub` are free
        let topic = "devices/d/messages/events/%24.mid=%32%33&a=xyz&%24.sub=part";
        let fits = [0u8; 1024 - 10];
        let above = [0u8; 1024 - 9];
        check("{}", &publish(topic, &fits), Ok("a=xyz"));
        check("{}", &publish(topic, &above), Err(Refused::TooLarge { message_bytes: 1025 }));
    }

    #[test]
    fn the_gateways_own_properties_count_as_properties() {
        let full = "devices/d/messages/events/a&b&c&d";
        check("{}", &publish(full, b""), Ok("a b c d"));
        check("{}", &Publish { retain: true, ..publish(full, b"") }, Err(Refused::Bag(BagError::TooMany)));
    }

    #[test]
    fn a_scratch_that_has_grown_is_used_again() {
        let identity = DeviceId::new("d", None).unwrap();
        let pipeline = pipeline("{}");
        let mut scratch = PropertyText::default();
        let topic = "devices/d/messages/events/%24.mid=1&%24.sub=s&a=b&c=d";
        let room = |scratch: &PropertyText| {
            let capacities = (scratch.text.capacity(), scratch.annotations.capacity(), scratch.application.capacity());
            (capacities, scratch.text.as_ptr(), scratch.application.as_ptr())
        };
        pipeline.telemetry(&identity, &publish(topic, b""), &mut scratch).unwrap();
        let first = room(&scratch);
        for _ in 0..100 {
            let telemetry = pipeline.telemetry(&identity, &publish(topic, b""), &mut scratch).unwrap();
            assert_eq!(application(&telemetry), "a=b c=d");
        }
        assert_eq!(room(&scratch), first);
    }
}
