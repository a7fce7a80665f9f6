//! What the hub's answers mean: AMQP conditions and CBS status codes → [`Outcome`], [`Refusal`], the device's fate.
//!
//! Source: contract §3.2, §3.9; AMQP 1.0 §2.8.15, §2.8.16, §3.4. A condition that nobody knows may pass: it is tried again.

use crate::{
    auth::{Refused, RefusedReason, Verdict},
    codec::packet::ConnectCode,
    message::{Outcome, Refusal},
    session::effect::CloseCause,
};

/// A terminal delivery state of one transfer (AMQP 1.0 §3.4), as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition<'a> {
    /// 3.4.2
    Accepted,
    /// 3.4.3 with the symbol of its error, if it has one.
    Rejected(Option<&'a str>),
    /// 3.4.4
    Released,
    /// 3.4.5
    Modified {
        /// This peer will never take it.
        undeliverable_here: bool,
    },
}

/// What became of the message.
pub fn outcome(disposition: Disposition<'_>) -> Outcome {
    match disposition {
        Disposition::Accepted => Outcome::Accepted,
        Disposition::Rejected(None) | Disposition::Modified { undeliverable_here: true } => {
            Outcome::Refused(Refusal::Invalid)
        }
        Disposition::Rejected(Some(condition)) => match refusal(condition) {
            refusal if may_pass(refusal) => Outcome::Retry(refusal),
            refusal => Outcome::Refused(refusal),
        },
        Disposition::Released | Disposition::Modified { .. } => Outcome::Retry(Refusal::Released),
    }
}

/// The meaning of an AMQP error condition, on whatever level it came.
pub fn refusal(condition: &str) -> Refusal {
    match condition {
        "amqp:unauthorized-access" => Refusal::Unauthorized,
        "amqp:not-found" | "com.microsoft:iot-hub-not-found-error" | "com.microsoft:device-not-found" => {
            Refusal::NotFound
        }
        "com.microsoft:device-container-throttled" | "com.microsoft:server-busy" => Refusal::Throttled,
        "amqp:resource-limit-exceeded" | "com.microsoft:quota-exceeded" => Refusal::Quota,
        "amqp:link:message-size-exceeded" => Refusal::TooLarge,
        "amqp:not-allowed"
        | "amqp:not-implemented"
        | "amqp:decode-error"
        | "amqp:invalid-field"
        | "amqp:precondition-failed"
        | "com.microsoft:precondition-failed"
        | "com.microsoft:argument-error"
        | "com.microsoft:argument-out-of-range"
        | "com.microsoft:message-lock-lost" => Refusal::Invalid,
        _ => Refusal::Internal,
    }
}

/// What follows for a device when a link, its session or its AMQP connection ends by the peer's hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterLoss {
    /// The device stays: attach again after the back-off, send what is unsettled again.
    Reattach(Refusal),
    /// The device goes.
    Close(CloseCause, Refusal),
}

/// Judges the end of a link, session or connection; `None`: it ended without an error.
///
/// A stolen link is never taken back: two gateways would steal it from each other for ever (contract §7, trap 6).
pub fn link_lost(condition: Option<&str>) -> AfterLoss {
    match condition {
        None => AfterLoss::Reattach(Refusal::Released),
        Some("amqp:link:stolen" | "com.microsoft:link-creation-conflict") => {
            AfterLoss::Close(CloseCause::TakenOver, Refusal::Released)
        }
        // "name re-used too fast" passes by itself
        Some("amqp:resource-locked") => AfterLoss::Reattach(Refusal::Internal),
        Some(condition) => match refusal(condition) {
            refusal @ (Refusal::Unauthorized | Refusal::NotFound | Refusal::Invalid) => {
                AfterLoss::Close(CloseCause::HubRefused, refusal)
            }
            refusal => AfterLoss::Reattach(refusal),
        },
    }
}

