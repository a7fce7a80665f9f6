//! Method links.

use std::time::Duration;

use bytes::Bytes;
use fe2o3_amqp_types::messaging::{ApplicationProperties, MessageId, Properties};
use fe2o3_amqp_types::primitives::SimpleValue;
use serde_amqp::primitives::OrderedMap;

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::amqp::message::{Message, Outgoing};
use crate::domain::{Identity, MethodError, MethodRequest, MethodResult};

const METHODS: &str = "/devices/d/methods/deviceBound";

fn with_methods() -> Peer {
    let mut peer = Peer::in_session(AmqpSettings::default());
    peer.register("d");
    peer.attach(0, &paired(sender(0, "MethodsSenderLink", METHODS), "methods:1"));
    peer.attach(0, &paired(receiver(1, "MethodsReceiverLink", "/devices/d/methods/devicebound"), "methods:1"));
    peer.give_credit(0, 1, 100);
    peer
}

fn reboot(connect_timeout: Duration) -> MethodRequest {
    let payload = Bytes::from_static(b"{\"delay\":1}");
    MethodRequest { name: "reboot".into(), payload, connect_timeout, response_timeout: Duration::from_millis(50) }
}

fn answer(id: Option<MessageId>, status: SimpleValue) -> Outgoing {
    let mut properties = OrderedMap::new();
    properties.insert("IoThub-status".to_owned(), status);
    Outgoing {
        properties: Some(Properties { correlation_id: id, ..Properties::default() }),
        application_properties: Some(ApplicationProperties(properties)),
        data: Some(Bytes::from_static(b"{\"ok\":true}")),
        ..Outgoing::default()
    }
}

fn correlation(message: &Message) -> Option<MessageId> {
    message.properties.as_ref().and_then(|properties| properties.correlation_id.clone())
}

/// Invokes, lets the device act once the call is there, and gives the caller's result.
async fn call(peer: &mut Peer, device: impl FnOnce(&mut Peer, Message)) -> Result<MethodResult, MethodError> {
    let domain = peer.domain.clone();
    let caller =
        tokio::spawn(async move { domain.methods.invoke(&Identity::device("d"), reboot(Duration::ZERO)).await });
    tokio::task::yield_now().await;
    if let Some(called) = peer.messages().pop() {
        device(peer, called);
    }
    caller.await.expect("no panic")
}

#[tokio::test]
async fn a_call_has_a_uuid_and_its_answer_reaches_the_caller() {
    let mut peer = with_methods();
    let result = call(&mut peer, |peer, called| {
        let id = correlation(&called);
        let Some(MessageId::Uuid(uuid)) = &id else { panic!("{id:?}") };
        assert_eq!(uuid::Uuid::from_bytes(*uuid.as_inner()).get_version_num(), 4);
        let name = called.application_properties.as_ref().and_then(|p| p.0.get("IoThub-methodname").cloned());
        assert_eq!(name, Some(SimpleValue::String("reboot".into())));
        assert_eq!(&called.body_bytes()[..], b"{\"delay\":1}");
        peer.send(0, 0, &answer(id, SimpleValue::Int(201)));
    })
    .await;
    let result = result.expect("an answer");
    assert_eq!((result.status, &result.payload[..]), (201, &b"{\"ok\":true}"[..]));
}

#[tokio::test]
async fn an_answer_without_a_uuid_or_with_a_status_that_is_no_int_is_rejected() {
    let mut peer = with_methods();
    let result = call(&mut peer, |peer, called| {
        let id = correlation(&called);
        for bad in [
            answer(None, SimpleValue::Int(200)),
            answer(Some(MessageId::String("x".into())), SimpleValue::Int(200)),
            answer(id.clone(), SimpleValue::String("200".into())),
            answer(id, SimpleValue::Uint(200)),
        ] {
            peer.send(0, 0, &bad);
            assert_eq!(rejection(&outcomes(&peer.frames())[0].3).as_deref(), Some("amqp:invalid-field"));
        }
    })
    .await;
    assert_eq!(result, Err(MethodError::TimedOut));
}

#[tokio::test]
async fn a_device_is_online_for_methods_only_with_both_links() {
    let mut peer = Peer::in_session(AmqpSettings::default());
    let device = peer.register("d");
    peer.attach(0, &paired(receiver(1, "r", METHODS), "methods:1"));
    assert!(!peer.domain.methods.is_online(&device));
    peer.attach(0, &paired(sender(0, "s", METHODS), "methods:2"));
    assert!(!peer.domain.methods.is_online(&device));
    peer.attach(0, &paired(sender(2, "s2", METHODS), "methods:1"));
    assert!(peer.domain.methods.is_online(&device));
    peer.put(0, &detach(2));
    assert!(!peer.domain.methods.is_online(&device));
    let offline = peer.domain.methods.invoke(&device, reboot(Duration::ZERO)).await;
    assert_eq!(offline, Err(MethodError::NotOnline));
}

#[tokio::test]
async fn a_second_pair_takes_over_from_the_first() {
    let mut peer = with_methods();
    peer.begin(1);
    peer.attach(1, &paired(sender(0, "MethodsSenderLink", METHODS), "methods:2"));
    let frames = peer.attach(1, &paired(receiver(1, "MethodsReceiverLink", METHODS), "methods:2"));
    peer.give_credit(1, 1, 1);
    assert_eq!(ending(&frames).as_deref(), Some("DETACH amqp:link:stolen"));
    let result = call(&mut peer, |peer, called| {
        let id = correlation(&called);
        peer.send(1, 0, &answer(id, SimpleValue::Int(200)));
    })
    .await;
    assert_eq!(result.map(|result| result.status), Ok(200));
}
