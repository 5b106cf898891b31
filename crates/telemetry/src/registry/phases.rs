//! The present phase of the job, and the duration of each.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use prometheus::{GaugeVec, IntGaugeVec};

use super::registrar::Registrar;
use flashjob_event::Phase;

/// Durations of the phases so far.
pub(super) struct Phases {
    state: Mutex<State>,
    /// Set in the measured region. Atomic, as every step reads it.
    measuring: AtomicBool,
    current: IntGaugeVec,
    seconds: GaugeVec,
}

#[derive(Default)]
struct State {
    current: Option<(Phase, Instant)>,
    /// Time spent in finished phases, in the order of `Phase::ALL`.
    spent: [Duration; Phase::ALL.len()],
}

impl Phases {
    pub(super) fn new(registrar: &Registrar) -> Self {
        Self {
            state: Mutex::default(),
            measuring: AtomicBool::new(false),
            current: registrar.gauges(
                "flashjob_phase",
                "1 for the phase that the job is in, 0 for others.",
                &["phase"],
            ),
            seconds: registrar.fractional_gauges(
                "flashjob_phase_seconds",
                "Seconds spent in each phase so far.",
                &["phase"],
            ),
        }
    }

    /// Ends the current phase at `at` and begins `phase`.
    pub(super) fn start(&self, phase: Phase, at: Instant) {
        let mut state = self.lock();
        if let Some((previous, since)) = state.current.replace((phase, at)) {
            // A phase may come again: its stretches add up.
            state.spent[previous as usize] += at.saturating_duration_since(since);
        }
        self.measuring.store(phase == Phase::Measure, Ordering::Relaxed);
    }

    /// Returns whether the present phase is the measured region.
    pub(super) fn measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    /// The current phase and its total duration, with the present stretch.
    pub(super) fn current(&self, now: Instant) -> Option<(Phase, Duration)> {
        let state = self.lock();
        let (phase, since) = state.current?;
        Some((phase, state.spent[phase as usize] + now.saturating_duration_since(since)))
    }

    /// Time spent in all phases.
    pub(super) fn elapsed(&self, now: Instant) -> Duration {
        Phase::ALL.into_iter().map(|phase| self.spent_in(phase, now)).sum()
    }

    /// Time spent in `phase`, with the present stretch.
    pub(super) fn spent_in(&self, phase: Phase, now: Instant) -> Duration {
        let state = self.lock();
        let present = state.current.filter(|(current, _)| *current == phase);
        let present = present.map_or(Duration::ZERO, |(_, since)| now.saturating_duration_since(since));
        state.spent[phase as usize] + present
    }

    /// Updates the gauges to `now`.
    pub(super) fn refresh(&self, now: Instant) {
        let state = self.lock();
        // All phases are written, so that each has a series from the first scrape on.
        for phase in Phase::ALL {
            let mut spent = state.spent[phase as usize];
            let is_current = match state.current {
                Some((current, since)) if current == phase => {
                    spent += now.saturating_duration_since(since);
                    true
                }
                _ => false,
            };
            self.current.with_label_values(&[phase.name()]).set(is_current.into());
            self.seconds.with_label_values(&[phase.name()]).set(spent.as_secs_f64());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}
