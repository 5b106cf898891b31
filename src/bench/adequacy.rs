//! Warnings about a workload that is too small, or settings that left the machine idle, each with a value that would be sufficient.

use super::Measurement;
use crate::backend::EngineReport;

/// Requests for each place in the batch below which filling and draining the batch weigh too much.
const REQUESTS_PER_PLACE: usize = 4;

/// Duration below which a region says little: clocks of processors and GPUs have not settled by then.
const SHORTEST_SECONDS: f64 = 10.0;

/// Share of a region's time from which waiting is worth a warning.
const NOTABLE: f64 = 0.1;

/// Warnings about `measurement`, one region of a run on `engine` with its own lengths (`measures`: the user's prompts are few or
/// many as they are).
pub fn warnings(measurement: &Measurement, engine: &EngineReport, measures: bool) -> Vec<String> {
    let mut found = Vec::new();
    let requests = measurement.requests.len();
    let elapsed = measurement.elapsed_seconds;
    let max_num_seqs = engine.max_num_seqs();
    if measures && let Some(places) = max_num_seqs {
        let enough = REQUESTS_PER_PLACE * places;
        if requests < enough {
            found.push(format!(
                "{requests} requests are fewer than {REQUESTS_PER_PLACE} times max-num-seqs={places}: much of the region is a batch that \
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
    if let (Some(places), Some(kv_blocks)) = (max_num_seqs, engine.kv_blocks()) {
        found.extend(idle(measurement, engine, places, kv_blocks));
    }
    found
}

/// The warning about a cache or a `max-num-seqs` that left the machine idle, if one did.
fn idle(measurement: &Measurement, engine: &EngineReport, places: usize, kv_blocks: usize) -> Option<String> {
    let waiting = measurement.occupancy.waiting(places, kv_blocks);
    if waiting.for_blocks >= NOTABLE {
        let (share, running) = (waiting.for_blocks * 100.0, waiting.running_without_blocks.max(1));
        // As many blocks for each sequence as those that ran had.
        let factor = places as f64 / f64::from(running);
        let enough = match engine.kv_cache_bytes() {
            Some(bytes) => {
                format!("kv-cache-memory={:.1}GiB", bytes as f64 * factor / f64::from(1 << 30))
            }
            None => format!("a cache {factor:.1} times as large"),
        };
        return Some(format!(
            "the KV cache was full for {share:.0} % of the region, with {running} of max-num-seqs={places} sequences running and others \
             waiting; {enough} would hold them all"
        ));
    }
    if waiting.for_a_place >= NOTABLE {
        let room = room(measurement, &waiting, places, kv_blocks)?;
        let share = waiting.for_a_place * 100.0;
        return Some(format!(
            "requests waited for one of max-num-seqs={places} places for {share:.0} % of the region, although the machine had room for \
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
    let room = by_blocks.min(by_compute).min(measurement.requests.len() as f64);
    // Half as many again at least: less than that would not be worth a warning.
    (room >= 1.5 * places as f64).then_some(room as usize)
}
