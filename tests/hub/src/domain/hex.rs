//! Bytes as hex digits.

use std::fmt::Write as _;

/// Two lower-case digits per byte.
pub(super) fn lower(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // writing to a string cannot fail
        let _ = write!(text, "{byte:02x}");
        text
    })
}
