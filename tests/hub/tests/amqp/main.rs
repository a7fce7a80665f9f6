//! The hub's AMQP side seen by an independent client, over real sockets.

mod client;

use std::time::Duration;

use bytes::Bytes;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Connection, Receiver, Session};
use fe2o3_amqp_types::definitions::{ErrorCondition, LinkError};
use fe2o3_amqp_types::messaging::annotations::AnnotationKey;
use fe2o3_amqp_types::messaging::{
    ApplicationProperties, Body, Data, Message, MessageAnnotations, MessageId, Outcome, Properties, Source,
};
use fe2o3_amqp_types::primitives::SimpleValue;
use hub::amqp::AmqpSettings;
use hub::domain::{
    Action, Authentication, C2dSettings, Fault, FeedbackSettings, Identity, IfMatch, MethodRequest, Registration,
    Settings, TwinChange,
};
use hub::{Hub, HubConfig};
use serde_amqp::Value;
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;
use serde_amqp::primitives::{Binary, Symbol};
use tokio::net::TcpStream;
use tokio::time::timeout;

use client::{Client, connect, hub_with, message, open, owner, tls};

const SOON: Duration = Duration::from_secs(20);
const DEVICE_BOUND: &str = "/devices/d/messages/deviceBound";

fn body(message: &Message<Body<Value>>) -> Vec<u8> {
    message.body.try_as_data().map(|data| data.flat_map(|part| part.to_vec()).collect()).unwrap_or_default()
}

fn annotation(message: &Message<Body<Value>>, name: &str) -> Option<Value> {
    message.message_annotations.as_ref()?.0.get(&name as &dyn AnnotationKey).cloned()
}

async fn receive(receiver: &mut Receiver) -> Message<Body<Value>> {
    let delivery = timeout(SOON, receiver.recv::<Body<Value>>()).await.expect("in time").expect("a delivery");
    receiver.accept(&delivery).await.expect("accepted");
    delivery.into_message()
}

#[tokio::test]
async fn five_thousand_pipelined_messages_of_fifty_devices_are_stored_once_and_in_order() {
    let ids: Vec<String> = (0..50).map(|n| format!("d{n}")).collect();
    let hub = hub_with(HubConfig::default(), &ids.iter().map(String::as_str).collect::<Vec<_>>());
    let mut client = connect(&hub).await;
    let mut senders = Vec::new();
    for id in &ids {
        senders.push(client.sender(&format!("t-{id}"), &format!("/devices/{id}/messages/events")).await);
    }
    for n in 0..100 {
        let mut outcomes = Vec::new();
        for sender in &mut senders {
            outcomes.push(sender.send_batchable(message(&format!("m-{n}"), None, "x")).await.expect("sent"));
        }
        for outcome in outcomes {
            let outcome = timeout(SOON, outcome).await.expect("in time").expect("an outcome");
            assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        }
    }
    client.close().await;
    let summary = hub.ledger().summary();
    assert_eq!((summary.telemetry.accepted_written, summary.identities), (5_000, 50));
    assert_eq!((summary.duplicates, summary.missing, summary.out_of_order), (0, 0, 0));
}

