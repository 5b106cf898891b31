//! The bucket client against the development bucket server, and the server against the official SDK.

mod conformance;
mod facts;
mod faults;
mod listing;
mod names;
mod permissions;
mod random_faults;
mod strangers;
mod trust;
mod uploads;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flashjob_bucket::{Bucket, Error, RetryPolicy};
use flashjob_config::Par;
use flashjob_event::{Event, Events, Fact, Observer};
use serde_json::json;
use tempfile::TempDir;

use crate::support::bucket_server::BucketServer;

/// Stands in every PAR of these tests, and may stand in no message.
const TOKEN: &str = "s3cr3t-t0ken";

/// Patience in milliseconds: what would be given up after minutes is given up at once.
fn impatient() -> RetryPolicy {
    RetryPolicy {
        deadline: Duration::from_millis(400),
        base: Duration::from_millis(1),
        cap: Duration::from_millis(20),
        progress_timeout: Duration::from_millis(150),
        connect_timeout: Duration::from_secs(2),
        connections: 16,
    }
}

/// Patience for faults that pass: enough for a machine that is busy with other things.
fn patient() -> RetryPolicy {
    RetryPolicy { deadline: Duration::from_secs(60), progress_timeout: Duration::from_millis(500), ..impatient() }
}

fn open_with(url: &str, policy: RetryPolicy, events: Events) -> Bucket {
    Bucket::open(Par::parse(url).unwrap(), policy, events).unwrap()
}

fn open(url: &str) -> Bucket {
    open_with(url, patient(), Events::default())
}

/// A server on a folder of its own, its first PAR called [`TOKEN`].
struct Served {
    server: BucketServer,
    folder: TempDir,
}

impl Served {
    fn empty() -> Self {
        let folder = TempDir::new().unwrap();
        let par = json!({ "token": TOKEN }).to_string();
        let server = BucketServer::start_with(folder.path(), &["--par", &par]);
        Self { server, folder }
    }

    fn with(files: &[(&str, &[u8])]) -> Self {
        let served = Self::empty();
        for (name, content) in files {
            let path = served.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        served
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn open(&self) -> Bucket {
        open(self.server.url())
    }
}

/// Bytes that are different at every place and cannot be compressed away by a mistake.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(length)
    .collect()
}

/// Everything that was stated.
#[derive(Default)]
struct Seen(Mutex<Vec<Fact>>);

impl Observer for Seen {
    fn observe(&self, event: &Event) {
        self.0.lock().unwrap().push(event.fact.clone());
    }
}

impl Seen {
    fn listen() -> (Arc<Self>, Events) {
        let seen = Arc::new(Self::default());
        (Arc::clone(&seen), Events::to(vec![seen]))
    }

    fn bytes_read(&self) -> u64 {
        self.sum(|fact| if let Fact::BucketRead { bytes } = fact { *bytes } else { 0 })
    }

    fn bytes_written(&self) -> u64 {
        self.sum(|fact| if let Fact::BucketWritten { bytes } = fact { *bytes } else { 0 })
    }

    fn sum(&self, amount: impl Fn(&Fact) -> u64) -> u64 {
        self.0.lock().unwrap().iter().map(amount).sum()
    }

    /// Uploads in parts: how many parts, how many of them were there, and why no other process could go on.
    fn uploads(&self) -> Vec<(u64, u64, Option<&'static str>)> {
        let facts = self.0.lock().unwrap();
        let opened = facts.iter().filter_map(|fact| match fact {
            Fact::UploadOpened { parts, parts_there, not_resumable } => Some((*parts, *parts_there, *not_resumable)),
            _ => None,
        });
        opened.collect()
    }

    /// The reasons of retries, each once, in order of first appearance.
    fn retries(&self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        for fact in self.0.lock().unwrap().iter() {
            if let Fact::BucketRetried { reason } = fact
                && !reasons.contains(reason)
            {
                reasons.push(reason);
            }
        }
        reasons
    }
}

/// The error's text, after making sure that no form of it shows a token.
fn shown(error: &Error) -> String {
    let mut forms = vec![error.to_string(), format!("{error:?}"), format!("{error:#?}")];
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        forms.extend([error.to_string(), format!("{error:?}")]);
        source = error.source();
    }
    for form in &forms {
        assert!(!form.contains(TOKEN), "a token is shown: {form}");
    }
    forms.swap_remove(0)
}
