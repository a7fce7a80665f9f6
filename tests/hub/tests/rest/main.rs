//! The REST side as a service sees it (contract §4.3, §10 points 15 and 18).

mod client;

use std::time::Duration;

use bytes::Bytes;
use client::{call, call_with, policy_token, raw, send};
use futures_util::StreamExt;
use hub::domain::{Event, Identity, LinkKey, Listener, Mailbox, MethodResult, iso8601, parse_iso8601};
use hub::{Hub, HubConfig};
use serde_json::{Value, json};

fn hub() -> Hub {
    Hub::start(HubConfig::default()).expect("ports are free")
}

#[tokio::test]
async fn a_device_is_created_read_updated_and_deleted() {
    let hub = hub();
    let created = call(&hub, "PUT /devices/dev1", json!({"deviceId": "dev1"})).await;
    assert_eq!(created.status, 200);
    assert_eq!(created.json["status"], "enabled");
    assert_eq!(created.json["connectionState"], "Disconnected");
    assert_eq!(created.json["authentication"]["type"], "sas");
    assert_eq!(created.json["etag"], created.etag());
    let key = created.json["authentication"]["symmetricKey"]["primaryKey"].clone();
    assert_eq!(key.as_str().map(str::len), Some(44));

    let again = call(&hub, "PUT /devices/dev1", json!({"deviceId": "dev1"})).await;
    assert_eq!((again.status, again.error_code()), (409, "DeviceAlreadyExists"));

    let etag = created.etag();
    let update = json!({"deviceId": "dev1", "status": "disabled", "statusReason": "stolen"});
    let updated = call_with(&hub, "PUT /devices/dev1", &[("if-match", &format!("\"{etag}\""))], update.clone()).await;
    assert_eq!((updated.status, &updated.json["status"]), (200, &json!("disabled")));
    assert_eq!(updated.json["authentication"]["symmetricKey"]["primaryKey"], key, "keys not given stay");
    assert_eq!(updated.json["generationId"], created.json["generationId"]);
    assert!(parse_iso8601(updated.json["statusUpdatedTime"].as_str().expect("text")).is_some_and(|at| at > 0));

    let nobody = call_with(&hub, "PUT /devices/dev2", &[("if-match", "*")], json!({"deviceId": "dev2"})).await;
    assert_eq!((nobody.status, nobody.error_code()), (404, "DeviceNotFound"));
    let stale = call_with(&hub, "PUT /devices/dev1", &[("if-match", &etag)], update).await;
    assert_eq!((stale.status, stale.error_code()), (412, "PreconditionFailed"));

    let unconditional = call(&hub, "DELETE /devices/dev1", Value::Null).await;
    assert_eq!(unconditional.status, 412);
    let deleted = call_with(&hub, "DELETE /devices/dev1", &[("if-match", "*")], Value::Null).await;
    assert_eq!((deleted.status, deleted.json), (204, Value::Null));
    let gone = call(&hub, "GET /devices/dev1", Value::Null).await;
    assert_eq!((gone.status, gone.error_code()), (404, "DeviceNotFound"));
    let message = gone.json["Message"].as_str().expect("text");
    assert!(message.starts_with("ErrorCode:DeviceNotFound;"), "{message}");
}