#[tokio::test]
async fn a_command_goes_to_the_device_and_its_feedback_to_the_back_end() {
    let feedback = FeedbackSettings { batch_ms_max: 200, ..FeedbackSettings::default() };
    let settings = Settings { feedback, ..Settings::default() };
    let hub = hub_with(HubConfig { settings, ..HubConfig::default() }, &["d"]);
    let mut back_end = connect(&hub).await;
    let mut commands = back_end.sender("commands", "/messages/devicebound").await;
    let mut feedback = back_end.receiver("feedback", "/messages/serviceBound/feedback").await;
    let mut device = connect(&hub).await;
    let mut inbox = device.receiver("inbox", DEVICE_BOUND).await;

    let mut command = message("c-1", Some(DEVICE_BOUND), "open");
    command.application_properties = Some(ApplicationProperties::builder().insert("iothub-ack", "full").build());
    assert!(matches!(commands.send(command).await.expect("an outcome"), Outcome::Accepted(_)));
    let delivery = timeout(SOON, inbox.recv::<Body<Value>>()).await.expect("in time").expect("a delivery");
    assert_eq!((delivery.delivery_tag().len(), &body(delivery.message())[..]), (16, &b"open"[..]));
    inbox.accept(&delivery).await.expect("accepted");

    let records: serde_json::Value = serde_json::from_slice(&body(&receive(&mut feedback).await)).expect("JSON");
    assert_eq!((&records[0]["originalMessageId"], &records[0]["statusCode"]), (&"c-1".into(), &"Success".into()));
    let unknown = message("c-2", Some("/devices/x/messages/deviceBound"), "open");
    let Outcome::Rejected(rejected) = commands.send(unknown).await.expect("an outcome") else { panic!("accepted") };
    assert!(format!("{rejected:?}").contains("404001"), "{rejected:?}");
}

#[tokio::test]
async fn ten_thousand_commands_reach_one_client_without_a_stall() {
    let c2d = C2dSettings { queue_max: 10_000, ..C2dSettings::default() };
    let hub = hub_with(HubConfig { settings: Settings { c2d, ..Settings::default() }, ..HubConfig::default() }, &["d"]);
    let mut back_end = connect(&hub).await;
    let mut commands = back_end.sender("commands", "/messages/devicebound").await;
    for n in 0..100 {
        let mut outcomes = Vec::new();
        for m in 0..100 {
            let command = message(&format!("c-{}", n * 100 + m), Some(DEVICE_BOUND), "x");
            outcomes.push(commands.send_batchable(command).await.expect("sent"));
        }
        for outcome in outcomes {
            assert!(matches!(timeout(SOON, outcome).await.expect("in time"), Ok(Outcome::Accepted(_))));
        }
    }
    let mut device = connect(&hub).await;
    let mut inbox = device.receiver("inbox", DEVICE_BOUND).await;
    for n in 0..10_000 {
        let command = receive(&mut inbox).await;
        let id = command.properties.and_then(|properties| properties.message_id);
        assert_eq!(id, Some(MessageId::String(format!("c-{n}"))));
    }
}

#[tokio::test]
async fn a_second_inbox_steals_the_first_across_connections() {
    let hub = hub_with(HubConfig::default(), &["d"]);
    let (mut one, mut other) = (connect(&hub).await, connect(&hub).await);
    let mut first = one.receiver("inbox", DEVICE_BOUND).await;
    let _second = other.receiver("inbox", DEVICE_BOUND).await;
    let error = timeout(SOON, first.recv::<Body<Value>>()).await.expect("in time").expect_err("no delivery");
    let stolen = ErrorCondition::LinkError(LinkError::Stolen);
    assert!(format!("{error:?}").contains(&format!("{stolen:?}")), "{error:?}");
}

