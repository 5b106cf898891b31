//! HTTP to one PAR: connections, timeouts by progress, and classification of transport failures.
//!
//! HTTP/1.1 on purpose. Many ranges in parallel want many connections: the service limits the bandwidth of
//! each, and HTTP/2 would put all of them on one connection with one congestion window, where a lost packet
//! stalls every range. Redirects are not followed and no Referer is sent: both would pass the token on.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, HeaderMap};
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::answer::Failure;
use super::error::{Error, ErrorKind};
use super::rate::Rate;
use super::retry::RetryPolicy;
use super::versions::Versions;
use flashjob_config::Par;
use flashjob_event::{Events, Fact};

/// Idle time after which connections are closed, before the service does it under a request.
const IDLE: Duration = Duration::from_secs(20);
/// Most bytes of an error's body that are read: the service's have a few hundred.
const LONGEST_ERROR_BODY_BYTES: usize = 16 << 10;
/// Length of the pieces of a request's body, in bytes; each piece that is taken counts as progress.
const SENT_PIECE_BYTES: usize = 64 << 10;

/// One PAR and the connections to its host.
pub(super) struct Transport {
    client: Client,
    par: Par,
    policy: RetryPolicy,
    events: Events,
    permits: Semaphore,
    throttled: AtomicU64,
    versions: Versions,
}

impl Transport {
    pub(super) fn new(par: Par, policy: RetryPolicy, events: Events) -> Result<Self, Error> {
        let connections = policy.connections.clamp(1, Semaphore::MAX_PERMITS);
        let builder = || {
            let builder = Client::builder()
                .http1_only()
                .user_agent(concat!("flashjob/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(policy.connect_timeout)
                .pool_max_idle_per_host(connections)
                .pool_idle_timeout(IDLE)
                .tcp_nodelay(true);
            // A proxy cannot reach this machine's loopback.
            if is_loopback(par.origin()) { builder.no_proxy() } else { builder }
        };
        // The bundled roots are always trusted; the machine's own are added if they can be read. A scratch image has
        // none, and a broken bundle must not disable the bundled roots.
        let client = builder().build().or_else(|_| ClientBuilder::tls_built_in_native_certs(builder(), false).build());
        let client = client.map_err(|error| {
            let failure = Failure::new(ErrorKind::Unreachable, chain(&error.without_url()));
            Error::new(&par, "prepare an HTTP client", 1, failure)
        })?;
        let permits = Semaphore::new(connections);
        Ok(Self { client, par, policy, events, permits, throttled: AtomicU64::new(0), versions: Versions::default() })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn par(&self) -> &Par {
        &self.par
    }

    pub(super) fn policy(&self) -> &RetryPolicy {
        &self.policy
    }

    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    /// Versions of objects that were listed without an ETag.
    pub(super) fn versions(&self) -> &Versions {
        &self.versions
    }

    pub(super) fn throttled(&self) -> u64 {
        self.throttled.load(Ordering::Relaxed)
    }

    /// Sends a request without a body and waits for the head of its answer, of any status.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Reply<'_>, Failure> {
        self.answer(request, &AtomicU64::new(0)).await
    }

    /// Sends `body`, for as long as it makes progress, and waits for the head of the answer.
    pub(super) async fn send_body(&self, request: RequestBuilder, body: Bytes) -> Result<Reply<'_>, Failure> {
        let taken = Arc::new(AtomicU64::new(0));
        // A stream has no length of its own, and the service requires Content-Length.
        let request = request.header(CONTENT_LENGTH, body.len());
        let pieces = stream::unfold((body, Arc::clone(&taken)), |(mut rest, taken)| async move {
            // hyper polls for the next piece when the socket has taken the last one.
            taken.fetch_add(1, Ordering::Relaxed);
            let piece = rest.split_to(rest.len().min(SENT_PIECE_BYTES));
            (!piece.is_empty()).then_some((Ok::<_, io::Error>(piece), (rest, taken)))
        });
        self.answer(request.body(reqwest::Body::wrap_stream(pieces)), &taken).await
    }

    async fn answer(&self, request: RequestBuilder, progress: &AtomicU64) -> Result<Reply<'_>, Failure> {
        // The semaphore is never closed.
        let permit =
            self.permits.acquire().await.map_err(|error| Failure::unreachable("connect", error.to_string()))?;
        let response = while_it_moves(request.send(), progress, self.policy.progress_timeout).await;
        let response = response.ok_or_else(|| self.silent("answer"))?.map_err(transport_failure)?;
        let rate = Rate::over(self.policy.progress_timeout);
        Ok(Reply { response, rate, transport: self, _permit: permit })
    }

