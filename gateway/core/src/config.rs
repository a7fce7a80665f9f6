//! The configuration file as people write it, and its way to [`Settings`]. Reads no file: text is an argument.
//!
//! [`GatewayConfig`] is the gateway half of `ProtocolGateway.spec`, field for field: a file that works here works there. What
//! was written is kept as it was written; [`GatewayConfig::check`] gives everything its meaning, once, and reports all that
//! is wrong at once. A documented example is `gateway.example.yaml` beside the program `gateway`.

mod error;
mod limits;
mod listeners;
mod names;
mod quantity;
mod rate;
mod read;
mod schema;
mod stand_in;
mod tree;
mod upstream;

use std::net::IpAddr;

use self::error::Errors;
pub use self::{
    error::{ConfigError, Place},
    quantity::Quantity,
    rate::Rate,
    schema::*,
};
use crate::{settings, settings::Settings, topic::Template};

impl GatewayConfig {
    /// Reads YAML (and JSON, which is YAML) and gives everything its meaning.
    ///
    /// # Errors
    /// All that is wrong, in form and in meaning, in the order of the text and with line and column; nothing that only follows
    /// from another error. Of text that is not YAML, the first thing that is wrong.
    pub fn read(yaml: &str) -> Result<Settings, Vec<ConfigError>> {
        let tree = tree::parse(yaml).map_err(|error| vec![error])?;
        match read::read::<Self>(&tree) {
            (Some(config), errors) => config.check_with(errors),
            (None, errors) => Err(errors.into_list()),
        }
    }

    /// Reads YAML (and JSON, which is YAML) as it is written, whatever it may mean.
    ///
    /// # Errors
    /// All that is not of the form, with line and column; an unknown name with the nearest known one.
    pub fn parse(yaml: &str) -> Result<Self, Vec<ConfigError>> {
        let tree = tree::parse(yaml).map_err(|error| vec![error])?;
        match read::read(&tree) {
            (Some(config), errors) if errors.is_empty() => Ok(config),
            (_, errors) => Err(errors.into_list()),
        }
    }

    /// Gives everything its meaning.
    ///
    /// # Errors
    /// All that is wrong, in the order of the file's sections.
    pub fn check(&self) -> Result<Settings, Vec<ConfigError>> {
        self.check_with(Errors::default())
    }

    fn check_with(&self, mut errors: Errors) -> Result<Settings, Vec<ConfigError>> {
        let listeners = listeners::check(self.listeners.as_deref(), &mut errors);
        let authentication = self.authentication(&mut errors);
        let upstream = upstream::check(self, &mut errors);
        let topics = self.topics(&mut errors);
        let limits = limits::check(&self.limits, &mut errors);
        let tls_secret_name = self.tls(&listeners, &mut errors);
        let admin = self.admin(&listeners, &mut errors);
        if let Some(upstream) = &upstream {
            upstream::check_room(upstream, limits.connections_max, &mut errors);
        }
        match upstream {
            Some(upstream) if errors.is_empty() => {
                Ok(Settings { listeners, tls_secret_name, authentication, upstream, topics, limits, admin })
            }
            _ => Err(errors.into_list()),
        }
    }

    fn authentication(&self, errors: &mut Errors) -> settings::Authentication {
        let Authentication { sas, x509 } = &self.authentication;
        let device_keys = sas.device_keys.as_ref().map(|keys| &keys.secret_name);
        if let Some(name) = device_keys {
            errors.secret_name("authentication.sas.deviceKeys.secretName", name);
        }
        if let Some(x509) = x509 {
            errors.secret_name("authentication.x509.clientCASecretName", &x509.client_ca_secret_name);
        }
        enrollment_groups(&sas.enrollment_groups, errors);
        let has_keys = device_keys.is_some() || !sas.enrollment_groups.is_empty();
        match sas.verify {
            Verify::Hub if has_keys => errors.add_across(
                "authentication.sas",
                &["authentication.sas.verify"],
                "keys are named, but the hub checks the tokens",
                "write verify: Local, or leave out deviceKeys and enrollmentGroups",
            ),
            Verify::Local if !has_keys && x509.is_none() => errors.add_across(
                "authentication.sas",
                &["authentication.sas.deviceKeys", "authentication.sas.enrollmentGroups", "authentication.x509"],
                "verify is Local and there is nothing to verify with",
                "name deviceKeys or enrollmentGroups, or set authentication.x509",
            ),
            Verify::Hub | Verify::Local => {}
        }
        let group = |group: &NamedSecret| settings::EnrollmentGroup {
            name: group.name.clone(),
            secret_name: group.secret_name.clone(),
        };
        settings::Authentication {
            sas: match sas.verify {
                Verify::Hub => settings::Sas::Hub,
                Verify::Local => settings::Sas::Local {
                    device_keys_secret_name: device_keys.cloned(),
                    enrollment_groups: sas.enrollment_groups.iter().map(group).collect(),
                },
            },
            client_ca_secret_name: x509.as_ref().map(|x509| x509.client_ca_secret_name.clone()),
        }
    }

