//! `/faults`: misbehaviour on request. `POST` adds one, `GET` lists, `DELETE /faults[/{id}]` removes.
//!
//! ```json
//! {"what": "reject", "condition": "amqp:internal-error", "device": "dev-*", "probability": 0.1, "seed": 7, "count": 3}
//! ```

use std::sync::Arc;

use hyper::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::reply::{self, Reply, invalid};
use super::{Call, unknown, wrong_method};
use crate::domain::{Action, ErrorCode, Fault, FaultStatus, HubError, Point, Redirect};

pub(super) fn route(call: &Call<'_>) -> Result<Reply, HubError> {
    let faults = &call.domain.faults;
    match (&call.method, &call.segments[1..]) {
        (&Method::GET, []) => Ok(reply::ok(&faults.list().iter().map(json).collect())),
        (&Method::POST, []) => {
            let fault = parse(&call.body)?;
            let too_many = || HubError::new(ErrorCode::ThrottlingException, "too many faults stand");
            let id = call.domain.inject(fault).ok_or_else(too_many)?;
            Ok(reply::ok(&json!({"id": id})))
        }
        (&Method::DELETE, []) => {
            faults.clear();
            Ok(reply::no_content())
        }
        (&Method::DELETE, [id]) => {
            let removed = id.parse().is_ok_and(|id| faults.remove(id));
            if removed { Ok(reply::no_content()) } else { Err(unknown()) }
        }
        (_, [] | [_]) => Err(wrong_method()),
        _ => Err(unknown()),
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Delay,
    Reject,
    Release,
    Modify,
    NeverSettle,
    NoCredit,
    Throttle,
    Steal,
    Detach,
    CloseConnection,
    HalfOpen,
    RefuseListen,
    Cbs,
}

/// All fields of all faults; one that the fault does not know is an error, so that a typo does not pass.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FaultBody {
    what: What,
    at: Option<Point>,
    device: Option<String>,
    probability: Option<f64>,
    seed: Option<u64>,
    count: Option<u32>,
    skip: Option<u32>,
    ms: Option<u64>,
    condition: Option<String>,
    redirect: Option<Redirect>,
    status: Option<u16>,
}

fn parse(body: &[u8]) -> Result<Fault, HubError> {
    let mut body: FaultBody = serde_json::from_slice(body).map_err(|error| invalid(format!("fault: {error}")))?;
    let action = body.action()?;
    if body.ms.is_some() || body.condition.is_some() || body.redirect.is_some() || body.status.is_some() {
        return Err(invalid("fault: this kind does not know one of ms, condition, redirect, status"));
    }
    let mut fault = Fault::new(action);
    fault.point = body.at.unwrap_or(fault.point);
    fault.device = body.device.map(Arc::from);
    fault.probability = body.probability.unwrap_or(1.0);
    fault.seed = body.seed.unwrap_or(0);
    fault.count = body.count;
    fault.skip = body.skip.unwrap_or(0);
    if !(0.0..=1.0).contains(&fault.probability) {
        return Err(invalid("fault: probability must be 0 to 1"));
    }
    Ok(fault)
}

impl FaultBody {
    /// Takes the fields that belong to this kind of fault.
    fn action(&mut self) -> Result<Action, HubError> {
        let ms = self.ms.take();
        let needed = |ms: Option<u64>| ms.ok_or_else(|| invalid("fault: ms is missing"));
        let condition = self.condition.take().map(Arc::<str>::from);
        Ok(match self.what {
            What::Delay => Action::Delay { ms: needed(ms)? },
            What::RefuseListen => Action::RefuseListen { ms: needed(ms)? },
            What::Throttle => Action::Throttle { ms: ms.unwrap_or(0) },
            What::Cbs => Action::Cbs { status: self.status.take().unwrap_or(0), ms: ms.unwrap_or(0) },
            What::CloseConnection => Action::CloseConnection { condition },
            What::Reject => {
                Action::Reject { condition: condition.ok_or_else(|| invalid("fault: condition is missing"))? }
            }
            What::Detach => Action::Detach {
                condition: condition.unwrap_or_else(|| "amqp:link:detach-forced".into()),
                redirect: self.redirect.take(),
            },
            _ if ms.is_some() || condition.is_some() => {
                return Err(invalid("fault: this kind knows neither ms nor condition"));
            }
            What::Release => Action::Release,
            What::Modify => Action::Modify,
            What::NeverSettle => Action::NeverSettle,
            What::NoCredit => Action::NoCredit,
            What::Steal => Action::Steal,
            What::HalfOpen => Action::HalfOpen,
        })
    }
}

