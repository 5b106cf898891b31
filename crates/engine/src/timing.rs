//! Times of single steps and of their operations: steps of a given size in the place of scheduled ones.
//!
//! A step is first timed as a run computes it, from its beginning to its tokens, replayed where a run replays. Then it is computed with
//! a time for each operation, which a replayed step does not give. Sequences have blocks of their own; the keys and values of their
//! earlier tokens are whatever the cache holds, and mean nothing.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::cost::operations::{OperationNeeds, StepRows};
use crate::device::operation::{Operation, OperationTime};
use crate::device::ops::{Sample, Turn};
use crate::engine::Engine;
use crate::error::Error;
use crate::forward::batch::{ForwardBatch, LogitsRows};
use crate::forward::sampling::SamplingKey;
use flashjob_config::Sampling;
use flashjob_event::{Needs, StepNeeds};

/// Time for which a step is repeated, but for [`FEWEST_ROUNDS`].
const LONG_ENOUGH: Duration = Duration::from_millis(500);

const FEWEST_ROUNDS: usize = 3;
const MOST_ROUNDS: usize = 50;

/// Rounds that are not counted: the first loads what it needs, the second records where steps are replayed.
const UNCOUNTED_ROUNDS: usize = 2;

/// Size of a step to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StepSize {
    /// Sequences of the step, all alike.
    pub sequences: usize,
    /// Tokens of each that the step computes: 1 decodes, more are a prompt.
    pub new_tokens: usize,
    /// Tokens of each that are in the cache already.
    pub context: usize,
}

/// Times of one size of step.
#[derive(Clone, Debug)]
pub struct StepTimes {
    /// Size of the step.
    pub size: StepSize,
    /// True where the step was replayed while it was timed as a whole.
    pub replayed: bool,
    /// Median of the seconds from the beginning of a step to its tokens.
    pub seconds: f64,
    /// Steps that the median is of.
    pub rounds: usize,
    /// Lower bounds of the step.
    pub needs: StepNeeds,
    /// Operations of the step, in the order in which it first has them.
    pub operations: Vec<OperationTimes>,
}

/// All calls of one operation in a step.
#[derive(Clone, Copy, Debug)]
pub struct OperationTimes {
    /// Family of the operation.
    pub operation: Operation,
    /// Calls in a step.
    pub calls: usize,
    /// Median of the seconds that all of them take together.
    pub seconds: f64,
    /// Lower bounds of all of them together, with what they hand to each other; `None` where these are not counted.
    pub needs: Option<Needs>,
}

impl Engine {
    /// Times steps of `size` on this node, with tokens chosen by `sampling`.
    ///
    /// # Errors
    /// [`Error::Setting`] for a size that the engine was not loaded for, [`Error::Cancelled`] and [`Error::Compute`].
    pub fn time_step(
        &mut self,
        size: StepSize,
        sampling: Sampling,
        cancel: &CancellationToken,
    ) -> Result<StepTimes, Error> {
        self.has_room(size)?;
        let chunk = size.context..size.context + size.new_tokens;
        let needs = self.report.cost.of_step((0..size.sequences).map(|_| chunk.clone()), size.sequences);
        self.build(size, &sampling, true);
        let replayed = self.batch.replay().is_some();
        for _ in 0..UNCOUNTED_ROUNDS {
            self.choose(cancel)?;
        }
        let whole = rounds(|| {
            let begun = Instant::now();
            self.choose(cancel)?;
            Ok(begun.elapsed().as_secs_f64())
        })?;

        self.build(size, &sampling, false);
        let timed = rounds(|| self.operations(cancel))?;
        let step = StepRows { tokens: size.sequences * size.new_tokens, logits: size.sequences, needs };
        let operations = self.medians(&timed, &step);
        Ok(StepTimes { size, replayed, seconds: median(whole.clone()), rounds: whole.len(), needs, operations })
    }

    /// Refuses a size that buffers or the cache have no room for.
    fn has_room(&self, size: StepSize) -> Result<(), Error> {
        let StepSize { sequences, new_tokens, context } = size;
        let length = context.saturating_add(new_tokens);
        let limits = &self.limits;
        let blocks = sequences.saturating_mul(length.div_ceil(limits.block_size));
        for (name, asked, most) in [
            ("max-num-seqs", sequences, limits.max_num_seqs),
            ("max-num-batched-tokens", sequences.saturating_mul(new_tokens), limits.max_num_batched_tokens),
            ("max-model-len", length, limits.max_model_len),
            ("blocks of the KV cache", blocks, limits.num_blocks),
        ] {
            if asked > most {
                return Err(Error::Setting(format!("it needs {asked} {name}, and there are {most}")));
            }
        }
        match sequences.min(new_tokens) {
            0 => Err(Error::Setting("a step has at least one sequence and one token".to_owned())),
            _ => Ok(()),
        }
    }

