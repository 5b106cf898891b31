//! A record of a run: one line of the spool's journal, before MLflow's limits are applied to it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// A metric point, a param or a tag.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Record {
    /// A live point of a metric.
    Metric { metric: String, value: Finite, step: u64, timestamp_ms: i64 },
    /// A setting of the run.
    Param { param: String, value: String },
    /// A fact about the run.
    Tag { tag: String, value: String },
}

/// A number that MLflow can store: bare NaN would become 0, and infinities are no JSON. Written as text, because
/// JSON readers may round the last bit of a number, and the same point must be the same point when sent again.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(super) struct Finite(f64);

impl Finite {
    pub(super) fn new(value: f64) -> Option<Self> {
        value.is_finite().then_some(Self(value))
    }

    pub(super) fn get(self) -> f64 {
        self.0
    }
}

impl From<Finite> for String {
    fn from(value: Finite) -> Self {
        value.0.to_string()
    }
}

impl TryFrom<String> for Finite {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| format!("`{text}` is not a finite number"))
    }
}

/// Milliseconds since 1970, MLflow's unit of time.
pub(super) fn milliseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_say_what_they_are() {
        for (record, line) in [
            (
                Record::Metric {
                    metric: "tokens/s".to_owned(),
                    value: Finite::new(0.1).unwrap(),
                    step: 3,
                    timestamp_ms: 1_700_000_000_123,
                },
                r#"{"metric":"tokens/s","value":"0.1","step":3,"timestamp_ms":1700000000123}"#,
            ),
            (Record::Param { param: "a".to_owned(), value: "b".to_owned() }, r#"{"param":"a","value":"b"}"#),
            (Record::Tag { tag: "ü".to_owned(), value: "\n".to_owned() }, r#"{"tag":"ü","value":"\n"}"#),
        ] {
            assert_eq!(serde_json::to_string(&record).unwrap(), line);
            assert_eq!(serde_json::from_str::<Record>(line).unwrap(), record);
        }
        for bad in ["{}", r#"{"metric":"a","value":"NaN","step":0,"timestamp_ms":0}"#, r#"{"param":"a"}"#, "3"] {
            assert!(serde_json::from_str::<Record>(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn numbers_come_back_to_the_last_bit(value in any::<f64>()) {
            prop_assume!(value.is_finite());
            let text = serde_json::to_string(&Finite(value)).unwrap();
            let read: Finite = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read.get().to_bits(), value.to_bits());
        }
    }
}
