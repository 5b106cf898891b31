//! Looks after the links while this process waits for a GPU: sums over nodes do not pass through them there, so nothing else
//! would notice that a node is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::links::Links;

/// Between two looks.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A thread that looks after links until it is dropped: with sums on GPUs.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Calls `lost` once, when a node has fallen silent.
    pub fn start(links: Links, lost: impl FnOnce() + Send + 'static) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let watched = Arc::clone(&over);
        let look = move || {
            while !watched.load(Ordering::Relaxed) {
                // Polled: a blocking read would take frames away from the thread that expects them.
                if links.all().iter().any(|link| link.has_ended()) {
                    return lost();
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        };
        Self { over, thread: Some(std::thread::spawn(look)) }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let own = |thread: &JoinHandle<()>| thread.thread().id() == std::thread::current().id();
        // It never panics, and does not wait for itself.
        let _ended = self.thread.take().filter(|thread| !own(thread)).map(JoinHandle::join);
    }
}
