//! `flashjob profile`: times of steps and of their operations where the job would run, beside the machine's limits.
//!
//! Shows where a step's time goes on a machine, for those who make it shorter. The engine is used directly, and not as a backend: steps
//! have sizes that are asked for, and not those that a scheduler chooses. Nothing is mounted.

mod table;

use std::num::NonZeroUsize;
use std::path::Path;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use flashjob_config::EngineConfig;
use flashjob_config_parser::Profile;
use flashjob_engine::{CandleReport, Engine, Error, OperationTimes, StepSize, StepTimes};
use flashjob_event::{Events, Needs};

use super::local_model::LocalModel;
use super::{Exit, exit, terminal};

/// Everything that was timed; the names of the fields are those of the JSON file.
#[derive(Debug, Serialize)]
struct Profiled {
    flashjob_version: &'static str,
    architecture: String,
    engine: CandleReport,
    steps: Vec<TimedStep>,
    skipped: Vec<SkippedStep>,
}

/// One size of step.
#[derive(Debug, Serialize)]
struct TimedStep {
    #[serde(flatten)]
    size: StepSize,
    /// Replayed as a CUDA graph while it was timed as a whole.
    replayed: bool,
    rounds: usize,
    seconds: f64,
    tokens_per_second: f64,
    /// Least time of the step; `None` where limits were not measured.
    limit_seconds: Option<f64>,
    /// Least time of the step with one operation after the other.
    serial_limit_seconds: Option<f64>,
    operations: Vec<OperationFigures>,
    /// The step's time that no operation has; negative where the times of operations, taken without replay, add up to more.
    gaps_seconds: f64,
}

/// All calls of one operation in a step.
#[derive(Debug, Serialize)]
struct OperationFigures {
    operation: &'static str,
    calls: usize,
    seconds: f64,
    flops: Option<f64>,
    bytes: Option<f64>,
    limit_seconds: Option<f64>,
    /// The limit that is the longer one.
    bound_by: Option<Bound>,
    limit_fraction: Option<f64>,
}

/// The limit that an operation takes at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    Compute,
    Memory,
}

/// A size that there is no room for.
#[derive(Debug, Serialize)]
struct SkippedStep {
    #[serde(flatten)]
    size: StepSize,
    reason: String,
}

/// Rates of the machine.
#[derive(Clone, Copy, Debug)]
struct Rates {
    flops_per_second: f64,
    bytes_per_second: f64,
}

impl Rates {
    /// The least time of `needs`, and what bounds it.
    fn least(self, needs: Needs) -> (f64, Bound) {
        let (computing, moving) = (needs.flops / self.flops_per_second, needs.bytes / self.bytes_per_second);
        if computing >= moving { (computing, Bound::Compute) } else { (moving, Bound::Memory) }
    }
}

/// Prints a table, and writes the file that was asked for.
pub fn profile(asked: &Profile) -> Exit {
    match run(asked) {
        Ok(profiled) => {
            let printed = terminal::print(&table::table(&profiled));
            match asked.output.as_deref().map(|path| write(path, &profiled)) {
                Some(Err((exit, reason))) => exit::before_log(exit, &reason),
                _ => printed,
            }
        }
        Err((exit, reason)) => exit::before_log(exit, &reason),
    }
}

fn write(path: &Path, profiled: &Profiled) -> Result<(), (Exit, String)> {
    let failed = |error: &dyn std::fmt::Display| {
        let sentence = format!("--output={}: the profile cannot be written: {error}", path.display());
        (Exit::Configuration, sentence)
    };
    let text = serde_json::to_string_pretty(profiled).map_err(|error| failed(&error))?;
    std::fs::write(path, text + "\n").map_err(|error| failed(&error))
}

fn run(asked: &Profile) -> Result<Profiled, (Exit, String)> {
    let LocalModel { placement, model } = LocalModel::open(&asked.job, "profile")?;
    let config = engine_config(asked, model.config.max_position);
    let cancel = CancellationToken::new();
    let mut engine = Engine::load_on(placement, &model, &config, &Events::default(), &cancel)
        .map_err(|error| (Exit::Model, error.to_string()))?;
    let report = engine.report().clone();
    let rates = report
        .limits
        .map(|limits| Rates { flops_per_second: limits.flops_per_second, bytes_per_second: limits.bytes_per_second });
    let (mut steps, mut skipped) = (Vec::new(), Vec::new());
    for size in sizes(asked, &report) {
        match engine.time_step(size, asked.job.sampling, &cancel) {
            Ok(times) => steps.push(step(&times, rates)),
            Err(Error::Setting(reason)) => skipped.push(SkippedStep { size, reason }),
            Err(error) => return Err((Exit::Inference, error.to_string())),
        }
    }
    Ok(Profiled {
        flashjob_version: env!("CARGO_PKG_VERSION"),
        architecture: model.architecture.clone(),
        engine: report,
        steps,
        skipped,
    })
}

