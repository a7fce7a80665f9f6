//! What can be wrong with a packet, in words and by clause.

/// Why bytes are not a packet that this codec reads. Each is the sender's fault and ends the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes break a rule of the specification: close without an answer [MQTT-3.1.4-1] [MQTT-4.8.0-1].
    #[error("malformed packet: {0}")]
    Malformed(#[from] Malformed),
    /// The fixed header announces more than the limit; nothing of it needs to be buffered.
    #[error("packet of {packet_bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// The whole packet, fixed header included.
        packet_bytes: usize,
        /// The limit that was passed to `decode`.
        limit: usize,
    },
    /// A CONNECT of another protocol level: answer CONNACK 1, then close [MQTT-3.1.2-2].
    #[error("protocol level {0} is not supported")]
    UnsupportedLevel(u8),
}

/// The rule that a packet breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Malformed {
    /// Types 0 and 15 are reserved (table 2.1).
    #[error("packet type is reserved [MQTT-4.8.0-1]")]
    ReservedType,
    /// CONNACK, SUBACK, UNSUBACK or PINGRESP from a client (table 2.1).
    #[error("a client sent a packet that only servers send [MQTT-4.8.0-1]")]
    ServerOnlyType,
    /// Flags of the fixed header other than table 2.2 lists for the type.
    #[error("reserved flags of the fixed header are wrong [MQTT-2.2.2-2]")]
    Flags,
    /// Both QoS bits of a PUBLISH are set.
    #[error("publish asks for QoS 3 [MQTT-3.3.1-4]")]
    PublishQos,
    /// DUP with QoS 0.
    #[error("publish of QoS 0 has DUP set [MQTT-3.3.1-2]")]
    PublishDup,
    /// More than four bytes, or more than needed (2.2.3).
    #[error("remaining length is not in its shortest form of one to four bytes [MQTT-4.8.0-1]")]
    RemainingLength,
    /// The type has one length only, and it is another.
    #[error("remaining length does not fit the packet type [MQTT-4.8.0-1]")]
    PacketLength,
    /// A field that must be there is missing, or its length prefix reaches past the packet.
    #[error("packet ends inside or before a field [MQTT-4.8.0-1]")]
    Truncated,
    /// Bytes after the last field.
    #[error("bytes follow the last field of the packet [MQTT-4.8.0-1]")]
    TrailingBytes,
    /// In SUBSCRIBE, UNSUBSCRIBE, PUBLISH with QoS above 0, and every acknowledgement.
    #[error("packet id is 0 [MQTT-2.3.1-1]")]
    PacketIdZero,
    /// Ill-formed UTF-8, encoded surrogates included.
    #[error("a string is not well-formed UTF-8 [MQTT-1.5.3-1]")]
    Utf8,
    /// U+0000 in a string.
    #[error("a string holds U+0000 [MQTT-1.5.3-2]")]
    NulCharacter,
    /// `+` or `#` in the topic name of a PUBLISH or a Will.
    #[error("a topic name holds a wildcard [MQTT-3.3.2-2]")]
    TopicWildcard,
    /// A topic name or filter of no character.
    #[error("a topic name or filter is empty [MQTT-4.7.3-1]")]
    TopicEmpty,
    /// `#` that is not a last level of its own.
    #[error("a filter has '#' elsewhere than alone in its last level [MQTT-4.7.1-2]")]
    FilterMultiLevel,
    /// `+` that shares its level.
    #[error("a filter has '+' beside other characters in a level [MQTT-4.7.1-3]")]
    FilterSingleLevel,
    /// SUBSCRIBE [MQTT-3.8.3-3] or UNSUBSCRIBE [MQTT-3.10.3-2] without a filter.
    #[error("no topic filter [MQTT-3.8.3-3]")]
    NoFilter,
    /// The byte after a filter is not 0, 1 or 2 (the standard prints this clause's id so).
    #[error("requested QoS is above 2 or its reserved bits are set [MQTT-3-8.3-4]")]
    RequestedQos,
    /// The first field of CONNECT is not the string `MQTT`.
    #[error("protocol name is not MQTT [MQTT-3.1.2-1]")]
    ProtocolName,
    /// Bit 0 of the connect flags.
    #[error("reserved connect flag is set [MQTT-3.1.2-3]")]
    ConnectFlag,
    /// Will QoS [MQTT-3.1.2-13] or Will retain [MQTT-3.1.2-15] without the Will flag.
    #[error("will QoS or will retain without will flag [MQTT-3.1.2-11]")]
    WillFlags,
    /// Both bits of the Will QoS are set.
    #[error("will asks for QoS 3 [MQTT-3.1.2-14]")]
    WillQos,
    /// Password flag without user name flag.
    #[error("password without user name [MQTT-3.1.2-22]")]
    PasswordWithoutUserName,
    /// Acknowledge flags above bit 0, or session present with a refusal [MQTT-3.2.2-4].
    #[error("acknowledge flags of the connack are wrong [MQTT-3.2.2-4]")]
    ConnAckFlags,
    /// Return code 6 or above (table 3.1).
    #[error("return code of the connack is reserved [MQTT-3.2.2-6]")]
    ConnAckCode,
    /// A SUBACK code other than 0, 1, 2, 0x80, or none at all.
    #[error("return codes of the suback are missing or reserved [MQTT-3.9.3-2]")]
    SubAckCodes,
}

/// Why a packet cannot be written. Nothing was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A string or binary field of more than 65 535 bytes [MQTT-4.7.3-3].
    #[error("a field is longer than 65535 bytes [MQTT-4.7.3-3]")]
    FieldTooLong,
    /// A remaining length above 268 435 455 (2.2.3).
    #[error("packet is longer than MQTT can carry")]
    PacketTooLong,
    /// A packet id without QoS 1 or 2 [MQTT-2.3.1-5], or the reverse.
    #[error("packet id and QoS of a publish do not belong together [MQTT-2.3.1-5]")]
    PacketId,
    /// The packet would break a rule that its type leaves open.
    #[error("packet would be malformed: {0}")]
    Malformed(#[from] Malformed),
}
