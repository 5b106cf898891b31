//! Versions of objects that were listed without one: that of an object's first answer is the one that all others must be.
//!
//! Reads of one object are many, and each sees only its own answers. What they are held to is kept here: the ETag, or where
//! answers have none the time of writing, which tells versions apart by the second.

use std::collections::HashMap;

use parking_lot::Mutex;
use reqwest::header::{HeaderMap, LAST_MODIFIED};

use super::object;

/// Version of an object, as an answer states it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    etag: Option<String>,
    modified: Option<String>,
}

/// The versions that have been seen, by the names of their objects.
#[derive(Debug, Default)]
pub(super) struct Versions(Mutex<HashMap<String, Version>>);

impl Versions {
    /// The ETag to ask for.
    pub(super) fn etag(&self, name: &str) -> Option<String> {
        self.seen().get(name)?.etag.clone()
    }

    /// Holds an answer to those before it; the first one counts. Says in which way it is of another version.
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

    /// A listing begins anew: what it shows is of versions of its own.
    pub(super) fn forget(&self) {
        self.seen().clear();
    }

    fn seen(&self) -> parking_lot::MutexGuard<'_, HashMap<String, Version>> {
        self.0.lock()
    }
}
