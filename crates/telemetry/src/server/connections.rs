//! Connections of the metrics port: at most 64, each limited in time, size and rate.
//!
//! Descriptors belong to the process, not to the port: a thousand connections must not keep a result from being written.
//! Where all places are taken, the connection without a request for the longest time is closed, so that a liveness probe
//! always finds a place.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service as _;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, Watched};
use crate::Registry;

const MOST_PLACES: usize = 64;
const HEADER_BYTES: usize = 16 * 1024;

/// Most requests of one connection in a burst, and the time in which it earns another one (token bucket). Beyond that,
/// answers are delayed: they take processor time from the measurement.
const BURST: u32 = 10;
const EARNED_IN: Duration = Duration::from_millis(100);

/// Pause after the system refused an `accept`, mostly for want of descriptors, which closed connections give back.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is cancelled, then finishes the answers in progress. Dropping the future closes all connections.
pub(super) async fn serve(listener: TcpListener, router: Router, registry: Arc<Registry>, stop: CancellationToken) {
    let places = Arc::new(Places { most: places(getrlimit(Resource::Nofile).current), ..Places::default() });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            // Finished tasks are collected at once: their results would pile up otherwise.
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = Places::take(&places);
                connections.spawn(connection(stream, peer, router.clone(), registry.clone(), place, stop.clone()));
            }
            // The client gave up between the kernel's accept and ours.
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => {
                // Out of descriptors: the idlest connection gives one back, or no probe could connect any more.
                places.evict_longest_idle();
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
    // Closed first: new connections are refused while the last answers are sent.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Most connections for a process with so many descriptors: at most a quarter of them.
fn places(descriptors: Option<u64>) -> usize {
    let quarter = descriptors.map_or(MOST_PLACES, |all| usize::try_from(all / 4).unwrap_or(MOST_PLACES));
    // Two at least: a scraper and a probe.
    quarter.clamp(2, MOST_PLACES)
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    registry: Arc<Registry>,
    place: Place,
    stop: CancellationToken,
) {
    let activity = place.activity.clone();
    let pages = TowerToHyperService::new(router);
    let rate_limit = Arc::new(RateLimit::default());
    let service = hyper::service::service_fn({
        let activity = activity.clone();
        move |mut request: hyper::Request<Incoming>| {
            activity.requested();
            registry.page_requested();
            request.extensions_mut().insert(ConnectInfo(peer));
            // The answer is a lazy future: a delayed request costs nothing until its pause is over.
            let (answer, activity, pause) = (pages.call(request), activity.clone(), rate_limit.pause());
            async move {
                tokio::time::sleep(pause).await;
                let answer: Result<hyper::Response<_>, Infallible> = answer.await;
                match answer.as_ref().is_ok_and(|answer| is_stream(answer.headers())) {
                    true => activity.streams(),
                    false => activity.made(),
                }
                answer
            }
        }
    });
    let io = TokioIo::new(Watched { stream, activity: activity.clone() });
    let mut builder = http1::Builder::new();
    // hyper's timer would also cover pauses between requests, which have another limit here.
    builder.header_read_timeout(None).max_header_size(HEADER_BYTES).max_buf_size(2 * HEADER_BYTES);
    let mut serving = std::pin::pin!(builder.serve_connection(io, service));
    let mut stopping = false;
    loop {
        tokio::select! {
            // Errors of a connection concern its client only.
            _ = serving.as_mut() => break,
            () = place.evicted.cancelled() => break,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
            // The deadline may have moved while this waited, so it is read again.
            () = until(activity.deadline()) => if activity.deadline() <= Instant::now() { break },
        }
    }
}

fn is_stream(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

fn until(deadline: Instant) -> impl Future<Output = ()> {
    tokio::time::sleep_until(deadline)
}

/// Rate limit of one connection: a token bucket.
struct RateLimit {
    /// Time at which the bucket would be full again.
    next: Mutex<Instant>,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self { next: Mutex::new(Instant::now()) }
    }
}

impl RateLimit {
    /// Delay for the request that has just come.
    fn pause(&self) -> Duration {
        let now = Instant::now();
        let mut next = self.next.lock();
        // The generic cell rate algorithm: one time instead of a counter and a timer.
        *next = (*next).max(now) + EARNED_IN;
        next.saturating_duration_since(now + BURST * EARNED_IN)
    }
}

/// Connections in use.
#[derive(Default)]
struct Places {
    most: usize,
    taken: Mutex<Vec<Taken>>,
    last_number: AtomicU64,
}

struct Taken {
    number: u64,
    activity: Arc<Activity>,
    evicted: CancellationToken,
}

/// One connection's place, released on drop.
struct Place {
    number: u64,
    places: Arc<Places>,
    activity: Arc<Activity>,
    evicted: CancellationToken,
}

impl Places {
    /// A place; if none is free, that of the connection that has been idle for longest.
    fn take(places: &Arc<Self>) -> Place {
        let number = places.last_number.fetch_add(1, Ordering::Relaxed);
        let (activity, evicted) = (Activity::begin(), CancellationToken::new());
        let mut taken = places.lock();
        while taken.len() >= places.most {
            evict(&mut taken);
        }
        taken.push(Taken { number, activity: activity.clone(), evicted: evicted.clone() });
        drop(taken);
        Place { number, places: places.clone(), activity, evicted }
    }

    fn evict_longest_idle(&self) {
        evict(&mut self.lock());
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Vec<Taken>> {
        self.taken.lock()
    }
}

fn evict(taken: &mut Vec<Taken>) {
    let longest_idle = taken.iter().enumerate().min_by_key(|(_, taken)| taken.activity.last_request());
    if let Some((position, _)) = longest_idle {
        // Removed at once, not when its task ends, so that the caller finds a free place.
        taken.swap_remove(position).evicted.cancel();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // By number: after an eviction the place is gone already, and a position would be another's.
        self.places.lock().retain(|taken| taken.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_a_quarter_of_few_descriptors() {
        for (descriptors, expected) in [(None, 64), (Some(1 << 20), 64), (Some(256), 64), (Some(100), 25), (Some(0), 2)]
        {
            assert_eq!(places(descriptors), expected, "{descriptors:?}");
        }
    }

    #[test]
    fn the_longest_idle_connection_gives_way() {
        let places = Arc::new(Places { most: 2, ..Places::default() });
        let [first, second] = [Places::take(&places), Places::take(&places)];
        // The first one asks, and is not the longest idle any more.
        first.activity.requested();
        let third = Places::take(&places);
        let evicted = [&first, &second, &third].map(|place| place.evicted.is_cancelled());
        assert_eq!(evicted, [false, true, false]);
        drop((first, second));
        let fourth = Places::take(&places);
        assert!(!third.evicted.is_cancelled() && !fourth.evicted.is_cancelled());
    }
}
