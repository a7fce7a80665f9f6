//! The Will: checked when it comes, kept while the session lives, sent as telemetry when it is due.

use super::{
    Context,
    effect::{Effect, Effects, Slot},
    ended::Ended,
};
use crate::{
    codec::packet::Will,
    message::{DeviceId, QoS},
};

/// The Will of one session [MQTT-3.1.2-8]. Its QoS 2 promises nothing here: a Will has no device that could receive it twice.
#[derive(Debug)]
pub(super) struct LastWill {
    topic: Box<str>,
    payload: Box<[u8]>,
    qos: QoS,
    retain: bool,
}

impl LastWill {
    /// Keeps a Will that could be sent (contract §2.6: to the device's own telemetry topic). One that could not ends the
    /// connection without a CONNACK: no return code says this [MQTT-3.2.2-6].
    pub(super) fn check(
        will: Option<&Will<'_>>,
        identity: &DeviceId,
        cx: &mut Context,
    ) -> Result<Option<Box<Self>>, Ended> {
        let Some(will) = will else { return Ok(None) };
        let last_will =
            Self { topic: will.topic.into(), payload: will.payload.into(), qos: will.qos, retain: will.retain };
        cx.pipeline.will(identity, &last_will.view(), &mut cx.text).map_err(Ended::by_pipeline)?;
        Ok(Some(Box::new(last_will)))
    }

    /// Sends it, once; after a change of settings it may have become unsendable, which nobody is left to be told.
    pub(super) fn send(&self, identity: &DeviceId, cx: &mut Context, out: &mut Effects<'_>) {
        if let Ok(telemetry) = cx.pipeline.will(identity, &self.view(), &mut cx.text) {
            out(Effect::Send { slot: Slot::WILL, qos: self.qos, telemetry });
        }
    }

    fn view(&self) -> Will<'_> {
        Will { topic: &self.topic, payload: &self.payload, qos: self.qos, retain: self.retain }
    }
}