fn json(status: &FaultStatus) -> Value {
    let fault = &status.fault;
    let mut json = action_json(&fault.action);
    json.insert("id".to_owned(), json!(status.id));
    json.insert("at".to_owned(), json!(fault.point));
    json.insert("device".to_owned(), json!(fault.device.as_deref()));
    json.insert("probability".to_owned(), json!(fault.probability));
    json.insert("seed".to_owned(), json!(fault.seed));
    json.insert("count".to_owned(), json!(fault.count));
    json.insert("skip".to_owned(), json!(fault.skip));
    json.insert("struck".to_owned(), json!(status.struck));
    Value::Object(json)
}

fn action_json(action: &Action) -> Map<String, Value> {
    let json = match action {
        Action::Delay { ms } => json!({"what": "delay", "ms": ms}),
        Action::Reject { condition } => json!({"what": "reject", "condition": &**condition}),
        Action::Release => json!({"what": "release"}),
        Action::Modify => json!({"what": "modify"}),
        Action::NeverSettle => json!({"what": "never-settle"}),
        Action::NoCredit => json!({"what": "no-credit"}),
        Action::Throttle { ms } => json!({"what": "throttle", "ms": ms}),
        Action::Steal => json!({"what": "steal"}),
        Action::Detach { condition, redirect } => {
            json!({"what": "detach", "condition": &**condition, "redirect": redirect})
        }
        Action::CloseConnection { condition } => json!({"what": "close-connection", "condition": condition.as_deref()}),
        Action::HalfOpen => json!({"what": "half-open"}),
        Action::RefuseListen { ms } => json!({"what": "refuse-listen", "ms": ms}),
        Action::Cbs { status, ms } => json!({"what": "cbs", "status": status, "ms": ms}),
    };
    match json {
        Value::Object(json) => json,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: Option<&Fault>) {
        assert_eq!(parse(body.as_bytes()).ok().as_ref(), expected, "{body}");
    }

    #[test]
    fn a_fault_is_read_strictly() {
        check(r#"{"what":"release"}"#, Some(&Fault::new(Action::Release)));
        check(r#"{"what":"delay","ms":5,"at":"cbs"}"#, Some(&Fault::new(Action::Delay { ms: 5 }).at(Point::Cbs)));
        check(
            r#"{"what":"reject","condition":"amqp:x","device":"d*","probability":0.5,"seed":7,"count":3,"skip":1}"#,
            Some(
                &Fault::new(Action::Reject { condition: "amqp:x".into() })
                    .device("d*")
                    .probability(0.5, 7)
                    .count(3)
                    .skip(1),
            ),
        );
        check(r#"{"what":"close-connection"}"#, Some(&Fault::new(Action::CloseConnection { condition: None })));
        check(r#"{"what":"cbs","status":503}"#, Some(&Fault::new(Action::Cbs { status: 503, ms: 0 })));
        check(r#"{"what":"unheard-of"}"#, None);
        check(r#"{"what":"delay"}"#, None);
        check(r#"{"what":"release","ms":5}"#, None);
        check(r#"{"what":"release","status":5}"#, None);
        check(r#"{"what":"release","probabilty":0.5}"#, None);
        check(r#"{"what":"release","probability":1.5}"#, None);
    }

    #[test]
    fn a_listed_fault_can_be_posted_again() {
        let fault =
            Fault::new(Action::Detach { condition: "amqp:link:redirect".into(), redirect: None }).device("a").count(2);
        let mut listed = json(&FaultStatus { id: 1, fault: fault.clone(), struck: 0 });
        let object = listed.as_object_mut().expect("an object");
        object.remove("id");
        object.remove("struck");
        check(&listed.to_string(), Some(&fault));
    }
}
