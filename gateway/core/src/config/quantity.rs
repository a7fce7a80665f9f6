//! Sizes and times as people write them: `256KiB`, `10s`, `1767s`, `1h30m`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

/// A size or a time, kept as written: it is read where it is known which of the two it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Quantity(pub String);

impl Quantity {
    /// As bytes: a whole number with `B`, `kB`, `MB`, `GB` (powers of 1000), `KiB`, `MiB`, `GiB` (of 1024) or nothing.
    pub fn bytes(&self) -> Option<u64> {
        let (number, unit) = split(&self.0)?;
        let factor = match unit {
            "" | "B" => 1,
            "kB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.checked_mul(factor)
    }

    /// As a time: whole numbers with `ms`, `s`, `m` or `h`, one after the other; a number without unit is none.
    pub fn duration(&self) -> Option<Duration> {
        let mut rest = self.0.as_str();
        let mut total_ms = 0u64;
        loop {
            let (number, unit) = split(rest)?;
            let length = unit.bytes().position(|byte| byte.is_ascii_digit()).unwrap_or(unit.len());
            let factor = match &unit[..length] {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                _ => return None,
            };
            total_ms = total_ms.checked_add(number.checked_mul(factor)?)?;
            rest = &unit[length..];
            if rest.is_empty() {
                return Some(Duration::from_millis(total_ms));
            }
        }
    }
}

/// The decimal number that `text` begins with, and the rest.
fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number = text[..digits].parse().ok()?;
    Some((number, &text[digits..]))
}

/// A size in the largest unit that divides it.
pub(super) fn show_bytes(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(factor, _)| bytes >= *factor && bytes.is_multiple_of(*factor));
    let (factor, unit) = unit.unwrap_or((1, "B"));
    format!("{}{unit}", bytes / factor)
}

/// A time in the largest unit that divides it.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = units.into_iter().find(|(factor, _)| ms >= *factor && ms.is_multiple_of(*factor));
    match unit {
        Some((factor, unit)) => format!("{}{unit}", ms / factor),
        None if ms == 0 => "0s".to_owned(),
        None => format!("{ms}ms"),
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor)
    }
}

/// Takes a string, or the whole number that YAML makes of `262144`.
struct QuantityVisitor;

impl Visitor<'_> for QuantityVisitor {
    type Value = Quantity;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as 256KiB or a time such as 30s")
    }

    fn visit_str<E>(self, text: &str) -> Result<Quantity, E> {
        Ok(Quantity(text.to_owned()))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Quantity, E> {
        Ok(Quantity(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Quantity, E> {
        Ok(Quantity(number.to_string()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Quantity, E> {
        Ok(Quantity(number.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    #[test]
    fn sizes_are_read_in_their_units() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("262144", Some(262_144)),
            ("12B", Some(12)),
            ("256KiB", Some(262_144)),
            ("256kB", Some(256_000)),
            ("3MiB", Some(3 << 20)),
            ("1GB", Some(1_000_000_000)),
            ("", None),
            ("KiB", None),
            ("-1", None),
            ("1.5MiB", None),
            ("256 KiB", None),
            ("256kib", None),
            ("10s", None),
            ("99999999999999999999", None),
            ("18446744073709551615KiB", None),
        ] {
            assert_eq!(quantity(text).bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn times_are_read_in_their_units() {
        for (text, ms) in [
            ("0s", Some(0)),
            ("250ms", Some(250)),
            ("10s", Some(10_000)),
            ("1767s", Some(1_767_000)),
            ("15m", Some(900_000)),
            ("1h30m", Some(5_400_000)),
            ("3m30s", Some(210_000)),
            ("10", None),
            ("", None),
            ("s", None),
            ("1.5h", None),
            ("10 s", None),
            ("10sec", None),
            ("-5s", None),
            ("1d", None),
            ("10s5", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(quantity(text).duration(), ms.map(Duration::from_millis), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(number in 0u64..1 << 50) {
            prop_assert_eq!(quantity(&show_bytes(number)).bytes(), Some(number));
            let duration = Duration::from_millis(number);
            prop_assert_eq!(quantity(&show_duration(duration)).duration(), Some(duration));
        }

        #[test]
        fn reading_never_panics(text in ".{0,12}") {
            let _ = (quantity(&text).bytes(), quantity(&text).duration());
        }
    }
}
