//! The number of concurrent fetches: as many as hide the latency of the service, and fewer once it throttles.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for
//! Congestion Avoidance", 1989): halved when throttled, at most once a second since one burst of refusals is one sign;
//! one more for every round of fetches that went through.
//!
//! Beside a service whose first byte comes at once there is nothing to hide. Many fetches would only share what one or
//! two can fill, so that all blocks come late and all at once; there a few run, more where readers wait all the same.

use std::time::{Duration, Instant};

/// Period within which refusals count as one signal.
const ONE_SIGN: Duration = Duration::from_secs(1);
/// A first byte within this time marks a near service, where a connection transfers only a block or two in a round
/// trip.
const NEAR: Duration = Duration::from_millis(5);
/// Concurrent fetches from a near service, initially and at least.
const FEW: f64 = 4.0;
/// Decrease, in fetches, for a block that no reader waited for.
const STEP: f64 = 0.25;

/// The number of fetches that may run at a time (AIMD: additive increase, multiplicative decrease).
#[derive(Debug)]
pub(super) struct Concurrency {
    most: f64,
    allowed: f64,
    /// Throttling answers seen so far.
    throttled: u64,
    halved: Option<Instant>,
    /// Approximate minimum of recent times to the first byte.
    first_byte: Option<Duration>,
    /// Fetches allowed while the service is near.
    near: f64,
}

impl Concurrency {
    pub(super) fn new(most: usize) -> Self {
        let most = most as f64;
        Self { most, allowed: most, throttled: 0, halved: None, first_byte: None, near: FEW.min(most) }
    }

    /// Fetches that may run now, at least one.
    pub(super) fn fetches(&self) -> usize {
        let fetches = if self.is_near() { self.allowed.min(self.near) } else { self.allowed };
        (fetches as usize).max(1)
    }

    fn is_near(&self) -> bool {
        self.first_byte.is_some_and(|first_byte| first_byte < NEAR)
    }

    /// Records that the source has been throttled `throttled` times in all, and halves the concurrency at most once a
    /// second.
    pub(super) fn observe(&mut self, throttled: u64, now: Instant) {
        if throttled <= self.throttled {
            return;
        }
        self.throttled = throttled;
        if self.halved.is_none_or(|halved| now.duration_since(halved) >= ONE_SIGN) {
            self.halved = Some(now);
            self.allowed = (self.allowed / 2.0).max(1.0);
        }
    }

    /// Records the time `after` which a fetch brought its first byte. The estimate follows a minimum: one late byte
    /// raises it by an eighth at most, a lasting change raises it after a few fetches.
    pub(super) fn first_byte(&mut self, after: Duration) {
        self.first_byte = Some(self.first_byte.map_or(after, |before| after.min(before + before / 8)));
    }

    /// Records a fetch that brought its bytes, and whether a reader `waited` for them.
    pub(super) fn succeeded(&mut self, waited: bool) {
        // One more for every `allowed` successes: that is one more for each round of fetches.
        self.allowed = (self.allowed + 1.0 / self.allowed).min(self.most);
        // Near a service, waiting readers are the sign that more connections pay.
        let near = if waited { self.near + 1.0 } else { self.near - STEP };
        self.near = near.clamp(FEW.min(self.most), self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_when_throttled_and_recovers_slowly() {
        let (mut concurrency, start) = (Concurrency::new(32), Instant::now());
        concurrency.observe(0, start);
        assert_eq!(concurrency.fetches(), 32);
        // A burst is one sign.
        for throttled in 1..20 {
            concurrency.observe(throttled, start + Duration::from_millis(throttled));
        }
        assert_eq!(concurrency.fetches(), 16);
        // Success alone brings back one for each round.
        (0..16).for_each(|_| concurrency.succeeded(false));
        assert_eq!(concurrency.fetches(), 16);
        (0..2).for_each(|_| concurrency.succeeded(false));
        assert_eq!(concurrency.fetches(), 17);
        for second in 2..40 {
            concurrency.observe(100 + second, start + Duration::from_secs(second));
        }
        assert_eq!(concurrency.fetches(), 1);
        (0..10_000).for_each(|_| concurrency.succeeded(false));
        assert_eq!(concurrency.fetches(), 32);
    }

    #[test]
    fn a_few_are_enough_where_the_first_byte_comes_at_once() {
        let (near, far) = (Duration::from_micros(300), Duration::from_millis(30));
        let mut concurrency = Concurrency::new(16);
        // Nothing is known yet.
        assert_eq!(concurrency.fetches(), 16);
        concurrency.first_byte(far);
        assert_eq!(concurrency.fetches(), 16);
        concurrency.first_byte(near);
        assert_eq!(concurrency.fetches(), 4);
        // Readers wait: as many again in one round.
        (0..4).for_each(|_| concurrency.succeeded(true));
        assert_eq!(concurrency.fetches(), 8);
        (0..100).for_each(|_| concurrency.succeeded(true));
        assert_eq!(concurrency.fetches(), 16);
        (0..100).for_each(|_| concurrency.succeeded(false));
        assert_eq!(concurrency.fetches(), 4);
        // Held up once, then far away.
        concurrency.first_byte(far);
        assert_eq!(concurrency.fetches(), 4);
        (0..40).for_each(|_| concurrency.first_byte(far));
        assert_eq!(concurrency.fetches(), 16);
        assert_eq!(Concurrency::new(2).fetches(), 2);
    }
}
