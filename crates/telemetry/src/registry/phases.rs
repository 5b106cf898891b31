//! Which phase the job is in, and how long each has taken.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use prometheus::{GaugeVec, IntGaugeVec};

use super::registrar::Registrar;
use flashjob_event::Phase;

/// The phases so far.
pub(super) struct Phases {
    state: Mutex<State>,
    /// Read for every step, hence not behind the lock.
    measuring: AtomicBool,
    current: IntGaugeVec,
    seconds: GaugeVec,
}

#[derive(Default)]
struct State {
    current: Option<(Phase, Instant)>,
    /// Of phases that ended, in the order of `Phase::ALL`.
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
            state.spent[previous as usize] += at.saturating_duration_since(since);
        }
        self.measuring.store(phase == Phase::Measure, Ordering::Relaxed);
    }

    /// Whether what happens now belongs to the measured region.
    pub(super) fn measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    /// The phase and how long it has lasted in all, this stretch included.
    pub(super) fn current(&self, now: Instant) -> Option<(Phase, Duration)> {
        let state = self.lock();
        let (phase, since) = state.current?;
        Some((phase, state.spent[phase as usize] + now.saturating_duration_since(since)))
    }

    /// Brings the gauges up to `now`.
    pub(super) fn refresh(&self, now: Instant) {
        let state = self.lock();
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
