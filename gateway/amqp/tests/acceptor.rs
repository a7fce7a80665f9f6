//! The whole endpoint against another implementation: the acceptor of `fe2o3-amqp`, in one process over a pipe.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use amqp_endpoint::message::{self, Body as MessageBody, Encoder, Properties, Value as Field};
use amqp_endpoint::{Attach, Cause, Config, Delivery, Endpoint, Error, Event, LinkId, NotSent, Outcome, Sasl, Settle};
use fe2o3_amqp::acceptor::{
    ConnectionAcceptor, LinkAcceptor, LinkEndpoint, SaslAnonymousMechanism, SaslPlainMechanism, SessionAcceptor,
};
use fe2o3_amqp::{Receiver, Sender};
use fe2o3_amqp_types::definitions::{AmqpError, Error as TypesError};
use fe2o3_amqp_types::messaging::{Body, Data, Message, Modified};
use serde_amqp::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

/// The driver that the crate's description asks for.
struct Driver {
    endpoint: Endpoint,
    io: DuplexStream,
    started: tokio::time::Instant,
    pending: VecDeque<Event>,
}

impl Driver {
    fn new(io: DuplexStream, config: Config) -> Self {
        Self { endpoint: Endpoint::new(config, 0), io, started: tokio::time::Instant::now(), pending: VecDeque::new() }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    async fn next(&mut self) -> Event {
        let mut scratch = vec![0; 16 << 10];
        loop {
            while let Some(event) = self.endpoint.next_event() {
                self.pending.push_back(event);
            }
            let output = std::mem::take(self.endpoint.output());
            if !output.is_empty() {
                if self.io.write_all(&output).await.is_err() {
                    self.endpoint.handle_eof(self.now());
                }
                continue;
            }
            if let Some(event) = self.pending.pop_front() {
                return event;
            }
            let wait = self.endpoint.poll_timeout().map_or(60_000, |at| at.saturating_sub(self.now()).max(1));
            match tokio::time::timeout(Duration::from_millis(wait), self.io.read(&mut scratch)).await {
                Ok(Ok(0)) => self.endpoint.handle_eof(self.now()),
                Ok(read) => self.endpoint.handle_input(&scratch[..read.unwrap()], self.now()),
                Err(_) => self.endpoint.handle_timeout(self.now()),
            }
        }
    }

    async fn expect<T>(&mut self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        let event = tokio::time::timeout(Duration::from_secs(20), self.next()).await;
        let event = event.unwrap_or_else(|_| panic!("waited in vain for {what}: {:?}", self.endpoint));
        pick(&event).unwrap_or_else(|| panic!("wanted {what}, got {event:?}"))
    }
}

/// What the other side saw.
#[derive(Debug, PartialEq)]
enum Seen {
    Attached(String),
    Message(String, Vec<u8>),
    Outcome(String),
    LinkOver,
    SessionOver,
    ConnectionOver,
}

#[derive(Clone, Default)]
struct Behaviour {
    sasl_plain: bool,
    sasl_anonymous: bool,
    frame_bytes_max: Option<u32>,
    incoming_window: Option<u32>,
    /// Messages for every link on which the peer sends.
    messages: Vec<Vec<u8>>,
}

/// Takes what comes: outcomes are what the first word of the body says.
async fn serve(io: DuplexStream, behaviour: Behaviour, seen: mpsc::UnboundedSender<Seen>) {
    let mut builder = ConnectionAcceptor::builder().container_id("peer").channel_max(100);
    if let Some(bytes) = behaviour.frame_bytes_max {
        builder = builder.max_frame_size(bytes);
    }
    let mut connection = if behaviour.sasl_plain {
        builder.sasl_acceptor(SaslPlainMechanism::new("user", "secret")).build().accept(io).await.unwrap()
    } else if behaviour.sasl_anonymous {
        builder.sasl_acceptor(SaslAnonymousMechanism::new()).build().accept(io).await.unwrap()
    } else {
        builder.build().accept(io).await.unwrap()
    };
    let mut sessions = SessionAcceptor::builder().handle_max(5000_u32);
    if let Some(window) = behaviour.incoming_window {
        sessions = sessions.incoming_window(window);
    }
    let sessions = sessions.build();
    while let Ok(mut session) = sessions.accept(&mut connection).await {
        let (seen, behaviour) = (seen.clone(), behaviour.clone());
        tokio::spawn(async move {
            let links = LinkAcceptor::new();
            while let Ok(link) = links.accept(&mut session).await {
                match link {
                    LinkEndpoint::Receiver(link) => tokio::spawn(receive(link, seen.clone())),
                    LinkEndpoint::Sender(link) => tokio::spawn(send(link, behaviour.messages.clone(), seen.clone())),
                };
            }
            let _ = session.end().await;
            let _ = seen.send(Seen::SessionOver);
        });
    }
    let _ = connection.close().await;
    let _ = seen.send(Seen::ConnectionOver);
}

async fn receive(mut link: Receiver, seen: mpsc::UnboundedSender<Seen>) {
    link.set_credit(200).await.unwrap();
    let address = link.target().as_ref().unwrap().address.clone().unwrap();
    let _ = seen.send(Seen::Attached(address.clone()));
    while let Ok(delivery) = link.recv::<Body<Value>>().await {
        let Body::Data(data) = delivery.body() else { panic!("expected data") };
        let bytes: Vec<u8> = data.iter().flat_map(|part| part.0.to_vec()).collect();
        let refusal = TypesError::new(AmqpError::PreconditionFailed, Some("not this one".into()), None);
        let modified =
            Modified { delivery_failed: Some(true), undeliverable_here: Some(true), message_annotations: None };
        match bytes.split(|b| *b == b' ').next().unwrap() {
            b"reject" => link.reject(&delivery, refusal).await.unwrap(),
            b"release" => link.release(&delivery).await.unwrap(),
            b"modify" => link.modify(&delivery, modified).await.unwrap(),
            b"detach" => {
                let _ = link.close_with_error(refusal).await;
                let _ = seen.send(Seen::LinkOver);
                return;
            }
            b"hang" => std::future::pending().await,
            _ => link.accept(&delivery).await.unwrap(),
        }
        let _ = seen.send(Seen::Message(address.clone(), bytes));
    }
    let _ = link.close().await;
    let _ = seen.send(Seen::LinkOver);
}

async fn send(mut link: Sender, messages: Vec<Vec<u8>>, seen: mpsc::UnboundedSender<Seen>) {
    let mut outcomes = Vec::new();
    for message in messages {
        let message = Message::builder().data(Data(message.into())).build();
        outcomes.push(link.send_batchable(message).await.unwrap());
    }
    for outcome in outcomes {
        let _ = seen.send(Seen::Outcome(format!("{:?}", outcome.await.unwrap())));
    }
    link.on_detach().await;
    let _ = seen.send(Seen::LinkOver);
}

fn start(behaviour: Behaviour, config: Config) -> (Driver, mpsc::UnboundedReceiver<Seen>, tokio::task::JoinHandle<()>) {
    let (ours, theirs) = tokio::io::duplex(4 << 20);
    let (seen, saw) = mpsc::unbounded_channel();
    let server = tokio::spawn(serve(theirs, behaviour, seen));
    (Driver::new(ours, config), saw, server)
}

async fn opened(driver: &mut Driver) -> amqp_endpoint::SessionId {
    let session = driver.endpoint.begin().unwrap();
    let peer = driver.expect("Opened", |e| if let Event::Opened(peer) = e { Some(peer.clone()) } else { None }).await;
    assert_eq!(peer.container_id, "peer");
    driver.expect("SessionBegun", |e| matches!(e, Event::SessionBegun { .. }).then_some(())).await;
    session
}

/// An attached sender with credit.
async fn sender(driver: &mut Driver, session: amqp_endpoint::SessionId, address: &str) -> LinkId {
    let link = driver.endpoint.attach_sender(session, Attach::new(format!("s-{address}"), address), 1).unwrap();
    driver.expect("Attached", |e| matches!(e, Event::Attached { .. }).then_some(())).await;
    driver.expect("Sendable", |e| matches!(e, Event::Sendable { .. }).then_some(())).await;
    link
}

fn data_message(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Encoder::new(&mut out).properties(&Properties { to: Some("t"), ..Properties::default() }).data(body);
    out
}

fn config() -> Config {
    Config::new("us", "localhost")
}

fn refusal() -> Error {
    Error::new("amqp:precondition-failed", "not this one")
}

#[tokio::test]
async fn thousands_of_transfers_on_hundreds_of_links_each_get_their_own_outcome_once() {
    const LINKS: u64 = 300;
    const EACH: u64 = 20;
    let (mut driver, mut saw, _server) = start(Behaviour::default(), config());
    let mut sessions = vec![opened(&mut driver).await];
    for _ in 1..3 {
        sessions.push(driver.endpoint.begin().unwrap());
        driver.expect("SessionBegun", |e| matches!(e, Event::SessionBegun { .. }).then_some(())).await;
    }
    let mut queues: BTreeMap<LinkId, VecDeque<u64>> = BTreeMap::new();
    for user in 0..LINKS {
        let session = sessions[user as usize % sessions.len()];
        let attach = Attach::new(format!("link-{user}"), format!("/devices/{user}/messages/events"));
        let link = driver.endpoint.attach_sender(session, attach, user).unwrap();
        queues.insert(link, (0..EACH).map(|n| user * EACH + n).collect());
    }
    let body = |token: u64| match token % 7 {
        3 => format!("reject {token}"),
        4 => format!("release {token}"),
        5 => format!("modify {token}"),
        _ => format!("accept {token}"),
    };
    let mut outcomes: BTreeMap<u64, Outcome> = BTreeMap::new();
    while outcomes.len() < (LINKS * EACH) as usize {
        match driver.expect("any event", |e| Some(e.clone())).await {
            Event::Sendable { link, user } => {
                let queue = queues.get_mut(&link).unwrap();
                while let Some(&token) = queue.front() {
                    assert_eq!(token / EACH, user);
                    match driver.endpoint.send(link, token, false, 0, &[&data_message(body(token).as_bytes())]) {
                        Ok(()) => queue.pop_front(),
                        Err(NotSent::NoCredit | NotSent::WindowClosed) => break,
                        Err(other) => panic!("{other}"),
                    };
                }
            }
            Event::Settled { user, token, outcome, .. } => {
                assert_eq!(token / EACH, user);
                assert_eq!(outcomes.insert(token, outcome), None, "token {token} settled twice");
            }
            Event::Attached { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    for (token, outcome) in outcomes {
        let expected = match token % 7 {
            3 => Outcome::Rejected(Some(Box::new(refusal()))),
            4 => Outcome::Released,
            5 => Outcome::Modified { delivery_failed: true, undeliverable_here: true },
            _ => Outcome::Accepted,
        };
        assert_eq!(outcome, expected, "token {token}");
    }
    let mut messages = 0;
    while let Ok(seen) = saw.try_recv() {
        if let Seen::Message(address, bytes) = seen {
            let token: u64 = std::str::from_utf8(&bytes).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            assert_eq!(address, format!("/devices/{}/messages/events", token / EACH));
            messages += 1;
        }
    }
    assert_eq!(messages, LINKS * EACH);
}

#[tokio::test]
async fn large_messages_cross_small_frames_in_both_directions() {
    let large: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    let behaviour = Behaviour {
        frame_bytes_max: Some(512),
        messages: vec![large.clone(), b"small".to_vec()],
        ..Behaviour::default()
    };
    let (mut driver, mut saw, _server) = start(behaviour, Config { frame_bytes_max: 1000, ..config() });
    let session = opened(&mut driver).await;
    let link = sender(&mut driver, session, "a").await;
    let mut sections = Vec::new();
    Encoder::new(&mut sections).data_header(large.len());
    let (front, back) = large.split_at(50_000);
    driver.endpoint.send(link, 5, false, 0, &[&sections, front, back]).unwrap();
    let outcome =
        |e: &Event| if let Event::Settled { token: 5, outcome, .. } = e { Some(outcome.clone()) } else { None };
    assert_eq!(driver.expect("Settled", outcome).await, Outcome::Accepted);
    assert_eq!(saw.recv().await, Some(Seen::Attached("a".into())));
    assert_eq!(saw.recv().await, Some(Seen::Message("a".into(), large.clone())));

    let link = driver.endpoint.attach_receiver(session, Attach::new("r", "b"), 2).unwrap();
    driver.endpoint.grant(link, 10);
    driver.expect("Attached", |e| matches!(e, Event::Attached { .. }).then_some(())).await;
    for expected in [&large[..], b"small"] {
        let delivery = driver.expect("Delivery", delivery).await;
        assert_eq!(message::decode(&delivery.message).unwrap().body, MessageBody::Data(expected.into()));
        driver.endpoint.settle(link, delivery.id, Settle::Accepted);
    }
}

fn delivery(event: &Event) -> Option<Delivery> {
    if let Event::Delivery(delivery) = event { Some((**delivery).clone()) } else { None }
}

#[tokio::test]
async fn deliveries_get_the_outcome_they_were_given_in_whatever_order() {
    let messages: Vec<Vec<u8>> = (0..40).map(|n| vec![n]).collect();
    let (mut driver, mut saw, _server) = start(Behaviour { messages, ..Behaviour::default() }, config());
    let session = opened(&mut driver).await;
    let link = driver.endpoint.attach_receiver(session, Attach::new("r", "b"), 2).unwrap();
    driver.endpoint.grant(link, 15);
    driver.expect("Attached", |e| matches!(e, Event::Attached { .. }).then_some(())).await;
    let mut held = Vec::new();
    for n in 0..40 {
        let delivery = driver.expect("Delivery", delivery).await;
        assert_eq!(message::decode(&delivery.message).unwrap().body, MessageBody::Data((&[n][..]).into()));
        assert!(!delivery.settled && !delivery.tag.is_empty());
        held.push((n, delivery.id));
        if held.len() == 10 {
            while let Some((n, id)) = held.pop() {
                let how = match n % 4 {
                    0 => Settle::Rejected(Box::new(refusal())),
                    1 => Settle::Released,
                    _ => Settle::Accepted,
                };
                driver.endpoint.settle(link, id, how.clone());
                driver.endpoint.settle(link, id, how); // once is enough, twice is harmless
            }
            driver.endpoint.grant(link, 15);
        }
    }
    driver.endpoint.detach(link);
    driver.expect("Detached", |e| matches!(e, Event::Detached { cause: Cause::Local, .. }).then_some(())).await;
    for n in 0..40 {
        let Some(Seen::Outcome(outcome)) = saw.recv().await else { panic!("expected an outcome") };
        let expected = match n % 4 {
            0 => "Rejected",
            1 => "Released",
            _ => "Accepted",
        };
        assert!(outcome.starts_with(expected), "message {n}: {outcome}");
    }
    assert_eq!(saw.recv().await, Some(Seen::LinkOver));
}

#[tokio::test]
async fn a_narrow_session_window_loses_nothing_and_large_messages_pass_it_in_pieces() {
    let behaviour = Behaviour { frame_bytes_max: Some(512), incoming_window: Some(7), ..Behaviour::default() };
    let (mut driver, mut saw, _server) = start(behaviour, config());
    let session = opened(&mut driver).await;
    let link = sender(&mut driver, session, "a").await;
    let bodies: Vec<Vec<u8>> = (0..200_u32).map(|n| vec![n as u8; if n % 20 == 0 { 20_000 } else { 50 }]).collect();
    let (mut next, mut settled) = (0, 0);
    while settled < bodies.len() {
        while next < bodies.len()
            && driver.endpoint.send(link, next as u64, false, 0, &[&data_message(&bodies[next])]).is_ok()
        {
            next += 1;
        }
        if let Event::Settled { token, outcome, .. } = driver.expect("any event", |e| Some(e.clone())).await {
            assert_eq!((token, outcome), (settled as u64, Outcome::Accepted));
            settled += 1;
        }
    }
    assert_eq!(saw.recv().await, Some(Seen::Attached("a".into())));
    for body in bodies {
        assert_eq!(saw.recv().await, Some(Seen::Message("a".into(), body)));
    }
    assert!(driver.endpoint.counters().window_closed > 0);
}

#[tokio::test]
async fn the_peers_detach_loses_what_it_did_not_settle_and_the_session_goes_on() {
    let (mut driver, _saw, _server) = start(Behaviour::default(), config());
    let session = opened(&mut driver).await;
    let (bad, good) = (sender(&mut driver, session, "bad").await, sender(&mut driver, session, "good").await);
    for (token, body) in [(1, "accept"), (2, "detach"), (3, "accept")] {
        driver.endpoint.send(bad, token, false, 0, &[&data_message(body.as_bytes())]).unwrap();
    }
    let settled = |e: &Event| match e {
        Event::Settled { token, outcome, .. } => Some((*token, outcome.clone())),
        _ => None,
    };
    assert_eq!(driver.expect("Settled", settled).await, (1, Outcome::Accepted));
    assert_eq!(driver.expect("Settled", settled).await, (2, Outcome::Lost));
    assert_eq!(driver.expect("Settled", settled).await, (3, Outcome::Lost));
    let cause = |e: &Event| if let Event::Detached { cause, .. } = e { Some(cause.clone()) } else { None };
    assert_eq!(driver.expect("Detached", cause).await, Cause::Remote(Some(Box::new(refusal()))));
    assert_eq!(driver.endpoint.send(bad, 4, false, 0, &[b""]), Err(NotSent::NotAttached));
    driver.endpoint.send(good, 5, false, 0, &[&data_message(b"accept")]).unwrap();
    assert_eq!(driver.expect("Settled", settled).await, (5, Outcome::Accepted));
}

#[tokio::test]
async fn end_and_close_are_answered_in_order() {
    let (mut driver, mut saw, server) = start(Behaviour::default(), config());
    let session = opened(&mut driver).await;
    let link = sender(&mut driver, session, "a").await;
    driver.endpoint.detach(link);
    driver.expect("Detached", |e| matches!(e, Event::Detached { cause: Cause::Local, .. }).then_some(())).await;
    driver.endpoint.end(session);
    driver.expect("SessionEnded", |e| matches!(e, Event::SessionEnded { cause: Cause::Local, .. }).then_some(())).await;
    driver.endpoint.close(None);
    driver.expect("Closed", |e| matches!(e, Event::Closed { cause: Cause::Local }).then_some(())).await;
    server.await.unwrap();
    assert_eq!(saw.recv().await, Some(Seen::Attached("a".into())));
    assert_eq!(saw.recv().await, Some(Seen::LinkOver));
    assert_eq!(saw.recv().await, Some(Seen::SessionOver));
    assert_eq!(saw.recv().await, Some(Seen::ConnectionOver));
}

#[tokio::test]
async fn a_cut_stream_loses_everything_pending_exactly_once() {
    let (mut driver, _saw, server) = start(Behaviour::default(), config());
    let session = opened(&mut driver).await;
    let link = sender(&mut driver, session, "a").await;
    for token in 0..50 {
        driver.endpoint.send(link, token, false, 0, &[&data_message(b"hang")]).unwrap();
    }
    tokio::task::yield_now().await;
    server.abort();
    let (ours, _) = tokio::io::duplex(64);
    driver.io = ours;
    let mut lost = Vec::new();
    loop {
        match driver.expect("any event", |e| Some(e.clone())).await {
            Event::Settled { token, outcome: Outcome::Lost, .. } => lost.push(token),
            Event::Detached { cause: Cause::Carrier, .. } => assert_eq!(lost, (0..50).collect::<Vec<_>>()),
            Event::SessionEnded { cause: Cause::Carrier, .. } => {}
            Event::Closed { cause: Cause::Eof } => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(driver.endpoint.next_event().is_none());
}

#[tokio::test]
async fn sasl_plain_and_anonymous_let_us_in_and_a_wrong_password_does_not() {
    let plain =
        |password: &str| Config { sasl: Sasl::Plain { user: "user".into(), password: password.into() }, ..config() };
    let sasl_plain = Behaviour { sasl_plain: true, ..Behaviour::default() };
    let (mut driver, _saw, _server) = start(sasl_plain.clone(), plain("secret"));
    opened(&mut driver).await;
    let anonymous = Behaviour { sasl_anonymous: true, ..Behaviour::default() };
    let (mut driver, _saw, _server) = start(anonymous, Config { sasl: Sasl::Anonymous, ..config() });
    opened(&mut driver).await;
    let closed = |e: &Event| if let Event::Closed { cause } = e { Some(cause.clone()) } else { None };
    let (mut driver, _saw, _server) = start(sasl_plain.clone(), plain("wrong"));
    assert_eq!(driver.expect("Closed", closed).await, Cause::Sasl(Some(1)));
    let (mut driver, _saw, _server) = start(sasl_plain, Config { sasl: Sasl::External, ..config() });
    assert_eq!(driver.expect("Closed", closed).await, Cause::Sasl(None));
}

#[tokio::test]
async fn our_message_sections_arrive_as_their_types() {
    let mut out = Vec::new();
    Encoder::new(&mut out)
        .message_annotations(|map| map.annotation("x-opt-a", "b"))
        .properties(&Properties {
            message_id: Field::Ulong(7),
            content_type: Some("text/plain"),
            ..Properties::default()
        })
        .application_properties(|map| {
            map.string("k", "v");
            map.pair(Field::Str("n"), Field::Int(-300));
        })
        .data(b"body");
    let theirs: fe2o3_amqp_types::messaging::message::__private::Deserializable<Message<Body<Value>>> =
        serde_amqp::from_slice(&out).unwrap();
    let theirs = theirs.0;
    let properties = theirs.properties.unwrap();
    assert_eq!(properties.message_id, Some(7_u64.into()));
    assert_eq!(properties.content_type, Some("text/plain".into()));
    let application = theirs.application_properties.unwrap().0;
    assert_eq!(application.get("k"), Some(&"v".into()));
    assert_eq!(application.get("n"), Some(&(-300_i32).into()));
    assert_eq!(theirs.message_annotations.unwrap().0.len(), 1);
}
