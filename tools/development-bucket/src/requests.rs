//! Log of requests to the server, so that tests can check the behaviour of a client.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Requests remembered one by one; counts go on beyond them.
const MOST_REMEMBERED: usize = 10_000;

/// Purpose of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    List,
    Head,
    Get,
    Put,
    OpenUpload,
    PutPart,
    CommitUpload,
    AbortUpload,
    /// Anything that no PAR can do.
    Other,
}

/// One request and the status it was answered with, 0 until then.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    #[serde(skip)]
    pub number: u64,
    pub operation: Operation,
    pub name: String,
    pub range: Option<String>,
    pub if_match: Option<String>,
    pub status: u16,
}

/// All of them since the start or the last reset.
#[derive(Default)]
pub struct Requests {
    log: Mutex<Log>,
    open: AtomicU64,
    numbers: AtomicU64,
}

#[derive(Clone, Default, Serialize)]
pub struct Log {
    counts: BTreeMap<Operation, u64>,
    /// Bytes of bodies handed to connections.
    body_bytes_sent: u64,
    /// Connections accepted.
    connections: u64,
    /// Connections open at the same time, at most.
    most_connections: u64,
    requests: VecDeque<Request>,
}

impl Requests {
    /// Notes a request as it arrives: a client may go away before there is an answer.
    pub fn note(&self, request: Request) {
        let mut log = self.log();
        *log.counts.entry(request.operation).or_default() += 1;
        if log.requests.len() == MOST_REMEMBERED {
            log.requests.pop_front();
        }
        log.requests.push_back(request);
    }

    /// A number for the next request.
    pub fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes how request `number` was answered.
    pub fn answered(&self, number: u64, status: u16) {
        if let Some(request) = self.log().requests.iter_mut().rev().find(|request| request.number == number) {
            request.status = status;
        }
    }

    pub fn sent(&self, bytes: u64) {
        self.log().body_bytes_sent += bytes;
    }

    pub fn connected(&self) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let mut log = self.log();
        log.connections += 1;
        log.most_connections = log.most_connections.max(open);
    }

    pub fn disconnected(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn show(&self) -> Log {
        self.log().clone()
    }

    pub fn reset(&self) {
        let most_connections = self.open.load(Ordering::Relaxed);
        *self.log() = Log { most_connections, ..Log::default() };
    }

    fn log(&self) -> parking_lot::MutexGuard<'_, Log> {
        self.log.lock()
    }
}
