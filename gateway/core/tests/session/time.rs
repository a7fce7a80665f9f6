//! Deadlines: CONNECT, verdict, keep-alive, token.

use std::time::Duration;

use gateway_core::{
    auth::RefusedReason,
    codec::{Packet, packet::ConnectCode},
    session::effect::CloseCause,
};

use crate::world::{DIAL, Dial, Seen, World, accepted, check, connack, connected};

fn closed(cause: CloseCause) -> [Seen; 1] {
    [Seen::Close(cause)]
}

/// Closes for `cause` after exactly `milliseconds`, and not before.
#[track_caller]
fn check_deadline(world: impl Fn() -> World, milliseconds: u64, cause: CloseCause) {
    check(world().wait_ms(milliseconds - 1), []);
    check(world().wait_ms(milliseconds), closed(cause));
    let due = world().session.poll_timeout().expect("a deadline is announced");
    assert_eq!(due.0 - world().now.monotonic.0, milliseconds);
}

fn with_keep_alive(keep_alive_s: u16) -> World {
    accepted().connect(&Dial { keep_alive_s, ..DIAL }).allow(None).then()
}

fn with_token(expires: u64) -> World {
    accepted().connect(&Dial { keep_alive_s: 0, ..DIAL }).allow(Some(expires)).then()
}

#[test]
fn silence_before_connect_closes_without_connack() {
    check_deadline(accepted, 10_000, CloseCause::HandshakeTimeout);
}

#[test]
fn a_verdict_that_does_not_come_is_answered_with_3() {
    let asked = || accepted().connect(&DIAL).then();
    let bound = asked().session.poll_timeout().expect("the wait has a bound").0;
    check(asked().wait_ms(bound - 1), []);
    let world = asked().wait_ms(bound);
    assert_eq!(world.ended().refused, Some(RefusedReason::HubUnavailable));
    check(world, [connack(ConnectCode::ServerUnavailable), Seen::Close(CloseCause::Refused)]);
}

#[test]
fn mqtt_3_1_2_24_silence_of_one_and_a_half_keep_alive_periods_closes() {
    check_deadline(|| with_keep_alive(60), 90_000, CloseCause::KeepAlive);
    check_deadline(|| with_keep_alive(1), 1_500, CloseCause::KeepAlive);
    check_deadline(|| with_keep_alive(1177), 1_765_500, CloseCause::KeepAlive);
}

#[test]
fn the_maximum_holds_for_longer_keep_alives_and_for_0() {
    check_deadline(|| with_keep_alive(1179), 1_767_000, CloseCause::KeepAlive);
    check_deadline(|| with_keep_alive(u16::MAX), 1_767_000, CloseCause::KeepAlive);
    check_deadline(|| with_keep_alive(0), 1_767_000, CloseCause::KeepAlive);
}

#[test]
fn any_packet_of_the_device_counts_as_a_sign_of_life() {
    check_deadline(|| connected().wait_ms(80_000).packet(&Packet::PingReq).then(), 90_000, CloseCause::KeepAlive);
    check_deadline(|| connected().wait_ms(80_000).publish(1, "t").then(), 90_000, CloseCause::KeepAlive);
}

#[test]
fn what_we_send_is_no_sign_of_life() {
    check_deadline(|| connected().publish(1, "t").wait_ms(80_000).hub_accepts(0).then(), 10_000, CloseCause::KeepAlive);
}

#[test]
fn a_silence_that_we_cause_by_not_reading_is_not_the_devices() {
    let full = || connected().publish(1, "a").publish(2, "b").publish(3, "c").then();
    check(full().wait(Duration::from_hours(1)), []);
    check_deadline(|| full().wait(Duration::from_hours(1)).hub_accepts(0).then(), 90_000, CloseCause::KeepAlive);
}

#[test]
fn a_pause_of_the_connections_own_stops_the_keep_alive_too() {
    check(connected().paused(true).wait(Duration::from_hours(1)), []);
    let resumed = || connected().paused(true).wait(Duration::from_hours(1)).paused(false);
    check_deadline(resumed, 90_000, CloseCause::KeepAlive);
    check_deadline(|| connected().wait_ms(80_000).paused(false), 10_000, CloseCause::KeepAlive);
}

#[test]
fn a_timeout_handled_too_early_does_nothing() {
    check(connected().wait_ms(1).wait_ms(1).wait_ms(50_000), []);
}

#[test]
fn the_connection_ends_with_its_token() {
    check_deadline(|| with_token(600), 600_000, CloseCause::TokenExpired);
    check(with_token(u64::MAX / 2).wait(Duration::from_mins(20)), []);
}

#[test]
fn the_grace_lengthens_a_tokens_life() {
    let with_grace = || {
        let mut world = accepted();
        let mut settings = (*world.cx.settings).clone();
        settings.limits.token_expiry_grace = Duration::from_mins(5);
        world.cx = crate::world::context(settings);
        world.connect(&Dial { keep_alive_s: 0, ..DIAL }).allow(Some(600)).then()
    };
    check_deadline(with_grace, 900_000, CloseCause::TokenExpired);
}

#[test]
fn a_token_let_in_within_the_clock_skew_lives_through_it() {
    let late = || accepted().wait_ms(5_000).connect(&Dial { keep_alive_s: 0, ..DIAL }).allow(Some(3)).then();
    check_deadline(late, 298_000, CloseCause::TokenExpired);
}

#[test]
fn a_token_does_not_end_a_connection_in_mid_publish() {
    let expired = || with_token(600).publish(1, "t").then().wait_ms(600_000);
    check(expired(), []);
    assert!(!expired().session.wants_input());
    check(expired().hub_accepts(0), [Seen::Puback(1), Seen::Close(CloseCause::TokenExpired)]);
    let bound = expired().session.poll_timeout().expect("the wait has a bound").0 - 600_000;
    check(expired().wait_ms(bound), closed(CloseCause::TokenExpired));
}