#[tokio::test]
async fn a_twin_is_read_patched_and_watched() {
    let hub = hub_with(HubConfig::default(), &["d"]);
    let mut device = connect(&hub).await;
    let (mut requests, mut answers) = device.pair("/devices/d/twin", "twin:1").await;
    let mut ask = async |operation: &str, resource: Option<&str>, body: &str| {
        let mut annotations = MessageAnnotations::builder().insert("operation", operation);
        if let Some(resource) = resource {
            annotations = annotations.insert("resource", resource);
        }
        let request = Message::builder()
            .message_annotations(annotations.build())
            .properties(Properties::builder().correlation_id("Get1".to_owned()).build())
            .data(Data(Binary::from(body.as_bytes().to_vec())))
            .build();
        requests.send(request).await.expect("settled");
        receive(&mut answers).await
    };
    let answer = ask("GET", None, " ").await;
    assert_eq!(annotation(&answer, "status"), Some(Value::Int(200)));
    let twin: serde_json::Value = serde_json::from_slice(&body(&answer)).expect("JSON");
    assert_eq!(twin["desired"]["$version"], 1);
    let answer = ask("PATCH", Some("/properties/reported"), r#"{"temperature":21}"#).await;
    assert_eq!(annotation(&answer, "version"), Some(Value::Long(2)));
    assert_eq!(answer.properties.and_then(|p| p.correlation_id), Some(MessageId::String("Get1".into())));
    let answer = ask("PUT", Some("/notifications/twin/properties/desired"), "").await;
    assert_eq!(annotation(&answer, "status"), Some(Value::Int(200)));

    let desired = serde_json::json!({"interval": 5}).as_object().cloned();
    let change = TwinChange { tags: None, desired };
    let identity = Identity::device("d");
    hub.domain().twins.patch(&identity, &change, &IfMatch::Any, hub.domain().clock.now_ms()).expect("a twin");
    let notification: serde_json::Value = serde_json::from_slice(&body(&receive(&mut answers).await)).expect("JSON");
    assert_eq!(notification, serde_json::json!({"interval": 5, "$version": 2}));
}

#[tokio::test]
async fn a_method_is_called_and_answered() {
    let hub = hub_with(HubConfig::default(), &["d"]);
    let mut device = connect(&hub).await;
    let (mut answers, mut calls) = device.pair("/devices/d/methods/devicebound", "methods:1").await;
    let request = MethodRequest {
        name: "reboot".to_owned(),
        payload: Bytes::from_static(b"{}"),
        connect_timeout: SOON,
        response_timeout: SOON,
    };
    let domain = hub.domain().clone();
    let caller = tokio::spawn(async move { domain.methods.invoke(&Identity::device("d"), request).await });
    let call = receive(&mut calls).await;
    let name = call.application_properties.as_ref().and_then(|properties| properties.get("IoThub-methodname"));
    assert_eq!(name, Some(&SimpleValue::String("reboot".to_owned())));
    let id = call.properties.and_then(|properties| properties.correlation_id).expect("a correlation-id");
    let answer = Message::builder()
        .properties(Properties::builder().correlation_id(id).build())
        .application_properties(ApplicationProperties::builder().insert("IoThub-status", 200_i32).build())
        .data(Data(Binary::from(b"\"done\"".to_vec())))
        .build();
    answers.send(answer).await.expect("settled");
    let result = timeout(SOON, caller).await.expect("in time").expect("no panic").expect("an answer");
    assert_eq!((result.status, &result.payload[..]), (200, &b"\"done\""[..]));
}

#[tokio::test]
async fn telemetry_is_read_from_its_partition_behind_a_selector() {
    let hub = hub_with(HubConfig::default(), &["d"]);
    let mut device = connect(&hub).await;
    let mut sender = device.sender("t", "/devices/d/messages/events").await;
    for n in 0..5 {
        sender.send(message(&format!("m-{n}"), None, "x")).await.expect("an outcome");
    }
    let partition = hub.domain().telemetry.partition_of(&Identity::device("d"));
    let selector = Described {
        descriptor: Descriptor::Name(Symbol::from("apache.org:selector-filter:string")),
        value: Value::String("amqp.annotation.x-opt-sequence-number > '2'".to_owned()),
    };
    let source = Source::builder()
        .address(format!("/messages/events/ConsumerGroups/$Default/Partitions/{partition}"))
        .add_to_filter("apache.org:selector-filter:string", selector)
        .build();
    let mut back_end = connect(&hub).await;
    let mut reader = back_end.receiver_of("reader", source).await;
    let event = receive(&mut reader).await;
    assert_eq!(annotation(&event, "x-opt-sequence-number"), Some(Value::Long(3)));
    assert_eq!(annotation(&event, "iothub-connection-device-id"), Some(Value::String("d".to_owned())));
    sender.send(message("m-5", None, "x")).await.expect("an outcome");
    receive(&mut reader).await;
    let event = receive(&mut reader).await;
    assert_eq!(event.properties.and_then(|p| p.message_id), Some(MessageId::String("m-5".to_owned())));
}

#[tokio::test]
async fn faults_end_links_and_connections_of_clients_that_are_there() {
    let hub = hub_with(HubConfig::default(), &["d"]);
    let mut client = connect(&hub).await;
    let mut sender = client.sender("t", "/devices/d/messages/events").await;
    hub.inject(Fault::new(Action::Detach { condition: "amqp:link:detach-forced".into(), redirect: None }).device("d"));
    let detached = timeout(SOON, sender.on_detach()).await.expect("in time");
    assert!(format!("{detached:?}").contains("DetachForced"), "{detached:?}");
    hub.inject(Fault::new(Action::CloseConnection { condition: Some("amqp:connection:forced".into()) }));
    let closed = timeout(SOON, client.connection.on_close()).await.expect("in time");
    assert!(format!("{closed:?}").contains("ConnectionForced"), "{closed:?}");
}

#[tokio::test]
async fn idle_time_outs_of_both_sides_are_kept_over_a_socket() {
    let amqp = AmqpSettings { idle_timeout: Duration::from_millis(400), ..AmqpSettings::default() };
    let hub = hub_with(HubConfig { amqp, ..HubConfig::default() }, &["d"]);
    let stream = TcpStream::connect(hub.addresses().amqp.expect("asked for")).await.expect("the hub listens");
    let builder = Connection::builder().container_id("client").sasl_profile(owner(&hub)).idle_time_out(400_u32);
    let mut connection = builder.open_with_stream(stream).await.expect("OPEN");
    let mut session = Session::begin(&mut connection).await.expect("BEGIN");
    let mut sender = fe2o3_amqp::Sender::attach(&mut session, "t", "/devices/d/messages/events").await.expect("ATTACH");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let outcome = sender.send(message("m", None, "x")).await.expect("still open");
    assert!(matches!(outcome, Outcome::Accepted(_)));
}

/// A self-signed certificate: its DER form, its key.
fn certificate(name: &str) -> rcgen::CertifiedKey<rcgen::KeyPair> {
    rcgen::generate_simple_self_signed(vec![name.to_owned()]).expect("a certificate")
}

fn register_certificate(hub: &Hub, id: &str, thumbprint: String) {
    let authentication = Authentication::SelfSigned { primary: Some(thumbprint), secondary: None };
    let registration = Registration { authentication, ..Registration::new(Identity::device(id)) };
    hub.domain().create_identity(registration).expect("id is new");
}

async fn with_certificate(hub: &Hub, shown: &rcgen::CertifiedKey<rcgen::KeyPair>) -> Client {
    let key = rustls::pki_types::PrivateKeyDer::try_from(shown.signing_key.serialize_der()).expect("a key");
    let stream = tls(hub, Some((shown.cert.der().clone(), key))).await;
    open(stream, SaslProfile::Anonymous).await
}

#[tokio::test]
async fn a_certificate_by_its_thumbprint_admits_its_own_device_and_no_other() {
    let hub = hub_with(HubConfig::default(), &["keyed"]);
    let shown = certificate("d");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, shown.cert.der());
    let thumbprint = digest.as_ref().iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02X}"));
    register_certificate(&hub, "d", thumbprint);
    register_certificate(&hub, "e", "A".repeat(64));
    let mut client = with_certificate(&hub, &shown).await;
    let mut sender = client.sender("t", "/devices/d/messages/events").await;
    assert!(matches!(sender.send(message("m", None, "x")).await, Ok(Outcome::Accepted(_))));
    for other in ["e", "keyed"] {
        let address = format!("/devices/{other}/messages/events");
        let refused = fe2o3_amqp::Sender::attach(&mut client.session, other, address).await;
        assert!(refused.is_err(), "{other} is not the certificate's");
    }
    let stored = hub.domain().telemetry.read(hub.domain().telemetry.partition_of(&Identity::device("d")), 0, 1);
    assert_eq!(&*stored[0].event.auth_method, r#"{"scope":"device","type":"x509","issuer":"iothub"}"#);
}
