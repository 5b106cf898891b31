//! Warnings about a workload that is too small, or settings that left the machine idle, each with a value that would be sufficient.

use std::fmt;

use super::Measurement;
use crate::backend::EngineReport;

/// Requests for each place in the batch below which filling and draining the batch weigh too much.
const REQUESTS_PER_PLACE: usize = 4;

/// Duration below which a region says little: clocks of processors and GPUs have not settled by then.
const SHORTEST_SECONDS: f64 = 10.0;

/// Share of a region's time from which waiting is worth a warning.
const NOTABLE: f64 = 0.1;

/// Sequences that run at a time at most.
#[derive(Clone, Copy)]
struct SequencePlaces {
    /// Those of one engine, as configured.
    max_num_seqs: usize,
    engines: usize,
}

impl SequencePlaces {
    fn all(self) -> usize {
        self.max_num_seqs * self.engines
    }
}

impl fmt::Display for SequencePlaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { max_num_seqs, engines } = self;
        match engines {
            1 => write!(f, "max-num-seqs={max_num_seqs}"),
            _ => write!(f, "max-num-seqs={max_num_seqs} on each of {engines} engines"),
        }
    }
}

/// Warnings about `measurement`, one region of a run on `engine` with its own lengths (`measures`: the user's prompts are few or
/// many as they are).
pub fn warnings(measurement: &Measurement, engine: &EngineReport, measures: bool) -> Vec<String> {
    let mut found = Vec::new();
    let requests = measurement.totals.requests as usize;
    let elapsed = measurement.elapsed_seconds;
    let places = engine.max_num_seqs().map(|max_num_seqs| SequencePlaces { max_num_seqs, engines: engine.engines() });
    if measures && let Some(places) = places {
        let enough = REQUESTS_PER_PLACE * places.all();
        if requests < enough {
            found.push(format!(
                "{requests} requests are fewer than {REQUESTS_PER_PLACE} times {places}: much of the region is a batch that \
                 fills up or runs empty; num-prompts={enough} would be enough"
            ));
        }
    }
    if measures && elapsed < SHORTEST_SECONDS && elapsed > 0.0 {
        let enough = (requests as f64 * SHORTEST_SECONDS / elapsed).ceil();
        found.push(format!(
            "the region took {elapsed:.3} s, less than {SHORTEST_SECONDS:.0} s: its figures vary from run to run; num-prompts={enough} \
             would be enough"
        ));
    }
    if let (Some(places), Some(kv_blocks)) = (places, engine.kv_blocks()) {
        found.extend(idle(measurement, engine, places, kv_blocks));
    }
    found
}

/// The warning about a cache or a `max-num-seqs` that left the machine idle, if one did.
fn idle(measurement: &Measurement, engine: &EngineReport, places: SequencePlaces, kv_blocks: usize) -> Option<String> {
    let waiting = measurement.occupancy.waiting(places.all(), kv_blocks);
    if waiting.for_blocks >= NOTABLE {
        let (share, running) = (waiting.for_blocks * 100.0, waiting.running_without_blocks.max(1));
        // As many blocks for each sequence as those that ran had.
        let factor = places.all() as f64 / f64::from(running);
        let enough = match engine.kv_cache_bytes() {
            // The setting is for one GPU, or for all engines and ranks on a CPU.
            Some(bytes) => {
                let memories = engine.gpus().max(1) as f64;
                format!("kv-cache-memory={:.1}GiB", bytes as f64 / memories * factor / f64::from(1 << 30))
            }
            None => format!("a cache {factor:.1} times as large"),
        };
        return Some(format!(
            "the KV cache was full for {share:.0} % of the region, with {running} of {places} sequences running and others \
             waiting; {enough} would hold them all"
        ));
    }
    if waiting.for_a_place >= NOTABLE {
        let room = room(measurement, &waiting, places.all(), kv_blocks)? / places.engines;
        let share = waiting.for_a_place * 100.0;
        return Some(format!(
            "requests waited for one of {places} places for {share:.0} % of the region, although the machine had room for \
             more; max-num-seqs={room} would use it"
        ));
    }
    None
}

/// Sequences that would have had blocks, and that would have made steps no longer as far as the roofline knows; `None` where that is
/// hardly more than `places`.
fn room(
    measurement: &Measurement,
    waiting: &super::occupancy::WaitingShares,
    places: usize,
    kv_blocks: usize,
) -> Option<usize> {
    let by_blocks = places as f64 * kv_blocks as f64 / f64::from(waiting.peak_kv_blocks.max(1));
    let roofline = &measurement.roofline;
    let by_compute = match (roofline.limit_seconds, roofline.limits) {
        (Some(_), Some(limits)) => {
            // Memory is read once for all sequences of a step: until computing takes as long, more of them cost next to nothing.
            let (computing, moving) =
                (roofline.flops / limits.flops_per_second, roofline.bytes / limits.bytes_per_second);
            places as f64 * moving / computing.max(f64::MIN_POSITIVE)
        }
        // What the engine does not say is taken to be no limit.
        _ => f64::INFINITY,
    };
    let room = by_blocks.min(by_compute).min(measurement.totals.requests as f64);
    // Half as many again at least: less than that would not be worth a warning.
    (room >= 1.5 * places as f64).then_some(room as usize)
}
