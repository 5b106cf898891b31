//! Versions of objects that were listed without an ETag: all answers must have the version of the first one.
//!
//! An object has many reads, and each sees only its own answers. The expected version is kept here: the ETag, or where
//! answers have none the time of writing, which tells versions apart by the second.

use std::collections::HashMap;

use parking_lot::Mutex;
use reqwest::header::{HeaderMap, LAST_MODIFIED};

use super::object;

/// Identity of an object's version, as an answer states it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    etag: Option<String>,
    modified: Option<String>,
}

/// Versions seen so far, by object name.
#[derive(Debug, Default)]
pub(super) struct Versions(Mutex<HashMap<String, Version>>);

impl Versions {
    /// The ETag to ask for.
    pub(super) fn etag(&self, name: &str) -> Option<String> {
        self.seen().get(name)?.etag.clone()
    }

    /// Compares an answer with the first one of the same object, or keeps it as the first. The error says how they
    /// differ.
    pub(super) fn hold(&self, name: &str, headers: &HeaderMap) -> Result<(), String> {
        let modified = object::text(headers, LAST_MODIFIED.as_str()).map(str::to_owned);
        let sent = Version { etag: object::etag(headers), modified };
        let mut seen = self.seen();
        let Some(first) = seen.get(name) else {
            seen.insert(name.to_owned(), sent);
            return Ok(());
        };
        let differs = |what: &str, sent: &Option<String>, first: &Option<String>| {
            let [sent, first] =
                [sent, first].map(|value| value.as_deref().map_or("none".to_owned(), |v| format!("`{v}`")));
            Err(format!("its {what} is {sent}, and was {first} in the first answer"))
        };
        match first {
            Version { etag, .. } if *etag != sent.etag => differs("ETag", &sent.etag, etag),
            Version { etag: None, modified } if *modified != sent.modified => {
                differs("time of writing", &sent.modified, modified)
            }
            _ => Ok(()),
        }
    }

    /// Forgets all versions at the start of a new listing.
    pub(super) fn forget(&self) {
        self.seen().clear();
    }

    fn seen(&self) -> parking_lot::MutexGuard<'_, HashMap<String, Version>> {
        self.0.lock()
    }
}
