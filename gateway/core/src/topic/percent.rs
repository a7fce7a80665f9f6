//! Percent-encoding as IoT Hub uses it: everything but the unreserved characters of RFC 3986 §2.3, upper-case hex.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Appends `text`, encoded, to `out`.
pub fn encode(text: &str, out: &mut String) {
    out.extend(utf8_percent_encode(text, RESERVED));
}

/// `text`, encoded.
pub fn encoded(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// A text that does not decode to UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a percent sign is not followed by two hex digits, or the octets are not UTF-8")]
pub struct BadPercent;

/// Appends `text`, decoded once, to `out`; `+` stays `+`. On an error, `out` keeps what came before the bad part.
///
/// # Errors
/// `%` without two hex digits behind it, or octets that are not UTF-8.
#[inline]
pub fn decode(text: &str, out: &mut String) -> Result<(), BadPercent> {
    let mut rest = text;
    while let Some(at) = rest.as_bytes().iter().position(|byte| *byte == b'%') {
        out.push_str(&rest[..at]);
        rest = decode_char(&rest[at..], out)?;
    }
    out.push_str(rest);
    Ok(())
}

/// Decodes the one character whose octets stand encoded at the start of `text`; returns what follows.
fn decode_char<'a>(text: &'a str, out: &mut String) -> Result<&'a str, BadPercent> {
    let first = octet(text, 0)?;
    // ill-formed lead octets are left to `from_utf8`
    let length = match first {
        0xC0..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xFF => 4,
        _ => 1,
    };
    let mut octets = [first, 0, 0, 0];
    for (index, slot) in octets.iter_mut().enumerate().take(length).skip(1) {
        *slot = octet(text, index)?;
    }
    out.push_str(std::str::from_utf8(&octets[..length]).map_err(|_| BadPercent)?);
    Ok(&text[3 * length..])
}

/// The `index`-th of the encoded octets at the start of `text`.
fn octet(text: &str, index: usize) -> Result<u8, BadPercent> {
    let [b'%', high, low] = *text.as_bytes().get(3 * index..3 * index + 3).ok_or(BadPercent)? else {
        return Err(BadPercent);
    };
    Ok(hex(high)? << 4 | hex(low)?)
}

fn hex(digit: u8) -> Result<u8, BadPercent> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        b'A'..=b'F' => Ok(digit - b'A' + 10),
        _ => Err(BadPercent),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, expected: Result<&str, BadPercent>) {
        let mut out = String::new();
        let got = decode(text, &mut out).map(|()| out.as_str());
        assert_eq!(got, expected, "{text:?}");
    }

    #[test]
    fn octets_are_decoded_once_and_plus_is_plus() {
        check("", Ok(""));
        check("a+b", Ok("a+b"));
        check("%24.mid", Ok("$.mid"));
        check("a%2fb%2Fc", Ok("a/b/c"));
        check("%2525", Ok("%25"));
        check("gr%C3%BC%c3%9fe %F0%9F%8C%8D!", Ok("grüße 🌍!"));
        check("grüße", Ok("grüße"));
    }

    #[test]
    fn bad_hex_and_bad_utf8_are_errors() {
        for text in ["%", "%2", "%zz", "50% of", "%C3", "%C3x", "%C3%28", "%80", "%ED%A0%80", "%F8%88%80%80", "%é"] {
            check(text, Err(BadPercent));
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes(text in any::<String>()) {
            let mut out = String::new();
            prop_assert_eq!(decode(&encoded(&text), &mut out), Ok(()));
            prop_assert_eq!(out, text);
        }

        #[test]
        fn decoding_never_panics_and_agrees_with_the_crate(text in "[%0-9a-fA-Fé]{0,24}") {
            let mut out = String::new();
            if decode(&text, &mut out).is_ok() {
                prop_assert_eq!(out, percent_encoding::percent_decode_str(&text).decode_utf8().unwrap());
            }
        }
    }
}
