//! What the machine can do at most: measured before weights are loaded, and on processors once more after a run.
//!
//! Whatever else runs at that moment makes a limit too low, so that of two moments the higher figure is the better one. GPUs are not
//! measured again: a job has them for itself, and by then their memory is full.

use super::Engine;
use flashjob_cpu::{Isa, Limits, Pool, TooLittleMemory, measure_limits};
use flashjob_event::{Events, Fact};
use flashjob_host::cgroup::free_memory_bytes;

/// The processors of a number of equal machines.
#[derive(Clone, Copy, Debug)]
pub(super) struct Processors {
    /// Threads of each machine.
    pub(super) threads: usize,
    pub(super) isa: Isa,
    pub(super) machines: usize,
}

impl Processors {
    pub(super) fn limits(self) -> Result<Limits, TooLittleMemory> {
        let limits = measure_limits(&Pool::with_isa(self.threads, self.isa), free_memory_bytes())?;
        Ok(limits.times(self.machines))
    }
}

impl Engine {
    /// Measures the limits again, in less than a second, where they were measured on processors while loading; they are stated in
    /// `events`. Where there is too little memory left for it, what was measured first stands.
    pub fn measure_limits_again(&self, events: &Events) {
        if let Some(Ok(limits)) = self.limits_of.map(Processors::limits) {
            state(limits, events);
        }
    }
}

pub(super) fn state(Limits { flops_per_second, bytes_per_second, .. }: Limits, events: &Events) {
    events.emit(Fact::LimitsMeasured { flops_per_second, bytes_per_second });
}