/// What the answer to a put-token means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenAnswer {
    /// The token holds.
    Accepted,
    /// Nothing is wrong with the token: this AMQP connection has had all its tokens. Use another one.
    ConnectionUsedUp,
    /// CONNACK with this code.
    Refused(Refused),
}

impl TokenAnswer {
    /// The device's verdict, unless another connection is to be asked. The session judges the token's expiry by its own `se`.
    pub fn verdict(self, expires: Option<crate::time::UnixSeconds>) -> Option<Verdict> {
        match self {
            Self::Accepted => Some(Verdict::Allowed { expires }),
            Self::ConnectionUsedUp => None,
            Self::Refused(refused) => Some(Verdict::Refused(refused)),
        }
    }
}

/// Judges a CBS response by `status-code` and `status-description` (contract §3.2). Only what can never pass is answered with
/// 4 or 5: those stop an SDK for good (§2.3).
pub fn token_answer(status: i32, description: &str) -> TokenAnswer {
    let refused = |code, reason| TokenAnswer::Refused(Refused { code, reason });
    match status {
        200..=299 => TokenAnswer::Accepted,
        400 => refused(ConnectCode::BadUserNameOrPassword, RefusedReason::TokenForm),
        401 | 403 if !is_token_limit(description) => refused(ConnectCode::NotAuthorized, RefusedReason::HubRefused),
        404 => refused(ConnectCode::NotAuthorized, RefusedReason::UnknownDevice),
        _ if is_token_limit(description) => TokenAnswer::ConnectionUsedUp,
        _ => refused(ConnectCode::ServerUnavailable, RefusedReason::HubUnavailable),
    }
}

/// Contract §3.2: status 500 and "a text that the maximum of 1000 tokens was reached", or the hub's own code.
fn is_token_limit(description: &str) -> bool {
    let text = description.to_ascii_lowercase();
    text.contains("403005")
        || text.contains("maxcbstoken")
        || (text.contains("token") && text.contains("maximum") && text.contains("1000"))
}

