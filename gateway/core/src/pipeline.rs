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
