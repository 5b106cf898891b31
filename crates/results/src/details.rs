//! An object whose keys differ from writer to writer, such as an engine's report: flat, under keys with dots.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Values of one object at most: an engine reports some 30.
const MOST_VALUES: usize = 2000;

/// Bytes of a key at most, with those of the objects around it: nested keys are repeated for each value.
const LONGEST_KEY_BYTES: usize = 1000;

/// Texts by key, in the order of the file; `null` is left out. The value `1` in `{"cost": {"windows": [1]}}` has the key
/// `cost.windows.0`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details(Vec<(String, String)>);

impl Details {
    /// The value under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The value under `key` as a number.
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.get(key)?.parse().ok()
    }

    /// All keys and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl<'de> Deserialize<'de> for Details {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut found = Vec::new();
        Flatten { key: String::new(), found: &mut found }.deserialize(deserializer)?;
        Ok(Self(found))
    }
}

struct Flatten<'a> {
    key: String,
    found: &'a mut Vec<(String, String)>,
}

impl Flatten<'_> {
    fn keep<E: Error>(self, value: String) -> Result<(), E> {
        if self.found.len() == MOST_VALUES {
            return Err(E::custom(format!("an object holds more than {MOST_VALUES} values")));
        }
        self.found.push((self.key, value));
        Ok(())
    }

    fn under<E: Error>(&mut self, name: &str) -> Result<Flatten<'_>, E> {
        let key = if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) };
        if key.len() > LONGEST_KEY_BYTES {
            return Err(E::custom(format!("a key has more than {LONGEST_KEY_BYTES} bytes")));
        }
        Ok(Flatten { key, found: self.found })
    }
}

impl<'de> DeserializeSeed<'de> for Flatten<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Flatten<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.keep(value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.keep(value.to_string())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.keep(value.to_string())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.keep(value.to_string())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<(), E> {
        self.keep(value.to_owned())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
        for index in 0.. {
            let inner = self.under(&index.to_string())?;
            if elements.next_element_seed(inner)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<(), A::Error> {
        while let Some(name) = entries.next_key::<String>()? {
            let inner = self.under(&name)?;
            entries.next_value_seed(inner)?;
        }
        Ok(())
    }
}
