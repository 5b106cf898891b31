//! Entries of `input_object_storage` and `output_object_storage`: JSON objects with a few known fields.
//!
//! Read by hand, because a deserialiser's messages repeat what they found, and that may be a token.

use serde_json::{Map, Value};

use crate::arguments::nearest;
use crate::quoting::quoted;

/// One object of the list.
pub(super) struct Entry {
    /// Its place, from 0.
    index: usize,
    fields: Map<String, Value>,
}

/// The entries of a JSON list, with `allowed` fields only. A single object counts as a list of one.
pub(super) fn entries(text: &str, allowed: &[&str]) -> Result<Vec<Entry>, String> {
    // serde_json's message holds a position and no text.
    let value: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
    // The platform writes a list; by hand one object is the usual case.
    let list = match value {
        Value::Array(list) => list,
        object @ Value::Object(_) => vec![object],
        _ => return Err("it must be a JSON list of objects".to_owned()),
    };
    let entry = |(index, value)| {
        let Value::Object(fields) = value else {
            return Err(format!("entry {index} must be a JSON object"));
        };
        if let Some(field) = fields.keys().find(|field| !allowed.contains(&field.as_str())) {
            let hint = match nearest(field, allowed.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => format!("there are {}", allowed.join(", ")),
            };
            return Err(format!("entry {index} has the unknown field {}; {hint}", quoted(field)));
        }
        Ok(Entry { index, fields })
    };
    list.into_iter().enumerate().map(entry).collect()
}

impl Entry {
    /// The field called `name`, where it is there and not null, through `parse`; what is wrong goes to `refuse`.
    pub fn read<T>(
        &self,
        name: &str,
        refuse: &mut impl FnMut(String),
        parse: impl FnOnce(Option<&Value>) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.fields.get(name).filter(|value| !value.is_null());
        parse(value).map_err(|clause| refuse(format!("{name} of entry {}: {clause}", self.index))).ok()
    }

    /// The field called `name` as text, where it is there and not null.
    pub fn text(&self, name: &str) -> Result<Option<&str>, String> {
        let value = self.fields.get(name).filter(|value| !value.is_null());
        value.map(text).transpose().map_err(|clause| format!("{name} of entry {}: {clause}", self.index))
    }
}

/// A JSON text without the white space around it.
pub(super) fn text(value: &Value) -> Result<&str, String> {
    value.as_str().map(str::trim).ok_or_else(|| "it must be a text".to_owned())
}
