//! Strings (1.5.3), topic names and topic filters (4.7): checked where they are read, never changed.

use super::error::Malformed;

/// A UTF-8 string without U+0000. U+FEFF stays [MQTT-1.5.3-3].
#[inline]
pub(super) fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    // std and simdutf8 refuse what RFC 3629 refuses: overlong forms, surrogates, above U+10FFFF
    let text = simdutf8::basic::from_utf8(bytes).map_err(|_| Malformed::Utf8)?;
    if bytes.contains(&0) { Err(Malformed::NulCharacter) } else { Ok(text) }
}

/// A topic name: a string of at least one character, without wildcards.
#[inline]
pub(super) fn topic_name(bytes: &[u8]) -> Result<&str, Malformed> {
    let topic = simdutf8::basic::from_utf8(bytes).map_err(|_| Malformed::Utf8)?;
    // no early exit: the compiler turns it into vector compares
    let suspect = bytes.iter().fold(0, |n, &b| n | u8::from(b == 0) | u8::from(b == b'+') | u8::from(b == b'#'));
    if suspect != 0 || bytes.is_empty() { Err(what_is_wrong_with_topic(bytes)) } else { Ok(topic) }
}

#[cold]
fn what_is_wrong_with_topic(bytes: &[u8]) -> Malformed {
    if bytes.is_empty() {
        Malformed::TopicEmpty
    } else if bytes.contains(&0) {
        Malformed::NulCharacter
    } else {
        Malformed::TopicWildcard
    }
}

/// A topic filter: a string of at least one character whose wildcards fill their levels.
pub(super) fn topic_filter(bytes: &[u8]) -> Result<&str, Malformed> {
    let filter = text(bytes)?;
    if filter.is_empty() {
        return Err(Malformed::TopicEmpty);
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        // [MQTT-4.7.1-2] `#` is the last character, alone or after a separator
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(Malformed::FilterMultiLevel);
        }
        // [MQTT-4.7.1-3] `+` occupies an entire level
        if level.contains('+') && level != "+" {
            return Err(Malformed::FilterSingleLevel);
        }
    }
    Ok(filter)
}
