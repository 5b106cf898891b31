//! HTTP server: metrics for scrapers, probes for kubelets, a live page for people.
//!
//! It knows a [`Registry`] and the sources of the live page ([`Live`]), reads them, and changes nothing. Clients are not trusted: connections are few and
//! limited in time ([`connections`]), and the text is rendered a few times a second at most ([`page`]).

mod activity;
mod connections;
mod page;
mod scrapers;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::page::Page;
use self::scrapers::{Scraper, Scrapers};
use super::Registry;
use super::live::{Live, Pieces};
use flashjob_event::Phase;

/// `prometheus::TEXT_FORMAT` with the charset that the format prescribes.
const METRICS_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Time for responses in progress once the server is told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Reasons why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Another process has the port, or a flashjob that still lingers.
    #[error(
        "metrics cannot be served at {0}: another process listens there; \
         set metrics-port to a free port (0 lets the system choose)"
    )]
    AddressInUse(SocketAddr),
    /// Anything else that the system refuses.
    #[error("metrics cannot be served at {address}: {source}; set metrics-port to a port that this user may open")]
    Bind {
        /// Address that was tried.
        address: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Reasons for the end of a linger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LingerEnd {
    /// Every scraper that had come regularly has the final values; where none had, one that had come before.
    Scraped,
    /// No scraper came in time.
    TimedOut,
    /// The job was told to stop.
    Cancelled,
}

/// Serves metrics until it is stopped or dropped.
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

struct Shared {
    registry: Arc<Registry>,
    page: Page,
    scrapers: Scrapers,
    pieces: Pieces,
    /// Places of those who look at the live page.
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Server {
    /// Listens at `address`; port 0 lets the system choose one. `live` is for the page that people see.
    ///
    /// # Errors
    /// When the address is taken or refused.
    pub async fn start(address: SocketAddr, registry: Arc<Registry>, live: Live) -> Result<Self, ServerError> {
        let refused = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::AddrInUse => ServerError::AddressInUse(address),
            _ => ServerError::Bind { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        let page = Page::of(registry.clone());
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            registry: registry.clone(),
            page,
            scrapers: Scrapers::default(),
            pieces: Pieces::new(registry.clone(), live),
            streams: Arc::new(Semaphore::new(stream::MOST_STREAMS)),
            stop: stop.clone(),
        });
        let router = Router::new()
            .route("/", get(stream::page))
            .route("/events", get(stream::events))
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "alive\n" }))
            .route("/readyz", get(ready))
            .with_state(shared.clone());
        let task = tokio::spawn(connections::serve(listener, router, registry, stop.clone()));
        Ok(Self { address, shared, stop, task })
    }

    /// Address that it listens at, with the port that the system chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells that a scraper has come so far.
    pub fn was_scraped(&self) -> bool {
        self.shared.scrapers.any()
    }

    /// Declares the values final and waits until those that scraped before have scraped them, at most for `duration`.
    pub async fn linger(&self, duration: Duration, cancel: &CancellationToken) -> LingerEnd {
        self.shared.page.forget();
        let satisfied = self.shared.scrapers.expect_final();
        tokio::select! {
            biased;
            () = cancel.cancelled() => LingerEnd::Cancelled,
            () = satisfied.cancelled() => LingerEnd::Scraped,
            () = tokio::time::sleep(duration) => LingerEnd::TimedOut,
        }
    }

    /// Takes no new connections, finishes the responses under way (2 s at most) and ends.
    pub async fn stop(mut self) {
        self.stop.cancel();
        // Beyond that time dropping the task closes what is left.
        let _ = tokio::time::timeout(STOP_PATIENCE, &mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn metrics(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    method: Method,
    headers: HeaderMap,
) -> impl IntoResponse {
    // Noted before rendering: a scrape that began earlier may have missed the final values.
    let scrape = (method == Method::GET).then(|| shared.scrapers.begin(Scraper::of(peer.ip(), &headers)));
    let text = shared.page.text();
    if let Some(scrape) = scrape {
        shared.scrapers.end(scrape);
    }
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], text)
}

async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    match shared.registry.totals().phase {
        Some(phase @ (Phase::Follow | Phase::WarmUp | Phase::Measure)) => {
            (StatusCode::OK, format!("ready: phase {}\n", phase.name()))
        }
        Some(phase) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: phase {}\n", phase.name())),
        None => (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting\n".to_owned()),
    }
}
