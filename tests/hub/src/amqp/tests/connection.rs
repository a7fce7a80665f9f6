//! Headers, SASL, OPEN, sessions, windows, time-outs, and what breaks them.

use std::time::Duration;

use fe2o3_amqp_types::performatives::{Begin, Open};
use fe2o3_amqp_types::sasl::SaslInit;
use serde_amqp::primitives::Symbol;

use super::peer::*;
use crate::amqp::AmqpSettings;
use crate::amqp::frame::{self, FrameType, Performative};
use crate::domain::{ClientCertificate, Domain, Settings};

const AMQP: &[u8] = b"AMQP\x00\x01\x00\x00";
const SASL: &[u8] = b"AMQP\x03\x01\x00\x00";

fn fresh() -> Peer {
    Peer::on(Domain::new(HUB, Settings::default()).expect("sound"), AmqpSettings::default())
}

/// Speaks SASL up to the outcome; its code.
fn sasl(peer: &mut Peer, mechanism: &str, response: Option<Vec<u8>>) -> u8 {
    peer.write(SASL);
    assert_eq!(peer.take_bytes(8), SASL);
    let mechanisms = frame::take(&mut peer.connection.out, FrameType::Sasl, 512).expect("sound").expect("whole");
    let text = String::from_utf8_lossy(&mechanisms.body).into_owned();
    for offered in ["PLAIN", "ANONYMOUS", "MSSBCBS", "EXTERNAL"] {
        assert!(text.contains(offered), "{text}");
    }
    let init =
        SaslInit { mechanism: Symbol::from(mechanism), initial_response: response.map(Into::into), hostname: None };
    let mut bytes = bytes::BytesMut::new();
    frame::put(&mut bytes, FrameType::Sasl, 0, &init, &[]);
    peer.write(&bytes);
    let outcome = frame::take(&mut peer.connection.out, FrameType::Sasl, 512).expect("sound").expect("whole");
    *outcome.body.last().expect("a code")
}

#[test]
fn amqp_header_is_accepted_without_a_sasl_layer_before_it() {
    let mut peer = fresh();
    peer.write(AMQP);
    assert_eq!(peer.take_bytes(8), AMQP);
    peer.put(0, &open());
    assert!(matches!(peer.frames().as_slice(), [Performative::Open(_)]));
}

#[test]
fn a_header_of_another_protocol_is_answered_with_ours_and_the_end() {
    for header in [b"AMQP\x02\x01\x00\x00", b"AMQP\x00\x00\x09\x01", b"GET / HT"] {
        let mut peer = fresh();
        peer.write(header);
        assert_eq!(peer.take_bytes(8), SASL);
        assert!(peer.connection.has_ended());
    }
}

#[test]
fn sasl_anonymous_and_mssbcbs_are_let_in_and_external_only_with_a_certificate() {
    for (mechanism, code) in [("ANONYMOUS", 0), ("MSSBCBS", 0), ("EXTERNAL", 1), ("SCRAM-SHA-256", 1)] {
        let mut peer = fresh();
        assert_eq!(sasl(&mut peer, mechanism, None), code, "{mechanism}");
        assert_eq!(peer.connection.has_ended(), code != 0);
        if code == 0 {
            peer.write(AMQP);
            assert_eq!(peer.take_bytes(8), AMQP);
        }
    }
}

#[test]
fn sasl_external_is_let_in_with_a_certificate() {
    let domain = Domain::new(HUB, Settings::default()).expect("sound");
    let certificate = ClientCertificate { chain: vec![vec![0].into()] };
    let mut peer = Peer::shown(domain, AmqpSettings::default(), Some(certificate));
    assert_eq!(sasl(&mut peer, "EXTERNAL", None), 0);
}

#[test]
fn sasl_plain_with_a_policy_token_needs_no_cbs() {
    let mut peer = fresh();
    let token = peer.policy_token("iothubowner");
    let response = format!("\0iothubowner@sas.root.hub\0{token}").into_bytes();
    assert_eq!(sasl(&mut peer, "PLAIN", Some(response)), 0);
    peer.write(AMQP);
    peer.put(0, &open());
    peer.put(0, &begin(2048));
    peer.take_bytes(8);
    peer.register("d");
    peer.frames();
    assert_eq!(ending(&peer.attach(0, &sender(0, "t", "/devices/d/messages/events"))), None);
}

#[test]
fn sasl_plain_with_a_wrong_password_is_refused() {
    let mut peer = fresh();
    let response = b"\0iothubowner@sas.root.hub\0SharedAccessSignature sr=x&sig=eA%3D%3D&se=9999999999&skn=iothubowner";
    assert_eq!(sasl(&mut peer, "PLAIN", Some(response.to_vec())), 1);
    assert!(peer.connection.has_ended());
}

