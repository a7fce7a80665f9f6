//! Who a device says it is, and whether that holds: credentials + keys + now → [`Verdict`].
//!
//! [`login`] reads a CONNECT, [`Keys`] judge it where the keys are known here (`sas.verify: Local`, client certificates).
//! A token for the hub to judge (`sas.verify: Hub`) never passes through [`Keys`].

mod client;
mod keys;
mod login;
mod token;

pub use self::{
    client::{CLIENT_TEXT_BYTES_MAX, Client},
    keys::{ClientCertificate, Key, KeyError, KeyFileError, Keys},
    login::login,
    token::sign,
};
use crate::{codec::packet::ConnectCode, message::DeviceId, time::UnixSeconds};

/// What a CONNECT claims, parsed from client id, user name and password.
#[derive(Debug, Clone)]
pub struct Login<'a> {
    /// Who it says it is; client id and user name agree.
    pub identity: DeviceId,
    /// Host part of the user name: the hub, not this gateway.
    pub hub_host: &'a str,
    /// `DeviceClientType`, percent-encoded as received, if given.
    pub client_type: Option<&'a str>,
    /// `model-id`, percent-encoded as received, if given.
    pub model_id: Option<&'a str>,
    /// The password, a SAS token in form; `None` if there was none (a device with a certificate).
    pub token: Option<SasToken<'a>>,
}

/// A SAS token in form; nothing about it is proven yet.
#[derive(Clone, Copy)]
pub struct SasToken<'a> {
    /// The whole `SharedAccessSignature …` text, for CBS.
    pub text: &'a str,
    /// `sr` as received, still encoded: what was signed.
    pub resource: &'a str,
    /// `sig`, still encoded.
    pub signature: &'a str,
    /// `se`.
    pub expires: UnixSeconds,
    /// `skn`.
    pub policy: Option<&'a str>,
}

impl std::fmt::Debug for SasToken<'_> {
    /// Never shows the signature.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SasToken")
            .field("resource", &self.resource)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// The answer to an `Effect::Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Let it in.
    Allowed {
        /// When its proof ends; the connection ends with it.
        expires: Option<UnixSeconds>,
    },
    /// CONNACK with this code, then close. 3 is for what may pass; 4 and 5 stop an SDK for good.
    Refused(Refused),
}

/// Why a CONNECT is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// CONNACK return code, never `Accepted`.
    pub code: ConnectCode,
    /// For `gateway_refused_total{reason}` and the debug line.
    pub reason: RefusedReason,
}

/// Why a CONNECT is refused, as a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// Protocol level other than 4.
    ProtocolLevel,
    /// User name missing or not of IoT Hub's form.
    UserName,
    /// Client id is not that of the user name.
    ClientId,
    /// Another hub than ours.
    HubHost,
    /// Password missing or not a SAS token.
    TokenForm,
    /// `se` lies in the past.
    TokenExpired,
    /// `sr` does not cover this device.
    TokenScope,
    /// No key makes this signature.
    TokenSignature,
    /// No key for this device, or the hub does not know it.
    UnknownDevice,
    /// The client certificate names another device.
    Certificate,
    /// The hub said no (disabled, unauthorized).
    HubRefused,
    /// The hub is away, throttles or did not answer in time.
    HubUnavailable,
    /// No room upstream: connections, tokens or links are used up.
    Capacity,
    /// This gateway is stopping or draining.
    Draining,
}
