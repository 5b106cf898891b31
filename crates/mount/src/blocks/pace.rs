//! How many fetches run at a time: as many as hide the way to the service, and fewer once it asks to slow down.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for
//! Congestion Avoidance", 1989): halved when throttled, at most once a second since one burst of refusals is one sign;
//! one more for every round of fetches that went through.
//!
//! Beside a service whose first byte comes at once there is nothing to hide. Many fetches would only share what one or
//! two can fill, so that all blocks come late and all at once; there a few run, more where readers wait all the same.

use std::time::{Duration, Instant};

/// A burst of refusals within this is one sign.
const ONE_SIGN: Duration = Duration::from_secs(1);
/// A service that takes less to its first byte is near: within this, a connection brings a block or two.
const NEAR: Duration = Duration::from_millis(5);
/// Fetches beside a service that is near, to begin with and at least.
const FEW: f64 = 4.0;
/// What is taken back of them for a block that nobody waited for.
const STEP: f64 = 0.25;

/// The number of fetches that may run.
#[derive(Debug)]
pub(super) struct Pace {
    most: f64,
    allowed: f64,
    /// Refusals that have been seen.
    throttled: u64,
    halved: Option<Instant>,
    /// About the least time to a first byte of late.
    first_byte: Option<Duration>,
    /// Fetches where that is short.
    near: f64,
}

impl Pace {
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

    /// Notes that the source has been asked to slow down `throttled` times in all.
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

    /// Notes that a fetch has brought its first byte `after` so long. One that was held up by chance does not count, a way
    /// that has become longer does after a few.
    pub(super) fn first_byte(&mut self, after: Duration) {
        self.first_byte = Some(self.first_byte.map_or(after, |before| after.min(before + before / 8)));
    }

    /// Notes a fetch that brought its bytes, and whether a reader `waited` for them.
    pub(super) fn succeeded(&mut self, waited: bool) {
        self.allowed = (self.allowed + 1.0 / self.allowed).min(self.most);
        let near = if waited { self.near + 1.0 } else { self.near - STEP };
        self.near = near.clamp(FEW.min(self.most), self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_halves_when_throttled_and_recovers_slowly() {
        let (mut pace, start) = (Pace::new(32), Instant::now());
        pace.observe(0, start);
        assert_eq!(pace.fetches(), 32);
        // A burst is one sign.
        for throttled in 1..20 {
            pace.observe(throttled, start + Duration::from_millis(throttled));
        }
        assert_eq!(pace.fetches(), 16);
        // Success alone brings back one for each round.
        (0..16).for_each(|_| pace.succeeded(false));
        assert_eq!(pace.fetches(), 16);
        (0..2).for_each(|_| pace.succeeded(false));
        assert_eq!(pace.fetches(), 17);
        for second in 2..40 {
            pace.observe(100 + second, start + Duration::from_secs(second));
        }
        assert_eq!(pace.fetches(), 1);
        (0..10_000).for_each(|_| pace.succeeded(false));
        assert_eq!(pace.fetches(), 32);
    }

    #[test]
    fn a_few_are_enough_where_the_first_byte_comes_at_once() {
        let (near, far) = (Duration::from_micros(300), Duration::from_millis(30));
        let mut pace = Pace::new(16);
        // Nothing is known yet.
        assert_eq!(pace.fetches(), 16);
        pace.first_byte(far);
        assert_eq!(pace.fetches(), 16);
        pace.first_byte(near);
        assert_eq!(pace.fetches(), 4);
        // Readers wait: as many again in one round.
        (0..4).for_each(|_| pace.succeeded(true));
        assert_eq!(pace.fetches(), 8);
        (0..100).for_each(|_| pace.succeeded(true));
        assert_eq!(pace.fetches(), 16);
        (0..100).for_each(|_| pace.succeeded(false));
        assert_eq!(pace.fetches(), 4);
        // Held up once, then far away.
        pace.first_byte(far);
        assert_eq!(pace.fetches(), 4);
        (0..40).for_each(|_| pace.first_byte(far));
        assert_eq!(pace.fetches(), 16);
        assert_eq!(Pace::new(2).fetches(), 2);
    }
}
