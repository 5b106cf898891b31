//! `config.json`, read key by key with errors that name the key.
//!
//! Knows JSON and plausible ranges; which keys there are is the families' business.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Error, small_file, substitute};

/// Largest plausible dimension of a model; larger ones are a mistake or an attack.
pub(super) const LARGEST_SIZE: u64 = 1 << 28;

/// The byte order mark U+FEFF in UTF-8.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// A JSON object with its origin. `null` counts as absent, as in Hugging Face's own reader.
#[derive(Clone, Debug)]
pub struct ConfigJson {
    path: PathBuf,
    /// Path of keys to this object, with a trailing dot; empty at the root.
    prefix: String,
    object: Map<String, Value>,
}

impl ConfigJson {
    /// Reads the file at `path`, unless there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, Error> {
        let text = small_file::read_if_there(path, "the configuration", small_file::LARGEST_JSON_BYTES)?;
        text.map(|text| Self::parse(path, &text)).transpose()
    }

    /// Parses the text of the file at `path`.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Self, Error> {
        // Git LFS pointers and HTML pages are common in place of files; the message then says what to do.
        if let Some(reason) = substitute::reason(text) {
            return Err(Error::malformed(path, reason));
        }
        // Some editors begin a file with a byte order mark.
        match serde_json::from_slice(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)) {
            Ok(Value::Object(object)) => Ok(Self { path: path.into(), prefix: String::new(), object }),
            Ok(_) => Err(Error::malformed(path, "it should hold a JSON object")),
            Err(error) => Err(Error::malformed(path, format!("it is not JSON: {error}"))),
        }
    }

    /// The file that the object came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key, unless absent or `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        // transformers writes null for a setting without a value.
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Returns whether a key is present, with any value, also `null`.
    pub fn has(&self, key: &str) -> bool {
        self.object.contains_key(key)
    }

    /// Returns whether the object is nested in another one.
    pub fn is_nested(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// All keys with their values.
    pub fn entries(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.object.iter()
    }

    /// The object without a key.
    pub fn without(&self, key: &str) -> Self {
        let mut object = self.object.clone();
        object.remove(key);
        Self { object, ..self.clone() }
    }

    /// The object with `text` for a key if it is absent.
    pub fn with_default(mut self, key: &str, text: &str) -> Self {
        if self.get(key).is_none() {
            self.object.insert(key.to_owned(), text.into());
        }
        self
    }

    /// An error about one key.
    pub fn error(&self, key: &str, reason: impl Into<String>) -> Error {
        Error::setting(&self.path, format!("{}{key}", self.prefix), reason)
    }

    /// An error about a value that the decoder does not implement.
    pub fn unsupported(&self, key: &str, allowed: &str) -> Error {
        let value = self.get(key).map_or("null".into(), |value| abbreviated(&value.to_string()));
        Error::unsupported(&self.path, format!("{}{key} = {value}", self.prefix), allowed)
    }

    /// A nested object, unless absent.
    pub fn object(&self, key: &str) -> Result<Option<ConfigJson>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(ConfigJson {
                path: self.path.clone(),
                prefix: format!("{}{key}.", self.prefix),
                object: object.clone(),
            })),
            Some(other) => {
                Err(self.error(key, format!("should be an object, not {}", abbreviated(&other.to_string()))))
            }
        }
    }

    /// A count of at least 1, unless absent.
    pub fn size(&self, key: &str) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(size) if (1..=LARGEST_SIZE).contains(&size) => Ok(Some(size as usize)),
            _ => Err(self.error(
                key,
                format!("should be a whole number from 1 to {LARGEST_SIZE}, not {}", abbreviated(&value.to_string())),
            )),
        }
    }

    /// A count of at least 1.
    pub fn required_size(&self, key: &str) -> Result<usize, Error> {
        self.size(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A finite number above zero, unless absent.
    pub fn positive(&self, key: &str) -> Result<Option<f64>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(self.error(key, format!("should be a number above 0, not {}", abbreviated(&value.to_string())))),
        }
    }

    /// A finite number above zero.
    pub fn required_positive(&self, key: &str) -> Result<f64, Error> {
        self.positive(key)?.ok_or_else(|| self.error(key, "is missing"))
    }

    /// A finite number above zero, or `default` where the key is absent: `null` is neither.
    pub fn nullable_positive(&self, key: &str, default: Option<f64>) -> Result<Option<f64>, Error> {
        // Absent and null differ here: null switches a feature off that the default switches on.
        if self.object.contains_key(key) { self.positive(key) } else { Ok(default) }
    }

    /// A list of finite numbers above zero, unless absent.
    pub fn positives(&self, key: &str) -> Result<Option<Vec<f32>>, Error> {
        let positive = |value: &Value| value.as_f64().map(|n| n as f32).filter(|n| *n > 0.0 && n.is_finite());
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_array().and_then(|list| list.iter().map(positive).collect()) {
                Some(numbers) => Ok(Some(numbers)),
                None => Err(self.error(key, "should be a list of numbers above 0")),
            },
        }
    }

    /// A list of strings, unless absent.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<String>>, Error> {
        let text = |value: &Value| value.as_str().map(String::from);
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_array().and_then(|list| list.iter().map(text).collect()) {
                Some(texts) => Ok(Some(texts)),
                None => Err(self.error(key, "should be a list of strings")),
            },
        }
    }

    /// `true` or `false`, unless absent.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => {
                Err(self.error(key, format!("should be true or false, not {}", abbreviated(&other.to_string()))))
            }
        }
    }

    /// A string, unless absent.
    pub fn text(&self, key: &str) -> Result<Option<&str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.error(key, format!("should be a string, not {}", abbreviated(&other.to_string())))),
        }
    }

    /// One token id or a list of them; absent is an empty list.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let ids = match self.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().collect(),
            Some(id) => vec![id],
        };
        let id = |value: &&Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        ids.iter()
            .map(id)
            .collect::<Option<_>>()
            .ok_or_else(|| self.error(key, "should be a token id or a list of them"))
    }
}

/// Beginning of a value, for recognising it in an error.
fn abbreviated(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}
