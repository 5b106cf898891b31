//! Requests to the metrics port, and their load during the measurement.

use std::time::Instant;

use parking_lot::Mutex;
use prometheus::IntCounter;

use super::registrar::Registrar;
use super::seconds;
use flashjob_event::Phase;

/// Rate up to which requests do not disturb a measurement. Several Prometheus servers that scrape each second, with a
/// kubelet's probes, stay below; an answer costs about a ten-thousandth of a second of one processor.
const HARMLESS_PER_SECOND: f64 = 50.0;

/// Number of requests up to which they do not disturb, however short the region was.
const HARMLESS_REQUESTS: u64 = 50;

pub(super) struct Onlookers {
    requests: IntCounter,
    measured: Mutex<Option<Measured>>,
}

#[derive(Clone, Copy)]
struct Measured {
    start: Instant,
    before: u64,
    /// Duration in seconds and number of requests, once the region is over.
    whole: Option<(f64, u64)>,
}

impl Onlookers {
    pub(super) fn register(registrar: &Registrar<'_>) -> Self {
        let requests = registrar.counter("flashjob_http_requests_total", "Requests that reached the metrics port.");
        Self { requests, measured: Mutex::new(None) }
    }

    pub(super) fn requested(&self) {
        self.requests.inc();
    }

    pub(super) fn phase_started(&self, phase: Phase, at: Instant) {
        // Read before the lock: requests counted while it is waited for belong to the next phase.
        let requests = self.requests.get();
        let mut measured = self.measured.lock();
        match &mut *measured {
            _ if phase == Phase::Measure => *measured = Some(Measured { start: at, before: requests, whole: None }),
            // The first phase after the measurement ends its count; later ones find it complete.
            Some(Measured { start, before, whole: whole @ None }) => {
                *whole = Some((seconds(*start, at), requests.saturating_sub(*before)));
            }
            _ => {}
        }
    }

    pub(super) fn disturbing_requests_per_second(&self) -> Option<f64> {
        let (seconds, requests) = self.measured.lock().as_ref()?.whole?;
        // Infinite for a region without duration, which is filtered below.
        let rate = requests as f64 / seconds;
        (requests >= HARMLESS_REQUESTS && rate.is_finite() && rate > HARMLESS_PER_SECOND).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_a_load_within_the_measured_region_disturbs_it() {
        for (before, within, after, seconds, disturbing) in [
            (0, 0, 0, 1, None),
            (9000, 10, 9000, 1, None),
            (0, 40, 0, 0, None),
            (0, 500, 0, 10, None),
            (0, 600, 0, 10, Some(60.0)),
        ] {
            let onlookers = Onlookers::register(&Registrar(&prometheus::Registry::new()));
            let start = Instant::now();
            let ask = |times| (0..times).for_each(|_| onlookers.requested());
            ask(before);
            onlookers.phase_started(Phase::Measure, start);
            ask(within);
            onlookers.phase_started(Phase::Publish, start + Duration::from_secs(seconds));
            ask(after);
            onlookers.phase_started(Phase::Linger, start + Duration::from_secs(seconds + 60));
            assert_eq!(onlookers.disturbing_requests_per_second(), disturbing);
        }
    }
}
