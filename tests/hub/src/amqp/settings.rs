//! What the AMQP side may be told: limits and time-outs it announces, and how strictly it holds to them.

use std::time::Duration;

/// Limits and time-outs of every AMQP connection. The defaults are those of a second-generation IoT Hub (contract §3.1).
#[derive(Clone, Debug)]
pub struct AmqpSettings {
    /// Announced `max-frame-size`, bytes; larger frames end the connection.
    pub frame_bytes_max: u32,
    /// Announced `channel-max`: the highest channel number, so one less than the sessions possible.
    pub channel_max: u16,
    /// Announced `handle-max`: the highest handle number of a session.
    pub handle_max: u32,
    /// Announced `idle-time-out`; a peer silent for one and a quarter of it is closed. Zero: none.
    pub idle_timeout: Duration,
    /// Session incoming window, transfers; announced anew when half of it is used.
    pub session_window: u32,
    /// Credit given to telemetry and other device senders; given anew when half of it is used.
    pub link_credit: u32,
    /// Credit given on `$cbs`.
    pub cbs_credit: u32,
    /// Announced `max-message-size` of links, bytes; more than that detaches the link.
    pub message_bytes_max: u64,
    /// What a message may hold (body, properties, application properties), bytes; more is rejected.
    pub content_bytes_max: usize,
    /// Identities that may put a token on one connection, over its whole life.
    pub cbs_tokens_max: usize,
    /// Time from accept to OPEN.
    pub handshake_timeout: Duration,
    /// Time from our CLOSE to theirs.
    pub close_timeout: Duration,
    /// Session FLOWs leave `next-incoming-id` out, as the second-generation hub does (go-amqp #326).
    pub flow_without_next_incoming_id: bool,
    /// First `next-outgoing-id` and delivery-id of each session: near `u32::MAX` shows who cannot wrap.
    pub first_transfer_id: u32,
    /// Accepted deliveries in a row are told in one DISPOSITION.
    pub disposition_ranges: bool,
    /// Bytes that may wait for the socket before the connection stops reading and sending messages.
    pub write_buffer_bytes_max: usize,
    /// Answers (CBS, twin, methods) that may wait for credit on one link.
    pub answers_max: usize,
    /// Events sent to one reader and not settled by it.
    pub unsettled_max: usize,
    /// Largest number of timers (delayed answers and the like) of one connection.
    pub timers_max: usize,
}

impl Default for AmqpSettings {
    fn default() -> Self {
        Self {
            frame_bytes_max: 65_535,
            channel_max: 1024,
            handle_max: 262_143,
            idle_timeout: Duration::from_mins(4),
            session_window: 5000,
            link_credit: 1000,
            cbs_credit: 100,
            message_bytes_max: 1024 * 1024,
            content_bytes_max: 256 * 1024,
            cbs_tokens_max: 1000,
            handshake_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            flow_without_next_incoming_id: false,
            first_transfer_id: 0,
            disposition_ranges: true,
            write_buffer_bytes_max: 256 * 1024,
            answers_max: 1024,
            unsettled_max: 5000,
            timers_max: 100_000,
        }
    }
}
