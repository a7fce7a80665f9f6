//! A message of several parts and several frames: frames end where the peer's frame size and window say, and parts where they
//! like (2.5.6, 2.6.14).

use amqp_endpoint::{Config, LinkId};
use fe2o3_amqp_types::performatives::{Flow, Open, Performative};

use crate::peer::{CHANNEL, Room, begin, config, flow, open, read};

/// The smallest frame that a peer may ask for, and the payload that fits into it beside the longest transfer.
const FRAME_BYTES: usize = 512;
const PAYLOAD_BYTES: usize = 472;

fn with_sender(window: u32) -> (Room, LinkId) {
    let small = Open { max_frame_size: (FRAME_BYTES as u32).into(), ..open() };
    let (mut room, session) = Room::begun_with(Config { links_per_session_max: 1, ..config() }, small, begin(Some(0)));
    let link = room.sender(session, 0);
    room.hear(CHANNEL, Flow { incoming_window: window, ..flow() });
    (room, link)
}

/// Payload and `more` of every transfer written since the last time.
fn transfers(room: &mut Room) -> Vec<(Vec<u8>, bool)> {
    let output = std::mem::take(room.endpoint.output());
    let (mut rest, mut transfers) = (&output[..], Vec::new());
    while !rest.is_empty() {
        let size = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        assert!(size <= FRAME_BYTES, "a frame of {size} bytes");
        let (Performative::Transfer(transfer), payload) = read(&rest[8..size]) else { panic!("not a transfer") };
        transfers.push((payload.to_vec(), transfer.more));
        rest = &rest[size..];
    }
    transfers
}

/// Sends `parts` through a window of so many frames, opened anew whenever it has shut; expects full frames and the message.
fn check(parts: &[&[u8]], window: u32) {
    let (mut room, link) = with_sender(window);
    let message = parts.concat();
    let frames = message.len().div_ceil(PAYLOAD_BYTES).max(1);
    let what = || format!("parts of {:?}, window {window}", parts.iter().map(|part| part.len()).collect::<Vec<_>>());
    room.endpoint.send(link, 7, false, 0, parts).unwrap();
    let mut heard = Vec::new();
    loop {
        let came = transfers(&mut room);
        assert!(came.len() <= window as usize, "{}", what());
        heard.extend(came);
        if heard.len() >= frames {
            break;
        }
        assert_eq!(heard.len() % window as usize, 0, "{}: the window was not used", what());
        let next_incoming_id = Some(heard.len() as u32);
        room.hear(CHANNEL, Flow { next_incoming_id, incoming_window: window, ..flow() });
    }
    let more: Vec<bool> = heard.iter().map(|(_, more)| *more).collect();
    assert_eq!(more, (1..=frames).map(|n| n < frames).collect::<Vec<_>>(), "{}", what());
    assert!(heard[..frames - 1].iter().all(|(payload, _)| payload.len() == PAYLOAD_BYTES), "{}", what());
    assert_eq!(heard.into_iter().flat_map(|(payload, _)| payload).collect::<Vec<_>>(), message, "{}", what());
}

#[test]
fn a_part_may_end_at_every_offset_of_every_frame() {
    let message: Vec<u8> = (0..2 * PAYLOAD_BYTES + 50).map(|n| (n % 251) as u8).collect();
    for window in [1, 2, 100] {
        for at in 0..=message.len() {
            let (front, back) = message.split_at(at);
            check(&[front, back], window);
        }
    }
}

#[test]
fn parts_may_be_many_small_or_empty() {
    let message: Vec<u8> = (0..3 * PAYLOAD_BYTES).map(|n| (n % 253) as u8).collect();
    for window in [1, 2, 100] {
        for length in [1, 7, PAYLOAD_BYTES - 1, PAYLOAD_BYTES, PAYLOAD_BYTES + 1] {
            let parts: Vec<&[u8]> = message.chunks(length).flat_map(|part| [part, b""]).collect();
            check(&parts, window);
        }
        check(&[], window);
        check(&[b"", b""], window);
    }
}
