//! The next token of every row of a batch, rows spread over the threads.

use std::sync::Mutex;

use candle_core::Tensor;

use crate::error::Error;
use crate::forward::device::Device;
use crate::forward::ops::access::Operand;
use crate::forward::sampling::{Candidate, NonFiniteLogits, SamplingKey, sample};
use flashjob_config::Sampling;
use flashjob_cpu::argmax;

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
    /// Chooses a token for each row of `logits`, `[rows_to_sample, vocabulary]`.
    pub fn choose(
        &mut self,
        device: &Device,
        logits: &Tensor,
        rows_to_sample: &[SamplingRow],
    ) -> Result<&[Result<u32, NonFiniteLogits>], Error> {
        let failed = Error::compute("read logits");
        #[cfg(feature = "cuda")]
        if logits.device().is_cuda() {
            // A vocabulary of logits is half a megabyte a row; a greedy choice needs four bytes of it.
            if rows_to_sample.iter().all(|choice| choice.sampling.is_greedy()) {
                return self.most_likely(device, logits, rows_to_sample.len()).map_err(&failed);
            }
            let logits = logits.to_device(&candle_core::Device::Cpu).map_err(&failed)?;
            return self.choose(device, &logits, rows_to_sample);
        }
        let pool = device.pool();
        let vocabulary = logits.dim(1).map_err(&failed)?;
        let operand = Operand::of(logits);
        let logits = operand.floats().map_err(&failed)?;
        self.best.resize(rows_to_sample.len(), 0);
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
        self.tokens.clear();
        self.tokens.extend(self.rows[..rows_to_sample.len()].iter().map(row_token));
        Ok(&self.tokens)
    }

    /// The most likely token of each row of logits that are on a GPU: only the tokens come back.
    #[cfg(feature = "cuda")]
    fn most_likely(
        &mut self,
        device: &Device,
        logits: &Tensor,
        rows: usize,
    ) -> candle_core::Result<&[Result<u32, NonFiniteLogits>]> {
        let (gpu, width) = (device.gpu()?, logits.dim(1)?);
        gpu.argmax(Operand::of(logits).address()?, gpu.step().best(), [rows, width])?;
        self.best.resize(rows, 0);
        gpu.step().download_best(&mut self.best)?;
        self.tokens.clear();
        let token = |&best: &u32| if (best as usize) < width { Ok(best) } else { Err(NonFiniteLogits) };
        self.tokens.extend(self.best.iter().map(token));
        Ok(&self.tokens)
    }
}
