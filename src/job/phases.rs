//! Duration of each phase, from the events that mark their starts; a profiler that is attached is shown them.

use std::time::Instant;

use parking_lot::Mutex;

use flashjob_event::{Event, Fact, Observer, Phase};
use flashjob_results::PhaseSeconds;

use crate::backend;

/// Observes phase starts.
#[derive(Default)]
pub struct Phases {
    /// `None` is a pause.
    starts: Mutex<Vec<(Option<Phase>, Instant)>>,
}

impl Phases {
    /// Every phase that has started, the last one until now. One that started several times, as repeated regions do, has all of its
    /// time at its first place.
    pub fn seconds(&self) -> Vec<PhaseSeconds> {
        let starts = self.starts.lock();
        // A phase ends where the next one starts; the last one is still going on.
        let ends = starts.iter().skip(1).map(|(_, at)| *at).chain([Instant::now()]);
        let mut all = Vec::<PhaseSeconds>::new();
        for (&(phase, start), end) in starts.iter().zip(ends) {
            let Some(phase) = phase else { continue };
            let seconds = end.duration_since(start).as_secs_f64();
            match all.iter_mut().find(|earlier| earlier.phase == phase) {
                Some(earlier) => earlier.seconds += seconds,
                None => all.push(PhaseSeconds { phase, seconds }),
            }
        }
        all
    }

    /// Ends the phase that goes on: what follows belongs to another combination of a sweep.
    pub fn pause(&self) {
        self.starts.lock().push((None, Instant::now()));
    }
}

impl Observer for Phases {
    fn observe(&self, event: &Event) {
        if let Fact::PhaseStarted(phase) = event.fact {
            self.starts.lock().push((Some(phase), event.at));
            backend::show_phase(phase.name());
        }
    }
}
