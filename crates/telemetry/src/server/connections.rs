//! Connections of the metrics port: at most 64, each limited in time, size and rate.
//!
//! Descriptors are the process's, not the port's: whoever opens a thousand connections must not keep a result from being
//! written. Where all places are taken, the connection that has asked for nothing for the longest time gives up its own, so that
//! a liveness probe finds one whatever the others do.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
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

/// Requests that one connection may make at once, and the time in which it earns another one: beyond that it is answered
/// late. Nobody who watches asks so often, and answers take processor time that the measurement would have had.
const BURST: u32 = 10;
const EARNED_IN: Duration = Duration::from_millis(100);

/// After an `accept` that the system refused: for want of descriptors mostly, which connections give back.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Serves until `stop` is cancelled, then finishes the answers under way. Dropping the future closes everything.
pub(super) async fn serve(listener: TcpListener, router: Router, registry: Arc<Registry>, stop: CancellationToken) {
    let places = Arc::new(Places { most: places(getrlimit(Resource::Nofile).current), ..Places::default() });
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let place = Places::take(&places);
                connections.spawn(connection(stream, peer, router.clone(), registry.clone(), place, stop.clone()));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => {
                places.evict_longest_idle();
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Connections at most in a process of so many descriptors, most of which are not the port's.
fn places(descriptors: Option<u64>) -> usize {
    let quarter = descriptors.map_or(MOST_PLACES, |all| usize::try_from(all / 4).unwrap_or(MOST_PLACES));
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
    let pace = Arc::new(Pace::default());
    let service = hyper::service::service_fn({
        let activity = activity.clone();
        move |mut request: hyper::Request<Incoming>| {
            activity.requested();
            registry.page_requested();
            request.extensions_mut().insert(ConnectInfo(peer));
            let (answer, activity, pause) = (pages.call(request), activity.clone(), pace.pause());
            async move {
                tokio::time::sleep(pause).await;
                let answer: Result<_, Infallible> = answer.await;
                activity.made();
                answer
            }
        }
    });
    let io = TokioIo::new(Watched { stream, activity: activity.clone() });
    let mut builder = http1::Builder::new();
    // Its timer covers pauses between requests too; the activity's do not mix them.
    builder.header_read_timeout(None).max_header_size(HEADER_BYTES).max_buf_size(2 * HEADER_BYTES);
    let mut serving = std::pin::pin!(builder.serve_connection(io, service));
    let mut stopping = false;
    loop {
        tokio::select! {
            // Errors of a connection are its client's.
            _ = serving.as_mut() => break,
            () = place.evicted.cancelled() => break,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
            () = until(activity.deadline()) => if activity.deadline() <= Instant::now() { break },
        }
    }
}

fn until(deadline: Instant) -> impl Future<Output = ()> {
    tokio::time::sleep_until(deadline)
}

/// Earns a request in each interval, and keeps a few.
struct Pace {
    /// When the next request is earned, as if none had been kept.
    next: Mutex<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { next: Mutex::new(Instant::now()) }
    }
}

impl Pace {
    /// Time that the request that has just come is to wait.
    fn pause(&self) -> Duration {
        let now = Instant::now();
        let mut next = self.next.lock();
        *next = (*next).max(now) + EARNED_IN;
        next.saturating_duration_since(now + BURST * EARNED_IN)
    }
}

/// Clients that are connected.
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

/// One connection's, given back when it is dropped.
struct Place {
    number: u64,
    places: Arc<Places>,
    activity: Arc<Activity>,
    evicted: CancellationToken,
}

impl Places {
    /// A place, that of the longest idle connection where none is free.
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
        taken.swap_remove(position).evicted.cancel();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
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
