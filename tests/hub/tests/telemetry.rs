//! From a device's AMQP client to what a test reads over HTTPS: the listeners, both transports, the log and the ledger
//! together. The client is `fe2o3-amqp`, which knows nothing of the hub.

use std::sync::Arc;

use axum::body::Body;
use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fe2o3_amqp_types::messaging::{ApplicationProperties, Data, Message, Outcome, Properties};
use fe2o3_amqp_types::primitives::{Binary, SimpleValue, Value};
use hub::domain::{Identity, Kind, Outcome as Seen, Query, SharedKey, sign};
use hub::websocket::WebSocketBytes;
use hub::{Hub, HubConfig};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const EXPIRES: u64 = 4_000_000_000;

async fn tls(hub: &Hub, address: std::net::SocketAddr) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for certificate in hub::read_certificates(hub.ca_pem()).expect("PEM") {
        roots.add(certificate).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.expect("the hub listens");
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS")
}

async fn websocket(hub: &Hub) -> impl AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static {
    let stream = TokioIo::new(tls(hub, hub.addresses().https).await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("HTTP");
    tokio::spawn(async move { connection.with_upgrades().await });
    let request = Request::get("/$iothub/websocket")
        .header("host", "localhost")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header("sec-websocket-protocol", "AMQPWSB10")
        .body(Body::empty())
        .expect("a request");
    let answer = sender.send_request(request).await.expect("an answer");
    assert_eq!(answer.status().as_u16(), 101);
    let upgraded = hyper::upgrade::on(answer).await.expect("upgraded");
    WebSocketBytes::client(TokioIo::new(upgraded)).await
}

struct Client {
    connection: ConnectionHandle<()>,
    session: SessionHandle<()>,
}

async fn open<S>(stream: S) -> Client
where
    S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static,
{
    let builder = Connection::builder().container_id("test").hostname("localhost");
    let mut connection = builder.open_with_stream(stream).await.expect("OPEN");
    let session = Session::begin(&mut connection).await.expect("BEGIN");
    Client { connection, session }
}

impl Client {
    /// `status-code` of the answer.
    async fn put_token(&mut self, token: String) -> SimpleValue {
        let mut sender = Sender::attach(&mut self.session, "cbs-out", "$cbs").await.expect("ATTACH");
        let mut receiver = Receiver::attach(&mut self.session, "cbs-in", "$cbs").await.expect("ATTACH");
        let request = Message::builder()
            .properties(Properties::builder().message_id("t1".to_owned()).reply_to("cbs".to_owned()).build())
            .application_properties(
                ApplicationProperties::builder()
                    .insert("operation", "put-token")
                    .insert("type", "servicebus.windows.net:sastoken")
                    .insert("name", "localhost/devices/dev1")
                    .build(),
            )
            .value(token)
            .build();
        sender.send(request).await.expect("settled");
        let answer = receiver.recv::<Option<Value>>().await.expect("an answer");
        receiver.accept(&answer).await.expect("accepted");
        let properties = answer.message().application_properties.clone().expect("application properties");
        properties.get("status-code").cloned().expect("status-code")
    }

    async fn send_telemetry(&mut self, ids: &[&str]) {
        let mut sender =
            Sender::attach(&mut self.session, "telemetry", "/devices/dev1/messages/events").await.expect("ATTACH");
        for id in ids {
            let message = Message::builder()
                .properties(Properties::builder().message_id((*id).to_owned()).build())
                .data(Data(Binary::from(format!("body of {id}"))))
                .build();
            let outcome = sender.send(message).await.expect("an outcome");
            assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        }
        sender.close().await.expect("DETACH");
    }
}

fn token(hub: &Hub, connection_string: &str) -> String {
    let key = connection_string.rsplit_once("SharedAccessKey=").map(|(_, key)| key).expect("a key");
    let key = SharedKey::parse(key).expect("base64");
    sign(&format!("{}/devices/dev1", hub.domain().host_name), &key, None, EXPIRES)
}

async fn telemetry_arrives<S>(hub: &Hub, connection_string: &str, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static,
{
    let mut client = open(stream).await;
    assert_eq!(client.put_token(token(hub, connection_string)).await, SimpleValue::Int(200));
    client.send_telemetry(&["m-1", "m-2", "m-3"]).await;
    client.session.end().await.expect("END");
    client.connection.close().await.expect("CLOSE");

    let device = Identity::device("dev1");
    let partition = hub.domain().telemetry.partition_of(&device);
    let bodies: Vec<_> =
        hub.domain().telemetry.read(partition, 0, 10).iter().map(|stored| stored.event.body.clone()).collect();
    assert_eq!(bodies, ["body of m-1", "body of m-2", "body of m-3"]);
    let entries = hub.ledger().entries(&Query { kind: Some(Kind::Telemetry), ..Query::default() });
    assert!(entries.iter().all(|entry| entry.outcome == Some(Seen::Accepted) && entry.written), "{entries:?}");
    let counts = hub.ledger().counts(&device);
    assert_eq!((counts.accepted_written, counts.duplicates(), counts.missing(), counts.out_of_order()), (3, 0, 0, 0));
}

#[tokio::test]
async fn telemetry_over_tls_is_stored_accepted_and_in_the_ledger() {
    let hub = Hub::start(HubConfig::default()).expect("ports are free");
    let connection_string = hub.add_device("dev1").expect("new");
    let stream = tls(&hub, hub.addresses().amqps).await;
    telemetry_arrives(&hub, &connection_string, stream).await;
}

#[tokio::test]
async fn telemetry_over_websocket_is_stored_accepted_and_in_the_ledger() {
    let hub = Hub::start(HubConfig::default()).expect("ports are free");
    let connection_string = hub.add_device("dev1").expect("new");
    let stream = websocket(&hub).await;
    telemetry_arrives(&hub, &connection_string, stream).await;
}

#[tokio::test]
async fn telemetry_without_tls_is_stored_accepted_and_in_the_ledger() {
    let hub = Hub::start(HubConfig { amqp_port: Some(0), ..HubConfig::default() }).expect("ports are free");
    let connection_string = hub.add_device("dev1").expect("new");
    let stream = TcpStream::connect(hub.addresses().amqp.expect("asked for")).await.expect("the hub listens");
    telemetry_arrives(&hub, &connection_string, stream).await;
}
