//! What all sessions of one core share: settings, the pipeline and scratch room, so that a session itself stays small.

use std::{sync::Arc, time::Duration};

use crate::{
    message::PropertyText,
    pipeline::Pipeline,
    settings::{Settings, Upstream, UpstreamLimits},
};

/// Shared by all sessions of one core, lent to each call. New settings: a new context.
#[derive(Debug)]
pub struct Context {
    /// What the gateway runs by.
    pub settings: Arc<Settings>,
    /// Compiled from the settings.
    pub pipeline: Pipeline,
    /// Properties of the message at hand.
    pub(super) text: PropertyText,
}

impl Context {
    /// A context of these settings.
    pub fn new(settings: Arc<Settings>, pipeline: Pipeline) -> Self {
        Self { settings, pipeline, text: PropertyText::default() }
    }

    /// How long what is in flight may take to settle once its session has ended.
    pub(super) fn settle_bound(&self) -> Duration {
        self.upstream_limits().request_timeout
    }

    /// How long a verdict may take: the hub's AMQP connection may have to be opened first.
    pub(super) fn verdict_bound(&self) -> Duration {
        self.upstream_limits().request_timeout * 2
    }

    fn upstream_limits(&self) -> &UpstreamLimits {
        match &self.settings.upstream {
            Upstream::IotHub(hub) => &hub.limits,
            Upstream::Amqp(broker) => &broker.limits,
        }
    }
}
