//! Lists that few steps have, of logits that are changed and log-probabilities that are wanted, where a GPU reads them.
//!
//! There is room for the largest that there were: most jobs have none, and none is as long as the vocabulary.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Result;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream};

use super::device_slice::DeviceSlice;
use super::upload::Upload;
use flashjob_cpu::{LogprobsRow, NO_TOKEN, RowSummary, TokenLogprobs};
use flashjob_engine::ForwardBatch;

/// Room on a GPU for them.
pub(super) struct SamplingLists {
    stream: Arc<CudaStream>,
    buffers: Mutex<Option<Buffers>>,
}

struct Buffers {
    upload: Upload,
    /// Logits that entries found.
    originals: CudaSlice<u32>,
    summaries: CudaSlice<u8>,
    /// Rows of the last step that want log-probabilities, and the vocabulary.
    wanted: Vec<LogprobsRow>,
    width: usize,
}

/// Lists of a step on the GPU, byte by byte.
#[derive(Clone, Copy)]
pub(super) struct ListsAt<'a> {
    /// Rows that are adjusted.
    pub adjusted: DeviceSlice<'a, u8>,
    /// Entries of those rows.
    pub entries: DeviceSlice<'a, u8>,
    /// A number for each entry.
    pub originals: DeviceSlice<'a, u8>,
    /// Rows whose log-probabilities are wanted.
    pub wanted: DeviceSlice<'a, u8>,
    /// A [`RowSummary`] for each of them.
    pub summaries: DeviceSlice<'a, u8>,
}

impl SamplingLists {
    pub(super) fn new(stream: Arc<CudaStream>) -> Self {
        Self { stream, buffers: Mutex::default() }
    }

    /// Queues the upload of the lists of `step`, and has `queue` queue what works on them, on logits of `width` tokens.
    pub(super) fn with(
        &self,
        step: &ForwardBatch,
        width: usize,
        queue: impl FnOnce(ListsAt<'_>) -> Result<()>,
    ) -> Result<()> {
        let (adjustments, wanted) = (step.adjustments(), step.logprobs());
        let lists: [&[u32]; 3] = [
            bytemuck::cast_slice(adjustments.rows()),
            bytemuck::cast_slice(adjustments.entries()),
            bytemuck::cast_slice(wanted),
        ];
        // Entries of two numbers are read at once.
        let second = lists[0].len().next_multiple_of(2);
        let third = second + lists[1].len();
        let (starts, count) = ([0, second, third], third + lists[2].len());
        let summary_bytes = size_of::<RowSummary>() * wanted.len();
        let mut kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let is_enough = |buffers: &Buffers| {
            let Buffers { upload, originals, summaries, .. } = buffers;
            upload.len() >= count && originals.len() >= adjustments.entries().len() && summaries.len() >= summary_bytes
        };
        // Given back in the stream's order: what is under way may still read the smaller ones.
        let buffers = match kept.take().filter(is_enough) {
            Some(buffers) => kept.insert(buffers),
            None => kept.insert(Buffers {
                upload: Upload::new(Arc::clone(&self.stream), count.next_power_of_two())?,
                originals: self.stream.alloc_zeros(adjustments.entries().len().next_power_of_two()).w()?,
                summaries: self.stream.alloc_zeros(summary_bytes.next_power_of_two()).w()?,
                wanted: Vec::new(),
                width,
            }),
        };
        buffers.upload.send(|numbers| {
            for (start, list) in starts.into_iter().zip(lists) {
                numbers[start..start + list.len()].copy_from_slice(list);
            }
            count
        })?;
        buffers.wanted.clear();
        buffers.wanted.extend_from_slice(wanted);
        let numbers = buffers.upload.numbers();
        queue(ListsAt {
            adjusted: numbers.bytes(),
            entries: numbers.from(second)?.bytes(),
            originals: DeviceSlice::of_memory(&buffers.originals, &self.stream),
            wanted: numbers.from(third)?.bytes(),
            summaries: DeviceSlice::of_memory(&buffers.summaries, &self.stream),
        })
    }

    /// Waits for the log-probabilities of the last step, whose `tokens` are known.
    pub(super) fn read_logprobs(&self, tokens: &[u32], logprobs: &mut Vec<(usize, TokenLogprobs)>) -> Result<()> {
        let mut kept = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(buffers) = &mut *kept else { return Ok(()) };
        let summary_bytes = size_of::<RowSummary>() * buffers.wanted.len();
        // Few bytes, and only where somebody asked for them: no place of its own on the host.
        let mut bytes = vec![0; summary_bytes];
        self.stream.memcpy_dtoh(&buffers.summaries.slice(..summary_bytes), &mut bytes).w()?;
        self.stream.synchronize().w()?;
        let summaries: Vec<RowSummary> = bytemuck::pod_collect_to_vec(&bytes);
        // A row from which no token was chosen has no log-probability.
        let of_rows = buffers.wanted.drain(..).zip(summaries);
        let of_rows = of_rows.filter(|(wanted, _)| tokens[wanted.row as usize] != NO_TOKEN);
        let width = buffers.width;
        logprobs.extend(of_rows.map(|(wanted, summary)| (wanted.row as usize, summary.logprobs(wanted.count, width))));
        Ok(())
    }
}