#[test]
fn open_announces_the_limits_of_a_second_generation_hub() {
    let mut peer = fresh();
    peer.write(AMQP);
    peer.put(0, &Open { container_id: String::new(), ..open() });
    peer.take_bytes(8);
    let Some(Performative::Open(open)) = peer.frames().pop() else { panic!("no OPEN") };
    assert_eq!((open.channel_max.0, open.max_frame_size.0, open.idle_time_out), (1024, 65_535, Some(240_000)));
}

#[test]
fn amqp_2_4_1_nothing_but_open_may_come_first() {
    let mut peer = fresh();
    peer.write(AMQP);
    peer.put(0, &begin(1));
    assert!(peer.connection.has_ended());
}

#[test]
fn a_silent_peer_is_closed_and_a_heartbeat_keeps_it_open() {
    let mut peer = Peer::connected(AmqpSettings { idle_timeout: Duration::from_secs(10), ..AmqpSettings::default() });
    for _ in 0..5 {
        peer.wait(9_000);
        peer.write(&[0, 0, 0, 8, 2, 0, 0, 0]);
    }
    assert_eq!(ending(&peer.frames()), None);
    peer.wait(12_600);
    assert_eq!(ending(&peer.frames()).as_deref(), Some("CLOSE amqp:resource-limit-exceeded"));
    peer.wait(5_000);
    assert!(peer.connection.has_ended());
}

#[test]
fn heartbeats_go_out_at_half_of_the_peers_idle_time_out() {
    let mut peer = fresh();
    peer.write(AMQP);
    peer.put(0, &Open { idle_time_out: Some(8_000), ..open() });
    peer.take_bytes(8);
    peer.frames();
    peer.wait(3_999);
    assert!(peer.connection.out.is_empty());
    peer.wait(1);
    assert_eq!(peer.take_bytes(8), [0, 0, 0, 8, 2, 0, 0, 0]);
    peer.wait(12_000);
    assert_eq!(peer.connection.out.len(), 24);
}

#[test]
fn an_open_that_does_not_come_ends_the_connection() {
    let mut peer = fresh();
    peer.write(AMQP);
    peer.wait(30_000);
    assert!(peer.connection.has_ended());
}

#[test]
fn a_channel_above_channel_max_is_a_framing_error() {
    let mut peer = Peer::connected(AmqpSettings { channel_max: 3, ..AmqpSettings::default() });
    for channel in 0..=3 {
        peer.begin(channel);
    }
    peer.put(4, &begin(1));
    assert_eq!(ending(&peer.frames()).as_deref(), Some("CLOSE amqp:connection:framing-error"));
}

#[test]
fn a_handle_above_handle_max_is_a_framing_error() {
    let mut peer = Peer::in_session(AmqpSettings { handle_max: 101, ..AmqpSettings::default() });
    let frames = peer.attach(0, &sender(102, "x", "/devices/d/messages/events"));
    assert_eq!(ending(&frames).as_deref(), Some("CLOSE amqp:connection:framing-error"));
}

#[test]
fn frames_that_break_the_framing_close_the_connection() {
    for bytes in [&[0, 0, 0, 7][..], &[0, 1, 0, 0, 2, 0, 0, 0], &[0, 0, 0, 8, 1, 0, 0, 0], &[0, 0, 0, 8, 2, 1, 0, 0]] {
        let mut peer = Peer::connected(AmqpSettings::default());
        peer.write(bytes);
        assert_eq!(ending(&peer.frames()).as_deref(), Some("CLOSE amqp:connection:framing-error"), "{bytes:02x?}");
    }
}

#[test]
fn an_undecodable_frame_of_a_session_ends_the_session_alone() {
    let mut peer = Peer::connected(AmqpSettings::default());
    peer.begin(0);
    peer.begin(1);
    peer.write(&[0, 0, 0, 12, 2, 0, 0, 1, 0x00, 0x53, 0x14, 0x99]);
    assert_eq!(ending(&peer.frames()).as_deref(), Some("END amqp:decode-error"));
    peer.put(1, &sender(0, "late", "$cbs"));
    assert!(peer.frames().is_empty(), "everything is dropped until their END");
    peer.put(1, &end());
    assert!(matches!(peer.attach(0, &sender(0, "cbs", "$cbs")).first(), Some(Performative::Attach(_))));
}

#[test]
fn frames_on_a_channel_without_a_session_close_the_connection() {
    let mut peer = Peer::connected(AmqpSettings::default());
    peer.put(7, &end());
    assert_eq!(ending(&peer.frames()).as_deref(), Some("CLOSE amqp:not-allowed"));
}

#[test]
fn a_channel_and_its_session_can_be_used_again_after_end() {
    let mut peer = Peer::connected(AmqpSettings { channel_max: 0, ..AmqpSettings::default() });
    for _ in 0..3 {
        let Begin { remote_channel, .. } = peer.begin(0);
        assert_eq!(remote_channel, Some(0));
        peer.put(0, &end());
        assert_eq!(ending(&peer.frames()).as_deref(), Some("END"));
    }
}

