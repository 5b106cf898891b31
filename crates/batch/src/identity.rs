//! Identity of a batch: everything that must be the same for a job to go on with the answers of an earlier one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A file of the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// Path within the input.
    pub name: String,
    /// Size as it is stored.
    pub bytes: u64,
    /// Version of an object in a bucket, where the bucket has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// Identity of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Files of the input, in the order of their entries.
    pub inputs: Vec<InputFile>,
    /// Settings that change an answer, or where it stands: values by key.
    pub settings: BTreeMap<String, String>,
}

impl Identity {
    /// The first difference from the identity of an earlier job, as a clause.
    pub fn difference(&self, earlier: &Self) -> Option<String> {
        for (now, then) in self.inputs.iter().zip(&earlier.inputs) {
            if now.name != then.name {
                return Some(format!("its input had `{}` where there is `{}` now", then.name, now.name));
            }
            if now.bytes != then.bytes {
                return Some(format!("`{}` had {} bytes and has {} now", now.name, then.bytes, now.bytes));
            }
            // A mount that does not ask for versions says nothing against an earlier one that did.
            if let (Some(version), Some(earlier)) = (&now.version, &then.version)
                && version != earlier
            {
                return Some(format!("`{}` was replaced by another version", now.name));
            }
        }
        if self.inputs.len() != earlier.inputs.len() {
            return Some(format!("its input had {} files and has {} now", earlier.inputs.len(), self.inputs.len()));
        }
        let keys = self.settings.keys().chain(earlier.settings.keys());
        let value = |settings: &BTreeMap<String, String>, key: &str| {
            settings.get(key).map_or("not set".to_owned(), |value| format!("`{value}`"))
        };
        keys.into_iter()
            .find(|&key| self.settings.get(key) != earlier.settings.get(key))
            .map(|key| format!("{key} was {} and is {} now", value(&earlier.settings, key), value(&self.settings, key)))
    }
}
