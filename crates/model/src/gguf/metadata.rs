//! Metadata of a GGUF file, read key by key with errors that name the key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::config_json::LARGEST_SIZE;

/// A value; the widths of numbers are dropped.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
}

impl From<i128> for Value {
    fn from(number: i128) -> Self {
        Value::Integer(number)
    }
}

/// All key-value pairs with their file.
#[derive(Clone, Debug)]
pub(crate) struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    pub fn new(path: &Path, values: BTreeMap<String, Value>) -> Self {
        Self { path: path.into(), values }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// An error about one key.
    pub fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::setting(&self.path, key, reason)
    }

    /// An error about a value that the decoder does not implement.
    pub fn unsupported(&self, key: &str, allowed: &str) -> Error {
        Error::unsupported(&self.path, format!("{key} = {}", self.get(key).map_or("nothing".into(), shown)), allowed)
    }

    /// A count of at least 1, unless absent. Per-layer lists count as one number if all layers agree.
    pub fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        let number = match self.get(key) {
            None => return Ok(None),
            Some(&Value::Integer(number)) => Some(number),
            Some(Value::Integers(all)) if all.windows(2).all(|pair| pair[0] == pair[1]) => {
                all.first().map(|&number| number.into())
            }
            Some(Value::Integers(_)) => return Err(self.unsupported(key, "the same number for all layers is")),
            Some(_) => None,
        };
        match number {
            Some(number) if (1..=i128::from(LARGEST_SIZE)).contains(&number) => Ok(Some(number as usize)),
            _ => Err(self.wrong(key, &format!("a whole number from 1 to {LARGEST_SIZE}"))),
        }
    }

    pub fn required_size(&self, key: &str) -> Result<usize, Error> {
        self.size(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A finite number above zero, unless absent.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Float(number)) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            Some(&Value::Integer(number)) if number > 0 => Ok(Some(number as f64)),
            Some(_) => Err(self.wrong(key, "a number above 0")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Bool(flag)) => Ok(Some(flag)),
            Some(&Value::Integer(flag @ (0 | 1))) => Ok(Some(flag == 1)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "a string")),
        }
    }

    pub fn required_text(&self, key: &str) -> Result<&str, Error> {
        self.text(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A token id, unless absent.
    pub fn token_id(&self, key: &str) -> Result<Option<u32>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(&Value::Integer(id)) => u32::try_from(id).map(Some).map_err(|_| self.wrong(key, "a token id")),
            Some(_) => Err(self.wrong(key, "a token id")),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Texts(texts)) => Ok(Some(texts)),
            Some(_) => Err(self.wrong(key, "a list of strings")),
        }
    }

    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Integers(numbers)) => Ok(Some(numbers)),
            Some(_) => Err(self.wrong(key, "a list of whole numbers")),
        }
    }

    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Floats(numbers)) => Ok(Some(numbers)),
            Some(_) => Err(self.wrong(key, "a list of numbers")),
        }
    }

    fn wrong(&self, key: &str, allowed: &str) -> Error {
        self.error(key, format!("should be {allowed}, not {}", self.get(key).map_or("absent".into(), shown)))
    }
}

/// Beginning of a value, for recognising it in an error.
fn shown(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Text(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
        Value::Texts(list) => format!("a list of {} strings", list.len()),
        Value::Integers(list) => format!("a list of {} numbers", list.len()),
        Value::Floats(list) => format!("a list of {} numbers", list.len()),
    }
}
