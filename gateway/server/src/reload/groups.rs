//! Secrets that are loaded together, because what is made of them is swapped together.

use gateway_core::settings::{Sas, Settings, Upstream};

use crate::{secrets::Fingerprint, tls::config::ClientAuth};

/// Secrets that are loaded together.
pub(super) struct Group {
    pub(super) kind: Kind,
    pub(super) secrets: Vec<String>,
    pub(super) seen: Fingerprint,
    pub(super) failing: bool,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// TLS of the listeners, with the CA of devices' certificates.
    Listeners,
    /// Keys of devices and groups.
    Keys,
    /// The hub's side.
    Upstream,
    /// TLS of the admin port.
    Admin,
}

impl Group {
    pub(super) fn new(kind: Kind, settings: &Settings) -> Self {
        Self { kind, secrets: kind.secrets(settings), seen: Fingerprint::default(), failing: false }
    }

    /// What logs and metrics call it: its first secret.
    pub(super) fn name(&self) -> String {
        self.secrets.first().cloned().unwrap_or_default()
    }
}

impl Kind {
    pub(super) const ALL: [Self; 4] = [Self::Listeners, Self::Keys, Self::Upstream, Self::Admin];

    /// Names of the secrets that `settings` want for it.
    pub(super) fn secrets(self, settings: &Settings) -> Vec<String> {
        match self {
            Self::Listeners | Self::Admin => {
                let names = self.tls(settings).map(|(secret, ca)| [Some(secret), ca.map(|(ca, _)| ca)]);
                names.into_iter().flatten().flatten().map(str::to_owned).collect()
            }
            Self::Keys => match &settings.authentication.sas {
                Sas::Hub => Vec::new(),
                Sas::Local { device_keys_secret_name, enrollment_groups } => {
                    let groups = enrollment_groups.iter().map(|group| group.secret_name.clone());
                    device_keys_secret_name.iter().cloned().chain(groups).collect()
                }
            },
            Self::Upstream => upstream_secrets(&settings.upstream).into_iter().flatten().cloned().collect(),
        }
    }

    /// The serving secret and the one with the CA of clients, where there is TLS.
    pub(super) fn tls(self, settings: &Settings) -> Option<(&str, Option<(&str, ClientAuth)>)> {
        match self {
            Self::Listeners => {
                let client_ca = settings.authentication.client_ca_secret_name.as_deref();
                let client_ca = client_ca.map(|secret| (secret, ClientAuth::Optional));
                settings.tls_secret_name.as_deref().map(|secret| (secret, client_ca))
            }
            Self::Admin => {
                let tls = settings.admin.tls.as_ref()?;
                Some((&tls.secret_name, Some((&tls.client_ca_secret_name, ClientAuth::Required))))
            }
            Self::Keys | Self::Upstream => None,
        }
    }

    /// Whether what is made of the secrets would be another thing under `new`, even from the same files.
    pub(super) fn differs(self, old: &Settings, new: &Settings) -> bool {
        match self {
            // the names of the hub are judged together with the keys
            Self::Keys => old.authentication.sas != new.authentication.sas || hub_names(old) != hub_names(new),
            Self::Upstream => upstream_secrets(&old.upstream) != upstream_secrets(&new.upstream),
            Self::Listeners | Self::Admin => self.tls(old) != self.tls(new),
        }
    }
}

fn hub_names(settings: &Settings) -> Option<(&String, &[String])> {
    match &settings.upstream {
        Upstream::IotHub(hub) => Some((&hub.host_name, &hub.host_name_aliases)),
        Upstream::Amqp(_) => None,
    }
}

/// Each in its place: the same secret in another place is something else.
fn upstream_secrets(upstream: &Upstream) -> [Option<&String>; 3] {
    match upstream {
        Upstream::IotHub(hub) => {
            [hub.policy.as_ref().map(|policy| &policy.secret_name), hub.ca_secret_name.as_ref(), None]
        }
        Upstream::Amqp(broker) => [
            broker.sasl_plain_secret_name.as_ref(),
            broker.client_certificate_secret_name.as_ref(),
            broker.ca_secret_name.as_ref(),
        ],
    }
}
