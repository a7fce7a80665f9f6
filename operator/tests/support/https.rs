//! One GET over TLS, as a client that knows whom to trust.

use std::{net::SocketAddr, sync::Arc};

use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, header};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs::default_provider};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::pki::Pair;

/// Asks `address`, whose certificate must be for `name` and of a CA in `bundle`. Status, body and the server's certificate.
pub(crate) async fn get(
    address: SocketAddr,
    name: &str,
    bundle: &[u8],
    shown: Option<Pair>,
    path: &str,
    headers: &[(&str, &str)],
) -> anyhow::Result<(u16, Value, CertificateDer<'static>)> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        roots.add(certificate?)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots);
    let config = match shown {
        Some(pair) => builder.with_client_auth_cert(pair.chain, pair.key)?,
        None => builder.with_no_client_auth(),
    };
    let socket = TcpStream::connect(address).await?;
    let server = ServerName::try_from(name.to_owned())?;
    let stream = TlsConnector::from(Arc::new(config)).connect(server, socket).await?;
    let leaf =
        stream.get_ref().1.peer_certificates().and_then(<[_]>::first).expect("it showed one").clone().into_owned();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut request = Request::get(path).header(header::HOST, name);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((status, serde_json::from_slice(&body)?, leaf))
}
