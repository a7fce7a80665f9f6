//! Any bytes in any pieces, any order of calls: nothing panics, nothing is told twice, nothing is forgotten.

use std::collections::BTreeSet;

use amqp_endpoint::{Attach as Wish, Config, DeliveryId, Error, Event, LinkId, Sasl, SessionId, Settle};
use fe2o3_amqp_types::definitions::Role;
use fe2o3_amqp_types::messaging::{Accepted, Rejected};
use fe2o3_amqp_types::performatives::{Close, Disposition, End, Flow, Transfer};
use proptest::prelude::*;

use crate::peer::{
    HEADER, Room, SASL_HEADER, attach, begin, config, credit, detach, disposition, error, flow, frame, open, raw_frame,
    transfer,
};

/// One step of either side. Numbers are small so that they meet.
#[derive(Clone, Debug)]
enum Step {
    Hear(Vec<u8>),
    Begin,
    End(usize),
    Attach(usize, bool, u8),
    Detach(usize),
    Send(usize, u16),
    Grant(usize, u8),
    Settle(usize, u8, u8),
    Close,
    TakeOutput,
    Later(u16),
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let channel = prop_oneof![8 => Just(3_u16), 1 => 0..4_u16];
    let handle = 0..4_u32;
    let name = 0..6_u8;
    prop_oneof![
        (channel.clone(), prop::option::of(0..3_u16)).prop_map(|(c, remote)| frame(c, begin(remote), &[])),
        (channel.clone(), handle.clone(), name, any::<bool>(), any::<bool>()).prop_map(|(c, h, n, sends, refused)| {
            let role = if sends { Role::Sender } else { Role::Receiver };
            let mut attach = attach(&format!("l{n}"), h, role, "node");
            if refused {
                (attach.source, attach.target) = (None, None);
            }
            frame(c, attach, &[])
        }),
        (channel.clone(), handle.clone(), 0..8_u32, 0..20_u32, any::<(bool, bool)>())
            .prop_map(|(c, h, count, n, (drain, echo))| frame(c, Flow { drain, echo, ..credit(h, count, n) }, &[])),
        (channel.clone(), 0..9_u32, 0..20_u32, any::<bool>()).prop_map(|(c, next, window, absent)| {
            let next = (!absent).then_some(next);
            frame(c, Flow { next_incoming_id: next, incoming_window: window, ..flow() }, &[])
        }),
        (channel.clone(), handle.clone(), prop::option::of(0..9_u32), any::<(bool, bool, bool)>(), 0..80_usize)
            .prop_map(|(c, h, id, (more, settled, aborted), bytes)| {
                let transfer =
                    Transfer { delivery_id: id, more, settled: Some(settled), aborted, ..transfer(h, id.unwrap_or(0)) };
                frame(c, transfer, &vec![7; bytes])
            }),
        (channel.clone(), 0..12_u32, 0..12_u32, any::<(bool, bool, bool)>()).prop_map(
            |(c, first, width, (settled, sender, reject))| {
                let state = if reject { Rejected { error: None }.into() } else { Accepted {}.into() };
                let role = if sender { Role::Sender } else { Role::Receiver };
                frame(c, Disposition { settled, role, ..disposition(first, first + width, Some(state)) }, &[])
            }
        ),
        (channel.clone(), handle).prop_map(|(c, h)| frame(c, detach(h, Some(error("x:y"))), &[])),
        channel.clone().prop_map(|c| frame(c, End { error: None }, &[])),
        channel.prop_map(|c| raw_frame(0, c, &[])),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => frames().prop_map(Step::Hear),
        1 => Just(Step::Begin),
        1 => any::<usize>().prop_map(Step::End),
        3 => (any::<usize>(), any::<bool>(), 0..6_u8).prop_map(|(s, sends, n)| Step::Attach(s, sends, n)),
        1 => any::<usize>().prop_map(Step::Detach),
        6 => (any::<usize>(), 0..2000_u16).prop_map(|(l, bytes)| Step::Send(l, bytes)),
        2 => (any::<usize>(), 0..9_u8).prop_map(|(l, n)| Step::Grant(l, n)),
        2 => (any::<usize>(), 0..9_u8, 0..4_u8).prop_map(|(l, id, how)| Step::Settle(l, id, how)),
        2 => Just(Step::TakeOutput),
        1 => prop::bool::weighted(0.1).prop_map(|close| if close { Step::Close } else { Step::TakeOutput }),
        1 => (0..20_000_u16).prop_map(Step::Later),
    ];
    prop::collection::vec(step, 0..120)
}

