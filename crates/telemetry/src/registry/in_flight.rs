//! State of requests in flight, kept until they finish.
//!
//! Sharded by request, so that threads that finish requests do not wait for the one that makes tokens.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

use super::serving::Region;
use flashjob_event::RequestId;

/// Number of shards, a power of two: requests are numbered from zero, so the low bits spread them evenly.
const SHARDS: usize = 16;

/// Times of one request.
pub(super) struct InFlight {
    /// Region in which the request was queued: all of its facts count there, even if it ends later.
    pub(super) region: Region,
    pub(super) prompt_tokens: u32,
    pub(super) queued: Instant,
    pub(super) scheduled: Option<Instant>,
    pub(super) first_token: Option<Instant>,
    pub(super) last_token: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Requests {
    shards: [Mutex<HashMap<RequestId, InFlight>>; SHARDS],
}

impl Requests {
    /// Adds a request, replacing one of the same number that never finished.
    pub(super) fn insert(&self, request: RequestId, state: InFlight) {
        self.with_shard(request, |shard| shard.insert(request, state));
    }

    /// Applies `change` to the state of `request`, if it is known.
    pub(super) fn update<T>(&self, request: RequestId, change: impl FnOnce(&mut InFlight) -> T) -> Option<T> {
        self.with_shard(request, |shard| shard.get_mut(&request).map(change))
    }

    /// Forgets `request`.
    pub(super) fn remove(&self, request: RequestId) -> Option<InFlight> {
        self.with_shard(request, |shard| shard.remove(&request))
    }

    /// Removes all requests: the remaining ones were abandoned.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            shard.lock().clear();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn with_shard<T>(&self, request: RequestId, act: impl FnOnce(&mut HashMap<RequestId, InFlight>) -> T) -> T {
        // Consecutive requests are in different shards, so their tokens rarely contend.
        let shard = &self.shards[request.0 as usize % SHARDS];
        act(&mut shard.lock())
    }
}
