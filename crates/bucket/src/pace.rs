//! The least rate of a body: a connection that brings a byte a second is no better than one that brings none.

use std::time::Duration;

/// A line of 2 Mbit/s that 64 connections share gives each of them this much.
const LEAST_BYTES_PER_SECOND: u64 = 4096;

/// Bytes that have come, and the time that they were waited for: time in which nobody asked for more does not count.
pub(super) struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Looked at after each `window` of waiting.
    pub(super) fn over(window: Duration) -> Self {
        Self { window, waited: Duration::ZERO, bytes: 0 }
    }

    /// Takes note of a piece.
    ///
    /// # Errors
    /// Bytes of the window and its length, where they come too slowly.
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
            let mut pace = Pace::over(seconds(10.0));
            let outcome = pieces.iter().try_for_each(|(bytes, waited)| pace.came(*bytes, seconds(*waited)));
            assert_eq!(outcome.is_err(), ended, "{pieces:?}");
        }
    }
}