    fn silent(&self, what: &str) -> Failure {
        let seconds = self.policy.progress_timeout.as_secs_f64();
        Failure::unreachable("timeout", format!("no {what} came for {seconds} s"))
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("par", &self.par).field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// The head of an answer whose body is still to be read. Holds one of the permitted connections.
pub(super) struct Reply<'a> {
    response: Response,
    rate: Rate,
    transport: &'a Transport,
    _permit: SemaphorePermit<'a>,
}

impl Reply<'_> {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// The next piece of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        let asked = Instant::now();
        let next = tokio::time::timeout(self.transport.policy.progress_timeout, self.response.chunk()).await;
        let next = match next {
            Err(_) => Err(self.transport.silent("part of the body")),
            Ok(Err(error)) => Err(transport_failure(error)),
            Ok(Ok(None)) => Ok(None),
            Ok(Ok(Some(piece))) => match self.rate.came(piece.len(), asked.elapsed()) {
                Ok(()) => Ok(Some(piece)),
                Err((bytes, waited)) => {
                    let cause = format!("only {bytes} bytes of the body came in {:.1} s", waited.as_secs_f64());
                    Err(Failure::unreachable("timeout", cause))
                }
            },
        };
        next.map_err(|failure| failure.with_request_id(self.response.headers()))
    }

    /// The whole body of at most `limit` bytes.
    pub(super) async fn collect(&mut self, limit: usize) -> Result<Bytes, Failure> {
        let mut body = BytesMut::new();
        while let Some(piece) = self.chunk().await? {
            if body.len() + piece.len() > limit {
                return Err(Failure::protocol(format!("the answer is longer than {limit} bytes"))
                    .with_request_id(self.response.headers()));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }

    /// The reply itself for status 2xx, else its failure.
    pub(super) async fn success(mut self) -> Result<Self, Failure> {
        if self.status().is_success() { Ok(self) } else { Err(self.failure().await) }
    }

    /// The failure that a reply stands for.
    pub(super) async fn failure(&mut self) -> Failure {
        // A body that cannot be read adds nothing: the status decides.
        let body = self.collect(LONGEST_ERROR_BODY_BYTES).await.unwrap_or_default();
        let failure = Failure::of_answer(self.status(), self.headers(), &body, SystemTime::now());
        // The mount reads this count to lower its concurrency.
        if failure.kind == ErrorKind::Throttled {
            self.transport.throttled.fetch_add(1, Ordering::Relaxed);
        }
        failure
    }

    /// Emits the fact that `bytes` bytes of an object have arrived.
    pub(super) fn arrived(&self, bytes: usize) {
        self.transport.events.emit(Fact::BucketRead { bytes: bytes as u64 });
    }
}

/// Waits for `work` while `progress` changes at least once per `patience`; `None` if it stands still.
async fn while_it_moves<F: Future>(work: F, progress: &AtomicU64, patience: Duration) -> Option<F::Output> {
    let mut work = pin!(work);
    loop {
        // Compared over whole periods, so that the hot path has no timer to reset.
        let before = progress.load(Ordering::Relaxed);
        match tokio::time::timeout(patience, &mut work).await {
            Ok(output) => return Some(output),
            Err(_) if progress.load(Ordering::Relaxed) == before => return None,
            Err(_) => {}
        }
    }
}

/// The failure that an error below HTTP stands for. The URL, which contains the token, is removed from its text.
fn transport_failure(error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let cause = chain(&error);
    if error.is_builder() {
        return Failure::new(ErrorKind::InvalidRequest, cause);
    }
    if cause.contains("certificate") {
        // Retries do not repair a certificate.
        return Failure::new(ErrorKind::Unreachable, cause);
    }
    // The order matters: a timeout while connecting is a timeout.
    let reason = if error.is_timeout() {
        "timeout"
    } else if error.is_connect() {
        "connect"
    } else if is_reset(&error) {
        "reset"
    } else if error.is_body() || error.is_decode() {
        "short_body"
    } else {
        "reset"
    };
    Failure::unreachable(reason, cause)
}

fn is_reset(error: &reqwest::Error) -> bool {
    sources(error).filter_map(|source| source.downcast_ref::<io::Error>()).any(|error| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        matches!(error.kind(), ConnectionReset | BrokenPipe | ConnectionAborted)
    })
}

/// An error and its sources in one clause, each text once.
fn chain(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    for text in std::iter::once(error.to_string()).chain(sources(error).map(ToString::to_string)) {
        if !texts.iter().any(|known| known.contains(&text)) {
            texts.push(text);
        }
    }
    texts.join(": ")
}

fn sources(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
}

fn is_loopback(origin: &str) -> bool {
    url::Url::parse(origin).is_ok_and(|url| match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    })
}