#[test]
fn our_channel_is_never_the_peers_where_there_is_a_choice() {
    let mut peer = Peer::connected(AmqpSettings::default());
    for channel in 0..4 {
        peer.put(channel, &begin(1));
        let (own, _) = peer.take().pop().expect("BEGIN");
        assert_ne!(own, channel);
    }
}

#[test]
fn amqp_2_5_6_transfers_beyond_the_session_window_end_the_session() {
    let mut peer = Peer::in_session(AmqpSettings { session_window: 10, ..AmqpSettings::default() });
    peer.register("d");
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    for _ in 0..100 {
        // the window is announced in time, so a peer that heeds it never meets its end
        peer.send(0, 0, &message("m", b"x"));
    }
    let flows = peer.frames().iter().filter(|p| matches!(p, Performative::Flow(flow) if flow.handle.is_none())).count();
    assert!(flows >= 10, "{flows} session flows");
}

#[test]
fn close_is_answered_and_then_nothing() {
    let mut peer = Peer::in_session(AmqpSettings::default());
    peer.put(0, &close());
    assert_eq!(ending(&peer.frames()).as_deref(), Some("CLOSE"));
    assert!(peer.connection.has_ended());
}

#[test]
fn a_peer_that_does_not_read_is_not_read_either() {
    let mut peer = Peer::in_session(AmqpSettings { write_buffer_bytes_max: 4096, ..AmqpSettings::default() });
    peer.register("d");
    peer.attach(0, &sender(0, "t", "/devices/d/messages/events"));
    for n in 0..1000 {
        peer.send(0, 0, &message("m", b"x"));
        if !peer.connection.wants_input() {
            assert!(peer.connection.out.len() < 8192, "the buffer is bounded");
            let waiting = peer.connection.input.len();
            peer.send(0, 0, &message("m", b"x"));
            assert!(peer.connection.input.len() > waiting, "frames wait unread");
            let accepted: u32 = outcomes(&peer.frames()).iter().map(|(first, last, ..)| last - first + 1).sum();
            assert_eq!(accepted, n + 2, "nothing was lost");
            return;
        }
    }
    panic!("the write buffer never filled");
}

mod any_bytes {
    use proptest::prelude::*;

    use super::*;

    /// Frames of a usual conversation, as one stream of bytes.
    fn conversation() -> Vec<u8> {
        let mut bytes = bytes::BytesMut::new();
        let out = &mut bytes;
        frame::put(out, FrameType::Amqp, 0, &begin(2048), &[]);
        frame::put(out, FrameType::Amqp, 0, &sender(0, "cbs", "$cbs"), &[]);
        frame::put(out, FrameType::Amqp, 0, &receiver(1, "cbs", "$cbs"), &[]);
        frame::put(out, FrameType::Amqp, 0, &flow(1, 0, 10), &[]);
        frame::put(out, FrameType::Amqp, 0, &transfer(0, 0), &message("m", b"body").encode());
        frame::put(out, FrameType::Amqp, 0, &accept(0, true), &[]);
        frame::put(out, FrameType::Amqp, 0, &detach(0), &[]);
        bytes.to_vec()
    }

    /// The same and its orderly end.
    fn whole_conversation() -> Vec<u8> {
        let mut bytes = bytes::BytesMut::from(&conversation()[..]);
        frame::put(&mut bytes, FrameType::Amqp, 0, &end(), &[]);
        frame::put(&mut bytes, FrameType::Amqp, 0, &close(), &[]);
        bytes.to_vec()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn flipped_bytes_are_answered_or_end_the_connection_but_never_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            split in 1_usize..64,
        ) {
            let mut stream = whole_conversation();
            for (at, byte) in flips {
                let at = at.index(stream.len());
                stream[at] = byte;
            }
            let mut peer = Peer::connected(AmqpSettings::default());
            for piece in stream.chunks(split) {
                peer.write(piece);
                peer.frames();
            }
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut peer = Peer::connected(AmqpSettings::default());
            peer.write(&noise);
            peer.frames();
        }

        #[test]
        fn any_split_of_the_stream_gives_the_same_answers(split in 1_usize..200) {
            // messages of ours go out once all input is read, so only their order may differ
            let answers = |piece: usize| {
                let mut peer = Peer::connected(AmqpSettings::default());
                let mut kinds = Vec::new();
                for piece in conversation().chunks(piece) {
                    peer.write(piece);
                    kinds.extend(peer.frames().iter().map(|frame| format!("{:?}", std::mem::discriminant(frame))));
                }
                kinds.sort();
                kinds
            };
            prop_assert_eq!(answers(split), answers(usize::MAX));
        }
    }
}
