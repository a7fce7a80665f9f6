//! A pace: so many per second, or one in so many seconds.

use serde::{Deserialize, Serialize, Serializer};

/// A number per second, kept as written; whole ones are written without a fraction.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(transparent)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Rate(pub f64);

impl PartialEq for Rate {
    fn eq(&self, other: &Self) -> bool {
        self.0.total_cmp(&other.0).is_eq()
    }
}

impl Eq for Rate {}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let is_whole = self.0.fract() == 0.0 && self.0.abs() < f64::from(u32::MAX);
        if is_whole { serializer.serialize_i64(self.0 as i64) } else { serializer.serialize_f64(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;

    #[test]
    fn it_is_written_as_it_was_read() {
        for text in ["10", "0.025", "-3", "100000", "1.5"] {
            let rate: Rate = serde_json::from_str(text).unwrap();
            assert_eq!(serde_json::to_string(&rate).unwrap(), text);
        }
    }
}
