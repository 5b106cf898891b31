//! The next token of every row of a batch, rows spread over the threads.

use std::sync::Mutex;

use candle_core::{Device as CandleDevice, Tensor};

use crate::cpu::access::Operand;
use crate::device::Device;
use crate::error::Error;
use crate::forward::sampling::{Candidate, NonFiniteLogits, SamplingKey, sample};
use flashjob_config::Sampling;
use flashjob_cpu::{Pool, argmax};

/// Sampling parameters and randomness of one row.
#[derive(Clone, Copy, Debug)]
pub struct SamplingRow {
    /// Greedy or random.
    pub sampling: Sampling,
    /// The random part.
    pub key: SamplingKey,
}

/// Memory for choosing, reused from step to step.
#[derive(Default)]
pub struct Sampler {
    best: Vec<u32>,
    rows: Vec<Mutex<Row>>,
    tokens: Vec<Result<u32, NonFiniteLogits>>,
}

struct Row {
    candidates: Vec<Candidate>,
    token: Result<u32, NonFiniteLogits>,
}

impl Sampler {
    /// Chooses a token for each row of `logits`, `[rows_to_sample, vocabulary]`, which are on `device`.
    ///
    /// # Errors
    /// [`Error::Compute`] of reading logits, or of what they come from.
    pub fn choose(
        &mut self,
        device: &dyn Device,
        logits: &Tensor,
        rows_to_sample: &[SamplingRow],
    ) -> Result<&[Result<u32, NonFiniteLogits>], Error> {
        let failed = Error::compute("read logits");
        let vocabulary = logits.dim(1).map_err(&failed)?;
        self.best.resize(rows_to_sample.len(), 0);
        self.tokens.clear();
        // A vocabulary of logits is half a megabyte a row; a greedy choice needs four bytes of it from a GPU.
        if rows_to_sample.iter().all(|row| row.sampling.is_greedy()) {
            device.argmax(logits, &mut self.best).map_err(&failed)?;
            let token = |&best: &u32| if (best as usize) < vocabulary { Ok(best) } else { Err(NonFiniteLogits) };
            self.tokens.extend(self.best.iter().map(token));
            return Ok(&self.tokens);
        }
        let logits = logits.to_device(&CandleDevice::Cpu).map_err(&failed)?;
        let operand = Operand::of(&logits);
        let logits = operand.floats().map_err(&failed)?;
        self.sample(device.pool(), logits, vocabulary, rows_to_sample);
        Ok(&self.tokens)
    }

    /// Samples a token from each row of `logits`, greedily or not.
    fn sample(&mut self, pool: &Pool, logits: &[f32], vocabulary: usize, rows_to_sample: &[SamplingRow]) {
        // Also for random rows: the largest logit is what weights are taken relative to, so that no exponential overflows.
        argmax(pool, logits, vocabulary, &mut self.best);
        // Grown, never shrunk: a steady step allocates nothing.
        while self.rows.len() < rows_to_sample.len() {
            self.rows.push(Mutex::new(Row { candidates: Vec::new(), token: Err(NonFiniteLogits) }));
        }
        pool.run(rows_to_sample.len(), |index| {
            // A row is one task's alone; a panic elsewhere leaves nothing half done in it.
            let mut row = self.rows[index].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let SamplingRow { sampling, key } = &rows_to_sample[index];
            let logits = &logits[index * vocabulary..(index + 1) * vocabulary];
            row.token = sample(logits, self.best[index], sampling, *key, &mut row.candidates);
        });
        let row_token = |row: &Mutex<Row>| row.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).token;
        self.tokens.extend(self.rows[..rows_to_sample.len()].iter().map(row_token));
    }
}
