//! What a pod says at `/load`, read strictly: what cannot be true is refused as a whole.

use crds::status::DrainCause;
use serde::{
    Deserialize, Deserializer,
    de::value::{self, StringDeserializer},
};

/// No pod has as many devices.
const CONNECTIONS_MAX: u64 = 1_000_000_000;
/// No counter has come as far; above it doubles are not exact either.
const TOTAL_MAX: u64 = 1 << 53;
/// Longer texts are cut: they go into conditions.
const TEXT_BYTES_MAX: usize = 1024;
/// Further paths are dropped.
const PATHS_MAX: usize = 32;

/// The answer of `/load`. Fields that are not known are passed over: a newer gateway may say more.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Devices connected.
    pub connections: u64,
    /// Connections that are not devices yet: TLS handshake or CONNECT under way.
    pub handshaking: u64,
    /// Devices that connected since the gateway started.
    pub connects_total: u64,
    /// Messages since the gateway started, both directions.
    pub messages_total: u64,
    /// Devices that were disconnected by order or by the pod's own drain since the gateway started.
    pub let_go_total: u64,
    /// Whether it takes new connections, as `/readyz`.
    pub ready: bool,
    /// The broker's side.
    pub upstream: Upstream,
    /// The configuration it runs by.
    pub config: ConfigReport,
    /// Why the newest Secrets are not in force.
    #[serde(default)]
    pub secrets_problem: Option<String>,
    /// The drain it is at.
    #[serde(default)]
    pub drain: Option<DrainReport>,
}

/// The broker's side of a pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// A connection is open; absent in gateways that do not say so.
    #[serde(default)]
    pub connected: Option<bool>,
    /// Why its connections fail, if they do.
    #[serde(default)]
    pub failing: Option<String>,
    /// The broker asked it to be slower.
    #[serde(default)]
    pub throttled: bool,
    /// Devices that it lets go per second, or is about to, because the broker did nothing for them for too long.
    #[serde(default)]
    pub let_go_per_second: Option<f64>,
}

/// The configuration a pod runs by.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigReport {
    /// First 8 bytes of SHA-256 of the file's text, lower-case hexadecimal.
    pub in_force: String,
    /// Why the newest file is not in force.
    #[serde(default)]
    pub problem: Option<String>,
    /// What of the newest file waits for a restart, as paths.
    #[serde(default)]
    pub needs_restart: Vec<String>,
}

/// A drain, as the pod has it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainReport {
    /// Why; absent if it is for no order: it was told to stop.
    #[serde(default, deserialize_with = "known_cause")]
    pub cause: Option<DrainCause>,
    /// Which leader ordered it.
    pub epoch: i64,
    /// What it is at.
    pub state: DrainState,
    /// Devices it lets go in a second.
    pub per_second: f64,
    /// It stops at so many.
    pub down_to: u64,
    /// Devices that are still to go.
    pub remaining: u64,
    /// Devices that went.
    pub let_go: u64,
}

/// A gateway has causes of its own, and a newer one may have more.
fn known_cause<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DrainCause>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.and_then(|text| DrainCause::deserialize(StringDeserializer::<value::Error>::new(text)).ok()))
}

/// What a drain is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum DrainState {
    /// Devices are let go.
    Draining,
    /// The order was not renewed: nobody is let go.
    Paused,
    /// Nobody is left to go.
    Done,
}

/// Why an answer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("says nonsense: {0}")]
pub struct Nonsense(pub String);

impl Load {
    /// Reads the body of an answer.
    ///
    /// # Errors
    /// What in it cannot be.
    pub fn read(body: &[u8]) -> Result<Self, Nonsense> {
        let load: Self = serde_json::from_slice(body).map_err(|error| Nonsense(cut(&error.to_string())))?;
        load.check()?;
        Ok(load.trimmed())
    }

