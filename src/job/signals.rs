//! SIGTERM and SIGINT become one cancellation that every phase looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Exit;

/// The signal that stopped the job, if one did.
#[derive(Clone, Default)]
pub struct Signals {
    cancel: CancellationToken,
    exit_code: Arc<AtomicU8>,
}

impl Signals {
    /// Listens from now on. The first signal cancels; further ones change nothing, as the job is stopping already.
    ///
    /// # Errors
    /// The system refuses a signal handler.
    pub fn listen() -> std::io::Result<Self> {
        let signals = Self::default();
        for (kind, exit) in [(SignalKind::terminate(), Exit::Terminated), (SignalKind::interrupt(), Exit::Interrupted)]
        {
            let mut stream = signal(kind)?;
            let signals = signals.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    let first = signals.exit_code.compare_exchange(0, exit.code(), Ordering::SeqCst, Ordering::SeqCst);
                    if first.is_ok() {
                        let name = if exit == Exit::Terminated { "SIGTERM" } else { "SIGINT" };
                        tracing::warn!(signal = name, "stopping: partial results are kept");
                        signals.cancel.cancel();
                    }
                }
            });
        }
        Ok(signals)
    }

    /// Triggered by the first signal.
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// What the process exits with, if a signal stopped it.
    pub fn exit(&self) -> Option<Exit> {
        [Exit::Terminated, Exit::Interrupted]
            .into_iter()
            .find(|exit| exit.code() == self.exit_code.load(Ordering::SeqCst))
    }
}
