//! Arguments of an engine that is not ours, by its own names.

use std::fmt;

use serde_json::{Map, Value};

/// Settings of another engine under the names that it gives them, in order. Whether it has them, it says itself.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
#[serde(transparent)]
pub struct EngineArguments(Map<String, Value>);

impl EngineArguments {
    /// Arguments by name, with `_` between words and `.` before the parts of a setting of several.
    pub fn new(arguments: Map<String, Value>) -> Self {
        Self(arguments)
    }

    /// Names of all arguments, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// One line of JSON.
impl fmt::Display for EngineArguments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}
