//! SIGTERM, SIGINT, SIGHUP and SIGQUIT become one cancellation that every phase looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Exit;

/// The signal that stopped the job, if one did.
#[derive(Clone, Default)]
pub struct Signals {
    cancel: CancellationToken,
    first: Arc<AtomicI32>,
}

impl Signals {
    /// Listens from now on. The first signal cancels; further ones change nothing, as the job is stopping already. A signal
    /// that the process was started to ignore (SIGHUP, by `nohup`) stays ignored.
    ///
    /// # Errors
    /// The system refuses a signal handler.
    pub fn listen() -> std::io::Result<Self> {
        let signals = Self::default();
        for number in [SIGTERM, SIGINT, SIGHUP, SIGQUIT].into_iter().filter(|&number| !is_ignored(number)) {
            let mut stream = signal(SignalKind::from_raw(number))?;
            let signals = signals.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    // The first signal decides the exit code, also where a second one arrives in the same moment.
                    if signals.first.compare_exchange(0, number, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                        tracing::warn!(signal = signals.name(), "stopping: partial results are kept");
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

    /// The exit code of the process, if a signal stopped it: all but SIGINT end it as SIGTERM does.
    pub fn exit(&self) -> Option<Exit> {
        match self.first.load(Ordering::SeqCst) {
            0 => None,
            SIGINT => Some(Exit::Interrupted),
            _ => Some(Exit::Terminated),
        }
    }

    /// The name of the first signal.
    pub fn name(&self) -> &'static str {
        signal_hook::low_level::signal_name(self.first.load(Ordering::SeqCst)).unwrap_or("a signal")
    }
}

/// Tells that this process was started to ignore signal `number`.
pub fn is_ignored(number: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (number - 1) & 1 == 1)
}