fn may_pass(refusal: Refusal) -> bool {
    matches!(refusal, Refusal::Throttled | Refusal::Quota | Refusal::Internal | Refusal::Released)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_disposition_has_its_outcome() {
        let check = |disposition, expected: Outcome| assert_eq!(outcome(disposition), expected, "{disposition:?}");
        let rejected = |condition| Disposition::Rejected(Some(condition));
        check(Disposition::Accepted, Outcome::Accepted);
        check(Disposition::Released, Outcome::Retry(Refusal::Released));
        check(Disposition::Modified { undeliverable_here: false }, Outcome::Retry(Refusal::Released));
        check(Disposition::Modified { undeliverable_here: true }, Outcome::Refused(Refusal::Invalid));
        check(Disposition::Rejected(None), Outcome::Refused(Refusal::Invalid));
        check(rejected("amqp:unauthorized-access"), Outcome::Refused(Refusal::Unauthorized));
        check(rejected("amqp:not-found"), Outcome::Refused(Refusal::NotFound));
        check(rejected("amqp:not-allowed"), Outcome::Refused(Refusal::Invalid));
        check(rejected("amqp:resource-limit-exceeded"), Outcome::Retry(Refusal::Quota));
        check(rejected("amqp:link:message-size-exceeded"), Outcome::Refused(Refusal::TooLarge));
        check(rejected("amqp:internal-error"), Outcome::Retry(Refusal::Internal));
        check(rejected("amqp:connection:forced"), Outcome::Retry(Refusal::Internal));
        check(rejected("com.microsoft:device-container-throttled"), Outcome::Retry(Refusal::Throttled));
        check(rejected("com.microsoft:quota-exceeded"), Outcome::Retry(Refusal::Quota));
        check(rejected("com.microsoft:argument-error"), Outcome::Refused(Refusal::Invalid));
        check(rejected("com.microsoft:argument-out-of-range"), Outcome::Refused(Refusal::Invalid));
        check(rejected("com.microsoft:timeout"), Outcome::Retry(Refusal::Internal));
        check(rejected("example:never-seen"), Outcome::Retry(Refusal::Internal));
    }

    #[test]
    fn the_end_of_a_link_says_whether_its_device_stays() {
        let check = |condition, expected| assert_eq!(link_lost(condition), expected, "{condition:?}");
        let close = AfterLoss::Close;
        let stays = AfterLoss::Reattach;
        check(None, stays(Refusal::Released));
        check(Some("amqp:link:stolen"), close(CloseCause::TakenOver, Refusal::Released));
        check(Some("com.microsoft:link-creation-conflict"), close(CloseCause::TakenOver, Refusal::Released));
        check(Some("amqp:unauthorized-access"), close(CloseCause::HubRefused, Refusal::Unauthorized));
        check(Some("amqp:not-found"), close(CloseCause::HubRefused, Refusal::NotFound));
        check(Some("amqp:not-allowed"), close(CloseCause::HubRefused, Refusal::Invalid));
        check(Some("amqp:link:detach-forced"), stays(Refusal::Internal));
        check(Some("amqp:connection:forced"), stays(Refusal::Internal));
        check(Some("amqp:resource-locked"), stays(Refusal::Internal));
        check(Some("amqp:resource-limit-exceeded"), stays(Refusal::Quota));
        check(Some("com.microsoft:device-container-throttled"), stays(Refusal::Throttled));
        check(Some("com.microsoft:iot-hub-suspended"), stays(Refusal::Internal));
        check(Some("amqp:session:window-violation"), stays(Refusal::Internal));
    }

    #[test]
    fn a_put_tokens_status_becomes_the_connack_code() {
        let check = |status, description, expected: Option<(ConnectCode, RefusedReason)>| {
            let expected = expected.map(|(code, reason)| TokenAnswer::Refused(Refused { code, reason }));
            assert_eq!(token_answer(status, description), expected.unwrap_or(TokenAnswer::Accepted), "{status}");
        };
        let unavailable = Some((ConnectCode::ServerUnavailable, RefusedReason::HubUnavailable));
        check(200, "OK", None);
        check(202, "", None);
        check(400, "", Some((ConnectCode::BadUserNameOrPassword, RefusedReason::TokenForm)));
        check(401, r#"{"errorCode":401003}"#, Some((ConnectCode::NotAuthorized, RefusedReason::HubRefused)));
        check(403, r#"{"errorCode":403012}"#, Some((ConnectCode::NotAuthorized, RefusedReason::HubRefused)));
        check(404, r#"{"errorCode":404001}"#, Some((ConnectCode::NotAuthorized, RefusedReason::UnknownDevice)));
        check(429, "", unavailable);
        check(500, "internal", unavailable);
        check(503, "", unavailable);
        check(0, "", unavailable);
    }

    #[test]
    fn trap_24_the_1001st_token_asks_for_another_connection() {
        let check = |status, description| assert_eq!(token_answer(status, description), TokenAnswer::ConnectionUsedUp);
        check(500, "The maximum number of 1000 tokens on this connection was reached.");
        check(500, r#"{"errorCode":403005,"message":"IotHubMaxCbsTokenExceeded"}"#);
        check(403, r#"{"errorCode":403005}"#);
    }

    #[test]
    fn a_used_up_connection_is_no_verdict() {
        let expires = Some(crate::time::UnixSeconds(9));
        assert_eq!(TokenAnswer::Accepted.verdict(expires), Some(Verdict::Allowed { expires }));
        assert_eq!(TokenAnswer::ConnectionUsedUp.verdict(expires), None);
        let refused = Refused { code: ConnectCode::NotAuthorized, reason: RefusedReason::HubRefused };
        assert_eq!(TokenAnswer::Refused(refused).verdict(expires), Some(Verdict::Refused(refused)));
    }
}
