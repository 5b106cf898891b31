//! Retries, as the bucket and MLflow share them: exponential backoff with jitter, and HTTP's `Retry-After`.
//!
//! It does not know which operation is retried, nor how often, and has neither clock nor random numbers of its own.

use std::ops::Range;
use std::time::{Duration, SystemTime};

/// Longest wait that is believed; a server that asks for more exceeds every deadline anyway.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Exponential backoff with jitter.
///
/// Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// The first pause, before jitter; it doubles with each further failure.
    pub base: Duration,
    /// Upper bound of the pauses, before jitter.
    pub cap: Duration,
    /// Factor of a pause, drawn uniformly: `0.0..1.0` is full jitter.
    pub jitter: Range<f64>,
}

impl Backoff {
    /// The pause after `failures` earlier ones; `random` is in `[0, 1)`.
    pub fn pause(&self, failures: u32, random: f64) -> Duration {
        // More doublings than 31 change nothing: every cap is below.
        self.jittered(self.base.saturating_mul(1 << failures.min(31)).min(self.cap), random)
    }

    /// A pause of the cap; `random` is in `[0, 1)`.
    pub fn longest_pause(&self, random: f64) -> Duration {
        self.jittered(self.cap, random)
    }

    fn jittered(&self, pause: Duration, random: f64) -> Duration {
        pause.mul_f64(self.jitter.start + (self.jitter.end - self.jitter.start) * random)
    }
}

/// The wait that the value of a `Retry-After` header asks for at `now`: seconds, or a date in any of HTTP's three forms (RFC
/// 9110, 10.2.3 and 5.6.7). A date in the past is no wait; any other value is ignored.
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or(Duration::ZERO),
    };
    Some(wait.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, seconds) in [
            ("0", Some(0)),
            (" 12 ", Some(12)),
            ("86401", Some(86_400)),
            ("18446744073709551615", Some(86_400)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun Nov  6 08:49:47 1994", Some(10)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(0)),
            ("Tue, 06 Nov 1990 08:49:37 GMT", Some(0)),
            ("Fri, 06 Nov 2093 08:49:37 GMT", Some(86_400)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("18446744073709551616", None),
            ("soon", None),
        ] {
            assert_eq!(retry_after(value, now), seconds.map(Duration::from_secs), "{value:?}");
        }
    }

    #[test]
    fn pauses_double_up_to_the_cap() {
        let seconds = Duration::from_secs;
        let full = Backoff { base: seconds(1), cap: seconds(30), jitter: 0.0..1.0 };
        let halves: Vec<f64> = (0..7).map(|failures| full.pause(failures, 0.5).as_secs_f64()).collect();
        assert_eq!(halves, [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]);
        assert_eq!((full.pause(u32::MAX, 0.5), full.pause(9, 0.0)), (seconds(15), Duration::ZERO));
        let narrow = Backoff { jitter: 0.75..1.25, ..full };
        assert_eq!((narrow.pause(1, 0.0), narrow.pause(1, 0.5)), (Duration::from_millis(1500), seconds(2)));
        assert_eq!(narrow.longest_pause(0.5), seconds(30));
    }
}