    fn check(&self) -> Result<(), Nonsense> {
        let drain = self.drain.as_ref();
        let counts = [
            ("connections", self.connections),
            ("handshaking", self.handshaking),
            ("drain.remaining", drain.map_or(0, |drain| drain.remaining)),
        ];
        let totals = [
            ("connectsTotal", self.connects_total),
            ("messagesTotal", self.messages_total),
            ("letGoTotal", self.let_go_total),
        ];
        let above = |pairs: &[(&str, u64)], most| {
            let found = pairs.iter().find(|(_, count)| *count > most);
            found.map(|(name, count)| Nonsense(format!("{name} {count} is above {most}")))
        };
        if let Some(nonsense) = above(&counts, CONNECTIONS_MAX).or_else(|| above(&totals, TOTAL_MAX)) {
            return Err(nonsense);
        }
        let rates = [
            ("drain.perSecond", drain.map(|drain| drain.per_second)),
            ("upstream.letGoPerSecond", self.upstream.let_go_per_second),
        ];
        match rates.iter().find(|(_, rate)| rate.is_some_and(|rate| !rate.is_finite() || rate < 0.0)) {
            Some((name, rate)) => Err(Nonsense(format!("{name} {}", rate.unwrap_or_default()))),
            None => Ok(()),
        }
    }

    fn trimmed(mut self) -> Self {
        let texts = [&mut self.upstream.failing, &mut self.config.problem, &mut self.secrets_problem];
        for text in texts.into_iter().flatten().chain([&mut self.config.in_force]) {
            *text = cut(text);
        }
        self.config.needs_restart.truncate(PATHS_MAX);
        self.config.needs_restart.iter_mut().for_each(|path| *path = cut(path));
        self
    }
}

/// The first [`TEXT_BYTES_MAX`] bytes, or fewer, so that no character is cut.
fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(TEXT_BYTES_MAX)].to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn answer() -> Value {
        json!({
            "connections": 3, "handshaking": 1, "connectsTotal": 10, "messagesTotal": 99, "letGoTotal": 2, "ready": true,
            "upstream": {"connected": true, "failing": null, "throttled": false},
            "config": {"inForce": "00ff", "problem": null, "needsRestart": ["listeners"]},
            "secretsProblem": null,
            "drain": {"cause": "ScaleIn", "epoch": 7, "state": "Paused", "perSecond": 2.5, "downTo": 1, "remaining": 2, "letGo": 2},
        })
    }

    fn check(pointer: &str, value: Value, refused: &str) {
        let mut body = answer();
        *body.pointer_mut(pointer).expect("the answer has it") = value;
        let read = Load::read(body.to_string().as_bytes());
        match read {
            Err(nonsense) => assert!(!refused.is_empty() && nonsense.0.contains(refused), "{pointer}: {nonsense}"),
            Ok(_) => assert!(refused.is_empty(), "{pointer}: taken"),
        }
    }

    #[test]
    fn an_answer_is_read_field_by_field() {
        let load = Load::read(answer().to_string().as_bytes()).expect("it is sound");
        assert_eq!((load.connections, load.handshaking, load.let_go_total, load.ready), (3, 1, 2, true));
        let drain = load.drain.expect("it drains");
        assert_eq!((drain.epoch, drain.state, drain.per_second), (7, DrainState::Paused, 2.5));
        assert_eq!(load.config.needs_restart, ["listeners"]);
    }

    #[test]
    fn what_cannot_be_is_refused_and_what_is_new_is_passed_over() {
        check("/connections", json!(-1), "invalid value");
        check("/connections", json!(1.5), "invalid type");
        check("/connections", json!(1_000_000_000), "");
        check("/connections", json!(1_000_000_001), "connections 1000000001");
        check("/handshaking", json!(u64::MAX), "handshaking");
        check("/messagesTotal", json!(1u64 << 53), "");
        check("/messagesTotal", json!((1u64 << 53) + 1), "messagesTotal");
        check("/connectsTotal", Value::Null, "invalid type");
        check("/drain/perSecond", json!(-0.5), "perSecond");
        check("/upstream", json!({"letGoPerSecond": -1}), "upstream.letGoPerSecond -1");
        check("/upstream", json!({"letGoPerSecond": 0.125}), "");
        check("/upstream", json!({"letGoPerSecond": null}), "");
        check("/drain/state", json!("Sleeping"), "unknown variant");
        check("/drain", Value::Null, "");
        check("/upstream", json!({"failing": null, "throttled": true, "new": [1]}), "");
        assert!(Load::read(b"").is_err() && Load::read(b"ready").is_err() && Load::read(b"[]").is_err());
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let mut body = answer();
        body["secretsProblem"] = json!("é".repeat(1000));
        body["config"]["needsRestart"] = json!(vec!["x"; 100]);
        let load = Load::read(body.to_string().as_bytes()).expect("it is sound");
        assert_eq!(load.secrets_problem.expect("it is there").len(), TEXT_BYTES_MAX);
        assert_eq!(load.config.needs_restart.len(), PATHS_MAX);
    }
}
