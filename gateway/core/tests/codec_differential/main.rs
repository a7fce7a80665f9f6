//! Our codec beside three published ones: what one writes, the other reads as the same packet, byte for byte.
//!
//! Where they differ, [`deviations`] says so by name and is itself tested: an entry that no longer holds fails.

use std::collections::BTreeMap;

mod deviations;
mod oracles;

#[path = "../codec_support/mod.rs"]
mod codec_support;

use codec_support::{Chance, Owned, any_packet, spoil};
use gateway_core::codec::{DecodeError, Decoded, Malformed, decode, decode_any};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use deviations::{DEVIATIONS, LAXNESS, Side, deviates};
use oracles::ORACLES;

const LIMIT: usize = 100_000;

/// Spoiled packets per run, each read by four codecs.
const SPOILED_INPUTS: u64 = if cfg!(debug_assertions) { 200_000 } else { 2_000_000 };

proptest! {
    #[test]
    fn every_codec_reads_what_we_write(packet in any_packet()) {
        let bytes = packet.bytes().expect("strategies make legal packets");
        for oracle in ORACLES.iter().filter(|oracle| !deviates(oracle.name, Side::Reads, &packet)) {
            let found = (oracle.read)(&bytes);
            prop_assert_eq!(found.as_ref(), Some(&packet), "{}", oracle.name);
        }
    }

    #[test]
    fn we_read_what_every_codec_writes(packet in any_packet()) {
        let ours = packet.bytes().expect("strategies make legal packets");
        for oracle in ORACLES.iter().filter(|oracle| !deviates(oracle.name, Side::Writes, &packet)) {
            let bytes = (oracle.write)(&packet).expect("no deviation is named for it");
            prop_assert_eq!(&bytes, &ours, "{}", oracle.name);
            let found = read(&bytes);
            prop_assert_eq!(found.as_ref(), Some(&packet), "{}", oracle.name);
        }
    }
}

#[test]
fn no_codec_refuses_or_reads_otherwise_what_we_accept() {
    let packets = sample_of_packets(300);
    let mut chance = Chance(0xd1ff);
    let mut accepted = 0;
    for _ in 0..SPOILED_INPUTS {
        let mut bytes = packets[chance.below(packets.len())].clone();
        spoil(&mut bytes, &mut chance);
        let Ok(Decoded::Packet { packet, consumed }) = decode_any(&bytes, LIMIT) else { continue };
        let packet = Owned::from(packet);
        accepted += 1;
        for oracle in ORACLES.iter().filter(|oracle| !deviates(oracle.name, Side::Reads, &packet)) {
            assert_eq!((oracle.read)(&bytes[..consumed]).as_ref(), Some(&packet), "{} {bytes:02x?}", oracle.name);
        }
    }
    assert!(accepted > SPOILED_INPUTS / 50, "only {accepted} of {SPOILED_INPUTS} still legal");
}

#[test]
fn every_named_deviation_still_deviates() {
    for deviation in DEVIATIONS {
        let packet = (deviation.sample)();
        assert!((deviation.concerns)(&packet), "{}: not a sample of it", deviation.what);
        let ours = packet.bytes().expect("samples are legal packets");
        assert_eq!(read(&ours).as_ref(), Some(&packet), "{}: we read it", deviation.what);
        for oracle in ORACLES.iter().filter(|oracle| deviation.oracles.contains(&oracle.name)) {
            let agrees = match deviation.side {
                Side::Reads => (oracle.read)(&ours).as_ref() == Some(&packet),
                Side::Writes => (oracle.write)(&packet).as_ref() == Some(&ours),
            };
            assert!(!agrees, "{} no longer: {}", oracle.name, deviation.what);
        }
    }
}

#[test]
fn we_refuse_what_others_let_through() {
    for lax in LAXNESS {
        let judge = if lax.broken == Malformed::ServerOnlyType { decode } else { decode_any };
        let ours = judge(lax.bytes, LIMIT);
        assert_eq!(ours, Err(lax.broken.into()), "{}", lax.what);
        for oracle in &ORACLES {
            let accepts = (oracle.read)(lax.bytes).is_some();
            assert_eq!(accepts, lax.accepted_by.contains(&oracle.name), "{}: {}", oracle.name, lax.what);
        }
    }
}

#[test]
fn every_fault_is_either_refused_by_all_or_named_as_laxness() {
    let packets = sample_of_packets(300);
    let mut chance = Chance(0x1ab5);
    let mut unnamed = BTreeMap::new();
    for _ in 0..SPOILED_INPUTS {
        let mut bytes = packets[chance.below(packets.len())].clone();
        spoil(&mut bytes, &mut chance);
        let Err(DecodeError::Malformed(broken)) = decode_any(&bytes, LIMIT) else { continue };
        for oracle in ORACLES.iter().filter(|oracle| !is_named_lax(oracle.name, broken)) {
            if (oracle.read)(&bytes).is_some() {
                unnamed.insert((oracle.name, broken.to_string()), bytes.clone());
            }
        }
    }
    assert!(unnamed.is_empty(), "accepted by others, but not named: {unnamed:02x?}");
}

fn is_named_lax(oracle: &str, broken: Malformed) -> bool {
    LAXNESS.iter().any(|lax| lax.broken == broken && lax.accepted_by.contains(&oracle))
}

/// What we make of one whole packet.
fn read(bytes: &[u8]) -> Option<Owned> {
    match decode_any(bytes, LIMIT) {
        Ok(Decoded::Packet { packet, consumed }) if consumed == bytes.len() => Some(packet.into()),
        _ => None,
    }
}

/// The same packets in every run.
fn sample_of_packets(count: usize) -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let strategy = any_packet();
    let packet = |_| strategy.new_tree(&mut runner).expect("strategies make packets").current();
    (0..count).map(packet).map(|packet| packet.bytes().expect("strategies make legal packets")).collect()
}
