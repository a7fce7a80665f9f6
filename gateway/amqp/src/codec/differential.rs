//! Our codec against `fe2o3-amqp-types`: what one writes the other reads as the same.

use fe2o3_amqp_types::definitions::{self as types, Handle, ReceiverSettleMode};
use fe2o3_amqp_types::messaging::message::__private::{Deserializable, Serializable};
use fe2o3_amqp_types::messaging::{
    Accepted, ApplicationProperties, Body as TheirBody, Data, DeliveryState, Header, Message, MessageId, Modified,
    Properties, Received, Rejected, Released, Source, Target, TargetArchetype,
};
use fe2o3_amqp_types::performatives as theirs;
use proptest::prelude::*;
use serde::Deserialize;
use serde_amqp::Value as TheirValue;

use super::performative as ours;
use super::performative::{LinkFlow, Role, State};
use super::value::Value;
use crate::message::{Body, Encoder};
use crate::{Attach, Outcome, Settle};

fn read_theirs(mut body: &[u8]) -> (theirs::Performative, &[u8]) {
    let reader = serde_amqp::read::IoReader::new(&mut body);
    let performative = theirs::Performative::deserialize(&mut serde_amqp::de::Deserializer::new(reader)).unwrap();
    (performative, body)
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), 1..256_u32, 256..70_000_u32, Just(u32::MAX), any::<u32>()]
}

fn their_state() -> impl Strategy<Value = DeliveryState> {
    let error = types::Error::new(types::AmqpError::NotFound, Some("gone".into()), None);
    prop_oneof![
        Just(Accepted {}.into()),
        Just(Released {}.into()),
        Just(Received { section_number: 1, section_offset: 300 }.into()),
        Just(Rejected { error: None }.into()),
        Just(Rejected { error: Some(error) }.into()),
        any::<(Option<bool>, Option<bool>)>().prop_map(|(delivery_failed, undeliverable_here)| {
            Modified { delivery_failed, undeliverable_here, message_annotations: None }.into()
        }),
    ]
}

