//! Where a run's requests come from: a list that is ready, or whoever makes them while they are run.

use std::time::Duration;

use super::{BackendReport, Request};

/// Requests of an engine that does not say how many sequences it takes at once.
const USUAL_PLACES: usize = 256;

/// The next request of a run.
#[derive(Debug)]
pub enum NextRequest {
    /// A request that is ready.
    Request(Request),
    /// It is not ready yet.
    Later,
    /// There is none any more.
    End,
}

/// Source of a run's requests, taken from on one thread after the other.
pub trait RequestSource: Send {
    /// The next request, which is waited for up to `patience`.
    fn next(&mut self, patience: Duration) -> NextRequest;

    /// All requests, where they are ready: an engine gets them before it computes, as its measurement begins with that. `None` where
    /// they are made meanwhile: an engine holds a limited number of them, and takes further ones as it has room.
    fn take_all(&mut self) -> Option<Vec<Request>>;
}

/// Requests that are ready.
impl RequestSource for std::vec::IntoIter<Request> {
    fn next(&mut self, _patience: Duration) -> NextRequest {
        Iterator::next(self).map_or(NextRequest::End, NextRequest::Request)
    }

    fn take_all(&mut self) -> Option<Vec<Request>> {
        Some(self.collect())
    }
}

/// Requests of a stream that wait in an engine at most: as many as it runs at once, so that none of its places stays free.
pub(super) fn most_waiting(report: &BackendReport) -> usize {
    report.engine.max_num_seqs().unwrap_or(USUAL_PLACES).max(1) * report.engine.engines().max(1)
}
