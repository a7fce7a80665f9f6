//! Misbehaviour on request.

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::amqp::frame::Performative;
use crate::domain::{Action, Fault, Identity, Kind, Point, Query, Redirect};

fn with_sender() -> Peer {
    let mut peer = Peer::in_session(AmqpSettings::default());
    peer.register("d");
    peer.register("e");
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    peer
}

fn with_fault(action: Action) -> Peer {
    let peer = with_sender();
    peer.domain.inject(Fault::new(action).device("d"));
    peer
}

fn stored(peer: &Peer) -> u64 {
    peer.domain.telemetry.total()
}

fn condition(text: &str) -> std::sync::Arc<str> {
    text.into()
}

#[test]
fn delay_holds_the_outcome_back_and_not_the_message() {
    let mut peer = with_fault(Action::Delay { ms: 500 });
    peer.send(0, 0, &message("m", b"x"));
    assert_eq!((stored(&peer), outcomes(&peer.frames()).len()), (1, 0));
    peer.wait(499);
    assert!(outcomes(&peer.frames()).is_empty());
    peer.wait(1);
    assert!(outcomes(&peer.frames())[0].3.is_accepted());
}

#[test]
fn rejected_released_and_modified_messages_are_not_stored() {
    let reject = Action::Reject { condition: condition("com.microsoft:quota-exceeded") };
    for action in [reject, Action::Release, Action::Modify] {
        let mut peer = with_fault(action.clone());
        peer.send(0, 0, &message("m", b"x"));
        let outcomes = outcomes(&peer.frames());
        let state = &outcomes[0].3;
        match action {
            Action::Reject { .. } => assert_eq!(rejection(state).as_deref(), Some("com.microsoft:quota-exceeded")),
            Action::Release => assert!(state.is_released()),
            _ => assert!(state.is_modified()),
        }
        assert_eq!(stored(&peer), 0);
    }
}

#[test]
fn never_settle_stores_and_is_silent_and_the_ledger_knows() {
    let mut peer = with_fault(Action::NeverSettle);
    peer.send(0, 0, &message("m", b"x"));
    assert!(outcomes(&peer.frames()).is_empty());
    peer.wait(100_000);
    let frames = peer.frames();
    assert!(outcomes(&frames).is_empty() && ending(&frames).is_none());
    let entries = peer.domain.ledger.entries(&Query { kind: Some(Kind::Telemetry), ..Query::default() });
    assert!(!entries[0].written);
    assert_eq!(stored(&peer), 1);
}

#[test]
fn throttling_is_a_delay_then_429001_then_the_end_of_the_link() {
    let mut peer = with_fault(Action::Throttle { ms: 2_000 });
    peer.send(0, 0, &message("m", b"x"));
    peer.wait(1_999);
    let frames = peer.frames();
    assert!(outcomes(&frames).is_empty() && ending(&frames).is_none());
    peer.wait(1);
    let frames = peer.frames();
    let state = &outcomes(&frames)[0].3;
    assert_eq!(rejection(state).as_deref(), Some("com.microsoft:device-container-throttled"));
    assert!(format!("{state:?}").contains("429001"));
    assert_eq!(ending(&frames).as_deref(), Some("DETACH com.microsoft:device-container-throttled"));
    assert_eq!(stored(&peer), 0);
}

#[test]
fn faults_strike_the_device_they_name_as_often_as_they_say() {
    let mut peer = with_sender();
    peer.attach(0, &sender(1, "u", "/devices/e/messages/events"));
    peer.domain.inject(Fault::new(Action::Release).device("e").count(2));
    let mut released = |handle| {
        peer.send(0, handle, &message("m", b"x"));
        outcomes(&peer.frames())[0].3.is_released()
    };
    assert_eq!([0, 1, 0, 1, 1].map(&mut released), [false, true, false, true, false]);
}

#[test]
fn at_once_links_are_stolen_detached_with_redirect_or_starved() {
    let mut peer = with_fault(Action::Steal);
    assert_eq!(ending(&peer.frames()).as_deref(), Some("DETACH amqp:link:stolen"));

    let redirect = Redirect { hostname: "h".into(), network_host: "n".into(), port: 5671, address: None };
    let mut peer = with_fault(Action::Detach { condition: condition("amqp:link:redirect"), redirect: Some(redirect) });
    let frames = peer.frames();
    assert_eq!(ending(&frames).as_deref(), Some("DETACH amqp:link:redirect"));
    assert!(format!("{frames:?}").contains("network-host"));
}