fn our_state(state: &DeliveryState) -> State {
    State::Outcome(match state {
        DeliveryState::Accepted(_) => Outcome::Accepted,
        DeliveryState::Released(_) => Outcome::Released,
        DeliveryState::Rejected(rejected) => {
            Outcome::Rejected(rejected.error.as_ref().map(|_| Box::new(crate::Error::new("amqp:not-found", "gone"))))
        }
        DeliveryState::Modified(modified) => Outcome::Modified {
            delivery_failed: modified.delivery_failed.unwrap_or(false),
            undeliverable_here: modified.undeliverable_here.unwrap_or(false),
        },
        DeliveryState::Received(_) => return State::Passing,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn their_transfers_read_the_same(
        (handle, id, format) in (number(), prop::option::of(number()), prop::option::of(number())),
        tag in prop::option::of(prop::collection::vec(any::<u8>(), 0..33)),
        (settled, more, aborted, second) in any::<(Option<bool>, bool, bool, Option<bool>)>(),
        state in prop::option::of(their_state()),
        payload in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let transfer = theirs::Transfer {
            handle: Handle(handle),
            delivery_id: id,
            delivery_tag: tag.clone().map(Into::into),
            message_format: format,
            settled,
            more,
            rcv_settle_mode: second.map(|s| if s { ReceiverSettleMode::Second } else { ReceiverSettleMode::First }),
            state,
            resume: false,
            aborted,
            batchable: true,
        };
        let bytes = [serde_amqp::to_vec(&transfer).unwrap(), payload.clone()].concat();
        let (code, list, rest) = ours::read_body(&bytes).unwrap();
        let expected = ours::Transfer {
            handle,
            delivery_id: id,
            tag: tag.as_deref(),
            message_format: format,
            settled,
            more,
            receiver_settle_second: second == Some(true),
            aborted,
        };
        prop_assert_eq!((code, rest), (ours::TRANSFER, &payload[..]));
        prop_assert_eq!(ours::Transfer::read(list).unwrap(), expected);
    }

    #[test]
    fn our_transfers_read_the_same(
        (channel, handle) in (any::<u16>(), number()),
        first in prop::option::of((number(), number())),
        (settled, more) in any::<(bool, bool)>(),
    ) {
        let (head, bytes) = ours::transfer_head(channel, handle, first, settled, more);
        prop_assert_eq!(&head[4..8], &[&[2, 0][..], &channel.to_be_bytes()].concat()[..]);
        let body = [&head[8..bytes], b"rest"].concat();
        let (theirs::Performative::Transfer(transfer), rest) = read_theirs(&body) else { panic!() };
        prop_assert_eq!(rest, b"rest");
        prop_assert_eq!(transfer.handle.0, handle);
        prop_assert_eq!(transfer.delivery_id, first.map(|(id, _)| id));
        prop_assert_eq!(transfer.delivery_tag.map(|t| t.to_vec()), first.map(|(id, _)| id.to_be_bytes().to_vec()));
        prop_assert_eq!(transfer.message_format, first.map(|(_, format)| format));
        prop_assert_eq!((transfer.settled, transfer.more), (Some(settled), more));
    }

    #[test]
    fn flows_read_the_same_both_ways(
        (incoming_window, next_outgoing_id, outgoing_window) in (number(), number(), number()),
        next_incoming_id in prop::option::of(number()),
        link in prop::option::of((number(), prop::option::of(number()), prop::option::of(number()), any::<bool>())),
        echo in any::<bool>(),
    ) {
        let their_flow = theirs::Flow {
            next_incoming_id,
            incoming_window,
            next_outgoing_id,
            outgoing_window,
            handle: link.map(|l| Handle(l.0)),
            delivery_count: link.and_then(|l| l.1),
            link_credit: link.and_then(|l| l.2),
            available: None,
            drain: link.is_some_and(|l| l.3),
            echo,
            properties: None,
        };
        let link = link.map(|(handle, delivery_count, credit, drain)| LinkFlow { handle, delivery_count, credit, drain });
        let our_flow =
            ours::Flow { next_incoming_id, incoming_window, next_outgoing_id, outgoing_window, link, echo };
        let bytes = serde_amqp::to_vec(&their_flow).unwrap();
        prop_assert_eq!(ours::Flow::read(ours::read_body(&bytes).unwrap().1).unwrap(), our_flow);
        let mut out = Vec::new();
        our_flow.write(&mut out, 5);
        let (theirs::Performative::Flow(back), _) = read_theirs(&out[8..]) else { panic!() };
        prop_assert_eq!(back, theirs::Flow { echo: false, ..their_flow }, "we never ask for an echo");
    }

    #[test]
    fn dispositions_read_the_same_both_ways(
        (receiver, settled) in any::<(bool, bool)>(),
        (first, last) in (number(), prop::option::of(number())),
        state in prop::option::of(their_state()),
    ) {
        let disposition = theirs::Disposition {
            role: if receiver { types::Role::Receiver } else { types::Role::Sender },
            first,
            last,
            settled,
            state: state.clone(),
            batchable: false,
        };
        let bytes = serde_amqp::to_vec(&disposition).unwrap();
        let expected = ours::Disposition {
            role: if receiver { Role::Receiver } else { Role::Sender },
            first,
            last: last.unwrap_or(first),
            settled,
            state: state.as_ref().map_or(State::Absent, our_state),
        };
        prop_assert_eq!(&ours::Disposition::read(ours::read_body(&bytes).unwrap().1).unwrap(), &expected);
        let State::Outcome(outcome) = expected.state else { return Ok(()) };
        let mut out = Vec::new();
        if receiver {
            let how = match outcome.clone() {
                Outcome::Accepted => Settle::Accepted,
                Outcome::Rejected(Some(error)) => Settle::Rejected(error),
                Outcome::Modified { delivery_failed, undeliverable_here } => {
                    Settle::Modified { delivery_failed, undeliverable_here }
                }
                _ => return Ok(()),
            };
            ours::write_settle(&mut out, 1, first, expected.last, settled, &how);
        } else {
            ours::write_confirm(&mut out, 1, first, expected.last, &outcome);
        }
        let (theirs::Performative::Disposition(back), _) = read_theirs(&out[8..]) else { panic!() };
        prop_assert_eq!((back.first, back.last.unwrap_or(back.first)), (first, expected.last));
        prop_assert_eq!(back.settled, settled || !receiver);
        prop_assert_eq!(our_state(&back.state.unwrap()), State::Outcome(outcome));
    }

    #[test]
    fn their_messages_read_the_same(
        header in any::<Option<(bool, u32)>>(),
        id in any::<Option<u64>>(),
        to in any::<Option<String>>(),
        properties in prop::collection::btree_map(any::<String>(), any::<String>(), 0..5),
        body in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut message = Message::builder().data(Data(body.clone().into())).build();
        message.header = header.map(|(durable, count)| Header { durable, delivery_count: count, ..Header::default() });
        message.properties =
            Some(Properties { message_id: id.map(MessageId::Ulong), to: to.clone(), ..Properties::default() });
        let mut application = ApplicationProperties::default();
        for (key, value) in &properties {
            application.0.insert(key.clone(), value.clone().into());
        }
        message.application_properties = Some(application);
        let bytes = serde_amqp::to_vec(&Serializable(message)).unwrap();
        let read = crate::message::decode(&bytes).unwrap();
        prop_assert_eq!((read.header.durable, read.header.delivery_count), header.unwrap_or((false, 0)));
        prop_assert_eq!(read.properties.message_id, id.map_or(Value::Null, Value::Ulong));
        prop_assert_eq!(read.properties.to, to.as_deref());
        prop_assert_eq!(read.application_properties.len(), properties.len());
        for (key, value) in &properties {
            prop_assert_eq!(read.application_properties.get(key), Some(Value::Str(value)));
        }
        prop_assert_eq!(read.body, Body::Data(body.as_slice().into()));
    }

    #[test]
    fn our_messages_read_the_same(
        to in any::<String>(),
        properties in prop::collection::btree_map(any::<String>(), any::<(String, i32, bool)>(), 0..5),
        body in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let mut out = Vec::new();
        Encoder::new(&mut out)
            .properties(&crate::message::Properties { to: Some(&to), ..crate::message::Properties::default() })
            .application_properties(|map| {
                for (key, (text, number, is_text)) in &properties {
                    map.pair(Value::Str(key), if *is_text { Value::Str(text) } else { Value::Int(*number) });
                }
            })
            .data(&body);
        let read: Deserializable<Message<TheirBody<TheirValue>>> = serde_amqp::from_slice(&out).unwrap();
        let read = read.0;
        prop_assert_eq!(read.properties.unwrap().to, Some(to));
        let application = read.application_properties.unwrap_or_default().0;
        prop_assert_eq!(application.len(), properties.len());
        for (key, (text, number, is_text)) in properties {
            let value = if is_text { text.into() } else { number.into() };
            prop_assert_eq!(application.get(&key), Some(&value));
        }
        let TheirBody::Data(data) = read.body else { panic!() };
        prop_assert_eq!(data.into_iter().flat_map(|part| part.0.to_vec()).collect::<Vec<u8>>(), body);
    }
}

#[test]
fn attaches_read_the_same_both_ways() {
    let wish = Attach {
        local_address: Some("local".into()),
        properties: vec![("com.microsoft:api-version".into(), "2021-04-12".into())],
        ..Attach::new("name", "node")
    };
    for role in [Role::Sender, Role::Receiver] {
        let mut out = Vec::new();
        ours::write_attach(&mut out, 2, 300, role, &wish);
        let (theirs::Performative::Attach(attach), rest) = read_theirs(&out[8..]) else { panic!() };
        let (source, target) = if role == Role::Sender { ("local", "node") } else { ("node", "local") };
        let expected = theirs::Attach {
            name: "name".into(),
            handle: Handle(300),
            role: if role == Role::Sender { types::Role::Sender } else { types::Role::Receiver },
            snd_settle_mode: types::SenderSettleMode::Unsettled,
            rcv_settle_mode: ReceiverSettleMode::First,
            source: Some(Box::new(Source { address: Some(source.into()), ..Source::default() })),
            target: Some(Box::new(TargetArchetype::Target(Target {
                address: Some(target.into()),
                ..Target::default()
            }))),
            unsettled: None,
            incomplete_unsettled: false,
            initial_delivery_count: (role == Role::Sender).then_some(0),
            max_message_size: (role == Role::Receiver).then_some(1 << 20),
            offered_capabilities: None,
            desired_capabilities: None,
            properties: Some(
                [("com.microsoft:api-version".into(), TheirValue::String("2021-04-12".into()))].into_iter().collect(),
            ),
        };
        assert_eq!((&attach, rest), (&expected, &[][..]));
        let bytes = serde_amqp::to_vec(&attach).unwrap();
        let read = ours::Attach::read(ours::read_body(&bytes).unwrap().1).unwrap();
        assert_eq!((read.name, read.handle, read.role), ("name", 300, role));
        assert_eq!(read.source.unwrap().address, Some(source));
        assert_eq!(read.target.unwrap().address, Some(target));
        assert_eq!(read.initial_delivery_count, attach.initial_delivery_count);
    }
}
