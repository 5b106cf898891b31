//! The lowest acceptable rate of a body: a connection that brings a byte a second is no better than one that brings none.

use std::time::Duration;

/// Lowest rate that counts as progress, in bytes per second: a line of 2 Mbit/s that 64 connections share.
const LEAST_BYTES_PER_SECOND: u64 = 4096;

/// Rate of a body, measured over windows of waiting; time in which the reader did not ask does not count.
pub(super) struct Rate {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Rate {
    /// A rate that is checked after each `window` of waiting.
    pub(super) fn over(window: Duration) -> Self {
        Self { window, waited: Duration::ZERO, bytes: 0 }
    }

    /// Records `bytes` that came after `waited`.
    pub(super) fn came(&mut self, bytes: usize, waited: Duration) -> Result<(), (u64, Duration)> {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < self.window {
            return Ok(());
        }
        let (bytes, waited) = (std::mem::take(&mut self.bytes), std::mem::take(&mut self.waited));
        if (bytes as f64) < waited.as_secs_f64() * LEAST_BYTES_PER_SECOND as f64 {
            Err((bytes, waited))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waiting_counts_and_only_over_a_whole_window() {
        let seconds = Duration::from_secs_f64;
        let window = LEAST_BYTES_PER_SECOND as usize * 10;
        for (pieces, ended) in [
            (vec![(1, 1.0); 9], false),
            (vec![(1, 1.0); 10], true),
            (vec![(1, 0.0); 1000], false),
            (vec![(window, 0.0), (0, 10.0)], false),
            (vec![(window, 10.0), (0, 9.0)], false),
            (vec![(window, 10.0), (0, 10.0)], true),
        ] {
            let mut rate = Rate::over(seconds(10.0));
            let outcome = pieces.iter().try_for_each(|(bytes, waited)| rate.came(*bytes, seconds(*waited)));
            assert_eq!(outcome.is_err(), ended, "{pieces:?}");
        }
    }
}
