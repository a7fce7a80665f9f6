//! `fe2o3-amqp` as a client of the hub: it shares no engine with it.

use std::sync::Arc;

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fe2o3_amqp_types::definitions::Fields;
use fe2o3_amqp_types::messaging::{Message, Properties, Source};
use hub::domain::sign;
use hub::{Hub, HubConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_amqp::Value;
use serde_amqp::primitives::{Binary, Symbol};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Any byte stream a connection can stand on.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static> ByteStream for S {}

pub(crate) struct Client {
    pub(crate) connection: ConnectionHandle<()>,
    pub(crate) session: SessionHandle<()>,
}

/// A hub with these devices, and AMQP without TLS.
pub(crate) fn hub_with(config: HubConfig, devices: &[&str]) -> Hub {
    let hub = Hub::start(HubConfig { amqp_port: Some(0), ..config }).expect("ports are free");
    for device in devices {
        hub.add_device(device).expect("id is new");
    }
    hub
}

/// A policy with all rights, by SASL PLAIN.
pub(crate) fn owner(hub: &Hub) -> SaslProfile {
    let policy = hub.domain().policies.get("iothubowner").expect("policy is there");
    let password = sign("localhost", &policy.primary, Some("iothubowner"), 4_000_000_000);
    SaslProfile::Plain { username: "iothubowner@sas.root.localhost".to_owned(), password }
}

pub(crate) async fn connect(hub: &Hub) -> Client {
    let address = hub.addresses().amqp.expect("asked for");
    let stream = TcpStream::connect(address).await.expect("the hub listens");
    open(stream, owner(hub)).await
}

pub(crate) async fn open(stream: impl ByteStream, profile: SaslProfile) -> Client {
    let builder = Connection::builder().container_id("client").hostname("localhost").sasl_profile(profile);
    let mut connection = builder.open_with_stream(stream).await.expect("OPEN");
    let session = Session::begin(&mut connection).await.expect("BEGIN");
    Client { connection, session }
}

/// TLS with or without a certificate of the client's.
pub(crate) async fn tls(
    hub: &Hub,
    identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    for certificate in hub::read_certificates(hub.ca_pem()).expect("PEM") {
        roots.add(certificate).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => config.with_client_auth_cert(vec![certificate], key).expect("they fit"),
    };
    let stream = TcpStream::connect(hub.addresses().amqps).await.expect("the hub listens");
    let name = ServerName::try_from("localhost").expect("a name");
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("TLS")
}

impl Client {
    pub(crate) async fn sender(&mut self, name: &str, address: &str) -> Sender {
        Sender::attach(&mut self.session, name, address).await.expect("ATTACH")
    }

    pub(crate) async fn receiver(&mut self, name: &str, address: &str) -> Receiver {
        Receiver::attach(&mut self.session, name, address).await.expect("ATTACH")
    }

    pub(crate) async fn receiver_of(&mut self, name: &str, source: Source) -> Receiver {
        Receiver::builder().name(name).source(source).attach(&mut self.session).await.expect("ATTACH")
    }

    /// Both halves of a twin or methods pair.
    pub(crate) async fn pair(&mut self, address: &str, correlation: &str) -> (Sender, Receiver) {
        let mut properties = Fields::new();
        for (name, value) in [("api-version", "2020-09-30"), ("channel-correlation-id", correlation)] {
            properties.insert(Symbol::from(format!("com.microsoft:{name}")), Value::String(value.to_owned()));
        }
        let builder = Sender::builder().name(format!("{correlation} out")).target(address);
        let sender = builder.properties(properties.clone()).attach(&mut self.session).await.expect("ATTACH");
        let builder = Receiver::builder().name(format!("{correlation} in")).source(address);
        let receiver = builder.properties(properties).attach(&mut self.session).await.expect("ATTACH");
        (sender, receiver)
    }

    pub(crate) async fn close(mut self) {
        self.session.end().await.expect("END");
        self.connection.close().await.expect("CLOSE");
    }
}

/// A message with an id, an addressee and a body.
pub(crate) fn message(id: &str, to: Option<&str>, body: &str) -> Message<fe2o3_amqp_types::messaging::Data> {
    let properties =
        Properties { message_id: Some(id.to_owned().into()), to: to.map(str::to_owned), ..Properties::default() };
    Message::builder().properties(properties).data(Binary::from(body.as_bytes().to_vec())).build()
}
