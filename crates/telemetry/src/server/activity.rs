//! A connection with a clock: what it is at, since when, and until when it may be.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// For the head of a request, from its first byte on, and for the first byte of a connection.
const HEAD: Duration = Duration::from_secs(5);
/// For an answer, until the client has taken its last byte.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two requests: longer than scrapers pause.
const IDLE: Duration = Duration::from_secs(75);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Answer { made: bool },
    Idle,
}

/// Shared by the connection, its service, and whoever looks for a place.
#[derive(Debug)]
pub(super) struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    stage: Stage,
    since: Instant,
    last_request: Instant,
}

impl Activity {
    pub(super) fn begin() -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self(Mutex::new(State { stage: Stage::Head, since: now, last_request: now })))
    }

    /// When it is to be closed, unless it gets on.
    pub(super) fn deadline(&self) -> Instant {
        let state = self.lock();
        state.since
            + match state.stage {
                Stage::Head => HEAD,
                Stage::Answer { .. } => ANSWER,
                Stage::Idle => IDLE,
            }
    }

    /// When its last request came, or itself. Bytes that make no request do not count.
    pub(super) fn last_request(&self) -> Instant {
        self.lock().last_request
    }

    /// A request has come whole.
    pub(super) fn requested(&self) {
        let mut state = self.lock();
        state.enter(Stage::Answer { made: false });
        state.last_request = state.since;
    }

    /// Its answer is made, and goes out from here on.
    pub(super) fn made(&self) {
        self.lock().stage = Stage::Answer { made: true };
    }

    fn received(&self) {
        let mut state = self.lock();
        if state.stage == Stage::Idle {
            state.enter(Stage::Head);
        }
    }

    fn flushed(&self) {
        let mut state = self.lock();
        if state.stage == (Stage::Answer { made: true }) {
            state.enter(Stage::Idle);
        }
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn enter(&mut self, stage: Stage) {
        (self.stage, self.since) = (stage, Instant::now());
    }
}

/// A stream that keeps its activity up to date.
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.received();
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Asked for once everything is written.
        let polled = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(polled, Poll::Ready(Ok(()))) {
            self.activity.flushed();
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
