//! A sweep as JSON: an object with a list for each key, or a list with an object for each combination.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::{Axis, Values, all_or_mistakes, check_count, joined, range, sweepable};
use crate::keys::shown;

/// An object's entries in their order; a key that is there twice is in it twice.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// The object in `text`: one axis a key. Linked keys are separated by commas, and have lists of values.
///
/// # Errors
/// What is wrong with each key, as the rest of a sentence.
pub(super) fn axes(text: &str) -> Result<Vec<Axis>, Vec<String>> {
    let Entries(entries) = serde_json::from_str(text).map_err(|error| vec![not_json(&error)])?;
    all_or_mistakes(entries.iter().map(|(names, value)| axis(names, value)))
}

fn axis(names: &str, value: &Value) -> Result<Axis, String> {
    let fields = sweepable::fields(names)?;
    let name = joined(&fields);
    let Value::Array(items) = value else {
        return Err(format!("{name} must have a list of values"));
    };
    let count = fields.len();
    let rows = |item: &Value| match item {
        item if count == 1 => Ok(range::expand(&scalar(&name, item)?)?.into_iter().map(|text| vec![text]).collect()),
        Value::Array(row) if row.len() == count => {
            Ok(vec![row.iter().map(|value| scalar(&name, value)).collect::<Result<_, _>>()?])
        }
        _ => Err(format!("{name} must have lists of {count} values, one for each key")),
    };
    Axis::collect(fields, items.iter().map(rows))
}

/// The list in `text`: one combination an object.
///
/// # Errors
/// What is wrong with each object, as the rest of a sentence.
pub(super) fn listed(text: &str) -> Result<Vec<Values>, Vec<String>> {
    let objects: Vec<Entries> = serde_json::from_str(text).map_err(|error| vec![not_json(&error)])?;
    check_count(objects.len() as u128)?;
    let mut seen = HashMap::new();
    let combination = |(index, Entries(entries)): (usize, &Entries)| {
        let values = values(entries).map_err(|clause| format!("in entry {index} {clause}"))?;
        match seen.insert(values.clone(), index) {
            Some(other) => Err(format!("entries {other} and {index} are the same combination")),
            None => Ok(values),
        }
    };
    all_or_mistakes(objects.iter().enumerate().map(combination))
}

fn values(entries: &[(String, Value)]) -> Result<Values, String> {
    let mut values = Values::new();
    for (name, value) in entries {
        let field = sweepable::field(name)?;
        if values.iter().any(|(other, _)| *other == field) {
            return Err(format!("{} stands there twice", shown(field)));
        }
        values.push((field, scalar(&shown(field), value)?));
    }
    match values.is_empty() {
        true => Err("no key has a value".to_owned()),
        false => Ok(values),
    }
}

/// The text of a value as a flag would have it.
fn scalar(name: &str, value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) if text.trim().is_empty() => Err(format!("{name} has an empty value")),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(bool) => Ok(bool.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => {
            Err(format!("{name} must have texts, numbers, true or false as values"))
        }
    }
}

/// serde_json's message has a position; it may repeat what it found, as of a type that is not the expected one.
fn not_json(error: &serde_json::Error) -> String {
    match error.classify() {
        serde_json::error::Category::Data => {
            "it must be a JSON object with a list for each key, or a JSON list with an object for each combination"
                .to_owned()
        }
        _ => format!("it is not JSON: {error}"),
    }
}
