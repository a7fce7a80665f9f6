//! A device's AMQP client: `fe2o3-amqp`, which knows nothing of the hub.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fe2o3_amqp_types::messaging::{ApplicationProperties, Data, Message, Outcome, Properties};
use fe2o3_amqp_types::primitives::{Binary, SimpleValue, Value};
use hub::websocket::WebSocketBytes;
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What AMQP is spoken over.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static> ByteStream for S {}

/// TLS to the address, trusting this authority only.
pub(crate) async fn tls(address: SocketAddr, ca_pem: &str) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for certificate in hub::read_certificates(ca_pem).expect("PEM") {
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

/// The same, upgraded to a WebSocket.
pub(crate) async fn websocket(address: SocketAddr, ca_pem: &str) -> impl ByteStream {
    let stream = TokioIo::new(tls(address, ca_pem).await);
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

/// A connection with one session.
pub(crate) struct Client {
    connection: ConnectionHandle<()>,
    session: SessionHandle<()>,
}

/// OPEN without SASL, then BEGIN.
pub(crate) async fn open<S>(stream: S) -> Client
where
    S: ByteStream,
{
    let builder = Connection::builder().container_id("test").hostname("localhost");
    let mut connection = builder.open_with_stream(stream).await.expect("OPEN");
    let session = Session::begin(&mut connection).await.expect("BEGIN");
    Client { connection, session }
}

impl Client {
    /// `status-code` of the answer.
    pub(crate) async fn put_token(&mut self, token: String) -> SimpleValue {
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

    /// One after the other, each accepted, with `body of {id}`.
    pub(crate) async fn send_telemetry(&mut self, ids: &[&str]) {
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

    pub(crate) async fn close(mut self) {
        self.session.end().await.expect("END");
        self.connection.close().await.expect("CLOSE");
    }
}
