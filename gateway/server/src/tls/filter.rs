//! One TLS connection as a filter: bytes of the socket in, plaintext out, and the other way round.
//!
//! It holds no buffer: the caller keeps an incomplete record, and both plaintext and records go into buffers that all
//! connections of a core share. (A buffered rustls connection keeps 4 KiB for life.)

use std::sync::Arc;

use rustls::{
    Error, ServerConfig,
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

    /// The device's certificate and those it sent along.
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
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
                    // its reassembly refers to the bytes behind `discard`: it must see exactly those
                    let rest = raw.get_mut(opened.used + discard..).unwrap_or_default();
                    self.append_alert(rest, reply);
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
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => TransportFault::ClientCertificate,
            _ if self.established => TransportFault::TlsRecord,
            _ => TransportFault::TlsHandshake,
        }
    }

    /// The alert that says what was wrong, if there is one: everything before it is in `reply` already.
    fn append_alert(&mut self, rest: &mut [u8], reply: &mut Vec<u8>) {
        if let UnbufferedStatus { state: Ok(state @ ConnectionState::EncodeTlsData(_)), .. } =
            self.connection.process_tls_records(rest)
        {
            step(state, reply);
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

#[cfg(test)]
mod tests {
    use std::{io::Read, io::Write, sync::Arc};

    use rustls::{ClientConfig, ClientConnection, ServerConfig, crypto::aws_lc_rs, version};
    use rustls_pki_types::ServerName;

    use super::TlsFilter;
    use crate::{
        metrics::TransportFault,
        tls::config::{self, ClientAuth, Serving},
    };

    struct World {
        server: Arc<ServerConfig>,
        client: Arc<ClientConfig>,
    }

    impl World {
        fn new(tls12: bool) -> Self {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate =
                rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
            let (pem, key_pem) = (certificate.pem(), key.serialize_pem());
            let serving = Serving::from_pem(pem.as_bytes(), key_pem.as_bytes(), 1_800_000_000).unwrap();
            let ca = config::verifier(config::client_ca(pem.as_bytes()).unwrap(), ClientAuth::Optional).unwrap();
            let server = config::server_config(&serving, Some(ca), config::new_ticketer().unwrap()).unwrap();
            let versions = if tls12 { &[&version::TLS12][..] } else { &[&version::TLS13][..] };
            let mut roots = rustls::RootCertStore::empty();
            roots.add(certificate.der().clone()).unwrap();
            let client = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            Self { server, client: Arc::new(client) }
        }
    }

    /// A filter as a connection uses it: keeps the incomplete record, gets bytes in pieces.
    struct Peer {
        filter: TlsFilter,
        incomplete: Vec<u8>,
        plain: Vec<u8>,
        wire: Vec<u8>,
        client_got: Vec<u8>,
    }

    impl Peer {
        fn new(world: &World) -> Self {
            let filter = TlsFilter::new(Arc::clone(&world.server)).unwrap();
            Self { filter, incomplete: Vec::new(), plain: Vec::new(), wire: Vec::new(), client_got: Vec::new() }
        }

        fn take(&mut self, bytes: &[u8], step: usize) -> Result<(), TransportFault> {
            for piece in bytes.chunks(step) {
                let mut raw = std::mem::take(&mut self.incomplete);
                raw.extend_from_slice(piece);
                let opened = self.filter.open(&mut raw, &mut self.plain, &mut self.wire)?;
                self.incomplete = raw.split_off(opened.used);
            }
            Ok(())
        }
    }

    /// Moves bytes both ways until nothing moves; `change` may spoil what the client sends.
    fn converse(
        client: &mut ClientConnection,
        peer: &mut Peer,
        step: usize,
        change: &mut impl FnMut(&mut Vec<u8>),
    ) -> Result<(), TransportFault> {
        loop {
            let mut sent = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut sent).unwrap();
            }
            change(&mut sent);
            if sent.is_empty() && peer.wire.is_empty() {
                return Ok(());
            }
            let taken = peer.take(&sent, step);
            let mut wire = std::mem::take(&mut peer.wire);
            let mut rest = wire.as_mut_slice() as &[u8];
            while !rest.is_empty() && client.read_tls(&mut rest).unwrap() > 0 {
                if client.process_new_packets().is_err() {
                    return taken;
                }
                // nothing more for now is an error of this reader
                let _more = client.reader().read_to_end(&mut peer.client_got);
            }
            taken?;
        }
    }

    #[test]
    fn plaintext_passes_both_ways_in_any_split_under_both_versions() {
        for tls12 in [true, false] {
            let world = World::new(tls12);
            for step in [1, 3, 100, usize::MAX] {
                let name = ServerName::try_from("localhost").unwrap();
                let mut client = ClientConnection::new(Arc::clone(&world.client), name).unwrap();
                let mut peer = Peer::new(&world);
                converse(&mut client, &mut peer, step, &mut |_| {}).unwrap();
                assert!(peer.filter.is_established());
                // more than one record each way
                let long: Vec<u8> = (0..40_000_u32).map(|n| n as u8).collect();
                client.writer().write_all(&long).unwrap();
                converse(&mut client, &mut peer, step, &mut |_| {}).unwrap();
                assert_eq!(peer.plain, long, "tls12 {tls12}, step {step}");
                peer.filter.seal(&mut peer.incomplete, &long, &mut peer.wire).unwrap();
                peer.filter.seal_close(&mut peer.incomplete, &mut peer.wire);
                converse(&mut client, &mut peer, step, &mut |_| {}).unwrap();
                assert_eq!(peer.client_got, long, "tls12 {tls12}, step {step}");
            }
        }
    }

    #[test]
    fn spoiled_bytes_anywhere_end_in_a_fault_and_never_in_a_panic() {
        let worlds = [World::new(true), World::new(false)];
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut next = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below.max(1)
        };
        let mut faults = 0;
        for round in 0..600 {
            let world = &worlds[round % 2];
            let name = ServerName::try_from("localhost").unwrap();
            let mut client = ClientConnection::new(Arc::clone(&world.client), name).unwrap();
            let mut peer = Peer::new(world);
            let (flight, kind, step) = (next(3), next(4), [1, 7, 64, usize::MAX][next(4)]);
            let mut seen = 0;
            let mut spoil = |bytes: &mut Vec<u8>| {
                if bytes.is_empty() {
                    return;
                }
                if seen == flight {
                    let at = next(bytes.len());
                    match kind {
                        0 => bytes[at] ^= 1 << next(8),
                        1 => bytes.truncate(at),
                        2 => bytes.insert(at, next(256) as u8),
                        _ => bytes.extend((0..next(300)).map(|n| n as u8).collect::<Vec<_>>()),
                    }
                }
                seen += 1;
            };
            let mut end = converse(&mut client, &mut peer, step, &mut spoil);
            if end.is_ok() && !client.is_handshaking() {
                client.writer().write_all(b"hello").unwrap();
                end = converse(&mut client, &mut peer, step, &mut spoil);
            }
            faults += usize::from(end.is_err());
        }
        assert!(faults > 200, "only {faults} faults");
    }
}
