//! The activity of a connection: its stage, the start of the stage, and its deadline.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Time limit for a request's head, from its first byte on, and for the first byte of a connection.
const HEAD: Duration = Duration::from_secs(5);
/// Time limit for an answer, until the client has taken its last byte.
const ANSWER: Duration = Duration::from_secs(10);
/// Time limit for a client of a stream to take what was sent.
const STREAM: Duration = Duration::from_secs(10);
/// Time limit between two requests: longer than scrapers pause.
const IDLE: Duration = Duration::from_secs(75);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Answer {
        made: bool,
    },
    /// An answer without an end, whose client takes it.
    Stream,
    Idle,
}

/// Stretch of a connection, shared by the connection, its service and the limit on connections.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Stretch>);

#[derive(Debug)]
struct Stretch {
    stage: Stage,
    since: Instant,
    last_request: Instant,
}

impl Activity {
    pub(super) fn begin() -> Arc<Self> {
        let now = Instant::now();
        Arc::new(Self(Mutex::new(Stretch { stage: Stage::Head, since: now, last_request: now })))
    }

    /// Time at which the connection is closed unless it progresses.
    pub(super) fn deadline(&self) -> Instant {
        let state = self.lock();
        state.since
            + match state.stage {
                Stage::Head => HEAD,
                Stage::Answer { .. } => ANSWER,
                Stage::Stream => STREAM,
                Stage::Idle => IDLE,
            }
    }

    /// Time of the last request, or of the connection itself. Bytes that do not complete a request do not count.
    pub(super) fn last_request(&self) -> Instant {
        self.lock().last_request
    }

    /// Records a complete request.
    pub(super) fn requested(&self) {
        let mut state = self.lock();
        state.enter(Stage::Answer { made: false });
        state.last_request = state.since;
    }

    /// Records that the answer is made and is being sent.
    pub(super) fn made(&self) {
        self.lock().stage = Stage::Answer { made: true };
    }

    /// Records that the answer is a stream, which has a limit for each of its pieces in place of one for all.
    pub(super) fn streams(&self) {
        self.lock().enter(Stage::Stream);
    }

    fn received(&self) {
        let mut state = self.lock();
        // Later bytes of a head do not restart its time limit, or a slow client could hold a place for ever.
        if state.stage == Stage::Idle {
            state.enter(Stage::Head);
        }
    }

    fn flushed(&self) {
        let mut state = self.lock();
        // Flushes in the middle of an answer must not end its stage.
        match state.stage {
            Stage::Answer { made: true } => state.enter(Stage::Idle),
            // All that was sent is taken. A stream whose client is gone or stands still never comes here.
            Stage::Stream => state.enter(Stage::Stream),
            _ => {}
        }
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Stretch> {
        self.0.lock()
    }
}

impl Stretch {
    fn enter(&mut self, stage: Stage) {
        // The deadline counts from here: it is one limit per stage, not one per byte.
        (self.stage, self.since) = (stage, Instant::now());
    }
}

/// A stream that records its activity.
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) activity: Arc<Activity>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
        // No bytes: the peer has closed its end.
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
        // hyper flushes once an answer is written: only then the idle time begins.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_lives_as_long_as_its_client_takes_what_is_sent() {
        let activity = Activity::begin();
        activity.requested();
        activity.streams();
        let before = activity.deadline();
        // Bytes of the client are no sign that it takes any.
        activity.received();
        assert_eq!((activity.deadline(), activity.lock().stage), (before, Stage::Stream));
        activity.flushed();
        assert!(activity.deadline() >= before);
        assert_eq!(activity.lock().stage, Stage::Stream);
    }
}