/// Carries out steps and keeps the books: every token is settled once, every link and session ends once.
struct Run {
    room: Room,
    sessions: Vec<SessionId>,
    links: Vec<LinkId>,
    next_token: u64,
    pending: BTreeSet<u64>,
    live_links: BTreeSet<LinkId>,
    live_sessions: BTreeSet<SessionId>,
    closed: bool,
    order: Order,
}

impl Run {
    fn new(config: Config) -> Self {
        let open = fe2o3_amqp_types::performatives::Open { max_frame_size: 512.into(), ..open() };
        let (room, session) = Room::begun_with(config, open, begin(Some(0)));
        let mut run = Self {
            room,
            sessions: vec![session],
            links: Vec::new(),
            next_token: 0,
            pending: BTreeSet::new(),
            live_links: BTreeSet::new(),
            live_sessions: BTreeSet::from([session]),
            closed: false,
            order: Order { channels: BTreeSet::from(["0".to_owned()]), ..Order::default() },
        };
        for n in 0..2 {
            let link = run.room.endpoint.attach_sender(session, Wish::new(format!("s{n}"), "node"), 0).unwrap();
            run.links.push(link);
            run.live_links.insert(link);
            run.room.hear(3, attach(&format!("s{n}"), n, Role::Receiver, "node"));
            run.room.hear(3, credit(n, 0, 50));
        }
        run
    }

    fn step(&mut self, step: &Step) {
        let pick = |at: usize, from: usize| if from == 0 { None } else { Some(at % from) };
        let endpoint = &mut self.room.endpoint;
        match step {
            Step::Hear(bytes) => self.room.feed(bytes),
            Step::Begin => {
                if let Ok(session) = endpoint.begin() {
                    self.sessions.push(session);
                    assert!(self.live_sessions.insert(session));
                }
            }
            Step::End(at) => {
                let at = pick(*at, self.sessions.len()).unwrap();
                endpoint.end(self.sessions[at]);
            }
            Step::Attach(at, sends, name) => {
                let session = self.sessions[pick(*at, self.sessions.len()).unwrap()];
                let wish = Wish { message_bytes_max: 100, ..Wish::new(format!("l{name}"), "node") };
                let link = if *sends {
                    endpoint.attach_sender(session, wish, 0)
                } else {
                    endpoint.attach_receiver(session, wish, 0)
                };
                if let Ok(link) = link {
                    self.links.push(link);
                    assert!(self.live_links.insert(link));
                }
            }
            Step::Detach(at) => endpoint.detach(self.links[pick(*at, self.links.len()).unwrap()]),
            Step::Send(at, bytes) => {
                let link = self.links[pick(*at, self.links.len()).unwrap()];
                let sendable = endpoint.sendable(link);
                let sent = endpoint.send(link, self.next_token, false, 0, &[&vec![5; usize::from(*bytes)]]);
                assert_eq!(sendable, sent.is_ok(), "{sent:?}");
                if sent.is_ok() {
                    self.pending.insert(self.next_token);
                    self.next_token += 1;
                }
            }
            Step::Grant(at, n) => {
                endpoint.grant(self.links[pick(*at, self.links.len()).unwrap()], u32::from(*n));
            }
            Step::Settle(at, id, how) => {
                let how = match how {
                    0 => Settle::Accepted,
                    1 => Settle::Released,
                    2 => Settle::Rejected(Box::new(Error::new("x:y", ""))),
                    _ => Settle::Modified { delivery_failed: true, undeliverable_here: false },
                };
                endpoint.settle(self.links[pick(*at, self.links.len()).unwrap()], DeliveryId(u32::from(*id)), how);
            }
            Step::Close => endpoint.close(None),
            Step::TakeOutput => self.take_output(),
            Step::Later(ms) => {
                self.room.now += u64::from(*ms);
                endpoint.handle_timeout(self.room.now);
                if let Some(at) = endpoint.poll_timeout() {
                    assert!(at > self.room.now, "a deadline in the past spins the driver");
                }
            }
        }
        self.keep_books();
    }

    fn keep_books(&mut self) {
        while let Some(event) = self.room.endpoint.next_event() {
            assert!(!self.closed, "{event:?} after Closed");
            match event {
                Event::Settled { token, link, .. } => {
                    assert!(self.pending.remove(&token), "token {token} settled twice");
                    assert!(self.live_links.contains(&link), "settled after its link ended");
                }
                Event::Detached { link, .. } | Event::AttachRefused { link, .. } => {
                    assert!(self.live_links.remove(&link), "{link:?} ended twice");
                }
                Event::SessionEnded { session, .. } => assert!(self.live_sessions.remove(&session)),
                Event::Closed { .. } => self.closed = true,
                _ => {}
            }
        }
    }

