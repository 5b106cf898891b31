//! When waiting sequences are looked at.
//!
//! A step that only decodes can be replayed; one that has prompts, too, is launched kernel by kernel and computes each kind with
//! kernels of its own. Where sequences end one by one, nearly every step would be of the second kind if each place was given away at
//! once. Who fits is not decided here.

/// When waiting sequences may begin to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionPolicy {
    /// As soon as there are a place and blocks: best where every step costs what its tokens cost.
    Immediate,
    /// Several at a time: once there was no room, not before a [`GROUP`]th of those that then ran has ended.
    InGroups,
}

/// Answers of 190 tokens end at a rate of one in 190 sequences a step, so that a sixteenth takes twelve steps: eleven of them only
/// decode. Half a group of places is empty on average, three in a hundred.
const GROUP: usize = 16;

/// Whether waiting sequences are looked at.
#[derive(Debug)]
pub(super) struct AdmissionGate {
    policy: AdmissionPolicy,
    /// Closed while more sequences than this run.
    most_running: usize,
}

impl AdmissionGate {
    /// A gate that is open.
    pub(super) fn new(policy: AdmissionPolicy) -> Self {
        Self { policy, most_running: usize::MAX }
    }

    /// Tells whether it is open while `running` sequences run; it then stays so until it is closed.
    pub(super) fn opens(&mut self, running: usize) -> bool {
        let opens = running <= self.most_running;
        if opens {
            self.most_running = usize::MAX;
        }
        opens
    }

    /// There was no room for the first of `waiting` sequences beside `running` ones.
    pub(super) fn close(&mut self, running: usize, waiting: usize) {
        if self.policy == AdmissionPolicy::InGroups {
            // Of those that run, not of all places: where the cache is what there is too little of, most places are never taken. No
            // more than there are to admit: the last ones would wait for company that does not come.
            let group = running.div_ceil(GROUP).min(waiting);
            self.most_running = running.saturating_sub(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most running sequences with which it opens again.
    fn reopens_at(policy: AdmissionPolicy, running: usize, waiting: usize) -> Option<usize> {
        (0..=running).rev().find(|&now| {
            let mut gate = AdmissionGate::new(policy);
            assert!(gate.opens(running));
            gate.close(running, waiting);
            gate.opens(now)
        })
    }

    #[test]
    fn groups_are_a_sixteenth_of_what_runs_or_all_that_wait() {
        use AdmissionPolicy::{Immediate, InGroups};
        for (policy, running, waiting, expected) in [
            (Immediate, 256, 1000, 256),
            (InGroups, 256, 1000, 240),
            (InGroups, 1024, 1000, 960),
            (InGroups, 256, 3, 253),
            (InGroups, 17, 9, 15),
            (InGroups, 16, 9, 15),
            (InGroups, 1, 9, 0),
            (InGroups, 0, 9, 0),
        ] {
            assert_eq!(reopens_at(policy, running, waiting), Some(expected), "{running} running, {waiting} waiting");
        }
    }

    #[test]
    fn once_open_it_stays_open_until_it_is_closed() {
        let mut gate = AdmissionGate::new(AdmissionPolicy::InGroups);
        gate.close(32, 100);
        assert_eq!([31, 30, 40, 256].map(|running| gate.opens(running)), [false, true, true, true]);
    }
}
