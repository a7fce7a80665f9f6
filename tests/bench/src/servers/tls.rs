//! rustls without its own buffers: what a connection keeps is the bytes of an incomplete record.

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use rustls::{
    ServerConfig,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Server configuration from a PEM chain and key.
pub(super) fn config(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(&read(key)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config))
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
            ConnectionState::WriteTraffic(mut traffic) => grow(out, |room| match traffic.encrypt(plain, room) {
                Ok(written) => Ok(Ok(written)),
                Err(EncryptError::InsufficientSize(size)) => Ok(Err(size.required_size)),
                Err(error) => bail!("{error}"),
            }),
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
                grow(out, |room| match data.encode(room) {
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

/// Calls `write` with room at the end of `out`, more of it if it asks.
fn grow(
    out: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> anyhow::Result<Result<usize, usize>>,
) -> anyhow::Result<()> {
    let start = out.len();
    let mut room = 256;
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