    fn finish(&mut self) {
        self.room.endpoint.handle_eof(self.room.now);
        self.keep_books();
        assert!(self.closed);
        assert!(self.pending.is_empty() && self.live_links.is_empty() && self.live_sessions.is_empty());
        self.take_output();
    }

    /// Every frame is read by the other codec, and stands where a frame of its kind may stand.
    fn take_output(&mut self) {
        for line in self.room.sent() {
            self.order.check(&line);
        }
    }
}

/// What is open from the endpoint's side, by what it wrote.
#[derive(Default)]
struct Order {
    closed: bool,
    channels: BTreeSet<String>,
    handles: BTreeSet<String>,
}

impl Order {
    fn check(&mut self, line: &str) {
        assert!(!self.closed, "{line} after CLOSE");
        let words: Vec<&str> = line.split(' ').collect();
        let place = words.get(1).map_or("", |word| *word).to_owned();
        match words[0] {
            "close" => self.closed = true,
            "heartbeat" => {}
            "begin" => assert!(self.channels.insert(place), "{line} twice"),
            "end" => {
                assert!(self.channels.remove(&place), "{line} of nothing");
                self.handles.retain(|handle| handle.split('/').next() != Some(&place));
            }
            "attach" => {
                assert!(self.channels.contains(place.split('/').next().unwrap()), "{line} without session");
                assert!(self.handles.insert(place), "{line} twice");
            }
            "detach" => assert!(self.handles.remove(&place), "{line} of nothing"),
            "transfer" => assert!(self.handles.contains(&place), "{line} without link"),
            "flow" if words.contains(&"link") => {
                let at = words.iter().position(|word| *word == "link").unwrap();
                assert!(self.handles.contains(&format!("{place}/{}", words[at + 1])), "{line} without link");
            }
            "flow" | "disposition" => assert!(self.channels.contains(&place), "{line} without session"),
            other => panic!("{other}"),
        }
    }
}

fn small() -> Config {
    Config {
        sessions_max: 4,
        links_per_session_max: 4,
        unsettled_max: 6,
        incoming_window: 12,
        output_bytes_max: 20_000,
        ..config()
    }
}

/// Everything a connection says and tells for some input in the given pieces.
fn heard(config: Config, input: &[u8], cuts: &[usize]) -> (Vec<u8>, Vec<String>) {
    let mut room = Room::new(config);
    let session = room.endpoint.begin().unwrap();
    for n in 0..6 {
        room.endpoint.attach_sender(session, Wish::new(format!("l{n}"), "node"), n).unwrap();
    }
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
    cuts.push(input.len());
    cuts.sort_unstable();
    let mut from = 0;
    for cut in cuts {
        room.feed(&input[from..cut]);
        from = cut;
    }
    room.endpoint.handle_eof(0);
    let told = room.told();
    (std::mem::take(room.endpoint.output()), told)
}

fn conversation() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(frames(), 0..40).prop_map(|frames| {
        let close = frame(0, Close { error: None }, &[]);
        [HEADER, &frame(0, open(), &[]), &frame(3, begin(Some(0)), &[]), &frames.concat(), &close].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_two_sides_do_every_delivery_link_and_session_ends_once(steps in steps()) {
        let mut run = Run::new(small());
        for step in &steps {
            run.step(step);
        }
        run.finish();
    }

    #[test]
    fn the_same_bytes_mean_the_same_in_any_pieces(
        input in conversation(),
        cuts in prop::collection::vec(any::<usize>(), 0..60),
    ) {
        prop_assert_eq!(heard(config(), &input, &cuts), heard(config(), &input, &[]));
    }

    #[test]
    fn damaged_conversations_and_noise_never_panic_and_end_alike_in_any_pieces(
        input in conversation(),
        damage in prop::collection::vec((any::<usize>(), any::<u8>()), 1..6),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
    ) {
        let mut input = input;
        for (at, byte) in damage {
            let at = 8 + at % (input.len() - 8);
            input[at] = byte;
        }
        prop_assert_eq!(heard(config(), &input, &cuts), heard(config(), &input, &[]));
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300), sasl in any::<bool>()) {
        let (config, header) = if sasl {
            (Config { sasl: Sasl::Anonymous, ..config() }, SASL_HEADER)
        } else {
            (config(), HEADER)
        };
        heard(config.clone(), &noise, &[]);
        heard(config.clone(), &[header, &noise].concat(), &[]);
        heard(config, &[header, &raw_frame(u8::from(sasl), 0, &noise)].concat(), &[]);
        let _ = amqp_endpoint::message::decode(&noise);
    }
}