#[tokio::test]
async fn authentication_data_is_taken_and_given_back_as_registered() {
    let hub = hub();
    let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let sas = json!({"type": "sas", "symmetricKey": {"primaryKey": key, "secondaryKey": key}});
    let thumbprint = json!({"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "ab".repeat(20), "secondaryThumbprint": null}});
    let authority = json!({"type": "certificateAuthority"});
    for (id, authentication, at, expected) in [
        ("sas", &sas, "/symmetricKey/secondaryKey", json!(key)),
        ("own", &thumbprint, "/x509Thumbprint/primaryThumbprint", json!("AB".repeat(20))),
        ("ca", &authority, "/symmetricKey/primaryKey", Value::Null),
    ] {
        let body = json!({"deviceId": id, "authentication": authentication});
        assert_eq!(call(&hub, &format!("PUT /devices/{id}"), body).await.status, 200);
        let read = call(&hub, &format!("GET /devices/{id}"), Value::Null).await;
        assert_eq!(read.json["authentication"]["type"], authentication["type"]);
        assert_eq!(read.json["authentication"].pointer(at), Some(&expected), "{id}");
        let twin = call(&hub, &format!("GET /twins/{id}"), Value::Null).await;
        assert_eq!(twin.json["authenticationType"], authentication["type"]);
    }
    for refused in [
        json!({"type": "sas", "symmetricKey": {"primaryKey": key}}),
        json!({"type": "sas", "symmetricKey": {"primaryKey": "AAAA", "secondaryKey": "AAAA"}}),
        json!({"type": "selfSigned"}),
        json!({"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": "12"}}),
        json!({"type": "unheardOf"}),
    ] {
        let answer = call(&hub, "PUT /devices/x", json!({"deviceId": "x", "authentication": refused})).await;
        assert_eq!((answer.status, answer.error_code()), (400, "ArgumentInvalid"), "{refused}");
    }
}

#[tokio::test]
async fn ids_are_percent_decoded_and_must_agree_with_the_body() {
    let hub = hub();
    let created = call(&hub, "PUT /devices/dev%2B1%3Da%3Ab", json!({"deviceId": "dev+1=a:b"})).await;
    assert_eq!((created.status, &created.json["deviceId"]), (200, &json!("dev+1=a:b")));
    for (path, id) in [("a", "b"), ("a%20b", "a b"), ("a%2Fb", "a/b")] {
        let refused = call(&hub, &format!("PUT /devices/{path}"), json!({"deviceId": id})).await;
        assert_eq!(refused.status, 400, "{path}");
    }
    let no_id = call(&hub, "PUT /devices/a", json!({})).await;
    assert_eq!((no_id.status, no_id.error_code()), (400, "ArgumentInvalid"));
}

#[tokio::test]
async fn modules_belong_to_a_device_and_go_with_it() {
    let hub = hub();
    let module = json!({"deviceId": "dev1", "moduleId": "mod1", "managedBy": "me"});
    let orphan = call(&hub, "PUT /devices/dev1/modules/mod1", module.clone()).await;
    assert_eq!((orphan.status, orphan.error_code()), (404, "DeviceNotFound"));
    hub.add_device("dev1").expect("new");
    let created = call(&hub, "PUT /devices/dev1/modules/mod1", module.clone()).await;
    assert_eq!(
        (created.status, &created.json["moduleId"], &created.json["managedBy"]),
        (200, &json!("mod1"), &json!("me"))
    );
    let again = call(&hub, "PUT /devices/dev1/modules/mod1", module).await;
    assert_eq!((again.status, again.error_code()), (409, "ModuleAlreadyExistsOnDevice"));
    let list = call(&hub, "GET /devices/dev1/modules", Value::Null).await;
    assert_eq!(list.json.as_array().map(Vec::len), Some(1));
    let twin = call(&hub, "GET /twins/dev1/modules/mod1", Value::Null).await;
    assert_eq!((twin.status, &twin.json["moduleId"]), (200, &json!("mod1")));
    call_with(&hub, "DELETE /devices/dev1", &[("if-match", "*")], Value::Null).await;
    let gone = call(&hub, "GET /devices/dev1/modules/mod1", Value::Null).await;
    assert_eq!((gone.status, gone.error_code()), (404, "ModuleNotFound"));
}

#[tokio::test]
async fn devices_are_listed_and_counted() {
    let hub = hub();
    for id in ["c", "a", "b"] {
        hub.add_device(id).expect("new");
    }
    hub.domain().registry.link_attached(&Identity::device("b"), 1);
    let list = call(&hub, "GET /devices?top=2", Value::Null).await;
    let ids: Vec<&str> =
        list.json.as_array().expect("a list").iter().filter_map(|device| device["deviceId"].as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
    assert_eq!(call(&hub, "GET /devices?top=0", Value::Null).await.status, 400);
    let devices = call(&hub, "GET /statistics/devices", Value::Null).await;
    assert_eq!(devices.json, json!({"totalDeviceCount": 3, "enabledDeviceCount": 3, "disabledDeviceCount": 0}));
    let service = call(&hub, "GET /statistics/service", Value::Null).await;
    assert_eq!(service.json, json!({"connectedDeviceCount": 1}));
    let connected = call(&hub, "GET /devices/b", Value::Null).await;
    assert_eq!(connected.json["connectionState"], "Connected");
}

#[tokio::test]
async fn a_twin_is_patched_and_replaced_under_its_etag() {
    let hub = hub();
    hub.add_device("dev1").expect("new");
    let fresh = call(&hub, "GET /twins/dev1", Value::Null).await;
    assert_eq!((fresh.status, &fresh.json["properties"]["desired"]["$version"]), (200, &json!(1)));
    let patch = json!({"tags": {"site": "a"}, "properties": {"desired": {"rate": 5, "old": true}}});
    let tag = format!("\"{}\"", fresh.etag());
    let patched = call_with(&hub, "PATCH /twins/dev1", &[("if-match", &tag)], patch).await;
    assert_eq!(patched.status, 200);
    assert_eq!(patched.json["properties"]["desired"]["rate"], 5);
    assert!(patched.json["properties"]["desired"]["$metadata"]["rate"]["$lastUpdated"].is_string());
    assert_eq!(patched.json["tags"], json!({"site": "a"}));
    assert_eq!(patched.json["version"], 2);

    let stale = call_with(&hub, "PATCH /twins/dev1", &[("if-match", &tag)], json!({"tags": {}})).await;
    assert_eq!((stale.status, stale.error_code()), (412, "PreconditionFailed"));
    let inner: Value = serde_json::from_str(stale.json["Message"].as_str().expect("text")).expect("JSON in Message");
    assert_eq!(inner["errorCode"], 412_001);

    let whole = json!({"properties": {"desired": {"rate": 6, "$version": 9, "$metadata": {}}}});
    let replaced = call_with(&hub, "PUT /twins/dev1", &[("if-match", "*")], whole).await;
    assert_eq!(replaced.json["properties"]["desired"]["$version"], 3);
    assert_eq!(replaced.json["properties"]["desired"].get("old"), None);
    assert_eq!(replaced.json["tags"], json!({}));

    let illegal = call(&hub, "PATCH /twins/dev1", json!({"properties": {"desired": {"a.b": 1}}})).await;
    assert_eq!((illegal.status, illegal.error_code()), (400, "ArgumentInvalid"));
    let large: serde_json::Map<String, Value> = (0..10).map(|n| (format!("k{n}"), json!("x".repeat(4000)))).collect();
    let large = call(&hub, "PATCH /twins/dev1", json!({"properties": {"desired": large}})).await;
    assert_eq!(large.status, 413);
    assert_eq!(call(&hub, "GET /twins/nobody", Value::Null).await.status, 404);
}

#[tokio::test]
async fn a_method_of_a_device_that_is_not_online_is_404103() {
    let hub = hub();
    hub.add_device("dev1").expect("new");
    let offline = call(&hub, "POST /twins/dev1/methods", json!({"methodName": "reboot"})).await;
    assert_eq!((offline.status, offline.error_code()), (404, "DeviceNotOnline"));
    let inner: Value = serde_json::from_str(offline.json["Message"].as_str().expect("text")).expect("JSON in Message");
    assert_eq!(inner["errorCode"], 404_103);
    let unknown = call(&hub, "POST /twins/nobody/methods", json!({"methodName": "reboot"})).await;
    assert_eq!((unknown.status, unknown.error_code()), (404, "DeviceNotFound"));
}

#[tokio::test]
async fn a_method_is_answered_by_the_device_or_times_out_with_504() {
    let hub = hub();
    hub.add_device("dev1").expect("new");
    let (device, mailbox) = (Identity::device("dev1"), Mailbox::new());
    let link = Listener::new(&mailbox, LinkKey(1));
    hub.domain().methods.register(&device, link.clone());
    let answering = async {
        mailbox.ready().await;
        let called = hub.domain().methods.take_calls(&device, &link).remove(0);
        assert_eq!((called.name.as_str(), &called.payload[..]), ("reboot", &br#"{"in":1}"#[..]));
        let result = MethodResult { status: 207, payload: Bytes::from_static(br#"{"out":2}"#) };
        assert!(hub.domain().methods.respond(&device, called.id, result));
    };
    let request = json!({"methodName": "reboot", "payload": {"in": 1}, "responseTimeoutInSeconds": 5});
    let (answer, ()) = tokio::join!(call(&hub, "POST /twins/dev1/methods", request.clone()), answering);
    assert_eq!((answer.status, answer.json), (200, json!({"status": 207, "payload": {"out": 2}})));

    let late = call(&hub, "POST /twins/dev1/methods", request).await;
    assert_eq!((late.status, late.error_code()), (504, "GatewayTimeout"));
}

#[tokio::test]
async fn a_token_must_be_there_be_good_and_permit_the_operation() {
    let hub = hub();
    let device = hub.add_device("dev1").expect("new");
    let key = device.rsplit_once("SharedAccessKey=").map(|(_, key)| key).expect("a key");
    let key = hub::domain::SharedKey::parse(key).expect("base64");
    let own = hub::domain::sign("localhost/devices/dev1", &key, None, 4_000_000_000);
    let (read, write, service) = ("GET /devices/dev1", "PUT /devices/dev2", "GET /twins/dev1");
    let policy = |name: &str| policy_token(&hub, name);
    for (request, token, expected) in [
        (read, String::new(), 401),
        (read, "nonsense".to_owned(), 401),
        (read, own.clone(), 401),
        (service, own, 401),
        (read, policy("registryRead"), 200),
        (write, policy("registryRead"), 401),
        (write, policy("registryReadWrite"), 200),
        (service, policy("registryReadWrite"), 401),
        (service, policy("service"), 200),
        (read, policy("service"), 401),
        (read, policy("device"), 401),
        (read, policy("iothubowner"), 200),
    ] {
        let answer = call_with(&hub, request, &[("authorization", &token)], json!({"deviceId": "dev2"})).await;
        assert_eq!(answer.status, expected, "{request}");
        assert_eq!(answer.error_code(), if expected == 401 { "IotHubUnauthorized" } else { "" });
    }
    hub.domain().clock.advance(Duration::from_hours(24 * 365 * 80));
    assert_eq!(call(&hub, read, Value::Null).await.status, 401, "expired");
}

#[tokio::test]
async fn what_is_no_request_of_the_hub_is_refused_and_the_hub_goes_on() {
    let hub = hub();
    let token = policy_token(&hub, "iothubowner");
    let owner = [("authorization", token.as_str())];
    for (request, expected) in [
        ("GET /nothing?api-version=2021-04-12", 404),
        ("GET /?api-version=2021-04-12", 404),
        ("GET /devices/a/b/c/d?api-version=2021-04-12", 404),
        ("POST /devices/query?api-version=2021-04-12", 405),
        ("PATCH /devices/a?api-version=2021-04-12", 405),
        ("GET /devices", 400),
        ("GET /devices?api-version=tomorrow", 400),
        ("GET /devices/%FF?api-version=2021-04-12", 400),
        ("PUT /devices/a?api-version=2021-04-12", 400),
    ] {
        assert_eq!(raw(&hub, request, &owner, b"not JSON".to_vec()).await.status, expected, "{request}");
    }
    let large = raw(&hub, "PUT /devices/a?api-version=2021-04-12", &owner, vec![b' '; 256 * 1024 + 1]).await;
    assert_eq!((large.status, large.error_code()), (413, "MessageTooLarge"));
    assert_eq!(call(&hub, "GET /devices", Value::Null).await.json, json!([]));
}

#[tokio::test]
async fn keywords_of_paths_are_case_insensitive_and_targets_may_be_absolute() {
    let hub = hub();
    hub.add_device("dev1").expect("new");
    assert_eq!(call(&hub, "GET /Devices/dev1", Value::Null).await.status, 200);
    assert_eq!(call(&hub, "GET /devices/DEV1", Value::Null).await.status, 404);
    assert_eq!(call(&hub, "GET https://localhost/devices/dev1", Value::Null).await.status, 200);
}

fn event(device: &str, body: &[u8]) -> Event {
    Event {
        identity: Identity::device(device),
        generation_id: "1".into(),
        auth_method: "{}".into(),
        source: "Telemetry",
        model_id: None,
        properties: fe2o3_amqp_types::messaging::Properties::builder().message_id("m1".to_owned()).build(),
        application_properties: fe2o3_amqp_types::messaging::ApplicationProperties::builder().insert("k", "v").build(),
        annotations: fe2o3_amqp_types::messaging::annotations::Annotations::default(),
        body: Bytes::copy_from_slice(body),
    }
}

#[tokio::test]
async fn telemetry_can_be_read_and_followed_as_lines_of_json() {
    let hub = hub();
    let log = &hub.domain().telemetry;
    log.append(event("a", b"first"), 1_700_000_000_000);
    log.append(event("b", &[0xff]), 1_700_000_000_000);
    let read = raw(&hub, "GET /telemetry?device=a", &[], vec![]).await;
    assert_eq!(read.json["body"], "first");
    assert_eq!(read.json["messageId"], "m1");
    assert_eq!(read.json["properties"], json!({"k": "v"}));
    assert_eq!(read.json["enqueuedTimeUtc"], iso8601(1_700_000_000_000));
    let binary = raw(&hub, "GET /telemetry?device=b", &[], vec![]).await;
    assert_eq!((&binary.json["bodyBase64"], binary.json.get("body")), (&json!("/w=="), None));

    let following = send(&hub, "GET /telemetry?follow&from=latest", &[], vec![]).await;
    let mut lines = axum::body::Body::new(following.into_body()).into_data_stream();
    log.append(event("a", b"second"), 1_700_000_000_001);
    let line = lines.next().await.expect("stays open").expect("a line");
    let line: Value = serde_json::from_slice(&line).expect("JSON");
    assert_eq!((&line["body"], &line["deviceId"]), (&json!("second"), &json!("a")));
}

#[tokio::test]
async fn faults_are_posted_listed_and_removed() {
    let hub = hub();
    let posted = raw(&hub, "POST /faults", &[], br#"{"what":"release","device":"a*","count":2}"#.to_vec()).await;
    assert_eq!((posted.status, &posted.json), (200, &json!({"id": 1})));
    let device = Identity::device("ab");
    assert!(hub.domain().faults.decide(hub::domain::Point::Telemetry, Some(&device)).is_some());
    let listed = raw(&hub, "GET /faults", &[], vec![]).await;
    assert_eq!((&listed.json[0]["what"], &listed.json[0]["struck"]), (&json!("release"), &json!(1)));
    assert_eq!(raw(&hub, "POST /faults", &[], br#"{"what":"relase"}"#.to_vec()).await.status, 400);
    assert_eq!(raw(&hub, "DELETE /faults/1", &[], vec![]).await.status, 204);
    assert_eq!(raw(&hub, "DELETE /faults/1", &[], vec![]).await.status, 404);
    assert_eq!(raw(&hub, "GET /faults", &[], vec![]).await.json, json!([]));
}

#[tokio::test]
async fn a_hub_that_refuses_to_listen_listens_again_on_the_same_port() {
    let hub = hub();
    let posted = raw(&hub, "POST /faults", &[], br#"{"what":"refuse-listen","ms":300}"#.to_vec()).await;
    assert_eq!(posted.status, 200);
    let addresses = hub.addresses();
    let refused = async {
        while tokio::net::TcpStream::connect(addresses.amqps).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_millis(250), refused).await.expect("refuses soon");
    let back = async {
        while tokio::net::TcpStream::connect(addresses.https).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), back).await.expect("listens again");
    assert_eq!(call(&hub, "GET /devices", Value::Null).await.status, 200);
}

#[tokio::test]
async fn a_websocket_needs_the_path_and_the_subprotocol_of_amqp() {
    let hub = hub();
    let upgrade = |protocol| {
        [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", protocol),
        ]
    };
    for (target, protocol, expected) in [
        ("/$iothub/websocket", "AMQPWSB10", 101),
        ("/$IoTHub/WebSocket?iothub-no-client-cert=true", "AMQPWSB10", 101),
        ("https://localhost/$iothub/websocket?iothub-no-client-cert=true", "AMQPWSB10", 101),
        ("/$iothub/websocket", "mqtt", 400),
        ("/elsewhere", "AMQPWSB10", 404),
    ] {
        let answer = send(&hub, &format!("GET {target}"), &upgrade(protocol), vec![]).await;
        assert_eq!(answer.status().as_u16(), expected, "{target} {protocol}");
        if expected == 101 {
            assert_eq!(answer.headers()["sec-websocket-protocol"], "AMQPWSB10");
            assert_eq!(answer.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        }
    }
    let plain = raw(&hub, "GET /$iothub/websocket", &[], vec![]).await;
    assert_eq!(plain.status, 400);
}

#[test]
fn a_stopped_hub_frees_its_ports() {
    let hub = hub();
    let addresses = hub.addresses();
    hub.stop();
    let config =
        HubConfig { amqps_port: addresses.amqps.port(), https_port: addresses.https.port(), ..HubConfig::default() };
    assert_eq!(Hub::start(config).expect("free again").addresses(), addresses);
}
