//! A thread that repeats an action until it is dropped.
//!
//! Threads, not tasks: the display must keep moving while the engine keeps the runtime busy.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Calls a closure at once and then after each interval. Dropping it wakes the thread and waits for its end.
pub(super) struct Ticker {
    wake: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts the thread under `name`.
    ///
    /// # Errors
    /// Those of the operating system when it gives no thread.
    pub(super) fn start(
        name: &str,
        interval: Duration,
        mut tick: impl FnMut() + Send + 'static,
    ) -> std::io::Result<Self> {
        let (wake, asleep) = channel();
        // The channel is both clock and stop signal: the sender's drop ends the wait at once.
        let thread = Builder::new().name(name.to_owned()).spawn(move || {
            loop {
                tick();
                if asleep.recv_timeout(interval) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        })?;
        Ok(Self { wake: Some(wake), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.wake.take();
        if let Some(thread) = self.thread.take() {
            // A panic in a tick was reported on stderr by the panic hook.
            let _ = thread.join();
        }
    }
}
