//! Times of operations by the host's clock: on a CPU an operation is done when its call returns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::device::operation::{Operation, OperationTime};

/// Clock of the operations of one device; stopped until it is started.
#[derive(Default)]
pub struct OperationClock {
    // Read by every operation of every step, so that a stopped clock costs no lock.
    running: AtomicBool,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    begun: Option<Instant>,
    times: Vec<OperationTime>,
}

impl OperationClock {
    /// Times operations from now on.
    pub fn start(&self) {
        *self.lock() = Noted::default();
        self.running.store(true, Ordering::Relaxed);
    }

    /// Notes that an operation begins.
    pub fn begin(&self) {
        if self.running.load(Ordering::Relaxed) {
            self.lock().begun = Some(Instant::now());
        }
    }

    /// Notes that `operation`, which was begun last, is done.
    pub fn end(&self, operation: Operation) {
        if self.running.load(Ordering::Relaxed) {
            let mut noted = self.lock();
            if let Some(begun) = noted.begun.take() {
                noted.times.push(OperationTime { operation, seconds: begun.elapsed().as_secs_f64() });
            }
        }
    }

    /// Stops, and gives the times since the start, in order.
    pub fn stop(&self) -> Vec<OperationTime> {
        self.running.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.lock().times)
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