    /// Fills in the step of this size: as a run does, or so that each operation is launched by itself.
    fn build(&mut self, size: StepSize, sampling: &Sampling, replayed: bool) {
        let StepSize { sequences, new_tokens, context } = size;
        let Engine { batch, replay, limits, .. } = self;
        let batch = ForwardBatch::lent(batch);
        let length = context + new_tokens;
        let blocks = length.div_ceil(limits.block_size);
        let replay = replay.filter(|_| replayed && new_tokens == 1);
        let replay = replay.map(|sizes| (sizes.at_least(sequences, blocks), sizes.spare_block));
        batch.begin(replay.map_or(length, |(size, _)| size.max_blocks * limits.block_size));
        // Spread over the vocabulary by a prime: rows of the embedding as far apart as those of a text.
        let token = |index: usize| (index.wrapping_mul(7919) % limits.vocab_size) as u32;
        for sequence in 0..sequences {
            let first = sequence * new_tokens;
            let tokens: Vec<u32> = (first..first + new_tokens).map(token).collect();
            let own = (sequence * blocks) as u32..((sequence + 1) * blocks) as u32;
            batch.push(&tokens, context, own, LogitsRows::Last);
            let key = SamplingKey { seed: 0, stream: sequence as u32, position: length as u32 };
            batch.choose(key.choice(sampling));
        }
        if let Some((size, spare_block)) = replay {
            batch.fill_up(size, spare_block);
        }
    }

    /// Computes the step that was built, up to its tokens.
    fn choose(&mut self, cancel: &CancellationToken) -> Result<(), Error> {
        let Engine { executor, batch, chosen, device, .. } = self;
        chosen.resize(batch.choices().len(), 0);
        let failed = Error::compute("time the choice of tokens");
        executor.forward(batch, cancel, |logits| {
            let Some(logits) = logits else { return Ok(()) };
            // Tokens of random keys and values: none is wrong, and none is kept.
            let sample = Sample { logits: &logits, step: batch, turn: Turn::default() };
            device.choose(&sample).map_err(&failed)?;
            device.read_tokens(sample.turn, chosen).map_err(&failed)
        })
    }

    /// Computes the step that was built, with the times of its operations.
    fn operations(&mut self, cancel: &CancellationToken) -> Result<Vec<OperationTime>, Error> {
        let failed = Error::compute("time operations");
        // Ranks on processors choose tokens with a device of its own, of which nothing else is asked.
        let chooses_itself = std::ptr::addr_eq(self.executor.first().device(), self.device.as_ref());
        self.executor.first().device().time_operations().map_err(&failed)?;
        if !chooses_itself {
            self.device.time_operations().map_err(&failed)?;
        }
        let computed = self.choose(cancel);
        let mut times = self.executor.first().device().operation_times().map_err(&failed)?;
        if !chooses_itself {
            times.extend(self.device.operation_times().map_err(&failed)?);
        }
        computed.map(|()| times)
    }

    /// Calls and median of each operation over `rounds` of a step.
    fn medians(&self, rounds: &[Vec<OperationTime>], step: &StepRows) -> Vec<OperationTimes> {
        let decoder = self.executor.first();
        let needs = OperationNeeds {
            config: decoder.config(),
            cost: &self.report.cost,
            activation_bytes: decoder.activations().size_bytes(),
        };
        let of_operation = |operation: Operation| {
            let times = |round: &Vec<OperationTime>| -> Vec<f64> {
                round.iter().filter(|time| time.operation == operation).map(|time| time.seconds).collect()
            };
            let calls = rounds.first().map_or(0, |round| times(round).len());
            let seconds = median(rounds.iter().map(|round| times(round).iter().sum()).collect());
            (calls > 0).then(|| OperationTimes { operation, calls, seconds, needs: needs.of(operation, step) })
        };
        Operation::ALL.into_iter().filter_map(of_operation).collect()
    }
}

/// Values of as many rounds as take long enough.
fn rounds<T>(mut round: impl FnMut() -> Result<T, Error>) -> Result<Vec<T>, Error> {
    let begun = Instant::now();
    let mut values = Vec::new();
    while values.len() < FEWEST_ROUNDS || (begun.elapsed() < LONG_ENOUGH && values.len() < MOST_ROUNDS) {
        values.push(round()?);
    }
    Ok(values)
}

/// The middle one, the later of two.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
