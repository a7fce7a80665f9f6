//! One TLS connection as a filter: bytes of the socket in, plaintext out, and the other way round.
//!
//! It holds no buffer: the caller keeps an incomplete record, and both plaintext and records go into buffers that all
//! connections of a core share. (A buffered rustls connection keeps 4 KiB for life.)

use std::sync::Arc;

use rustls::{
    CertificateError, Error, ServerConfig,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus},
};
use rustls_pki_types::CertificateDer;

use crate::metrics::TransportFault;

/// More than any version and cipher adds to one record of at most 16 KiB.
const RECORD_OVERHEAD_BYTES: usize = 64;
const RECORD_BYTES_MAX: usize = 16 * 1024;

/// One TLS connection of a device, server side.
pub struct TlsFilter {
    connection: Box<UnbufferedServerConnection>,
    established: bool,
}

/// What [`TlsFilter::open`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// Bytes of the input that are done with; the rest is an incomplete record, to be given again with more behind it.
    pub used: usize,
    /// The peer said that it will send nothing more.
    pub peer_closed: bool,
}

impl TlsFilter {
    /// A connection that waits for its ClientHello.
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self { connection: Box::new(UnbufferedServerConnection::new(config)?), established: false })
    }

    /// Whether the handshake is done.
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// The device's own certificate, if it showed one; signed by the client CA, or the handshake had failed.
    pub fn peer_certificate(&self) -> Option<&CertificateDer<'static>> {
        self.connection.peer_certificates()?.first()
    }

    /// Takes every whole record of `raw`; plaintext is appended to `plain`, what TLS itself has to say to `reply`.
    ///
    /// On an error `reply` may hold an alert that is worth writing before the connection is closed.
    pub fn open(&mut self, raw: &mut [u8], plain: &mut Vec<u8>, reply: &mut Vec<u8>) -> Result<Opened, TransportFault> {
        let mut opened = Opened { used: 0, peer_closed: false };
        loop {
            let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(&mut raw[opened.used..]);
            let more = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record.map_err(|_| TransportFault::TlsRecord)?;
                        plain.extend_from_slice(record.payload);
                        discard += record.discard;
                    }
                    true
                }
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.established = true;
                    false
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::Closed) => false,
                Ok(ConnectionState::PeerClosed) => {
                    opened.peer_closed = true;
                    true
                }
                Ok(other) => step(other, reply),
                Err(error) => {
                    let fault = self.fault(&error);
                    self.append_alert(reply);
                    return Err(fault);
                }
            };
            opened.used += discard;
            if !more {
                return Ok(opened);
            }
        }
    }

    /// Appends `plain` as records to `out`. `incomplete` is what [`Self::open`] left over, if anything.
    pub fn seal(&mut self, incomplete: &mut [u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), TransportFault> {
        self.write(incomplete, out, |traffic, out| {
            let records = plain.len() / RECORD_BYTES_MAX + 1;
            append(out, plain.len() + records * RECORD_OVERHEAD_BYTES, |room| traffic.encrypt(plain, room))
        })
    }

    /// Appends the closing alert to `out`, so that the peer can tell the end from a cut. Best effort.
    pub fn seal_close(&mut self, incomplete: &mut [u8], out: &mut Vec<u8>) {
        let _no_alert_then = self.write(incomplete, out, |traffic, out| {
            append(out, RECORD_OVERHEAD_BYTES, |room| traffic.queue_close_notify(room))
        });
    }

    fn write(
        &mut self,
        incomplete: &mut [u8],
        out: &mut Vec<u8>,
        with: impl FnOnce(&mut Traffic<'_>, &mut Vec<u8>) -> Result<(), EncryptError>,
    ) -> Result<(), TransportFault> {
        loop {
            let UnbufferedStatus { state, .. } = self.connection.process_tls_records(incomplete);
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    return with(&mut traffic, out).map_err(|_| TransportFault::TlsRecord);
                }
                Ok(ConnectionState::PeerClosed) => {}
                Ok(other) => {
                    if !step(other, out) {
                        return Err(TransportFault::TlsRecord);
                    }
                }
                Err(_) => return Err(TransportFault::TlsRecord),
            }
        }
    }

    fn fault(&self, error: &Error) -> TransportFault {
        match error {
            Error::InvalidCertificate(CertificateError::Expired | _) | Error::NoCertificatesPresented
                if !self.established =>
            {
                TransportFault::ClientCertificate
            }
            _ if self.established => TransportFault::TlsRecord,
            _ => TransportFault::TlsHandshake,
        }
    }

    fn append_alert(&mut self, reply: &mut Vec<u8>) {
        while let UnbufferedStatus { state: Ok(state), .. } = self.connection.process_tls_records(&mut []) {
            if !step(state, reply) {
                break;
            }
        }
    }
}

type Traffic<'a> = rustls::unbuffered::WriteTraffic<'a, rustls::server::ServerConnectionData>;

/// Carries out a state that only concerns what TLS itself sends. False: there is nothing to do.
fn step(state: ConnectionState<'_, '_, rustls::server::ServerConnectionData>, out: &mut Vec<u8>) -> bool {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                let from = out.len();
                out.resize(from + size.required_size, 0);
                let written = data.encode(&mut out[from..]).expect("there is as much room as it asked for");
                out.truncate(from + written);
            }
            true
        }
        // written at the end of the turn, with everything else
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            true
        }
        // early data is not offered
        _ => false,
    }
}

/// Grows `out` by what `write` puts into at most `room` bytes.
fn append(
    out: &mut Vec<u8>,
    room: usize,
    write: impl FnOnce(&mut [u8]) -> Result<usize, EncryptError>,
) -> Result<(), EncryptError> {
    let from = out.len();
    out.resize(from + room, 0);
    let written = write(&mut out[from..]);
    out.truncate(from + written.as_ref().map_or(0, |written| *written));
    written.map(|_| ())
}