#[test]
fn a_connection_is_closed_with_or_without_a_word() {
    let close = Action::CloseConnection { condition: Some(condition("amqp:connection:forced")) };
    let mut peer = with_fault(close);
    assert_eq!(ending(&peer.frames()).as_deref(), Some("CLOSE amqp:connection:forced"));
    assert!(!peer.connection.has_ended(), "their CLOSE is awaited");
    peer.put(0, &super::peer::close());
    assert!(peer.connection.has_ended());

    let mut peer = with_fault(Action::CloseConnection { condition: None });
    assert!(peer.frames().is_empty());
    assert!(peer.connection.has_ended());
}

#[test]
fn a_half_open_connection_swallows_everything_until_its_own_time_is_over() {
    let mut peer = with_fault(Action::HalfOpen);
    assert!(peer.frames().is_empty());
    peer.send(0, 0, &message("m", b"x"));
    assert!(peer.frames().is_empty() && !peer.connection.has_ended());
    assert_eq!(stored(&peer), 0);
    peer.wait(299_000);
    assert!(!peer.connection.has_ended());
    peer.write(&[0, 0, 0, 8, 2, 0, 0, 0]);
    peer.wait(2_000);
    assert!(peer.frames().is_empty() && peer.connection.has_ended());
    assert_eq!(peer.domain.registry.get(&Identity::device("d")).expect("registered").links, 0);
}

#[test]
fn cbs_answers_late_or_with_a_status_of_choice() {
    let mut peer = with_sender();
    peer.domain.inject(Fault::new(Action::Cbs { status: 0, ms: 700 }).count(1));
    let token = peer.policy_token("device");
    peer.send_token(0, 100, &token);
    assert!(peer.messages().is_empty());
    peer.wait(700);
    assert_eq!(peer.messages().len(), 1);
    peer.domain.inject(Fault::new(Action::Cbs { status: 503, ms: 0 }).count(1));
    assert_eq!(peer.put_token(&token, "azure-devices.net:sastoken").0, 503);
    assert_eq!(peer.put_token(&token, "azure-devices.net:sastoken").0, 200);
}

#[test]
fn attaches_are_refused_put_off_or_never_answered() {
    let mut peer = with_sender();
    let strike = |peer: &Peer, action| peer.domain.inject(Fault::new(action).at(Point::Attach).device("e").count(1));
    let attach = |handle: u32| sender(handle, &format!("l{handle}"), "/devices/e/messages/events");
    strike(&peer, Action::Reject { condition: condition("amqp:internal-error") });
    assert_eq!(ending(&peer.attach(0, &attach(1))).as_deref(), Some("DETACH amqp:internal-error"));
    strike(&peer, Action::Delay { ms: 300 });
    assert!(peer.attach(0, &attach(2)).is_empty());
    peer.wait(300);
    assert!(matches!(peer.frames().first(), Some(Performative::Attach(_))));
    strike(&peer, Action::NeverSettle);
    assert!(peer.attach(0, &attach(3)).is_empty());
    peer.put(0, &detach(3));
    assert!(peer.frames().is_empty(), "no answer at all, and no harm to the session");
    strike(&peer, Action::NoCredit);
    peer.attach(0, &attach(4));
    assert_eq!(peer.domain.faults.list().iter().map(|fault| fault.struck).collect::<Vec<_>>(), [1, 1, 1, 1]);
}

#[test]
fn an_attach_given_up_while_a_fault_holds_it_back_does_not_come_back() {
    let mut peer = with_sender();
    peer.domain.inject(Fault::new(Action::Delay { ms: 300 }).at(Point::Attach));
    assert!(peer.attach(0, &sender(1, "late", "/devices/e/messages/events")).is_empty());
    peer.put(0, &detach(1));
    assert_eq!(ending(&peer.frames()).as_deref(), Some("DETACH"));
    peer.wait(300);
    assert!(peer.frames().is_empty());
}

#[test]
fn commands_are_held_back_and_go_out_once_the_delay_is_over() {
    let mut peer = with_sender();
    peer.attach(0, &sender(50, "service", "/messages/devicebound"));
    peer.attach(0, &receiver(1, "c", "/devices/d/messages/deviceBound"));
    peer.give_credit(0, 1, 10);
    peer.domain.inject(Fault::new(Action::Delay { ms: 400 }).at(Point::C2d));
    let mut command = message("m", b"x");
    if let Some(properties) = &mut command.properties {
        properties.to = Some("/devices/d/messages/deviceBound".into());
    }
    peer.send(0, 50, &command);
    assert!(peer.messages().is_empty());
    peer.wait(400);
    assert_eq!(peer.messages().len(), 1);
}