    fn topics(&self, errors: &mut Errors) -> settings::Topics {
        let default = || IOT_HUB_TOPICS.map(str::to_owned).to_vec();
        let inbound = self.topics.inbound.clone().unwrap_or_else(default);
        if inbound.is_empty() || inbound.len() > TEMPLATES_MAX {
            let problem = format!("holds {} templates", inbound.len());
            errors.add("topics.inbound", problem, format!("give 1 to {TEMPLATES_MAX}, or leave it out for IoT Hub's"));
        }
        let mut templates = Vec::new();
        for (index, text) in inbound.iter().take(TEMPLATES_MAX).enumerate() {
            match Template::compile(text) {
                Ok(template) => templates.push(template),
                Err(error) => {
                    let right = format!("write a template such as {}", IOT_HUB_TOPICS[0]);
                    errors.add(format!("topics.inbound[{index}]"), error.to_string(), right);
                }
            }
        }
        let unmatched = match self.topics.unmatched {
            Unmatched::Close => settings::Unmatched::Close,
            Unmatched::PassThrough => settings::Unmatched::PassThrough,
        };
        settings::Topics { inbound: templates, unmatched, dup_property: self.topics.dup_property }
    }

    fn tls(&self, listeners: &[settings::Listener], errors: &mut Errors) -> Option<String> {
        let secret_name = self.tls.as_ref().map(|tls| tls.secret_name.clone());
        if let Some(name) = &secret_name {
            errors.secret_name("tls.secretName", name);
        }
        let encrypted = listeners.iter().enumerate().find(|(index, listener)| {
            listener.protocol != settings::Protocol::MqttPlain
                && errors.was_read(&format!("listeners[{index}].protocol"))
        });
        if let (None, Some((_, listener))) = (&secret_name, encrypted) {
            let problem = format!("listener {} has no certificate", listener.name);
            errors.add("tls.secretName", problem, "name the directory with tls.crt and tls.key");
        }
        secret_name
    }

    fn admin(&self, listeners: &[settings::Listener], errors: &mut Errors) -> settings::Admin {
        let address = errors.address("admin.address", self.admin.address.as_deref(), IpAddr::from([127, 0, 0, 1]));
        let port = errors.number("admin.port", self.admin.port, 9090, 0, 65_535) as u16;
        if let Some(listener) = listeners.iter().find(|listener| port != 0 && listener.port == port) {
            let problem = format!("{port} is the port of listener {}", listener.name);
            errors.add("admin.port", problem, "choose another port");
        }
        let health_port = self.health_port(listeners, port, errors);
        if !address.is_loopback() && self.admin.tls.is_none() {
            errors.add_across(
                "admin.address",
                &["admin.tls"],
                format!("{address} can be reached from elsewhere, and admin.tls is missing"),
                "use 127.0.0.1, or set admin.tls {secretName, clientCASecretName}",
            );
        }
        if let Some(tls) = &self.admin.tls {
            errors.secret_name("admin.tls.secretName", &tls.secret_name);
            errors.secret_name("admin.tls.clientCASecretName", &tls.client_ca_secret_name);
        }
        let tls = self.admin.tls.as_ref().map(|tls| settings::AdminTls {
            secret_name: tls.secret_name.clone(),
            client_ca_secret_name: tls.client_ca_secret_name.clone(),
        });
        settings::Admin { address, port, health_port, tls }
    }

    fn health_port(&self, listeners: &[settings::Listener], admin_port: u16, errors: &mut Errors) -> Option<u16> {
        let given = self.admin.health_port?;
        let port = errors.number("admin.healthPort", Some(given), 0, 0, 65_535) as u16;
        let listener = listeners.iter().find(|listener| port != 0 && listener.port == port);
        if let Some(listener) = listener {
            let problem = format!("{port} is the port of listener {}", listener.name);
            errors.add("admin.healthPort", problem, "choose another port");
        } else if port != 0 && port == admin_port {
            let problem = format!("{port} is admin.port, too");
            errors.add_across("admin.healthPort", &["admin.port"], problem, "choose another port");
        }
        Some(port)
    }
}

/// Telemetry topics of IoT Hub (contract §2.7).
const IOT_HUB_TOPICS: [&str; 2] = [
    "devices/{deviceId}/messages/events/{*properties}",
    "devices/{deviceId}/modules/{moduleId}/messages/events/{*properties}",
];

/// Templates are tried one after the other for every message.
const TEMPLATES_MAX: usize = 32;

/// Every CONNECT tries the keys of every group.
const GROUPS_MAX: usize = 64;

fn enrollment_groups(groups: &[NamedSecret], errors: &mut Errors) {
    let path = "authentication.sas.enrollmentGroups";
    if groups.len() > GROUPS_MAX {
        errors.add(path, format!("holds {} groups", groups.len()), format!("give at most {GROUPS_MAX}"));
    }
    for (index, group) in groups.iter().enumerate() {
        errors.secret_name(format!("{path}[{index}].secretName"), &group.secret_name);
        if group.name.is_empty() || groups[..index].iter().any(|other| other.name == group.name) {
            let problem = format!("\"{}\" is empty or the name of another group", group.name);
            errors.add(format!("{path}[{index}].name"), problem, "give every group a name of its own");
        }
    }
}
