//! SASL as the hub offers it (contract §3.1): PLAIN ANONYMOUS MSSBCBS EXTERNAL, one INIT, one OUTCOME, no challenge.

use bytes::BytesMut;
use fe2o3_amqp_types::sasl::{SaslCode, SaslInit, SaslMechanisms, SaslOutcome};
use serde_amqp::primitives::{Array, Symbol};

use super::frame::{self, FrameType};
use crate::domain::{AuthError, Claims, Domain, verify_plain};

/// In the order in which the hub offers them.
const MECHANISMS: [&str; 4] = ["PLAIN", "ANONYMOUS", "MSSBCBS", "EXTERNAL"];

pub(crate) fn put_mechanisms(out: &mut BytesMut) {
    let names = MECHANISMS.map(Symbol::from).to_vec();
    frame::put(out, FrameType::Sasl, 0, &SaslMechanisms { sasl_server_mechanisms: Array(names) }, &[]);
}

pub(crate) fn put_outcome(out: &mut BytesMut, is_ok: bool) {
    let code = if is_ok { SaslCode::Ok } else { SaslCode::Auth };
    frame::put(out, FrameType::Sasl, 0, &SaslOutcome { code, additional_data: None }, &[]);
}

/// Judges INIT. `Ok(None)`: let in, to put tokens by CBS or to be judged by certificate at each attach.
pub(crate) fn authenticate(
    domain: &Domain,
    init: &SaslInit,
    has_certificate: bool,
    now_unix: u64,
) -> Result<Option<Claims>, AuthError> {
    match init.mechanism.as_str() {
        "ANONYMOUS" | "MSSBCBS" => Ok(None),
        "EXTERNAL" if has_certificate => Ok(None),
        "EXTERNAL" => Err(AuthError::Certificate),
        "PLAIN" => {
            let response = init.initial_response.as_ref().ok_or(AuthError::Malformed)?;
            let text = std::str::from_utf8(response).map_err(|_| AuthError::Malformed)?;
            // RFC 4616: [authzid] NUL authcid NUL passwd
            let mut parts = text.split('\0').skip(1);
            let (Some(user), Some(password), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(AuthError::Malformed);
            };
            verify_plain(domain, user, password, now_unix).map(Some)
        }
        _ => Err(AuthError::Malformed),
    }
}
