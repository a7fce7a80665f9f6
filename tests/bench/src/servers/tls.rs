//! rustls without its own buffers: what a connection keeps is the bytes of an incomplete record.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    crypto::{CryptoProvider, aws_lc_rs, aws_lc_rs::Ticketer},
    server::{NoServerSessionStorage, ServerConnectionData, UnbufferedServerConnection, WebPkiClientVerifier},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// What is shown to those who connect.
#[derive(clap::Args)]
pub(crate) struct Serving {
    /// PEM chain: speak TLS
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// PEM key
    #[arg(long)]
    key: Option<PathBuf>,
    /// PEM file: a client must show a certificate that one of these signed
    #[arg(long, requires = "certificate")]
    client_ca: Option<PathBuf>,
    /// Give every connection a ticket to resume its session by, and keep nothing of it here
    #[arg(long, requires = "certificate")]
    tickets: bool,
}

impl Serving {
    /// How TLS is spoken; `None` is not at all.
    pub(super) fn config(&self) -> anyhow::Result<Option<Arc<ServerConfig>>> {
        let (Some(certificate), Some(key)) = (&self.certificate, &self.key) else { return Ok(None) };
        let key = PrivateKeyDer::from_pem_slice(&read(key)?)?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let mut config = builder.with_single_cert(certificates(certificate)?, key)?;
        if self.tickets {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.ticketer = Ticketer::new()?;
            config.send_tls13_tickets = 1;
        }
        Ok(Some(Arc::new(config)))
    }
}

/// A connection to the server at `address`, which shows a certificate of the authority in the file `ca`.
pub(super) fn client(ca: &Path, address: SocketAddr) -> anyhow::Result<UnbufferedClientConnection> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    Ok(UnbufferedClientConnection::new(Arc::new(config), address.ip().into())?)
}

fn roots(ca: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    read.with_context(|| format!("{} is not PEM", path.display()))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A connection of either side, as rustls has it.
pub(super) trait Records {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// TLS of one connection: bytes of the socket to plaintext, and the other way round.
pub(super) struct Layer<C> {
    pub(super) connection: C,
    /// Ciphertext of an incomplete record.
    record: Vec<u8>,
}

impl<C: Records> Layer<C> {
    pub(super) fn new(connection: C) -> Self {
        Self { connection, record: Vec::new() }
    }

    /// Takes bytes of the socket: plaintext goes to `plain`, what TLS itself has to say to `out`.
    ///
    /// Returns whether the peer still talks.
    pub(super) fn receive(&mut self, bytes: &mut [u8], plain: &mut Vec<u8>, out: &mut Vec<u8>) -> anyhow::Result<bool> {
        if self.record.is_empty() {
            let (consumed, open) = receive(&mut self.connection, bytes, plain, out)?;
            self.record.extend_from_slice(&bytes[consumed..]);
            return Ok(open);
        }
        let mut record = std::mem::take(&mut self.record);
        record.extend_from_slice(bytes);
        let (consumed, open) = receive(&mut self.connection, &mut record, plain, out)?;
        if consumed < record.len() {
            self.record = record.split_off(consumed);
        }
        Ok(open)
    }

    /// Encrypts `plain` to the end of `out`.
    pub(super) fn send(&mut self, plain: &[u8], out: &mut Vec<u8>) -> anyhow::Result<()> {
        match self.connection.process(&mut []).state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                grow(out, plain.len(), |room| match traffic.encrypt(plain, room) {
                    Ok(written) => Ok(Ok(written)),
                    Err(EncryptError::InsufficientSize(size)) => Ok(Err(size.required_size)),
                    Err(error) => bail!("{error}"),
                })
            }
            other => bail!("cannot write in the state {other:?}"),
        }
    }
}

/// Takes whole records of `incoming`; returns the bytes consumed and whether the peer still talks.
fn receive(
    connection: &mut impl Records,
    incoming: &mut [u8],
    plain: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> anyhow::Result<(usize, bool)> {
    let mut consumed = 0;
    loop {
        let UnbufferedStatus { mut discard, state } = connection.process(&mut incoming[consumed..]);
        let mut again = true;
        let mut open = true;
        match state? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
            }
            ConnectionState::EncodeTlsData(mut data) => {
                grow(out, 0, |room| match data.encode(room) {
                    Ok(written) => Ok(Ok(written)),
                    Err(EncodeError::InsufficientSize(size)) => Ok(Err(size.required_size)),
                    Err(error) => bail!("{error}"),
                })?;
            }
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed | ConnectionState::Closed => {
                open = false;
                again = false;
            }
            _ => again = false,
        }
        consumed += discard;
        if !again {
            return Ok((consumed, open));
        }
    }
}

/// Calls `write` with room at the end of `out`, for `bytes` and what a record adds; more of it if it asks.
fn grow(
    out: &mut Vec<u8>,
    bytes: usize,
    mut write: impl FnMut(&mut [u8]) -> anyhow::Result<Result<usize, usize>>,
) -> anyhow::Result<()> {
    let start = out.len();
    let mut room = (bytes + 64).max(256);
    loop {
        out.resize(start + room, 0);
        match write(&mut out[start..])? {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(required) => room = required,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Place;

    /// Both talk until neither has more to say; returns what the server and the client got.
    fn converse(
        (server, to_server): (&mut Layer<UnbufferedServerConnection>, &mut Vec<u8>),
        (client, to_client): (&mut Layer<UnbufferedClientConnection>, &mut Vec<u8>),
        step: usize,
    ) -> [Vec<u8>; 2] {
        let [mut at_server, mut at_client] = [Vec::new(), Vec::new()];
        while !to_server.is_empty() || !to_client.is_empty() {
            for piece in std::mem::take(to_server).chunks_mut(step) {
                assert!(server.receive(piece, &mut at_server, to_client).unwrap());
            }
            for piece in std::mem::take(to_client).chunks_mut(step) {
                assert!(client.receive(piece, &mut at_client, to_server).unwrap());
            }
        }
        [at_server, at_client]
    }

    #[test]
    fn bytes_pass_both_ways_in_any_split() {
        let place = Place::for_test("tls");
        let [certificate, key] = place.pair();
        let serving = Serving { certificate: Some(certificate), key: Some(key), client_ca: None, tickets: false };
        let config = serving.config().unwrap().unwrap();
        let long: Vec<u8> = (0..40_000_u32).map(|n| n as u8).collect();
        for step in [1, 7, 1000, usize::MAX] {
            let mut server = Layer::new(UnbufferedServerConnection::new(Arc::clone(&config)).unwrap());
            let mut client = Layer::new(super::client(&place.authority(), "127.0.0.1:1".parse().unwrap()).unwrap());
            let [mut to_server, mut to_client] = [Vec::new(), Vec::new()];
            client.receive(&mut [], &mut Vec::new(), &mut to_server).unwrap();
            converse((&mut server, &mut to_server), (&mut client, &mut to_client), step);
            assert!(!server.connection.is_handshaking() && !client.connection.is_handshaking());
            assert_eq!(server.connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
            client.send(&long, &mut to_server).unwrap();
            server.send(&long, &mut to_client).unwrap();
            let got = converse((&mut server, &mut to_server), (&mut client, &mut to_client), step);
            assert!(got.iter().all(|got| *got == long), "in pieces of {step}");
        }
        std::fs::remove_dir_all(&place.directory).unwrap();
    }
}