/// Settings with room for all sizes, unless those of the job say less.
fn engine_config(asked: &Profile, longest: usize) -> EngineConfig {
    let job = &asked.job.engine;
    let largest = |sizes: &[NonZeroUsize]| sizes.iter().copied().max().map_or(0, usize::from);
    let length = (asked.context_len + 1).max(largest(&asked.prompt_lens)).min(longest);
    EngineConfig {
        max_num_seqs: job.max_num_seqs.or(NonZeroUsize::new(largest(&asked.batch_sizes))),
        max_model_len: job.max_model_len.or(NonZeroUsize::new(length)),
        measure_limits: true,
        ..job.clone()
    }
}

/// Decode steps by batch size, then prompts by their length, as many as a step computes.
fn sizes(asked: &Profile, report: &CandleReport) -> Vec<StepSize> {
    let decode =
        |sequences: &NonZeroUsize| StepSize { sequences: sequences.get(), new_tokens: 1, context: asked.context_len };
    let prefill = |length: &NonZeroUsize| {
        // A longer prompt is computed in chunks, of which this is the first.
        let new_tokens = length.get().min(report.max_num_batched_tokens);
        let sequences = (report.max_num_batched_tokens / new_tokens).clamp(1, report.max_num_seqs);
        StepSize { sequences, new_tokens, context: 0 }
    };
    asked.batch_sizes.iter().map(decode).chain(asked.prompt_lens.iter().map(prefill)).collect()
}

fn step(times: &StepTimes, rates: Option<Rates>) -> TimedStep {
    let StepTimes { size, replayed, seconds, rounds, needs, operations } = times;
    let serial = |rates: Rates| needs.operations().into_iter().map(|operation| rates.least(operation).0).sum();
    let timed: f64 = operations.iter().map(|operation| operation.seconds).sum();
    TimedStep {
        size: *size,
        replayed: *replayed,
        rounds: *rounds,
        seconds: *seconds,
        tokens_per_second: (size.sequences * size.new_tokens) as f64 / seconds,
        limit_seconds: rates.map(|rates| rates.least(needs.total()).0),
        serial_limit_seconds: rates.map(serial),
        operations: operations.iter().map(|operation| figures(operation, rates)).collect(),
        gaps_seconds: seconds - timed,
    }
}

fn figures(times: &OperationTimes, rates: Option<Rates>) -> OperationFigures {
    let OperationTimes { operation, calls, seconds, needs } = *times;
    let least = needs.zip(rates).map(|(needs, rates)| rates.least(needs));
    OperationFigures {
        operation: operation.name(),
        calls,
        seconds,
        flops: needs.map(|needs| needs.flops),
        bytes: needs.map(|needs| needs.bytes),
        limit_seconds: least.map(|(seconds, _)| seconds),
        bound_by: least.map(|(_, bound)| bound),
        limit_fraction: least.map(|(limit, _)| limit / seconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashjob_engine::Operation;
    use flashjob_event::StepNeeds;

    const RATES: Rates = Rates { flops_per_second: 100.0, bytes_per_second: 10.0 };

    fn times() -> StepTimes {
        let needs = |flops, bytes| Needs { flops, bytes };
        let operation = |operation, seconds, needs| OperationTimes { operation, calls: 2, seconds, needs: Some(needs) };
        StepTimes {
            size: StepSize { sequences: 8, new_tokens: 1, context: 4 },
            replayed: false,
            seconds: 10.0,
            rounds: 3,
            needs: StepNeeds { layers: needs(300.0, 5.0), attention: needs(20.0, 20.0), ..StepNeeds::default() },
            operations: vec![
                operation(Operation::Qkv, 4.0, needs(300.0, 6.0)),
                operation(Operation::Attention, 5.0, needs(20.0, 20.0)),
            ],
        }
    }

    #[test]
    fn operations_stand_beside_the_limit_that_is_longer_for_each() {
        let step = step(&times(), Some(RATES));
        assert_eq!((step.limit_seconds, step.serial_limit_seconds), (Some(3.2), Some(5.0)));
        assert_eq!((step.tokens_per_second, step.gaps_seconds), (0.8, 1.0));
        let [qkv, attention] = &step.operations[..] else { panic!("{step:?}") };
        assert_eq!(
            (qkv.bound_by, qkv.limit_seconds, qkv.limit_fraction),
            (Some(Bound::Compute), Some(3.0), Some(0.75))
        );
        assert_eq!((attention.bound_by, attention.limit_fraction), (Some(Bound::Memory), Some(0.4)));
    }

    #[test]
    fn without_limits_there_are_times_alone() {
        let step = step(&times(), None);
        assert_eq!((step.limit_seconds, step.operations[0].limit_seconds), (None, None));
        assert_eq!(step.operations[0].flops, Some(300.0));
    }
}
