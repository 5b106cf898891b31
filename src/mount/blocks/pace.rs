//! How many fetches run at a time: all that are allowed, until the service asks to slow down.
//!
//! Additive increase, multiplicative decrease (Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for
//! Congestion Avoidance", 1989): halved when throttled, at most once a second since one burst of refusals is one sign;
//! one more for every round of fetches that went through.

use std::time::{Duration, Instant};

/// A burst of refusals within this is one sign.
const ONE_SIGN: Duration = Duration::from_secs(1);

/// The number of fetches that may run.
#[derive(Debug)]
pub(super) struct Pace {
    most: usize,
    allowed: f64,
    /// Refusals that have been seen.
    throttled: u64,
    halved: Option<Instant>,
}

impl Pace {
    pub(super) fn new(most: usize) -> Self {
        Self { most, allowed: most as f64, throttled: 0, halved: None }
    }

    /// Fetches that may run now, at least one.
    pub(super) fn fetches(&self) -> usize {
        (self.allowed as usize).max(1)
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

    /// Notes a fetch that brought its bytes.
    pub(super) fn succeeded(&mut self) {
        self.allowed = (self.allowed + 1.0 / self.allowed).min(self.most as f64);
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
        (0..16).for_each(|_| pace.succeeded());
        assert_eq!(pace.fetches(), 16);
        (0..2).for_each(|_| pace.succeeded());
        assert_eq!(pace.fetches(), 17);
        for second in 2..40 {
            pace.observe(100 + second, start + Duration::from_secs(second));
        }
        assert_eq!(pace.fetches(), 1);
        (0..10_000).for_each(|_| pace.succeeded());
        assert_eq!(pace.fetches(), 32);
    }
}
